"""The bootstrap over the images: the metrics of resampled data sets, from a single evaluation.

pycocotools matches detections and objects once. A resample is then one weight per image: the detections of a category
stay in the order of their scores, and those of an image that was drawn three times count three times. The result is
exactly what pycocotools computes for the data set in which each image stands as often as it was drawn, next to itself,
the images in the order of their ids: equal scores are in that order, so that all of an image's detections with one
score come before those of its next copy.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .average_precision import METRICS, Evaluation, Floats, Matches

_CHUNK = 100  # resamples that are computed at once


def bootstrap(
    evaluations: Sequence[Evaluation],
    resamples: int,
    seed: int,
    progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Floats]]:
    """Compute the metrics of several evaluations on the same resamples of the images.

    Args:
        evaluations: Evaluations on the same images.
        resamples: The number of resamples.
        seed: The seed of the random draws.
        progress: Is called :func:`steps` times.

    Returns:
        For each evaluation and metric one value per resample, 0 to 1.
    """
    count = evaluations[0].images
    generator = np.random.default_rng(seed)
    found: list[dict[str, list[Floats]]] = [{name: [] for name in METRICS} for _ in evaluations]
    for begin in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - begin)
        weights = generator.multinomial(count, np.full(count, 1 / count), size).astype(np.float32)
        for parts, evaluation in zip(found, evaluations, strict=True):
            for name, values in resampled(evaluation, weights, progress).items():
                parts[name].append(values)
    return [{name: np.concatenate(chunks) for name, chunks in parts.items()} for parts in found]


def steps(evaluations: Sequence[Evaluation], resamples: int) -> int:
    """How many times :func:`bootstrap` calls ``progress``, for a progress bar."""
    each = sum(len(categories) for evaluation in evaluations for categories in evaluation.matches.values())
    return each * math.ceil(resamples / _CHUNK)


def resampled(
    evaluation: Evaluation, weights: NDArray[np.float32], progress: Callable[[], object] = lambda: None
) -> dict[str, Floats]:
    """Compute the metrics of R resamples.

    Args:
        evaluation: An evaluation on N images.
        weights: How many times each resample contains each image, R x N.
        progress: Is called once for each category and range of areas.

    Returns:
        For each metric R values, 0 to 1; NaN for a resample without an object of that size.
    """
    per_threshold: dict[int, tuple[Floats, Floats]] = {}
    for area, categories in evaluation.matches.items():
        total = np.zeros((len(evaluation.thresholds), len(weights)))
        present = np.zeros(len(weights))
        for matches in categories:
            precision, has_objects = _average_precision(matches, weights, evaluation.recalls)
            total += np.where(has_objects, precision, 0)
            present += has_objects
            progress()
        with np.errstate(invalid="ignore"):
            per_threshold[area] = total / present, present
    whole = per_threshold[0][0]
    at = {round(float(value), 2): i for i, value in enumerate(evaluation.thresholds)}
    return {
        "AP": whole.mean(0),
        "AP50": whole[at[0.5]],
        "AP75": whole[at[0.75]],
        **{name: per_threshold[area][0].mean(0) for name, area in (("APS", 1), ("APM", 2), ("APL", 3))},
    }


def _average_precision(
    matches: Matches, weights: NDArray[np.float32], recalls: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """The average precisions of a category, T x R, and which of the R resamples contain objects of it."""
    objects = weights @ matches.objects
    has_objects = objects > 0
    precision = np.zeros((len(matches.true), len(weights)))
    if not matches.true.any():
        return precision, has_objects
    order, drawn = _in_copies(matches, weights)
    positives = np.cumsum(drawn, 1)
    for t, (true, counted) in enumerate(zip(matches.true[:, order], matches.counted[:, order], strict=True)):
        [hits] = true.nonzero()
        if not len(hits):
            continue
        # Precision is needed at the true detections only: from one to the next it decreases, and recall stays.
        true_positives = np.cumsum(drawn[:, hits], 1, dtype=np.float64)
        if counted.all():
            positives_at_hits = positives[:, hits]
        else:
            positions = np.cumsum(counted)[hits] - 1
            positives_at_hits = np.cumsum(drawn[:, counted], 1)[:, positions]
        # In float64 and with pycocotools' own constant, so that precision and recall are rounded as it rounds them.
        at_hits = true_positives / (positives_at_hits + np.spacing(1))
        envelope = np.maximum.accumulate(at_hits[:, ::-1], 1)[:, ::-1]
        padded = np.concatenate([envelope, np.zeros((len(envelope), 1))], 1)
        for r in has_objects.nonzero()[0]:
            positions = np.searchsorted(true_positives[r] / objects[r], recalls)
            precision[t, r] = padded[r, positions].mean()
    return precision, has_objects


def _in_copies(matches: Matches, weights: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Order the detections so that each can count with its weight, also where equal scores make order matter.

    The detections of one image with one score, true and false, come once for each copy of the image; the copies that a
    resample does not have count 0. All others come once.

    Returns:
        Indices of the C detections that come in the resamples, and how many times each counts, R x C.
    """
    starts = (~matches.tied).nonzero()[0]  # of the blocks of detections of one image and score
    if len(starts) == len(matches.tied):
        return np.arange(len(starts)), weights[:, matches.images]
    lengths = np.diff(starts, append=len(matches.tied))
    false = matches.counted & ~matches.true
    both = np.logical_or.reduceat(matches.true, starts, 1) & np.logical_or.reduceat(false, starts, 1)
    is_mixed = np.asarray(both.any(0))
    images = matches.images[starts]
    copies = np.where(is_mixed, weights.max(0).astype(np.intp)[images], 1)
    block = np.repeat(np.arange(len(starts)), copies)
    copy = _counted_from_zero(copies)
    own = weights[:, images[block]]
    own = np.where(is_mixed[block], own > copy, own).astype(np.float32)
    order = np.repeat(starts[block], lengths[block]) + _counted_from_zero(lengths[block])
    return order, np.repeat(own, lengths[block], 1)


def _counted_from_zero(counts: NDArray[np.intp]) -> NDArray[np.intp]:
    """The numbers 0, 1, ... up to each count: 3 and 2 give 0, 1, 2, 0, 1."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
