"""Differences between several models, with verdicts: one call from result files to sentences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .average_precision import METRICS, TASKS, Evaluation
from .bootstrap import bootstrap, steps
from .files import evaluate_files
from .objects import Floats
from .verdicts import Variance, plan, rows, word

# For each metric its 'difference', -1 to 1, 'low' and 'high', the bounds of its confidence interval, 'p', and
# 'adjusted', the p-value adjusted for the number of variants; both are NaN without two runs of each variant.
Difference = dict[str, dict[str, float]]


@dataclass
class Comparison:
    """Several variants of a model, each with one run or several, evaluated on the same images for one task."""

    task: str  # 'bbox', 'segm' or 'classification'
    metrics: list[str]  # their names, such as METRICS; the first is the one that counts
    variants: list[str]  # the variants' names; the others are compared with the first
    runs: list[list[Any]]  # for each variant what was measured of its runs: an Evaluation or an Accuracy
    means: list[dict[str, float]]  # for each variant its metrics, averaged over its runs
    differences: list[Difference]  # for each variant except the first
    variances: list[dict[str, Variance]]  # those of the differences
    level: float  # the confidence level of the intervals
    least_images: int = 0  # without so many there is no verdict

    @property
    def images(self) -> int:
        """The number of images."""
        return self.runs[0][0].images

    def label(self, metric: str) -> str:
        """A metric's name with the task, such as 'box AP'."""
        return f"{TASKS[self.task]} {metric}" if self.task in TASKS else metric

    @property
    def deviations(self) -> list[dict[str, float | None]]:
        """For each variant and metric the standard deviation over its runs; None for a single run.

        NaN for a metric of objects that the images do not have.
        """
        return [
            {m: float(np.std([run.points[m] for run in runs], ddof=1)) if len(runs) > 1 else None for m in self.metrics}
            for runs in self.runs
        ]

    def sentences(self, metrics: Sequence[str] = ()) -> list[str]:
        """Describe each difference in one sentence, which ends with the verdict.

        Args:
            metrics: The metrics to describe; the first alone if empty.
        """
        metrics = metrics or self.metrics[:1]
        return [
            self._sentence(number, name, metric, explain=metric == metrics[0])
            for number, name in enumerate(self.variants[1:])
            for metric in metrics
        ]

    def _sentence(self, number: int, name: str, metric: str, explain: bool) -> str:
        found, label = self.differences[number][metric], self.label(metric)
        what = f"{name} - {self.variants[0]}"
        change, low, high = (100 * found[key] for key in ("difference", "low", "high"))
        if math.isnan(change):
            return f"{what}: {label} is undefined, since there are no such objects"
        own, base = len(self.runs[number + 1]), len(self.runs[0])
        known = min(own, base) > 1
        over = "seeds and images" if known else "the images alone"
        text = f"{what}: {change:+.1f} {label}, {self.level:.0%} interval over {over} {low:+.1f} to {high:+.1f}"
        few = self.images < self.least_images
        if known and not few:
            text += f", p = {_probability(found['p'])}"
            if len(self.differences) > 1:
                text += f" ({_probability(found['adjusted'])} for {len(self.differences)} variants together)"
        text += f", {self.images} images, {own} against {base} run{'' if base == 1 else 's'}"
        verdict = word(found, self.level)
        if explain and not known:
            verdict += ": a single run does not show what another seed would change; train two or more of each"
        elif explain and few:
            verdict += f": a verdict needs {self.least_images} images or more"
        return f"{text}: {verdict}"

    def plans(self, difference: float) -> list[str]:
        """Say for each variant what it takes to show a difference of the first metric with a probability of 80 %.

        Args:
            difference: The difference, positive, of a metric from 0 to 1.
        """
        found = []
        metric = self.metrics[0]
        error = (1 - self.level) / max(1, len(self.variances))
        for name, variances, own_difference in zip(self.variants[1:], self.variances, self.differences, strict=True):
            if math.isnan(own_difference[metric]["difference"]):
                continue
            own = variances[metric]
            what = f"{name} - {self.variants[0]}: to show {100 * difference:.1f} {self.label(metric)}"
            if math.isnan(own.seed):
                found.append(f"{what}, train two or more runs of each first: a single one does not show their variance")
                continue
            if self.images < self.least_images:
                found.append(f"{what}, test on {self.least_images} images or more first: fewer do not show it")
                continue
            seeds, images = plan(own, difference, error)
            runs = (
                f"{seeds} runs of each on these {self.images} images" if seeds else "no number of runs on these images"
            )
            rest = (
                f"or {min(own.runs)} on {images * self.images} images"
                if images
                else f"with {min(own.runs)} runs of each no number of images does"
            )
            found.append(f"{what} in 4 of 5 studies: {runs}, {rest}")
        return found


def _probability(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.2g}"


def compare(
    annotations: str | Path,
    variants: Sequence[tuple[str, Sequence[str | Path]]],
    task: str,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    show_progress: bool = False,
    evaluations: Mapping[str | Path, Evaluation] | None = None,
) -> Comparison:
    """Evaluate result files, and compute the differences between variants with intervals over seeds and images.

    All variants are evaluated on the same resamples of the images, so that what all of them have in common cancels.
    See :mod:`sa_mmdet.evaluation.verdicts` for the method.

    Args:
        annotations: The file of COCO annotations.
        variants: For each variant its name and the result files of its runs; the others are compared with the first.
        task: 'bbox' or 'segm'.
        resamples: The number of resamples of the images.
        level: The confidence level of the intervals, between 0 and 1.
        seed: The seed of the random draws.
        show_progress: Whether to show a progress bar.
        evaluations: Those of the result files for the task, if they are known: see :func:`evaluate_common`.

    Raises:
        ValueError: A file cannot be read or is invalid.
    """
    files = [path for _, paths in variants for path in paths]
    flat = [evaluations[path] for path in files] if evaluations else evaluate_files(annotations, files, task)
    remaining = iter(flat)
    runs = [[next(remaining) for _ in paths] for _, paths in variants]
    samples: list[list[dict[str, Floats]]] = []
    if len(runs) > 1:
        with tqdm(
            total=steps(flat, resamples), desc=f"{resamples} resamples", leave=False, disable=not show_progress
        ) as bar:
            drawn = iter(bootstrap(flat, resamples, seed, bar.update))
        samples = [[next(drawn) for _ in found] for found in runs]
    return compared(task, METRICS, [name for name, _ in variants], runs, samples, level)


def compared(
    task: str,
    metrics: Sequence[str],
    names: Sequence[str],
    runs: Sequence[Sequence[Any]],
    samples: Sequence[Sequence[Mapping[str, Floats]]],
    level: float,
    least_images: int = 0,
) -> Comparison:
    """Judge the differences between variants.

    Args:
        task: What was measured, 'bbox', 'segm' or 'classification'.
        metrics: The metrics' names.
        names: The variants' names.
        runs: For each variant what was measured of its runs, each with its metrics as ``points``.
        samples: For each variant the metrics of its runs on the same resamples of the images; not used for one variant.
        level: The confidence level of the intervals, between 0 and 1.
        least_images: How many images a verdict needs.
    """
    means = [{m: float(np.mean([run.points[m] for run in found])) for m in metrics} for found in runs]
    differences: list[Difference] = []
    variances: list[dict[str, Variance]] = []
    if len(runs) > 1:
        points = [[run.points for run in found] for found in runs]
        differences, variances = rows(points, samples, runs[0][0].images, level, metrics)
        if runs[0][0].images < least_images:
            for found in differences:
                for row in found.values():
                    row.update(p=math.nan, adjusted=math.nan)
    own = [list(found) for found in runs]
    return Comparison(task, list(metrics), list(names), own, means, differences, variances, level, least_images)


def without_nan(value: Any) -> Any:
    """The value with None for every NaN in its dictionaries and lists, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
