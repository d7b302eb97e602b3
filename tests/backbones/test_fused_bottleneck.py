"""Backbones with the fused operator against MMDetection's own blocks: gradients, hooks, a short training."""

from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn


def backbones(**options: Any) -> tuple[Any, Any]:
    """The same SA-ResNet-50 twice: fused where that is possible, and with MMDetection's own blocks."""
    both = [
        MODELS.build(dict(type="SAResNet", depth=50, implementation=implementation, **options))
        for implementation in ("auto", "reference")
    ]
    for name, tensor in both[0].state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and tensor.dim() < 4:
            tensor.normal_(0, 0.3)
    both[1].load_state_dict(both[0].state_dict(), strict=True)
    for model in both:
        model.double()
        model.train()
    return both[0], both[1]


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        pytest.param(dict(frozen_stages=1), marks=pytest.mark.long),
        pytest.param(dict(with_cp=True), marks=pytest.mark.long),
        dict(norm_eval=False),
        dict(stage_with_attention=(False, True, True, False)),
        pytest.param(
            dict(plugins=[dict(cfg=dict(type="ContextBlock", ratio=1 / 16), position="after_conv2")]),
            marks=pytest.mark.long,
        ),
        dict(plugins=[dict(cfg=dict(type="ContextBlock", ratio=1 / 16), position="after_conv3")]),
    ],
    ids=str,
)
def test_a_backbone_gives_the_same_either_way(options: dict[str, Any]) -> None:
    fused, plain = backbones(**options)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for model in (fused, plain):
        sum(out.square().mean() for out in model(x)).backward()
    for (name, one), other in zip(fused.named_parameters(), plain.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-8 * other.grad.abs().max(), msg=name)


def test_hooks_on_the_attention_are_still_called() -> None:
    model, _ = backbones()
    model.eval()
    seen: list[tuple[int, ...]] = []
    model.layer1[0].sa.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    model(torch.randn(1, 3, 64, 64, dtype=torch.float64))
    assert seen == [(1, 256, 16, 16)]


def test_fused_is_refused_where_it_does_not_apply() -> None:
    model = MODELS.build(dict(type="SAResNet", depth=50, groups=1, implementation="fused"))
    with pytest.raises(ValueError, match="groups=1 is odd"):
        model(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match="implementation='quick' is unknown"):
        MODELS.build(dict(type="SAResNet", depth=50, implementation="quick"))


def test_ten_steps_follow_the_same_loss() -> None:
    losses: dict[str, list[float]] = {}
    for implementation in ("auto", "reference"):
        torch.manual_seed(0)
        backbone = dict(type="SAResNet", depth=50, implementation=implementation, frozen_stages=-1)
        model = MODELS.build(backbone)
        model.init_weights()
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        x, target = torch.randn(2, 3, 64, 64), torch.randn(2, 2048, 2, 2)
        losses[implementation] = []
        for _ in range(10):
            loss = nn.functional.mse_loss(model(x)[-1], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[implementation].append(loss.item())
    ours, theirs = torch.tensor(losses["auto"]), torch.tensor(losses["reference"])
    assert theirs[-1] < theirs[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
