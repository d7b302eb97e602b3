"""The objects that several networks see in one image, matched with one another or with the image's annotations."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmdet.structures.bbox import bbox_overlaps
from pycocotools.coco import COCO
from torch import Tensor

from sa_mmdet.messages import printable

from .network import Box, Network, Scores

SAME = 0.5  # the least intersection over union of two boxes around one object


@dataclass(frozen=True)
class Seen:
    """An object that a network detects, or a class that it gives the whole image.

    Attributes:
        name: Of the class.
        score: 0 to 1.
        box: None for a class of the whole image.
        label: The number of its class in the network.
        index: The number of its score among the network's scores for this image.
    """

    name: str
    score: float
    box: Box | None
    label: int
    index: int


@dataclass(frozen=True)
class Annotated:
    """An object of the annotations."""

    name: str
    box: Box


@dataclass
class Column:
    """One object, as each of several networks sees it: a column of a sheet.

    Attributes:
        name: Of the class.
        box: As it is annotated, or as the network sees it that is the surest of it; None for a class.
        annotated: Whether it is from the annotations.
        seen: For each network that sees it, by the network's name, its detection.
    """

    name: str
    box: Box | None
    annotated: bool = False
    seen: dict[str, Seen] = field(default_factory=dict)


def overlap(one: Box | None, other: Box | None) -> float:
    """The intersection over union of two boxes; 1 for two classes of the whole image."""
    if one is None or other is None:
        return float(one is other)
    return float(bbox_overlaps(torch.tensor([one]), torch.tensor([other]))[0, 0])


def seen_in(network: Network, scores: Scores, values: Tensor) -> list[Seen]:
    """List what a network sees in an image, in the order of its scores' numbers.

    Args:
        network: The network.
        scores: Its scores as a function, which has been called.
        values: What that returned, 1 x S.
    """
    boxes: Sequence[Box | None] = scores.boxes or [None] * len(scores.labels)
    return [
        Seen(network.name(label), float(value), box, label, index)
        for index, (value, label, box) in enumerate(zip(values[0], scores.labels, boxes, strict=True))
    ]


def score_of(values: Tensor, scores: Scores, label: int, box: Box | None) -> float:
    """The score that a network gives an object in another version of the image.

    Args:
        values: The network's scores for that version, 1 x S.
        scores: The function that computed them.
        label: The object's class.
        box: Its box; None for a class of the whole image.

    Returns:
        The highest score of the detections of this class whose boxes overlap with the object's by :data:`SAME` at
        least; 0 if there is none.
    """
    if box is None:
        return float(values[0, label])
    boxes = torch.tensor(scores.boxes).reshape(-1, 4)
    same_class = torch.tensor([other == label for other in scores.labels], dtype=torch.bool)
    same = (bbox_overlaps(torch.tensor([box]), boxes)[0] >= SAME) & same_class
    return float(values[0].cpu()[same].max()) if same.any() else 0.0


def matched(seen: dict[str, list[Seen]], top: int, threshold: float) -> list[Column]:
    """Make one column of each object, those with high scores first.

    The detection with the highest score makes the first column. Each other network adds its own detection of the same
    class that overlaps most, by :data:`SAME` at least, preferably one whose score reaches the threshold. The highest of
    those that are left makes the next column.

    Args:
        seen: For each network everything that it sees, also with low scores.
        top: The largest number of columns.
        threshold: No column is made for an object that all networks give a lower score.
    """
    left = {name: list(detections) for name, detections in seen.items()}
    columns: list[Column] = []
    while len(columns) < top:
        everything = [(name, one) for name, own in left.items() for one in own]
        owner, first = max(everything, key=lambda entry: entry[1].score, default=("", None))
        if first is None or first.score < threshold:
            break
        column = Column(first.name, first.box)
        for name, own in left.items():
            fitting = [first] if name == owner else [one for one in own if _is_same(one, first.name, first.box)]
            if fitting:
                chosen = max(fitting, key=lambda one: (one.score >= threshold, overlap(one.box, first.box)))
                column.seen[name] = chosen
                own.remove(chosen)
        columns.append(column)
    return columns


def matched_with(truth: Sequence[Annotated], seen: dict[str, list[Seen]], top: int, threshold: float) -> list[Column]:
    """Make one column of each annotated object: one of each class by turns, large ones first.

    A detection belongs to one object at most. Those whose scores reach the threshold are matched first, and among them
    those that overlap most with an object of their class.

    Args:
        truth: The annotated objects.
        seen: For each network everything that it sees.
        top: The largest number of columns.
        threshold: The lowest score of a detection that is preferred.
    """
    columns = [Column(one.name, one.box, annotated=True) for one in truth]
    for name, own in seen.items():
        pairs = [
            ((one.score >= threshold, overlap(one.box, column.box)), number, one)
            for number, column in enumerate(columns)
            for one in own
            if _is_same(one, column.name, column.box)
        ]
        taken: set[int] = set()
        for _, number, one in sorted(pairs, key=lambda pair: pair[0], reverse=True):
            if one.index not in taken and name not in columns[number].seen:
                columns[number].seen[name] = one
                taken.add(one.index)
    return _by_turns(columns)[:top]


def _by_turns(columns: Sequence[Column]) -> list[Column]:
    def size(column: Column) -> float:
        left, top, right, bottom = column.box or (0, 0, 0, 0)
        return (right - left) * (bottom - top)

    earlier: dict[str, int] = {}
    turns = []
    for column in sorted(columns, key=size, reverse=True):
        earlier[column.name] = earlier.get(column.name, -1) + 1
        turns.append((earlier[column.name], column))
    return [column for _, column in sorted(turns, key=lambda turn: turn[0])]


def _is_same(one: Seen, name: str, box: Box | None) -> bool:
    return one.name == name and overlap(one.box, box) >= SAME


def annotated_objects(coco: COCO, image: str | Path, height: int, width: int) -> list[Annotated]:
    """Find an image's objects in COCO annotations; crowds and objects without an extent are left out.

    Args:
        coco: The annotations.
        image: The image file. It is recognised by its name, with as many of its folders as the annotations give.
        height: Its size in pixels.
        width: Likewise.

    Raises:
        ValueError: The annotations do not have the image, or several of its name, or with another size, or no object
            in it.
    """
    parts = Path(image).resolve().parts
    entries = [
        entry
        for entry in coco.imgs.values()
        if (own := Path(entry.get("file_name", "")).parts) and own == parts[-len(own) :]
    ]
    if len(entries) != 1:
        reason = f"has the name of {len(entries)} of them" if entries else "is not one of the annotated images"
        raise ValueError(f"{image}: {reason}: give an image of the annotated data set")
    [entry] = entries
    if (entry["height"], entry["width"]) != (height, width):
        raise ValueError(
            f"{image}: has {height} x {width} pixels (height x width), and {entry['height']} x {entry['width']} in the "
            "annotations: give the image that was annotated"
        )
    found = []
    for one in coco.loadAnns(coco.getAnnIds(imgIds=[entry["id"]])):
        left, top, across, down = one["bbox"]
        if not one["iscrowd"] and not one.get("ignore") and across > 0 and down > 0 and one["category_id"] in coco.cats:
            name = printable(str(coco.cats[one["category_id"]]["name"]))
            found.append(Annotated(name, (left, top, left + across, top + down)))
    if not found:
        raise ValueError(f"{image}: no object is annotated in this image")
    return found
