"""Cutting the objects of a data set in COCO's format out of their images, as a folder of images per class."""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from sa_mmdet.atomic_write import atomic_write
from sa_mmdet.coco_format import leads_inside, read_annotations
from sa_mmdet.messages import listed, short

from .splitting import drawn_order

_NO_NAMES = set('/\\\0:*?"<>|')  # what a folder's name cannot have on one system or another
_LONGEST = 200  # bytes of a name, of the 255 that file systems take

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


def crop_objects(
    annotations: str | Path,
    images: str | Path,
    out: str | Path,
    classes: Sequence[str] = (),
    min_size: int = 32,
    per_class: int | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Write OUT/<class>/<image>_<object's id>.png for each object; crowds and what is to be ignored are left out.

    Args:
        annotations: A file in COCO's format.
        images: The folder of its images.
        out: The folder to make; written atomically.
        classes: The names of the classes; all that have objects if empty.
        min_size: The shorter side of an object's box within its image, in pixels, that it needs at least.
        per_class: How many objects of a class at most, drawn at random; all if None.
        seed: The seed of the draw.

    Returns:
        For each class the number of its images.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: The annotations are invalid, have no such class or no such object, or a class's name cannot be that
            of a folder; or an image is missing, broken, elsewhere, or of another size than the annotations say.
    """
    if Path(out).exists():
        raise FileExistsError(f"{out} exists: remove it or name another folder")
    content = read_annotations(annotations)
    found = _objects(content, _chosen(content, classes, annotations), min_size)
    missing = [name for name in classes if name not in found]
    if missing or not found:
        raise ValueError(
            f"{annotations}: {listed(map(short, missing)) or 'no class'} has objects of {min_size} x {min_size} pixels "
            "or more: choose another --min-size or other --classes"
        )
    by_image: dict[Any, list[tuple[Box, str]]] = defaultdict(list)
    for name, own in found.items():
        for path in sorted(drawn_order(own, seed)[:per_class]):
            image, box = own[path]
            by_image[image].append((box, f"{name}/{path}"))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary:
        for name in found:
            (temporary / name).mkdir(parents=True)
        for image in content["images"]:
            if image["id"] in by_image:
                _cut(_read(image, images), by_image[image["id"]], temporary)
    return {name: min(len(own), per_class or len(own)) for name, own in found.items()}


def _chosen(content: Mapping[str, Any], classes: Iterable[str], path: str | Path) -> dict[Any, str]:
    """The names of the categories to cut, by their ids."""
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    unknown = [name for name in classes if name not in names.values()]
    if unknown:
        raise ValueError(
            f"{path}: has no class {listed(map(short, unknown))}: its classes are {listed(names.values())}"
        )
    chosen = {key: name for key, name in names.items() if not classes or name in classes}
    for name in chosen.values():
        odd = not name.strip() or name != name.strip() or name.startswith(".") or len(name.encode()) > _LONGEST
        if odd or not name.isprintable() or _NO_NAMES & set(name):
            raise ValueError(f"{path}: the class {short(name)} cannot be the name of a folder: rename it")
    return chosen


def _objects(
    content: Mapping[str, Any], names: Mapping[Any, str], min_size: int
) -> dict[str, dict[str, tuple[Any, Box]]]:
    """For each class that has objects their files' names, with the ids of their images and their boxes."""
    images = {image["id"]: image for image in content["images"]}
    found: dict[str, dict[str, tuple[Any, Box]]] = defaultdict(dict)
    for number, entry in enumerate(content.get("annotations", [])):
        image, name = images.get(entry["image_id"]), names.get(entry["category_id"])
        if image is None or name is None or entry.get("iscrowd") or entry.get("ignore"):
            continue
        left, top, width, height = entry["bbox"]
        box = (
            max(0, math.floor(left)),
            max(0, math.floor(top)),
            min(int(image["width"]), math.ceil(left + width)),
            min(int(image["height"]), math.ceil(top + height)),
        )
        if min(box[2] - box[0], box[3] - box[1]) >= min_size:
            key = f"n{number}" if isinstance(entry["id"], str) else int(entry["id"])
            found[name][f"{_stem(image)}_{key}.png"] = (image["id"], box)
    return {name: found[name] for name in sorted(found)}


def _stem(image: Mapping[str, Any]) -> str:
    """An image's name without its ending, of characters that no system minds."""
    stem = os.path.splitext(str(image.get("file_name", "")))[0]
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in stem)[-60:]


def _read(image: Mapping[str, Any], folder: str | Path) -> NDArray[Any]:
    """Read an image as a training does."""
    name = image.get("file_name", "")
    if not name or not leads_inside(name, folder):
        raise ValueError(f"image {short(image['id'])} has file_name={short(name)}, which is not inside of {folder}")
    path = os.path.join(folder, name)
    pixels = cv2.imread(path)
    if pixels is None:
        raise ValueError(f"{path}: is missing, or no image: check the folder of images")
    if pixels.shape[:2] != (image["height"], image["width"]):
        raise ValueError(
            f"{path}: has {pixels.shape[1]} x {pixels.shape[0]} pixels, the annotations say {image['width']} x "
            f"{image['height']}: give the images that were annotated"
        )
    return pixels


def _cut(pixels: NDArray[Any], parts: Iterable[tuple[Box, str]], folder: Path) -> None:
    for (left, top, right, bottom), name in parts:
        if not cv2.imwrite(str(folder / name), pixels[top:bottom, left:right]):
            raise OSError(f"cannot write {folder / name}: is the disk full?")
