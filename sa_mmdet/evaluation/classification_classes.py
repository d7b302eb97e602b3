"""The classes on which classifiers differ: top-1 accuracy by class, with intervals over seeds and images.

Nobody chooses a class before the training, so the p-values are adjusted for all classes and variants (Holm).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sa_mmdet.messages import printable

from .classification import LEAST_IMAGES, Accuracy, draw
from .comparison import Comparison
from .objects import Floats
from .runs import Run, tested_set
from .tables import Table
from .verdicts import OPEN, holm, row, variance, word

_AT_ONCE = 10  # classes that a table shows

Cell = dict[str, float]  # 'difference', 'low', 'high', 'p' and 'adjusted', as a comparison's


@dataclass
class ClassComparison:
    """The accuracy by class of several variants."""

    classes: dict[str, int]  # for each class the number of its images
    variants: list[str]  # the variants' names; the others are compared with the first
    means: Floats  # variants x classes: top-1 accuracy, averaged over the runs, 0 to 1
    differences: list[list[Cell]]  # for each variant but the first one per class; without verdict for few images
    level: float  # the confidence level of the intervals


def class_names(runs: Sequence[Run]) -> list[str]:
    """The names of the classes that predictions number, from the runs' configs; none if they do not agree.

    Args:
        runs: The runs.
    """
    found = []
    for run in runs:
        info = tested_set(run.cfg).get("metainfo")
        names = info.get("classes") if isinstance(info, Mapping) else None
        found.append([str(name) for name in names] if isinstance(names, list | tuple) else [])
    return found[0] if found and all(names == found[0] for names in found) else []


def compare_classes(found: Comparison, resamples: int = 1000, seed: int = 0) -> ClassComparison:
    """Compare the accuracy of classifiers by class.

    Args:
        found: What :func:`.classification.compare_classifiers` returns.
        resamples: The number of resamples of the images.
        seed: The seed of the random draws.
    """
    first: Accuracy = found.runs[0][0]
    counts = np.bincount(first.labels)
    order = np.argsort(first.labels, kind="stable")  # the images of one class side by side
    begins = np.cumsum(counts) - counts
    right = [np.array([run.right[order, 0] for run in own]) for own in found.runs]  # runs x N
    points = [np.add.reduceat(own, begins, 1) / counts for own in right]  # runs x classes
    differences: list[list[Cell]] = []
    if len(right) > 1:
        samples = _samples(right, order, begins, resamples, seed)
        for own_points, own_samples in zip(points[1:], samples[1:], strict=True):
            cells = []
            for number, count in enumerate(counts):
                pair = [one[:, number].astype(float) for one in (own_points, points[0])]
                drawn = [one[:, :, number].astype(float) for one in (own_samples, samples[0])]
                cells.append(row(pair, variance(pair, drawn, int(count)), found.level))
                if count < LEAST_IMAGES:
                    cells[-1]["p"] = math.nan
            differences.append(cells)
    every = [cell for cells in differences for cell in cells]
    for cell, adjusted in zip(every, holm([cell["p"] for cell in every]), strict=True):
        cell["adjusted"] = adjusted
    means = np.array([own.mean(0) for own in points])
    classes = dict(zip(first.classes, counts.tolist(), strict=True))
    return ClassComparison(classes, found.variants, means, differences, found.level)


def _samples(right: list[Any], order: Any, begins: Any, resamples: int, seed: int) -> list[Floats]:
    """For each variant the accuracies on resamples, runs x R x classes; NaN for a class without images."""
    parts: list[list[Floats]] = [[] for _ in right]
    for weights in draw(len(order), resamples, seed):
        weights = weights[:, order]
        with np.errstate(invalid="ignore"):
            present = np.add.reduceat(weights, begins, 1)
            for own, part in zip(right, parts, strict=True):
                part.append(np.array([np.add.reduceat(weights * run, begins, 1) / present for run in own]))
    return [np.concatenate(part, 1) for part in parts]


def class_table(found: ClassComparison) -> Table:
    """The classes with the largest differences between variants, or for a single variant those with the lowest top1."""
    spread = found.means.max(0) - found.means.min(0) if len(found.variants) > 1 else -found.means[0]
    names, counts = [printable(name) for name in found.classes], list(found.classes.values())
    chosen = np.argsort(-spread, kind="stable")[:_AT_ONCE]
    rows = [
        [names[number], str(counts[number]), *(f"{100 * value:.1f}" for value in found.means[:, number])]
        for number in chosen
    ]
    title = f"top1 by class, {len(rows)} of {len(names)} classes"
    return dict(title=title, header=["class", "images", *found.variants], rows=rows)


def classes_told_apart(found: ClassComparison) -> list[str]:
    """A sentence for each class and variant with a verdict, and one if there is none."""
    sentences = []
    for name, cells in zip(found.variants[1:], found.differences, strict=True):
        for kind, cell in zip(found.classes, cells, strict=True):
            verdict = word(cell, found.level)
            if verdict != OPEN:
                change, low, high = (100 * cell[key] for key in ("difference", "low", "high"))
                interval = f"interval {low:+.1f} to {high:+.1f}"
                what = f"{printable(kind)}: {name} - {found.variants[0]}"
                sentences.append(f"{what}: {change:+.1f} top1, {interval}: {verdict}")
    if found.differences and not sentences:
        sentences.append("By class no difference is told apart.")
    few = sum(count < LEAST_IMAGES for count in found.classes.values())
    if found.differences and few:
        sentences.append(f"{few} of {len(found.classes)} classes have fewer than {LEAST_IMAGES} images: no verdict")
    return sentences


def classes_as_json(found: ClassComparison) -> dict[str, Any]:
    """For each class its number of images, the variants' accuracies, and the differences; values from 0 to 1."""
    differences = zip(found.variants[1:], found.differences, strict=True)
    return dict(
        images=found.classes,
        top1={
            name: dict(zip(found.classes, own.tolist(), strict=True))
            for name, own in zip(found.variants, found.means, strict=True)
        },
        differences={name: dict(zip(found.classes, cells, strict=True)) for name, cells in differences},
    )
