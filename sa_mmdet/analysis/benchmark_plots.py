"""A plot of the benchmark's measurements."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sa_mmdet.plotting import pyplot, save_figure

from .benchmark_steps import PLAIN

_RATIOS = {"inference": "ratio_paired", "training": "ratio_paired", "memory": "ratio"}


def plot_ratios(path: str | Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Plot the ratios to the plain network by the number of pixels in a batch, one panel per quantity.

    Of times these are medians of the ratios turn by turn, with their quartiles.

    Args:
        path: The image file, written atomically.
        runs: One entry per size of the input, with 'shape', 'batch', and the benchmark's 'results'.
    """
    measured = [mode for mode in _RATIOS if mode in runs[0]["results"][PLAIN]]
    size = (4 * len(measured), 4)
    figure, panels = pyplot().subplots(1, len(measured), figsize=size, squeeze=False, constrained_layout=True)
    for panel, mode in zip(panels[0], measured, strict=True):
        for variant in runs[0]["results"]:
            points = sorted(
                (run["batch"] * run["shape"][0] * run["shape"][1] / 1e6, *_ratio(run["results"][variant][mode], mode))
                for run in runs
                if mode in run["results"][variant]
            )
            if points:
                pixels, ratios, below, above = zip(*points, strict=True)
                panel.errorbar(pixels, ratios, yerr=(below, above), marker="o", capsize=3, label=variant)
        panel.set_title(f"{mode}, ratio to plain")
        panel.set_xlabel("megapixels in a batch")
        panel.grid(alpha=0.3)
    panels[0][0].legend()
    save_figure(figure, path, dpi=120)


def _ratio(measured: Mapping[str, Any], mode: str) -> tuple[float, float, float]:
    """The ratio, and how far its quartiles are below and above it."""
    ratio = measured[_RATIOS[mode]]
    low, high = measured.get("ratio_paired_quartiles", (ratio, ratio))
    return ratio, max(0.0, ratio - low), max(0.0, high - ratio)
