"""The paper's results and those of others, and which runs measured the same."""

import csv
import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .networks import ablated, attention_name, backbone_name, own_model
from .runs import Run
from .tasks import PAPER, Source, Task

_CLASSIFIER = "image classifier"
_METHODS = {"ResNet": "none", "SENet": "SE", "CBAM": "CBAM", "SGE-Net": "SGE", "ECA-Net": "ECA", "SA-Net": "SA"}
# Settings of shuffle attention that the paper's Table 1 changes; its other results are of the attention as it is.
_ABLATIONS: Mapping[str, Mapping[str, object]] = {
    "origin": {},
    "w/o_gn": {"norm": False},
    "w/o_shuffle": {"shuffle": False},
    "w/o_Fc": {"transform": "none"},
    "1x1_conv": {"transform": "conv"},
}
_COLUMNS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "APS": "ap_s",
    "APM": "ap_m",
    "APL": "ap_l",
    "top1": "top1",
    "top5": "top5",
}


@dataclass(frozen=True)
class Printed:
    """One row of a table in the paper, or in another article."""

    work: str  # what it is from, such as 'the paper'
    study: str  # the name of the table, or of the question of several tables, such as 'table3' or 'senet-ratio'
    table: str  # the title
    family: str  # as :attr:`Run.family`
    backbone: str
    attention: str
    metrics: Mapping[str, str]  # percent, as it is printed; empty where there is none
    parameters: float  # in millions; NaN where it is not known
    operations: float  # multiply-adds in billions
    ablation: str = ""  # the row's name where it is of an ablation
    changes: Mapping[str, object] = field(default_factory=dict)  # what :func:`.networks.ablated` finds
    config: str = ""  # the path of its config among this package's, where the table names it

    def is_of(self, run: Run) -> bool:
        """Whether a run is of the same network."""
        if (run.family, run.backbone, run.attention) != (self.family, self.backbone, self.attention):
            return False
        found = ablated(run.cfg.model.backbone)
        if self.family != _CLASSIFIER:  # which of the paper's detectors have SE with biases shows in their costs alone
            found.pop("bias", None)
        return found == self.changes


@functools.cache  # one page asks for them several times
def printed(task: Task, folder: Path) -> tuple[Printed, ...]:
    """The rows of the paper's and others' tables about a task.

    Args:
        task: The task.
        folder: The folder with the tables as CSV files, in that of the configs.
    """
    found = []
    costs = {
        ("Mask R-CNN", line["backbone"], line["attention"]): line
        for line in _read_csv(folder / "table3_coco_detection.csv")
        if line["detector"] == "Mask R-CNN"
    }
    for source in task.sources:
        for line in _read_csv(folder / source.file):
            if "config" in line:
                found.append(_of_senet(source, line, folder.parent))
                continue
            ablation = ""
            changes: Mapping[str, object] = {}
            if "method" in line:  # of classifiers
                ablation = line["method"] if line["method"] in _ABLATIONS else ""
                key = _CLASSIFIER, line.get("backbone", "ResNet-50"), _METHODS.get(line["method"], "SA")
                changes = _ABLATIONS[ablation or "origin"]
            else:
                key = line.get("detector", "Mask R-CNN"), line["backbone"], line["attention"]
            # The masks' costs are those of the same networks in the table of boxes.
            own = line if "params_m" in line else costs.get(key, line)
            metrics = {metric: line.get(_COLUMNS[metric], "") for metric in task.metrics}
            study = re.sub(r"Table (\d+): .*", r"table\1", source.title) if source.work == PAPER else ""
            number = _number(own, "params_m"), _number(own, "gflops")
            found.append(Printed(source.work, study, source.title, *key, metrics, *number, ablation, changes))
    return tuple(found)


def _of_senet(source: Source, line: Mapping[str, str], configs: Path) -> Printed:
    """A row of the SENet article about classifiers, whose errors become accuracies."""
    path = f"{line['config']}.py"
    backbone = own_model(configs / path)["backbone"]
    return Printed(
        work=source.work,
        study=f"senet-{line['study']}",
        table=f"{source.title}, Table {line['table']}: {line['study']}, accuracy",
        family=_CLASSIFIER,
        backbone=backbone_name(backbone),
        attention=attention_name(backbone),
        metrics={name: f"{100 - float(line[f'{name}_error']):.2f}" for name in ("top1", "top5")},
        parameters=_number(line, "params_m"),
        operations=_number(line, "gflops"),
        ablation="" if line["study"] == "networks" else line["row"],
        changes=ablated(backbone),
        config=path,
    )


def measured_there(runs: Sequence[Run], task: Task, images: int | None) -> list[Run]:
    """The runs that were tested on the images of the paper's results.

    Args:
        runs: The runs.
        task: The task.
        images: How many images their results are of; None if that is not known.
    """
    if task.images is not None and images is not None and images != task.images:
        return []
    return [run for run in runs if run.on_papers_data]


def _number(line: Mapping[str, str], column: str) -> float:
    return float(line.get(column) or math.nan)


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
