"""The placements of attention in a block that the SE paper compares, against its Figure 7 written out."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import as_if_trained, outputs
from mmdet.models import ResNet
from mmdet.registry import MODELS
from torch import Tensor, nn

PLACEMENTS = ("standard", "pre", "post", "identity", "conv2")
LAYERS: dict[str, dict[str, Any]] = {
    "SA": dict(type="ShuffleAttention", groups=8),
    "SE": dict(type="SqueezeExcitation", ratio=4),
    "ECA": dict(type="EfficientChannelAttention"),
    "SGE": dict(type="SpatialGroupEnhance", groups=8),
    "CBAM": dict(type="CBAM", ratio=4),
}
CASES = [(depth, p) for depth in (18, 50) for p in PLACEMENTS if (depth, p) != (18, "conv2")]


def built(depth: int, placement: str, kind: str = "SE", **options: Any) -> Any:
    cfg = dict(type="AttentionResNet", depth=depth, base_channels=16, attention=LAYERS[kind], placement=placement)
    return MODELS.build({**cfg, **options}).double()


def trained(depth: int) -> Any:
    return as_if_trained(ResNet(depth, base_channels=16).double())


def image() -> Tensor:
    return torch.randn(2, 3, 64, 96, dtype=torch.float64)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("depth", "placement"), CASES)
def test_a_plain_resnets_weights_start_it_exactly(depth: int, placement: str, kind: str, tmp_path: Path) -> None:
    plain, x = trained(depth), image()
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / "plain.pth")
    models = [built(depth, placement, kind)]
    models[0].load_state_dict(plain.state_dict(), strict=True)
    for start in ("Pretrained", "ResNetPretrained") if kind in ("SA", "CBAM") else ():
        init_cfg = dict(type=start, checkpoint=str(tmp_path / "plain.pth"))
        models.append(built(depth, placement, kind, init_cfg=init_cfg))
        models[-1].init_weights()
    for model in models:
        for ours, theirs in zip(outputs(model, x), outputs(plain, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    model = models[0]
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        sum(out.square().mean() for out in model(x)).backward()
        optimizer.step()
    kinds = {name: owners(model, name) for name, _ in model.named_parameters()}
    attention = {name: p for name, p in model.named_parameters() if LAYERS[kind]["type"] in kinds[name]}
    assert attention
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in attention.values())
    assert any(parameter.grad.abs().max() > 0 for parameter in attention.values() if parameter.grad is not None)


def owners(model: Any, name: str) -> set[str]:
    """The classes of all modules that a parameter is in."""
    parts = name.split(".")[:-1]
    return {type(model.get_submodule(".".join(parts[: i + 1]))).__name__ for i in range(len(parts))}


def attention_in(block: Any) -> Any:
    [layer] = [part for part in block.modules() if type(part).__name__ == "SqueezeExcitation"]
    return layer


def as_in_the_figure(block: Any, placement: str, x: Tensor) -> Tensor:
    """A block's output, from its own convolutions and norms."""
    # 'pre', 'post' and 'identity' divide by the gate of 0.5 that SE starts with.
    attention = attention_in(block)
    attend = (lambda y: 2 * attention(y)) if placement in ("pre", "post", "identity") else attention
    convolutions = [getattr(block, f"conv{i}") for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
    y = attend(x) if placement == "pre" else x
    for number, conv in enumerate(convolutions, start=1):
        # Without what was inserted in front of it.
        y = nn.functional.conv2d(y, conv.weight, None, conv.stride, conv.padding)
        y = getattr(block, f"norm{number}")(y) if number < len(convolutions) else getattr(block, f"bn{number}")(y)
        y = y.relu() if number < len(convolutions) else y
        if placement == "conv2" and number == 2:
            y = attend(y)
    if placement == "standard":
        y = attend(y)
    shortcut = x
    if isinstance(block.downsample, nn.Sequential):
        first: Any = block.downsample[0]
        norm: Any = block.downsample[1]
        shortcut = nn.functional.batch_norm(
            first(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    out = (y + (attend(shortcut) if placement == "identity" else shortcut)).relu()
    return attend(out) if placement == "post" else out


@pytest.mark.parametrize(("depth", "placement"), CASES)
def test_each_is_where_the_figure_has_it(depth: int, placement: str) -> None:
    model, x = built(depth, placement), torch.randn(2, 16, 16, 24, dtype=torch.float64)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 0.6) if tensor.dim() == 1 else tensor.normal_(0, 0.3)
    model.eval()
    with torch.no_grad():
        expected = x
        for stage in (model.layer1, model.layer2):
            for block in stage:
                expected = as_in_the_figure(block, placement, expected)
        torch.testing.assert_close(model.layer2(model.layer1(x)), expected, rtol=1e-9, atol=1e-9)


def test_frozen_stages_and_initialisers() -> None:
    for placement in ("pre", "post", "identity"):
        model = built(18, placement, "CBAM", frozen_stages=2, norm_eval=True)
        names = {name for name, p in model.named_parameters() if ".inserted_cbam." in name and p.requires_grad}
        assert {name.split(".")[0] for name in names} == {"layer3", "layer4"}
        before = {key: value.clone() for key, value in model.state_dict().items() if ".inserted_" in key}
        model.init_weights()
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
        model.train()
        norms = {name: part for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)}
        assert {name.split(".")[0] for name, norm in norms.items() if norm.training} == {"layer3", "layer4"}
        copied = copy.deepcopy(model)
        x = image()
        for one, other in zip(outputs(model, x), outputs(copied, x), strict=True):
            assert torch.equal(one, other)


def test_what_has_no_such_place_is_refused() -> None:
    for depth, placement, message in (
        (18, "conv2", "placement='conv2' is after the one 3 x 3 convolution of a bottleneck"),
        (50, "front", "placement='front' is unknown: choose one of 'standard', 'pre', 'post', 'identity', 'conv2'"),
    ):
        with pytest.raises(ValueError, match=message):
            built(depth, placement)
    with pytest.raises(ValueError, match="groups=64 does not fit"):
        built(18, "post", attention=dict(type="ShuffleAttention", groups=64))
