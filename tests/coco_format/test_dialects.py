"""Result files in the forms in which tools write them: judged as COCO's own form, or refused with the way out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_coco import detections, made_up
from places import Tool

TOOL = "analysis_tools/compare_results.py"
Entry = dict[str, Any]


def truth_with_names() -> Entry:
    """Annotations whose images have ids that differ from the numbers in their names."""
    truth = made_up(12)
    for image in truth["images"]:
        image["file_name"] = f"{image['id'] + 100:012}.jpg"
    return truth


def boxes(truth: Entry) -> list[Entry]:
    return [{key: value for key, value in one.items() if key != "segmentation"} for one in detections(truth, 0.1)]


def each(**changes: Callable[[Entry], Any]) -> Callable[[Entry, list[Entry]], list[Entry]]:
    return lambda truth, found: [one | {key: change(one) for key, change in changes.items()} for one in found]


def name_of(truth: Entry, image: int) -> str:
    return next(one["file_name"] for one in truth["images"] if one["id"] == image)


def as_yolo(truth: Entry, found: list[Entry]) -> list[Entry]:
    """Ultralytics': the images are the numbers in their names, or the names themselves."""
    return [one | dict(image_id=int(Path(name_of(truth, one["image_id"])).stem)) for one in found]


def as_exported(truth: Entry, found: list[Entry]) -> Entry:
    """FiftyOne's: a data set with ids of its own, in which only names of files and classes are the same."""
    images = [dict(id=1000 + one["id"], file_name=f"data/{one['file_name']}") for one in truth["images"]]
    categories = [dict(id=one["id"] - 1, name=one["name"]) for one in truth["categories"]]
    entries = [
        dict(id=i, image_id=1000 + one["image_id"], category_id=one["category_id"] - 1, bbox=one["bbox"], area=3.0,
             score=one["score"], iscrowd=0, segmentation=[])
        for i, one in enumerate(found)
    ]  # fmt: skip
    return dict(info={}, licenses=[], images=images, categories=categories, annotations=entries)


FORMS: dict[str, Callable[[Entry, list[Entry]], Any]] = {
    "numbers of other types": each(
        category_id=lambda one: float(one["category_id"]), image_id=lambda one: float(one["image_id"])
    ),
    "ids as text": each(image_id=lambda one: str(one["image_id"]), category_id=lambda one: str(one["category_id"])),
    "names of classes": each(category_id=lambda one: f"Kind {one['category_id']}"),
    "numbers in the files' names": as_yolo,
    "names of files": lambda truth, found: [one | dict(image_id=name_of(truth, one["image_id"])) for one in found],
    "stems of files": lambda truth, found: [
        one | dict(image_id=Path(name_of(truth, one["image_id"])).stem) for one in found
    ],
    "names with other folders": lambda truth, found: [
        one | dict(image_id=f"val/{name_of(truth, one['image_id'])}".replace("jpg", "png")) for one in found
    ],
    "further fields": each(
        id=lambda one: 7, area=lambda one: 1.0, iscrowd=lambda one: 1, caption=lambda one: "cat", info=lambda one: {}
    ),
    "empty masks": each(segmentation=lambda one: []),
    "masks that are null": each(segmentation=lambda one: None),
    "a list in a dict": lambda truth, found: dict(info=dict(model="a"), predictions=found),
    "a data set": as_exported,
}  # fmt: skip


def compared(tool: Tool, folder: Path, truth: Entry, content: Any) -> tuple[int, Any, str]:
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(content if isinstance(content, str) else json.dumps(content))
    out = folder / "out.json"
    status, _, errors = tool(TOOL, folder / "truth.json", folder / "found.json", "--json", out)
    return status, json.loads(out.read_text())["tasks"] if status == 0 else None, errors


@pytest.mark.parametrize("name", FORMS)
def test_what_is_clearly_the_same_is_judged_alike(name: str, tool: Tool, tmp_path: Path) -> None:
    truth = truth_with_names()
    found = boxes(truth)
    _, expected, _ = compared(tool, tmp_path, truth, found)
    status, same, errors = compared(tool, tmp_path, truth, FORMS[name](truth, found))
    assert status == 0, errors
    assert same == expected
    assert expected["bbox"]["points"][0]["AP"] > 0


def test_scores_that_are_integers_and_a_mark_of_the_order_of_bytes(tool: Tool, tmp_path: Path) -> None:
    truth = truth_with_names()
    found = [one | dict(score=1.0) for one in boxes(truth)]
    _, expected, _ = compared(tool, tmp_path, truth, found)
    assert compared(tool, tmp_path, truth, [one | dict(score=1) for one in found])[1] == expected
    assert compared(tool, tmp_path, truth, "\ufeff" + json.dumps(found))[1] == expected


def test_text_for_numbers_in_the_annotations(tool: Tool, tmp_path: Path) -> None:
    truth = truth_with_names()
    found = boxes(truth)
    _, expected, _ = compared(tool, tmp_path, truth, found)
    for image in truth["images"]:
        image["id"] = str(image["id"])
    for one in truth["annotations"]:
        one["image_id"] = str(one["image_id"])
    assert compared(tool, tmp_path, truth, found)[1] == expected


def test_masks_as_polygons_and_as_lists_of_counts(tool: Tool, tmp_path: Path) -> None:
    truth = truth_with_names()
    found = []
    for one in truth["annotations"]:
        if not one["iscrowd"]:
            found.append(
                dict(
                    image_id=one["image_id"],
                    category_id=one["category_id"],
                    score=0.5,
                    segmentation=one["segmentation"],
                )
            )
    status, polygons, errors = compared(tool, tmp_path, truth, found)
    assert status == 0, errors
    assert polygons["segm"]["points"][0]["AP"] == pytest.approx(1)
    whole = dict(size=[480, 640], counts=[0, 480 * 640])
    status, lists, errors = compared(tool, tmp_path, truth, [one | dict(segmentation=whole) for one in found])
    assert status == 0, errors
    assert lists["segm"]["points"][0]["AP"] < 0.1


REFUSED: dict[str, tuple[Callable[[Entry, list[Entry]], Any], str]] = {
    "classes counted from 0": (
        each(category_id=lambda one: one["category_id"] - 1),
        "category 0, which the annotations do not have: theirs are 1 to 4; if these numbers count the classes from 0, "
        "write the ids",
    ),
    "images that are not there": (
        each(image_id=lambda one: f"other_{one['image_id']}.jpg"),
        "which the annotations do not have: do these results belong to other images?",
    ),
    "other names under the same ids": (
        lambda truth, found: as_exported(truth, found)
        | dict(images=[dict(id=1000 + i, file_name=f"b{i}.jpg") for i in range(20)]),
        "which the annotations do not have: do these results belong to other annotations?",
    ),
    "other classes under the same ids": (
        lambda truth, found: as_exported(truth, found) | dict(categories=[dict(id=i, name=f"b{i}") for i in range(20)]),
        "category_id 0 is 'b0', which the annotations do not have",
    ),
    "annotations": (lambda truth, found: truth, "its entries have no score: give detections, not annotations"),
    "two lists": (lambda truth, found: dict(a=found, b=found), "holds a dict with 2 of them: give one alone"),
    "text": (lambda truth, found: "boxes", "must hold a list of detections, but holds a str"),
    "an id that is a list": (each(image_id=lambda one: [1]), "entry 0 names the image [1]"),
    "an id that is null": (each(category_id=lambda one: None), "entry 0 names the category None"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_clear_is_refused(name: str, tool: Tool, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    truth = truth_with_names()
    status, _, errors = compared(tool, tmp_path, truth, json.dumps(change(truth, boxes(truth))))
    assert status == 1
    assert f"{tmp_path / 'found.json'}: " in errors
    assert message in errors
    assert len(errors.strip().splitlines()) == 1


def test_text_that_can_be_an_id_and_a_name_is_refused(tool: Tool, tmp_path: Path) -> None:
    truth = made_up(12)
    for image in truth["images"]:
        image["file_name"] = f"{13 - image['id']}.jpg"
    found = [one | dict(image_id=str(one["image_id"])) for one in boxes(truth)]
    status, _, errors = compared(tool, tmp_path, truth, found)
    assert status == 1
    assert "can be an id and a name: write the annotations' ids" in errors
