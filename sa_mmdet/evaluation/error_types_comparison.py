"""What each type of error costs several variants, with paired intervals over seeds and images.

The differences are judged as those of AP are, see :mod:`.verdicts`. Nobody chooses a type, a size or a class before the
training, so the p-values are adjusted for all cells of a table and all variants (Holm): those of the whole, those by
size and those by class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sa_mmdet.coco_format import Detections, use_results

from .average_precision import TASKS
from .error_types import MISSED, RIGHT, SIZES, TYPES, Judged, judge
from .error_types_mended import mended_precision
from .files import read_objects
from .objects import Floats
from .processes import in_processes
from .verdicts import BETTER, OPEN, WORSE, holm, row, variance, word

LEAST_SCORE = 0.3  # of the detections that are counted
NUMBERS = ("objects", "right", *TYPES)
LESS, MORE = "loses less", "loses more"

Cell = dict[str, float]  # 'difference', 'low', 'high', 'p' and 'adjusted', as a comparison's


@dataclass
class Errors:
    """The errors of one run.

    Its parts are the sizes, :data:`.error_types.SIZES`, of which the first is the whole, and then the classes.

    Attributes:
        precision: AP50 of each part, 0 to 1; NaN for a part without objects.
        costs: By how much AP50 rises when the errors of a type are mended, parts x types.
        draws: The costs on resamples of the images, parts x types x R.
        numbers: How many objects, right and wrong detections and missed objects there are, parts x :data:`NUMBERS`;
            only detections with the least score or more count.
        classes: The classes' names.
        images: The number of images.
    """

    precision: Floats
    costs: Floats
    draws: Floats
    numbers: Floats
    classes: list[str]
    images: int


@dataclass
class ErrorComparison:
    """The errors of several variants, each with one run or several, on the same images for one task."""

    task: str  # 'bbox' or 'segm'
    variants: list[str]  # the variants' names; the others are compared with the first
    runs: list[list[Errors]]  # for each variant those of its runs
    differences: list[list[list[Cell]]]  # for each variant but the first, each part and type: what it costs more
    level: float  # the confidence level of the intervals
    least_score: float  # of the detections that are counted

    @property
    def parts(self) -> list[str]:
        """The names of the parts: the sizes, of which the first is the whole, and the classes."""
        return [*SIZES, *self.runs[0][0].classes]

    def mean(self, variant: int, field: str) -> Floats:
        """A field of :class:`Errors`, averaged over a variant's runs."""
        return np.mean([getattr(run, field) for run in self.runs[variant]], 0)

    def verdict(self, cell: Cell) -> str:
        """What a difference says: :data:`LESS`, :data:`MORE` or not told apart.

        These are not called better and worse: who has a higher AP50 has more to lose.
        """
        return {BETTER: MORE, WORSE: LESS, OPEN: OPEN}[word(cell, self.level)]


def compare_errors(
    annotations: str | Path,
    variants: Sequence[tuple[str, Sequence[str | Path]]],
    task: str,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    least_score: float = LEAST_SCORE,
    show_progress: bool = False,
) -> ErrorComparison:
    """Find the errors in result files, and the differences between variants with intervals over seeds and images.

    Args:
        annotations: The file of COCO annotations.
        variants: For each variant its name and the result files of its runs; the others are compared with the first.
        task: 'bbox' or 'segm'.
        resamples: The number of resamples of the images, which are the same for all runs; none for a single variant.
        level: The confidence level of the intervals, between 0 and 1.
        seed: The seed of the random draws.
        least_score: The smallest score of the detections that are counted; all have a part in the costs.
        show_progress: Whether to show a progress bar.

    Raises:
        ValueError: A file cannot be read or is invalid, or the process that judges it was killed.
    """
    drawn = resamples if len(variants) > 1 else 0
    paths = [path for _, own in variants for path in own]
    coco, objects = read_objects(annotations, (task,))
    objects.check_masks(annotations)

    def errors_in(path: str | Path) -> Errors:
        found = use_results(path, coco, Detections.joined)
        if task not in found.tasks:
            raise ValueError(f"{path}: has detections without a {TASKS[task]}")
        return errors_of(judge(found, objects, task), drawn, seed, least_score)

    with tqdm(total=len(paths), desc="error types", leave=False, disable=not show_progress) as bar:
        found = in_processes(errors_in, paths, lambda path: f"{path}: its evaluation", bar.update)
    remaining = iter(found)
    runs = [[next(remaining) for _ in own] for _, own in variants]
    differences = _differences(runs, level)
    return ErrorComparison(task, [name for name, _ in variants], runs, differences, level, least_score)


def errors_of(judged: Judged, resamples: int, seed: int, least_score: float) -> Errors:
    """The errors of one run.

    Args:
        judged: Its detections.
        resamples: The number of resamples of the images.
        seed: The seed of the random draws.
        least_score: The smallest score of the detections that are counted.
    """
    count = judged.image_count
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    precision, costs = [], []
    by_class: list[Floats] = []
    for size in range(len(SIZES)):
        found = np.concatenate(  # choices x classes x (1 + R)
            [mended_precision(judged, size, own) for own in (np.ones((1, count)), draws.astype(np.float32))], 2
        )
        if not size:
            by_class = list(found.swapaxes(0, 1))
        for own in (_mean(found), *(by_class if size == len(SIZES) - 1 else ())):
            precision.append(own[0, 0])
            costs.append(own[1:] - own[0])
    all_costs = np.array(costs)
    return Errors(
        np.array(precision),
        all_costs[:, :, 0],
        all_costs[:, :, 1:].astype(np.float32),
        _numbers(judged, least_score),
        judged.class_names,
        count,
    )


def _mean(values: Floats) -> Floats:
    """The mean over the classes that have objects."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(1) / known.sum(1)


def _numbers(judged: Judged, least_score: float) -> Floats:
    whole, by_class = [], np.zeros((len(judged.class_names), len(NUMBERS)))
    high = judged.scores >= least_score
    for size in range(len(SIZES)):
        kinds = np.where(high & ((judged.kinds[size] == RIGHT) | judged.counts[size]), judged.kinds[size], MISSED)
        of_objects = [judged.object_classes[judged.in_range[size]]]
        of_objects += [judged.object_classes[judged.missed(size, least_score)]]
        columns = [of_objects[0], *(judged.classes[kinds == kind] for kind in (RIGHT, *range(MISSED))), of_objects[1]]
        counts = np.array([np.bincount(own, minlength=len(judged.class_names)) for own in columns], float).T
        whole.append(counts.sum(0))
        by_class = by_class if size else counts
    return np.concatenate([whole, by_class])


def _differences(runs: Sequence[Sequence[Errors]], level: float) -> list[list[list[Cell]]]:
    points = [np.array([run.costs for run in own]) for own in runs]  # S x parts x types
    draws = [np.array([run.draws for run in own]) for own in runs]
    parts = points[0].shape[1]
    found: list[list[list[Cell]]] = [[[{} for _ in TYPES] for _ in range(parts)] for _ in runs[1:]]
    for number, own in enumerate(found, 1):
        for part in range(parts):
            for kind in range(len(TYPES)):
                pair = [points[i][:, part, kind] for i in (number, 0)]
                samples = [draws[i][:, part, kind].astype(float) for i in (number, 0)]
                own[part][kind] = row(pair, variance(pair, samples, runs[0][0].images), level)
    for table in (range(1), range(1, len(SIZES)), range(len(SIZES), parts)):
        cells = [cell for own in found for part in table for cell in own[part]]
        for cell, adjusted in zip(cells, holm([cell["p"] for cell in cells]), strict=True):
            cell["adjusted"] = adjusted
    return found
