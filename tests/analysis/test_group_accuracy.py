"""The accuracy by group of channels, of networks in which one known channel carries everything."""

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from places import DEMO, Tool
from planted import picture, planted

from sa_mmdet.analysis.gates import attention_layers
from sa_mmdet.analysis.network import Network
from sa_mmdet.analysis.shared_start import shared_start
from sa_mmdet.evaluation import group_plots

TOOL = "analysis_tools/accuracy_by_group.py"
BEFORE, AFTER, UNSHUFFLED = "before the shuffle", "after the shuffle", "without a shuffle"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven red images and a blue one, in folders of their classes."""
    for name, colour, count in (("cell", (0, 0, 255), 7), ("star", (255, 0, 0), 1)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(count):
            image = np.full((32, 64, 3), colour, np.uint8)
            cv2.imwrite(str(tmp_path / "images" / name / f"{number}.png"), image)
    return tmp_path / "images"


def values(path: Path) -> dict[tuple[str, str, str], float]:
    with (path / "groups.csv").open() as file:
        return {
            (row["network"], row["numbering"], row["group"] or row["channels"]): float(row["value"])
            for row in csv.DictReader(file)
        }


@pytest.mark.parametrize(("measure", "own", "others"), [("alone", 1, 0.875), ("removed", 0.875, 1)])
def test_the_group_with_the_channel_decides(
    measure: str, own: float, others: float, folder: Path, tool: Tool, tmp_path: Path
) -> None:
    # Channel 9 of 16 is in group 2 of 4. The shuffle lays the two halves of the channels between each other, channel
    # 8 + i to place 2 * i + 1: channel 9 comes to place 3, in group 0. With nothing class 0 wins, 7 of 8 are right.
    shuffled = planted(tmp_path, "shuffled", "PlantedClassifier", channel=9)
    plain = planted(tmp_path, "plain", "PlantedClassifier", channel=9, shuffle=False)
    options = ["--name", "SA", "--variant", "plain", *plain, "--measure", measure, "--images", folder]
    status, printed, _ = tool(TOOL, *shuffled, *options, "--out-dir", tmp_path / "out")
    assert status == 0
    groups = [("SA", BEFORE, 2), ("SA", AFTER, 0), ("plain", UNSHUFFLED, 2)]
    expected = {
        (name, numbering, str(group)): own if group == planted_group else others
        for name, numbering, planted_group in groups
        for group in range(4)
    }
    for name in ("SA", "plain"):
        expected |= {(name, "", "all groups"): 1.0, (name, "", "no group"): 0.875}
    assert values(tmp_path / "out") == expected
    assert "SA, backbone.sa, top-1 accuracy in percent: all groups 100.0, no group 87.5" in printed
    assert cv2.imread(str(tmp_path / "out" / "groups.png")) is not None


def test_the_axis_begins_at_zero(folder: Path, tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(group_plots, "save_figure", lambda figure, path: drawn.append(figure))
    network = planted(tmp_path, "one", "PlantedClassifier", channel=9)
    options = ["--images", folder, "--variant", "other", *network, "--out-dir", tmp_path / "out"]
    assert tool(TOOL, *network, *options)[0] == 0
    limits = [axes.get_ylim() for axes in drawn[0].axes]
    assert len(limits) == 2
    assert all(low == 0 and 100 <= high < 120 for low, high in limits)


def test_the_intervals_are_those_of_the_resampled_images(folder: Path, tool: Tool, tmp_path: Path) -> None:
    # Alone, any other group is wrong on 1 of 8 images: the difference is -k / 8, with k binomial, 8 draws at 1/8.
    network = planted(tmp_path, "one", "PlantedClassifier", channel=0)
    options = ["--images", folder, "--resamples", 4000, "--out-dir", tmp_path / "out"]
    assert tool(TOOL, *network, *options)[0] == 0
    with (tmp_path / "out" / "groups.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["numbering"] == BEFORE]
    # P(k > 3) = 1.1 %, P(k > 2) = 6.7 %, P(k = 0) = 34 %
    assert [(float(row["low"]), float(row["high"])) for row in rows] == [(0, 0), *[(-3 / 8, 0)] * 3]


def test_the_box_ap_of_detectors(tool: Tool, tmp_path: Path) -> None:
    # Each of two images has a cell, which is seen through the channel, and the second one a star, which is not. Before
    # each true one there is a false one: of the cells with a higher score, of the stars that of the first image. So the
    # precision is 1/2, or 0 where no cell is seen. The annotations have the classes in another order than the network.
    cell, star = [0, 0, 64, 64], [128, 0, 192, 64]
    content: dict[str, Any] = dict(
        categories=[dict(id=9, name="star"), dict(id=4, name="cell")], images=[], annotations=[]
    )
    for image, objects in ((1, [(4, cell)]), (2, [(4, cell), (9, star)])):
        picture(tmp_path / f"{image}.png", 128, 256, [(0, 0, 256, 128)])
        content["images"].append(dict(id=image, file_name=f"{image}.png", height=128, width=256))
        for category, (left, top, right, bottom) in objects:
            box = dict(bbox=[left, top, right - left, bottom - top], area=64 * 64, iscrowd=0)
            number = len(content["annotations"]) + 1
            content["annotations"].append(dict(id=number, image_id=image, category_id=category, **box))
    (tmp_path / "truth.json").write_text(json.dumps(content))
    constant = [[*star, 1, 0.9], [64, 64, 128, 128, 0, 0.95]]
    truth, folder = f"ann_file={str(tmp_path / 'truth.json')!r}", f"data_prefix=dict(img={str(tmp_path)!r})"
    more = f"test_dataloader['dataset'].update({folder})\ntest_evaluator = dict(type='CocoMetric', {truth})"
    network = planted(tmp_path, "one", more=more, objects=[[*cell, 0, 0.9]], constant=constant, channel=9)
    assert tool(TOOL, *network, "--out-dir", tmp_path / "out", "--resamples", 10)[0] == 0
    both, star_alone = 1 / 2, 1 / 4
    found = values(tmp_path / "out")
    expected = {("one", "", "all groups"): both, ("one", "", "no group"): star_alone}
    for numbering, planted_group in ((BEFORE, 2), (AFTER, 0)):
        for group in range(4):
            expected["one", numbering, str(group)] = both if group == planted_group else star_alone
    assert found == pytest.approx(expected)
    options = ["--annotations", tmp_path / "truth.json", "--images", tmp_path, "--limit", 1, "--resamples", 10]
    assert tool(TOOL, *network, *options, "--out-dir", tmp_path / "first")[0] == 0
    assert values(tmp_path / "first")["one", "", "all groups"] == pytest.approx(1 / 2)  # one image, no star


def test_parts_that_run_once_change_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = MODELS.build(Config.fromfile(DEMO).model)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    network = Network(DEMO, tmp_path / "weights.pth")
    image = torch.randn(1, 3, 128, 160)
    for name in ("backbone.layer3.1.sa", "backbone.layer1.0.sa"):
        bias: Any = attention_layers(network.model)[name].cbias
        with torch.no_grad():
            bias.data.add_(1)
            plain = network.model.extract_feat(image)
            bias.data.sub_(1)
            with shared_start(network.model, name):
                first = network.model.extract_feat(image)
                bias.data.add_(1)
                second = network.model.extract_feat(image)
            bias.data.sub_(1)
        for one, other in zip(plain, second, strict=True):
            torch.testing.assert_close(one, other)
        assert any(not torch.equal(one, other) for one, other in zip(first, second, strict=True))
    with torch.no_grad():
        for one, other in zip(first, network.model.extract_feat(2 * image), strict=True):
            assert not torch.allclose(one, other)  # nothing is kept


def test_invalid_requests_are_one_sentence(folder: Path, tool: Tool, tmp_path: Path) -> None:
    network = planted(tmp_path, "one", "PlantedClassifier", channel=0)
    detector = planted(tmp_path, "detector", objects=[[0, 0, 64, 64, 0, 0.9]])
    (tmp_path / "empty" / "cell").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (tmp_path / "three" / name).mkdir(parents=True)
    (folder / "cell" / "broken.png").write_bytes(b"none")
    cases: list[tuple[list[Any], str]] = [
        ([], "one.py: its test_dataloader does not say where the images are"),
        (["--images", tmp_path / "none"], "none: there is no such folder of images"),
        (["--images", tmp_path / "empty"], "empty: has no images in folders of classes (.jpg, "),
        (["--images", tmp_path / "three"], "three: has 3 folders, and the network 2 classes"),
        (["--images", folder], "broken.png: is not a readable image"),
        (["--images", folder, "--layer", "backbone.conv"], "no shuffle attention has the name 'backbone.conv'"),
        (["--images", folder, "--annotations", folder], "is a classifier, for which there are no annotations"),
        (["--images", folder, "--name", "a", "--variant", "a", *network], "several networks have the name 'a'"),
    ]
    for arguments, message in cases:
        status, _, errors = tool(TOOL, *network, *arguments)
        lines = [line for line in errors.splitlines() if "accuracy_by_group: " in line]
        assert status == 1, message
        assert len(lines) == 1
        assert message in lines[0]
    status, _, errors = tool(TOOL, *detector)
    assert status == 1
    assert "PlantedDetector has no shuffle attention" in errors
