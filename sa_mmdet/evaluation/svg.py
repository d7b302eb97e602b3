"""Figures as SVG inside a page, in the colour of the page's text, so that they are readable on white and on black."""

import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sa_mmdet.plotting import pyplot

LEAST_ACCURACY = 2.0  # AP points that an axis spans at least, so that noise does not look like an effect
_INK = "#010203"  # stands for the page's own colour, which no other part of a figure has
_LONGEST = 32  # characters of a name in a figure
_START = 9  # of them before what is left out of names with the same beginning
_WORDS_END = re.compile(r"[ _(,=-]")  # a number's point ends nothing
_COLOURS = 10  # of matplotlib's cycle
_IN_AXES = 5  # lines of a legend that leave the axes enough place
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")


def ink() -> str:
    """The colour of text and axes in the figure that is being drawn."""
    return str(pyplot().rcParams["text.color"])


def cut(names: Iterable[str]) -> dict[str, str]:
    """Shorten names to what a figure has room for, unless two would become equal.

    Args:
        names: The whole names of all that is in the figure.

    Returns:
        What the figure shows, by the whole name.
    """
    known = dict.fromkeys(names)
    found = {name: _beginning(name, _LONGEST) for name in known}
    for shown in set(found.values()):
        alike = [name for name in known if found[name] == shown]
        if len(alike) > 1:
            found.update(zip(alike, _where_they_differ(alike), strict=True))
    counts = Counter(found.values())
    return {name: shown if counts[shown] == 1 else name for name, shown in found.items()}


def _beginning(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 3]}..."


def _where_they_differ(names: Sequence[str]) -> list[str]:
    """Different names with the same beginning, from the word on in which they begin to differ."""
    differs = next(place for place in itertools.count() if len({name[: place + 1] for name in names}) > 1)
    start = max([_START, *(found.end() for found in _WORDS_END.finditer(names[0], 0, differs))])
    return [f"{name[:_START]}...{_beginning(name[start:], _LONGEST - _START - 3)}" for name in names]


def look(number: int, markers: bool = False) -> dict[str, Any]:
    """The style of a variant in all figures: its colour, and what tells it from others with the same colour.

    Args:
        number: The variant's number, from 0.
        markers: Whether it is drawn as points; else as a line.
    """
    repeated = number // _COLOURS
    style = dict(fmt="os^vDP"[repeated % 6]) if markers else dict(linestyle=("-", "--", ":", "-.")[repeated % 4])
    return dict(color=f"C{number % _COLOURS}", **style)


def add_legend(axes: Any) -> None:
    """Name what is drawn: inside the axes, or below them if it is much, where the figure grows for it.

    Args:
        axes: The axes.
    """
    rows = -(-len(axes.get_legend_handles_labels()[1]) // 2)
    if 2 * rows <= _IN_AXES + 1:
        axes.legend(fontsize=7, framealpha=0)
        return
    width, height = axes.figure.get_size_inches()
    axes.figure.set_size_inches(width, height + 0.16 * rows)
    axes.legend(fontsize=7, framealpha=0, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))


def figure_as_svg(draw: Callable[[Any], None], size: tuple[float, float] = (4.6, 3.3)) -> str:
    """Draw a figure with one pair of axes.

    Args:
        draw: Draws into the axes.
        size: Width and height in inches; a phone shows about four inches without making the text smaller.

    Returns:
        The element <svg>.
    """
    plot = pyplot()
    # Names are of users and may have dollar signs, which are no formulas.
    style: dict[str, Any] = {"svg.fonttype": "none", "font.size": 9, "text.parse_math": False}
    with plot.rc_context({**style, **dict.fromkeys(_INKED, _INK)}):
        figure, axes = plot.subplots(figsize=size, constrained_layout=True)
        draw(axes)
        axes.set_facecolor("none")
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
        plot.close(figure)
    found = text.getvalue().replace(_INK, "currentColor")
    return found[found.index("<svg") :]
