"""Annotations and results in COCO's formats, read and checked before anything is computed from them."""

import contextlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

_LONGEST_SIDE = 100_000  # pixels; masks of more take a machine's memory
_HIGHEST_ID = 2**53  # pycocotools keeps them as floating-point numbers


def load_annotations(path: str | Path) -> COCO:
    """Read and check COCO annotations for an evaluation.

    Raises:
        ValueError: As :func:`read_annotations` raises it, the file has no images or categories, an annotation has the
            id 0, or a mask is none.
    """
    content = read_annotations(path)
    if not content["images"] or not content["categories"]:
        raise ValueError(f"{path}: no COCO annotations: it has no images or no categories")
    images = {image["id"]: image for image in content["images"]}
    for entry in content["annotations"]:
        where = f"{path}: annotation {entry['id']}"
        if entry["id"] == 0:
            raise ValueError(f"{where}: pycocotools takes this id for no match: number annotations from 1")
        entry.setdefault("iscrowd", 0)  # which pycocotools asks for, and MMDetection does not
        if entry.get("segmentation") and entry["image_id"] in images:
            _check_outline(entry["segmentation"], images[entry["image_id"]], where)
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_annotations(path: str | Path) -> dict[str, Any]:
    """Read COCO annotations and check what a training would choke on or take for something else.

    Objects of images or categories that the file does not have are no error: they are left out by all who read it.

    Raises:
        ValueError: The file cannot be read or is none of COCO's form, an id stands twice, or a size, box or file name
            is none.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no COCO annotations: {type(error).__name__}: {error}") from error
    kinds = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(kind), list) for kind in kinds):
        raise ValueError(f"{path}: no COCO annotations: it has no lists {', '.join(kinds)}")
    for kind in kinds:
        _check_ids(content[kind], f"{path}: {kind}", named=kind == "images")
    for category in content["categories"]:
        if not isinstance(category.get("name"), str):
            raise ValueError(f"{path}: category {category['id']} has no name")
    for image in content["images"]:
        _check_image(image, f"{path}: image {image['id']}")
    for entry in content["annotations"]:
        where = f"{path}: annotation {entry['id']}"
        of = entry.get("image_id"), entry.get("category_id")
        if not (_is_integer(of[0]) or isinstance(of[0], str)) or not _is_integer(of[1]):
            raise ValueError(f"{where} has image_id={of[0]!r}, category_id={of[1]!r}: give the ids of both")
        if not _are_numbers(entry.get("bbox"), 4) or not _are_numbers([entry.get("area")]):
            raise ValueError(
                f"{where} has a box or an area that is no number: {entry.get('bbox')!r}, {entry.get('area')!r}"
            )
        if not _is_integer(entry.get("iscrowd", 0)) or entry.get("iscrowd", 0) not in (0, 1):
            raise ValueError(f"{where} has iscrowd={entry['iscrowd']!r}: give 0 or 1")
    return content


def _check_ids(entries: list[Any], where: str, named: bool) -> None:
    """Refuse ids that stand twice or are no integers, nor strings where things may be ``named``."""
    seen = set()
    for number, entry in enumerate(entries):
        own: Any = entry.get("id") if isinstance(entry, dict) else None
        if not (named and isinstance(own, str)) and not (_is_integer(own) and 0 <= own < _HIGHEST_ID):
            raise ValueError(f"{where}: entry {number} has the id {own!r}: give an integer from 0 to 2^53")
        if own in seen:
            raise ValueError(f"{where}: id {own} stands twice")
        seen.add(own)
    if len({type(own) for own in seen}) > 1:
        raise ValueError(f"{where}: some ids are strings, some integers: give all one form")


def _check_image(image: Mapping[str, Any], where: str) -> None:
    for side in ("height", "width"):
        if not _is_integer(image.get(side)) or not 1 <= image[side] <= _LONGEST_SIDE:
            raise ValueError(f"{where} has {side}={image.get(side)!r}: give pixels, 1 to {_LONGEST_SIDE}")
    name = image.get("file_name", "")
    if not isinstance(name, str) or "\0" in name or ".." in Path(name).parts:
        raise ValueError(f"{where} has file_name={name!r}, which leaves the image folder or is no name")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_numbers(values: Any, count: int | None = None) -> bool:
    """Whether it is a list of numbers that a picture could have."""
    return (
        isinstance(values, list)
        and (count is None or len(values) == count)
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
        and all(abs(v) <= _LONGEST_SIDE**2 for v in values)
    )


def _check_outline(segmentation: Any, image: Mapping[str, Any], where: str) -> None:
    """An object's mask: polygons, or a run-length code, whose counts may be a list."""
    size = [image["height"], image["width"]]
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            _check_mask(segmentation, image, where)
        elif (
            segmentation.get("size") != size
            or not isinstance(counts, list)
            or not all(_is_integer(c) and c >= 0 for c in counts)
            or sum(counts) != size[0] * size[1]
        ):
            raise ValueError(f"{where} has a run-length code that is none of an image of {size}")
    elif not isinstance(segmentation, list) or not all(
        _are_numbers(polygon)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(abs(v) <= 2 * _LONGEST_SIDE for v in polygon)
        for polygon in segmentation
    ):
        raise ValueError(f"{where} has a mask that is no list of polygons, of three points or more each")


def load_results(path: str | Path, coco: COCO) -> list[dict[str, Any]]:
    """Read and check detections in COCO's result format.

    Raises:
        ValueError: The file cannot be read, or an entry lacks a field, has a score or a box that is no number, or is
            of an image or a category that the annotations do not have.
    """
    try:
        entries = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no readable JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: holds no list of detections but a {type(entries).__name__}")
    images, categories = set(coco.getImgIds()), set(coco.getCatIds())
    for number, entry in enumerate(entries):
        where = f"{path}: entry {number}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where} is no object")
        missing = [name for name in ("image_id", "category_id", "score") if name not in entry]
        if missing or not {"bbox", "segmentation"} & set(entry):
            raise ValueError(f"{where} lacks {', '.join(missing) or 'both bbox and segmentation'}")
        if not _is_known(entry["image_id"], images):
            raise ValueError(
                f"{where} is of image {entry['image_id']!r}, which the annotations do not have: are these the results "
                "of other images?"
            )
        if not _is_known(entry["category_id"], categories):
            raise ValueError(f"{where} is of category {entry['category_id']!r}, which the annotations do not have")
        if not _are_numbers([entry["score"]]) or not _are_numbers(entry.get("bbox", [0] * 4), 4):
            raise ValueError(
                f"{where} has a score or a box that is no number: {entry['score']!r}, {entry.get('bbox')!r}"
            )
        if "segmentation" in entry:
            _check_mask(entry["segmentation"], coco.imgs[entry["image_id"]], where)
    return entries


def _is_known(value: Any, known: set[Any]) -> bool:
    return isinstance(value, int | str) and value in known


def _check_mask(mask: Any, image: Mapping[str, Any], where: str) -> None:
    size = [image["height"], image["width"]]
    counts = mask.get("counts") if isinstance(mask, dict) and mask.get("size") == size else None
    # pycocotools reads on past the end of a code that is cut off, and never ends on one of another size.
    if not isinstance(counts, str) or _pixels(counts) != size[0] * size[1]:
        raise ValueError(f"{where} has a mask that is no compressed run-length code of size {size}, the image's")


def _pixels(code: str) -> int | None:
    """The sum of a compressed code's counts, or None if it is none.

    Six bits a character from '0' on: five of a count, the lowest first, and one that says that more follow. From the
    fourth count on it is the difference to the count before last.
    """
    counts: list[int] = []
    value = shift = 0
    for character in code:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        if value < 0:
            return None
        counts.append(value)
        value = shift = 0
    return None if shift else sum(counts)


def tasks_of(entries: Sequence[Mapping[str, Any]]) -> set[str]:
    """The tasks that all of these detections have an answer to."""
    fields = {"bbox": "bbox", "segm": "segmentation"}
    return {task for task, name in fields.items() if entries and all(name in entry for entry in entries)}
