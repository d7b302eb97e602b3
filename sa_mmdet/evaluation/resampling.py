"""The average precision of one category and range of areas in many resamples of the images."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .matching import EVERY, RECALLS, THRESHOLDS, Matches
from .objects import Floats

Integers = NDArray[np.integer]
_ELEMENTS = 2**18  # of the arrays that are computed with at once, so that they fit into the processor's cache
_NARROWEST = 64  # resamples that are computed at once, however many detections there are
_STEP = 6  # rows


def average_precision(matches: Matches, area: int, weights: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Compute the average precisions of a category in R resamples.

    Args:
        matches: The matches of the category.
        area: The number of the range of areas.
        weights: How many times each resample contains each image, N x R.

    Returns:
        The average precisions, T x R, and whether there are objects, R.
    """
    objects = matches.objects[area].astype(weights.dtype) @ weights
    found = np.zeros((len(THRESHOLDS), len(objects)))
    if not matches.true[area].any() or not objects.any():
        return found, objects > 0
    order, copies, is_false = _in_copies(matches, area, weights)
    # Of the detections that are false at all thresholds, it is enough to know how many come before each other one.
    before = np.cumsum(is_false, dtype=np.intp)[~is_false]
    falses = _sums(matches.images[order[is_false]], before, len(weights))
    order, copies = order[~is_false], copies[~is_false]
    images, single = matches.images[order], np.flatnonzero(copies >= 0)
    bits = np.arange(len(THRESHOLDS))[:, None]
    true, counted = (field[area][order] >> bits & 1 > 0 for field in (matches.true, matches.counted))
    hits, ends, bounds = _runs(true, counted, before)
    # Rows are in the order 0, S, 2 S, ..., 1, S + 1, ...: see _accumulate.
    rows = np.arange(len(ends)).reshape(-1, _STEP).T.ravel()
    trues, lasts = _sums(hits, ends, len(order))[rows], hits[ends - 1][rows]
    ignored = [np.flatnonzero(~row) for row in counted]
    width = max(_NARROWEST, _ELEMENTS // max(len(order), len(ends)))
    for begin in range(0, len(objects), width):
        some = slice(begin, begin + width)
        block = np.ascontiguousarray(weights[:, some])
        own = block.take(images, 0)
        own[single] = own[single] > copies[single, None]
        # The positives up to each detection, if all of them count.
        positives = falses @ block
        positives += own
        np.cumsum(positives, 0, out=positives)
        shape = (_STEP, -1, own.shape[1])
        true_positives, at_ends = (trues @ own).reshape(shape), positives.take(lasts, 0).reshape(shape)
        for few, (first, last) in zip(ignored, pairwise(bounds), strict=True):
            if len(few) and first < last:
                too_many = np.zeros((len(few) + 1, own.shape[1]), own.dtype)
                np.cumsum(own.take(few, 0), 0, out=too_many[1:])
                places = np.searchsorted(few, lasts.reshape(_STEP, -1)[:, first:last])
                at_ends[:, first:last] -= too_many.take(places, 0)
        found[:, some] = _mean_precision(true_positives, at_ends, objects[some], bounds)
    return found, objects > 0


def _runs(
    true: NDArray[np.bool_], counted: NDArray[np.bool_], before: Integers
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Find runs of true detections with no false one in between, along which recall and precision rise.

    So only the precision at the end of a run matters.

    Args:
        true: Whether each of C detections is true, T x C.
        counted: Whether it counts, T x C.
        before: For each detection, how many false ones come before it that are not among these.

    Returns:
        The true detections at the first threshold, those at the next and so on; for each run how many of these there
        are up to its end, where the last run of a threshold is repeated so that their number is divisible by S; and
        where the runs of each threshold begin, divided by S (T + 1).
    """
    hits: list[NDArray[np.intp]] = []
    ends: list[NDArray[np.intp]] = []
    bounds = [0]
    for own_true, own_counted in zip(true, counted, strict=True):
        own = np.flatnonzero(own_counted)
        is_hit = own_true[own]
        is_last = is_hit.copy()
        is_last[:-1] &= ~(is_hit[1:] & (before[own[1:]] == before[own[:-1]]))
        own_ends = np.cumsum(is_hit)[is_last]
        ends.append(np.pad(own_ends, (0, -len(own_ends) % _STEP), "edge") + sum(len(found) for found in hits))
        hits.append(own[is_hit])
        bounds.append(bounds[-1] + len(ends[-1]) // _STEP)
    return np.concatenate(hits), np.concatenate(ends), np.array(bounds)


def _mean_precision(true: Floats, positives: Floats, objects: Floats, bounds: Integers) -> Floats:
    """The mean precision over all recalls, T x R.

    Args:
        true: The number of true detections of each of H runs, S x H / S x R.
        positives: The number of detections up to the end of each run.
        objects: The number of objects, R.
        bounds: Where the runs of each threshold begin, divided by S (T + 1).
    """
    _accumulate(np.add, true, bounds)
    reached = _recalls_reached(np.maximum(objects, 1))
    numbers = true.astype(np.intp)
    numbers += np.arange(len(objects)) * reached.shape[1]
    recalls = reached.ravel().take(numbers, mode="clip")
    new = recalls.copy()
    new[1:] -= recalls[:-1]
    starts = np.setdiff1d(np.arange(1, new.shape[1]), bounds)
    new[0, starts] -= recalls[-1, starts - 1]
    # In float64 and with pycocotools' own constant, so that precision is rounded as it rounds it.
    precision = positives.astype(np.float64)
    precision += np.spacing(1)
    np.divide(true, precision, out=precision)
    _accumulate(np.maximum, precision[::-1, ::-1], new.shape[1] - bounds[::-1])
    precision *= new
    return np.stack([precision[:, begin:end].sum((0, 1)) for begin, end in pairwise(bounds)]) / len(RECALLS)


def _recalls_reached(objects: Floats) -> NDArray[np.int8]:
    """With each of R numbers of objects, how many of the recalls 0, 1, ... true detections reach, R x more than those.

    Args:
        objects: R numbers, at least 1.
    """
    count = objects.astype(np.float64)[:, None]
    # The smallest number of true detections for each recall; the division decides, as it does in pycocotools.
    least = np.ceil(RECALLS * count)
    least -= (least - 1) / count >= RECALLS
    least += least / count < RECALLS
    most = int(count.max()) + 1
    ends = np.concatenate([least[:, 1:], np.full((len(count), 1), most)], 1)
    reached = np.tile(np.arange(1, len(RECALLS) + 1, dtype=np.int8), len(count))
    return np.repeat(reached, (ends - least).astype(np.intp).ravel()).reshape(-1, most)


def _sums(columns: Integers, ends: Integers, count: int) -> sparse.csr_matrix:
    """A matrix whose product with ``count`` rows sums up the given ones, from one of the ends to the next.

    Args:
        columns: The rows to sum up.
        ends: How many of these there are up to the end of each sum.
        count: The number of rows.
    """
    starts = np.append(0, ends)
    return sparse.csr_matrix((np.ones(starts[-1], np.float32), columns[: starts[-1]], starts), (len(ends), count))


def _accumulate(operation: np.ufunc, values: NDArray, bounds: Integers) -> None:
    """Do what ``operation.accumulate`` does along the rows of each part, in a third of the time.

    Args:
        operation: An addition or maximum.
        values: S x H / S x R. Row h is in [h % S, h // S], so that long stretches of memory are computed with at once.
        bounds: Where each part begins, divided by S, and the end of the last.
    """
    for row in range(1, len(values)):
        operation(values[row], values[row - 1], out=values[row])
    for begin, end in pairwise(bounds):
        if end - begin > 1:
            own = values[:, begin + 1 : end]
            operation(own, operation.accumulate(values[-1, begin : end - 1], 0), out=own)


def _in_copies(
    matches: Matches, area: int, weights: Floats
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Order the detections so that each can count with its weight, also where equal scores make order matter.

    The detections of one image with one score, true and false, come once for each copy of the image; those of copies
    that a resample does not have count 0. All others come once.

    Returns:
        The numbers of the detections that come in the resamples; for each its copy, or -1 if it stands for all copies;
        and whether it is false at all thresholds and stands for all copies.
    """
    true, counted = matches.true[area], matches.counted[area]
    is_false = (true == 0) & (counted == EVERY)
    if not matches.tied.any():
        order = np.flatnonzero(counted)
        return order, np.full(len(order), -1), is_false[order]
    starts = np.flatnonzero(~matches.tied)  # of the blocks of detections of one image and score
    lengths = np.diff(starts, append=len(true))
    is_mixed = (np.bitwise_or.reduceat(true, starts) & np.bitwise_or.reduceat(counted & ~true, starts)) > 0
    most = weights.max(1).astype(np.intp)[matches.images[starts]]
    copies = np.where(is_mixed, most, 1)
    block = np.repeat(np.arange(len(starts)), copies)
    copy = np.where(is_mixed[block], _counted_from_zero(copies), -1)
    order = np.repeat(starts[block], lengths[block]) + _counted_from_zero(lengths[block])
    copy = np.repeat(copy, lengths[block])
    kept = np.flatnonzero(counted[order])
    return order[kept], copy[kept], is_false[order[kept]] & (copy[kept] < 0)


def _counted_from_zero(counts: NDArray[np.intp]) -> NDArray[np.intp]:
    """The numbers 0, 1, ... up to each count: 3 and 2 give 0, 1, 2, 0, 1."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
