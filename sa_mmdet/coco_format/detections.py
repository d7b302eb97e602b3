"""Detections by columns, and a quick check of many at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from .run_lengths import describe_images
from .values import LARGEST

_CODES = 512  # masks that are checked at once, so that what is computed fits into the processor's cache


@dataclass
class Detections:
    """D detections, by columns."""

    images: list[Any]  # D ids
    categories: list[Any]  # D ids
    scores: NDArray[np.float64]  # D
    boxes: NDArray[np.float64] | None  # D x 4: x, y, width, height in pixels; None unless all detections have one
    masks: list[dict[str, Any]] | None  # D compressed run-length codes; None unless all detections have one

    @classmethod
    def of(cls, entries: Sequence[Mapping[str, Any]]) -> "Detections":
        """The columns of entries, which are valid."""
        boxes = [entry["bbox"] for entry in entries if "bbox" in entry]
        masks = [entry["segmentation"] for entry in entries if "segmentation" in entry]
        return cls(
            [entry["image_id"] for entry in entries],
            [entry["category_id"] for entry in entries],
            np.array([entry["score"] for entry in entries], np.float64),
            np.array(boxes, np.float64).reshape(-1, 4) if len(boxes) == len(entries) else None,
            masks if len(masks) == len(entries) else None,
        )

    @classmethod
    def joined(cls, parts: Iterable["Detections"]) -> "Detections":
        """All detections of several parts, in order."""
        some = list(parts)
        boxes = [part.boxes for part in some if part.boxes is not None]
        masks = [part.masks for part in some if part.masks is not None]
        return cls(
            [image for part in some for image in part.images],
            [category for part in some for category in part.categories],
            np.concatenate([np.zeros(0), *(part.scores for part in some)]),
            np.concatenate([np.zeros((0, 4)), *boxes]) if len(boxes) == len(some) else None,
            list(chain.from_iterable(masks)) if len(masks) == len(some) else None,
        )

    @property
    def tasks(self) -> set[str]:
        """The tasks, 'bbox' and 'segm', that every one of the detections has an answer to."""
        return {task for task, found in (("bbox", self.boxes), ("segm", self.masks)) if found is not None}


def surely_valid(entries: Sequence[Any], coco: COCO) -> Detections | None:
    """Check many entries of a result file at once.

    Args:
        entries: The entries, which may be anything.
        coco: The annotations of the images.

    Returns:
        The detections, or None if any of the entries may be invalid.
    """
    try:
        found = Detections.of(entries)
        boxes = [entry["bbox"] for entry in entries if "bbox" in entry]
        masks = [(entry["segmentation"], entry["image_id"]) for entry in entries if "segmentation" in entry]
        is_valid = (
            bool(found.tasks)
            and coco.imgs.keys() >= set(found.images)
            and coco.cats.keys() >= set(found.categories)
            and _are_numbers([entry["score"] for entry in entries])
            and set(map(type, boxes)) <= {list}
            and set(map(len, boxes)) <= {4}
            and _are_numbers(list(chain.from_iterable(boxes)))
            and all(_are_masks(masks[begin : begin + _CODES], coco) for begin in range(0, len(masks), _CODES))
        )
        return found if is_valid else None
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None


def _are_numbers(values: Sequence[Any]) -> bool:
    # Neither infinity nor NaN is below the limit.
    return set(map(type, values)) <= {int, float} and bool((np.abs(np.array(values, np.float64)) <= LARGEST).all())


def _are_masks(masks: Sequence[tuple[Mapping[str, Any], Any]], coco: COCO) -> bool:
    sizes = [[coco.imgs[image]["height"], coco.imgs[image]["width"]] for _, image in masks]
    return [mask["size"] for mask, _ in masks] == sizes and describe_images(
        [mask["counts"] for mask, _ in masks], np.array(sizes, np.int64).prod(1)
    )
