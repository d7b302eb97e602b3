"""The gates are those that the output was multiplied by, and a single group has the output of its channels only."""

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from places import CONFIGS, DEMO, Tool
from planted import picture, planted

from sa_mmdet.analysis import gate_plots
from sa_mmdet.analysis.gates import gates_of, group_scores, only_group
from sa_mmdet.analysis.network import Network, Scores
from sa_mmdet.attention import ShuffleAttention


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights and an image."""
    root = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    model: Any = MODELS.build(Config.fromfile(DEMO).model)
    for name, parameter in model.named_parameters():
        if ".sa." in name:
            torch.nn.init.normal_(parameter)
    torch.save(model.state_dict(), root / "weights.pth")
    cv2.imwrite(str(root / "photo.png"), np.random.default_rng(0).integers(0, 255, (90, 150, 3), np.uint8))
    return root / "weights.pth", root / "photo.png"


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_gates_are_what_the_output_was_multiplied_by(shuffle: bool) -> None:
    module = ShuffleAttention(32, groups=4, shuffle=shuffle)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 32, 5, 6)
    channel, spatial = module.gates(x)
    assert channel.shape == (2, 4, 4, 1, 1)
    assert spatial.shape == (2, 4, 4, 5, 6)
    gates = torch.stack((channel.expand_as(spatial), spatial), 2).reshape(2, 32, 5, 6)
    expected = x * gates
    if shuffle:
        expected = torch.nn.functional.channel_shuffle(expected, 2)
    torch.testing.assert_close(module(x), expected)


def test_the_gates_of_all_layers_are_found_and_the_model_is_not_changed(made: tuple[Path, Path]) -> None:
    network = Network(DEMO, made[0])
    _, _, image = network.read(made[1])
    before = network.model.backbone(image)
    found = gates_of(network, image)
    assert [gates.layer for gates in found] == [f"backbone.layer{s}.{b}.sa" for s in range(1, 5) for b in range(2)]
    assert all(0 <= gates.spatial.min() < gates.spatial.max() <= 1 for gates in found)
    for one, other in zip(before, network.model.backbone(image), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shuffled", [True, False])
def test_the_single_groups_add_up_to_the_output(shuffled: bool) -> None:
    module = ShuffleAttention(32, groups=4)
    x = torch.randn(1, 32, 5, 6)
    parts = []
    for group in range(4):
        with only_group(module, group, shuffled):
            parts.append(module(x))
    torch.testing.assert_close(sum(parts), module(x))
    if not shuffled:  # group 1 before the shuffle is the module's output for the channels of this group
        alone = torch.zeros_like(x)
        alone[:, 8:16] = x[:, 8:16]
        torch.testing.assert_close(parts[1], module(alone))


def test_scores_of_single_groups_are_those_of_the_masked_network(made: tuple[Path, Path]) -> None:
    network = Network(DEMO, made[0])
    _, sample, image = network.read(made[1])
    layer = "backbone.layer4.1.sa"
    calls: list[int] = []
    name, whole, alone = group_scores(network, sample, image, layer, True, lambda: calls.append(1))
    assert name in ("circle", "triangle", "square")
    assert len(alone) == len(calls) == 16
    assert 0 < whole <= 1
    assert all(0 <= score <= 1 for score in alone)
    assert len(set(alone)) > 1
    scores = Scores(network, sample)
    with torch.no_grad():
        assert float(scores(image).max()) == pytest.approx(whole)  # the mask was removed


def test_the_tool_writes_plots_and_tables(made: tuple[Path, Path], tool: Tool, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"none")
    options = ["--groups", "--layer", "backbone.layer2.0.sa", "--out-dir", tmp_path / "out"]
    status, printed, errors = tool("analysis_tools/visualize_attention.py", DEMO, *made, bad, *options)
    assert status == 1
    assert "1 images in" in printed
    assert f"skipped {bad}: is not a readable image" in errors
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"photo_{n}" for n in ("channel.png", "gates.csv", "groups.csv", "groups.png", "spatial.png")]
    with (tmp_path / "out" / "photo_gates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 * 2 * 16
    assert all(0 <= float(r["minimum"]) <= float(r["mean"]) <= float(r["maximum"]) <= 1 for r in rows)
    with (tmp_path / "out" / "photo_groups.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 16


def test_noise_does_not_look_like_an_effect(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Attention as it is initialised has one value for all gates, and all groups with nothing in them the same score.
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(gate_plots, "save_figure", lambda figure, path: drawn.update({path.stem: figure}))
    photo = picture(tmp_path / "photo.png", 64, 64, [(0, 0, 64, 64)])
    network = planted(tmp_path, "one", "PlantedClassifier", channel=0)
    assert tool("analysis_tools/visualize_attention.py", *network, photo, "--groups", "--out-dir", tmp_path)[0] == 0
    low, high = drawn["photo_groups"].axes[0].get_ylim()
    assert low == 0
    assert high >= 1
    for name in ("photo_channel", "photo_spatial"):
        ranges = [image.get_clim() for axes in drawn[name].axes for image in axes.images if image.get_array().ndim == 2]
        assert ranges
        assert all(high - low >= 0.099 for low, high in ranges)


def test_invalid_requests_are_refused(made: tuple[Path, Path], tool: Tool, tmp_path: Path) -> None:
    name = "analysis_tools/visualize_attention.py"
    status, _, errors = tool(name, DEMO, *made, "--layer", "backbone.layer1.0")
    assert status == 1
    assert "no shuffle attention has the name 'backbone.layer1.0'; give one of backbone.layer1.0.sa" in errors
    plain = CONFIGS / "retinanet" / "retinanet_r50_fpn_1x_coco.py"
    torch.save(MODELS.build(Config.fromfile(plain).model).state_dict(), tmp_path / "plain.pth")
    status, _, errors = tool(name, plain, tmp_path / "plain.pth", made[1])
    assert status == 1
    assert "RetinaNet has no shuffle attention" in errors
