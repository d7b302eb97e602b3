"""Checks of single values in COCO's files: numbers and masks."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from .run_lengths import pixels

LONGEST_SIDE = 100_000  # pixels; a mask of a larger image does not fit into memory
LARGEST = LONGEST_SIDE**2  # of the numbers that say where something is, how large or how sure
# pycocotools walks along a polygon pixel by pixel, with about 100 bytes for each, and checks no size.
_LONGEST_OUTLINE = 2_000_000  # pixels, of one polygon


def is_integer(value: Any) -> bool:
    """Whether a value is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def are_numbers(values: Any, count: int | None = None) -> bool:
    """Whether a value is a list of finite numbers that a position or an area in an image could have.

    Args:
        values: The value.
        count: How many numbers there must be; any number if None.
    """
    return (
        isinstance(values, list)
        and (count is None or len(values) == count)
        # Neither infinity nor NaN is below the limit.
        and all(is_number(v) and abs(v) <= LARGEST for v in values)
    )


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a floating-point number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def outline(segmentation: Any) -> float:
    """The length of a mask's polygons in pixels, by which their cost goes; 0 for a run-length code.

    Args:
        segmentation: The mask, which was checked.
    """
    return sum(map(_length, segmentation)) if isinstance(segmentation, list) else 0


def outline_of_all(segmentations: Sequence[list[Any]]) -> float | None:
    """The length of the polygons of several masks in pixels, or None if any may be invalid: a quick check of them all.

    Args:
        segmentations: The masks, lists.
    """
    polygons = list(chain.from_iterable(segmentations))
    if not polygons:
        return 0.0 if not any(segmentations) else None
    if set(map(type, polygons)) != {list}:
        return None
    counts = np.fromiter(map(len, polygons), np.intp, len(polygons))
    values = list(chain.from_iterable(polygons))
    if (counts < 6).any() or (counts % 2).any() or not set(map(type, values)) <= {int, float}:
        return None
    try:
        corners = np.array(values, np.float64).reshape(-1, 2)
    except OverflowError:
        return None
    ends = np.cumsum(counts // 2)
    starts = ends - counts // 2
    before = np.arange(-1, len(corners) - 1)
    before[starts] = ends - 1
    with np.errstate(invalid="ignore"):  # of infinities
        lengths = np.add.reduceat(np.abs(corners - corners[before]).max(1), starts)
    # NaN is not below the limits.
    are_valid = (np.abs(corners) <= 2 * LONGEST_SIDE).all() and (lengths <= _LONGEST_OUTLINE).all()
    return float(lengths.sum()) if are_valid else None


def _length(polygon: list[float]) -> float:
    corners = list(zip(polygon[::2], polygon[1::2], strict=True))
    return sum(
        max(abs(x - before_x), abs(y - before_y))
        for (before_x, before_y), (x, y) in zip([corners[-1], *corners[:-1]], corners, strict=True)
    )


def check_segmentation(segmentation: Any, image: Mapping[str, Any], where: str) -> None:
    """Check an annotation's mask: polygons, or a run-length code, whose counts may be a list.

    Args:
        segmentation: The mask.
        image: The image's entry, with its height and width.
        where: The file and the entry, which errors name.

    Raises:
        ValueError: It is neither, or the run-length code has another size than the image.
    """
    size = [image["height"], image["width"]]
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            check_compressed_mask(segmentation, image, where)
        elif (
            segmentation.get("size") != size
            or not isinstance(counts, list)
            or not all(is_integer(c) and 0 <= c <= LARGEST for c in counts)
            or sum(counts) != size[0] * size[1]
        ):
            raise ValueError(f"{where} has a run-length code that does not fit an image of size {size}")
    elif not isinstance(segmentation, list) or not all(_is_polygon(polygon) for polygon in segmentation):
        raise ValueError(f"{where} has a mask that is not a list of polygons of at least three points each")
    elif any(_length(polygon) > _LONGEST_OUTLINE for polygon in segmentation):
        raise ValueError(f"{where} has a polygon whose outline is longer than {_LONGEST_OUTLINE} pixels")


def check_compressed_mask(mask: Any, image: Mapping[str, Any], where: str) -> None:
    """Check a mask that must be a compressed run-length code.

    pycocotools reads past the end of a truncated code, and does not return for a code of another size.

    Args:
        mask: The mask.
        image: The image's entry, with its height and width.
        where: The file and the entry, which errors name.

    Raises:
        ValueError: It is not such a code, or has another size than the image.
    """
    size = [image["height"], image["width"]]
    counts = mask.get("counts") if isinstance(mask, dict) and mask.get("size") == size else None
    if not isinstance(counts, str) or pixels(counts) != size[0] * size[1]:
        raise ValueError(f"{where} has a mask that is not a compressed run-length code of the image's size {size}")


def _is_polygon(polygon: Any) -> bool:
    return (
        are_numbers(polygon)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(abs(v) <= 2 * LONGEST_SIDE for v in polygon)
    )
