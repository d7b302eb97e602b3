"""Plots of comparisons and reports."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sa_mmdet.plotting import pyplot, save_figure

from .average_precision import METRICS, TASKS
from .comparison import Comparison
from .runs import Run

_BOX_AP = "coco/bbox_mAP"  # its name in MMEngine's log


def plot_intervals(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Plot the differences between variants with their intervals, one panel per task.

    Args:
        path: The image file, written atomically.
        comparisons: One per task.
    """
    size = (6 * len(comparisons), 4)
    figure, panels = pyplot().subplots(1, len(comparisons), figsize=size, squeeze=False, constrained_layout=True)
    for panel, found in zip(panels[0], comparisons, strict=True):
        count = len(found.differences)
        for number, (name, row) in enumerate(zip(found.variants[1:], found.differences, strict=True)):
            heights = [i + 0.6 * (number - (count - 1) / 2) / count for i in range(len(METRICS))]
            middle = [100 * row[metric]["difference"] for metric in METRICS]
            errors = [[100 * abs(row[m][key] - row[m]["difference"]) for m in METRICS] for key in ("low", "high")]
            panel.errorbar(middle, heights, xerr=errors, fmt="o", capsize=3, label=name)
        panel.axvline(0, color="grey", linewidth=1)
        panel.set_yticks(range(len(METRICS)), METRICS)
        panel.invert_yaxis()
        panel.set_xlabel(f"{TASKS[found.task]} AP points above {found.variants[0]}, {found.level:.0%} interval")
        panel.legend()
    save_figure(figure, path, dpi=120)


def training_curves(variants: Mapping[str, Sequence[Run]]) -> str:
    """Plot training loss and box AP as SVG, one colour per variant and one line per run.

    Args:
        variants: The runs of each variant, by its name.
    """

    def draw(loss: Any, metric: Any) -> None:
        for number, (name, runs) in enumerate(variants.items()):
            for run in runs:
                style: dict[str, Any] = dict(color=f"C{number}", label=name if run is runs[0] else None)
                if run.losses:
                    loss.plot(*zip(*run.losses, strict=True), linewidth=1, **style)
                points = [(epoch, 100 * found[_BOX_AP]) for epoch, found in run.metrics if _BOX_AP in found]
                if points:
                    metric.plot(*zip(*points, strict=True), marker=".", **style)
        loss.set_xlabel("iteration")
        loss.set_ylabel("training loss")
        metric.set_xlabel("epoch")
        metric.set_ylabel("box AP")
        metric.legend(fontsize=7, framealpha=0)

    return _svg(draw, 2)


def precision_by_recall(comparison: Comparison) -> str:
    """Plot each variant's precision by recall as SVG, at an IoU of 0.5, mean over classes and runs."""

    def draw(axis: Any) -> None:
        for name, runs in zip(comparison.variants, comparison.runs, strict=True):
            curves = [run.curve for run in runs]
            axis.plot(np.linspace(0, 1, len(curves[0])), np.mean(curves, 0), label=name)
        axis.set_xlabel("recall")
        axis.set_ylabel("precision at IoU 0.5, mean of classes")
        axis.legend(fontsize=7, framealpha=0)

    return _svg(draw)


def _svg(draw: Callable[..., None], panels: int = 1) -> str:
    """Make a figure as SVG, with text and axes in a grey that is readable on white and on black.

    Args:
        draw: Draws into the panels' axes.
        panels: The number of panels.
    """
    grey = "#808080"
    style = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), grey)
    plot = pyplot()
    with plot.rc_context({**style, "svg.fonttype": "none", "font.size": 9}):
        figure, axes = plot.subplots(1, panels, figsize=(4.6 * panels, 3.2), squeeze=False, constrained_layout=True)
        draw(*axes[0])
        for axis in axes[0]:
            axis.set_facecolor("none")
            axis.grid(alpha=0.25)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
        plot.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]
