"""What is wrong with each detection, and which objects are missed, as TIDE defines it (Bolya et al., ECCV 2020).

A detection that pycocotools does not match at an IoU of 0.5 has the first of these types whose condition holds, by its
largest IoU with the objects of its own class and with those of other classes:

    localisation      own class, from 0.1 up to 0.5
    classification    another class, 0.5 or more
    duplicate         own class, 0.5 or more: a detection with a higher score has that object
    both              another class, from 0.1 up to 0.5
    background        below 0.1 with all objects

An object is missed if no detection is right about it and none has a localisation or classification error on it. The
paper leaves open which type counts where the conditions of two hold; the order above is ours. Crowds, objects outside
of the range of areas and more than 100 detections of a class in an image are treated as pycocotools treats them;
crowds excuse detections of their own class and have no part in the types.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as masks
from pycocotools.coco import COCO

from .average_precision import Floats
from .error_types_matching import Indices, Regions, by_image, matched_objects, strongest

CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)
TYPES = ("classification", "localisation", "both", "duplicate", "background", "missed")
RIGHT, IGNORED = -1, -2  # what a detection may be instead; ignored ones match a crowd or an object out of range
SIZES = ("all", "small", "medium", "large")
_AREAS = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))  # COCO's ranges, in pixels, bounds included
_RIGHT, _NEAR = 0.5, 0.1  # the paper's foreground and background IoU


@dataclass
class Judged:
    """The D detections of a result file, in descending order of their scores, beside the G objects.

    Images and classes are numbered from 0 in the order of their ids. Detections of equal scores are in the order of the
    images, and then of the file, as pycocotools sorts them. Objects that are crowds are not among the G.

    Attributes:
        images: Each detection's image.
        classes: Each detection's class.
        scores: Each detection's score.
        kinds: For each range of areas (:data:`SIZES` x D) the detection's type, :data:`RIGHT` or :data:`IGNORED`.
        counts: For each range (SIZES x D) whether the detection counts if it is wrong: pycocotools ignores wrong ones
            with an area out of the range.
        targets: The object that each detection is right about (SIZES x D) or would be right about, if its localisation
            or classification error were mended; -1 for others.
        object_images: Each object's image.
        object_classes: Each object's class.
        in_range: For each range (SIZES x G) whether the object is in it.
        image_count: The number of images, N.
        class_names: The classes' names.
    """

    images: Indices
    classes: Indices
    scores: Floats
    kinds: NDArray[np.int8]
    counts: NDArray[np.bool_]
    targets: Indices
    object_images: Indices
    object_classes: Indices
    in_range: NDArray[np.bool_]
    image_count: int
    class_names: list[str]

    def owners(self, size: int, mended: Sequence[int] = ()) -> Indices:
        """For each object (G) the detection that is right about it; D where there is none.

        Of several detections the one with the highest score remains.

        Args:
            size: The range of areas, an index of :data:`SIZES`.
            mended: The types whose errors are mended; only localisation and classification matter.
        """
        kinds = [RIGHT, *(kind for kind in mended if kind in (LOCALISATION, CLASSIFICATION))]
        found = np.isin(self.kinds[size], kinds).nonzero()[0]
        owners = np.full(len(self.object_images), len(self.images))
        np.minimum.at(owners, self.targets[size, found], found)
        return np.where(self.in_range[size], owners, len(self.images))

    def missed(self, size: int, least: float = -np.inf) -> NDArray[np.bool_]:
        """For each object (G) whether it is missed.

        Args:
            size: The range of areas, an index of :data:`SIZES`.
            least: Only detections with such a score or a higher one count.
        """
        owners = self.owners(size, (LOCALISATION, CLASSIFICATION))
        return self.in_range[size] & (owners >= np.searchsorted(-self.scores, -least, "right"))


def judge(coco: COCO, entries: Sequence[Mapping[str, Any]], task: str) -> Judged:
    """Find what is wrong with each detection.

    Args:
        coco: The annotations.
        entries: Valid detections in COCO's format; the list may be empty.
        task: 'bbox' or 'segm'.
    """
    image_ids, class_ids = sorted(coco.getImgIds()), sorted(coco.getCatIds())
    numbers = {key: i for i, key in enumerate(image_ids)}, {key: i for i, key in enumerate(class_ids)}
    objects = [one for one in coco.dataset["annotations"] if _is_known(one, numbers)]
    objects.sort(key=lambda one: numbers[0][one["image_id"]])
    of_objects, of_detections = Regions(coco, objects, numbers, task), Regions(coco, entries, numbers, task)
    scores = np.array([entry["score"] for entry in entries], float)
    order = strongest(of_detections, scores)
    own, other = np.zeros(len(entries)), np.zeros(len(entries))
    nearest = np.full((2, len(entries)), -1)
    pairs: list[tuple[Indices, Indices, Floats]] = []
    for detected, present in by_image(of_detections.images, order, of_objects.images, len(image_ids)):
        overlap = masks.iou(of_detections.of(detected), of_objects.of(present), of_objects.crowds[present].tolist())
        same = of_detections.classes[detected][:, None] == of_objects.classes[present]
        rows, columns = (same & (overlap >= _RIGHT)).nonzero()
        pairs.append((detected[rows], present[columns], overlap[rows, columns]))
        plain = ~of_objects.crowds[present].astype(bool)
        for largest, number, chosen in ((own, 0, same & plain), (other, 1, ~same & plain)):
            among = np.where(chosen, overlap, -1)
            best = among.argmax(1)
            largest[detected] = among[np.arange(len(best)), best]
            nearest[number, detected] = present[best]
    kinds = _types(own, other)
    target = np.select([kinds == LOCALISATION, kinds == CLASSIFICATION], list(nearest), -1)
    judged, matched, counts, in_range = [], [], [], []
    for low, high in _AREAS:
        ignored = (of_objects.crowds > 0) | (of_objects.areas < low) | (of_objects.areas > high)
        matches = matched_objects(pairs, ignored, of_objects.crowds > 0, len(entries))
        is_ignored = (matches >= 0) & ignored[matches] if len(ignored) else np.zeros(len(entries), bool)
        judged.append(np.select([is_ignored, matches >= 0], [IGNORED, RIGHT], kinds))
        matched.append(np.where(matches >= 0, matches, target))
        counts.append((of_detections.areas >= low) & (of_detections.areas <= high))
        in_range.append(~ignored)
    kept = (of_objects.crowds == 0).nonzero()[0]
    renumbered = np.full(len(objects) + 1, -1)  # the last for the target -1
    renumbered[kept] = np.arange(len(kept))
    return Judged(
        images=of_detections.images[order],
        classes=of_detections.classes[order],
        scores=scores[order],
        kinds=np.array(judged, np.int8)[:, order],
        counts=np.array(counts)[:, order],
        targets=renumbered[np.array(matched)][:, order],
        object_images=of_objects.images[kept],
        object_classes=of_objects.classes[kept],
        in_range=np.array(in_range)[:, kept],
        image_count=len(image_ids),
        class_names=[str(coco.cats[key]["name"]) for key in class_ids],
    )


def _is_known(entry: Mapping[str, Any], numbers: tuple[Mapping[Any, int], Mapping[Any, int]]) -> bool:
    return entry["image_id"] in numbers[0] and entry["category_id"] in numbers[1]


def _types(own: Floats, other: Floats) -> NDArray[np.int8]:
    """The types of detections that match nothing, by their largest IoU with objects of their own and other classes."""
    conditions = [
        ((own >= _NEAR) & (own < _RIGHT), LOCALISATION),
        (other >= _RIGHT, CLASSIFICATION),
        (own >= _RIGHT, DUPLICATE),
        (other >= _NEAR, BOTH),
    ]
    return np.select([holds for holds, _ in conditions], [kind for _, kind in conditions], BACKGROUND).astype(np.int8)
