"""The matches of detections and objects at all IoU thresholds and ranges of areas, exactly those of pycocotools."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import Params

from .objects import MAX_DETECTIONS, Floats, Found, Objects

_PARAMETERS = Params("bbox")
THRESHOLDS: Floats = _PARAMETERS.iouThrs
RECALLS: Floats = _PARAMETERS.recThrs  # the recalls at which precision is measured
AREAS: list[list[float]] = _PARAMETERS.areaRng  # all, small, medium, large: the smallest and the largest area, pixels
_BITS = (1 << np.arange(len(THRESHOLDS))).astype(np.uint16)  # of each threshold
EVERY = _BITS.sum(dtype=np.uint16)  # all of them


@dataclass
class Matches:
    """The D detections of one category and their matches, for each of A ranges of areas and T IoU thresholds.

    The detections are in descending order of their scores, those of equal scores in the order of the images' ids, as
    pycocotools sorts them.
    """

    images: NDArray[np.int32]  # D: the number of each detection's image
    tied: NDArray[np.bool_]  # D: whether the detection before it is of the same image and has the same score
    true: NDArray[np.uint16]  # A x D: bit t says whether it matches an object that is not ignored
    counted: NDArray[np.uint16]  # A x D: bit t says whether it counts, as a match or as a false detection
    objects: NDArray[np.int32]  # A x N: for each image, the number of objects that are not ignored


def match(found: Found, objects: Objects) -> list[Matches]:
    """Match detections and objects.

    In the order of the scores, each detection takes the free object of its image and category that it overlaps most,
    the last of several; one that is ignored, as crowds are, only if there is no other. A crowd is always free.

    Args:
        found: The detections and their overlaps.
        objects: The objects.

    Returns:
        The matches of each category.
    """
    count = len(objects.categories)
    kept = best_of_each_image(found.images, found.categories, found.scores)
    order = kept[np.lexsort((found.images[kept], -found.scores[kept], found.categories[kept]))]
    place = np.full(len(found.images), -1)
    place[order] = np.arange(len(order))
    images, scores, categories = found.images[order], found.scores[order], found.categories[order]
    detections = place[found.detections]
    edges = np.flatnonzero(detections >= 0)
    edges = edges[np.argsort(detections[edges], kind="stable")]
    sides = detections[edges], found.objects[edges], found.overlaps[edges]
    groups = images.astype(np.int64) * count + categories
    true = np.zeros((len(AREAS), len(order)), np.uint16)
    counted = np.zeros_like(true)
    present = np.zeros((len(AREAS), count, len(objects.images)), np.int32)
    for number, (smallest, largest) in enumerate(AREAS):
        ignored = (objects.crowds > 0) | (objects.areas < smallest) | (objects.areas > largest)
        matched = np.zeros(len(order), np.uint16)
        for which, has_one, chosen in greedy(*sides, groups, ignored, objects.crowds > 0):
            matched[which] = _BITS @ has_one
            true[number, which] = _BITS @ (has_one & ~ignored[chosen])
        areas = found.areas[order]
        in_range = (areas >= smallest) & (areas <= largest)
        counted[number] = true[number] | np.where(in_range, ~matched & EVERY, 0)
        which = objects.groups[~ignored]
        np.add.at(present[number], (which % count, which // count), 1)
    tied = np.zeros(len(order), bool)
    tied[1:] = (scores[1:] == scores[:-1]) & (images[1:] == images[:-1]) & (categories[1:] == categories[:-1])
    bounds = np.searchsorted(categories, np.arange(count + 1))
    return [
        Matches(images[b:e], tied[b:e], true[:, b:e], counted[:, b:e], present[:, number])
        for number, (b, e) in enumerate(pairwise(bounds))
    ]


def best_of_each_image(
    images: NDArray[np.integer], categories: NDArray[np.integer], scores: Floats
) -> NDArray[np.intp]:
    """Numbers of the detections that pycocotools looks at: of each image and category those of the highest scores.

    Args:
        images: The number of the image of each of D detections.
        categories: The number of its category.
        scores: Its score.

    Returns:
        The numbers, ascending.
    """
    order = np.lexsort((-scores, images, categories))
    is_first = np.ones(len(order), bool)
    for column in (images[order], categories[order]):
        is_first[1:] &= column[1:] == column[:-1]
    is_first[1:] = ~is_first[1:]
    firsts = np.flatnonzero(is_first)
    rank = np.arange(len(order)) - np.repeat(firsts, np.diff(firsts, append=len(order)))
    return np.sort(order[rank < MAX_DETECTIONS])


def _steps(detections: NDArray[np.intp], groups: NDArray[np.int64]) -> NDArray[np.intp]:
    """For each overlap, how many detections of the same image and category come before its own.

    Those without an overlap are not counted.

    Args:
        detections: The detection of each overlap, ascending.
        groups: For each detection a number for its image and category.
    """
    own, inverse = np.unique(detections, return_inverse=True)
    order = np.argsort(groups[own], kind="stable")
    keys = groups[own][order]
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    rank = np.empty(len(own), np.intp)
    rank[order] = np.arange(len(own)) - np.repeat(firsts, np.diff(firsts, append=len(own)))
    return rank[inverse]


def greedy(
    detections: NDArray[np.intp],
    objects: NDArray[np.int64],
    overlaps: Floats,
    groups: NDArray[np.int64],
    ignored: NDArray[np.bool_],
    crowds: NDArray[np.bool_],
    thresholds: Floats = THRESHOLDS,
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.int64]]]:
    """Match detections at T thresholds, in each step one detection of every image and category.

    Args:
        detections: The detection of each overlap, ascending; those of a group are in descending order of their scores.
        objects: Its object.
        overlaps: Its size.
        groups: For each detection a number for its image and category.
        ignored: For each object whether it is ignored.
        crowds: For each object whether it is a crowd.
        thresholds: The IoU thresholds.

    Yields:
        Some of the detections, and, T x as many, whether they are matched, and with which objects.
    """
    at_least = np.minimum(thresholds, 1 - 1e-10)[:, None]  # as in pycocotools
    steps = _steps(detections, groups)
    # The order in which a detection would take its objects: the first one that is free is its match.
    order = np.lexsort((-objects, -overlaps, ignored[objects], detections, steps))
    detections, objects, overlaps = detections[order], objects[order], overlaps[order]
    taken = np.zeros((len(thresholds), len(ignored)), bool)
    bounds = np.flatnonzero(np.diff(steps[order], prepend=-1, append=-1))
    for begin, end in pairwise(bounds):
        own, sides = objects[begin:end], detections[begin:end]
        firsts = np.flatnonzero(np.diff(sides, prepend=-1))
        free = (overlaps[begin:end] >= at_least) & ~(taken[:, own] & ~crowds[own])
        nearest = np.minimum.reduceat(np.where(free, np.arange(end - begin), end - begin), firsts, 1)
        has_one = nearest < end - begin
        chosen = own[np.where(has_one, nearest, 0)]
        rows, columns = has_one.nonzero()
        taken[rows, chosen[rows, columns]] = True
        yield sides[firsts], has_one, chosen
