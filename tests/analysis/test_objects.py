"""A sheet's columns are the objects of an image, the same ones in all networks, explained where their size fits."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from places import Tool
from planted import picture, planted

pytestmark = pytest.mark.skipif(importlib.util.find_spec("captum") is None, reason="captum is not installed")
CAM = "analysis_tools/visualize_cam.py"
A, B, C = (0, 0, 64, 64), (128, 0, 192, 64), (192, 64, 256, 128)  # boxes in pixels of the 128 x 256 input


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "objects.csv").open() as file:
        return list(csv.DictReader(file))


def coco(path: Path, objects: list, height: int = 128, width: int = 256) -> Path:
    """Annotations of one image, photo.png: boxes and categories."""
    annotations = [
        dict(id=i, image_id=1, category_id=kind, bbox=[x, y, w, h], area=w * h, iscrowd=0)
        for i, (x, y, w, h, kind) in enumerate(objects, 1)
    ]
    images = [dict(id=1, file_name="photo.png", height=height, width=width)]
    categories = [dict(id=7, name="star"), dict(id=3, name="cell")]
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return picture(tmp_path / "photo.png", 128, 256, [(0, 0, 256, 128)])


def test_a_column_is_one_object_in_all_networks(photo: Path, tool: Tool, tmp_path: Path) -> None:
    # Each sees one object better than the other does, the second one with a low score and another box; and it sees
    # one more, and another class in the place of the first object.
    one = planted(tmp_path, "one", objects=[[*A, 0, 0.9], [*B, 0, 0.6]])
    shifted = (128, 0, 192, 96)
    other = planted(tmp_path, "other", objects=[[*shifted, 0, 0.8], [*A, 1, 0.5], [*C, 1, 0.4], [*A, 0, 0.2]])
    options = ["--name", "one", "--variant", "other", *other, "--out-dir", tmp_path / "out"]
    assert tool(CAM, *one, photo, *options)[0] == 0
    found = {(row["network"], row["object"]): (row["class"], row["score"]) for row in rows_of(tmp_path / "out")}
    assert found == {
        ("one", "1"): ("cell", "0.9000"),
        ("other", "1"): ("cell", "0.2000"),
        ("one", "2"): ("cell", "0.6000"),
        ("other", "2"): ("cell", "0.8000"),
        ("one", "3"): ("star", ""),
        ("other", "3"): ("star", "0.5000"),
        ("one", "4"): ("star", ""),
        ("other", "4"): ("star", "0.4000"),
    }


def test_columns_of_the_annotations(photo: Path, tool: Tool, tmp_path: Path) -> None:
    # A detection belongs to one object: the cell in the place of B, not the one that overlaps with it, too.
    truth = coco(
        tmp_path / "truth.json",
        [(128, 0, 64, 80, 3), (128, 0, 64, 64, 3), (0, 0, 32, 32, 7), (192, 64, 64, 64, 7), (60, 60, 0, 8, 3)],
    )
    network = planted(tmp_path, "one", objects=[[*B, 0, 0.9], [*C, 0, 0.8], [*C, 1, 0.1]])
    options = ["--annotations", truth, "--name", "one", "--out-dir", tmp_path / "out"]
    status, printed, _ = tool(CAM, *network, photo, *options)
    assert (status, printed) == (0, f"1 sheets in {tmp_path / 'out'}\n")
    found = [(row["object"], row["class"], row["score"], row["left"]) for row in rows_of(tmp_path / "out")]
    assert found == [
        ("1", "cell", "", ""),  # the largest cell
        ("2", "star", "0.1000", "192.0"),  # the largest star
        ("3", "cell", "0.9000", "128.0"),
        ("4", "star", "", ""),
    ]


def test_only_some_classes(photo: Path, tool: Tool, tmp_path: Path) -> None:
    network = planted(tmp_path, "one", objects=[[*A, 0, 0.9], [*B, 1, 0.6]])
    assert tool(CAM, *network, photo, "--classes", "star", "--out-dir", tmp_path / "out")[0] == 0
    assert [row["class"] for row in rows_of(tmp_path / "out")] == ["star"]


def test_an_object_is_explained_in_the_layer_that_fits_its_size(tool: Tool, tmp_path: Path) -> None:
    # In the network's input, half as large as the image, the sides are 8, 16, 32, 64 and 128 pixels.
    sides = [8, 16, 32, 64, 128]
    boxes = [[0, 0, side, side, 0, 0.9 - number / 10] for number, side in enumerate(sides)]
    photo = picture(tmp_path / "photo.png", 256, 512, [(0, 0, 512, 256)])
    network = planted(tmp_path, "one", objects=boxes)
    assert tool(CAM, *network, photo, "--top", 5, "--out-dir", tmp_path / "out")[0] == 0
    found = [(row["right"], row["layer"], row["stride"]) for row in rows_of(tmp_path / "out")]
    assert found == [
        ("16.0", "backbone.layer1.1", "4"),
        ("32.0", "backbone.layer1.1", "4"),
        ("64.0", "backbone.layer2.1", "8"),
        ("128.0", "backbone.layer3.1", "16"),
        ("256.0", "backbone.layer4.1", "32"),
    ]
    options = ["--top", 5, "--layer", "backbone.layer3.1", "--out-dir", tmp_path / "named"]
    assert tool(CAM, *network, photo, *options)[0] == 0
    assert {row["layer"] for row in rows_of(tmp_path / "named")} == {"backbone.layer3.1"}


def test_invalid_requests_are_one_sentence(photo: Path, tool: Tool, tmp_path: Path) -> None:
    network = planted(tmp_path, "one", objects=[[*A, 0, 0.2]])
    classifier = planted(tmp_path, "classifier", "PlantedClassifier", channel=3)
    truth = coco(tmp_path / "truth.json", [(0, 0, 64, 64, 3)])
    empty = coco(tmp_path / "empty.json", [])
    small = coco(tmp_path / "small.json", [(0, 0, 64, 64, 3)], height=64)
    other = tmp_path / "other.json"
    other.write_text(truth.read_text().replace('"star"', '"moon"').replace('"cell"', '"sun"'))
    elsewhere = picture(tmp_path / "elsewhere.png", 128, 256, [])
    loose = ["--threshold", 0]
    cases: list[tuple[list[Any], str]] = [
        ([photo], "photo.png: nothing is found with a score of 0.3 or more: lower --threshold"),
        ([photo, "--classes", "cell"], "nothing of class cell is found with a score of 0.3 or more"),
        ([photo, "--classes", "moon"], "there is no class moon: the classes are cell, star"),
        ([photo, "--annotations", empty], "photo.png: no object is annotated in this image"),
        ([photo, "--annotations", truth, "--classes", "star"], "photo.png: no object of class star is annotated"),
        ([photo, "--annotations", small], "photo.png: has 128 x 256 pixels (height x width), and 64 x 256"),
        ([elsewhere, "--annotations", truth], "elsewhere.png: is not one of the annotated images"),
        (
            [photo, "--annotations", other],
            "the classes of the annotations are moon, sun, and those of the networks cell, star",
        ),
        ([photo, *loose, "--layer", "backbone.layer9"], "there is no layer 'backbone.layer9'; similar names are"),
        ([photo, *loose, "--layer", "unused"], "layer 'unused' does not influence the score"),
        ([photo, *loose, "--layer", "backbone"], "layer 'backbone' does not return a map of the image"),
        ([photo, *loose, "--layer", "data_preprocessor"], "layer 'data_preprocessor' runs 0 times for an image"),
        ([photo, "--variant", "two", *classifier], "some of the networks are classifiers and some are detectors"),
        ([photo, "--name", "two", "--variant", "two", *network], "several networks have the name 'two'"),
    ]
    for arguments, message in cases:
        status, _, errors = tool(CAM, *network, *arguments, "--out-dir", tmp_path / "out")
        lines = [line for line in errors.splitlines() if "visualize_cam: " in line]
        assert status == 1, message
        assert len(lines) == 1
        assert message in lines[0]
    status, _, errors = tool(CAM, *classifier, photo, "--annotations", truth)
    assert status == 1
    assert "annotations of boxes are for detectors" in errors


def test_classifiers_with_other_crops_share_a_sheet(tool: Tool, tmp_path: Path) -> None:
    photo = picture(tmp_path / "photo.png", 100, 200, [(0, 0, 200, 100)])
    one = planted(tmp_path, "one", "PlantedClassifier", channel=3)
    crop = "pipeline.insert(1, dict(type='CenterCrop', crop_size=(64, 64)))\n"
    other = planted(tmp_path, "other", "PlantedClassifier", crop, channel=4)
    options = [
        "--variant",
        "other",
        *other,
        "--threshold",
        0,
        "--layer",
        "backbone.conv",
        "--out-dir",
        tmp_path / "out",
    ]
    assert tool(CAM, *one, photo, *options)[0] == 0
    assert [(row["network"], row["class"]) for row in rows_of(tmp_path / "out")] == [
        *(("one", name) for name in ("cell", "star")),
        *(("other", name) for name in ("cell", "star")),
    ]
    assert cv2.imread(str(tmp_path / "out" / "photo.png")) is not None


def test_a_preprocessor_beside_the_model_prepares_the_image(tool: Tool, tmp_path: Path) -> None:
    """MMPretrain's configs have it there, and MMEngine's runner gives it to the model."""
    photo = tmp_path / "red.png"
    cv2.imwrite(str(photo), np.full((64, 64, 3), (0, 0, 255), np.uint8))
    swapped = "data_preprocessor = dict(type='SwappedPreprocessor')"
    found = []
    for name, more in (("as it is", ""), ("swapped", swapped)):
        network = planted(tmp_path, name, "PlantedClassifier", more, channel=3)
        options = ["--threshold", 0, "--layer", "backbone.conv", "--out-dir", tmp_path / f"of {name}"]
        assert tool(CAM, *network, photo, *options)[0] == 0
        found.append({row["class"]: float(row["score"]) for row in rows_of(tmp_path / f"of {name}")})
    assert found[0]["cell"] > 0.6 > 0.4 > found[1]["cell"]


def test_annotated_objects_of_real_images(bccd: Path, tool: Tool, tmp_path: Path) -> None:
    content = json.loads((bccd / "annotations" / "instances_val.json").read_text())
    image = content["images"][3]
    names = {category["id"]: category["name"] for category in content["categories"]}
    expected = {names[one["category_id"]] for one in content["annotations"] if one["image_id"] == image["id"]}
    network = planted(tmp_path, "one", objects=[[*A, 0, 0.9]])
    text = network[0].read_text().replace("('cell', 'star')", "('WBC', 'RBC', 'Platelets')")
    network[0].write_text(text)
    options = ["--annotations", bccd / "annotations" / "instances_val.json", "--out-dir", tmp_path / "out"]
    assert tool(CAM, *network, bccd / "images" / image["file_name"], *options, "--top", len(expected))[0] == 0
    assert {row["class"] for row in rows_of(tmp_path / "out")} == expected
