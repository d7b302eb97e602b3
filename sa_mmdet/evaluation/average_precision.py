"""COCO average precision of result files, by pycocotools, with what a bootstrap of the images needs."""

import contextlib
import io
import math
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sa_mmdet.coco_format import load_annotations, load_results

Floats = NDArray[np.floating]
METRICS = ("AP", "AP50", "AP75", "APS", "APM", "APL")
TASKS = {"bbox": "box", "segm": "mask"}
_MAX_DETECTIONS = 100
_AT_ONCE = 2  # files
_CATEGORIES = 8  # how many are matched at once
_AREAS = (0, 1, 2, 3)  # pycocotools' all, small, medium, large


@dataclass
class Matches:
    """What resampling needs of one category and one range of areas, at all T IoU thresholds.

    The D detections are in descending order of their scores.
    """

    images: NDArray[np.intp]  # D: each detection's image, as an index
    true: NDArray[np.bool_]  # T x D: matches an object that counts
    counted: NDArray[np.bool_]  # T x D: is not ignored
    objects: NDArray[np.float64]  # per image, the number of objects that count


@dataclass
class Evaluation:
    """The evaluation of one result file for one task."""

    points: dict[str, float]  # pycocotools' own metrics, 0 to 1; NaN where no object has that size
    matches: dict[int, list[Matches]]  # for each range of areas, one entry per category
    thresholds: Floats
    recalls: Floats
    per_class: dict[str, float]
    curve: Floats  # precision at each recall, at an IoU of 0.5, mean over the classes

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.matches[0][0].objects)


def evaluate(coco: COCO, entries: Sequence[Mapping[str, Any]], task: str) -> Evaluation:
    """Match detections and objects with pycocotools.

    Args:
        coco: The annotations.
        entries: Detections that were checked; the list may be empty.
        task: 'bbox' or 'segm'.
    """
    dropped = "segmentation" if task == "bbox" else "bbox"  # pycocotools would take the areas from it
    own = [{key: value for key, value in entry.items() if key != dropped} for entry in entries]
    matches: dict[int, list[Matches]] = {area: [] for area in _AREAS}
    parts: dict[str, list[Any]] = dict(precision=[], recall=[])
    with contextlib.redirect_stdout(io.StringIO()):
        found = coco.loadRes(own) if own else _nothing(coco)
        judge = COCOeval(coco, found, task)
        categories, count = list(judge.params.catIds), len(judge.params.imgIds)
        # A few categories at a time: what pycocotools keeps for all of them takes gigabytes.
        for begin in range(0, len(categories), _CATEGORIES):
            judge.params.catIds = categories[begin : begin + _CATEGORIES]
            judge.evaluate()
            judge.accumulate()
            for name, arrays in parts.items():
                arrays.append(judge.eval[name])
            for number in range(len(judge.params.catIds)):
                for area in _AREAS:
                    first = (number * len(_AREAS) + area) * count
                    matches[area].append(_matches(judge.evalImgs[first : first + count]))
        judge.params.catIds = categories
        judge.eval = dict(precision=np.concatenate(parts["precision"], 2), recall=np.concatenate(parts["recall"], 1))
        judge.summarize()
    points = {name: float(value) if value >= 0 else math.nan for name, value in zip(METRICS, judge.stats, strict=False)}
    precision = judge.eval["precision"][:, :, :, 0, -1]  # T x R x K
    per_class = {
        coco.cats[category]["name"]: float(precision[:, :, k].mean()) if (precision[:, :, k] > -1).any() else math.nan
        for k, category in enumerate(categories)
    }
    half = precision[0][:, (precision[0] > -1).all(0)]
    curve = half.mean(1) if half.size else np.zeros(len(precision[0]))
    thresholds, recalls = (np.asarray(values) for values in (judge.params.iouThrs, judge.params.recThrs))
    return Evaluation(points, matches, thresholds, recalls, per_class, curve)


def evaluate_files(annotations: str | Path, results: Sequence[str | Path], task: str) -> list[Evaluation]:
    """Evaluate several result files, two at a time: matching takes longest, and pycocotools uses one core.

    Args:
        annotations: The file of COCO annotations.
        results: The result files.
        task: 'bbox' or 'segm'.

    Raises:
        ValueError: A file cannot be read or is invalid, or its evaluation was killed.
    """
    found: list[Evaluation] = []
    for begin in range(0, len(results), _AT_ONCE):
        own = results[begin : begin + _AT_ONCE]
        # New processes each time, which give their memory back. A pool would wait for one that was killed, for ever.
        with ProcessPoolExecutor(len(own), multiprocessing.get_context("fork")) as processes:
            waiting = [processes.submit(_evaluate_file, annotations, path, task) for path in own]
            for path, evaluation in zip(own, waiting, strict=True):
                try:
                    found.append(evaluation.result())
                except BrokenProcessPool as error:
                    raise ValueError(f"{path}: its evaluation was killed: is there enough memory for it?") from error
    return found


def _evaluate_file(annotations: str | Path, results: str | Path, task: str) -> Evaluation:
    coco = load_annotations(annotations)
    return evaluate(coco, load_results(results, coco), task)


def _nothing(coco: COCO) -> COCO:
    empty = COCO()
    empty.dataset = {**coco.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _matches(images: Sequence[dict[str, Any] | None]) -> Matches:
    objects = np.array([0 if image is None else (1 - np.asarray(image["gtIgnore"])).sum() for image in images], float)
    kept = [(i, image) for i, image in enumerate(images) if image is not None and image["dtScores"]]
    if not kept:
        empty = np.zeros((10, 0), bool)
        return Matches(np.zeros(0, np.intp), empty, empty, objects)
    scores = np.concatenate([image["dtScores"][:_MAX_DETECTIONS] for _, image in kept])
    order = np.argsort(-scores, kind="mergesort")  # as pycocotools sorts
    matched = np.concatenate([image["dtMatches"][:, :_MAX_DETECTIONS] for _, image in kept], 1)[:, order] > 0
    ignored = np.concatenate([image["dtIgnore"][:, :_MAX_DETECTIONS] for _, image in kept], 1)[:, order] > 0
    of = np.concatenate([np.full(len(image["dtScores"][:_MAX_DETECTIONS]), i) for i, image in kept])[order]
    return Matches(of, matched & ~ignored, ~ignored, objects)
