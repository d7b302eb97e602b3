"""COCO annotations, read and checked before anything is computed from them."""

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from .values import LONGEST_SIDE, are_numbers, check_segmentation, is_integer

_HIGHEST_ID = 2**53  # pycocotools keeps ids as floating-point numbers


def load_annotations(path: str | Path) -> COCO:
    """Read and check COCO annotations for an evaluation.

    Args:
        path: The file.

    Raises:
        ValueError: As :func:`read_annotations` raises it; or the file has no images or categories, an annotation has
            the id 0, or a mask is invalid.
    """
    content = read_annotations(path)
    if not content["images"] or not content["categories"]:
        raise ValueError(f"{path}: has no images or no categories to evaluate")
    images = {image["id"]: image for image in content["images"]}
    for entry in content["annotations"]:
        where = f"{path}: annotation {entry['id']}"
        if entry["id"] == 0:
            raise ValueError(f"{where}: pycocotools uses this id for 'no match': number annotations from 1")
        entry.setdefault("iscrowd", 0)  # pycocotools needs it, MMDetection does not
        if entry.get("segmentation") and entry["image_id"] in images:
            check_segmentation(entry["segmentation"], images[entry["image_id"]], where)
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_annotations(path: str | Path) -> dict[str, Any]:
    """Read COCO annotations and check what a training would fail on or misread.

    Objects whose image or category the file does not list are not an error: all readers leave them out.

    Args:
        path: The file.

    Returns:
        The file's content, with lists 'images', 'annotations' and 'categories'.

    Raises:
        ValueError: The file cannot be read or is not in COCO's format, an id is used twice, or a size, box or file
            name is invalid.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not a file of COCO annotations: {type(error).__name__}: {error}") from error
    kinds = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(kind), list) for kind in kinds):
        raise ValueError(f"{path}: is not a file of COCO annotations: it needs the lists {', '.join(kinds)}")
    for kind in kinds:
        _check_ids(content[kind], f"{path}: {kind}", strings_too=kind == "images")
    for category in content["categories"]:
        if not isinstance(category.get("name"), str):
            raise ValueError(f"{path}: category {category['id']} has no name")
    for image in content["images"]:
        _check_image(image, f"{path}: image {image['id']}")
    for entry in content["annotations"]:
        _check_annotation(entry, f"{path}: annotation {entry['id']}")
    return content


def _check_ids(entries: list[Any], where: str, strings_too: bool) -> None:
    """Refuse duplicate ids, and ids that are neither integers nor, where allowed, strings."""
    seen = set()
    for number, entry in enumerate(entries):
        own: Any = entry.get("id") if isinstance(entry, dict) else None
        if not (strings_too and isinstance(own, str)) and not (is_integer(own) and 0 <= own < _HIGHEST_ID):
            raise ValueError(f"{where}: entry {number} has the id {own!r}: give an integer from 0 to 2^53")
        if own in seen:
            raise ValueError(f"{where}: the id {own} is used twice")
        seen.add(own)
    if len({type(own) for own in seen}) > 1:
        raise ValueError(f"{where}: some ids are strings and some are integers: give all the same type")


def _check_image(image: Mapping[str, Any], where: str) -> None:
    for side in ("height", "width"):
        if not is_integer(image.get(side)) or not 1 <= image[side] <= LONGEST_SIDE:
            raise ValueError(f"{where} has {side}={image.get(side)!r}: give pixels from 1 to {LONGEST_SIDE}")
    name = image.get("file_name", "")
    if not isinstance(name, str) or "\0" in name or ".." in Path(name).parts:
        raise ValueError(f"{where} has file_name={name!r}, which is not a name inside the image folder")


def _check_annotation(entry: Mapping[str, Any], where: str) -> None:
    image, category = entry.get("image_id"), entry.get("category_id")
    if not (is_integer(image) or isinstance(image, str)) or not is_integer(category):
        raise ValueError(f"{where} has image_id={image!r}, category_id={category!r}: give the ids of both")
    if not are_numbers(entry.get("bbox"), 4) or not are_numbers([entry.get("area")]):
        raise ValueError(
            f"{where} has an invalid box or area: {entry.get('bbox')!r}, {entry.get('area')!r}: give finite numbers"
        )
    if not is_integer(entry.get("iscrowd", 0)) or entry.get("iscrowd", 0) not in (0, 1):
        raise ValueError(f"{where} has iscrowd={entry['iscrowd']!r}: give 0 or 1")
