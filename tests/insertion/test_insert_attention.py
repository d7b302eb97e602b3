"""The tool that puts attention into a trained detector."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import TEST_PIPELINE
from mmdet.apis import DetInferencer
from mmdet.models import ResNet, RetinaHead
from mmdet.registry import MODELS
from mmengine.config import Config
from places import Tool
from zoo_detectors import randomise

from sa_mmdet.analysis.agreement import compare_predictions

TOOL = "model_converters/insert_attention.py"
CONFIG = """
_base_ = "mmdet::{base}.py"
{changes}
"""
CONFIG += TEST_PIPELINE.replace("(160, 96)", "(256, 192)")
RETINANET = """
model = dict(
    backbone=dict(depth=18, base_channels=16, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1, num_classes=3),
    test_cfg=dict(score_thr=0.0),
)
"""
RTMDET = "model = dict(test_cfg=dict(score_thr=0.0))"
EFFICIENT = """
model = dict(
    backbone=dict(arch="b0", init_cfg=None),
    neck=dict(in_channels=[40, 112, 320], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1, num_classes=3),
)
"""


def detector(folder: Path, base: str, changes: str) -> tuple[Path, Path]:
    """The config and the checkpoint of a detector with random norms."""
    torch.manual_seed(0)
    config, checkpoint = folder / "mine.py", folder / "epoch_1.pth"
    config.write_text(CONFIG.replace("{base}", base).replace("{changes}", changes))
    model = MODELS.build({**Config.fromfile(config).model, "_scope_": "mmdet"})
    randomise(model)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=("a", "b", "c")))), checkpoint)
    return config, checkpoint


@pytest.fixture
def retinanet(tmp_path: Path) -> tuple[Path, Path]:
    return detector(tmp_path, "retinanet/retinanet_r50_fpn_1x_coco", RETINANET)


def detections(config: Path, checkpoint: Path, image: Path) -> Any:
    inferencer = DetInferencer(str(config), str(checkpoint), device="cpu", show_progress=False)
    [found] = inferencer(str(image))["predictions"]
    return found


def test_a_detector_predicts_what_it_did(tool: Tool, retinanet: tuple[Path, Path], coco128: Path) -> None:
    config, checkpoint = retinanet
    out = config.parent / "out"
    image = sorted((coco128 / "train2017").iterdir())[0]
    places = ("--at", "backbone.layer*", "neck.fpn_convs.*", "bbox_head.cls_convs.*")
    status, printed, error = tool(TOOL, config, checkpoint, out, *places, "--images", image)
    assert status == 0, error
    assert {path.name for path in out.iterdir()} == {"mine_sa.py", "epoch_1_sa.pth"}
    lines = printed.splitlines()
    assert "backbone.layer4.1.inserted_sa: ShuffleAttention, 6 parameters" in lines
    assert "neck.fpn_convs.0.inserted_sa: ShuffleAttention, 6 parameters" in lines
    assert f"python tools/train.py {out / 'mine_sa.py'}" in lines
    [multiply_adds] = [line for line in lines if line.startswith("multiply-adds")]
    assert "M of them in attention" in multiply_adds or "M in attention" in multiply_adds
    [equal] = [line for line in lines if line.startswith("predictions: equal")]
    assert "of 100 detections" in equal
    text = (out / "mine_sa.py").read_text()
    assert '_base_ = "../mine.py"' in text
    assert 'load_from = "{{ fileDirname }}/epoch_1_sa.pth"' in text
    assert len(text.splitlines()) < 30
    ours, theirs = detections(out / "mine_sa.py", out / "epoch_1_sa.pth", image), detections(config, checkpoint, image)
    assert ours["labels"] == theirs["labels"]
    assert len(ours["scores"]) == 100
    torch.testing.assert_close(torch.tensor(ours["bboxes"]), torch.tensor(theirs["bboxes"]), rtol=1e-4, atol=1e-3)
    # A plain checkpoint starts the config with attention, too.
    plain = detections(out / "mine_sa.py", checkpoint, image)
    assert plain["labels"] == theirs["labels"]
    torch.testing.assert_close(torch.tensor(plain["scores"]), torch.tensor(theirs["scores"]), rtol=1e-4, atol=1e-5)
    shutil.move(out, config.parent / "elsewhere")
    assert Config.fromfile(config.parent / "elsewhere" / "mine_sa.py").load_from.endswith("elsewhere/epoch_1_sa.pth")


def test_the_places_of_a_config(tool: Tool, retinanet: tuple[Path, Path]) -> None:
    status, printed, error = tool(TOOL, retinanet[0], "--list")
    assert status == 0, error
    rows = [line.split() for line in printed.splitlines()]
    assert ["backbone.layer2", "1", "ResLayer", "32", "8"] in rows
    assert ["backbone.layer2.*", "2", "BasicBlock", "32", "8"] in rows
    assert ["neck.fpn_convs.0", "1", "ConvModule", "32", "8"] in rows
    assert ["bbox_head.cls_convs.0", "1", "ConvModule", "32", "8"] in rows
    assert not any(row[0].startswith("backbone.layer2.0.") for row in rows)


@pytest.mark.long
def test_places_that_are_listed_take_attention(tool: Tool, tmp_path: Path) -> None:
    config, checkpoint = detector(tmp_path, "rtmdet/rtmdet_tiny_8xb32-300e_coco", RTMDET)
    printed = tool(TOOL, config, "--list")[1]
    names = [line.split()[0] for line in printed.splitlines()[1:] if " to " not in line]
    taken = [name for name in names if not name.startswith("bbox_head.rtm_reg")]  # of 4 channels, which is few
    stages = [name for name in taken if name.count(".") == 1 or name.startswith("neck")]
    assert len(stages) >= 10
    eca = ("--attention", "EfficientChannelAttention", "--at", *stages[1:])
    status, printed, error = tool(TOOL, config, checkpoint, tmp_path / "out", *eca)
    assert status == 0, error
    assert "predictions: equal" in printed


@pytest.mark.long
def test_one_attention_in_the_place_of_another(tool: Tool, tmp_path: Path) -> None:
    config, checkpoint = detector(tmp_path, "efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco", EFFICIENT)
    replace = ("--replace", "backbone.layers.*.*.se")
    status, printed, error = tool(TOOL, config, checkpoint, tmp_path / "out", *replace)
    assert status == 0, error
    assert "backbone.layers.1.0.se: ShuffleAttention" in printed
    assert "not those of the detector as it was" in printed
    state = torch.load(tmp_path / "out" / "epoch_1_sa.pth")["state_dict"]
    assert not [key for key in state if ".se.conv" in key]


def test_what_does_not_fit_writes_nothing(tool: Tool, retinanet: tuple[Path, Path], tmp_path: Path) -> None:
    config, checkpoint = retinanet
    out = tmp_path / "out"
    other = tmp_path / "other.pth"
    torch.save(
        dict(
            state_dict={key: value for key, value in torch.load(checkpoint)["state_dict"].items() if "neck" not in key}
        ),
        other,
    )
    at = ("--at", "backbone.layer*")
    cases: list[tuple[tuple, str]] = [
        (
            (config, checkpoint, out, "--at", "backbone.stage*"),
            "no module of ResNet matches 'stage*': ResNet has layer",
        ),
        ((config, checkpoint, out, "--at", "neck"), "neck, a FPN, returns a tuple of 5 values"),
        ((config, other, out, *at), "weights of another network than"),
        ((config, tmp_path / "none.pth", out, *at), "no such file"),
        ((tmp_path / "none.py", checkpoint, out, *at), "none.py"),
        ((config, checkpoint, tmp_path / "no" / "out", *at), "does not exist: make it first"),
        ((config, checkpoint, out, *at, "--options", "groups=64"), "groups=64 does not fit 16 channels"),
        ((config, checkpoint, out, *at, "--attention", "Nothing"), "type='Nothing' is not a registered layer"),
        ((config, checkpoint, out, *at, "--images", config), "is not a readable image"),
    ]
    for arguments, message in cases:
        status, _, error = tool(TOOL, *arguments)
        assert status == 1, arguments
        assert message in error.splitlines()[-1], error
        assert not out.exists()
    assert tool(TOOL, config, checkpoint, out)[0] == 2
    assert not out.exists()


@pytest.mark.long
def test_attention_is_not_inserted_twice(tool: Tool, retinanet: tuple[Path, Path]) -> None:
    config, checkpoint = retinanet
    out = config.parent / "out"
    at = ("--at", "backbone.layer*")
    status, _, error = tool(TOOL, config, checkpoint, out, *at)
    assert status == 0, error
    before = {path: path.read_bytes() for path in out.iterdir()}
    for arguments, message in (
        ((config, out / "epoch_1_sa.pth"), "holds attention already, backbone.layer1.1.inserted_sa."),
        ((out / "mine_sa.py", out / "epoch_1_sa.pth"), "model.backbone has attention already, at layer*"),
    ):
        status, _, error = tool(TOOL, *arguments, config.parent / "again", *at)
        assert status == 1
        assert message in error
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def refuse_float64(function: Any) -> Any:
    def refusing(self: Any, x: Any) -> Any:
        if (x if isinstance(x, torch.Tensor) else x[0]).dtype == torch.float64:
            raise RuntimeError("not implemented for 'Double'")
        return function(self, x)

    return refusing


@pytest.mark.parametrize("part", [ResNet, RetinaHead])
def test_what_knows_float32_alone_is_compared_in_it(
    retinanet: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, part: Any
) -> None:
    monkeypatch.setattr(part, "forward", refuse_float64(part.forward))
    found = compare_predictions(retinanet, retinanet)
    assert (found.difference, found.dtype) == (0.0, torch.float32)
    assert found.detections > 0
