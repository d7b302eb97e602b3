"""ResNets for images of 32 x 32 pixels, against the published sizes and in plain form."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

# The numbers of parameters in millions (arXiv 1512.03385, Table 6, and 1603.05027 for ResNet-164), with a classifier.
PUBLISHED = {20: 0.27, 32: 0.46, 56: 0.85, 110: 1.7, 164: 1.7}


def build(depth: int, **options: Any) -> Any:
    return MODELS.build(dict(type="CifarResNet", depth=depth, **options))


@pytest.mark.parametrize("depth", PUBLISHED)
def test_its_size_is_that_of_the_paper(depth: int) -> None:
    model = build(depth)
    [features] = model(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 256 if depth == 164 else 64, 8, 8)
    convolutions = [layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    assert sum("downsample" not in name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)) == depth - 1
    assert convolutions[0].weight.shape == (16, 3, 3, 3)
    parameters = sum(p.numel() for p in model.parameters()) + features.shape[1] * 10 + 10
    # The last digit that is published, and the projections that the paper's identities do not have.
    assert parameters / 1e6 == pytest.approx(PUBLISHED[depth], abs=0.06 if depth >= 110 else 0.01)


def test_all_of_it_learns_from_scratch() -> None:
    model = build(20, attention=dict(type="ShuffleAttention", groups=8))
    model.init_weights()
    model.train()
    assert all(layer.training for layer in model.modules())
    model(torch.randn(2, 3, 32, 32))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.layer1[0].bn2.weight.min() == 1


@pytest.mark.parametrize("depth", [20, 164])
@pytest.mark.parametrize(
    "attention",
    [
        dict(type="ShuffleAttention", groups=8),
        dict(type="SqueezeExcitation", ratio=16),
        dict(type="GroupBranches", groups=1, fusion="add"),
    ],
    ids=str,
)
def test_it_starts_from_the_plain_function(depth: int, attention: dict, tmp_path: Path) -> None:
    plain = build(depth).double()
    for name, tensor in plain.state_dict().items():  # as if trained, with no norm that is an identity
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.uniform_(0.1, 0.4) if "running_var" not in name else tensor.uniform_(0.5, 1.5)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    init_cfg = dict(type="ResNetPretrained", checkpoint=str(tmp_path / "plain.pth"))
    model = build(depth, attention=attention, init_cfg=init_cfg).double()
    model.init_weights()
    model.eval()
    plain.eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x)[0], plain(x)[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(depth=50), "depth=50 is unknown: choose one of 20, 32, 56, 110, 164"),
        (dict(depth=20, attention=[None] * 4), "4 entries, but num_stages=3"),
        (dict(depth=20, attention=dict(type="ShuffleAttention", groups=16)), "groups=16 does not fit 16 channels"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type="CifarResNet", **options))
