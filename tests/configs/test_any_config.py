"""MMDetection's own configs with SA-Net in place of their plain ResNet, started from the plain detector's weights.

With ``-s`` a line is printed for each.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs, demo_mm_proposals
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmengine.utils import get_installed_path
from places import MMDETECTION
from torch import Tensor, nn
from zoo import CONFIGS

ROOT = Path(get_installed_path(MMDETECTION), ".mim", "configs")


def single_detector(config: str) -> Any:
    """The config of the detector, of its student where it has a teacher, of its detector where it tracks."""
    model = copy.deepcopy(Config.fromfile(ROOT / f"{config}.py").model)
    model = model.get("detector", model)
    for part in _parts(model):
        part.pop("init_cfg", None)
        part.pop("teacher_ckpt", None)
    return model


def _parts(value: Any) -> Any:
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _parts(part)


def randomise(backbone: Any) -> None:
    """Give the norms statistics and scales as if they had been trained."""
    norms: list[Any] = [part for part in backbone.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
        norm.weight.data.uniform_(0.5, 1)
        norm.bias.data.normal_(0, 0.2)


def batch(model: Any, classes: int, kind: str) -> dict[str, Any]:
    inputs = demo_mm_inputs(1, [(3, 128, 128)], num_items=[3], num_classes=classes, with_mask=True, with_semantic=True)
    if kind == "FastRCNN":
        for sample, proposals in zip(inputs["data_samples"], demo_mm_proposals([(3, 128, 128)], 20), strict=True):
            sample.proposals = proposals.to_instances() if hasattr(proposals, "to_instances") else proposals
    return model.data_preprocessor(inputs, True)


def features(model: Any, data: dict[str, Any]) -> list[Tensor]:
    model.eval()
    with torch.no_grad():
        return list(model.backbone(data["inputs"]))


def predictions(model: Any, data: dict[str, Any]) -> list[Tensor]:
    model.eval()
    with torch.no_grad():
        found = model.predict(data["inputs"], copy.deepcopy(data["data_samples"]), rescale=False)
    parts: list[Any] = [
        getattr(sample, "pred_instances", getattr(sample, "pred_panoptic_seg", None)) for sample in found
    ]
    return [value.double() for part in parts for _, value in sorted(part.items()) if isinstance(value, Tensor)]


def in_float64(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "inputs": data["inputs"].double()}


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        scale = other.abs().max().item() if other.numel() else 1.0
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(scale, 1e-3))


@pytest.mark.long
@pytest.mark.parametrize("config", CONFIGS)
def test_sa_net_in_its_place(config: str, tmp_path: Path) -> None:
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    cfg = single_detector(config)
    plain = MODELS.build(copy.deepcopy(cfg))
    plain.init_weights()
    randomise(plain.backbone)
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / "plain.pth")
    with_sa = copy.deepcopy(cfg)
    with_sa.backbone.type = "SAResNet"

    model = MODELS.build(copy.deepcopy(with_sa))
    model.init_weights()
    load_checkpoint(model, str(tmp_path / "plain.pth"), strict=True)  # as load_from does
    classes = next((part["num_classes"] for part in _parts(cfg) if isinstance(part.get("num_classes"), int)), 80)
    data = batch(plain, min(classes, 10), cfg.type)
    expected = features(plain, data)
    assert_equal(features(model, data), expected)
    dtype = torch.float64  # in which rounding does not change the order of random scores
    try:
        theirs = predictions(copy.deepcopy(plain).double(), in_float64(data))
        ours = predictions(copy.deepcopy(model).double(), in_float64(data))
    except (RuntimeError, NotImplementedError):  # an operator of mmcv, or a head that makes float32 tensors
        dtype = torch.float32
        theirs, ours = predictions(plain, data), predictions(model, data)
    assert_equal(ours, theirs)

    again = MODELS.build(copy.deepcopy(with_sa))
    again.load_state_dict(plain.state_dict(), strict=True)
    starts = [again.backbone]
    for start in ("Pretrained", "ResNetPretrained"):
        init_cfg = dict(type=start, checkpoint=str(tmp_path / "plain.pth"), prefix="backbone.")
        backbone = MODELS.build({**with_sa.backbone, "init_cfg": init_cfg})
        backbone.init_weights()
        starts.append(backbone)
    for backbone in starts:
        backbone.eval()
        with torch.no_grad():
            assert_equal(list(backbone(data["inputs"])), expected)

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    attention = {name: value for name, value in model.named_parameters() if ".sa." in name and value.requires_grad}
    before = {name: value.detach().clone() for name, value in attention.items()}
    loss, _ = model.parse_losses(model.loss(data["inputs"], data["data_samples"]))
    assert loss.isfinite()
    loss.backward()
    optimizer.step()
    moved = [name for name, value in attention.items() if not torch.equal(value, before[name])]
    print(f"{config}: {cfg.type}, equal in {dtype}, {len(moved)} of {len(attention)} parameters of attention moved")
    assert moved
    assert all(value.isfinite().all() for value in attention.values())
