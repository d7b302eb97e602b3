"""The tables of a report: the runs, the paper's results beside the measured ones, and speed."""

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sa_mmdet.analysis.complexity import analyze
from sa_mmdet.messages import short
from sa_mmdet.untrusted import check_buildable

from .runs import Run

Table = dict[str, Any]  # 'header', a list of strings; 'rows', lists of strings; optionally 'title'
MISSING = "missing"
_METRICS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
_COLUMNS = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")
_HEADER = ("AP", "AP50", "AP75", "APS", "APM", "APL")
_PAPER = (
    ("Table 3: object detection, box AP", "table3_coco_detection.csv", "bbox"),
    ("Table 4: instance segmentation with Mask R-CNN, mask AP", "table4_coco_instance_segmentation.csv", "segm"),
)


def percent(value: float | None) -> str:
    """Format a metric, 0 to 1, as a percentage; :data:`MISSING` if it is None, negative or not finite."""
    return MISSING if value is None or not math.isfinite(value) or value < 0 else f"{100 * value:.1f}"


def run_table(runs: Sequence[Run]) -> Table:
    """One row per run: its variant, its complexity, and its metrics at the last evaluation."""
    header = ["run", "detector", "backbone", "attention", "seed", "epochs", "Param. (M)", "GFLOPs"]
    header += [f"box {name}" for name in _HEADER]
    masks = any(any(value is not None for value in _metrics(run, "segm")) for run in runs)
    header += [f"mask {name}" for name in _HEADER] if masks else []
    costs: dict[str, tuple[str, str]] = {}
    rows = []
    for run in runs:
        if run.variant not in costs:
            costs[run.variant] = _cost(run)
        row = [run.name, run.family, run.backbone, run.attention, run.provenance.get("seed", MISSING)]
        row += [str(run.metrics[-1][0]), *costs[run.variant]]
        for task in ("bbox", "segm") if masks else ("bbox",):
            row += [percent(value) for value in _metrics(run, task)]
        rows.append(row)
    return dict(header=header, rows=rows)


def paper_tables(runs: Sequence[Run], folder: Path) -> list[Table]:
    """The paper's Tables 3 and 4, with the mean over the runs on COCO val2017 beside each of its results.

    Args:
        runs: The runs; those on other data do not count.
        folder: The folder with the paper's tables as CSV files.
    """
    return [_paper_table(runs, folder / name, title, task) for title, name, task in _PAPER]


def speed_table(speed: Mapping[str, Any] | None) -> Table | None:
    """Time and memory as the benchmark tool measured them.

    Args:
        speed: The content of its JSON file; if None, there is no table.

    Raises:
        ValueError: The content is not what the benchmark tool writes.
    """
    if speed is None:
        return None
    try:
        return _speed_table(speed)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"the file of speeds is not what benchmark.py writes with --json: {short(error)}") from error


def _speed_table(speed: Mapping[str, Any]) -> Table:
    header = ["variant", "image", "batch", "inference", "training step", "peak memory"]
    rows = []
    for run in speed["runs"]:
        for variant, found in run["results"].items():
            cells = [
                f"{found[mode]['ratio_paired']:.2f} ({found[mode]['min_ms']:.0f} ms)"
                for mode in ("inference", "training")
            ]
            memory = f"{found['memory']['ratio']:.2f}" if "memory" in found else MISSING
            rows.append([variant, " x ".join(map(str, run["shape"])), str(run["batch"]), *cells, memory])
    title = f"{speed['machine']}, {speed['threads']} threads, PyTorch {speed['torch']}; ratios to the plain network"
    return dict(title=title, header=header, rows=rows)


def _metrics(run: Run, task: str) -> list[float | None]:
    last = run.metrics[-1][1]
    return [last.get(f"coco/{task}_{name}") for name in _METRICS]


def _cost(run: Run) -> tuple[str, str]:
    """Parameters in millions and multiply-adds in billions, counted by the paper's rules at 800 x 1280 pixels."""
    try:
        check_buildable(run.cfg, run.folder)
        found = analyze(run.cfg.model, convention="paper")
    except Exception:  # what a work directory of others describes may not build in any way
        return MISSING, MISSING
    return f"{found.trainable / 1e6:.2f}", f"{found.total / 1e9:.2f}"


def _paper_table(runs: Sequence[Run], path: Path, title: str, task: str) -> Table:
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    header = ["detector", "backbone", "attention", "runs"]
    for metric in _HEADER:
        header += [f"{metric} paper", f"{metric} measured"]
    rows = []
    for line in lines:
        key = (line.get("detector", "Mask R-CNN"), line["backbone"], line["attention"])
        own = [run for run in runs if run.on_coco and (run.family, run.backbone, run.attention) == key]
        row = [*key, str(len(own)) if own else MISSING]
        for i, column in enumerate(_COLUMNS):
            values = [value for run in own if (value := _metrics(run, task)[i]) is not None]
            row += [line[column] or MISSING, percent(statistics.mean(values)) if values else MISSING]
        rows.append(row)
    return dict(title=title, header=header, rows=rows)
