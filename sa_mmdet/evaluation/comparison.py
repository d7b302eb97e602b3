"""COCO average precision of several result files on the same images, and how sure their differences are.

Images are matched once, by pycocotools. A bootstrap's resample then is a weight an image: the detections of a category
stay in the order of their scores, and an image that is drawn three times counts its detections three times. That gives
exactly what pycocotools would of the resampled set.
"""

import contextlib
import dataclasses
import io
import math
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sa_mmdet.coco_format import annotations as coco_files

Floats = NDArray[np.floating]
METRICS = ("AP", "AP50", "AP75", "APS", "APM", "APL")
TASKS = {"bbox": "box", "segm": "mask"}
_MAX_DETECTIONS = 100
_CHUNK = 100  # resamples at once
_CATEGORIES = 8  # matched at once
_AREAS = (0, 1, 2, 3)  # pycocotools' all, small, medium, large


@dataclass
class Matches:
    """What the resampling needs of one category and one range of areas, at all T IoU thresholds.

    Detections stand in the order of their scores.
    """

    images: NDArray[np.intp]  # D: of each detection, an index
    true: NDArray[np.bool_]  # T x D: matches an object that counts
    counted: NDArray[np.bool_]  # T x D: is not to be ignored
    objects: NDArray[np.float64]  # an image: objects that count


@dataclass
class Evaluation:
    """One result file, of one task."""

    points: dict[str, float]  # pycocotools' own figures, 0 to 1; NaN where no object is of that size
    matches: dict[int, list[Matches]]  # by range of areas, a category each
    thresholds: Floats
    recalls: Floats
    per_class: dict[str, float]
    curve: Floats  # precision at each recall, at an IoU of 0.5, mean of the classes


def evaluate(coco: COCO, entries: Sequence[Mapping[str, Any]], task: str) -> Evaluation:
    """Match detections and objects with pycocotools.

    Args:
        coco: The annotations.
        entries: Checked detections; there may be none.
        task: 'bbox' or 'segm'.
    """
    dropped = "segmentation" if task == "bbox" else "bbox"  # from which pycocotools would take the wrong areas
    own = [{key: value for key, value in entry.items() if key != dropped} for entry in entries]
    matches: dict[int, list[Matches]] = {area: [] for area in _AREAS}
    parts: dict[str, list[Any]] = dict(precision=[], recall=[])
    with contextlib.redirect_stdout(io.StringIO()):
        found = coco.loadRes(own) if own else _nothing(coco)
        judge = COCOeval(coco, found, task)
        categories, count = list(judge.params.catIds), len(judge.params.imgIds)
        # A few categories at a time: what pycocotools keeps of all of them takes gigabytes.
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


def evaluate_files(annotations: str, results: Sequence[str], task: str) -> list[Evaluation]:
    """:func:`evaluate` of each file, two at a time: matching is the longest step, and pycocotools uses one core."""
    with multiprocessing.get_context("fork").Pool(min(2, len(results)), maxtasksperchild=1) as pool:
        return pool.starmap(_evaluate_file, [(annotations, path, task) for path in results], chunksize=1)


def _evaluate_file(annotations: str, results: str, task: str) -> Evaluation:
    coco = coco_files.load_annotations(annotations)
    return evaluate(coco, coco_files.load_results(results, coco), task)


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


def resampled(
    evaluation: Evaluation, weights: NDArray[np.float32], progress: Callable[[], None] = lambda: None
) -> dict[str, Floats]:
    """The metrics of resamples of the images.

    Args:
        evaluation: Of N images.
        weights: R x N: how many times each resample has drawn each image.
        progress: Called once for each category and range of areas.

    Returns:
        For each metric R values, 0 to 1; NaN where a resample holds no object of that size.
    """
    per_threshold: dict[int, tuple[Floats, Floats]] = {}
    for area, categories in evaluation.matches.items():
        total = np.zeros((len(evaluation.thresholds), len(weights)))
        present = np.zeros(len(weights))
        for matches in categories:
            precision, there = _average_precision(matches, weights, evaluation.recalls)
            total += np.where(there, precision, 0)
            present += there
            progress()
        with np.errstate(invalid="ignore"):
            per_threshold[area] = total / present, present
    whole = per_threshold[0][0]
    at = {round(float(value), 2): i for i, value in enumerate(evaluation.thresholds)}
    return {
        "AP": whole.mean(0),
        "AP50": whole[at[0.5]],
        "AP75": whole[at[0.75]],
        **{name: per_threshold[area][0].mean(0) for name, area in (("APS", 1), ("APM", 2), ("APL", 3))},
    }


def _average_precision(
    matches: Matches, weights: NDArray[np.float32], recalls: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """T x R average precisions of a category, and which of the R resamples have objects of it."""
    objects = weights @ matches.objects
    there = objects > 0
    precision = np.zeros((len(matches.true), len(weights)))
    if not matches.true.any():
        return precision, there
    drawn = weights[:, matches.images]
    everything = np.cumsum(drawn, 1)
    for t, (true, counted) in enumerate(zip(matches.true, matches.counted, strict=True)):
        [hits] = true.nonzero()
        if not len(hits):
            continue
        # Precision is needed at the true detections alone: between them it only falls.
        reached = np.cumsum(drawn[:, hits], 1)
        if counted.all():
            before = everything[:, hits]
        else:
            places = np.cumsum(counted)[hits] - 1
            before = np.cumsum(drawn[:, counted], 1)[:, places]
        with np.errstate(invalid="ignore"):
            at_hits = np.where(before > 0, reached / np.maximum(before, 1), 0)
        best = np.maximum.accumulate(at_hits[:, ::-1], 1)[:, ::-1]
        padded = np.concatenate([best, np.zeros((len(best), 1), best.dtype)], 1)
        for r in there.nonzero()[0]:
            places = np.searchsorted(reached[r].astype(np.float64) / objects[r], recalls)  # rounded as pycocotools
            precision[t, r] = padded[r, places].mean()
    return precision, there


def bootstrap(
    evaluations: Sequence[Evaluation],
    resamples: int,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Floats]]:
    """The metrics of all arms on the same resamples of the images."""
    count = len(evaluations[0].matches[0][0].objects)
    generator = np.random.default_rng(seed)
    found: list[dict[str, list[Floats]]] = [{name: [] for name in METRICS} for _ in evaluations]
    for begin in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - begin)
        weights = generator.multinomial(count, np.full(count, 1 / count), size).astype(np.float32)
        for arm, evaluation in zip(found, evaluations, strict=True):
            for name, values in resampled(evaluation, weights, progress).items():
                arm[name].append(values)
    return [{name: np.concatenate(parts) for name, parts in arm.items()} for arm in found]


def sentence(
    pair: tuple[str, str],
    task: str,
    metric: str,
    row: Mapping[str, Mapping[str, float]],
    interval: str,
    evidence: str = "",
) -> str:
    """A difference in plain words.

    Args:
        pair: The arm, and what it is compared with.
        task: Of the difference.
        metric: Of :data:`METRICS`.
        row: What :func:`differences` found of the arm.
        interval: What the interval is called, such as '95% interval'.
        evidence: What the difference rests on.
    """
    difference, low, high = (100 * row[metric][key] for key in ("difference", "low", "high"))
    what = f"{pair[0]} - {pair[1]}: "
    if math.isnan(difference):
        return f"{what}{TASKS[task]} {metric} has no objects to judge it by"
    verdict = "better" if low > 0 else "worse" if high < 0 else "no difference that these images show"
    spread = f"{low:+.1f} to {high:+.1f}" + (f", {evidence}" if evidence else "")
    return f"{what}{difference:+.1f} {TASKS[task]} {metric}, {interval} {spread}: {verdict}"


def steps(evaluations: Sequence[Evaluation], resamples: int) -> int:
    """How often :func:`bootstrap` calls ``progress``."""
    each = sum(len(categories) for evaluation in evaluations for categories in evaluation.matches.values())
    return each * math.ceil(resamples / _CHUNK)


def averaged(
    evaluations: Sequence[Evaluation], samples: Sequence[Mapping[str, Floats]]
) -> tuple[Evaluation, dict[str, Floats]]:
    """The mean of several runs of one arm, of their figures and in each resample."""
    points = {name: float(np.mean([evaluation.points[name] for evaluation in evaluations])) for name in METRICS}
    means = {name: np.mean([sample[name] for sample in samples], 0) for name in METRICS}
    return dataclasses.replace(evaluations[0], points=points), means


def differences(
    evaluations: Sequence[Evaluation], samples: Sequence[Mapping[str, Floats]], level: float = 0.95
) -> list[dict[str, dict[str, float]]]:
    """Of every arm but the first, each metric's difference to the first arm with the interval's ends."""
    tails = 100 * np.array([(1 - level) / 2, (1 + level) / 2])
    found = []
    for evaluation, sample in zip(evaluations[1:], samples[1:], strict=True):
        row = {}
        for name in METRICS:
            spread = sample[name] - samples[0][name]
            spread = spread[np.isfinite(spread)]
            low, high = np.percentile(spread, tails) if len(spread) else (math.nan, math.nan)
            difference = evaluation.points[name] - evaluations[0].points[name]
            row[name] = dict(difference=difference, low=float(low), high=float(high))
        found.append(row)
    return found
