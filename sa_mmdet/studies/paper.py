"""The paper's tables and those of the SENet article as studies: their configs, and what was found with them."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from sa_mmdet.evaluation.comparison import Comparison
from sa_mmdet.evaluation.paper import Printed, printed
from sa_mmdet.evaluation.report import PAPER_TABLES
from sa_mmdet.evaluation.tasks import PAPER, TASK_BY_NAME

_CONFIGS = PAPER_TABLES.parent
# The tables of the paper, and the questions of the SENet article, with the tasks of their figures.
_TASKS = {
    "table1": "classification",
    "table2": "classification",
    "table3": "bbox",
    "table4": "segm",
    **dict.fromkeys(
        [f"senet-{name}" for name in ("networks", "ratio", "squeeze", "excitation", "stages", "placement")],
        "classification",
    ),
}
TABLES = tuple(_TASKS)
_DETECTORS = {
    "Faster R-CNN": "faster_rcnn/faster-rcnn",
    "Mask R-CNN": "mask_rcnn/mask-rcnn",
    "RetinaNet": "retinanet/retinanet",
}
_ABLATIONS = {
    "origin": "sa-r50",
    "w/o_gn": "sa-r50-without-norm",
    "w/o_shuffle": "sa-r50-without-shuffle",
    "w/o_Fc": "sa-r50-without-fc",
    "1x1_conv": "sa-r50-conv",
}


@dataclass(frozen=True)
class Group:
    """Configs that are compared with the first of them, such as all with the same detector and depth."""

    name: str  # such as 'faster-rcnn_r50'; '' for the only group of a study
    configs: tuple[str, ...]  # their paths
    task: str = ""  # of the paper's figures: 'bbox', 'segm' or 'classification'
    figures: tuple[float, ...] = ()  # that were published, in points, one per config
    work: str = PAPER  # where they were


def groups_of(table: str) -> list[Group]:
    """The configs of a table, those with the same detector and backbone together.

    Args:
        table: One of :data:`TABLES`.
    """
    task = TASK_BY_NAME[_TASKS[table]]
    works: dict[str, str] = {}
    found: dict[str, dict[str, float]] = {}  # for each group the figures by the configs; tables share rows
    for row in printed(task, PAPER_TABLES):
        if row.study == table:
            name, path = _config(row)
            works[name] = row.work
            found.setdefault(name, {})[str(_CONFIGS / path)] = float(row.metrics[task.metrics[0]])
    return [Group(name, tuple(own), task.name, tuple(own.values()), works[name]) for name, own in found.items()]


def _config(row: Printed) -> tuple[str, str]:
    """The group and the config of a row."""
    if row.config:
        return (row.study if row.ablation else row.backbone.lower().replace("resnet-", "r")), row.config
    if row.ablation:
        return "ablation_r50", f"imagenet/{_ABLATIONS[row.ablation]}_8xb32_in1k.py"
    depth = row.backbone.replace("ResNet-", "r")
    attention = "" if row.attention == "none" else f"{row.attention.lower()}-"
    if row.family not in _DETECTORS:
        return depth, f"imagenet/{attention}{depth}_8xb32_in1k.py"
    stem = _DETECTORS[row.family]
    return f"{stem.rpartition('/')[2]}_{depth}", f"{stem}_{attention}{depth}_fpn_1x_coco.py"


def beside_paper(group: Group, found: Comparison) -> list[str]:
    """Say for each config what was published, what was measured, and whether the two agree.

    They agree if the published figure lies where another run of the same training would: the mean of the runs, plus or
    minus t with n - 1 degrees of freedom times their standard deviation times sqrt(1 + 1/n). The images are the same
    for all of them, so that they add no spread.

    Args:
        group: The configs.
        found: The comparison of their runs, in the same order.
    """
    if found.task != group.task:
        return []
    images = TASK_BY_NAME[group.task].images
    metric = found.metrics[0]
    lines = []
    if images is not None and found.images != images:
        lines.append(
            f"these are {found.images} images, and {group.work} has results of {images}: whether its figures lie "
            "inside or outside of the intervals below does not tell whether they were reproduced"
        )
    for name, runs, figure in zip(found.variants, found.runs, group.figures, strict=True):
        values = [100 * run.points[metric] for run in runs]
        text = f"{name}: {group.work} has {figure:.1f} {found.label(metric)}, measured {statistics.mean(values):.1f}"
        low, high = another_run(values, found.level)
        if math.isnan(low):
            lines.append(f"{text} in a single run, which does not show how far another would be from it")
            continue
        inside = "inside" if low <= figure <= high else "outside"
        lines.append(
            f"{text} ({len(values)} runs); another run would lie between {low:.1f} and {high:.1f} with "
            f"{found.level:.0%}: {group.work}'s lies {inside}"
        )
    return lines


def another_run(values: Sequence[float], level: float) -> tuple[float, float]:
    """The interval in which another run lies; NaN for a single value.

    Args:
        values: One per run, taken for independent and normally distributed.
        level: The interval's probability, between 0 and 1.
    """
    if len(values) < 2:
        return math.nan, math.nan
    count = len(values)
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * statistics.stdev(values) * math.sqrt(1 + 1 / count)
    return statistics.mean(values) - half, statistics.mean(values) + half
