"""Differences between several models, with confidence intervals: one call from result files to sentences."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sa_mmdet.coco_format import load_annotations, load_results, tasks_of

from .average_precision import METRICS, TASKS, Evaluation, Floats, evaluate_files
from .bootstrap import bootstrap, steps
from .result_files import check_images

# For each metric its 'difference', and 'low' and 'high', the bounds of its confidence interval; -1 to 1.
Difference = dict[str, dict[str, float]]


@dataclass
class Comparison:
    """Several variants of a model, each with one run or several, evaluated on the same images for one task."""

    task: str  # 'bbox' or 'segm'
    variants: list[str]  # the variants' names; the others are compared with the first
    runs: list[list[Evaluation]]  # for each variant the evaluations of its runs
    means: list[dict[str, float]]  # for each variant its metrics, averaged over its runs
    differences: list[Difference]  # for each variant except the first
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

    def sentences(
        self,
        metrics: Sequence[str] = ("AP",),
        interval: str = "interval over the images",
        with_images: bool = False,
        with_runs: bool = False,
    ) -> list[str]:
        """Describe each difference in one sentence.

        Args:
            metrics: The metrics to describe, of :data:`METRICS`.
            interval: What the sentences call the interval.
            with_images: Whether to give the number of images.
            with_runs: Whether to give the numbers of runs.
        """
        found = []
        for name, runs, row in zip(self.variants[1:], self.runs[1:], self.differences, strict=True):
            evidence = [f"{self.images} images"] if with_images else []
            evidence += [f"{len(runs)} against {len(self.runs[0])} runs"] if with_runs else []
            for metric in metrics:
                what, label = f"{name} - {self.variants[0]}", f"{TASKS[self.task]} {metric}"
                found.append(_sentence(what, label, row[metric], f"{self.level:.0%} {interval}", evidence))
        return found


def compare(
    annotations: str | Path,
    variants: Sequence[tuple[str, Sequence[str | Path]]],
    task: str,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    show_progress: bool = False,
) -> Comparison:
    """Evaluate result files, and compute the differences between variants with intervals by a paired bootstrap.

    All variants are evaluated on the same resamples of the images, so that differences between images cancel.

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
    if len(runs) > 1:
        with tqdm(
            total=steps(flat, resamples), desc=f"{resamples} resamples", leave=False, disable=not show_progress
        ) as bar:
            drawn = iter(bootstrap(flat, resamples, seed, bar.update))
        samples = [_mean([next(drawn) for _ in found]) for found in runs]
        differences = [
            difference(mean, sample, means[0], samples[0], level)
            for mean, sample in zip(means[1:], samples[1:], strict=True)
        ]
    return Comparison(task, [name for name, _ in variants], runs, means, differences, level)


def difference(
    points: Mapping[str, float],
    samples: Mapping[str, Floats],
    base_points: Mapping[str, float],
    base_samples: Mapping[str, Floats],
    level: float = 0.95,
) -> Difference:
    """Compute the differences between two variants' metrics, with basic bootstrap intervals.

    AP rises when images repeat, so that resamples lie above the metric of the data set itself, the more the fewer
    images there are, as this one lies above that of all images that there could be. The basic interval (Davison and
    Hinkley, Bootstrap Methods and their Application, 1997) takes twice the difference minus the resamples' percentiles,
    and so corrects for it; percentiles alone would double it.

    Args:
        points: The variant's metrics, 0 to 1.
        samples: Its metrics on each resample.
        base_points: The metrics of the variant that it is compared with.
        base_samples: That variant's metrics on the same resamples.
        level: The confidence level of the intervals, between 0 and 1.
    """
    tails = 100 * np.array([(1 - level) / 2, (1 + level) / 2])
    row = {}
    for name in METRICS:
        spread = samples[name] - base_samples[name]
        spread = spread[np.isfinite(spread)]
        point = points[name] - base_points[name]
        ends = 2 * point - np.percentile(spread, tails[::-1]) if len(spread) else (math.nan, math.nan)
        low, high = (float(np.clip(end, -1, 1)) for end in ends)
        row[name] = dict(difference=point, low=low, high=high)
    return row


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


def _mean(samples: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    return {name: np.mean([sample[name] for sample in samples], 0) for name in METRICS}


def _sentence(what: str, metric: str, row: Mapping[str, float], interval: str, evidence: Sequence[str]) -> str:
    change, low, high = (100 * row[key] for key in ("difference", "low", "high"))
    if math.isnan(change):
        return f"{what}: {metric} is undefined, since there are no such objects"
    verdict = "better" if low > 0 else "worse" if high < 0 else "no difference that these images show"
    spread = ", ".join([f"{low:+.1f} to {high:+.1f}", *evidence])
    return f"{what}: {change:+.1f} {metric}, {interval} {spread}: {verdict}"
