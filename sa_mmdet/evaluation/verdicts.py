"""Whether two variants of a model differ, where another set of seeds and another set of images would change both.

The difference of two variants is D = mean of the AP of S_a runs - mean of that of S_b runs, on the same N images. Its
variance has two sources. The seeds: the variance of a run's AP from seed to seed, estimated from the runs of both
variants together, over S_a and over S_b. The images: the variance of D over resamples of the images (the paired
bootstrap), in which however a part of the seeds' variance comes again, since each run has luck with some of the images.
That part is what the runs of one variant differ by from resample to resample; it is subtracted. So the variance is

    s^2 (1 / S_a + 1 / S_b) + max(0, images' variance of D - w (1 / S_a + 1 / S_b))

with s^2 the variance of AP from seed to seed and w the mean variance from seed to seed of what a resample changes. The
interval is D +- t sqrt(variance), with Satterthwaite's degrees of freedom: S_a + S_b - 2 for the seeds, N - 1 for the
images. docs/analysis.md says how often the verdicts are wrong.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .average_precision import METRICS, Floats

BETTER, WORSE, OPEN = "better", "worse", "not told apart"
_POWER = 0.8
_MOST = 1000  # seeds, or times the images, that a plan considers


@dataclass(frozen=True)
class Variance:
    """The parts of the variance of a difference.

    Attributes:
        seed: s^2, of a run's metric from seed to seed; NaN if no variant has two runs.
        seed_and_images: w, the part of s^2 that comes from the images.
        images: What the images add to the variance of the difference, whatever the number of seeds.
        count: N, the number of images.
        runs: S_a and S_b.
    """

    seed: float
    seed_and_images: float
    images: float
    count: int
    runs: tuple[int, int]

    def total(self, runs: tuple[int, int] | None = None, times: float = 1) -> tuple[float, float]:
        """The variance of the difference and its degrees of freedom, with other numbers of runs or more images.

        Args:
            runs: The numbers of runs; by default those that there are.
            times: How many times as many images.
        """
        first, second = runs or self.runs
        inherent = max(0.0, self.seed - self.seed_and_images)
        seeds = (inherent + min(self.seed, self.seed_and_images) / times) * (1 / first + 1 / second)
        images = self.images / times
        total = seeds + images
        if total == 0:
            return 0.0, 1.0
        of_seeds, of_images = first + second - 2, max(1.0, self.count * times - 1)
        return total, total**2 / (seeds**2 / of_seeds + images**2 / of_images)


def variance(runs: Sequence[Floats], draws: Sequence[Floats], count: int) -> Variance:
    """Estimate the parts of the variance of a difference.

    Args:
        runs: For each of the two variants the metric of its runs (S).
        draws: For each of the two variants the metric of its runs on each of B resamples (S x B); resamples in which
            it is undefined, for want of objects, do not count.
        count: N, the number of images.

    Returns:
        The parts; all are NaN if the metric is undefined on all resamples.
    """
    sizes = (len(runs[0]), len(runs[1]))
    finite = np.isfinite(draws[0]).all(0) & np.isfinite(draws[1]).all(0)
    if not finite.any():
        return Variance(math.nan, math.nan, math.nan, count, sizes)
    draws = [own[:, finite] for own in draws]
    spread = draws[0].mean(0) - draws[1].mean(0)
    images = float(spread.var(ddof=1)) if len(spread) > 1 else 0.0
    freedom = sum(sizes) - 2
    if min(sizes) < 2:
        return Variance(math.nan, math.nan, images, count, sizes)
    seed = sum(float(((own - own.mean()) ** 2).sum()) for own in runs) / freedom
    shared = 0.0
    for own in draws:
        change = own - own.mean(1, keepdims=True)
        shared += float(((change - change.mean(0)) ** 2).sum(0).mean()) / freedom
    images = max(0.0, images - shared * (1 / sizes[0] + 1 / sizes[1]))
    if seed == 0:  # each variant's runs are right about as many of a few images, but not about the same ones
        seed = shared
    return Variance(seed, shared, images, count, sizes)


def row(runs: Sequence[Floats], found: Variance, level: float) -> dict[str, float]:
    """The difference of a metric between two variants, with its interval and p-value.

    Args:
        runs: For each of the two variants the metric of its runs (S); those of the second are subtracted.
        found: What :func:`variance` returns for them.
        level: The confidence level of the interval, between 0 and 1.

    Returns:
        'difference', 'low', 'high' and 'p'. Without two runs of each variant the interval is over the images alone,
        and there is no p-value, which is NaN.
    """
    difference = float(np.mean(runs[0]) - np.mean(runs[1]))
    if math.isnan(difference) or math.isnan(found.images):
        return dict(difference=difference, low=math.nan, high=math.nan, p=math.nan)
    if math.isnan(found.seed):
        half = math.sqrt(found.images) * float(stats.norm.ppf((1 + level) / 2))
        p = math.nan
    else:
        total, freedom = found.total()
        half = math.sqrt(total) * float(stats.t.ppf((1 + level) / 2, freedom))
        exact = 1.0 if difference == 0 else 0.0  # runs that do not differ from seed to seed
        p = float(2 * stats.t.sf(abs(difference) / math.sqrt(total), freedom)) if total else exact
    return dict(difference=difference, low=max(-1.0, difference - half), high=min(1.0, difference + half), p=p)


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979): any of the verdicts on one metric is false with the level's error.

    Args:
        values: The p-values; those that are NaN stay so and do not count.
    """
    known = sorted((value, i) for i, value in enumerate(values) if not math.isnan(value))
    adjusted, largest = [math.nan] * len(values), 0.0
    for rank, (value, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        adjusted[i] = largest
    return adjusted


def word(found: Mapping[str, float], level: float) -> str:
    """The verdict on a difference: :data:`BETTER`, :data:`WORSE` or :data:`OPEN`.

    Args:
        found: What :func:`row` returns, with 'adjusted', the p-value that :func:`holm` returns.
        level: The confidence level, between 0 and 1.
    """
    if not found["adjusted"] < 1 - level:  # also where it is NaN
        return OPEN
    return BETTER if found["difference"] > 0 else WORSE


def power(found: Variance, difference: float, runs: int, times: float, error: float) -> float:
    """The probability that so many runs of each variant on so many images show a difference.

    Args:
        found: The variance of the present runs.
        difference: The true difference.
        runs: The number of runs of each variant.
        times: How many times as many images.
        error: The allowed probability of a verdict where there is no difference.
    """
    total, freedom = found.total((runs, runs), times)
    if total == 0:
        return 1.0
    limit, shift = float(stats.t.ppf(1 - error / 2, freedom)), difference / math.sqrt(total)
    value = float(stats.nct.sf(limit, freedom, shift))
    return value if math.isfinite(value) else float(stats.t.sf(limit - shift, freedom))


def plan(found: Variance, difference: float, error: float) -> tuple[int | None, float | None]:
    """What it takes to show a difference with a probability of 80 %.

    Args:
        found: The variance of the present runs.
        difference: The true difference, positive.
        error: The allowed probability of a verdict where there is no difference.

    Returns:
        The number of runs of each variant on the present images, and how many times as many images the present numbers
        of runs need; None where 1000 are not enough.
    """
    seeds = _smallest(lambda n: power(found, difference, n, 1, error) >= _POWER, 2)
    own = min(found.runs)
    images = _smallest(lambda n: power(found, difference, own, n, error) >= _POWER, 1)
    return seeds, images


def _smallest(enough: Callable[[int], bool], least: int) -> int | None:
    """The smallest number from ``least`` to 1000 for which a monotonic condition holds, or None."""
    low, high = least, _MOST
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def rows(
    runs: Sequence[Sequence[Mapping[str, float]]],
    draws: Sequence[Sequence[Mapping[str, Floats]]],
    count: int,
    level: float,
    metrics: Sequence[str] = METRICS,
) -> tuple[list[dict[str, dict[str, float]]], list[dict[str, Variance]]]:
    """For each variant but the first and each metric what :func:`row` and :func:`variance` return.

    Args:
        runs: For each variant the metrics of its runs.
        draws: For each variant the metrics of its runs on the same resamples.
        count: N, the number of images.
        level: The confidence level, between 0 and 1.
        metrics: The metrics' names.

    Returns:
        The rows, each with the p-value that is adjusted for the number of variants as 'adjusted', and the variances.
    """

    def values(variant: int, name: str) -> tuple[Floats, Floats]:
        return np.array([run[name] for run in runs[variant]]), np.array([run[name] for run in draws[variant]])

    found: list[dict[str, dict[str, float]]] = [{} for _ in runs[1:]]
    variances: list[dict[str, Variance]] = [{} for _ in runs[1:]]
    for name in metrics:
        base, base_draws = values(0, name)
        for number, (own, parts) in enumerate(zip(found, variances, strict=True), 1):
            points, samples = values(number, name)
            parts[name] = variance((points, base), (samples, base_draws), count)
            own[name] = row((points, base), parts[name], level)
        for own, adjusted in zip(found, holm([own[name]["p"] for own in found]), strict=True):
            own[name]["adjusted"] = adjusted
    return found, variances
