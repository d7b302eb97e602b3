"""Detections as other tools write them, brought into COCO's result format where it is certain what they mean.

Known forms: fields beside COCO's own, empty boxes or masks, polygons; ids that are written as text or as 7.0; names of
files in place of the images' ids, as tools write them that only see a folder; names of classes in place of their ids;
and a whole data set as COCO's annotations have it, whose own lists say what its ids mean.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pycocotools import mask as masks
from pycocotools.coco import COCO

from sa_mmdet.messages import short

from .outlines import Outlines
from .values import check_segmentation, is_number

_FIELDS = ("image_id", "category_id", "score", "bbox", "segmentation")
_REGIONS = ("bbox", "segmentation")
Names = Mapping[Any, Any]  # what each id stands for


def plain_entries(content: Any, coco: COCO, path: str | Path) -> list[Any]:
    """The detections of a result file with the annotations' ids and COCO's fields alone.

    Args:
        content: What the file holds.
        coco: The annotations.
        path: The file, which errors name.

    Returns:
        The detections; what is invalid otherwise is left as it is.

    Raises:
        ValueError: The file holds no list of detections, its ids can mean two things, or it says that they mean other
            images or classes than in the annotations.
    """
    entries, own = _listed(content, path)
    if not all(isinstance(entry, dict) for entry in entries):
        return entries
    entries = [entry if _is_plain(entry) else _cleaned(entry) for entry in entries]
    images = {key: image.get("file_name") for key, image in coco.imgs.items()}
    classes = {key: category["name"] for key, category in coco.cats.items()}
    for field, known, kind, spellings in (
        ("image_id", images, "images", _file_names),
        ("category_id", classes, "categories", _class_names),
    ):
        given = {entry.get(field) for entry in entries if isinstance(entry.get(field), str | int | float)}
        meant = _meanings(given, known, own.get(kind, {}), spellings, f"{path}: {field}")
        for entry in entries if meant else ():
            if isinstance(entry.get(field), str | int | float):
                entry[field] = meant.get(entry[field], entry[field])
    return entries


def compressed(segmentation: Any, image: Mapping[str, Any], outlines: Outlines, where: str) -> Any:
    """A mask as a compressed run-length code, from polygons or from a code whose counts are a list; others as they are.

    Args:
        segmentation: The mask.
        image: The image's entry, with its height and width.
        outlines: What the file's polygons may cost.
        where: The file and the entry, which errors name.

    Raises:
        ValueError: The polygons or counts are invalid.
    """
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if not isinstance(segmentation, list) and not isinstance(counts, list):
        if isinstance(counts, str) and counts.startswith(("b'", 'b"')):
            raise ValueError(
                f"{where} has the text of Python's bytes as counts, {short(counts, 20)}: write them decoded"
            )
        return segmentation
    check_segmentation(segmentation, image, where)
    outlines.spend(segmentation, where)
    code = masks.frPyObjects(segmentation, image["height"], image["width"])
    if isinstance(code, list):
        code = masks.merge(code)
    return dict(size=[image["height"], image["width"]], counts=code["counts"].decode())


def _listed(content: Any, path: str | Path) -> tuple[list[Any], dict[str, Names]]:
    """The list of detections, and what the file itself says about its ids: names of files and of classes."""
    if isinstance(content, list):
        return content, {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a list of detections, but holds a {type(content).__name__}")
    lists = {key: value for key, value in content.items() if isinstance(value, list)}
    found = [value for value in lists.values() if any(isinstance(one, dict) and "image_id" in one for one in value)]
    if not found and lists.get("annotations") == []:
        found = [[]]
    if len(found) != 1:
        raise ValueError(
            f"{path}: must hold a list of detections, but holds a dict with {len(found)} of them: give one alone"
        )
    if any(isinstance(one, dict) and "score" not in one for one in found[0][:1]):
        raise ValueError(f"{path}: its entries have no score: give detections, not annotations")
    named: dict[str, Names] = {}
    for kind, field in (("images", "file_name"), ("categories", "name")):
        entries = [one for one in lists.get(kind, []) if isinstance(one, dict) and isinstance(one.get(field), str)]
        named[kind] = {one["id"]: one[field] for one in entries if isinstance(one.get("id"), str | int | float)}
    return found[0], named


def _is_plain(entry: Mapping[str, Any]) -> bool:
    return all(key in _FIELDS for key in entry) and all(entry.get(key, True) for key in _REGIONS)


def _cleaned(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in _FIELDS if key in entry and (entry[key] or key not in _REGIONS)}


def _meanings(
    given: set[Any], known: Names, own: Names, spellings: Callable[[Any], list[Any]], where: str
) -> dict[Any, Any]:
    """The annotations' id for each id of a file; empty if they are the same.

    Args:
        given: The file's ids.
        known: The annotations' ids, and what they stand for.
        own: What the file itself says that its ids stand for.
        spellings: How a file may write a name, the most exact first.
        where: The file and the field, which errors name.
    """
    by_name = _unique(known, spellings)
    if given <= set(own) and given and by_name:
        named = {value: _first(by_name, spellings(own[value])) for value in given}
        for value, meant in named.items():
            if meant is None:
                raise ValueError(
                    f"{where} {short(value)} is {short(own[value])}, which the annotations do not have: do these "
                    "results belong to other annotations?"
                )
        return named
    if given <= set(known):
        return {}
    as_names = {value: _first(by_name, [value, *spellings(value)]) for value in given}
    as_numbers = {value: _number(value, known) for value in given}
    found = [meant for meant in (as_names, as_numbers) if None not in meant.values()]
    if len(found) == 2 and as_names != as_numbers:
        value = next(value for value in given if as_names[value] != as_numbers[value])
        raise ValueError(f"{where} {short(value)} can be an id and a name: write the annotations' ids")
    return found[0] if found else {}


def _file_names(name: Any) -> list[Any]:
    """How tools write an image without an id: its file, with or without folder and ending; a number as a number."""
    if not isinstance(name, str) or not name:
        return []
    path = Path(name)
    stem = [int(path.stem)] if path.stem.isdecimal() and len(path.stem) < 16 else []
    return [name, path.name, path.stem, *stem]


def _class_names(name: Any) -> list[Any]:
    """How tools write the name of a class."""
    return [name, name.lower()] if isinstance(name, str) else [name]


def _unique(known: Names, spellings: Callable[[Any], list[Any]]) -> dict[Any, Any]:
    """The id of each spelling that stands for one id alone."""
    found: dict[Any, set[Any]] = {}
    for key, name in known.items():
        for spelling in spellings(name):
            found.setdefault(spelling, set()).add(key)
    return {spelling: next(iter(keys)) for spelling, keys in found.items() if len(keys) == 1}


def _first(by_name: Mapping[Any, Any], spellings: list[Any]) -> Any:
    return next((by_name[spelling] for spelling in spellings if spelling in by_name), None)


def _number(value: Any, known: Names) -> Any:
    """The id that a number as text, or a text of a number, stands for; None if there is none."""
    if isinstance(value, str):
        number: Any = int(value) if value.strip().isdecimal() and len(value) < 16 else None
    else:
        number = str(int(value)) if is_number(value) and abs(value) < 2**53 and value == int(value) else None
    return value if value in known else number if number in known else None
