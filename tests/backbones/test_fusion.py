"""Wherever a user could tell the fused block from MMDetection's own block, MMDetection's own forward runs."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
import reference
import torch
from mmdet.models.backbones.resnet import Bottleneck
from mmdet.registry import MODELS
from mmengine.registry import MODELS as ROOT
from mmengine.utils import digit_version
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrize, prune

from sa_mmdet import obstacles_to_fusion, ops
from sa_mmdet.attention import ShuffleAttention
from sa_mmdet.backbones.bottleneck import FusedBottleneck
from sa_mmdet.ops.backends import AVAILABLE

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="custom operators came with PyTorch 2.4")
Pair = tuple[Any, Any]
LAYERS = ("sa", "bn3", "relu", "conv3", "sa.gn")
SMALL = dict(type="SAResNet", depth=50, base_channels=8, groups=8, num_stages=1, strides=(1,), dilations=(1,))
SMALL |= dict(out_indices=(0,), frozen_stages=-1)


@ROOT.register_module()
class HalvedShuffleAttention(ShuffleAttention):
    """A user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


@ROOT.register_module()
class DoubledBatchNorm(nn.BatchNorm2d):
    """A user's own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def backbones(**options: Any) -> Pair:
    """The same small network twice, as it is built and with ``implementation='reference'``, in float64."""
    fused: Any = MODELS.build({**SMALL, **options})
    for name, tensor in fused.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif (tensor.is_floating_point() and tensor.dim() < 4) or ".sa." in name:
            tensor.normal_(0.3, 0.5)
    fused.double().train()
    plain = copy.deepcopy(fused)
    for module in plain.modules():
        if isinstance(module, ShuffleAttention):
            module.implementation = "reference"
    return fused, plain


@pytest.fixture
def pair() -> Pair:
    """A block whose tail is fused, and the same block with ``implementation='reference'``."""
    fused, plain = backbones()
    assert fused.layer1[1].obstacle_to_fusion() is None
    return fused.layer1[1], plain.layer1[1]


def image(size: tuple[int, ...] = (2, 32, 5, 6)) -> Tensor:
    return torch.randn(size, dtype=torch.float64)


def assert_same(one: Any, other: Any, x: Tensor | None = None) -> None:
    """Compare the outputs and the gradients of all inputs and parameters."""
    x = image() if x is None else x
    results = []
    for module in (one, other):
        leaf = x.clone().requires_grad_()
        leaves = [leaf, *(parameter for parameter in module.parameters() if parameter.requires_grad)]
        out = module(leaf)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        results.append([out, *torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True)])
    for ours, theirs in zip(*results, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def operators_called(function: Callable[[], object]) -> int:
    """The number of calls of fused shuffle attention."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Count.calls += str(func) in (
                "sa_mmdet.shuffle_attention.default",
                "sa_mmdet_cpu.shuffle_attention_forward.default",
            )
            return func(*args, **(kwargs or {}))

    with Count():
        function()
    return Count.calls


def test_an_unchanged_block_is_fused(pair: Pair) -> None:
    assert operators_called(lambda: pair[0](image())) == 1
    assert_same(*pair)


# --- a user's own classes and functions


@pytest.mark.parametrize(
    "options",
    [
        dict(type="AttentionResNet", attention=dict(type="HalvedShuffleAttention", groups=8), groups=None),
        dict(norm_cfg=dict(type="DoubledBatchNorm")),
    ],
    ids=["attention", "norm"],
)
def test_a_subclass_runs_its_own_forward(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = {key: value for key, value in {**SMALL, **options}.items() if value is not None}
    fused: Any = MODELS.build(cfg)
    fused.double().train()
    block = fused.layer1[1]
    layer = block.sa if isinstance(block.sa, HalvedShuffleAttention) else block.bn3
    calls: list[nn.Module] = []
    own = type(layer).forward

    def forward(self: Any, x: Tensor) -> Tensor:
        calls.append(self)
        return own(self, x)

    monkeypatch.setattr(type(layer), "forward", forward)
    block(image())
    assert calls.count(layer) == 1
    assert type(layer).__name__ in str(block.obstacle_to_fusion())


def scaled(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: 0.5 * forward(x)


@pytest.mark.parametrize("name", LAYERS)
def test_a_forward_replaced_on_an_instance_is_called(pair: Pair, name: str) -> None:
    before = pair[1](x := image())
    for block in pair:
        layer = block.get_submodule(name)
        layer.forward = scaled(layer.forward)
    assert_same(*pair, x)
    assert not torch.allclose(pair[0](x), before)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.ReLU, ShuffleAttention, nn.GroupNorm, Bottleneck])
def test_a_forward_replaced_on_a_class_is_called(pair: Pair, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pair[1](x := image())
    own = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: 0.5 * own(self, x))
    assert_same(*pair, x)
    assert not torch.allclose(pair[0](x), before)


def test_another_way_to_call_modules_is_kept(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[nn.Module] = []
    own: Any = nn.Module.__call__

    def call(self: nn.Module, *arguments: Any, **options: Any) -> Any:
        called.append(self)
        return own(self, *arguments, **options)

    monkeypatch.setattr(nn.Module, "__call__", call)
    pair[0](image())
    assert {pair[0].sa, pair[0].bn3, pair[0].relu} < set(called)


def test_forward_plugin_is_called(pair: Pair) -> None:
    for block in pair:
        block.forward_plugin = lambda x, names, own=block.forward_plugin: 0.5 * own(x, names)
    assert_same(*pair)
    assert pair[0].obstacle_to_fusion() == "forward_plugin is replaced"


def test_what_a_subclass_of_the_block_overrides_is_called(pair: Pair) -> None:
    class Halved(FusedBottleneck):
        def forward_plugin(self, x: Tensor, plugin_names: list[str]) -> Tensor:
            return 0.5 * super().forward_plugin(x, plugin_names)

    class Normless(FusedBottleneck):
        norm3 = property(lambda self: nn.Identity())

    for kind in (Halved, Normless):
        before = pair[1](x := image())
        for block in pair:
            block.__class__ = kind
        assert_same(*pair, x)
        assert not torch.allclose(pair[0](x), before)


# --- hooks


class Calls:
    """Records what hooks see: the kind of hook and copies of the tensors."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Tensor]] = []

    def __call__(self, kind: str) -> Callable[..., None]:
        def hook(module: nn.Module, *tensors: Any) -> None:
            flat = [t for group in tensors for t in (group if isinstance(group, tuple) else (group,)) if t is not None]
            self.seen.extend((f"{kind} {type(module).__name__}", tensor.detach().clone()) for tensor in flat)

        return hook


KINDS = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")


def outcome(block: Any, calls: Calls, x: Tensor) -> list[tuple[str, Any]]:
    """What hooks see in a step; PyTorch refuses backward hooks on what the block changes in place."""
    try:
        block(x.clone().requires_grad_()).sum().backward()
    except RuntimeError as error:
        return [("refused", torch.tensor("BackwardHook" in str(error)))]
    return calls.seen


def assert_same_calls(one: list[tuple[str, Tensor]], other: list[tuple[str, Tensor]]) -> None:
    assert [kind for kind, _ in one] == [kind for kind, _ in other] != []
    for (_, ours), (_, theirs) in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_hook_sees_what_it_sees_in_mmdetections_block(pair: Pair, name: str, kind: str) -> None:
    x, found = image(), []
    for block in pair:
        calls = Calls()
        getattr(block.get_submodule(name), f"register_{kind}")(calls(kind))
        found.append(outcome(block, calls, x))
    assert_same_calls(*found)
    if name == "relu" and kind == "forward_hook":
        assert len(found[0]) == 3 * 2  # inputs and outputs of three calls, the last of the whole block's width
        assert found[0][-1][1].shape == x.shape


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_hooks_on_all_modules_see_all_layers(pair: Pair, kind: str) -> None:
    x, found = image(), []
    for block in pair:
        calls = Calls()
        handle = getattr(global_hooks, f"register_module_{kind}")(calls(kind))
        try:
            found.append(outcome(block, calls, x))
        finally:
            handle.remove()
    assert_same_calls(*found)
    assert kind == "full_backward_hook" or any("GroupNorm" in name for name, _ in found[0])


def test_a_hook_may_change_what_passes(pair: Pair) -> None:
    for block in pair:
        block.sa.gn.register_forward_hook(lambda module, inputs, output: 0.5 * output)
    before = pair[1](x := image())
    assert_same(*pair, x)
    for block in pair:
        block.sa.gn._forward_hooks.clear()
    assert not torch.allclose(pair[0](x), before)
    assert pair[0].obstacle_to_fusion() is None


# --- the normalisation in the attention


def attention_with(norm: Callable[[Any], nn.Module]) -> tuple[Any, Tensor, Tensor]:
    """An attention whose gn is replaced, an input, and the formula's output with the result of the replacement."""
    attention: Any = ShuffleAttention(16, 4).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    attention.gn = norm(attention)
    x = image((2, 16, 5, 6))
    spatial = x.view(2, 4, 2, 2, 5, 6)[:, :, 1].reshape(8, 2, 5, 6)
    parameters = {name: p.view(1, 1, 2, 1, 1) for name, p in attention.named_parameters(recurse=False)}
    normalised = attention.gn(spatial).view(2, 4, 2, 5, 6)
    halves = x.view(2, 4, 2, 2, 5, 6)
    mean = halves[:, :, 0].mean((3, 4), keepdim=True)
    channel = halves[:, :, 0] * torch.sigmoid(parameters["cweight"] * mean + parameters["cbias"])
    branch = halves[:, :, 1] * torch.sigmoid(parameters["sweight"] * normalised + parameters["sbias"])
    gated = torch.stack((channel, branch), 2).view(2, 2, 8, 5, 6)
    return attention, x, gated.transpose(1, 2).reshape(x.shape)


def parametrized(attention: Any) -> nn.Module:
    class Square(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight.square()

    parametrize.register_parametrization(attention.gn, "weight", Square())
    return attention.gn


def pruned(attention: Any) -> nn.Module:
    prune.l1_unstructured(attention.gn, "weight", amount=0.5)
    return attention.gn


@pytest.mark.parametrize(
    "norm",
    [
        lambda attention: nn.InstanceNorm2d(2),
        lambda attention: nn.Identity(),
        lambda attention: nn.Sequential(attention.gn, nn.Hardtanh()),
        lambda attention: nn.GroupNorm(2, 2, affine=False).double(),
        lambda attention: nn.GroupNorm(1, 2).double(),
        parametrized,
        pruned,
    ],
    ids=["InstanceNorm2d", "Identity", "wrapped", "without weight", "other groups", "parametrized", "pruned"],
)
def test_another_normalisation_is_called(norm: Callable[[Any], nn.Module]) -> None:
    attention, x, expected = attention_with(norm)
    torch.testing.assert_close(attention(x), expected, rtol=1e-10, atol=1e-10)
    assert attention.gates(x)[1].shape == (2, 4, 2, 5, 6)
    attention.implementation = "fused"
    with pytest.raises(ValueError, match=r"'fused' does not apply: gn"):
        attention(x)


def test_a_pruned_normalisation_learns_only_what_remains() -> None:
    attention, x, _ = attention_with(pruned)
    attention(x).square().sum().backward()
    norm: Any = attention.gn
    assert norm.weight_orig.grad is not None
    assert ((norm.weight_orig.grad == 0) == (norm.weight_mask == 0)).all()


def test_the_normalisations_own_eps_is_used(pair: Pair) -> None:
    before = pair[1](x := image())
    for block in pair:
        block.sa.gn.eps = 0.5
    assert_same(*pair, x)
    assert not torch.allclose(pair[0](x), before)


# --- derivatives other than the first


def tangent(function: Callable[[Tensor], Tensor], x: Tensor, along: Tensor) -> Tensor:
    with forward_ad.dual_level():
        result = forward_ad.unpack_dual(function(forward_ad.make_dual(x, along))).tangent
        assert result is not None
        return result.clone()


def test_forward_mode_derivatives(pair: Pair) -> None:
    x, along = image(), image()
    step = 1e-6
    expected = (pair[1](x + step * along) - pair[1](x - step * along)) / (2 * step)
    for found in (tangent(pair[0], x, along), torch.func.jvp(pair[0], (x,), (along,))[1]):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_forward_mode_of_parameters_alone() -> None:
    attention: Any = ShuffleAttention(16, 4).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    x, along, step = image((1, 16, 4, 4)), torch.randn_like(attention.sweight.detach()), 1e-6

    def function(sweight: Tensor) -> Tensor:
        return torch.func.functional_call(attention, {"sweight": sweight}, (x,))

    value = attention.sweight.detach()
    expected = (function(value + step * along) - function(value - step * along)) / (2 * step)
    torch.testing.assert_close(tangent(function, value, along), expected, rtol=1e-5, atol=1e-7)


def test_forward_over_reverse_where_the_forward_was_fused(pair: Pair) -> None:
    x, weight, along = image().requires_grad_(), image(), image()
    out = pair[0](x)
    with forward_ad.dual_level():
        gradient = torch.autograd.grad(out, x, forward_ad.make_dual(weight, along))[0]
        found = forward_ad.unpack_dual(gradient).tangent
    assert found is not None
    expected = torch.autograd.grad(pair[1](x), x, along)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_second_derivatives(pair: Pair) -> None:
    x = image((1, 32, 2, 3))
    results = []
    for block in pair:
        leaf = x.clone().requires_grad_()
        first = torch.autograd.grad(block(leaf).square().sum(), [leaf, *block.parameters()], create_graph=True)
        penalty = torch.stack([gradient.square().sum() for gradient in first]).sum()
        results.append(torch.autograd.grad(penalty, [leaf, *block.parameters()]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8 * max(1, other.abs().max().item()))


@pytest.mark.parametrize("residual", [True, False])
def test_second_derivatives_of_the_operator(residual: bool) -> None:
    x, identity = image((1, 8, 2, 3)), image((1, 8, 2, 3))
    inputs = [x, identity, *(torch.randn(size, dtype=torch.float64) for size in [8] * 2 + [2] * 6)]
    for tensor in inputs:
        tensor.requires_grad_()
    residual_form: Any = ops.shuffle_attention_residual
    alone: Any = ops.shuffle_attention

    def function(x: Tensor, identity: Tensor, scale: Tensor, shift: Tensor, *parameters: Tensor) -> Tensor:
        if residual:
            return residual_form(x, identity, scale, shift, *parameters, 2, implementation="fused")
        return alone(x, *parameters, 2, implementation="fused")

    used = inputs if residual else [inputs[0], *(t.detach() for t in inputs[1:4]), *inputs[4:]]
    assert torch.autograd.gradgradcheck(function, used)


def test_batched_gradients(pair: Pair) -> None:
    x = image((1, 32, 2, 2))
    found, expected = (
        torch.autograd.functional.jacobian(block, x, vectorize=vectorize)
        for block, vectorize in zip(pair, (True, False), strict=True)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


TRANSFORMS: dict[str, Callable[[Any, Tensor], Any]] = {
    "grad": lambda block, x: torch.func.grad(lambda x: block(x).square().sum())(x),
    "vmap": lambda block, x: torch.func.vmap(block)(x.unflatten(0, (2, -1))),
    "jacrev": lambda block, x: torch.func.jacrev(lambda x: block(x).sum((2, 3)))(x),
    "hessian": lambda block, x: torch.func.hessian(lambda x: block(x).square().sum())(x[:1, :, :1, :2]),
    "gradients per sample": lambda block, x: torch.func.vmap(
        torch.func.grad(lambda p, x: torch.func.functional_call(block, p, (x[None],)).square().sum()), (None, 0)
    )({name: parameter.detach() for name, parameter in block.named_parameters()}, x)["sa.gn.weight"],
    "functional_call": lambda block, x: torch.func.functional_call(
        block, {name: 2 * parameter.detach() for name, parameter in block.named_parameters()}, (x,)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(pair: Pair, name: str) -> None:
    x = image((2, 32, 3, 3))
    found, expected = (TRANSFORMS[name](block, x) for block in pair)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version("2.5.0"),
    reason="TorchDynamo cannot tell before PyTorch 2.5 that a transform is active",
)
def test_a_compiled_transform(pair: Pair) -> None:
    x = image((2, 32, 3, 3))
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: torch.func.grad(lambda x: pair[0](x).square().sum())(x), backend="aot_eager")
    expected = torch.func.grad(lambda x: pair[1](x).square().sum())(x)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-9, atol=1e-9)


# --- tracing


def test_torch_fx_traces_the_network_and_sees_the_normalisation() -> None:
    fused, plain = backbones()
    traced = torch.fx.symbolic_trace(fused)
    assert {f"layer1.{i}.sa.gn" for i in range(3)} <= {str(node.target) for node in traced.graph.nodes}
    for size in ((2, 3, 32, 48), (1, 3, 64, 32)):
        x = image(size)
        torch.testing.assert_close(traced(x)[0], plain(x)[0], rtol=1e-9, atol=1e-9)
    copied = copy.deepcopy(traced)
    torch.testing.assert_close(copied(x)[0], plain(x)[0], rtol=1e-9, atol=1e-9)


def test_torch_fx_traces_the_ablations() -> None:
    attention = ShuffleAttention(16, 4, norm=False).double()
    traced = torch.fx.symbolic_trace(attention)
    torch.testing.assert_close(traced(x := image((2, 16, 5, 6))), attention(x))


def test_traces_hold_only_pytorchs_operators() -> None:
    fused, plain = backbones()
    traced = torch.jit.trace(fused, image((2, 3, 32, 48)))
    assert "sa_mmdet::" not in str(traced.inlined_graph)
    x = image((2, 3, 32, 48))
    torch.testing.assert_close(traced(x)[0], plain(x)[0], rtol=1e-9, atol=1e-9)


@needs.export
def test_compile_and_export_see_one_operator_per_block(pair: Pair) -> None:
    x = image()
    name = "sa_mmdet.shuffle_attention.default"
    exported = torch.export.export(pair[0], (x,))
    assert [str(node.target) for node in exported.graph.nodes].count(name) == 1
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    torch.compile(pair[0], backend=backend, fullgraph=True)(x)
    assert seen.count(name) == 1


@needs.onnx
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [pytest.param(True, marks=pytest.mark.long), False])
def test_a_users_own_onnx_export(dynamo: bool, tmp_path: Path) -> None:
    import onnxruntime

    fused, _ = backbones()
    fused.float().eval()
    x = torch.randn(1, 3, 32, 48)
    file = tmp_path / "backbone.onnx"
    torch.onnx.export(fused, (x,), file, dynamo=dynamo)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, fused(x)[0].detach().numpy(), rtol=1e-4, atol=1e-4)


class Wrapper(Tensor):
    """A user's own tensor, which knows only PyTorch's own operators."""

    content: Any

    @staticmethod
    def __new__(cls, content: Tensor) -> "Wrapper":
        make: Any = Tensor._make_wrapper_subclass
        self = make(cls, content.shape, strides=content.stride(), dtype=content.dtype, device=content.device)
        self.content = content
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        assert func.namespace == "aten"
        args, kwargs = torch.utils._pytree.tree_map_only(Wrapper, lambda t: t.content, (args, kwargs or {}))
        return torch.utils._pytree.tree_map_only(Tensor, Wrapper, func(*args, **kwargs))


def test_a_tensor_of_another_class(pair: Pair) -> None:
    x = image()
    with torch.no_grad():
        torch.testing.assert_close(pair[0](Wrapper(x)).content, pair[1](x), rtol=1e-9, atol=1e-9)


# --- empty feature maps


@pytest.mark.parametrize("size", [(0, 8, 3, 4), (2, 8, 0, 4), (0, 8, 0, 0)], ids=str)
@pytest.mark.parametrize("residual", [True, False])
def test_empty_maps_give_what_pytorchs_own_operators_give(size: tuple[int, ...], residual: bool) -> None:
    vectors = [torch.randn(n, dtype=torch.float64).requires_grad_() for n in [8] * 2 + [2] * 6]
    results: list[tuple[Tensor, ...]] = []
    residual_form: Any = ops.shuffle_attention_residual
    alone: Any = ops.shuffle_attention
    for implementation in ("fused", "reference"):
        maps = [image(size).requires_grad_() for _ in range(2)]
        used = [*maps, *vectors] if residual else [maps[0], *vectors[2:]]
        function = residual_form if residual else alone
        out = function(*used, 2, implementation=implementation)
        results.append((out, *torch.autograd.grad(out.sum(), used)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


# --- the report


def test_the_report_says_which_blocks_are_fused_and_why_the_others_are_not() -> None:
    detector: Any = nn.Module()
    detector.backbone, plain = backbones()
    assert obstacles_to_fusion(detector) == dict.fromkeys(f"backbone.layer1.{i}" for i in range(3))
    blocks = detector.backbone.layer1
    blocks[0].relu.register_forward_hook(lambda *_: None)
    blocks[1].bn3.train()
    blocks[2].sa.gn = nn.Identity()
    assert obstacles_to_fusion(detector) == {
        "backbone.layer1.0": "relu has hooks",
        "backbone.layer1.1": "bn3 is in training mode",
        "backbone.layer1.2": "gn is of the class Identity",
    }
    assert set(obstacles_to_fusion(plain).values()) == {"implementation='reference' is asked for"}
    shallow: Any = MODELS.build(dict(type="SAResNet", depth=18, groups=8))
    assert set(obstacles_to_fusion(shallow).values()) == {"PluginBasicBlock has no fused form"}
    assert obstacles_to_fusion(MODELS.build(dict(type="ResNet", depth=18))) == {}


def test_reference_formula_is_the_papers() -> None:
    """The reference of the tests above shares code with the package: compare it with the formula."""
    _, plain = backbones()
    block, x = plain.layer1[1], image((1, 32, 3, 4))
    out = block.relu(block.bn1(block.conv1(x)))
    out = block.bn3(block.conv3(block.relu(block.bn2(block.conv2(out)))))
    gated = reference.shuffle_attention(out, dict(block.sa.named_parameters()), 8)
    torch.testing.assert_close(block(x), (gated + x).clamp(min=0), rtol=1e-9, atol=1e-9)
