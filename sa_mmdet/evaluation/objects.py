"""The objects of a data set by columns, and which of them the detections overlap."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coder
from pycocotools.coco import COCO
from pycocotools.cocoeval import Params

from sa_mmdet.coco_format import Detections

Floats = NDArray[np.floating]
MAX_DETECTIONS: int = Params("bbox").maxDets[-1]  # of one image and category: pycocotools takes no others
_LOWEST_IOU = 0.5  # what overlaps less matches at no threshold
_AT_ONCE = 128  # masks; some versions of pycocotools fail on 256


@dataclass
class Objects:
    """The O objects of N images and K categories; those of one image and category are next to each other.

    Images and categories are numbered in the order of their ids, and the objects of one image and category are in the
    order of the file, as pycocotools sorts them.
    """

    images: dict[Any, int]  # for each id of an image its number
    categories: dict[Any, int]  # for each id of a category its number
    names: list[Any]  # K: the categories' names
    groups: NDArray[np.int64]  # O: number of the image * K + number of the category, ascending
    areas: Floats  # O, in pixels
    crowds: NDArray[np.uint8]  # O: 1 for a crowd
    boxes: Floats  # O x 4: x, y, width, height in pixels
    masks: list[dict[str, Any]] | None  # O compressed run-length codes; None if one has none, or they do not matter
    without_mask: Any = None  # the id of an object that has no mask, if masks matter

    @classmethod
    def of(cls, coco: COCO, with_masks: bool) -> "Objects":
        """The objects of annotations.

        Args:
            coco: The annotations.
            with_masks: Whether masks are to be judged.
        """
        images = {image: number for number, image in enumerate(sorted(coco.imgs))}
        categories = {category: number for number, category in enumerate(sorted(coco.cats))}
        entries = [one for one in coco.anns.values() if one["image_id"] in images and one["category_id"] in categories]
        groups = np.array(
            [images[one["image_id"]] * len(categories) + categories[one["category_id"]] for one in entries], np.int64
        )
        order = np.argsort(groups, kind="stable")
        entries = [entries[number] for number in order]
        without_mask = next((one["id"] for one in entries if with_masks and not one.get("segmentation")), None)
        return cls(
            images,
            categories,
            [coco.cats[category]["name"] for category in categories],
            groups[order],
            np.array([one["area"] for one in entries], np.float64),
            np.array([bool(one.get("iscrowd")) for one in entries], np.uint8),
            np.array([one["bbox"] for one in entries], np.float64).reshape(-1, 4),
            [coco.annToRLE(one) for one in entries] if with_masks and without_mask is None else None,
            without_mask,
        )

    def check_masks(self, annotations: str | Path) -> None:
        """Refuse objects without a mask where masks are to be judged.

        Args:
            annotations: The file of annotations, for the error.

        Raises:
            ValueError: An object has no mask.
        """
        if self.without_mask is not None:
            raise ValueError(f"{annotations}: annotation {self.without_mask} has no mask to judge masks by")


@dataclass
class Found:
    """D detections by columns, and their E overlaps with objects of their image and category."""

    images: NDArray[np.int32]  # D: the images' numbers
    categories: NDArray[np.int32]  # D: the categories' numbers
    scores: Floats  # D
    areas: Floats  # D, in pixels
    detections: NDArray[np.int64]  # E: the detection of each overlap
    objects: NDArray[np.int64]  # E: its object
    overlaps: Floats  # E: intersection over union as pycocotools computes it, at least 0.5

    @classmethod
    def of(cls, some: Detections, objects: Objects, task: str) -> "Found":
        """Compute the areas and the overlaps of detections.

        Args:
            some: The detections, which have boxes or masks, whichever the task is about.
            objects: The objects.
            task: 'bbox' or 'segm'.
        """
        images, categories, areas = numbered(some, objects, task)
        groups = images.astype(np.int64) * len(objects.categories) + categories
        return cls(images, categories, some.scores, areas, *_overlaps(groups, some, objects, task))

    @classmethod
    def joined(cls, parts: list["Found"]) -> "Found":
        """All detections, in order."""
        offsets = np.cumsum([0, *(len(part.images) for part in parts)])
        for part, offset in zip(parts, offsets[:-1], strict=True):
            part.detections += offset
        names = ("images", "categories", "scores", "areas", "detections", "objects", "overlaps")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def numbered(some: Detections, objects: Objects, task: str) -> tuple[NDArray[np.int32], NDArray[np.int32], Floats]:
    """The numbers of the images and categories of detections, and their areas in pixels.

    Args:
        some: The detections, which have boxes or masks, whichever the task is about.
        objects: The objects.
        task: 'bbox' or 'segm'.
    """
    count = len(some.images)
    if task == "segm":
        masks: Any = some.masks
        parts = [coder.area(masks[begin : begin + _AT_ONCE]) for begin in range(0, count, _AT_ONCE)]
        areas = np.concatenate([np.zeros(0), *parts])
    else:
        boxes: Any = some.boxes
        areas = boxes[:, 2] * boxes[:, 3]
    return (
        np.fromiter(map(objects.images.__getitem__, some.images), np.int32, count),
        np.fromiter(map(objects.categories.__getitem__, some.categories), np.int32, count),
        areas,
    )


def _overlaps(
    groups: NDArray[np.int64], some: Detections, objects: Objects, task: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """The overlaps of detections with the objects of their image and category, from :data:`_LOWEST_IOU` on.

    Those with too many others of higher scores are left out.
    """
    order = np.lexsort((-some.scores, groups))
    own, begins = np.unique(groups[order], return_index=True)
    ends = np.minimum(np.append(begins[1:], len(groups)), begins + MAX_DETECTIONS)
    firsts, lasts = (np.searchsorted(objects.groups, own, side) for side in ("left", "right"))
    found: list[tuple[Any, Any, Any]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    masks: Any = some.masks
    truth: Any = objects.masks
    boxes: Any = some.boxes
    for group in np.flatnonzero(firsts < lasts):
        chosen, first, last = order[begins[group] : ends[group]], firsts[group], lasts[group]
        crowds = objects.crowds[first:last]
        if task == "segm":
            overlaps = coder.iou([masks[number] for number in chosen], truth[first:last], crowds)
        else:
            overlaps = coder.iou(boxes[chosen], objects.boxes[first:last], crowds)
        rows, columns = np.nonzero(overlaps >= _LOWEST_IOU)
        found.append((chosen[rows], first + columns, overlaps[rows, columns]))
    detections, matched, values = (np.concatenate(column) for column in zip(*found, strict=True))
    return detections, matched, values
