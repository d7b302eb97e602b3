"""Cutting objects out of the images of a data set in COCO's format."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from places import Tool

TOOL = "dataset_converters/crop_objects.py"
WIDTH, HEIGHT = 80, 60


def pixels(path: Path) -> np.ndarray:
    found = cv2.imread(str(path))
    assert found is not None
    return found


def write(root: Path, **changes: Any) -> tuple[Path, Path]:
    """Two images whose pixels say where they are, with objects of two classes."""
    (root / "images" / "deep").mkdir(parents=True, exist_ok=True)
    names = ["one.png", "deep/two 2.png"]
    for number, name in enumerate(names):
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        image = np.stack([x, y, np.full_like(x, number)], -1).astype(np.uint8)
        assert cv2.imwrite(str(root / "images" / name), image)

    def entry(key: int, image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
        return dict(id=key, image_id=image, category_id=category, bbox=box, area=box[2] * box[3], iscrowd=0, **more)

    content = dict(
        images=[
            dict(id=number, file_name=name, width=WIDTH, height=HEIGHT) for number, name in enumerate(names, start=1)
        ],
        categories=[dict(id=7, name="teddy bear"), dict(id=3, name="cat"), dict(id=9, name="nothing")],
        annotations=[
            entry(11, 1, 7, [10, 5, 20, 30]),
            entry(12, 2, 7, [-5, 40.4, 30, 35]),  # leaves the image to the left and below
            entry(13, 2, 3, [60.5, 0.2, 12.3, 15.6]),
            entry(14, 1, 3, [0, 0, 80, 60]) | dict(iscrowd=1),
            entry(15, 1, 3, [0, 0, 80, 60], ignore=1),
            entry(16, 1, 3, [0, 0, 11, 60]),  # too narrow
            entry(17, 5, 3, [0, 0, 40, 40]),  # of no image
        ],
    )
    path = root / "annotations.json"
    path.write_text(json.dumps(content | changes))
    return path, root / "images"


def test_objects_become_images_of_their_pixels(tool: Tool, tmp_path: Path) -> None:
    status, said, errors = tool(TOOL, *write(tmp_path), "--out", tmp_path / "out", "--min-size", 12)
    assert status == 0, errors
    assert said == "cat: 1 images\nteddy bear: 2 images\n"
    found = {path.relative_to(tmp_path / "out").as_posix(): pixels(path) for path in tmp_path.rglob("out/*/*")}
    # Where each begins and ends: left, top, right, bottom, and the number of its image.
    expected = {
        "teddy bear/one_11.png": (10, 5, 29, 34, 0),
        "teddy bear/deep_two_2_12.png": (0, 40, 24, 59, 1),
        "cat/deep_two_2_13.png": (60, 0, 72, 15, 1),
    }
    assert set(found) == set(expected)
    for name, (left, top, right, bottom, number) in expected.items():
        assert found[name][0, 0].tolist() == [left, top, number]
        assert found[name][-1, -1].tolist() == [right, bottom, number]
        assert found[name].shape == (bottom - top + 1, right - left + 1, 3)


def test_classes_sizes_and_numbers_can_be_chosen(tool: Tool, tmp_path: Path) -> None:
    given = write(tmp_path)
    status, said, _ = tool(TOOL, *given, "--out", tmp_path / "a", "--min-size", 12, "--classes", "teddy bear")
    assert (status, said) == (0, "teddy bear: 2 images\n")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["teddy bear"]
    status, said, _ = tool(TOOL, *given, "--out", tmp_path / "b", "--min-size", 20, "--per-class", 1)
    assert (status, said) == (0, "teddy bear: 1 images\n")
    drawn = set()
    for seed in range(8):
        out = tmp_path / "drawn" / str(seed)
        for folder in (out, tmp_path / "again" / str(seed)):
            assert tool(TOOL, *given, "--out", folder, "--per-class", 1, "--min-size", 12, "--seed", seed)[0] == 0
        names = sorted(path.name for path in out.glob("*/*"))
        assert names == sorted(path.name for path in (tmp_path / "again" / str(seed)).glob("*/*"))
        drawn |= set(names)
    assert drawn == {"one_11.png", "deep_two_2_12.png", "deep_two_2_13.png"}


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, ["--classes", "dog"], "has no class 'dog': its classes are teddy bear, cat, nothing"),
        ({}, ["--classes", "nothing"], "'nothing' has objects of 32 x 32 pixels or more"),
        ({}, ["--min-size", 60], "no class has objects of 60 x 60 pixels or more"),
        (dict(categories=[dict(id=7, name="../away"), dict(id=3, name="cat")]), [], "the class '../away' cannot be"),
        (dict(categories=[dict(id=7, name=".."), dict(id=3, name="cat")]), [], "the class '..' cannot be the name"),
        (dict(categories=[dict(id=7, name=" "), dict(id=3, name="cat")]), [], "the class ' ' cannot be the name"),
        (
            dict(images=[dict(id=1, file_name="../x.png", width=WIDTH, height=HEIGHT)]),
            ["--min-size", 12],
            "image 1 has file_name='../x.png', which is not inside of",
        ),
        (
            dict(images=[dict(id=1, file_name="gone.png", width=WIDTH, height=HEIGHT)]),
            ["--min-size", 12],
            "gone.png: is missing, or no image",
        ),
        (
            dict(images=[dict(id=1, file_name="one.png", width=HEIGHT, height=WIDTH)]),
            ["--min-size", 12],
            "one.png: has 80 x 60 pixels, the annotations say 60 x 80: give the images that were annotated",
        ),
        (dict(annotations=[]), [], "no class has objects"),
        (dict(annotations=3), [], "is not a file of COCO annotations"),
    ],
)
def test_what_cannot_be_cut_is_named_and_nothing_is_left(
    changes: dict, options: list, message: str, tool: Tool, tmp_path: Path
) -> None:
    status, _, errors = tool(TOOL, *write(tmp_path, **changes), "--out", tmp_path / "out", *options)
    assert status == 2
    assert message in " ".join(errors.split())
    assert {path.name for path in tmp_path.iterdir()} == {"images", "annotations.json"}


def test_a_folder_that_is_there_is_kept(tool: Tool, tmp_path: Path) -> None:
    given = write(tmp_path)
    status, _, errors = tool(TOOL, *given, "--out", tmp_path / "images")
    assert status == 2
    assert "images exists: remove it or name another folder" in errors
    assert (tmp_path / "images" / "one.png").is_file()


def test_ids_that_are_texts_do_not_take_each_others_place(tool: Tool, tmp_path: Path) -> None:
    path, images = write(tmp_path)
    content = json.loads(path.read_text())
    for entry, key in zip(content["annotations"][:2], ("a/b", "a_b"), strict=True):
        entry.update(id=key, image_id=1)
    path.write_text(json.dumps(content))
    assert tool(TOOL, path, images, "--out", tmp_path / "out", "--min-size", 12)[0] == 0
    assert len(list((tmp_path / "out" / "teddy bear").iterdir())) == 2


def test_real_objects(coco128: Path, tool: Tool, tmp_path: Path) -> None:
    path = coco128 / "annotations" / "instances_train2017.json"
    given = (path, coco128 / "train2017", "--out", tmp_path / "out", "--classes", "person", "teddy bear", "cup")
    status, _, errors = tool(TOOL, *given, "--min-size", 1, "--per-class", 30)
    assert status == 0, errors
    content = json.loads(path.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    counts = Counter(names[entry["category_id"]] for entry in content["annotations"] if not entry["iscrowd"])
    assert {kind.name: len(list(kind.iterdir())) for kind in (tmp_path / "out").iterdir()} == {
        name: min(30, counts[name]) for name in ("person", "teddy bear", "cup")
    }
    boxes = {entry["id"]: entry["bbox"] for entry in content["annotations"]}
    for image in (tmp_path / "out" / "teddy bear").iterdir():
        height, width = pixels(image).shape[:2]
        box = boxes[int(image.stem.rpartition("_")[2])]
        assert 0 <= width - box[2] < 2
        assert 0 <= height - box[3] < 2
