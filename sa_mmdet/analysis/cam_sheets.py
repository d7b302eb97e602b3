"""Sheets of activation maps, one row per network and one column per object, and the same as tables."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sa_mmdet.atomic_write import atomic_write_text
from sa_mmdet.plotting import pyplot, save_figure

from .gate_plots import write_csv
from .network import Box
from .objects import Column
from .objects_to_explain import Panel, Row

_LEGEND = "Colours: where the named layer raised the score of the object in the box, red most."
_DASHED = "Dashed: the object's box in the annotations, or where another network sees it."
_AREAS = (
    "In brackets: random maps. The map shows what the score depends on if deletion is smaller and insertion larger "
    "than theirs."
)
_WIDTH = 3.2  # of a panel, in inches
_LETTERS = 15  # of a note in an inch
_FIELDS = (
    "image, network, object, class, score, left, top, right, bottom, layer, stride, deletion, random deletion, "
    "insertion, random insertion"
)


def draw_sheet(path: str | Path, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Draw objects in the eyes of several networks: one row per network, one column per object.

    Args:
        path: The image file to write, atomically.
        columns: The objects.
        rows: The networks.
    """
    measured = any(panel and panel.faithful for row in rows for panel in row.panels)
    width = max(_WIDTH * len(columns), 2 * _WIDTH) / len(columns)  # of a panel, in inches; the notes need two
    height = width * max(row.image.shape[0] / row.image.shape[1] for row in rows) + (0.45 if measured else 0.15)
    size = (width * len(columns), 0.6 + len(rows) * height)
    figure, axes = pyplot().subplots(len(rows), len(columns), figsize=size, squeeze=False, constrained_layout=True)
    for panels, row in zip(axes, rows, strict=True):
        panels[0].set_ylabel(row.name)
        for axis, column, panel in zip(panels, columns, row.panels, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.imshow(row.image[..., ::-1])
            if column.annotated:
                _draw_box(axis, column.box, "dashed")
            if panel is None:
                axis.images[0].set_alpha(0.3)
                reason = "not found" if column.name in row.classes else "no such class"
                axis.set_title(f"{column.name}: {reason}", fontsize=8)
                _draw_box(axis, column.box, "dashed")
            else:
                _draw_panel(axis, panel)
    dashed = any(column.annotated for column in columns) or any(None in row.panels for row in rows)
    notes = [_LEGEND, *([_DASHED] if dashed else []), *([_AREAS] if measured else [])]
    figure.supxlabel("\n".join(textwrap.fill(note, int(_LETTERS * size[0])) for note in notes), fontsize=8)
    save_figure(figure, path)


def _draw_panel(axis: Any, panel: Panel) -> None:
    found = panel.found
    layer = found.layer.name.removeprefix("backbone.")
    title = f"{found.name} {found.score:.2f}, {layer} (stride {found.layer.stride:g})"
    if found.map.max() > 0:
        axis.imshow(found.map, cmap="turbo", alpha=0.65 * np.sqrt(found.map), vmin=0, vmax=1)
    else:
        title += "\nno positive influence in this layer"
    if panel.faithful:
        deletion, random_deletion, insertion, random_insertion = panel.faithful.areas
        title += (
            f"\ndeletion {deletion:.2f} ({random_deletion:.2f}), insertion {insertion:.2f} ({random_insertion:.2f})"
        )
    axis.set_title(title, fontsize=8)
    _draw_box(axis, found.box, "solid")


def _draw_box(axis: Any, box: Box | None, style: str) -> None:
    """Draw a box that can be seen on light and on dark images."""
    if box is None:
        return
    left, top, right, bottom = box
    for colour, width in (("black", 2.4), ("white", 1.2)):
        options = dict(fill=False, color=colour, lw=width, linestyle=style)
        axis.add_patch(pyplot().Rectangle((left, top), right - left, bottom - top, **options))


class Tables:
    """The objects of all sheets as a table, and their curves.

    Args:
        folder: The folder for objects.csv, with one row for each network and object, and for curves.json, with the
            curves of deletion and insertion, if they were computed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows: list[list[Any]] = []
        self.curves: list[dict[str, Any]] = []

    def add(self, image: str | Path, columns: Sequence[Column], rows: Sequence[Row]) -> None:
        """Add a sheet, and write the tables."""
        for row in rows:
            for number, (column, panel) in enumerate(zip(columns, row.panels, strict=True), 1):
                start = [str(image), row.name, number, column.name]
                if panel is None:
                    self.rows.append([*start, *[""] * (_FIELDS.count(",") + 1 - len(start))])
                    continue
                found = panel.found
                box = [f"{side:.1f}" for side in found.box] if found.box else [""] * 4
                measured = [f"{value:.4f}" for value in panel.faithful.areas] if panel.faithful else [""] * 4
                layer = [found.layer.name, f"{found.layer.stride:g}"]
                self.rows.append([*start, f"{found.score:.4f}", *box, *layer, *measured])
                if panel.faithful:
                    named = dict(zip(("image", "network", "object", "class"), start, strict=True))
                    self.curves.append({**named, **vars(panel.faithful)})
        write_csv(self.folder / "objects.csv", _FIELDS.split(", "), self.rows)
        if self.curves:
            atomic_write_text(self.folder / "curves.json", json.dumps(self.curves, indent=1))
        else:
            (self.folder / "curves.json").unlink(missing_ok=True)  # of an earlier run

    def means(self) -> list[str]:
        """One sentence for each network: the mean areas over its objects."""
        own: dict[str, list[list[float]]] = {}
        for row in self.rows:
            if row[-1]:
                own.setdefault(row[1], []).append([float(value) for value in row[-4:]])
        said = []
        for name, values in own.items():
            deletion, random_deletion, insertion, random_insertion = np.mean(values, 0)
            said.append(
                f"{name}: deletion {deletion:.3f} (random maps {random_deletion:.3f}), insertion {insertion:.3f} "
                f"(random maps {random_insertion:.3f}), means over {len(values)} objects"
            )
        return said
