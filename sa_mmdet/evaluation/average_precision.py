"""COCO average precision, as pycocotools computes it, with the matches that the bootstrap needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from sa_mmdet.coco_format import Detections

from .matching import AREAS, RECALLS, THRESHOLDS, Matches, match
from .objects import Floats, Found, Objects

METRICS = ("AP", "AP50", "AP75", "APS", "APM", "APL")
TASKS = {"bbox": "box", "segm": "mask"}


@dataclass
class Evaluation:
    """The evaluation of one result file for one task."""

    points: dict[str, float]  # pycocotools' own metrics, 0 to 1; NaN where the data set has no object of that size
    matches: list[Matches]  # for each category
    per_class: dict[str, float]  # for each class's name, its AP, 0 to 1; NaN for a class without objects
    curve: Floats  # precision at each recall, at an IoU of 0.5, mean over the classes

    @property
    def images(self) -> int:
        """The number of images."""
        return self.matches[0].objects.shape[1]


def evaluate(coco: COCO, entries: Sequence[Mapping[str, Any]], task: str) -> Evaluation:
    """Evaluate detections as pycocotools does, and keep the matches of detections and objects.

    Args:
        coco: The annotations.
        entries: Valid detections in COCO's format; the list may be empty.
        task: 'bbox' or 'segm'.
    """
    objects = Objects.of(coco, with_masks=task == "segm")
    return evaluate_found(Found.of(Detections.of(entries), objects, task), objects)


def evaluate_found(found: Found, objects: Objects) -> Evaluation:
    """Evaluate detections whose overlaps with the objects are known.

    Args:
        found: The detections.
        objects: The objects.
    """
    matches = match(found, objects)
    # For each range of areas T x R x K: thresholds, recalls, categories; -1 for a category without objects.
    precision = [np.stack([_precision(one, area) for one in matches], 2) for area in range(len(AREAS))]
    whole, at = precision[0], {round(float(value), 2): number for number, value in enumerate(THRESHOLDS)}
    measured = (whole, whole[at[0.5]], whole[at[0.75]], *precision[1:])
    at_half = whole[0][:, (whole[0] > -1).all(0)]
    return Evaluation(
        points={name: _mean(values) for name, values in zip(METRICS, measured, strict=True)},
        matches=matches,
        per_class={name: _mean(whole[:, :, number]) for number, name in enumerate(objects.names)},
        curve=at_half.mean(1) if at_half.size else np.zeros(len(RECALLS)),
    )


def _precision(matches: Matches, area: int) -> Floats:
    """The precisions of a category at each threshold and recall, T x R; -1 without objects."""
    count = matches.objects[area].sum()
    precision = np.full((len(THRESHOLDS), len(RECALLS)), -1.0 if count == 0 else 0.0)
    for t in range(len(THRESHOLDS) if count else 0):
        [hits] = (matches.true[area] >> t & 1).nonzero()
        if not len(hits):
            continue
        # Precision is needed at the true detections only: from one to the next it decreases, and recall stays.
        positives = np.cumsum(matches.counted[area] >> t & 1, dtype=np.float64)[hits]
        true_positives = np.arange(1.0, len(hits) + 1)
        # With pycocotools' own constant, so that precision is rounded as it rounds it.
        at_hits = true_positives / (positives + np.spacing(1))
        envelope = np.append(np.maximum.accumulate(at_hits[::-1])[::-1], 0)
        precision[t] = envelope[np.searchsorted(true_positives / count, RECALLS)]
    return precision


def _mean(precision: Floats) -> float:
    """The mean over all categories with objects, summed up in pycocotools' order; NaN if there is none."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else math.nan
