"""A limit on the polygons of a file: pycocotools walks along each of them pixel by pixel."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .values import outline, outline_of_all

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

    def spend_all(self, segmentations: Sequence[list[Any]]) -> bool:
        """Count several masks, which were not checked, if all of them are valid and not too long: a quick check.

        Args:
            segmentations: The masks, lists.

        Returns:
            Whether they were counted; if not, check and count them one by one.
        """
        together = outline_of_all(segmentations)
        if together is None or together > self._left:
            return False
        self._left -= together
        return True
