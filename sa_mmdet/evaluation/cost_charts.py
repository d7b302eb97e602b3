"""Charts of accuracy by cost, with the paper's points beside the measured ones."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .costs import Cost, Time
from .paper import measured_there, printed
from .runs import Run
from .svg import LEAST_ACCURACY, add_legend, cut, figure_as_svg, ink, look
from .tasks import PAPER, Task
from .variants import by_variant

_LEAST_COST = 0.1  # share of the largest cost that an axis spans at least
_WIDTH, _HEIGHT = 3.7, 2.7  # of the axes, in inches, about
_LETTER, _LINE = 0.055, 0.11  # of a label, in inches
_ASIDE, _ALIKE = 0.06, 0.01  # inches; share of the axis
_LABELS = {"parameters": "parameters (M)", "operations": "multiply-adds (G)", "time": "time, plain network = 1"}
_MARKERS = "D^sv<>ph*X"  # of the paper's detectors and backbones
_OTHER = "#8c8c8c"  # the colour of a paper's point whose attention no run has

Measured = tuple[float, float, float]  # a cost, and the bounds of what was measured


@dataclass(frozen=True)
class Point:
    """A variant in a chart."""

    name: str  # as figures show it
    number: int  # of the variant, from 0
    accuracy: float  # AP or top1 in points
    deviation: float  # of it from seed to seed; NaN for a single run
    costs: Mapping[str, Measured]  # by their names, which are those of the axes' labels


@dataclass(frozen=True)
class _Printed:
    """A result of the paper."""

    family: str
    backbone: str
    attention: str
    accuracy: float
    costs: Mapping[str, Measured]


def points_of(
    runs: Sequence[Run],
    accuracies: Mapping[str, Sequence[float]],
    names: Mapping[str, str],
    costs: Mapping[str, Cost],
    times: Mapping[str, Time],
) -> list[Point]:
    """The variants as points.

    Args:
        runs: The runs.
        accuracies: For each variant the AP or top1 of its runs, from 0 to 1.
        names: The variants' short names.
        costs: The variants' costs.
        times: The measured times of some variants.
    """
    points = []
    shown = cut(names[variant] for variant in by_variant(runs))
    for number, variant in enumerate(by_variant(runs)):
        values = [100 * value for value in accuracies.get(variant, []) if 0 <= value <= 1]
        if values:
            cost = costs[variant]
            known: dict[str, Measured] = dict(parameters=(cost.parameters,) * 3, operations=(cost.operations,) * 3)
            if variant in times:
                known["time"] = (times[variant].ratio, times[variant].low, times[variant].high)
            deviation = statistics.stdev(values) if len(values) > 1 else math.nan
            points.append(Point(shown[names[variant]], number, statistics.mean(values), deviation, known))
    return points


def cost_charts(
    runs: Sequence[Run], points: Sequence[Point], measured: str, task: Task, images: int | None, folder: Path
) -> list[list[dict[str, str]]]:
    """Draw the first metric by parameters, by multiply-adds, and by time where it was measured.

    Args:
        runs: The runs.
        points: What :func:`points_of` returns for them.
        measured: What the times are of.
        task: What is measured.
        images: How many images the runs' results are of; None if that is not known.
        folder: The folder with the paper's tables as CSV files.

    Returns:
        Rows of charts, each with its 'svg' and its 'title'. If all runs are on the images of the paper's results, its
        points are in the same charts as the measured ones, else in a row of their own.
    """
    theirs = _printed(runs, task, folder)
    colours = {run.attention: look(number)["color"] for number, run in reversed(list(enumerate(_firsts(runs))))}
    together = len(measured_there(runs, task, images)) == len(runs)
    kinds = ("parameters", "operations")
    here = "measured here" + (", beside the paper" if together else "")
    beside = theirs if together else []
    timed = f"measured here; the time is that of inference of {measured}"
    rows = [
        [
            *(_chart(here, task, kind, points, beside, colours) for kind in kinds),
            _chart(timed, task, "time", points, [], colours),
        ],
        [_chart(f"the paper, on {task.data}", task, kind, [], [] if together else theirs, colours) for kind in kinds],
    ]
    found = [[chart for chart in row if chart is not None] for row in rows]
    return [row for row in found if row]


def _chart(
    title: str, task: Task, kind: str, points: Sequence[Point], theirs: Sequence[_Printed], colours: Mapping[str, str]
) -> dict[str, str] | None:
    known = [point for point in points if kind in point.costs and math.isfinite(point.costs[kind][0])]
    if not known and not theirs:
        return None

    def draw(axes: Any) -> None:
        _draw(axes, kind, known, theirs, colours)
        axes.set_ylabel(task.measure)

    return dict(title=title, svg=figure_as_svg(draw, (4.4, 3.3)))


def _firsts(runs: Sequence[Run]) -> list[Run]:
    return [own[0] for own in by_variant(runs).values()]


def _printed(runs: Sequence[Run], task: Task, folder: Path) -> list[_Printed]:
    """The paper's results with the detectors of the runs, as far as it has their costs."""
    families = {run.family for run in runs}
    found = []
    for line in printed(task, folder):
        if line.work != PAPER:  # other articles count costs by other rules
            continue
        accuracy = line.metrics[task.metrics[0]]
        if line.family in families and accuracy and math.isfinite(line.parameters):
            costs = dict(parameters=(line.parameters,) * 3, operations=(line.operations,) * 3)
            found.append(_Printed(line.family, line.backbone, line.attention, float(accuracy), costs))
    return found


def _draw(axes: Any, kind: str, own: Sequence[Point], theirs: Sequence[_Printed], colours: Mapping[str, str]) -> None:
    from matplotlib.transforms import ScaledTranslation

    _span(axes, [one.costs[kind] for one in own] + [one.costs[kind] for one in theirs], own, theirs)
    width = axes.get_xlim()[1] - axes.get_xlim()[0]
    for point in own:
        cost, low, high = point.costs[kind]
        spread = None if math.isnan(point.deviation) else [point.deviation]
        style: dict[str, Any] = dict(look(point.number, True), capsize=2, linewidth=1, label=point.name)
        errors = [[max(0.0, cost - low)], [max(0.0, high - cost)]] if high > low else None
        # Attention may cost next to nothing: points of equal cost stand beside one another.
        alike = [other for other in own if abs(other.costs[kind][0] - cost) < _ALIKE * width]
        shift = _ASIDE * (alike.index(point) - (len(alike) - 1) / 2)
        aside = ScaledTranslation(shift, 0, axes.figure.dpi_scale_trans)
        axes.errorbar([cost], [point.accuracy], yerr=spread, xerr=errors, transform=axes.transData + aside, **style)
    _draw_printed(axes, kind, theirs, colours)
    axes.set_xlabel(_LABELS[kind])
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[1]:
        add_legend(axes)


def _draw_printed(axes: Any, kind: str, theirs: Sequence[_Printed], colours: Mapping[str, str]) -> None:
    """Draw the paper's points, with labels that move up or down where they would cover one another."""
    groups = list(dict.fromkeys((one.family, one.backbone) for one in theirs))
    several = len({one.family for one in theirs}) > 1
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    placed: list[tuple[float, float, float]] = []  # of each label the ends and the height, in inches
    for one in sorted(theirs, key=lambda one: one.accuracy):
        place = one.costs[kind][0], one.accuracy
        group = groups.index((one.family, one.backbone))
        style: dict[str, Any] = dict(markerfacecolor="none", color=colours.get(one.attention, _OTHER))
        axes.plot(*place, _MARKERS[group % len(_MARKERS) if several else 0], markersize=5, **style)
        text = one.attention if several or one.attention != "none" else f"none, {one.backbone}"
        start = _WIDTH * (place[0] - left) / (right - left) + 0.07
        end, height = start + _LETTER * len(text), _HEIGHT * (place[1] - low) / (high - low)
        shifts = (_LINE * step * sign for step in range(2 * len(theirs)) for sign in (1, -1))
        shift = next(
            shift
            for shift in shifts
            if all(end < first or start > last or abs(height + shift - y) >= _LINE for first, last, y in placed)
        )
        placed.append((start, end, height + shift))
        line = dict(arrowstyle="-", color=ink(), alpha=0.4, linewidth=0.6, shrinkB=3) if shift else None
        style = dict(textcoords="offset points", va="center", fontsize=7, color=ink(), arrowprops=line)
        axes.annotate(text, place, (5, 72 * shift), **style)
    for marker, names in zip(_MARKERS, groups if several else (), strict=False):
        style = dict(markerfacecolor="none", color=_OTHER, linestyle="", label=f"paper: {' '.join(names)}")
        axes.plot([], [], marker, markersize=5, **style)


def _span(axes: Any, costs: Sequence[Measured], own: Sequence[Point], theirs: Sequence[_Printed]) -> None:
    """Choose the axes' bounds, so that neither noise nor a label's width misleads."""
    low, high = min(cost[1] for cost in costs), max(cost[2] for cost in costs)
    margin = max(high - low, _LEAST_COST * high) * 0.15
    middle = (low + high) / 2
    half = max(high - low, _LEAST_COST * high) / 2
    axes.set_xlim(middle - half - margin, middle + half + margin * (3 if theirs else 1))
    ends = [one.accuracy for one in theirs]
    for point in own:
        deviation = 0.0 if math.isnan(point.deviation) else point.deviation
        ends += [point.accuracy - deviation, point.accuracy + deviation]
    middle = (min(ends) + max(ends)) / 2
    half = max(max(ends) - min(ends), LEAST_ACCURACY) * 0.6
    axes.set_ylim(middle - half, middle + half)
    axes.ticklabel_format(useOffset=False)
    axes.locator_params(axis="x", nbins=5)
