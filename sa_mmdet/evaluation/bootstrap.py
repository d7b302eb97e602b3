"""The bootstrap over the images: the metrics of resampled data sets, from a single evaluation.

Detections and objects are matched once. A resample is then one weight per image: the detections of a category stay in
the order of their scores, and those of an image that was drawn three times count three times. The result is exactly
what pycocotools computes for the data set in which each image stands as often as it was drawn, next to itself, the
images in the order of their ids: equal scores are in that order, so that all of an image's detections with one score
come before those of its next copy.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .average_precision import METRICS, Evaluation
from .matching import AREAS, THRESHOLDS
from .objects import Floats
from .processes import AT_ONCE, in_processes
from .resampling import average_precision

_CHUNK = 1000  # resamples of an evaluation that a process computes
_EXACT = 2**24  # up to which float32 has all integers


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

    Raises:
        ValueError: A process was killed.
    """
    count = evaluations[0].images
    generator = np.random.default_rng(seed)
    chunk = _chunk(evaluations)
    weights = [
        generator.multinomial(count, np.full(count, 1 / count), min(chunk, resamples - begin)).astype(np.float32)
        for begin in range(0, resamples, chunk)
    ]

    def compute(which: tuple[int, int]) -> dict[str, Floats]:
        return resampled(evaluations[which[0]], weights[which[1]])

    which = list(itertools.product(range(len(evaluations)), range(len(weights))))
    found = iter(in_processes(compute, which, lambda _: "the resampling of the images", progress))
    parts = [[next(found) for _ in weights] for _ in evaluations]
    return [{name: np.concatenate([part[name] for part in own]) for name in METRICS} for own in parts]


def steps(evaluations: Sequence[Evaluation], resamples: int) -> int:
    """How many times :func:`bootstrap` calls ``progress``, for a progress bar."""
    return len(evaluations) * math.ceil(resamples / _chunk(evaluations))


def _chunk(evaluations: Sequence[Evaluation]) -> int:
    return _CHUNK // (1 if len(evaluations) % AT_ONCE == 0 else AT_ONCE)  # so that no process is left without work


def resampled(evaluation: Evaluation, weights: NDArray[np.float32]) -> dict[str, Floats]:
    """Compute the metrics of R resamples.

    Args:
        evaluation: An evaluation on N images.
        weights: How many times each resample contains each image, R x N.

    Returns:
        For each metric R values, 0 to 1; NaN for a resample without an object of that size.
    """
    # No category has more detections in a resample than 100 for each image.
    is_exact = 100 * weights.sum(1, np.float64).max() < _EXACT
    by_image = np.ascontiguousarray(weights.T, np.float32 if is_exact else np.float64)
    per_threshold = []
    for area in range(len(AREAS)):
        total = np.zeros((len(THRESHOLDS), len(weights)))
        present = np.zeros(len(weights))
        for matches in evaluation.matches:
            precision, has_objects = average_precision(matches, area, by_image)
            total += np.where(has_objects, precision, 0)
            present += has_objects
        with np.errstate(invalid="ignore"):
            per_threshold.append(total / present)
    whole = per_threshold[0]
    at = {round(float(value), 2): number for number, value in enumerate(THRESHOLDS)}
    return {
        "AP": whole.mean(0),
        "AP50": whole[at[0.5]],
        "AP75": whole[at[0.75]],
        **{name: per_threshold[area].mean(0) for name, area in (("APS", 1), ("APM", 2), ("APL", 3))},
    }
