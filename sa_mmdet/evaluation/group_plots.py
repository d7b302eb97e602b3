"""Plots and tables of the accuracy by group of channels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sa_mmdet.analysis.gate_plots import write_csv
from sa_mmdet.plotting import pyplot, save_figure

from .group_accuracy import GroupAccuracy, LayerAccuracy


def plot_accuracy(path: Path, found: Mapping[str, LayerAccuracy], measure: str) -> None:
    """Plot the accuracy by group, one panel per network, on one axis that begins at 0.

    Args:
        path: The image file to write.
        found: For each network's name its layer's accuracy.
        measure: 'alone' or 'removed', as it was measured.
    """
    size = (10, 0.9 + 3.6 * len(found))
    figure, panels = pyplot().subplots(len(found), 1, figsize=size, squeeze=False, sharey=True, constrained_layout=True)
    highest = 0.0
    for panel, (name, layer) in zip(panels[:, 0], found.items(), strict=True):
        count = len(next(iter(layer.groups.values())))
        for number, (numbering, groups) in enumerate(layer.groups.items()):
            values = [100 * one.value for one in groups]
            ends = [(100 * (layer.whole + one.low), 100 * (layer.whole + one.high)) for one in groups]
            errors = np.array([(max(v - a, 0), max(b - v, 0)) for v, (a, b) in zip(values, ends, strict=True)]).T
            places = np.arange(count) + 0.2 * (number - (len(layer.groups) - 1) / 2)
            label = f"one group {measure}, numbered {numbering}: {_range(groups)}"
            panel.errorbar(places, values, yerr=errors, fmt="o-", markersize=3, linewidth=0.8, capsize=2, label=label)
            highest = max(highest, *values, *(end for _, end in ends))
        highest = max(highest, 100 * layer.whole)
        panel.axhline(100 * layer.whole, color="grey", label=f"all groups: {100 * layer.whole:.1f}")
        panel.axhline(100 * layer.none, color="grey", linestyle="dotted", label=f"no group: {100 * layer.none:.1f}")
        panel.set_title(f"{name}, {layer.layer}, {layer.images} images", fontsize=10)
        panel.set_xlabel("group")
        panel.set_ylabel(f"{layer.metric}, %")
        panel.legend(fontsize=8)
    panels[0, 0].set_ylim(0, 1.05 * highest or 1)
    kept = "all other channels of the layer's output are" if measure == "alone" else "the group's channels are"
    note = (
        f"One group {measure}: {kept} zero. Bars: 95 % intervals of the difference to all groups, over the images; 1 "
        "of 20 misses by chance."
    )
    figure.supxlabel(note, fontsize=8)
    save_figure(figure, path)


def described(found: Mapping[str, LayerAccuracy], measure: str) -> list[str]:
    """One sentence for each network and numbering.

    Args:
        found: For each network's name its layer's accuracy.
        measure: 'alone' or 'removed', as it was measured.
    """
    return [
        f"{name}, {layer.layer}, {layer.metric} in percent: all groups {100 * layer.whole:.1f}, no group "
        f"{100 * layer.none:.1f}; one group {measure}, numbered {numbering}, {_range(groups)}"
        for name, layer in found.items()
        for numbering, groups in layer.groups.items()
    ]


def _range(groups: Sequence[GroupAccuracy]) -> str:
    values = [100 * one.value for one in groups]
    differing = sum(one.low > 0 or one.high < 0 for one in groups)
    return f"{min(values):.1f} to {max(values):.1f}; {differing} of {len(groups)} differ from all groups"


def write_accuracy(path: Path, found: Mapping[str, LayerAccuracy], measure: str) -> None:
    """Write the accuracy by group as CSV, one row per network, numbering and group.

    Args:
        path: The file to write.
        found: For each network's name its layer's accuracy.
        measure: 'alone' or 'removed', as it was measured.
    """
    header = ["network", "layer", "images", "metric", "channels", "numbering", "group", "value", "difference"]
    rows: list[list[Any]] = []
    for name, layer in found.items():
        start = [name, layer.layer, layer.images, layer.metric]
        rows.append([*start, "all groups", "", "", f"{layer.whole:.6f}", "", "", ""])
        rows.append([*start, "no group", "", "", f"{layer.none:.6f}", f"{layer.none - layer.whole:.6f}", "", ""])
        for numbering, groups in layer.groups.items():
            for group, one in enumerate(groups):
                numbers = (one.value, one.value - layer.whole, one.low, one.high)
                rows.append(
                    [*start, f"one group {measure}", numbering, group, *(f"{number:.6f}" for number in numbers)]
                )
    write_csv(path, [*header, "low", "high"], rows)
