"""The tables of a report: the variants, the runs, classes, the paper's results beside the measured ones, and speed."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sa_mmdet.messages import short

from .comparison import Comparison
from .costs import Cost, Time, times
from .paper import Printed, measured_there, printed
from .runs import Run
from .tasks import Task
from .variants import by_variant, short_names

Table = dict[str, Any]  # 'header', a list of strings; 'rows', lists of strings; optionally 'title'
MISSING = "missing"
_COLUMNS_OF_CLASSES = 7  # variants beside the first one


def percent(value: float | None) -> str:
    """Format a metric, 0 to 1, as a percentage; :data:`MISSING` if it is None, negative or not finite."""
    return MISSING if value is None or not math.isfinite(value) or value < 0 else f"{100 * value:.1f}"


def result_table(
    runs: Sequence[Run], names: Mapping[str, str], costs: Mapping[str, Cost], task: Task, found: Comparison | None
) -> Table:
    """One row per variant: what it costs, and the means of its metrics with their deviations from seed to seed.

    Args:
        runs: The runs that count.
        names: The variants' short names.
        costs: The variants' costs.
        task: What is measured.
        found: Their comparison, from which the metrics are, under the short names; None to take those of the last
            evaluations in the logs.
    """
    default, digits = runs[0].kind.shape, runs[0].kind.digits
    shapes = {costs[run.variant].shape or default for run in runs}
    at = f" at {_size(shapes.pop())}" if len(shapes) == 1 else ""
    variants = by_variant(runs)
    measured = {
        variant: _of_comparison(found, names[variant], task) if found else _of_logs(own, task)
        for variant, own in variants.items()
    }
    shown = _shown(task, measured.values())
    header = ["variant", *(task.metrics[number] for number in shown), "runs", "Param. (M)"]
    header += [f"Multiply-adds (G){at}", *([] if at else ["image"])]
    rows = []
    for variant, values in measured.items():
        cost = costs[variant]
        cells = [str(len(values[0])), _number(cost.parameters, digits), _number(cost.operations, digits)]
        cells += [] if at else [_size(cost.shape or default)]
        rows.append([names[variant], *(_mean(values[number]) for number in shown), *cells])
    return dict(header=header, rows=rows)


def run_tables(runs: Sequence[Run]) -> list[Table]:
    """For each task one row per run: its seed and its metrics at the last evaluation.

    Args:
        runs: The runs, of one kind.
    """
    names = short_names(runs)
    tables = []
    for task in runs[0].kind.tasks:
        own = [run for run in runs if any(value is not None for value in _metrics(run, task))]
        shown = _shown(task, [_of_logs([run], task) for run in own])
        rows = []
        for run in own:
            values = _metrics(run, task)
            cells = [percent(values[number]) for number in shown]
            rows.append([run.name, names[run.variant], run.seed or MISSING, str(run.metrics[-1][0]), *cells])
        header = ["run", "variant", "seed", "epochs", *(task.metrics[number] for number in shown)]
        tables += [dict(title=task.title, header=header, rows=rows)] if rows else []
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


def paper_tables(runs: Sequence[Run], task: Task, images: int | None, folder: Path) -> list[Table]:
    """The rows of the paper's tables that runs on the same images have measured, with their means beside them.

    Args:
        runs: The runs; those on other data do not count.
        task: What is measured.
        images: How many images the runs' results are of; None if that is not known.
        folder: The folder with the paper's tables as CSV files.

    Returns:
        The tables that have a row.
    """
    own = measured_there(runs, task, images)
    own = [run for run in own if any(value is not None for value in _metrics(run, task))]
    tables: dict[str, Table] = {}
    for line in printed(task, folder):
        for same in by_variant(run for run in own if line.is_of(run)).values():
            header = [*_named(line), "runs", *(f"{metric} (paper)" for metric in task.metrics)]
            table = tables.setdefault(line.table, dict(title=line.table, header=header, rows=[]))
            names = _named(line)
            names["attention"] += f" ({same[0].distinction})" if same[0].distinction else ""
            cells = [
                f"{percent(statistics.mean(values)) if values else MISSING} ({line.metrics[metric] or MISSING})"
                for metric, values in zip(task.metrics, _of_logs(same, task), strict=True)
            ]
            table["rows"].append([*names.values(), str(len(same)), *cells])
    return list(tables.values())


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


def _metrics(run: Run, task: Task) -> list[float | None]:
    last = run.metrics[-1][1]
    return [last.get(key) for key in task.keys]


def _of_comparison(found: Comparison, name: str, task: Task) -> list[list[float]]:
    """For each metric the values of a variant's runs."""
    runs = found.runs[found.variants.index(name)] if name in found.variants else []
    return [[run.points[metric] for run in runs if metric in run.points] for metric in task.metrics]


def logged(runs: Sequence[Run], task: Task) -> dict[str, list[float]]:
    """For each variant the first metric of its runs' last evaluations, from 0 to 1.

    Args:
        runs: The runs.
        task: What is measured.
    """
    return {variant: _of_logs(own, task)[0] for variant, own in by_variant(runs).items()}


def _of_logs(runs: Sequence[Run], task: Task) -> list[list[float]]:
    columns = zip(*(_metrics(run, task) for run in runs), strict=True)
    return [[value for value in column if value is not None and value >= 0] for column in columns]


def _shown(task: Task, measured: Iterable[Sequence[Sequence[float]]]) -> list[int]:
    """The numbers of the metrics that tables have: those that the paper has of all networks, or that anyone has."""
    every = list(measured)
    known = [any(values[number] for values in every) for number in range(len(task.metrics))]
    return [number for number, is_known in enumerate(known) if is_known or task.metrics[number] not in task.optional]


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


def _named(line: Printed) -> dict[str, str]:
    """What tells a row of the paper's table from others."""
    model = dict(detector=line.family) if line.family != "image classifier" else {}
    ablation = f", {line.ablation}" if line.ablation and line.attention != "none" else ""
    return dict(model, backbone=line.backbone, attention=f"{line.attention}{ablation}")
