"""The errors of several variants as tables, sentences and JSON."""

import math
from collections.abc import Sequence
from typing import Any

from .average_precision import TASKS
from .error_types import SIZES, TYPES
from .error_types_comparison import NUMBERS, ErrorComparison
from .tables import Table, percent
from .verdicts import OPEN

_CLASSES_AT_ONCE = 10  # that a text shows


def error_tables(found: ErrorComparison, classes: int | None = _CLASSES_AT_ONCE) -> list[Table]:
    """What the types of errors cost, the differences, numbers, and costs by size and by class.

    Args:
        found: The errors.
        classes: The largest number of classes in the last table, those with the largest differences between variants,
            or for a single variant those that lose most; all if None.
    """
    label = TASKS[found.task]
    costs = f"{label} AP50, and the points of it that each type of error costs"
    tables = [dict(title=costs, header=["variant", "AP50", *TYPES], rows=_rows(found, 0))]
    if found.differences:
        tables.append(_difference_table(found))
    tables.append(_number_table(found))
    by_size = [[size, *row] for part, size in enumerate(SIZES) if part for row in _rows(found, part)]
    tables.append(dict(title=f"{costs}, by size", header=["size", "variant", "AP50", *TYPES], rows=by_size))
    chosen = _most_different(found)[:classes]
    by_class = [[found.parts[part], *row] for part in chosen for row in _rows(found, part)]
    some = f", {len(chosen)} of {len(found.parts) - len(SIZES)} classes" if classes is not None else ""
    tables.append(dict(title=f"{costs}, by class{some}", header=["class", "variant", "AP50", *TYPES], rows=by_class))
    return tables


def _rows(found: ErrorComparison, part: int) -> list[list[str]]:
    """For each variant its name, AP50 and costs."""
    rows = []
    for number, name in enumerate(found.variants):
        precision, costs = found.mean(number, "precision")[part], found.mean(number, "costs")[part]
        rows.append([name, percent(precision), *map(_points, costs)])
    return rows


def _points(value: float, sign: str = "") -> str:
    return "undefined" if math.isnan(value) else f"{100 * value:{sign}.1f}"


def _difference_table(found: ErrorComparison) -> Table:
    known = min(len(runs) for runs in found.runs) > 1
    over = "seeds and images" if known else "the images alone, since a variant has a single run"
    title = f"{TASKS[found.task]} AP50 that a type of error costs more, {found.level:.0%} intervals over {over}"
    rows = []
    for name, parts in zip(found.variants[1:], found.differences, strict=True):
        for kind, cell in zip(TYPES, parts[0], strict=True):
            change, low, high = (_points(cell[key], "+") for key in ("difference", "low", "high"))
            rows.append([f"{name} - {found.variants[0]}", kind, change, f"{low} to {high}", found.verdict(cell)])
    return dict(title=title, header=["difference", "error", "points", "interval", "verdict"], rows=rows)


def _number_table(found: ErrorComparison) -> Table:
    title = f"Numbers of {TASKS[found.task]} detections with scores of {found.least_score:g} or more"
    title += ", mean of the runs" if max(len(runs) for runs in found.runs) > 1 else ""
    rows = []
    for number, name in enumerate(found.variants):
        objects, right, *wrong, missed = found.mean(number, "numbers")[0]
        rows.append([name, *(f"{n:.1f}".removesuffix(".0") for n in (objects, right, sum(wrong), *wrong, missed))])
    return dict(
        title=title, header=["variant", "objects", "right", "wrong", *NUMBERS[2:-1], "missed objects"], rows=rows
    )


def _most_different(found: ErrorComparison) -> list[int]:
    """The parts that are classes with objects, by their largest difference, or cost where there is one variant."""

    def size(part: int) -> float:
        if not found.differences:
            return float(max(found.mean(0, "costs")[part]))
        return max(abs(cell["difference"]) for parts in found.differences for cell in parts[part])

    defined = [part for part in range(len(SIZES), len(found.parts)) if not math.isnan(size(part))]
    return sorted(defined, key=lambda part: -size(part))


def told_apart(found: ErrorComparison) -> list[str]:
    """A sentence for each difference by size or class that has a verdict, and one where there is none."""
    sentences = []
    for name, parts in zip(found.variants[1:], found.differences, strict=True):
        for part, cells in zip(found.parts, parts, strict=True):
            for kind, cell in zip(TYPES, cells, strict=True):
                if part == SIZES[0] or found.verdict(cell) == OPEN:
                    continue
                change, low, high = (_points(cell[key], "+") for key in ("difference", "low", "high"))
                sentences.append(
                    f"{part}: {name} - {found.variants[0]}: {change} {TASKS[found.task]} AP50 lost to {kind} errors, "
                    f"interval {low} to {high}: {found.verdict(cell)}"
                )
    if found.differences and not sentences:
        sentences.append("By size and by class no difference is told apart.")
    return sentences


def errors_as_json(found: ErrorComparison) -> dict[str, Any]:
    """All costs, numbers and differences, of the whole, by size and by class; values from 0 to 1."""

    def grouped(values: Sequence[Any]) -> dict[str, Any]:
        classes = dict(zip(found.parts[len(SIZES) :], values[len(SIZES) :], strict=True))
        sizes = dict(zip(SIZES[1:], values[1 : len(SIZES)], strict=True))
        return dict(values[0], sizes=sizes, classes=classes)

    variants = {}
    for number, name in enumerate(found.variants):
        fields = [found.mean(number, field).tolist() for field in ("precision", "costs", "numbers")]
        variants[name] = grouped(
            [
                dict(
                    AP50=precision,
                    costs=dict(zip(TYPES, costs, strict=True)),
                    numbers=dict(zip(NUMBERS, numbers, strict=True)),
                )
                for precision, costs, numbers in zip(*fields, strict=True)
            ]
        )
    differences = {
        name: grouped([dict(costs=dict(zip(TYPES, cells, strict=True))) for cells in parts])
        for name, parts in zip(found.variants[1:], found.differences, strict=True)
    }
    return dict(least_score=found.least_score, variants=variants, differences=differences)


def as_text(table: Table) -> str:
    """A table with its title as text, the columns of numbers aligned to the right."""
    lines = [table["header"], *table["rows"]]
    columns = [
        [cell.rjust(width) if is_numeric else cell.ljust(width) for cell in column]
        for column in zip(*lines, strict=True)
        for width in [max(map(len, column))]
        for is_numeric in [any(cell[:1] in "+-0123456789" for cell in column[1:])]
    ]
    return "\n".join([table["title"], *("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))])
