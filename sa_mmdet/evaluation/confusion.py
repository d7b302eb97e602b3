"""What classifiers take the images of each class for."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sa_mmdet.messages import printable

from .classification import Accuracy
from .comparison import Comparison
from .objects import Floats
from .tables import Table

_MOST_CLASSES = 20  # of a matrix that can be read
_PAIRS = 15  # that a table shows instead


@dataclass
class Confusion:
    """The shares of each class's images that are taken for each class, averaged over the runs."""

    true: list[str]  # the images' classes
    predicted: list[str]  # these, and then others that images are taken for
    counts: list[int]  # the number of images of each true class
    shares: dict[str, Floats]  # for each variant true x predicted, 0 to 1


def confusion(found: Comparison) -> Confusion:
    """Count what the images of each class are taken for.

    Args:
        found: What :func:`.classification.compare_classifiers` returns.
    """
    first: Accuracy = found.runs[0][0]
    known = set(first.classes)
    others = sorted({name for own in found.runs for run in own for name in run.predicted} - known)
    predicted = [*first.classes, *others]
    numbers = {name: number for number, name in enumerate(predicted)}
    counts = np.bincount(first.labels, minlength=len(first.classes))
    shares: dict[str, Floats] = {}
    for name, own in zip(found.variants, found.runs, strict=True):
        taken = np.zeros((len(counts), len(predicted)))
        for run in own:
            np.add.at(taken, (run.labels, [numbers[one] for one in run.predicted]), 1)
        shares[name] = taken / (len(own) * counts[:, None])
    return Confusion(first.classes, predicted, counts.tolist(), shares)


def matrices(found: Confusion) -> list[dict[str, Any]]:
    """For each variant its name, the names of the columns and the rows with their cells; none for many classes.

    Args:
        found: The shares.
    """
    if len(found.predicted) > _MOST_CLASSES:
        return []
    return [
        dict(
            variant=name,
            columns=[printable(one) for one in found.predicted],
            rows=[
                dict(name=printable(one), images=count, cells=[float(value) for value in row])
                for one, count, row in zip(found.true, found.counts, shares, strict=True)
            ],
        )
        for name, shares in found.shares.items()
    ]


def most_confused(found: Confusion) -> list[Table]:
    """The pairs of classes that are confused most, in place of matrices of many classes.

    Args:
        found: The shares.
    """
    if len(found.predicted) <= _MOST_CLASSES:
        return []
    wrong = np.max(list(found.shares.values()), 0)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    pairs = [divmod(int(number), wrong.shape[1]) for number in order if wrong.flat[number] > 0]
    rows = [
        [
            printable(found.true[one]),
            printable(found.predicted[other]),
            str(found.counts[one]),
            *(f"{100 * shares[one, other]:.1f}" for shares in found.shares.values()),
        ]
        for one, other in pairs
    ]
    title = f"the {len(rows)} largest confusions of {len(found.predicted)} classes"
    return [dict(title=title, header=["class", "taken for", "images", *found.shares], rows=rows)] if rows else []
