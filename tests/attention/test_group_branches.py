"""Shuffle attention taken apart: with its defaults it is shuffle attention, and so is the network around it."""

from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from sa_mmdet.analysis import analyze
from sa_mmdet.attention import GroupBranches, ShuffleAttention


@pytest.mark.parametrize(("channels", "groups"), [(256, 64), (12, 1), (24, 3)])
def test_the_defaults_are_shuffle_attention(channels: int, groups: int) -> None:
    published = ShuffleAttention(channels, groups).double()
    for parameter in published.parameters():
        nn.init.normal_(parameter)
    module = GroupBranches(channels, groups).double()
    module.load_state_dict(published.state_dict(), strict=True)
    x = torch.randn(2, channels, 7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    ours, theirs = module(x), published(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    names = [name for name, _ in published.named_parameters()]
    gradients = [
        torch.autograd.grad((out * weight).sum(), [x, *(dict(layer.named_parameters())[name] for name in names)])
        for out, layer in ((ours, module), (theirs, published))
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_a_network_with_the_defaults_is_sa_net() -> None:
    published: Any = MODELS.build(dict(type="SAResNet", depth=50, norm_eval=False)).double()
    for parameter in published.parameters():
        nn.init.normal_(parameter, 0.1, 0.05)
    model: Any = MODELS.build(dict(type="AttentionResNet", depth=50, attention=dict(type="GroupBranches"))).double()
    state = {name.replace(".sa.", ".branches."): value for name, value in published.state_dict().items()}
    model.load_state_dict(state, strict=True)
    published.eval()
    model.eval()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for ours, theirs in zip(model(image), published(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max().item())


def test_its_defaults_cost_what_sa_net_costs() -> None:
    published, ours, alone = (
        analyze(cfg, convention="paper")
        for cfg in (
            dict(type="SAResNet", depth=50),
            dict(type="AttentionResNet", depth=50, attention=dict(type="GroupBranches")),
            dict(type="AttentionResNet", depth=50, attention=dict(type="GroupBranches", branches="spatial")),
        )
    )
    assert (ours.total, ours.attention_parameters) == (published.total, published.attention_parameters)
    assert alone.total < ours.total  # it pools nothing


def test_an_odd_number_of_channels_is_not_shuffled() -> None:
    options: dict[str, Any] = dict(in_channels=9, groups=3, branches="channel")
    with pytest.raises(ValueError, match="an odd number of channels, 9, cannot be shuffled: set shuffle=False"):
        GroupBranches(**options)
    GroupBranches(**options, shuffle=False)
