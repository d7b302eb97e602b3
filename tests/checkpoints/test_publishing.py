"""A training's checkpoint, for others."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from places import DEMO, Tool
from safetensors import safe_open

from sa_mmdet.checkpoints import convert, read


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As MMEngine saves it: weights, optimizer, history, meta."""
    register_all_modules()
    cfg = Config.fromfile(DEMO)
    model: Any = MODELS.build(cfg.model)
    history = HistoryBuffer(np.array([0.1, 0.25]), np.array([1, 1]))
    whole = dict(
        meta=dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=("circle", "square", "triangle")), epoch=2, iter=9),
        state_dict=model.state_dict(),
        optimizer=dict(state={0: dict(momentum_buffer=torch.zeros(1_000_000))}, param_groups=[]),
        message_hub=dict(log_scalars={"val/coco/bbox_mAP": history, "train/loss": history}, runtime_info={}),
    )
    path = tmp_path_factory.mktemp("run") / "epoch_2.pth"
    torch.save(whole, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors"])
def test_what_is_published_loads_in_the_inferencer(suffix: str, checkpoint: Path, tool: Tool, tmp_path: Path) -> None:
    status, printed, _ = tool("model_converters/publish_model.py", checkpoint, tmp_path / f"demo{suffix}")
    assert status == 0
    [file] = tmp_path.iterdir()
    assert printed.strip() == str(file)
    assert file.name == f"demo-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}{suffix}"
    published, before = read(file), read(checkpoint)
    assert set(published) == {"meta", "state_dict"}
    assert published["meta"]["metrics"] == {"coco/bbox_mAP": 0.25}
    assert published["meta"]["epoch"] == 2
    assert set(published["meta"]["versions"]) == {"sa_mmdet", "mmdet", "mmengine", "torch"}
    assert all(torch.equal(published["state_dict"][key], value) for key, value in before["state_dict"].items())
    if suffix == ".pth.tar":
        return
    inferencer = DetInferencer(weights=str(file), device="cpu", show_progress=False)
    assert inferencer.model.dataset_meta["classes"] == ["circle", "square", "triangle"]
    own = inferencer.model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in before["state_dict"].items())
    result = inferencer(np.zeros((64, 64, 3), np.uint8), no_save_pred=True)["predictions"][0]
    assert set(result) >= {"labels", "scores", "bboxes"}


def test_the_header_can_be_read_without_the_weights(checkpoint: Path, tool: Tool, tmp_path: Path) -> None:
    tool("model_converters/publish_model.py", checkpoint, tmp_path / "demo.safetensors")
    [path] = tmp_path.iterdir()
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sa_mmdet"])
    assert "SAResNet" in header["cfg"]
    assert header["metrics"] == {"coco/bbox_mAP": 0.25}


def test_a_detectors_backbone_under_the_authors_names(checkpoint: Path, tool: Tool, tmp_path: Path) -> None:
    arguments = ("--part", "backbone", "--naming", "released")
    status, _, _ = tool("model_converters/publish_model.py", checkpoint, tmp_path / "sa18.pth.tar", *arguments)
    assert status == 0
    [file] = tmp_path.iterdir()
    released, before = read(file)["state_dict"], read(checkpoint)["state_dict"]
    assert {key.split(".")[0] for key in released} == {"module"}
    for key, value in released.items():
        assert torch.equal(value, before[key.replace("module.", "backbone.")])
    back = convert(file)
    assert back.backbone == dict(type="SAResNet", depth=18, base_channels=32, groups=16)
    assert {f"backbone.{key}" for key in back.state} == {key for key in before if key.startswith("backbone.")}


def test_bad_requests_leave_nothing(checkpoint: Path, tool: Tool, tmp_path: Path) -> None:
    tool_name = "model_converters/publish_model.py"
    for arguments, message in (
        ((checkpoint, tmp_path / "demo.bin"), "does not end in .pth"),
        ((checkpoint, tmp_path / "none" / "demo.pth"), "does not exist: make it first"),
        ((checkpoint, tmp_path / "demo.pth", "--naming", "released"), "only a backbone has released names"),
        ((tmp_path / "none.pth", tmp_path / "demo.pth"), "no such file"),
        ((DEMO, tmp_path / "demo.pth"), "is not a file of weights"),
    ):
        status, _, errors = tool(tool_name, *arguments)
        assert status == 1
        assert message in errors
        assert len(errors.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
