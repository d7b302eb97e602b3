"""Plots and tables of the gates of shuffle attention."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sa_mmdet.atomic_write import atomic_write
from sa_mmdet.plotting import pyplot, save_figure

from .gates import Gates

_MAPS = 3  # the number of groups whose maps are shown
_SPAN = 0.1  # the smallest range of gates that takes all colours: less would make noise look like a pattern


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file atomically."""
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_statistics(path: Path, found: Sequence[Gates]) -> None:
    """Write the mean, minimum, maximum and standard deviation of each group's gates as CSV, one row per group."""
    rows: list[list[Any]] = []
    for gates in found:
        for branch, values in (("channel", gates.channel), ("spatial", gates.spatial)):
            for group, inside in enumerate(values):
                numbers = (f"{f(inside):.6f}" for f in (np.mean, np.min, np.max, np.std))
                rows.append([gates.layer, branch, group, *numbers])
    write_csv(path, ["layer", "branch", "group", "mean", "minimum", "maximum", "deviation"], rows)


def plot_channel_gates(path: Path, found: Sequence[Gates]) -> None:
    """Plot the mean of each group's channel gates as a colour map: one row per block, one column per group."""
    groups = max(len(gates.channel) for gates in found)
    table = np.full((len(found), groups), np.nan)
    for row, gates in zip(table, found, strict=True):
        row[: len(gates.channel)] = gates.channel.mean(1)
    figure, panel = pyplot().subplots(figsize=(10, 0.3 * len(found) + 1.5), constrained_layout=True)
    image = panel.imshow(table, aspect="auto", cmap="viridis", **_colour_range(table))
    panel.set_yticks(range(len(found)), [gates.layer.removeprefix("backbone.").removesuffix(".sa") for gates in found])
    panel.set_xlabel("group")
    figure.colorbar(image, label="channel gate, mean of a group")
    save_figure(figure, path)


def plot_spatial_gates(path: Path, found: Sequence[Gates], image: NDArray[np.uint8]) -> None:
    """Plot the spatial gates of each stage's last block: the mean over all groups, and the groups that vary most.

    Args:
        path: The image file to write.
        found: The gates of all blocks.
        image: The image, which is shown beside them, H x W x 3 with channels in OpenCV's order.
    """
    last = {gates.layer.removeprefix("backbone.").split(".")[0]: gates for gates in found}
    size = (3 * (_MAPS + 2), 2.6 * len(last))
    figure, panels = pyplot().subplots(len(last), _MAPS + 2, figsize=size, squeeze=False, constrained_layout=True)
    for row, (stage, gates) in zip(panels, last.items(), strict=True):
        maps = gates.spatial.mean(1)
        chosen = np.argsort(-maps.std((1, 2)))[:_MAPS]
        shown = [("mean of all groups", maps.mean(0)), *((f"group {group}", maps[group]) for group in chosen)]
        row[0].imshow(image[..., ::-1])
        row[0].set_ylabel(stage)
        for panel, (title, values) in zip(row[1:], shown, strict=False):
            drawn = panel.imshow(values, cmap="viridis", **_colour_range(values))
            figure.colorbar(drawn, ax=panel, shrink=0.7)
            panel.set_title(title, fontsize=9)
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
    save_figure(figure, path)


def _colour_range(gates: NDArray[np.floating]) -> dict[str, float]:
    """The range of gates for the colours, which covers them all and is not smaller than :data:`_SPAN`."""
    low, high = np.nanmin(gates), np.nanmax(gates)
    wider = max(0.0, _SPAN - (high - low)) / 2
    return dict(vmin=float(low - wider), vmax=float(high + wider))


def plot_groups(path: Path, layer: str, name: str, whole: float, scores: Mapping[str, Sequence[float]]) -> None:
    """Plot the score of the best object with each group alone, on an axis that begins at 0.

    Args:
        path: The image file to write.
        layer: The attention's name.
        name: The object's class.
        whole: Its score with all groups.
        scores: For each way of numbering the groups, such as 'before the shuffle', the score with each group alone.
    """
    figure, panel = pyplot().subplots(figsize=(10, 4), constrained_layout=True)
    for where, values in scores.items():
        span = f"{min(values):.4f} to {max(values):.4f}"
        panel.plot(values, marker=".", label=f"one group alone, numbered {where}: {span}")
    panel.axhline(whole, color="grey", label=f"all groups: {whole:.4f}")
    panel.set_ylim(0, 1.05)
    panel.set_xlabel(f"group of {layer}")
    panel.set_ylabel(f"score of {name}")
    panel.legend()
    save_figure(figure, path)
