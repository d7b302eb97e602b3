"""Which object pycocotools matches each detection with, at a single IoU and for all classes at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as masks
from pycocotools.coco import COCO

from .average_precision import Floats

Indices = NDArray[np.intp]
_MAX_DETECTIONS = 100  # of one class in one image


class Regions:
    """The images, classes, areas and boxes or masks of annotations or detections, as arrays."""

    def __init__(
        self,
        coco: COCO,
        entries: Sequence[Mapping[str, Any]],
        numbers: tuple[Mapping[Any, int], Mapping[Any, int]],
        task: str,
    ):
        count = len(entries)
        self.images = np.fromiter((numbers[0][entry["image_id"]] for entry in entries), np.intp, count)
        self.classes = np.fromiter((numbers[1][entry["category_id"]] for entry in entries), np.intp, count)
        self.crowds = np.fromiter((bool(entry.get("iscrowd")) for entry in entries), np.uint8, count)
        self._masks: list[Any] | None = None
        if task == "bbox":
            self._boxes = np.array([entry["bbox"] for entry in entries], float).reshape(-1, 4)
            areas = self._boxes[:, 2] * self._boxes[:, 3]
        else:
            self._masks = [coco.annToRLE(entry) for entry in entries]
            areas = _areas(self._masks)
        given = [entry.get("area") if "score" not in entry else None for entry in entries]
        self.areas = np.array([own if area is None else area for area, own in zip(given, areas, strict=True)], float)

    def of(self, chosen: Indices) -> Any:
        """Boxes or masks, as pycocotools takes them."""
        return self._boxes[chosen] if self._masks is None else [self._masks[i] for i in chosen]


def _areas(codes: Sequence[Any]) -> Floats:
    """The masks' areas in pixels. pycocotools' function fails for 256 masks and more with numpy 2."""
    parts = [masks.area(codes[begin : begin + 200]) for begin in range(0, len(codes), 200)]
    return np.concatenate(parts).astype(float) if parts else np.zeros(0)


def strongest(detections: Regions, scores: Floats) -> Indices:
    """Indices of the detections in the order of their scores, without those that are too many for pycocotools."""
    by_group = np.lexsort((-scores, detections.classes, detections.images))  # stable
    images, classes = detections.images[by_group], detections.classes[by_group]
    begins = np.r_[True, (images[1:] != images[:-1]) | (classes[1:] != classes[:-1])][: len(images)]
    places = np.arange(len(images))
    kept = by_group[places - np.maximum.accumulate(np.where(begins, places, 0)) < _MAX_DETECTIONS]
    return kept[np.lexsort((kept, detections.images[kept], -scores[kept]))]


def by_image(of_detections: Indices, order: Indices, of_objects: Indices, count: int) -> list[tuple[Indices, Indices]]:
    """For each image with both, the indices of its detections, in the order of their scores, and of its objects."""
    grouped = order[np.argsort(of_detections[order], kind="stable")]
    detected = np.searchsorted(of_detections[grouped], np.arange(count + 1))
    present = np.searchsorted(of_objects, np.arange(count + 1))
    both = ((np.diff(detected) > 0) & (np.diff(present) > 0)).nonzero()[0]
    return [(grouped[detected[i] : detected[i + 1]], np.arange(present[i], present[i + 1])) for i in both]


def matched_objects(
    pairs: Sequence[tuple[Indices, Indices, Floats]],
    ignored: NDArray[np.bool_],
    crowds: NDArray[np.bool_],
    count: int,
) -> Indices:
    """For each detection the object that pycocotools matches it with, or -1.

    Args:
        pairs: For each image the detections and objects of one class that overlap by 0.5 or more, and by how much; in
            the order of the scores, the objects in the order of the file.
        ignored: Which objects are crowds or out of range.
        crowds: Which objects are crowds; these may match several detections.
        count: The number of detections.
    """
    matches = np.full(count, -1)
    taken: set[int] = set()
    are_crowds, are_ignored = crowds.tolist(), ignored.tolist()
    for detections, objects, overlaps in pairs:
        best, best_overlap, own = -1, 0.0, -1
        # Objects that are ignored come last, and only for a detection that matches no other.
        first = np.lexsort((ignored[objects], _steps(detections)))
        for detection, one, overlap in zip(
            detections[first].tolist(), objects[first].tolist(), overlaps[first].tolist(), strict=True
        ):
            if detection != own:
                if best >= 0:
                    matches[own] = best
                    taken.add(best)
                best, best_overlap, own = -1, 0.0, detection
            if (one in taken and not are_crowds[one]) or overlap < best_overlap:
                continue
            if best >= 0 and not are_ignored[best] and are_ignored[one]:
                continue
            best, best_overlap = one, overlap
        if best >= 0:
            matches[own] = best
            taken.add(best)
    return matches


def _steps(values: Indices) -> Indices:
    """Number the runs of equal values: 7, 7, 2 gives 0, 0, 1."""
    return np.cumsum(np.r_[False, values[1:] != values[:-1]])[: len(values)]
