"""Figures on machines without a display."""

from pathlib import Path
from typing import Any

from .atomic_write import atomic_write


def pyplot() -> Any:
    """Import matplotlib's pyplot with the backend that draws into files only."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: str | Path, dpi: int = 110) -> None:
    """Write a figure atomically and close it.

    Args:
        figure: A figure of pyplot.
        path: The file; its suffix chooses the format.
        dpi: Pixels per inch.
    """
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
    pyplot().close(figure)
