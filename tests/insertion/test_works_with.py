"""Networks with inserted attention in the package's other tools, and in a training that is resumed."""

import importlib.util
from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from detectors import TEST_PIPELINE, small_retinanet
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from places import Tool
from toy_training import Recorder

from sa_mmdet.analysis import analyze
from sa_mmdet.analysis.activation_maps import ActivationMaps
from sa_mmdet.analysis.gates import gates_of
from sa_mmdet.analysis.network import Network
from sa_mmdet.backbones import attention_label
from sa_mmdet.insertion import inserted

CONFIG = """
_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["sa_mmdet"])
model = dict(
    backbone=dict(depth=18, base_channels=16, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1, num_classes=3),
    test_cfg=dict(score_thr=0.0),
)
"""
CONFIG += TEST_PIPELINE
INSERTED = """
model["backbone"].update(type="WithAttention", module="ResNet")
model["backbone"].update(attention={"layer*": dict(type="ShuffleAttention", groups="auto")})
model["neck"].update(type="WithAttention", module="FPN")
model["neck"].update(attention={"fpn_convs.*": dict(type="ShuffleAttention", groups="auto")})
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A config without attention, one with, and a checkpoint for the latter."""
    root = tmp_path_factory.mktemp("files")
    found = {name: root / name for name in ("plain.py", "inserted.py", "inserted.pth")}
    found["plain.py"].write_text(CONFIG)
    found["inserted.py"].write_text(CONFIG + INSERTED)
    torch.manual_seed(0)
    model: Any = MODELS.build({**Config.fromfile(found["inserted.py"]).model, "_scope_": "mmdet"})
    for name, parameter in model.named_parameters():
        if ".inserted_" in name:
            torch.nn.init.normal_(parameter)
    torch.save(dict(state_dict=model.state_dict(), meta={}), found["inserted.pth"])
    return found


@pytest.fixture
def image(coco128: Path) -> Path:
    return sorted((coco128 / "train2017").iterdir())[0]


@pytest.mark.parametrize("convention", ["mmengine", "paper"])
def test_complexity_counts_attention_wherever_it_is(files: dict[str, Path], convention: str) -> None:
    plain, model = (
        analyze({**Config.fromfile(files[name]).model, "_scope_": "mmdet"}, (128, 128), convention)
        for name in ("plain.py", "inserted.py")
    )
    assert (model.backbone, model.neck, model.heads) == (plain.backbone, plain.neck, plain.heads)
    assert model.parameters == plain.parameters + model.attention_parameters
    assert model.attention > 0
    assert plain.attention == 0
    # Per layer 6 * C / (2 * groups) parameters: C of 16 to 128 with 8 to 64 groups, and five times 32 with 16.
    assert model.attention_parameters == 6 * 9


def test_gates_and_activation_maps(files: dict[str, Path], image: Path) -> None:
    network = Network(files["inserted.py"], files["inserted.pth"])
    gates = gates_of(network, network.read(image)[2])
    assert [found.layer for found in gates] == [
        *(f"backbone.layer{stage}.1.inserted_sa" for stage in range(1, 5)),
        *(f"neck.fpn_convs.{level}.inserted_sa" for level in range(5)),
    ]
    assert all(0 <= found.spatial.min() < found.spatial.max() <= 1 for found in gates)
    if importlib.util.find_spec("captum") is not None:
        for layer in (None, "neck.fpn_convs.0"):
            _, found_objects = ActivationMaps(files["inserted.py"], files["inserted.pth"], layer)(image, 2, 0.0)
            assert len(found_objects) == 2
            assert max(found.map.max() for found in found_objects) > 0


def test_it_is_published(files: dict[str, Path], image: Path, tool: Tool, tmp_path: Path) -> None:
    status, printed, error = tool("model_converters/publish_model.py", files["inserted.pth"], tmp_path / "mine.pth")
    assert status == 0, error
    found = [
        DetInferencer(str(files["inserted.py"]), str(weights), device="cpu", show_progress=False)(str(image))
        for weights in (files["inserted.pth"], printed.strip())
    ]
    assert found[0]["predictions"] == found[1]["predictions"]


@pytest.mark.long
@needs.onnx
def test_it_is_exported(files: dict[str, Path], image: Path, tool: Tool, tmp_path: Path) -> None:
    config, weights = tmp_path / "four_levels.py", tmp_path / "four_levels.pth"
    # PyTorch exports the further levels of RetinaNet's neck at one size alone, with and without attention.
    config.write_text(CONFIG + INSERTED + 'model["neck"].update(add_extra_convs=False, num_outs=4, start_level=0)\n')
    torch.save(MODELS.build({**Config.fromfile(config).model, "_scope_": "mmdet"}).state_dict(), weights)
    arguments = (config, weights, tmp_path / "features.onnx", "--check", image)
    status, printed, error = tool("deployment/export_onnx.py", *arguments)
    assert status == 0, error
    assert "largest difference on 1 images" in printed


def test_tables_name_it(files: dict[str, Path]) -> None:
    assert attention_label(Config.fromfile(files["inserted.py"]).model.backbone) == "SA"
    assert attention_label(Config.fromfile(files["plain.py"]).model.backbone) == "none"
    replaced = dict(type="WithAttention", module="RegNet", replace={"layer*.*.se": dict(type="SqueezeExcitation")})
    assert attention_label(replaced) == "RegNet+SE"


class Stop(Hook):
    """Ends the process's training at the beginning of the second epoch, as a kill does."""

    def before_train_epoch(self, runner: Any) -> None:
        if runner.epoch == 1:
            raise KeyboardInterrupt


def training(coco128: Path, folder: Path, *hooks: Hook, **options: Any) -> Any:
    """A training on real images with averaged weights: a runner that has not begun, and where it puts its losses."""
    cfg = small_retinanet(coco128, folder)
    se = dict(type="SqueezeExcitation", ratio=8)
    cfg.model.backbone.update(type="WithAttention", module="SAResNet", base_channels=16, groups=8, frozen_stages=1)
    cfg.model.backbone.update(attention={"layer*": se}, with_cp=True)
    cfg.model.neck.in_channels = [16, 32, 64, 128]
    cfg.model.neck.update(type="WithAttention", module="FPN", attention={"fpn_convs.*": se})
    cfg.train_cfg.update(val_interval=10)
    cfg.custom_hooks = [dict(type="EMAHook", momentum=0.1)]
    cfg.merge_from_dict(options)
    runner, recorder = Runner.from_cfg(cfg), Recorder()
    for hook in (recorder, *hooks):
        runner.register_hook(hook)
    return runner, recorder.losses


@pytest.mark.long
def test_a_training_is_resumed(coco128: Path, tmp_path: Path) -> None:
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    runner, whole = training(coco128, tmp_path / "whole")
    model: Any = runner.train()
    assert len(whole) == 16
    runner, first = training(coco128, tmp_path / "parts", Stop())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    runner, rest = training(coco128, tmp_path / "parts", resume=True)
    resumed = runner.train()
    assert (len(first), len(rest)) == (8, 8)
    assert first | rest == whole
    for key, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    frozen = [layer for layer in inserted(model.backbone) if not next(layer.attention.parameters()).requires_grad]
    assert [layer.weights for layer in frozen] == ["layer1.1.inserted_se."]
