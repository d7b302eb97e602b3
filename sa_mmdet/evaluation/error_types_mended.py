"""AP50 when the errors of one type are mended, on all images and on resamples of them (Bolya et al., ECCV 2020).

Mending gives a detection with a localisation or classification error the object that it is near; of several detections
of one object the one with the highest score remains. Wrong detections of the other types are left out. Missed objects
are left out, so that recall is that of the objects that were found. What a type costs is AP50 with its errors mended
less AP50. Where no object of a class is left, nothing is wrong with it if it has no wrong detection: its AP50 is 1, or
0 otherwise.

A resample is one weight per image, as in :mod:`.bootstrap`; detections of one image with equal scores keep their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .error_types import CLASSIFICATION, LOCALISATION, MISSED, TYPES, Indices, Judged
from .objects import Floats

_RECALLS = np.linspace(0, 1, 101)  # at which pycocotools measures precision
_WRONG = tuple(range(MISSED))  # the types of wrong detections
_AT_ONCE = 1 << 17  # numbers in an array, so that the processor's cache holds several
NOTHING: tuple[int, ...] = ()
ONE_BY_ONE = (NOTHING, *((kind,) for kind in range(len(TYPES))))  # nothing is mended, then each type on its own


@dataclass
class _Class:
    """The detections of one class and range of areas that are right with any choice of mended types, and wrong ones.

    Attributes:
        images: The images of the C detections that are right with at least one choice, by descending scores.
        right: For each different set of right ones, which of them they are.
        chosen: For each choice, the number of its set.
        wrong: How many wrong detections of each type and image come between each of them and the one before, and
            behind the last: a sparse matrix, types x (C + 1), N.
        objects: For each image, the number of objects, and of missed ones: a sparse matrix, 2 x N.
    """

    images: Indices
    right: list[NDArray[np.bool_]]
    chosen: list[int]
    wrong: sparse.csr_matrix
    objects: sparse.csr_matrix


def mended_precision(
    judged: Judged, size: int, weights: Floats, choices: Sequence[Sequence[int]] = ONE_BY_ONE
) -> Floats:
    """AP50 of each class with errors mended, computed in the type of the weights.

    Args:
        judged: The detections.
        size: The range of areas, an index of :data:`.error_types.SIZES`.
        weights: How many times each of R resamples contains each image, R x N. In float64 the values are pycocotools'
            own; float32 is twice as fast and right to five digits.
        choices: Each entry names the types that are mended together.

    Returns:
        0 to 1, choices x classes x R; NaN where a resample has no object of the class.
    """
    drawn = np.ascontiguousarray(weights.T)  # N x R
    classes = _by_class(judged, size, choices, drawn.dtype)
    found = np.full((len(choices), len(classes), len(weights)), np.nan)
    for number, own in enumerate(classes):
        step = max(1, _AT_ONCE // (len(own.images) + 1))
        for begin in range(0, len(weights), step):
            part = slice(begin, begin + step)
            found[:, number, part] = _precision(own, np.ascontiguousarray(drawn[:, part]), choices)
    return found


def _by_class(judged: Judged, size: int, choices: Sequence[Sequence[int]], dtype: np.dtype) -> list[_Class]:
    nobody = len(judged.images)
    sets = [frozenset(choice) & {LOCALISATION, CLASSIFICATION} for choice in choices]
    different = list(dict.fromkeys(sets))
    owners = [judged.owners(size, tuple(one)) for one in different]
    missed = judged.missed(size)
    is_wrong = judged.counts[size] & (judged.kinds[size] >= 0)
    members, objects = (_grouped(own, len(judged.class_names)) for own in (judged.classes, judged.object_classes))
    found = []
    for detections, own in zip(members, objects, strict=True):
        right = [np.sort(owner[own][owner[own] < nobody]) for owner in owners]
        hits = np.unique(np.concatenate(right))
        wrong = detections[is_wrong[detections]]
        rows = np.searchsorted(hits, wrong) + judged.kinds[size, wrong].astype(np.intp) * (len(hits) + 1)
        shape = (len(_WRONG) * (len(hits) + 1), judged.image_count)
        of_images = [
            np.bincount(judged.object_images[own[chosen[own]]], minlength=judged.image_count).astype(dtype)
            for chosen in (judged.in_range[size], missed)
        ]
        found.append(
            _Class(
                judged.images[hits],
                [np.isin(hits, one, assume_unique=True) for one in right],
                [different.index(one) for one in sets],
                sparse.csr_matrix((np.ones(len(wrong), dtype), (rows, judged.images[wrong])), shape),
                sparse.csr_matrix(np.stack(of_images)),
            )
        )
    return found


def _grouped(classes: Indices, count: int) -> list[Indices]:
    """For each class the indices of its members, in their order."""
    order = np.argsort(classes, kind="stable")
    return np.split(order, np.searchsorted(classes[order], np.arange(1, count)))


def _precision(own: _Class, drawn: Floats, choices: Sequence[Sequence[int]]) -> Floats:
    """AP50 of a class on R resamples (drawn: N x R), choices x R."""
    objects, missed = own.objects @ drawn
    wrong = (own.wrong @ drawn).reshape(len(_WRONG), len(own.images) + 1, -1)
    np.cumsum(wrong, 1, out=wrong)
    all_wrong = wrong.sum(0)
    hits = drawn[own.images]
    true = [np.cumsum(hits[right], 0) for right in own.right]
    steps: dict[tuple[int, bool], Floats] = {}
    found = np.full((len(choices), drawn.shape[1]), np.nan)
    present = objects > 0
    for number, (choice, chosen) in enumerate(zip(choices, own.chosen, strict=True)):
        total = objects - missed if MISSED in choice else objects
        key = (chosen, MISSED in choice)
        if key not in steps:
            steps[key] = _steps(true[chosen], np.maximum(total, 1))
        left = all_wrong - sum(wrong[kind] for kind in choice if kind in _WRONG)
        precision = left[:-1] if own.right[chosen].all() else left[:-1][own.right[chosen]]
        # With pycocotools' own constant, so that precision is rounded as it rounds it.
        precision = true[chosen] / (true[chosen] + precision + np.spacing(1))
        envelope = np.maximum.accumulate(precision[::-1], 0)[::-1]
        values = np.einsum("cr,cr->r", envelope, steps[key]) / len(_RECALLS)
        found[number, present] = np.where(total > 0, values, left[-1] == 0)[present]
    return found


def _steps(true: Floats, total: Floats) -> Floats:
    """How many of the recalls at which precision is measured each right detection is the first to reach, C x R.

    Args:
        true: The number of right detections up to each of C right ones, C x R.
        total: The number of objects, R.
    """
    recall = true / total
    if recall.dtype == np.float64:
        reached = np.searchsorted(_RECALLS, recall, "right").astype(float)
    else:
        reached = np.floor(100 * recall + np.float32(1.00002))  # 0.58 of 50 objects reaches the 58th, however rounded
    return np.diff(reached, axis=0, prepend=np.zeros((1, len(total)), recall.dtype))
