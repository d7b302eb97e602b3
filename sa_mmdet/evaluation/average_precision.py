"""COCO average precision of result files, computed by pycocotools, with the matches that the bootstrap needs."""

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
_AT_ONCE = 2  # the number of files that are evaluated at once
_CATEGORIES = 8  # the number of categories that are matched at once
_AREAS = (0, 1, 2, 3)  # pycocotools' ranges of object areas: all, small, medium, large


@dataclass
class Matches:
    """The matches of one category and one range of areas, as the bootstrap needs them.

    The D detections are in descending order of their scores, those of equal scores in the order of the images' ids, as
    pycocotools sorts them; there are T IoU thresholds.
    """

    images: NDArray[np.intp]  # D: the index of each detection's image
    true: NDArray[np.bool_]  # T x D: whether it matches an object that is not ignored
    counted: NDArray[np.bool_]  # T x D: whether it counts, as a match or as a false detection
    tied: NDArray[np.bool_]  # D: whether the detection before it is of the same image and has the same score
    objects: NDArray[np.float64]  # for each image, the number of objects that are not ignored


@dataclass
class Evaluation:
    """The evaluation of one result file for one task."""

    points: dict[str, float]  # pycocotools' own metrics, 0 to 1; NaN where the data set has no object of that size
    matches: dict[int, list[Matches]]  # for each range of areas, one entry per category
    thresholds: Floats  # the IoU thresholds
    recalls: Floats  # the recalls at which precision is measured
    per_class: dict[str, float]  # for each class's name, its AP, 0 to 1; NaN for a class without objects
    curve: Floats  # precision at each recall, at an IoU of 0.5, mean over the classes

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.matches[0][0].objects)


def evaluate(coco: COCO, entries: Sequence[Mapping[str, Any]], task: str) -> Evaluation:
    """Evaluate detections with pycocotools, and keep its matches of detections and objects.

    Args:
        coco: The annotations.
        entries: Valid detections in COCO's format; the list may be empty.
        task: 'bbox' or 'segm'.
    """
    dropped = "segmentation" if task == "bbox" else "bbox"  # pycocotools would compute the areas from it
    own = [{key: value for key, value in entry.items() if key != dropped} for entry in entries]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(coco, coco.loadRes(own) if own else _without_annotations(coco), task)
        matches = _match(evaluator)
        evaluator.summarize()
    points = zip(METRICS, evaluator.stats, strict=False)
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # T x R x K: thresholds, recalls, categories
    per_class = {
        coco.cats[category]["name"]: float(precision[:, :, k].mean()) if (precision[:, :, k] > -1).any() else math.nan
        for k, category in enumerate(evaluator.params.catIds)
    }
    at_half = precision[0][:, (precision[0] > -1).all(0)]
    return Evaluation(
        points={name: float(value) if value >= 0 else math.nan for name, value in points},
        matches=matches,
        thresholds=np.asarray(evaluator.params.iouThrs),
        recalls=np.asarray(evaluator.params.recThrs),
        per_class=per_class,
        curve=at_half.mean(1) if at_half.size else np.zeros(len(precision[0])),
    )


def _match(evaluator: Any) -> dict[int, list[Matches]]:
    """Run pycocotools' matching and accumulation, on a few categories at a time.

    What pycocotools keeps while it matches all categories of a large data set takes gigabytes. The evaluator is left
    as if it had done all categories at once.
    """
    matches: dict[int, list[Matches]] = {area: [] for area in _AREAS}
    parts: dict[str, list[Any]] = dict(precision=[], recall=[])
    categories, count = list(evaluator.params.catIds), len(evaluator.params.imgIds)
    for begin in range(0, len(categories), _CATEGORIES):
        evaluator.params.catIds = categories[begin : begin + _CATEGORIES]
        evaluator.evaluate()
        evaluator.accumulate()
        for name, arrays in parts.items():
            arrays.append(evaluator.eval[name])
        for number in range(len(evaluator.params.catIds)):
            for area in _AREAS:
                first = (number * len(_AREAS) + area) * count
                matches[area].append(_matches(evaluator.evalImgs[first : first + count]))
    evaluator.params.catIds = categories
    evaluator.eval = dict(precision=np.concatenate(parts["precision"], 2), recall=np.concatenate(parts["recall"], 1))
    return matches


def evaluate_files(annotations: str | Path, results: Sequence[str | Path], task: str) -> list[Evaluation]:
    """Evaluate several result files, two at a time in processes of their own: pycocotools uses one core.

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


def _without_annotations(coco: COCO) -> COCO:
    empty = COCO()
    empty.dataset = {**coco.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _matches(images: Sequence[dict[str, Any] | None]) -> Matches:
    """Join pycocotools' matches of one category and range of areas over all images."""
    objects = np.array([0 if image is None else (1 - np.asarray(image["gtIgnore"])).sum() for image in images], float)
    kept = [(i, image) for i, image in enumerate(images) if image is not None and image["dtScores"]]
    if not kept:
        empty = np.zeros((10, 0), bool)
        return Matches(np.zeros(0, np.intp), empty, empty, np.zeros(0, bool), objects)
    scores = np.concatenate([image["dtScores"][:_MAX_DETECTIONS] for _, image in kept])
    order = np.argsort(-scores, kind="mergesort")  # as pycocotools sorts
    matched = np.concatenate([image["dtMatches"][:, :_MAX_DETECTIONS] for _, image in kept], 1)[:, order] > 0
    ignored = np.concatenate([image["dtIgnore"][:, :_MAX_DETECTIONS] for _, image in kept], 1)[:, order] > 0
    of = np.concatenate([np.full(len(image["dtScores"][:_MAX_DETECTIONS]), i) for i, image in kept])[order]
    scores = scores[order]
    tied = np.concatenate([[False], (scores[1:] == scores[:-1]) & (of[1:] == of[:-1])])
    return Matches(of, matched & ~ignored, ~ignored, tied, objects)
