"""Top-1 and top-5 accuracy of classifiers, compared as the detectors' AP is."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sa_mmdet.messages import short

from .classification_files import Predictions, read_predictions
from .comparison import Comparison, compared
from .objects import Floats

TASK = "classification"
LEAST_IMAGES = 30  # for a verdict: a few images may all be right by chance, and then seem to have no variance
_K = dict(top1=1, top5=5)
_CHUNK = 100  # resamples that are computed at once


class OtherImagesError(ValueError):
    """Predictions are of different images, or of images with other classes."""


@dataclass
class Accuracy:
    """The accuracy of one run on N images."""

    points: dict[str, float]  # 'top1' and, where five predictions are known, 'top5', 0 to 1
    right: NDArray[np.float32]  # N x metrics: 1 where a prediction is right, 0 elsewhere
    classes: list[str]  # the names of the images' classes
    labels: NDArray[np.intp]  # the number of each image's class among them
    predicted: list[str]  # the class that each image is taken for, which may be no image's

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.right)


@dataclass
class _Ranked:
    """What counts of a run's predictions."""

    path: str | Path
    ranks: NDArray[np.intp]  # for each image the place of its true class among the predictions
    predicted: list[str]  # for each image the first of the predictions
    most: int  # the largest k for which the first k predictions are known
    identity: str  # of the run


def compare_classifiers(
    variants: Sequence[tuple[str, Sequence[str | Path]]],
    truth: str | Path | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    names: Sequence[str] = (),
) -> Comparison:
    """Compare classifiers on the same images, with intervals over seeds and images, as :func:`.comparison.compare`.

    Args:
        variants: For each variant its name and the files of its runs' predictions; the others are compared with the
            first.
        truth: A file with the images' classes, for files that do not say them.
        resamples: The number of resamples of the images.
        level: The confidence level of the intervals, between 0 and 1.
        seed: The seed of the random draws.
        names: The names of the classes that the files number from 0, where they are known.

    Raises:
        OtherImagesError: The files have different images or classes.
        ValueError: A file cannot be read or is invalid, or two runs of one variant are the same.
    """
    first = _with_labels([path for _, paths in variants for path in paths] if truth is None else [truth])
    labels = dict(sorted(zip(first.images, first.labels or (), strict=True)))
    ranked = []
    for name, paths in variants:
        ranked.append(
            [_ranked(first if path == first.path else read_predictions(path), first, labels) for path in paths]
        )
        _check_runs(name, ranked[-1])
    most = min(run.most for own in ranked for run in own)
    metrics = [metric for metric, k in _K.items() if k == 1 or k <= most]
    classes = sorted(set(labels.values()), key=lambda name: (int(name) if name.isdecimal() else -1, name))
    numbers = {name: number for number, name in enumerate(classes)}
    named = {str(number): name for number, name in enumerate(names)} if len(set(names)) == len(names) else {}
    shown = [named.get(name, name) for name in classes]
    own_labels = np.array([numbers[name] for name in labels.values()], np.intp)
    runs = []
    for own in ranked:
        rights = [np.stack([run.ranks < _K[metric] for metric in metrics], 1).astype(np.float32) for run in own]
        means = [dict(zip(metrics, right.mean(0, dtype=float).tolist(), strict=True)) for right in rights]
        runs.append(
            [
                Accuracy(mean, right, shown, own_labels, [named.get(one, one) for one in run.predicted])
                for mean, right, run in zip(means, rights, own, strict=True)
            ]
        )
    samples = _resampled(runs, metrics, resamples, seed) if len(runs) > 1 else []
    return compared(TASK, metrics, [name for name, _ in variants], runs, samples, level, LEAST_IMAGES)


def draw(count: int, resamples: int, seed: int) -> list[NDArray[np.float32]]:
    """How many times each of N images is in each resample, some resamples x N at once.

    Args:
        count: N.
        resamples: The number of resamples.
        seed: The seed of the random draws.
    """
    generator = np.random.default_rng(seed)
    sizes = [min(_CHUNK, resamples - begin) for begin in range(0, resamples, _CHUNK)]
    return [generator.multinomial(count, np.full(count, 1 / count), size).astype(np.float32) for size in sizes]


def _with_labels(paths: Sequence[str | Path]) -> Predictions:
    """The first file that says the images' classes."""
    for path in paths:
        found = read_predictions(path)
        if found.labels is not None:
            return found
    raise ValueError(f"{paths[0]}: does not say the images' classes: give 'label', or a file of labels first")


def _ranked(own: Predictions, first: Predictions, labels: dict[str, str]) -> _Ranked:
    """Check that a run's images and their classes are those of the first file, and find out what counts of the run."""
    different = set(own.images) ^ set(labels)
    if different:
        raise OtherImagesError(
            f"{own.path}: has other images than {first.path}, such as {short(min(different))}: give results of the "
            "same images"
        )
    for image, label in zip(own.images, own.labels or (), strict=own.labels is not None):
        if label != labels[image]:
            raise OtherImagesError(
                f"{own.path}: image {short(image)} is of class {short(label)}, but of {short(labels[image])} in "
                f"{first.path}: give results of the same data set"
            )
    if not own.found:
        raise ValueError(f"{own.path}: has no predictions: give 'scores' or 'ranked'")
    order = np.argsort(np.array(own.images))
    true = [labels[image] for image in own.images]
    ranks, best = own.ranks(true)[order], own.best(true)
    identity = str(Path(own.path).resolve())
    if isinstance(own.found[0], np.ndarray):  # two runs may rank the same, but do not have the same scores
        digest = hashlib.sha256()
        for number in order:
            digest.update(np.asarray(own.found[number], np.float32).tobytes())
        identity = digest.hexdigest()
    return _Ranked(own.path, ranks, [best[number] for number in order], own.most, identity)


def _check_runs(name: str, runs: Sequence[_Ranked]) -> None:
    seen: dict[str, _Ranked] = {}
    for run in runs:
        if run.identity in seen:
            raise ValueError(
                f"{run.path} and {seen[run.identity].path}, both {name}, hold the same predictions, which would count "
                "as two runs: give each run once"
            )
        seen[run.identity] = run


def _resampled(
    runs: Sequence[Sequence[Accuracy]], metrics: Sequence[str], resamples: int, seed: int
) -> list[list[dict[str, Floats]]]:
    """For each run and metric one value per resample; all runs are judged on the same resamples."""
    right = np.concatenate([run.right for own in runs for run in own], 1)  # N x (runs x metrics)
    values = [(weights @ right).astype(float) / len(right) for weights in draw(len(right), resamples, seed)]
    columns = iter(np.concatenate(values).T)
    return [[{metric: next(columns) for metric in metrics} for _ in own] for own in runs]
