"""A limit on the polygons of a file: pycocotools walks along each of them pixel by pixel."""

import os
from pathlib import Path
from typing import Any

from .values import outline

# Pixels of all polygons' outlines: for any file, and for each byte of it. COCO's have 2 for a byte.
_OUTLINES, _OUTLINE_PER_BYTE = 5_000_000, 400


class Outlines:
    """What the polygons of a file may cost.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path):
        self._left: float = _OUTLINES + _OUTLINE_PER_BYTE * os.path.getsize(path)

    def spend(self, segmentation: Any, where: str) -> None:
        """Count a mask, which was checked.

        Args:
            segmentation: The mask.
            where: The file and the entry, which errors name.

        Raises:
            ValueError: The polygons up to here are too long.
        """
        self._left -= outline(segmentation)
        if self._left < 0:
            raise ValueError(
                f"{where}: the outlines of all polygons up to here are longer than {_OUTLINE_PER_BYTE} pixels for "
                "each byte of the file"
            )
