"""The blocks of every variant, fused, against MMDetection's own."""

import copy
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from sa_mmdet import obstacles_to_fusion
from sa_mmdet.ops import compiled

pytestmark = pytest.mark.skipif(compiled.missing is not None, reason=str(compiled.missing))
VARIANTS: dict[str, Any] = {
    "none": None,
    "SE": dict(type="SqueezeExcitation", ratio=4),
    "ECA": dict(type="EfficientChannelAttention"),
    "SGE": dict(type="SpatialGroupEnhance", groups=4),
    "CBAM": dict(type="CBAM", ratio=4),
    "SA": dict(type="ShuffleAttention", groups=8),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def pair(variant: str, **options: Any) -> tuple[Any, Any]:
    """The same small network twice: fused, and with MMDetection's own blocks; in float64."""
    cfg = dict(type="AttentionResNet", depth=50, base_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1))
    cfg |= dict(out_indices=(0, 1), frozen_stages=-1, attention=VARIANTS[variant])
    fused: Any = MODELS.build({**cfg, **options})
    for name, tensor in fused.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and tensor.dim() < 4:
            tensor.normal_(0.3, 0.5)
    fused.double().train()
    plain = copy.deepcopy(fused)
    for module in plain.modules():
        if hasattr(module, "implementation"):
            module.implementation = "reference"
    assert set(obstacles_to_fusion(plain).values()) == {"implementation='reference' is asked for"}
    return fused, plain


def results(model: Any, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    leaf = x.clone().requires_grad_()
    outs = model(leaf)
    sum((out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum() for out in outs).backward()
    gradients = [leaf.grad, *(parameter.grad for parameter in model.parameters())]
    return [*outs, *(gradient for gradient in gradients if gradient is not None)]


def assert_same(fused: Any, plain: Any, x: Tensor) -> None:
    for one, other in zip(results(fused, x), results(plain, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * max(1, other.abs().max().item()))


def image(*size: int) -> Tensor:
    return torch.randn(size or (2, 3, 32, 48), dtype=torch.float64)


@every_variant
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(with_cp=True),
        dict(avg_down=True),
        dict(style="caffe"),
        dict(keep_inputs=True),
        dict(norm_eval=False),
        dict(plugins=[dict(cfg=dict(type="ContextBlock", ratio=1 / 4), position="after_conv1")]),
    ],
    ids=str,
)
def test_a_backbone_gives_the_same_either_way(variant: str, options: dict[str, Any]) -> None:
    if variant == "SGE" and options.get("with_cp"):
        pytest.skip("MMDetection's block changes a checkpoint's result, which SGE returns as a view, in place")
    fused, plain = pair(variant, **options)
    in_training = options.get("norm_eval") is False
    assert all(in_training == bool(reason) for reason in obstacles_to_fusion(fused).values())
    assert_same(fused, plain, image())


@every_variant
def test_hooks_are_called(variant: str) -> None:
    models = pair(variant)
    names = ["layer1.0.conv1", "layer1.0.bn1", "layer1.1.bn2", "layer2.0.downsample", "layer2.0.downsample.1"]
    names += ["layer2.0.relu", "layer2.1.bn3", "layer2.1", "layer2.2.conv3"]
    seen: list[list[tuple[str, Tensor]]] = [[], []]
    for model, found in zip(models, seen, strict=True):
        for name in names:
            model.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name, found=found: found.append((name, output.clone()))
            )
    assert_same(*models, image())
    ours, theirs = (dict(found) for found in seen)
    assert ours.keys() == theirs.keys() == set(names)
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9)


@every_variant
def test_channels_last_half_precision_and_empty_batches(variant: str) -> None:
    fused, plain = pair(variant)
    assert_same(fused, plain, image().to(memory_format=torch.channels_last))
    with torch.no_grad():
        assert [out.shape for out in fused(image(0, 3, 32, 48))] == [(0, 32, 8, 12), (0, 64, 4, 6)]
    fused.float()
    x = image().float()
    exact = plain(x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = fused(x), plain.float()(x)
    for one, other, true in zip(ours, theirs, exact, strict=True):
        assert one.dtype == other.dtype == torch.bfloat16
        assert (one.double() - true).norm() < 1.1 * (other.double() - true).norm()


@pytest.mark.parametrize(
    "variant", [name if name == "SA" else pytest.param(name, marks=pytest.mark.long) for name in VARIANTS]
)
def test_transforms_and_compilers_see_what_they_know(variant: str) -> None:
    fused, plain = pair(variant)
    fused.eval()
    plain.eval()
    x = image(1, 3, 16, 16)
    expected = plain(x)[1]
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(fused, backend="aot_eager")(x)[1], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.func.vmap(lambda x: fused(x[None])[1][0])(x), expected, rtol=1e-9, atol=1e-9)
    along = image(1, 3, 16, 16)
    found, wanted = (torch.func.jvp(lambda x, m=model: m(x)[1], (x,), (along,))[1] for model in (fused, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    traced = torch.jit.trace(fused, x, check_trace=False)
    assert "sa_mmdet::" not in str(traced.inlined_graph)
    assert "sa_mmdet_cpu::" not in str(traced.inlined_graph)


@every_variant
def test_second_derivatives(variant: str) -> None:
    x, found = image(1, 3, 16, 16), []
    for model in pair(variant):
        model.eval()
        leaf = x.clone().requires_grad_()
        first = torch.autograd.grad(model(leaf)[1].square().sum(), [leaf, *model.parameters()], create_graph=True)
        penalty = torch.stack([gradient.square().sum() for gradient in first]).sum()
        found.append(torch.autograd.grad(penalty, [leaf, *model.parameters()], allow_unused=True))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8 * max(1, other.abs().max().item()))


def test_a_subclass_of_an_attention_runs_its_own_forward() -> None:
    fused, _ = pair("SE")
    block = fused.layer1[1]

    class Own(type(block.se)):  # type: ignore[misc]
        pass

    block.se.__class__ = Own
    assert block.obstacle_to_fusion() == "se is of the class Own"
    block.se = nn.Identity()
    assert "not the only plugin" in str(block.obstacle_to_fusion())


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(
        ValueError, match="implementation='quick' is unknown: choose one of 'auto', 'fused', 'reference'"
    ):
        MODELS.build(dict(type="AttentionResNet", depth=50, implementation="quick"))
