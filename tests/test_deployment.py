"""Baked and exported networks compute what the trained networks compute."""

import json
from pathlib import Path
from typing import Any

import cv2
import needs
import numpy as np
import pytest
import torch
from detectors import as_if_trained
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmengine.config import Config
from places import CONFIGS, DEMO, Tool
from torch import nn

from sa_mmdet.attention import ShuffleAttention
from sa_mmdet.backbones import bake
from sa_mmdet.backbones.baked import baked_config
from sa_mmdet.deployment import FeatureExtractor, export_onnx, largest_difference, load


def random_network(model: Any) -> Any:
    for name, tensor in as_if_trained(model).state_dict().items():
        if ".sa." in name and tensor.is_floating_point() and tensor.dim() != 1:
            tensor.normal_()
    model.train(False)  # MMDetection's backbones return nothing here
    return model


@pytest.mark.parametrize(
    "options",
    [
        dict(depth=18, groups=16),
        dict(depth=50),
        dict(depth=101, frozen_stages=1, stage_with_attention=(False, True, True, True)),
        dict(depth=50, groups=32, deep_stem=True, avg_down=True, style="caffe"),
        dict(depth=18, groups=16, norm_cfg=dict(type="IN")),
        dict(depth=50, norm_cfg=dict(type="IN", affine=True)),
        dict(depth=50, norm_cfg=dict(type="SyncBN")),
    ],
    ids=str,
)
def test_the_baked_backbone_computes_the_same(options: dict) -> None:
    cfg = dict(type="SAResNet", **options)
    trained: Any = random_network(MODELS.build(cfg).double())
    baked: Any = MODELS.build(baked_config(cfg)).double()
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    baked.load_state_dict(bake(trained))
    baked.train(False)
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for one, other in zip(trained(x), baked(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10 * one.abs().max().item())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in baked.modules())
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())


def test_maps_of_one_position() -> None:
    cfg = dict(type="SAResNet", depth=18, groups=16)
    trained, baked = random_network(MODELS.build(cfg)), MODELS.build(baked_config(cfg))
    baked.load_state_dict(bake(trained))
    x = torch.randn(1, 3, 32, 32)
    for one, other in zip(trained(x), baked(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * one.abs().max().item())
    assert other.shape[2:] == (1, 1)


NOT_FOLDED: dict[str, tuple[dict[str, Any], str]] = {
    "GN": (dict(norm_cfg=dict(type="GN", num_groups=16)), r"layer1\.0\.gn2 is of the class GroupNorm"),
    "ConvWS": (dict(conv_cfg=dict(type="ConvWS")), "conv1 is of the class ConvWS2d"),
    "ConvAWS": (dict(conv_cfg=dict(type="ConvAWS")), "conv1 is of the class ConvAWS2d"),
    "no statistics": (dict(norm_cfg=dict(type="BN", track_running_stats=False)), "bn1 has no weight or no running"),
    "no weight": (dict(norm_cfg=dict(type="BN", affine=False)), "bn1 has no weight or no running"),
}


@pytest.mark.parametrize("name", NOT_FOLDED)
def test_layers_that_cannot_be_folded_are_named(name: str) -> None:
    options, message = NOT_FOLDED[name]
    backbone: Any = MODELS.build(dict(type="SAResNet", depth=18, groups=16, **options))
    with pytest.raises(ValueError, match=message):
        bake(backbone)


def test_backbones_without_a_baked_form_are_refused() -> None:
    with pytest.raises(ValueError, match="the backbone is of type 'ResNet': only an SAResNet has shuffles to bake"):
        baked_config(dict(type="ResNet", depth=50))
    plain: Any = MODELS.build(dict(type="AttentionResNet", depth=18))
    with pytest.raises(ValueError, match="AttentionResNet has no shuffle attention to bake"):
        bake(plain)
    ablation = dict(type="ShuffleAttention", groups=16, transform="none")
    without: Any = MODELS.build(dict(type="AttentionResNet", depth=18, attention=ablation))
    with pytest.raises(ValueError, match=r"transform='none'.*has no baked form"):
        bake(without)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cfg = Config.fromfile(DEMO)
    model = random_network(MODELS.build(cfg.model))
    path = tmp_path_factory.mktemp("run") / "last.pth"
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=1)), path)
    return path


def test_a_baked_detector_detects_the_same(detector: Path, tool: Tool, tmp_path: Path) -> None:
    status, printed, _ = tool("model_converters/bake_shuffle.py", DEMO, detector, tmp_path / "baked.pth")
    assert status == 0
    assert "largest difference of an output" in printed
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    found = []
    for config, weights in ((DEMO, detector), (tmp_path / "baked.py", tmp_path / "baked.pth")):
        inferencer = DetInferencer(str(config), str(weights), device="cpu", show_progress=False)
        found.append(inferencer(image, no_save_pred=True)["predictions"][0])
    assert len(found[0]["scores"]) == len(found[1]["scores"]) > 0
    np.testing.assert_allclose(found[0]["scores"], found[1]["scores"], atol=1e-4)
    np.testing.assert_allclose(found[0]["bboxes"], found[1]["bboxes"], atol=1e-2)


@needs.onnx
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options", [(), pytest.param(("--keep-shuffle", "--backbone-only"), marks=pytest.mark.long)], ids=str
)
def test_the_exported_network_computes_the_same(
    options: tuple[str, ...], detector: Path, tool: Tool, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for path, shape in zip(files, ((70, 90, 3), (128, 64, 3)), strict=True):
        cv2.imwrite(str(path), generator.integers(0, 255, shape, np.uint8))
    target = tmp_path / "features.onnx"
    status, printed, _ = tool("deployment/export_onnx.py", DEMO, detector, target, "--check", *files, *options)
    assert status == 0
    assert "largest difference on 2 images" in printed
    import onnx

    operators = {node.op_type for node in onnx.load(target).graph.node}
    assert "BatchNormalization" not in operators
    assert ("Transpose" in operators) == ("--keep-shuffle" in options)  # which a shuffle consists of, with two reshapes
    assert len(onnx.load(target).graph.output) == (4 if options else 5)


@needs.onnx
@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
@pytest.mark.parametrize("name", ["ConvWS", "GN"])
def test_what_cannot_be_folded_is_exported_as_it_was_trained(name: str, tool: Tool, tmp_path: Path) -> None:
    cfg = Config.fromfile(DEMO)
    cfg.model.backbone.update(NOT_FOLDED[name][0])
    cfg.dump(tmp_path / "mine.py")
    torch.save(random_network(MODELS.build(cfg.model)).state_dict(), tmp_path / "mine.pth")
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 255, (96, 64, 3), np.uint8))
    arguments = ("mine.py", "mine.pth", "mine.onnx")
    options = ("--backbone-only", "--check", image)
    status, printed, errors = tool("deployment/export_onnx.py", *(tmp_path / name for name in arguments), *options)
    assert (status, errors) == (0, "")
    assert "exported as it was trained, not folded: " in printed
    assert NOT_FOLDED[name][1].replace("\\", "") in printed
    assert "largest difference on 1 images" in printed


@pytest.mark.long
@needs.onnx
@pytest.mark.filterwarnings("ignore")
def test_the_check_finds_mistakes_in_folding(
    detector: Path, tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(backbone: Any) -> dict[str, torch.Tensor]:
        return {key: value * 1.01 for key, value in bake(backbone).items()}

    monkeypatch.setattr("sa_mmdet.deployment.bake", wrong)
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((64, 64, 3), np.uint8))
    arguments = (DEMO, detector, tmp_path / "features.onnx", "--backbone-only", "--check", tmp_path / "image.png")
    status, _, errors = tool("deployment/export_onnx.py", *arguments)
    assert status == 1
    assert "the file's outputs differ by more than" in errors


@needs.onnx
@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
def test_the_export_does_not_change_the_model(tmp_path: Path) -> None:
    cfg = dict(type="SAResNet", depth=18, groups=16, out_indices=(0,))
    backbone: Any = MODELS.build(cfg)
    model = FeatureExtractor(backbone)
    before = {name: module.implementation for name, module in _attention(model)}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    export_onnx(model, tmp_path / "features.onnx")
    assert set(before.values()) == {"auto"}
    assert {name: module.implementation for name, module in _attention(model)} == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def _attention(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, ShuffleAttention)]


@needs.onnx
@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
def test_baked_and_exported_agree_on_real_images(coco128: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(CONFIGS / "retinanet" / "retinanet_sa-r50_fpn_1x_coco.py")
    model = random_network(MODELS.build(cfg.model))
    torch.save(model.state_dict(), tmp_path / "retina.pth")
    trained, baked = (load(cfg, tmp_path / "retina.pth", bake) for bake in (False, True))
    export_onnx(baked, tmp_path / "retina.onnx")
    with (coco128 / "annotations" / "instances_train2017.json").open() as file:
        names = [image["file_name"] for image in json.load(file)["images"]]
    preprocess: Any = MODELS.build(cfg.model.data_preprocessor)
    images = []
    for name in names[::32]:
        pixels = torch.from_numpy(cv2.imread(str(coco128 / "train2017" / name))).permute(2, 0, 1)
        images.append(preprocess(dict(inputs=[pixels], data_samples=None))["inputs"])
    for image in images:
        with torch.no_grad():
            for one, other in zip(trained(image), baked(image), strict=True):
                assert (one - other).abs().max() <= 1e-5 * one.abs().max()
    assert largest_difference(baked, tmp_path / "retina.onnx", images) <= 1e-5


def test_bad_requests_are_named(detector: Path, tool: Tool, tmp_path: Path) -> None:
    plain = CONFIGS / "retinanet" / "retinanet_r50_fpn_1x_coco.py"
    for arguments, message in (
        ((plain, detector, tmp_path / "out.pth"), "the backbone is of type 'ResNet'"),
        ((DEMO, tmp_path / "none.pth", tmp_path / "out.pth"), "no such file"),
        ((DEMO, detector, tmp_path / "none" / "out.pth"), "does not exist: make it first"),
    ):
        status, _, errors = tool("model_converters/bake_shuffle.py", *arguments)
        assert status == 1
        assert message in errors
    status, _, errors = tool("deployment/export_onnx.py", plain, detector, tmp_path / "out.onnx")
    assert status == 1
    assert "does not fit the config's backbone" in errors
    assert list(tmp_path.iterdir()) == []
