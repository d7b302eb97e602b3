"""Differences between several models, with verdicts: one call from result files to sentences."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sa_mmdet.coco_format import load_annotations, load_results, tasks_of

from .average_precision import METRICS, TASKS, Evaluation, evaluate_files
from .bootstrap import bootstrap, steps
from .result_files import check_images
from .verdicts import Variance, plan, rows, word

# For each metric its 'difference', -1 to 1, 'low' and 'high', the bounds of its confidence interval, 'p', and
# 'adjusted', the p-value adjusted for the number of variants; both are NaN without two runs of each variant.
Difference = dict[str, dict[str, float]]


@dataclass
class Comparison:
    """Several variants of a model, each with one run or several, evaluated on the same images for one task."""

    task: str  # 'bbox' or 'segm'
    variants: list[str]  # the variants' names; the others are compared with the first
    runs: list[list[Evaluation]]  # for each variant the evaluations of its runs
    means: list[dict[str, float]]  # for each variant its metrics, averaged over its runs
    differences: list[Difference]  # for each variant except the first
    variances: list[dict[str, Variance]]  # those of the differences
    level: float  # the confidence level of the intervals

    @property
    def images(self) -> int:
        """The number of images."""
        return self.runs[0][0].images

    @property
    def deviations(self) -> list[dict[str, float | None]]:
        """For each variant and metric the standard deviation over its runs; None for a single run."""
        return [
            {m: statistics.stdev(run.points[m] for run in runs) if len(runs) > 1 else None for m in METRICS}
            for runs in self.runs
        ]

    def sentences(self, metrics: Sequence[str] = ("AP",)) -> list[str]:
        """Describe each difference in one sentence, which ends with the verdict.

        Args:
            metrics: The metrics to describe, of :data:`METRICS`.
        """
        return [
            self._sentence(number, name, metric, explain=metric == metrics[0])
            for number, name in enumerate(self.variants[1:])
            for metric in metrics
        ]

    def _sentence(self, number: int, name: str, metric: str, explain: bool) -> str:
        found, label = self.differences[number][metric], f"{TASKS[self.task]} {metric}"
        what = f"{name} - {self.variants[0]}"
        change, low, high = (100 * found[key] for key in ("difference", "low", "high"))
        if math.isnan(change):
            return f"{what}: {label} is undefined, since there are no such objects"
        own, base = len(self.runs[number + 1]), len(self.runs[0])
        known = min(own, base) > 1
        over = "seeds and images" if known else "the images alone"
        text = f"{what}: {change:+.1f} {label}, {self.level:.0%} interval over {over} {low:+.1f} to {high:+.1f}"
        if known:
            text += f", p = {_probability(found['p'])}"
            if len(self.differences) > 1:
                text += f" ({_probability(found['adjusted'])} for {len(self.differences)} variants together)"
        text += f", {self.images} images, {own} against {base} run{'' if base == 1 else 's'}"
        verdict = word(found, self.level)
        if explain and not known:
            verdict += ": a single run does not show what another seed would change; train two or more of each"
        return f"{text}: {verdict}"

    def plans(self, difference: float) -> list[str]:
        """Say for each variant what it takes to show a difference of box or mask AP with a probability of 80 %.

        Args:
            difference: The difference, positive, of AP from 0 to 1.
        """
        found = []
        error = (1 - self.level) / max(1, len(self.variances))
        for name, variances, own_difference in zip(self.variants[1:], self.variances, self.differences, strict=True):
            if math.isnan(own_difference["AP"]["difference"]):
                continue
            own = variances["AP"]
            what = f"{name} - {self.variants[0]}: to show {100 * difference:.1f} {TASKS[self.task]} AP"
            if math.isnan(own.seed):
                found.append(f"{what}, train two or more runs of each first: a single one does not show their variance")
                continue
            seeds, images = plan(own, difference, error)
            runs = (
                f"{seeds} runs of each on these {self.images} images" if seeds else "no number of runs on these images"
            )
            rest = (
                f"or {min(own.runs)} on {images * self.images} images"
                if images
                else f"and {min(own.runs)} on no number of images"
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

    Raises:
        ValueError: A file cannot be read or is invalid.
    """
    flat = evaluate_files(annotations, [path for _, paths in variants for path in paths], task)
    remaining = iter(flat)
    runs = [[next(remaining) for _ in paths] for _, paths in variants]
    means = [{m: float(np.mean([run.points[m] for run in found])) for m in METRICS} for found in runs]
    differences: list[Difference] = []
    variances: list[dict[str, Variance]] = []
    if len(runs) > 1:
        with tqdm(
            total=steps(flat, resamples), desc=f"{resamples} resamples", leave=False, disable=not show_progress
        ) as bar:
            drawn = iter(bootstrap(flat, resamples, seed, bar.update))
        samples = [[next(drawn) for _ in found] for found in runs]
        points = [[run.points for run in found] for found in runs]
        differences, variances = rows(points, samples, flat[0].images, level)
    return Comparison(task, [name for name, _ in variants], runs, means, differences, variances, level)


def without_nan(value: Any) -> Any:
    """The value with None for every NaN in its dictionaries and lists, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def common_tasks(annotations: str | Path, results: Sequence[str | Path]) -> tuple[list[str], list[str]]:
    """Find the tasks that all result files have detections for; this also checks all files before a long evaluation.

    Args:
        annotations: The file of COCO annotations.
        results: The result files; one without any detection is valid for every task.

    Returns:
        The tasks, of :data:`TASKS`, and what raises a doubt whether the results belong to the annotations.

    Raises:
        ValueError: A file cannot be read or is invalid, belongs to other images, or the files have no task in common.
    """
    coco = load_annotations(annotations)
    found: list[set[str]] = []
    doubts: list[str] = []
    for path in results:
        entries = load_results(path, coco)
        doubts += check_images(path, entries, coco, annotations)
        found += [tasks_of(entries)] if entries else []
    tasks = sorted(set.intersection(*found)) if found else ["bbox"]
    if not tasks:
        raise ValueError("some result files have only boxes and others only masks: there is nothing to compare")
    return tasks, doubts
