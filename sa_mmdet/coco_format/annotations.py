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

from .outlines import Outlines
from .values import LONGEST_SIDE, are_numbers, check_segmentation, is_number

_HIGHEST_ID = 2**53  # pycocotools keeps annotations' ids as floating-point numbers
_MOST_CATEGORIES = 20_000  # for each of which pycocotools keeps 100 KB
_CHECKED_AT_ONCE = 4096  # objects


def load_annotations(path: str | Path) -> COCO:
    """Read and check COCO annotations for an evaluation.

    What pycocotools cannot compute with is made fit: sizes become integers, ``iscrowd`` 0 or 1, and annotations whose
    ids are strings or negative are numbered from 1.

    Args:
        path: The file.

    Raises:
        ValueError: As :func:`read_annotations` raises it; or the file has no images, categories or list of
            annotations, some ids of images or categories are strings and some are not, an annotation has the id 0, or
            a mask is invalid.
    """
    content = read_annotations(path)
    if "annotations" not in content:
        raise ValueError(f"{path}: has no annotations to evaluate with: it only lists images")
    if not content["images"] or not content["categories"]:
        raise ValueError(f"{path}: has no images or no categories to evaluate")
    if len(content["categories"]) > _MOST_CATEGORIES:
        raise ValueError(
            f"{path}: has {len(content['categories'])} categories: at most {_MOST_CATEGORIES} are evaluated"
        )
    for kind in ("images", "categories"):
        if len({isinstance(entry["id"], str) for entry in content[kind]}) > 1:
            raise ValueError(f"{path}: {kind}: some ids are strings and some are numbers: give all the same type")
    for image in content["images"]:
        image.update(height=int(image["height"]), width=int(image["width"]))
    _prepare_objects(content, path)
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _prepare_objects(content: dict[str, Any], path: str | Path) -> None:
    outlines = Outlines(path)
    images = {image["id"]: image for image in content["images"]}
    entries = content["annotations"]
    renumber = any(isinstance(entry["id"], str) or entry["id"] < 0 for entry in entries)
    for begin in range(0, len(entries), _CHECKED_AT_ONCE):
        some = entries[begin : begin + _CHECKED_AT_ONCE]
        masks = [entry.get("segmentation") for entry in some if entry["image_id"] in images]
        are_valid = outlines.spend_all([mask for mask in masks if mask and isinstance(mask, list)])
        for number, entry in enumerate(some, begin + 1):
            where = f"{path}: annotation {entry['id']}"
            if entry["id"] == 0:
                raise ValueError(f"{where}: pycocotools uses this id for 'no match': number annotations from 1")
            _check_box(entry, where)
            entry["iscrowd"] = int(bool(entry.get("iscrowd")))
            mask = entry.get("segmentation")
            if mask and entry["image_id"] in images and not (are_valid and isinstance(mask, list)):
                check_segmentation(mask, images[entry["image_id"]], where)
                outlines.spend(mask, where)
            if renumber:
                entry["id"] = number


def read_annotations(path: str | Path) -> dict[str, Any]:
    """Read COCO annotations and check what a training would fail on or misread; what MMDetection loads is no error.

    Objects whose image or category the file does not list are not an error: all readers leave them out. Nor is a file
    without annotations, such as COCO's for its test images.

    Args:
        path: The file.

    Returns:
        The file's content, with the lists 'images' and 'categories', and 'annotations' if the file has them.

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
    if not isinstance(content, dict) or not all(isinstance(content.get(kind, []), list) for kind in kinds):
        raise ValueError(f"{path}: is not a file of COCO annotations: {', '.join(kinds)} are not lists")
    if "images" not in content or "categories" not in content:
        raise ValueError(f"{path}: is not a file of COCO annotations: it needs the lists images and categories")
    for kind in kinds:
        _check_ids(content.get(kind, []), f"{path}: {kind}")
    for category in content["categories"]:
        if not isinstance(category.get("name"), str | int | float):
            raise ValueError(f"{path}: category {short(category['id'])} has no name")
    for image in content["images"]:
        _check_image(image, f"{path}: image {short(image['id'])}")
    for entry in content.get("annotations", []):
        where = f"{path}: annotation {short(entry['id'])}"
        _check_references(entry, where)
        if not entry.get("ignore"):  # which MMDetection leaves out before it looks at the box
            _check_box(entry, where)
    return content


def _check_ids(entries: list[Any], where: str) -> None:
    """Refuse duplicate ids, and ids that are neither integers nor strings."""
    seen = set()
    for number, entry in enumerate(entries):
        own: Any = entry.get("id") if isinstance(entry, dict) else None
        if not _is_id(own):
            raise ValueError(f"{where}: entry {number} has the id {short(own)}: give an integer below 2^53, or a text")
        if own in seen:
            raise ValueError(f"{where}: the id {short(own)} is used twice")
        seen.add(own)


def _is_id(value: Any) -> bool:
    """Whether a value is a string or an integer, which may be written as 1.0."""
    return isinstance(value, str) or (is_number(value) and abs(value) < _HIGHEST_ID and value == int(value))


def _check_image(image: Mapping[str, Any], where: str) -> None:
    for side in ("height", "width"):
        if not is_number(image.get(side)) or not 1 <= image[side] <= LONGEST_SIDE:
            raise ValueError(f"{where} has {side}={short(image.get(side))}: give pixels from 1 to {LONGEST_SIDE}")
    name = image.get("file_name", "")
    if not isinstance(name, str) or "\0" in name:
        raise ValueError(f"{where} has file_name={short(name)}, which is not a file's name")


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


def _check_references(entry: Mapping[str, Any], where: str) -> None:
    image: Any = entry.get("image_id")
    category: Any = entry.get("category_id")
    if not _is_id(image) or not _is_id(category):
        raise ValueError(f"{where} has image_id={short(image)}, category_id={short(category)}: give the ids of both")
    crowd: Any = entry.get("iscrowd")
    if crowd is not None and not isinstance(crowd, bool | int | float):
        raise ValueError(f"{where} has iscrowd={short(crowd)}: give 0 or 1")  # the text "0" would be a crowd


def _check_box(entry: Mapping[str, Any], where: str) -> None:
    if not are_numbers(entry.get("bbox"), 4) or not are_numbers([entry.get("area")]):
        raise ValueError(
            f"{where} has an invalid box or area: {short(entry.get('bbox'))}, {short(entry.get('area'))}: give finite "
            "numbers"
        )
