"""Forest plots: all differences with their intervals and the verdicts on them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sa_mmdet.plotting import pyplot, save_figure

from .average_precision import TASKS
from .comparison import Comparison
from .svg import cut, figure_as_svg, ink
from .verdicts import BETTER, WORSE, word

COLOURS = {BETTER: "#2f8f5b", WORSE: "#d1495b"}  # as the words in the page
_LINE = 0.19  # inches, like the others
_LETTER, _FIGURES, _AXES = 0.07, 2.5, 1.8  # the widths of a letter, of figures with a verdict, and of the intervals


def forest(found: Comparison) -> str:
    """Draw the differences of all metrics and variants to the first variant as SVG.

    Args:
        found: A comparison of two variants or more.
    """
    return figure_as_svg(lambda axes: draw_forest(axes, found), size_of(found))


def plot_forest(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Draw a forest plot for each of several comparisons, side by side, into an image file.

    Args:
        path: The image file, written atomically.
        comparisons: One per task.
    """
    widths, heights = zip(*map(size_of, comparisons), strict=True)
    size = (sum(widths) + 0.3 * len(widths), max(heights) + 0.3)
    plot = pyplot()
    with plot.rc_context({"font.size": 9, "text.parse_math": False}):
        figure, panels = plot.subplots(1, len(comparisons), figsize=size, squeeze=False, constrained_layout=True)
        for axes, found in zip(panels[0], comparisons, strict=True):
            axes.set_title(TASKS.get(found.task, found.task), loc="left", fontweight="bold")
            draw_forest(axes, found)
        save_figure(figure, path, dpi=120)


def size_of(found: Comparison) -> tuple[float, float]:
    """The width and the height of a forest plot in inches."""
    lines = _lines(found)
    return _LETTER * max(len(name) for name, _ in lines) + _AXES + _FIGURES, 0.85 + _LINE * len(lines)


def draw_forest(axes: Any, found: Comparison) -> None:
    """Draw one line for each metric and variant: name, interval, figures and verdict.

    Args:
        axes: Axes of matplotlib.
        found: A comparison of two variants or more.
    """
    lines = _lines(found)
    for height, (_, row) in enumerate(lines):
        if row is not None:
            _draw_row(axes, height, row, found.level)
    axes.axvline(0, color=ink(), linewidth=1, alpha=0.6)
    axes.set_yticks(range(len(lines)), [name for name, _ in lines])
    for label, (_, row) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("normal" if row is not None and len(found.differences) > 1 else "bold")
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.locator_params(axis="x", nbins=5)
    what = "AP points" if found.task in TASKS else "points"
    axes.set_xlabel(f"{what} above {cut(found.variants)[found.variants[0]]},\n{found.level:.0%} intervals")


def _lines(found: Comparison) -> list[tuple[str, Mapping[str, float] | None]]:
    """The plot's lines from above: a metric with its difference, or for several variants a heading and theirs."""
    if len(found.differences) == 1:
        return [(metric, found.differences[0][metric]) for metric in found.metrics]
    lines: list[tuple[str, Mapping[str, float] | None]] = []
    shown = cut(found.variants)
    for metric in found.metrics:
        lines.append((metric, None))
        for name, row in zip(found.variants[1:], found.differences, strict=True):
            lines.append((shown[name], row[metric]))
    return lines


def _draw_row(axes: Any, height: int, row: Mapping[str, float], level: float) -> None:
    change, low, high = (100 * row[key] for key in ("difference", "low", "high"))
    if math.isnan(change) or math.isnan(low):
        text, colour = "undefined, no such objects", ink()
    else:
        verdict = word(row, level)
        colour = COLOURS.get(verdict, ink())
        single = math.isnan(row["p"])  # the interval is over the images alone
        text = f"{change:+.1f}  ({low:+.1f} to {high:+.1f})  {verdict}"
        style: dict[str, Any] = dict(fmt="o", markersize=4, capsize=2, color=colour, linewidth=1.4)
        errors = [[max(0.0, change - low)], [max(0.0, high - change)]]
        axes.errorbar([change], [height], xerr=errors, **style, markerfacecolor="none" if single else colour)
    weight = "normal" if colour == ink() else "bold"
    axes.text(1.03, height, text, transform=axes.get_yaxis_transform(), va="center", color=colour, fontweight=weight)
