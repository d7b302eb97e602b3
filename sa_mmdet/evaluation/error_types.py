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

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coder

from sa_mmdet.coco_format import Detections

from .matching import AREAS, best_of_each_image, greedy
from .objects import Floats, Objects, numbered

Indices = NDArray[np.intp]

CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)
TYPES = ("classification", "localisation", "both", "duplicate", "background", "missed")
RIGHT, IGNORED = -1, -2  # what a detection may be instead; ignored ones match a crowd or an object out of range
SIZES = ("all", "small", "medium", "large")  # as many as AREAS
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


def judge(found: Detections, objects: Objects, task: str) -> Judged:
    """Find what is wrong with each detection.

    Args:
        found: Valid detections, which have boxes or masks, whichever the task is about.
        objects: The objects.
        task: 'bbox' or 'segm'.
    """
    images, classes, areas = numbered(found, objects, task)
    kept = best_of_each_image(images, classes, found.scores)
    order = kept[np.lexsort((kept, images[kept], -found.scores[kept]))]
    images, classes, areas = images[order], classes[order], areas[order]
    own, other, nearest, edges = _overlaps(found, order, images, classes, objects, task)
    kinds = _types(own, other)
    target = np.select([kinds == LOCALISATION, kinds == CLASSIFICATION], list(nearest), -1)
    crowds = objects.crowds > 0
    groups = images.astype(np.int64) * len(objects.categories) + classes
    judged, matched, counts, in_range = [], [], [], []
    for low, high in AREAS:
        ignored = crowds | (objects.areas < low) | (objects.areas > high)
        matches = np.full(len(order), -1)
        for which, has_one, chosen in greedy(*edges, groups, ignored, crowds, np.array([_RIGHT])):
            matches[which] = np.where(has_one[0], chosen[0], -1)
        is_ignored = (matches >= 0) & ignored[matches] if len(ignored) else np.zeros(len(order), bool)
        judged.append(np.select([is_ignored, matches >= 0], [IGNORED, RIGHT], kinds))
        matched.append(np.where(matches >= 0, matches, target))
        counts.append((areas >= low) & (areas <= high))
        in_range.append(~ignored)
    left = np.flatnonzero(~crowds)
    renumbered = np.full(len(crowds) + 1, -1)  # the last for the target -1
    renumbered[left] = np.arange(len(left))
    object_images, object_classes = np.divmod(objects.groups[left], len(objects.categories))
    return Judged(
        images=images.astype(np.intp),
        classes=classes.astype(np.intp),
        scores=found.scores[order],
        kinds=np.array(judged, np.int8),
        counts=np.array(counts),
        targets=renumbered[np.array(matched)],
        object_images=object_images,
        object_classes=object_classes,
        in_range=np.array(in_range)[:, left],
        image_count=len(objects.images),
        class_names=[str(name) for name in objects.names],
    )


def _overlaps(
    found: Detections,
    order: Indices,
    images: NDArray[np.int32],
    classes: NDArray[np.int32],
    objects: Objects,
    task: str,
) -> tuple[Floats, Floats, Indices, tuple[Indices, Indices, Floats]]:
    """Compare detections with all objects of their images.

    Args:
        found: The detections.
        order: Those that count, D.
        images: The number of the image of each of these.
        classes: The number of its class.
        objects: The objects.
        task: 'bbox' or 'segm'.

    Returns:
        For each of the D its largest IoU with the objects of its own class and of other classes, crowds left out; these
        objects, 2 x D; and the detections, objects and sizes of the overlaps of one class that may match.
    """
    own, other, nearest = np.zeros(len(order)), np.zeros(len(order)), np.full((2, len(order)), -1)
    pairs: list[tuple[Indices, Indices, Floats]] = [(np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0))]
    object_images, object_classes = np.divmod(objects.groups, len(objects.categories))
    by_image = np.argsort(images, kind="stable")
    bounds = (np.searchsorted(of, np.arange(len(objects.images) + 1)) for of in (images[by_image], object_images))
    for (begin, end), (first, last) in zip(*map(pairwise, bounds), strict=True):
        if begin == end or first == last:
            continue
        detected, crowds = by_image[begin:end], objects.crowds[first:last]
        overlap = _iou(found, order[detected], objects, slice(first, last), task)
        same = classes[detected][:, None] == object_classes[first:last]
        rows, columns = (same & (overlap >= _RIGHT)).nonzero()
        pairs.append((detected[rows], first + columns, overlap[rows, columns]))
        for largest, number, chosen in ((own, 0, same & (crowds == 0)), (other, 1, ~same & (crowds == 0))):
            among = np.where(chosen, overlap, -1)
            best = among.argmax(1)
            largest[detected] = among[np.arange(len(best)), best]
            nearest[number, detected] = first + best
    detections, matched, sizes = (np.concatenate(column) for column in zip(*pairs, strict=True))
    ascending = np.argsort(detections, kind="stable")
    return own, other, nearest, (detections[ascending], matched[ascending], sizes[ascending])


def _iou(found: Detections, chosen: Indices, objects: Objects, present: slice, task: str) -> Floats:
    """The IoU of detections with objects, as pycocotools computes it."""
    boxes: Any = found.boxes
    masks: Any = found.masks
    truth: Any = objects.masks
    if task == "segm":
        return coder.iou([masks[number] for number in chosen], truth[present], objects.crowds[present])
    return coder.iou(boxes[chosen], objects.boxes[present], objects.crowds[present])


def _types(own: Floats, other: Floats) -> NDArray[np.int8]:
    """The types of detections that match nothing, by their largest IoU with objects of their own and other classes."""
    conditions = [
        ((own >= _NEAR) & (own < _RIGHT), LOCALISATION),
        (other >= _RIGHT, CLASSIFICATION),
        (own >= _RIGHT, DUPLICATE),
        (other >= _NEAR, BOTH),
    ]
    return np.select([holds for holds, _ in conditions], [kind for _, kind in conditions], BACKGROUND).astype(np.int8)
