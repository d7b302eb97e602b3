"""The paper's results, and which runs measured the same."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .runs import Run
from .tasks import Task

_METHODS = {"ResNet": "none", "SENet": "SE", "CBAM": "CBAM", "SGE-Net": "SGE", "ECA-Net": "ECA", "SA-Net": "SA"}
# Settings of shuffle attention that the paper's Table 1 changes; all other results are of the attention as it is.
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
    """One row of a table in the paper."""

    table: str  # the title
    family: str  # as :attr:`Run.family`
    backbone: str
    attention: str
    metrics: Mapping[str, str]  # percent, as it is printed; empty where there is none
    parameters: float  # in millions; NaN where it is not known
    operations: float  # multiply-adds in billions
    ablation: str = ""  # the row's name where it is of an ablation
    changes: Mapping[str, object] | None = None  # of the attention's settings; None to accept any

    def is_of(self, run: Run) -> bool:
        """Whether a run is of the same network."""
        if (run.family, run.backbone, run.attention) != (self.family, self.backbone, self.attention):
            return False
        return self.changes is None or _changes(run) == self.changes


def printed(task: Task, folder: Path) -> list[Printed]:
    """The rows of the paper's tables about a task.

    Args:
        task: The task.
        folder: The folder with the paper's tables as CSV files.
    """
    found = []
    costs = {
        ("Mask R-CNN", line["backbone"], line["attention"]): line
        for line in _read_csv(folder / "table3_coco_detection.csv")
        if line["detector"] == "Mask R-CNN"
    }
    for title, name in task.tables:
        for line in _read_csv(folder / name):
            if "method" in line:  # of classifiers
                ablation = line["method"] if line["method"] in _ABLATIONS else ""
                key = "image classifier", line.get("backbone", "ResNet-50"), _METHODS.get(line["method"], "SA")
                changes = _ABLATIONS[ablation or "origin"]
            else:
                ablation, changes = "", None
                key = line.get("detector", "Mask R-CNN"), line["backbone"], line["attention"]
            # The masks' costs are those of the same networks in the table of boxes.
            own = line if "params_m" in line else costs.get(key, line)
            metrics = {metric: line[_COLUMNS[metric]] for metric in task.metrics}
            found.append(
                Printed(title, *key, metrics, _number(own, "params_m"), _number(own, "gflops"), ablation, changes)
            )
    return found


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


def _changes(run: Run) -> dict[str, object]:
    """The settings of a run's attention that the paper's ablations are about, where they are not the defaults."""
    backbone = run.cfg.model.backbone
    layers = backbone.get("attention")
    found: dict[str, object] = {}
    for layer in layers if isinstance(layers, list | tuple) else [layers]:
        for key, default in (("norm", True), ("shuffle", True), ("transform", "affine")):
            if isinstance(layer, Mapping) and layer.get(key, default) != default:
                found[key] = layer[key]
    return found


def _number(line: Mapping[str, str], column: str) -> float:
    return float(line.get(column) or math.nan)


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
