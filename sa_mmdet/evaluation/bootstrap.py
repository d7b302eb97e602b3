"""The bootstrap of the images: the metrics of resampled data sets, without evaluating them again.

pycocotools matches detections and objects once. A resample then is a weight per image: the detections of a category
stay in the order of their scores, and an image that is drawn three times counts its detections three times. The result
is exactly what pycocotools would give for the resampled data set.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .average_precision import METRICS, Evaluation, Floats, Matches

_CHUNK = 100  # resamples at once


def bootstrap(
    evaluations: Sequence[Evaluation],
    resamples: int,
    seed: int,
    progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Floats]]:
    """Compute the metrics of several evaluations on the same resamples of the images.

    Args:
        evaluations: Of the same images.
        resamples: How many times the images are drawn anew.
        seed: The seed of the draws.
        progress: Called :func:`steps` times.

    Returns:
        For each evaluation and metric, one value per resample.
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
    """How many times :func:`bootstrap` calls ``progress``."""
    each = sum(len(categories) for evaluation in evaluations for categories in evaluation.matches.values())
    return each * math.ceil(resamples / _CHUNK)


def resampled(
    evaluation: Evaluation, weights: NDArray[np.float32], progress: Callable[[], object] = lambda: None
) -> dict[str, Floats]:
    """Compute the metrics of resamples of the images.

    Args:
        evaluation: The evaluation of N images.
        weights: R x N: how many times each resample has drawn each image.
        progress: Called once for each category and range of areas.

    Returns:
        For each metric R values, 0 to 1; NaN where a resample has no object of that size.
    """
    per_threshold: dict[int, tuple[Floats, Floats]] = {}
    for area, categories in evaluation.matches.items():
        total = np.zeros((len(evaluation.thresholds), len(weights)))
        present = np.zeros(len(weights))
        for matches in categories:
            precision, there = _average_precision(matches, weights, evaluation.recalls)
            total += np.where(there, precision, 0)
            present += there
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
    """The T x R average precisions of a category, and which of the R resamples have objects of it."""
    objects = weights @ matches.objects
    there = objects > 0
    precision = np.zeros((len(matches.true), len(weights)))
    if not matches.true.any():
        return precision, there
    drawn = weights[:, matches.images]
    everything = np.cumsum(drawn, 1)
    for t, (true, counted) in enumerate(zip(matches.true, matches.counted, strict=True)):
        [hits] = true.nonzero()
        if not len(hits):
            continue
        # Precision is needed at the true detections only: between them it falls.
        reached = np.cumsum(drawn[:, hits], 1)
        if counted.all():
            before = everything[:, hits]
        else:
            places = np.cumsum(counted)[hits] - 1
            before = np.cumsum(drawn[:, counted], 1)[:, places]
        with np.errstate(invalid="ignore"):
            at_hits = np.where(before > 0, reached / np.maximum(before, 1), 0)
        best = np.maximum.accumulate(at_hits[:, ::-1], 1)[:, ::-1]
        padded = np.concatenate([best, np.zeros((len(best), 1), best.dtype)], 1)
        for r in there.nonzero()[0]:
            places = np.searchsorted(reached[r].astype(np.float64) / objects[r], recalls)  # rounded as pycocotools does
            precision[t, r] = padded[r, places].mean()
    return precision, there
