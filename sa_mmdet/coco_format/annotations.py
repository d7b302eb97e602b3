"""COCO annotations, read and checked before anything is computed from them."""

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from sa_mmdet.messages import short
from sa_mmdet.untrusted import RefusedFileError, read_json

from .values import LONGEST_SIDE, are_numbers, check_segmentation, is_integer, outline

_HIGHEST_ID = 2**53  # pycocotools keeps ids as floating-point numbers
_MOST_CATEGORIES = 20_000  # for each of which pycocotools keeps 100 KB
# Pixels of all polygons' outlines: for any file, and for each byte of it. COCO's have 2 for a byte.
_OUTLINES, _OUTLINE_PER_BYTE = 5_000_000, 400


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
    if len(content["categories"]) > _MOST_CATEGORIES:
        raise ValueError(
            f"{path}: has {len(content['categories'])} categories: at most {_MOST_CATEGORIES} are evaluated"
        )
    left: float = _OUTLINES + _OUTLINE_PER_BYTE * os.path.getsize(path)
    images = {image["id"]: image for image in content["images"]}
    for entry in content["annotations"]:
        where = f"{path}: annotation {entry['id']}"
        if entry["id"] == 0:
            raise ValueError(f"{where}: pycocotools uses this id for 'no match': number annotations from 1")
        entry.setdefault("iscrowd", 0)  # pycocotools needs it, MMDetection does not
        if entry.get("segmentation") and entry["image_id"] in images:
            check_segmentation(entry["segmentation"], images[entry["image_id"]], where)
            left -= outline(entry["segmentation"])
            if left < 0:
                raise ValueError(
                    f"{where}: the outlines of all polygons up to here are longer than {_OUTLINE_PER_BYTE} pixels for "
                    "each byte of the file"
                )
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_annotations(path: str | Path, folder: str | Path = "", root: str | Path = "") -> dict[str, Any]:
    """Read COCO annotations and check what a training would fail on or misread.

    Objects whose image or category the file does not list are not an error: all readers leave them out.

    Args:
        path: The file.
        folder: The folder to which the images' names are relative.
        root: The folder out of which no name may lead, such as the data set's; ``folder`` if empty.

    Returns:
        The file's content, with lists 'images', 'annotations' and 'categories'.

    Raises:
        ValueError: The file cannot be read or is not in COCO's format, an id is used twice, or a size, box or file
            name is invalid.
    """
    try:
        content = read_json(path)
    except RefusedFileError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: is not a file of COCO annotations, it {reason}") from error
    kinds = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(kind), list) for kind in kinds):
        raise ValueError(f"{path}: is not a file of COCO annotations: it needs the lists {', '.join(kinds)}")
    for kind in kinds:
        _check_ids(content[kind], f"{path}: {kind}", strings_too=kind == "images")
    for category in content["categories"]:
        if not isinstance(category.get("name"), str):
            raise ValueError(f"{path}: category {category['id']} has no name")
    for image in content["images"]:
        _check_image(image, f"{path}: image {image['id']!r}", folder, root)
    for entry in content["annotations"]:
        _check_annotation(entry, f"{path}: annotation {entry['id']}")
    return content


def _check_ids(entries: list[Any], where: str, strings_too: bool) -> None:
    """Refuse duplicate ids, and ids that are neither integers nor, where allowed, strings."""
    seen = set()
    for number, entry in enumerate(entries):
        own: Any = entry.get("id") if isinstance(entry, dict) else None
        if not (strings_too and isinstance(own, str)) and not (is_integer(own) and 0 <= own < _HIGHEST_ID):
            raise ValueError(f"{where}: entry {number} has the id {short(own)}: give an integer from 0 to 2^53")
        if own in seen:
            raise ValueError(f"{where}: the id {short(own)} is used twice")
        seen.add(own)
    if len({type(own) for own in seen}) > 1:
        raise ValueError(f"{where}: some ids are strings and some are integers: give all the same type")


def _check_image(image: Mapping[str, Any], where: str, folder: str | Path, root: str | Path) -> None:
    for side in ("height", "width"):
        if not is_integer(image.get(side)) or not 1 <= image[side] <= LONGEST_SIDE:
            raise ValueError(f"{where} has {side}={short(image.get(side))}: give pixels from 1 to {LONGEST_SIDE}")
    name = image.get("file_name", "")
    if not isinstance(name, str) or "\0" in name or not leads_inside(name, folder, root):
        raise ValueError(
            f"{where} has file_name={short(name)}, which is not a name inside the image folder or the data set's: name "
            "a data_root that holds all images"
        )


def leads_inside(name: str, folder: str | Path, root: str | Path = "") -> bool:
    """Whether an image's name stays inside of a data set: annotations of others could name any file.

    Args:
        name: As the annotations have it, relative or absolute.
        folder: The folder to which names are relative.
        root: The data set's folder; ``folder`` if empty.
    """
    if not os.path.isabs(name) and ".." not in Path(name).parts:
        return True
    top = os.path.abspath(root or folder)
    return os.path.commonpath([top, os.path.abspath(os.path.join(folder, name))]) == top


def _check_annotation(entry: Mapping[str, Any], where: str) -> None:
    image: Any = entry.get("image_id")
    category: Any = entry.get("category_id")
    is_named = isinstance(image, str) or (is_integer(image) and abs(image) < _HIGHEST_ID)
    if not is_named or not is_integer(category) or abs(category) >= _HIGHEST_ID:
        raise ValueError(f"{where} has image_id={short(image)}, category_id={short(category)}: give the ids of both")
    if not are_numbers(entry.get("bbox"), 4) or not are_numbers([entry.get("area")]):
        raise ValueError(
            f"{where} has an invalid box or area: {short(entry.get('bbox'))}, {short(entry.get('area'))}: give finite "
            "numbers"
        )
    if not is_integer(entry.get("iscrowd", 0)) or entry.get("iscrowd", 0) not in (0, 1):
        raise ValueError(f"{where} has iscrowd={short(entry['iscrowd'])}: give 0 or 1")
