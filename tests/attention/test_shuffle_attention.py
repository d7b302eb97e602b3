"""Shuffle attention against the formula, and as a plugin of MMDetection's backbones."""

import mmdet.models
import needs
import pytest
import reference
import torch
from mmdet.registry import MODELS
from torch import nn

from sa_mmdet.attention import ShuffleAttention
from sa_mmdet.ops import shuffle_attention

# N, C, G, H, W: one channel per branch, one group, an odd number of groups, a single position, a single row.
SHAPES = [(2, 8, 4, 5, 7), (1, 12, 1, 4, 4), (3, 24, 3, 6, 2), (2, 16, 2, 1, 1), (1, 64, 16, 1, 9), (2, 256, 64, 7, 5)]


def randomised(channels: int, groups: int) -> ShuffleAttention:
    module = ShuffleAttention(channels, groups).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize(("n", "c", "g", "h", "w"), SHAPES)
def test_outputs_and_gradients_equal_the_formula(n: int, c: int, g: int, h: int, w: int) -> None:
    module = randomised(c, g)
    x = torch.randn(n, c, h, w, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    expected = reference.shuffle_attention(x, dict(module.named_parameters()), g)
    actual = module(x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    inputs = [x, *module.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((actual * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_gradcheck() -> None:
    module = randomised(8, 2)
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))


@pytest.mark.parametrize("dtype", needs.HALF)
def test_half_precision_keeps_its_dtype_and_its_statistics(dtype: torch.dtype) -> None:
    module = ShuffleAttention(32, 4)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 32, 40, 40) + 100  # a sum over the positions that float16 cannot hold
    with torch.autocast("cpu", dtype=dtype):
        actual = module(x.to(dtype))
    assert actual.dtype == dtype
    expected = module(x.to(dtype).float())
    torch.testing.assert_close(actual.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize(("channels", "groups"), [(64, 64), (256, 48), (256, 0), (256, -1), (6, 2)])
def test_groups_that_do_not_fit_are_refused_with_those_that_do(channels: int, groups: int) -> None:
    with pytest.raises(
        ValueError, match=rf"groups={groups} does not fit {channels} channels.*values that fit: 1, ?\d*"
    ):
        ShuffleAttention(channels, groups)


def test_the_function_refuses_shapes_that_do_not_fit() -> None:
    k = torch.zeros(2)
    with pytest.raises(ValueError, match=r"N x C x H x W, got a tensor of shape \(8, 4, 4\)"):
        shuffle_attention(torch.zeros(8, 4, 4), k, k, k, k, k, k, groups=2)
    with pytest.raises(ValueError, match="groups=3 does not fit 8 channels"):
        shuffle_attention(torch.zeros(1, 8, 4, 4), k, k, k, k, k, k, groups=3)


@pytest.mark.parametrize(
    "backbone",
    [
        dict(type="ResNet", depth=50),
        dict(type="ResNeXt", depth=50, groups=32, base_width=4),
        dict(type="Res2Net", depth=50, scales=4, base_width=26),
        dict(type="RegNet", arch="regnetx_400mf"),
    ],
    ids=lambda backbone: backbone["type"],
)
def test_mmdetections_backbones_take_the_plugin(backbone: dict) -> None:
    groups = 16 if backbone["type"] == "RegNet" else 64
    plugin = dict(cfg=dict(type="ShuffleAttention", groups=groups), position="after_conv3")
    model = MODELS.build({**backbone, "plugins": [plugin]})
    assert isinstance(model, getattr(mmdet.models, backbone["type"]))
    outputs = model(torch.randn(1, 3, 64, 64))
    sum(out.sum() for out in outputs).backward()
    attention = [m for m in model.modules() if isinstance(m, ShuffleAttention)]
    assert len(attention) >= 16
    assert all(p.grad is not None and p.grad.isfinite().all() for m in attention for p in m.parameters())
