"""The tables of a report: the variants, the runs, classes, the paper's results beside the measured ones, and speed."""

import csv
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sa_mmdet.analysis.complexity import DETECTOR_SHAPE
from sa_mmdet.messages import short

from .average_precision import METRICS, TASKS
from .comparison import Comparison
from .costs import Cost, Time, times
from .runs import Run
from .variants import by_variant, short_names

Table = dict[str, Any]  # 'header', a list of strings; 'rows', lists of strings; optionally 'title'
MISSING = "missing"
_METRICS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
_COLUMNS_OF_CLASSES = 7  # variants beside the first one
_COLUMNS = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")
_HEADER = ("AP", "AP50", "AP75", "APS", "APM", "APL")
_PAPER = (
    ("Table 3: object detection, box AP", "table3_coco_detection.csv", "bbox"),
    ("Table 4: instance segmentation with Mask R-CNN, mask AP", "table4_coco_instance_segmentation.csv", "segm"),
)


def percent(value: float | None) -> str:
    """Format a metric, 0 to 1, as a percentage; :data:`MISSING` if it is None, negative or not finite."""
    return MISSING if value is None or not math.isfinite(value) or value < 0 else f"{100 * value:.1f}"


def result_table(
    runs: Sequence[Run], names: Mapping[str, str], costs: Mapping[str, Cost], task: str, found: Comparison | None
) -> Table:
    """One row per variant: what it costs, and the means of its metrics with their deviations from seed to seed.

    Args:
        runs: The runs that count.
        names: The variants' short names.
        costs: The variants' costs.
        task: 'bbox' or 'segm'.
        found: Their comparison, from which the metrics are, under the short names; None to take those of the last
            evaluations in the logs.
    """
    shapes = {costs[run.variant].shape or DETECTOR_SHAPE for run in runs}
    at = f" at {_size(shapes.pop())}" if len(shapes) == 1 else ""
    header = ["variant", *_HEADER, "runs", "Param. (M)", f"Multiply-adds (G){at}", *([] if at else ["image"])]
    rows = []
    for variant, own in by_variant(runs).items():
        values = _of_comparison(found, names[variant]) if found else _of_logs(own, task)
        cost = costs[variant]
        means = [_mean(one) for one in values] or [MISSING] * len(_HEADER)
        cells = [str(len(values[0]) if values else 0), _number(cost.parameters, 2), _number(cost.operations, 2)]
        cells += [] if at else [_size(cost.shape or DETECTOR_SHAPE)]
        rows.append([names[variant], *means, *cells])
    return dict(header=header, rows=rows)


def run_tables(runs: Sequence[Run]) -> list[Table]:
    """For each task one row per run: its seed and its metrics at the last evaluation.

    Args:
        runs: The runs.
    """
    header = ["run", "variant", "seed", "epochs", *_HEADER]
    names = short_names(runs)
    tables = []
    for task, name in TASKS.items():
        own = [run for run in runs if any(value is not None for value in _metrics(run, task))]
        rows = [
            [run.name, names[run.variant], run.seed or MISSING, str(run.metrics[-1][0])]
            + [percent(value) for value in _metrics(run, task)]
            for run in own
        ]
        tables += [dict(title=f"{name.capitalize()} AP", header=header, rows=rows)] if rows else []
    return tables


def class_tables(found: Comparison) -> list[Table]:
    """The AP of each class, the mean over a variant's runs, and how much it is above the first variant's.

    Args:
        found: A comparison. So that a table is not too wide, there are several for many variants.
    """
    means = {
        name: {kind: statistics.mean(run.per_class[kind] for run in runs) for kind in runs[0].per_class}
        for name, runs in zip(found.variants, found.runs, strict=True)
    }
    first, *others = found.variants
    parts = [others[i : i + _COLUMNS_OF_CLASSES] for i in range(0, len(others), _COLUMNS_OF_CLASSES)] or [[]]
    tables = []
    for part in parts:
        rows = []
        for kind, base in means[first].items():
            cells = [f"{percent(means[name][kind])} ({_gain(means[name][kind] - base)})" for name in part]
            known = math.isfinite(base)
            rows.append([kind, percent(base), *(cells if known else [MISSING] * len(part))])
        tables.append(dict(header=["class", first, *part], rows=rows))
    return tables


def paper_tables(runs: Sequence[Run], folder: Path) -> list[Table]:
    """The rows of the paper's Tables 3 and 4 that runs on COCO val2017 have measured, with their means beside them.

    Args:
        runs: The runs; those on other data do not count.
        folder: The folder with the paper's tables as CSV files.

    Returns:
        The tables that have a row.
    """
    tables = [_paper_table(runs, folder / name, title, task) for title, name, task in _PAPER]
    return [table for table in tables if table["rows"]]


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, each by the names of the columns.

    Args:
        path: The file.
    """
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def speed_table(speed: Mapping[str, Any] | None) -> Table | None:
    """Time and memory as the benchmark tool measured them.

    Args:
        speed: The content of its JSON file; if None, there is no table.

    Raises:
        ValueError: The content is not what the benchmark tool writes.
    """
    if speed is None:
        return None
    with _of_benchmark():
        return _speed_table(speed)


def read_times(speed: Mapping[str, Any] | None, runs: Sequence[Run]) -> tuple[dict[str, Time], str]:
    """What :func:`sa_mmdet.evaluation.costs.times` returns.

    Args:
        speed: The content of the benchmark's JSON file, or None.
        runs: The runs.

    Raises:
        ValueError: The content is not what the benchmark tool writes.
    """
    with _of_benchmark():
        return times(speed, runs)


@contextmanager
def _of_benchmark() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"the file of speeds is not what benchmark.py writes with --json: {short(error)}") from error


def _speed_table(speed: Mapping[str, Any]) -> Table:
    header = ["variant", "image", "batch", "inference", "training step", "peak memory"]
    rows = []
    for run in speed["runs"]:
        for variant, found in run["results"].items():
            # What is for inference alone was not measured in training.
            cells = [
                f"{found[mode]['ratio_paired']:.2f} ({found[mode]['min_ms']:.0f} ms)" if mode in found else MISSING
                for mode in ("inference", "training")
            ]
            memory = f"{found['memory']['ratio']:.2f}" if "memory" in found else MISSING
            rows.append([variant, " x ".join(map(str, run["shape"])), str(run["batch"]), *cells, memory])
            if "inference" not in found:
                raise KeyError("inference")
    title = f"{speed['machine']}, {speed['threads']} threads, PyTorch {speed['torch']}; ratios to the plain network"
    return dict(title=title, header=header, rows=rows)


def _metrics(run: Run, task: str) -> list[float | None]:
    last = run.metrics[-1][1]
    return [last.get(f"coco/{task}_{name}") for name in _METRICS]


def _of_comparison(found: Comparison, name: str) -> list[list[float]]:
    """For each metric the values of a variant's runs."""
    if name not in found.variants:
        return []
    return [[run.points[metric] for run in found.runs[found.variants.index(name)]] for metric in METRICS]


def logged(runs: Sequence[Run], task: str) -> dict[str, list[float]]:
    """For each variant the AP of its runs' last evaluations, from 0 to 1.

    Args:
        runs: The runs.
        task: 'bbox' or 'segm'.
    """
    return {variant: _of_logs(own, task)[0] for variant, own in by_variant(runs).items()}


def _of_logs(runs: Sequence[Run], task: str) -> list[list[float]]:
    columns = zip(*(_metrics(run, task) for run in runs), strict=True)
    return [[value for value in column if value is not None and value >= 0] for column in columns]


def _mean(values: Sequence[float]) -> str:
    if not values or not all(map(math.isfinite, values)):
        return MISSING
    return percent(statistics.mean(values)) + (f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _gain(value: float) -> str:
    return f"{100 * value:+.1f}" if math.isfinite(value) else MISSING


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else MISSING


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _paper_table(runs: Sequence[Run], path: Path, title: str, task: str) -> Table:
    header = ["detector", "backbone", "attention", "runs", *(f"{metric} (paper)" for metric in _HEADER)]
    rows = []
    for line in read_csv(path):
        key = (line.get("detector", "Mask R-CNN"), line["backbone"], line["attention"])
        own = [run for run in runs if run.on_coco and (run.family, run.backbone, run.attention) == key]
        for same in by_variant(run for run in own if any(value is not None for value in _metrics(run, task))).values():
            row = [*key, str(len(same))]
            row[2] += f" ({same[0].distinction})" if same[0].distinction else ""
            for column, values in zip(_COLUMNS, _of_logs(same, task), strict=True):
                own_mean = percent(statistics.mean(values)) if values else MISSING
                row.append(f"{own_mean} ({line[column] or MISSING})")
            rows.append(row)
    return dict(title=title, header=header, rows=rows)
