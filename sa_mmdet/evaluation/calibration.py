"""How often verdicts are false: trials with trained runs of one config, and simulated studies.

In neither is a variant better than another, so that every verdict is false, and every interval should contain 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .average_precision import Floats
from .verdicts import OPEN, holm, row, variance, word

_RESAMPLES = 200  # of the images, in simulated studies
_COMMON = 0.02  # the standard deviation of what a resample of the images changes for all runs alike


@dataclass(frozen=True)
class Rates:
    """What a number of studies found.

    Attributes:
        false: The fraction of the studies in which a variant has a verdict.
        held: The fraction of the intervals that contain the true difference, 0.
        error: The standard error of ``false`` where the studies share their runs, NaN if it is unknown.
    """

    false: float
    held: float
    error: float = math.nan


def judge(runs: Sequence[Floats], draws: Sequence[Floats], images: int, level: float) -> list[dict[str, float]]:
    """Judge all variants but the first by a single metric.

    Args:
        runs: For each variant the metric of its runs (S).
        draws: For each variant the metric of its runs on each of B resamples of the images (S x B).
        images: The number of images.
        level: The confidence level, between 0 and 1.

    Returns:
        For each what :func:`sa_mmdet.evaluation.verdicts.row` returns, with the p-value adjusted as 'adjusted'.
    """
    found = []
    for own, samples in zip(runs[1:], draws[1:], strict=True):
        found.append(row((own, runs[0]), variance((own, runs[0]), (samples, draws[0]), images), level))
    adjusted = holm([own["p"] for own in found])
    return [own | dict(adjusted=value) for own, value in zip(found, adjusted, strict=True)]


def _is_false(study: Sequence[dict[str, float]], level: float) -> bool:
    return any(word(own, level) != OPEN for own in study)


def _held(study: Sequence[dict[str, float]]) -> float:
    return float(np.mean([own["low"] <= 0 <= own["high"] for own in study]))


class Simulation:
    """Studies with known variances; all values are AP from 0 to 1.

    Args:
        seed: The standard deviation of a run's AP from seed to seed, on all images that there could be.
        luck: The standard deviation of what a run's AP differs by on these images.
        taste: The standard deviation of what a variant's AP differs by on these images, whatever the seed.
        others: How many times as much the runs of all variants but the first scatter.
        images: The number of images.
        level: The confidence level, between 0 and 1.
    """

    def __init__(
        self, seed: float, luck: float, taste: float = 0, others: float = 1, images: int = 87, level: float = 0.95
    ) -> None:
        self.seed, self.luck, self.taste, self.others = seed, luck, taste, others
        self.images, self.level = images, level
        self.generator = np.random.default_rng(0)

    def study(self, variants: int, seeds: int, difference: float = 0) -> list[dict[str, float]]:
        """Train, test and judge.

        Args:
            variants: The number of variants.
            seeds: The number of runs of each.
            difference: What all variants but the first are better by.
        """
        normal = self.generator.normal
        common = normal(0, _COMMON, _RESAMPLES)
        runs, draws = [], []
        for number in range(variants):
            centre = 0.4 + difference * (number > 0) + normal(0, self.taste)
            scatter = self.others if number else 1
            runs.append(centre + scatter * normal(0, math.hypot(self.seed, self.luck), seeds))
            changes = common + normal(0, self.taste, _RESAMPLES)
            draws.append(runs[-1][:, None] + changes + scatter * normal(0, self.luck, (seeds, _RESAMPLES)))
        return judge(runs, draws, self.images, self.level)

    def rates(self, variants: int, seeds: int, studies: int) -> Rates:
        """What a number of studies without a difference find."""
        found = [self.study(variants, seeds) for _ in range(studies)]
        false = np.mean([_is_false(study, self.level) for study in found])
        return Rates(float(false), float(np.mean([_held(study) for study in found])))


class Trials:
    """Studies whose variants are runs of one config, drawn without replacement.

    Args:
        points: The AP of R runs.
        draws: Their AP on each of B resamples of the images, R x B.
        images: The number of images.
        level: The confidence level, between 0 and 1.
    """

    def __init__(self, points: Floats, draws: Floats, images: int, level: float) -> None:
        self.points, self.draws, self.images, self.level = points, draws, images, level

    def rates(self, variants: int, seeds: int, studies: int) -> Rates:
        """What a number of studies find.

        The studies share their runs, so the standard error is the jackknife's over runs; it needs more runs than a
        study has.

        Raises:
            ValueError: There are fewer runs than a study has.
        """
        count, needed = len(self.points), variants * seeds
        if needed > count:
            raise ValueError(f"{variants} variants with {seeds} seeds are {needed} runs, and there are {count}")
        generator = np.random.default_rng(0)
        false, held = np.zeros(studies, bool), np.zeros(studies)
        used = np.zeros((studies, count), bool)
        for number in range(studies):
            chosen = generator.permutation(count)[:needed].reshape(variants, seeds)
            study = judge(
                [self.points[own] for own in chosen], [self.draws[own] for own in chosen], self.images, self.level
            )
            false[number], held[number] = _is_false(study, self.level), _held(study)
            used[number, chosen.ravel()] = True
        error = math.nan
        if needed < count and not used.all(0).any():
            without = np.array([false[~used[:, run]].mean() for run in range(count)])
            error = math.sqrt((count - 1) * float(without.var()))
        return Rates(float(false.mean()), float(held.mean()), error)

    def simulation(self) -> Simulation:
        """Independent studies with the variances of these runs."""
        half = len(self.points) // 2
        found = variance((self.points[:half], self.points[half:]), (self.draws[:half], self.draws[half:]), self.images)
        luck = min(found.seed, found.seed_and_images)
        return Simulation(math.sqrt(found.seed - luck), math.sqrt(luck), images=self.images, level=self.level)
