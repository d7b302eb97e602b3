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
from mmengine.runner import load_checkpoint
from torch import Tensor
from zoo import CONFIGS
from zoo_detectors import ROOT, parts, predictions, randomise, single_detector

SIDE = 256


def batch(model: Any, classes: int, kind: str) -> dict[str, Any]:
    shapes = [(3, SIDE, SIDE)]
    inputs = demo_mm_inputs(1, shapes, num_items=[3], num_classes=max(classes, 2), with_mask=True, with_semantic=True)
    for sample, proposals in zip(inputs["data_samples"], demo_mm_proposals(shapes, 20), strict=True):
        sample.gt_instances.labels %= classes
        if kind == "FastRCNN":
            sample.proposals = proposals
    return model.data_preprocessor(inputs, True)


def features(model: Any, data: dict[str, Any]) -> list[Tensor]:
    model.eval()
    with torch.no_grad():
        return list(model.backbone(data["inputs"]))


def with_backbone_in_float64(model: Any) -> Any:
    """In float32 the maps differ by rounding, which changes the order of an untrained head's scores."""
    model.backbone.double()
    model.backbone.register_forward_pre_hook(lambda _, inputs: inputs[0].double())
    model.backbone.register_forward_hook(lambda _, inputs, maps: tuple(one.float() for one in maps))
    return model


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        scale = other.abs().max().item() if other.numel() else 1.0
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(scale, 1e-3))


@pytest.mark.long
@pytest.mark.parametrize("config", CONFIGS)
def test_sa_net_in_its_place(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT.parent)  # from where some configs name their teacher's
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    cfg = single_detector(config)
    plain = MODELS.build(copy.deepcopy(cfg))
    plain.init_weights()
    randomise(plain.backbone)
    torch.save(dict(state_dict=with_backbone_in_float64(plain).state_dict()), tmp_path / "plain.pth")
    with_sa = copy.deepcopy(cfg)
    with_sa.backbone.type = "SAResNet"
    if cfg.backbone.depth < 50:
        with_sa.backbone.groups = 32

    exact = with_backbone_in_float64(MODELS.build(copy.deepcopy(with_sa)))
    exact.init_weights()
    load_checkpoint(exact, str(tmp_path / "plain.pth"), strict=True)  # as load_from does
    classes = next((part["num_classes"] for part in parts(cfg) if isinstance(part.get("num_classes"), int)), 80)
    data = batch(plain, min(classes, 10), cfg.type)
    assert_equal(predictions(exact, data), predictions(plain, data))

    expected = features(plain, data)
    model = MODELS.build(copy.deepcopy(with_sa))
    model.load_state_dict(plain.state_dict(), strict=True)
    assert_equal(features(model, data), expected)
    for start in ("Pretrained", "ResNetPretrained"):
        init_cfg = dict(type=start, checkpoint=str(tmp_path / "plain.pth"), prefix="backbone.")
        cfg = copy.deepcopy(with_sa)
        cfg.backbone.init_cfg = init_cfg
        started = MODELS.build(cfg)
        started.backbone.init_weights()
        assert_equal(features(started, data), expected)

    model.train()
    for part in model.modules():
        part.epoch = 0  # as SetEpochInfoHook does
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    attention = {name: value for name, value in model.named_parameters() if ".sa." in name and value.requires_grad}
    before = {name: value.detach().clone() for name, value in attention.items()}
    loss, _ = model.parse_losses(model.loss(data["inputs"], data["data_samples"]))
    assert loss.isfinite()
    loss.backward()
    optimizer.step()
    moved = [name for name, value in attention.items() if not torch.equal(value, before[name])]
    print(f"{config}: {with_sa.type}, {len(moved)} of {len(attention)} parameters of attention moved")
    assert moved
    assert all(value.isfinite().all() for value in attention.values())
