"""Plotting with matplotlib on machines without a display."""

from pathlib import Path
from typing import Any

from .atomic_write import atomic_write


def pyplot() -> Any:
    """Import matplotlib's pyplot with a backend that only draws into files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: str | Path, dpi: int = 110) -> None:
    """Write a figure atomically and close it.

    Args:
        figure: A figure of pyplot.
        path: The file to write; its suffix determines the format.
        dpi: Pixels per inch.
    """
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
    pyplot().close(figure)
