"""Grad-CAM of the three families of detectors."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectors import TEST_PIPELINE
from mmdet.registry import MODELS
from mmengine.config import Config
from places import CONFIGS, DEMO, Tool

from sa_mmdet.analysis.activation_maps import ActivationMaps
from sa_mmdet.analysis.network import Scores, output_names

pytestmark = pytest.mark.skipif(importlib.util.find_spec("captum") is None, reason="captum is not installed")
RETINA = """
_base_ = "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py"
custom_imports = dict(imports=["sa_mmdet"])
model = dict(backbone=dict(type="AttentionResNet", attention=dict(type="SqueezeExcitation"), init_cfg=None))
"""
RETINA += TEST_PIPELINE


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Config and weights of each family, and an image."""
    root = tmp_path_factory.mktemp("networks")
    retina = root / "retina.py"
    retina.write_text(RETINA)
    configs = dict(mask=DEMO, faster=CONFIGS / "demo" / "faster-rcnn_sa-r18_fpn_bccd.py", retina=retina)
    found = {}
    for name, config in configs.items():
        torch.manual_seed(0)
        model: Any = MODELS.build(Config.fromfile(config).model)
        torch.save(model.state_dict(), root / f"{name}.pth")
        found[name] = (config, root / f"{name}.pth")
    photo = np.random.default_rng(0).integers(0, 255, (90, 150, 3), np.uint8)
    cv2.imwrite(str(root / "photo.png"), cv2.GaussianBlur(photo, (0, 0), 5))
    found["photo"] = (root / "photo.png", root / "photo.png")
    return found


@pytest.mark.parametrize(
    "family", ["mask", *(pytest.param(family, marks=pytest.mark.long) for family in ("faster", "retina"))]
)
def test_each_object_of_each_family_has_a_map(family: str, networks: dict[str, tuple[Path, Path]]) -> None:
    photo, found = ActivationMaps(*networks[family])(networks["photo"][0], top=6, threshold=0)
    assert photo.shape == (90, 150, 3)
    assert len(found) == 6
    assert found[0].score >= found[1].score >= found[5].score > 0
    for one in found:
        assert one.map.shape == (90, 150)
        assert np.isfinite(one.map).all()
        assert one.map.min() >= 0
        assert one.map.max() in (0, pytest.approx(1))
        assert one.box is not None
        assert 0 <= one.box[0] < one.box[2] <= 150
    assert any(one.map.max() > 0 for one in found)


@pytest.mark.parametrize("method", ["gradcam", pytest.param("hirescam", marks=pytest.mark.long)])
def test_the_map_is_the_gradient_times_the_activation(method: str, networks: dict[str, tuple[Path, Path]]) -> None:
    maps = ActivationMaps(*networks["faster"], layer="backbone.layer2.1", method=method)
    _, found = maps(networks["photo"][0], top=1, threshold=0)
    kept: dict[str, torch.Tensor] = {}
    layer = maps.network.layer("backbone.layer2.1")
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.update(out=output))
    _, sample, image = maps.network.read(networks["photo"][0])
    [result] = maps.network.model.predict(image, [sample])
    score = result.pred_instances.scores.max()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept["out"])
    if method == "gradcam":
        gradient = gradient.mean((2, 3), keepdim=True)
    expected = (gradient * kept["out"]).sum(1, keepdim=True).clamp(min=0)
    expected = torch.nn.functional.interpolate(expected, image.shape[-2:], mode="bilinear")
    height, width = sample.img_shape
    expected = torch.nn.functional.interpolate(expected[:, :, :height, :width], (90, 150), mode="bilinear")[0, 0]
    np.testing.assert_allclose(found[0].map, (expected / expected.max()).detach(), atol=1e-5)


@pytest.mark.parametrize("option", ["--variant", pytest.param("--arm", marks=pytest.mark.long)])  # its former name
def test_the_tool_draws_one_row_per_variant(
    option: str, networks: dict[str, tuple[Path, Path]], tool: Tool, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "good.png").write_bytes(networks["photo"][0].read_bytes())
    (folder / "bad.jpg").write_bytes(b"no image")
    options = [option, "RetinaNet", *networks["retina"], "--threshold", 0, "--top", 2, "--out-dir", tmp_path / "out"]
    status, printed, errors = tool("analysis_tools/visualize_cam.py", *networks["mask"], folder, *options)
    assert status == 1
    assert "1 sheets in" in printed
    assert f"skipped {folder / 'bad.jpg'}: is not a readable image" in errors
    drawn: Any = cv2.imread(str(tmp_path / "out" / "good.png"))
    assert drawn.shape[1] > 500
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 1000
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.png", "objects.csv"]


def test_a_class_with_a_probability_near_1_has_a_gradient() -> None:
    model: Any = SimpleNamespace(head=lambda x: x, extract_feat=lambda x: 100 * x)
    network: Any = SimpleNamespace(model=model, classifies=True)
    x = torch.tensor([[5.0, 1.0]], requires_grad=True)
    for logits, expected in ((False, 0), (True, 100)):
        (gradient,) = torch.autograd.grad(Scores(network, None, logits)(x)[0, 0], x)
        assert gradient[0, 0] == expected


def test_images_with_the_same_name_have_separate_sheets() -> None:
    names = output_names(["a/1.png", "b/1.png", "b/2.png", "c/b/2.png", "c/3.jpg"])
    assert names == ["a_1", "b_1", "2_b_2", "3_b_2", "3"]


def test_invalid_requests_are_refused(networks: dict[str, tuple[Path, Path]], tool: Tool, tmp_path: Path) -> None:
    photo = networks["photo"][0]
    for arguments, message in (
        ((*networks["mask"], tmp_path / "none.png"), "none.png: no such file"),
        ((*networks["mask"], tmp_path), "contains no images (.jpg, "),
        (
            (*networks["mask"], photo, "--layer", "backbone.layer9"),
            "no layer 'backbone.layer9'; similar names are",
        ),
        ((networks["mask"][0], networks["retina"][1], photo), "does not fit"),
        ((networks["mask"][0], photo, photo), "is not a file of weights"),
    ):
        status, _, errors = tool("analysis_tools/visualize_cam.py", *arguments)
        assert status == 1
        assert message in errors
        assert len(errors.strip().splitlines()) == 1
