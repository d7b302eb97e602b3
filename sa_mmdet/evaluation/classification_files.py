"""Predictions of classifiers, read from what MMPretrain's test.py --out writes, from JSON, and from CSV.

JSON is a list with one object per image: 'image', 'label', and either 'scores', one per class, or 'ranked', classes by
descending score; MMPretrain's names 'img_path', 'gt_label', 'pred_score' and 'pred_label' mean the same. CSV has the
columns image, label, and either top1, top2, ... or one column of scores per class. A file with images and labels alone
holds the truth for others that have none. Nothing in a pickle is run.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sa_mmdet.messages import listed, short
from sa_mmdet.untrusted import read_json, read_pickle

from .objects import Floats

_PICKLES = (".pkl", ".pickle")
_IMAGE, _LABEL = ("image", "img_path", "sample_idx"), ("label", "gt_label")  # in the order of preference
_SCORES, _RANKED = ("scores", "pred_score"), ("ranked", "pred_label")
_ANSWERS = (*_LABEL, *_SCORES, *_RANKED)
_NEVER = np.iinfo(np.intp).max


@dataclass
class Predictions:
    """The predictions of one run for N images.

    Attributes:
        path: The file.
        images: The images' names, without the folders that all of them share.
        labels: Their true classes; None where the file does not say them.
        found: For each image its scores, or its classes by descending score; empty for a file of labels alone.
        classes: The classes of the scores; None if they are numbered from 0.
    """

    path: str | Path
    images: list[str]
    labels: list[str] | None
    found: list[Floats | list[str]]
    classes: list[str] | None

    @property
    def most(self) -> int:
        """The largest k for which the first k predictions of all images are known and not simply all classes."""
        return min(len(own) - isinstance(own, np.ndarray) for own in self.found)

    def ranks(self, labels: Sequence[str]) -> NDArray[np.intp]:
        """The place of each image's true class among the predictions, from 0; a large number if it is not there.

        Of classes with equal scores the one that is listed first comes first.

        Args:
            labels: The true classes.

        Raises:
            ValueError: One of them is none of the classes that have scores.
        """
        numbers = self._numbers(labels)
        ranks = []
        for image, own, label in zip(self.images, self.found, labels, strict=True):
            if not isinstance(own, np.ndarray):
                ranks.append(own.index(label) if label in own else _NEVER)
                continue
            number = numbers[label]
            if not 0 <= number < len(own):
                raise ValueError(
                    f"{self.path}: image {short(image)} is of class {short(label)}, which has no score: the classes "
                    f"are {_described(self.classes, len(own))}"
                )
            ranks.append(int((own > own[number]).sum() + (own[:number] == own[number]).sum()))
        return np.array(ranks, np.intp)

    def best(self, labels: Sequence[str]) -> list[str]:
        """The class that each image is taken for, which has the rank 0, in the spelling of the true classes.

        Args:
            labels: The true classes.
        """
        names = dict(enumerate(self.classes or ())) | {n: label for label, n in self._numbers(labels).items()}
        found = (int(own.argmax()) if isinstance(own, np.ndarray) else own[0] for own in self.found)
        return [names.get(one, str(one)) if isinstance(one, int) else one for one in found]

    def _numbers(self, labels: Iterable[str]) -> dict[str, int]:
        """The place of the score of each true class; -1 for what is neither the name of a class nor a number."""
        known = {name: number for number, name in enumerate(self.classes or ())}
        return {label: known.get(label, int(label) if re.fullmatch(r"\d{1,9}", label) else -1) for label in set(labels)}


def _described(classes: Sequence[str] | None, count: int) -> str:
    return f"0 to {count - 1}" if classes is None else listed(classes)


def is_predictions(path: str | Path) -> bool:
    """Whether a file is a classifier's: by its ending or, if it is JSON, by its first entry.

    Args:
        path: The file, which need not be valid.
    """
    if Path(path).suffix.lower() in (*_PICKLES, ".csv"):
        return True
    try:
        with open(path, encoding="utf-8-sig") as file:
            if not file.read(4096).lstrip().startswith("["):
                return False
        content = read_json(path)
    except (OSError, ValueError):
        return False
    first = content[0] if content else None
    return isinstance(first, dict) and all(_field(first, names) is not None for names in (_IMAGE, _ANSWERS))


def is_truth(path: str | Path) -> bool:
    """Whether a file holds labels alone.

    Args:
        path: A file for which :func:`is_predictions` is true.

    Raises:
        ValueError: As :func:`read_predictions` raises it.
    """
    return Path(path).suffix.lower() not in _PICKLES and not read_predictions(path).found


def read_predictions(path: str | Path) -> Predictions:
    """Read a file of predictions or of labels.

    Args:
        path: The file, a pickle or CSV by its ending, or else JSON.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, is not of one of the forms above, or names an image twice.
    """
    kind = Path(path).suffix.lower()
    classes = None
    if kind == ".csv":
        entries, classes = _read_csv(path)
    else:
        entries = read_pickle(path) if kind in _PICKLES else read_json(path)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: must hold a list with one entry per image, as test.py --out writes it")
    if "pred_instances" in entries[0]:
        raise ValueError(f"{path}: holds boxes in MMDetection's own form: give the JSON of outfile_prefix instead")
    if classes is None and isinstance(_field(entries[0], _SCORES), dict):
        classes = list(map(str, _field(entries[0], _SCORES)))
    names = [_name(entry, number, path) for number, entry in enumerate(entries)]
    labels = [_field(entry, _LABEL) for entry in entries]
    found = [
        _prediction(entry, classes, f"{path}: image {short(name)}") for entry, name in zip(entries, names, strict=True)
    ]
    known = [own for own in found if own is not None]
    if 0 < len(known) < len(found) or len({isinstance(own, np.ndarray) for own in known}) > 1:
        raise ValueError(f"{path}: some images have scores and others have none: give all the same")
    if isinstance(next(iter(known), None), np.ndarray) and len({len(own) for own in known}) > 1:
        raise ValueError(f"{path}: some images have more scores than others: give one per class")
    if None in labels and any(label is not None for label in labels):
        raise ValueError(f"{path}: some images have a label and others have none")
    texts = [_text(label, f"{path}: image {short(name)}") for label, name in zip(labels, names, strict=True)]
    return Predictions(path, _without_common_folder(names, path), None if None in labels else texts, known, classes)


def _field(entry: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def _name(entry: Mapping[str, Any], number: int, path: str | Path) -> str:
    name = _field(entry, _IMAGE)
    if not isinstance(name, str | int) or name == "":
        raise ValueError(f"{path}: entry {number} does not name its image: give 'image'")
    return str(name)


def _text(label: Any, where: str) -> str:
    """A label as text; MMPretrain writes tensors of one number."""
    values = np.asarray(label).reshape(-1) if not isinstance(label, str) else [label]
    if label is not None and len(values) != 1:
        raise ValueError(f"{where} has {len(values)} labels: only images of one class are judged")
    value = values[0].item() if isinstance(values[0], np.generic) else values[0]
    if value is not None and (not isinstance(value, str | int) or isinstance(value, bool)):
        raise ValueError(f"{where} has the label {short(value)}: give a class's name or number")
    return str(value)


def _prediction(entry: Mapping[str, Any], classes: Sequence[str] | None, where: str) -> Floats | list[str] | None:
    scores, ranked = _field(entry, _SCORES), _field(entry, _RANKED)
    if scores is None:
        if ranked is None:
            return None
        values = ranked if isinstance(ranked, list) else [ranked]
        classes_found = [_text(value, where) for value in values]
        if not classes_found or len(set(classes_found)) < len(classes_found):
            raise ValueError(f"{where} ranks a class twice, or none")
        return classes_found
    if isinstance(scores, dict):
        if list(map(str, scores)) != classes:
            raise ValueError(f"{where} has scores of other classes than the first image")
        scores = list(scores.values())
    try:
        found = np.asarray(scores, float)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where} has scores that are not numbers: {short(scores)}") from error
    if found.ndim != 1 or not len(found) or np.isnan(found).any():
        raise ValueError(f"{where} has scores that are not a list of numbers: {short(scores)}")
    return found


def _without_common_folder(names: Sequence[str], path: str | Path) -> list[str]:
    try:
        common = os.path.commonpath([os.path.dirname(name) for name in names])
    except ValueError:  # some are absolute
        common = ""
    found = [os.path.relpath(name, common) if common else name for name in names]
    [(name, count)] = Counter(found).most_common(1)
    if count > 1:
        raise ValueError(f"{path}: names the image {short(name)} twice")
    return found


def _read_csv(path: str | Path) -> tuple[list[dict[str, Any]], list[str] | None]:
    """The entries, and the classes whose scores the columns are."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
    except (csv.Error, UnicodeError) as error:
        raise ValueError(f"{path}: is not readable as CSV: {error}") from error
    header = [name.strip() for name in lines[0]] if lines else []
    if "image" not in header or len(set(header)) < len(header):
        raise ValueError(f"{path}: needs a first line with the names image, label, and top1, top2 ... or the classes'")
    ranked = sorted((name for name in header if re.fullmatch(r"top\d{1,4}", name)), key=lambda name: int(name[3:]))
    classes = [name for name in header if name not in ("image", "label")]
    if ranked and ranked != [f"top{k}" for k in range(1, len(classes) + 1)]:
        raise ValueError(
            f"{path}: has columns beside image, label and top1 to top{len(ranked)}: {', '.join(classes)[:80]}"
        )
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        if len(line) != len(header):
            raise ValueError(f"{path}: line {number} has {len(line)} cells, the first line has {len(header)}")
        cells = {name: cell.strip() for name, cell in zip(header, line, strict=True)}
        entry: dict[str, Any] = {key: cells[key] for key in ("image", "label") if cells.get(key)}
        if ranked:
            entry["ranked"] = [cells[name] for name in ranked]
        elif classes:
            entry["scores"] = [cells[name] for name in classes]
        entries.append(entry)
    return entries, classes if classes and not ranked else None
