"""Deletion and insertion, computed by a plain loop, of networks whose scores are known functions of known pixels."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from places import Tool
from planted import picture, planted
from scipy.ndimage import gaussian_filter

from sa_mmdet.analysis.activation_maps import ActivationMaps

pytestmark = pytest.mark.skipif(importlib.util.find_spec("captum") is None, reason="captum is not installed")
CAM = "analysis_tools/visualize_cam.py"
BOX = (64, 32, 128, 96)
FACTOR = 0.9
FIELDS = ("deletion", "random deletion", "insertion", "random insertion")


def score(pixels: NDArray[np.float64]) -> float:
    """The planted score: the mean brightness in the box, whose edges are multiples of 32."""
    left, top, right, bottom = BOX
    return FACTOR * float(pixels[top:bottom, left:right].mean())


def curve(start: NDArray[np.float64], end: NDArray[np.float64], heat: NDArray[np.float32], steps: int) -> list[float]:
    """The scores while pixels change from one image to the other, those with high values of the map first."""
    places = [(-float(heat[row, column]), row, column) for row in range(len(heat)) for column in range(heat.shape[1])]
    places.sort()
    current = start.copy()
    found = [score(current)]
    for step in range(steps):
        ends = [round((number / steps) ** 2 * len(places)) for number in (step, step + 1)]
        for _, row, column in places[ends[0] : ends[1]]:
            current[row, column] = end[row, column]
        found.append(score(current))
    return found


def the_area(values: list[float]) -> float:
    shares = [(number / (len(values) - 1)) ** 2 for number in range(len(values))]
    pairs = [(number, number + 1) for number in range(len(values) - 1)]
    return sum((shares[right] - shares[left]) * (values[left] + values[right]) / 2 for left, right in pairs)


@pytest.mark.parametrize("method", ["hirescam", "gradcam"])
def test_the_curves_are_those_of_a_plain_loop(method: str, tool: Tool, tmp_path: Path) -> None:
    # Inside of the box the brightness rises, and beside it there are bright pixels that do not matter. Detections of
    # another class in the same place, and of the same class elsewhere, must not count.
    pixels = np.zeros((128, 256, 3), np.uint8)
    pixels[32:96, 64:128] = np.linspace(60, 250, 64, dtype=np.uint8)[:, None]
    pixels[:, 200:] = 200
    cv2.imwrite(str(tmp_path / "photo.png"), pixels)
    constant = [[*BOX, 1, 0.95], [160, 32, 224, 96, 0, 0.99]]
    network = planted(tmp_path, "one", objects=[[*BOX, 0, FACTOR]], constant=constant)
    options = ["--faithfulness", "--steps", 16, "--method", method, "--out-dir", tmp_path / "out"]
    status, printed, _ = tool(CAM, *network, tmp_path / "photo.png", *options)
    assert status == 0
    with (tmp_path / "out" / "objects.csv").open() as file:
        [row] = [row for row in csv.DictReader(file) if row["left"] == "64.0" and row["class"] == "cell"]
    curves = json.loads((tmp_path / "out" / "curves.json").read_text())
    [own] = [one for one in curves if (str(one["object"]), one["class"]) == (row["object"], "cell")]

    maps = ActivationMaps(*network, method=method)
    look = maps.look(tmp_path / "photo.png")
    [seen] = [one for one in look.seen if one.box is not None and one.box[0] == 64 and one.name == "cell"]
    heat = maps.explain(look, seen).map
    image = pixels[..., 0].astype(float) / 255
    blurred = gaussian_filter(image, 64, mode="mirror")
    for name, start, end in (("deletion", image, 0 * image), ("insertion", blurred, image)):
        expected = curve(start, end, heat, 16)
        np.testing.assert_allclose(own[name], expected, atol=0.02)  # equal pixels of the map are in some order
        assert float(row[name]) == pytest.approx(the_area(own[name]), abs=1e-3)
    assert float(row["random deletion"]) == pytest.approx(the_area(own["random_deletion"]), abs=1e-3)
    assert float(row["random insertion"]) == pytest.approx(the_area(own["random_insertion"]), abs=1e-3)
    mean = printed.split("one: ")[1]
    assert mean.startswith("deletion ")
    assert mean.endswith("means over 3 objects\n")


def test_a_map_of_the_pixels_that_matter_beats_random_maps_which_lose_in_proportion(tool: Tool, tmp_path: Path) -> None:
    # The box is an eighth of the image. Deleting it first leaves the area 1/16; at random the score falls linearly.
    photo = picture(tmp_path / "photo.png", 128, 256, [BOX])
    network = planted(tmp_path, "one", objects=[[*BOX, 0, FACTOR]])
    options = ["--faithfulness", "--steps", 64, "--out-dir", tmp_path / "out"]
    assert tool(CAM, *network, photo, *options)[0] == 0
    with (tmp_path / "out" / "objects.csv").open() as file:
        [row] = list(csv.DictReader(file))
    found = {name: float(row[name]) for name in FIELDS}
    assert found["deletion"] == pytest.approx(FACTOR / 16, abs=0.01)
    assert found["random deletion"] == pytest.approx(FACTOR / 2, abs=0.15)
    curves = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert len(curves[0]["deletion"]) == 65
    assert curves[0]["random_deletion"][0] == pytest.approx(FACTOR)
    assert curves[0]["random_deletion"][-1] == 0
    blurred = curves[0]["insertion"][0]
    assert blurred < 0.5 * FACTOR  # the object is hard to see
    whole = FACTOR - (FACTOR - blurred) / 16
    assert found["insertion"] == pytest.approx(whole, abs=0.01)
    assert found["random insertion"] == pytest.approx((blurred + FACTOR) / 2, abs=0.2 * (FACTOR - blurred))


def test_a_map_of_nothing_has_the_areas_of_random_maps(tool: Tool, tmp_path: Path) -> None:
    # Brightness lowers the score, so the map is 0 everywhere. An order from above to below would delete the box first.
    box = (0, 0, 256, 32)
    photo = picture(tmp_path / "photo.png", 128, 256, [box])
    network = planted(tmp_path, "one", objects=[[*box, 0, -FACTOR]])
    options = ["--faithfulness", "--threshold", 0, "--out-dir", tmp_path / "out"]
    assert tool(CAM, *network, photo, *options)[0] == 0
    [row] = list(csv.DictReader((tmp_path / "out" / "objects.csv").open()))
    deletion, random_deletion, insertion, random_insertion = (float(row[name]) for name in FIELDS)
    assert deletion == pytest.approx(random_deletion, abs=0.1)
    assert deletion == pytest.approx(1 - FACTOR / 2, abs=0.15)
    assert insertion == pytest.approx(random_insertion, abs=0.1)


def test_classifiers_are_judged_by_their_probabilities(tool: Tool, tmp_path: Path) -> None:
    # Red against blue, mean over the whole image: deleting pixels takes the logit to 0, where both have 1/2.
    pixels = np.zeros((128, 256, 3), np.uint8)
    pixels[:, :128] = (0, 0, 255)
    cv2.imwrite(str(tmp_path / "photo.png"), pixels)
    network = planted(tmp_path, "one", "PlantedClassifier", channel=3)
    options: list[Any] = ["--faithfulness", "--layer", "backbone.conv", "--top", 1, "--steps", 8]
    assert tool(CAM, *network, tmp_path / "photo.png", *options, "--out-dir", tmp_path / "out")[0] == 0
    [curves] = json.loads((tmp_path / "out" / "curves.json").read_text())
    gate = 1 / (1 + np.exp(-1))  # of attention as it is initialised
    logits = [gate / 2 * max(0, 1 - 2 * (step / 8) ** 2) for step in range(9)]  # the red half goes first
    assert curves["class"] == "cell"
    np.testing.assert_allclose(curves["deletion"], 1 / (1 + np.exp(-np.array(logits))), atol=1e-3)
