"""Detections in COCO's result format, read and checked."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pycocotools.coco import COCO

from sa_mmdet.messages import short
from sa_mmdet.untrusted import RefusedFileError, read_json, read_json_parts

from .detections import Detections, surely_valid
from .dialects import compressed, plain_entries
from .outlines import Outlines
from .values import are_numbers, check_compressed_mask

Answer = TypeVar("Answer")
_CHECKED_AT_ONCE = 4096  # entries


def load_results(path: str | Path, coco: COCO) -> list[dict[str, Any]]:
    """Read and check detections in COCO's result format, or in another tool's form of it, see :mod:`.dialects`.

    Args:
        path: The file.
        coco: The annotations of the images.

    Raises:
        ValueError: The file cannot be read, an entry lacks a field, has an invalid score, box or mask, or names an
            image or a category that the annotations do not have.
    """
    entries = plain_entries(read_json(path), coco, path)
    outlines = Outlines(path)
    for begin in range(0, len(entries), _CHECKED_AT_ONCE):
        some = entries[begin : begin + _CHECKED_AT_ONCE]
        if surely_valid(some, coco) is None:
            for number, entry in enumerate(some, begin):
                _check(entry, coco, outlines, f"{path}: entry {number}")
    return entries


def read_results(path: str | Path, coco: COCO) -> Iterator[Detections]:
    """Read and check detections in COCO's result format, some thousands at a time: a quick way for large files.

    Args:
        path: The file.
        coco: The annotations of the images.

    Raises:
        RefusedFileError: Something may be wrong with the file, or it is in another tool's form:
            :func:`load_results` says what, or reads it. This may be found after some of the detections.
    """
    for entries in read_json_parts(path):
        found = surely_valid(entries, coco)
        if found is None:
            raise RefusedFileError(f"{path}: has entries that may be invalid")
        yield found


def use_results(path: str | Path, coco: COCO, use: Callable[[Iterable[Detections]], Answer]) -> Answer:
    """Do something with the detections of a file, read in the quick way, or else, from the beginning, in the thorough.

    Args:
        path: The file.
        coco: The annotations of the images.
        use: Takes the detections in parts; it is called again where the quick way ends before the file does.

    Raises:
        ValueError: As :func:`load_results` raises it.
    """
    try:
        return use(read_results(path, coco))
    except RefusedFileError:
        return use([Detections.of(load_results(path, coco))])


def _check(entry: Any, coco: COCO, outlines: Outlines, where: str) -> None:
    """Check an entry, and bring its mask into the form of a compressed run-length code."""
    images, categories = coco.imgs, coco.cats
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not an object")
    missing = [name for name in ("image_id", "category_id", "score") if name not in entry]
    if missing or not {"bbox", "segmentation"} & set(entry):
        raise ValueError(f"{where} lacks {', '.join(missing) or 'both bbox and segmentation'}")
    if not _is_known(entry["image_id"], images):
        raise ValueError(
            f"{where} names the image {short(entry['image_id'])}, which the annotations do not have: do these "
            "results belong to other images?"
        )
    if not _is_known(entry["category_id"], categories):
        raise ValueError(
            f"{where} names the category {short(entry['category_id'])}, which the annotations do not have"
            f"{_hint(entry['category_id'], categories)}"
        )
    if not are_numbers([entry["score"]]) or not are_numbers(entry.get("bbox", [0] * 4), 4):
        raise ValueError(
            f"{where} has an invalid score or box: {short(entry['score'])}, {short(entry.get('bbox'))}: give "
            "finite numbers"
        )
    if "segmentation" in entry:
        image = images[entry["image_id"]]
        entry["segmentation"] = compressed(entry["segmentation"], image, outlines, where)
        check_compressed_mask(entry["segmentation"], image, where)


def _is_known(value: Any, known: Mapping[Any, Any]) -> bool:
    return isinstance(value, int | float | str) and value in known


def _hint(value: Any, known: Mapping[Any, Any]) -> str:
    """What may be wrong with an unknown category."""
    if not isinstance(value, int | float) or any(isinstance(one, str) for one in known):
        return ""
    return f": theirs are {min(known)} to {max(known)}; if these numbers count the classes from 0, write the ids"


def tasks_of(entries: Sequence[Mapping[str, Any]]) -> set[str]:
    """The tasks, 'bbox' and 'segm', that every one of the detections has an answer to."""
    fields = {"bbox": "bbox", "segm": "segmentation"}
    return {task for task, name in fields.items() if entries and all(name in entry for entry in entries)}
