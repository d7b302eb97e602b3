"""Plots of trainings and of precision by recall."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from .comparison import Comparison
from .runs import Run
from .svg import LEAST_ACCURACY, add_legend, cut, figure_as_svg, look


def training_curves(variants: Mapping[str, Sequence[Run]], names: Mapping[str, str]) -> list[str]:
    """Plot training loss and box AP or top1 as SVG, one colour per variant and one line per run.

    Args:
        variants: The runs of each variant, all of one kind, by its name.
        names: The variants' short names.
    """
    task = next(iter(variants.values()))[0].kind.tasks[0]
    key = task.keys[0]
    shown = cut(names[name] for name in variants)

    def draw(axes: Any, kind: str) -> None:
        for number, (name, runs) in enumerate(variants.items()):
            for run in runs:
                style = dict(look(number), label=shown[names[name]] if run is runs[0] else None)
                points = run.losses
                if kind == "metric":
                    points = [(epoch, 100 * found[key]) for epoch, found in run.metrics if key in found]
                if points:
                    axes.plot(*zip(*points, strict=True), linewidth=1, marker="." if kind == "metric" else "", **style)
        axes.set_xlabel("iteration" if kind == "loss" else "epoch")
        axes.set_ylabel("training loss" if kind == "loss" else f"{task.measure} at the evaluations")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.25)
        if kind == "metric" and axes.lines:  # not so narrow that noise looks like an effect
            low, high = axes.get_ylim()
            apart = max(0.0, LEAST_ACCURACY - (high - low)) / 2
            axes.set_ylim(low - apart, high + apart)
        if axes.lines:
            add_legend(axes)

    return [figure_as_svg(partial(draw, kind=kind)) for kind in ("loss", "metric")]


def precision_by_recall(comparison: Comparison) -> str:
    """Plot each variant's precision by recall as SVG, at an IoU of 0.5, mean over classes and runs."""
    shown = cut(comparison.variants)

    def draw(axes: Any) -> None:
        for number, (name, runs) in enumerate(zip(comparison.variants, comparison.runs, strict=True)):
            curves = [run.curve for run in runs]
            axes.plot(np.linspace(0, 1, len(curves[0])), np.mean(curves, 0), **look(number), label=shown[name])
        axes.set_xlabel("recall")
        axes.set_ylabel("precision at IoU 0.5, mean of classes")
        axes.grid(alpha=0.25)
        add_legend(axes)

    return figure_as_svg(draw)
