"""The pointwise work of blocks as if on a GPU: CPU tensors go to Triton's kernels, run by Triton's interpreter."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import needs
import pytest
import torch
from mmdet.registry import MODELS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sa_mmdet import obstacles_to_fusion
from sa_mmdet.ops import backends
from sa_mmdet.ops.block_end import BlockEnd, norm_relu
from sa_mmdet.ops.eval_norm import NO_NORM, EvalNorm

pytestmark = [
    needs.triton,
    needs.triton_interpreter(),
    pytest.mark.filterwarnings("error:a fused kernel fails"),
]
INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
DEVICE = "cpu" if INTERPRETED else "cuda"
here = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="neither a GPU nor Triton's interpreter"
)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own, with Triton's interpreter")
LAYOUTS = [torch.contiguous_format, torch.channels_last]
EPS = 1e-3
# N, C, H, W and G: groups of 6 channels; of 20, more than a contiguous tile has; one group of several tiles; one
# position; rows of several tiles.
SHAPES = [((2, 12, 5, 7), 2), ((1, 80, 3, 9), 4), ((1, 70, 2, 3), 1), ((2, 8, 1, 1), 4), ((1, 4, 33, 40), 2)]
CASES: list[dict[str, bool]] = [
    dict(identity=False),
    dict(),
    dict(channel=True, identity_norm=True),
    dict(position=True),
    dict(channel=True, position=True, identity_norm=True),
    dict(norm=False),
]


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="the tests below run here")
@pytest.mark.parametrize(
    "which",
    [
        "(equal_the_formula and float32 and shape0 and case4) or infinity or pools or (backbone and SGE)",
        pytest.param("", marks=pytest.mark.long),
    ],
    ids=["some", "all"],
)
def test_as_if_on_a_gpu(which: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", which, __file__]
    if not which:
        command += ["-m", "long or not long"]
    result = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:]
    assert " passed" in result.stdout


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Send CPU tensors to Triton's kernels, and list the calls."""
    found: list[str] = []
    if not INTERPRETED and not torch.cuda.is_available():
        return found
    if INTERPRETED:
        monkeypatch.setattr(backends, "by_triton", lambda x: True)
    for name in ("forward", "backward"):
        kernel = getattr(backends.triton_block_end, name)

        def counted(*arguments: Any, name: str = name, kernel: Any = kernel) -> Any:
            found.append(name)
            return kernel(*arguments)

        monkeypatch.setattr(backends.triton_block_end, name, counted)
    return found


def normed(x: Tensor, norm: EvalNorm) -> Tensor:
    """Batch norm, written from its definition."""
    if norm == NO_NORM:
        return x
    weight, bias, mean, variance = (vector.view(-1, 1, 1) for vector in norm[:4] if vector is not None)
    return (x - mean) / torch.sqrt(variance + EPS) * weight + bias


class Inputs:
    """Random tensors of a block's end; those of :meth:`leaves` require gradients."""

    def __init__(
        self,
        shape: tuple[int, ...] = SHAPES[0][0],
        groups: int = 2,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = LAYOUTS[0],
        identity: bool = True,
        norm: bool = True,
        channel: bool = False,
        position: bool = False,
        identity_norm: bool = False,
    ):
        n, c, h, w = shape

        def image() -> Tensor:
            return torch.randn(shape, device=DEVICE).to(dtype).contiguous(memory_format=layout).requires_grad_()

        def make_norm() -> EvalNorm:
            weight, bias, mean = (torch.randn(c, device=DEVICE) for _ in range(3))
            weight[0] = 0  # as a batch norm that starts a block as an identity
            variance = torch.rand(c, device=DEVICE) + 0.3
            return EvalNorm(weight.requires_grad_(), bias.requires_grad_(), mean, variance, EPS)

        self.x, self.identity = image(), image() if identity else None
        self.norm = make_norm() if norm else NO_NORM
        self.identity_norm = make_norm() if identity_norm else NO_NORM
        self.channel = torch.rand(n, c, device=DEVICE).requires_grad_() if channel else None
        self.position = torch.rand(n, groups, h, w, device=DEVICE).requires_grad_() if position else None

    def leaves(self) -> list[Tensor]:
        vectors = [vector for norm in (self.norm, self.identity_norm) for vector in norm[:2]]
        given = [self.x, self.identity, *vectors, self.channel, self.position]
        return [tensor for tensor in given if tensor is not None]

    def fused(self) -> Tensor:
        if self.identity is None:
            return norm_relu(self.x, self.norm)
        norm = None if self.identity_norm == NO_NORM else self.identity_norm
        return BlockEnd(self.x, self.identity, self.norm, norm).gated(self.channel, self.position)

    def before_relu(self) -> Tensor:
        """By PyTorch's operators in float64."""
        y = normed(self.x.double(), self.norm)
        if self.channel is not None:
            y = y * self.channel[:, :, None, None]
        if self.position is not None:
            y = y * self.position.repeat_interleave(y.shape[1] // self.position.shape[1], 1)
        return y if self.identity is None else y + normed(self.identity.double(), self.identity_norm)


def gradients(out: Tensor, leaves: list[Tensor], passed: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(out, leaves, passed.to(out.dtype)))


def assert_close(found: Tensor, wanted: Tensor, tolerance: float = 3e-5) -> None:
    bound = tolerance * max([1.0, *wanted.detach().abs().flatten().tolist()])
    torch.testing.assert_close(found.double(), wanted.double(), rtol=tolerance, atol=bound)


@here
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{CASES.index(case)}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=[f"shape{i}" for i in range(len(SHAPES))])
def test_kernels_equal_the_formula(
    shape: tuple[int, ...],
    groups: int,
    dtype: torch.dtype,
    case: dict[str, bool],
    layout: torch.memory_format,
    calls: list[str],
) -> None:
    inputs = Inputs(shape, groups, dtype, layout, **case)
    out, linear = inputs.fused(), inputs.before_relu()
    tolerance = {torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=layout)
    assert_close(out, linear.clamp(min=0), tolerance)
    # The ReLU passes a gradient where the kernel's own result is positive, which may be rounded to zero.
    passed = torch.randn(shape, device=DEVICE).to(dtype)
    found = gradients(out, inputs.leaves(), passed)
    assert calls == ["forward", "backward"]
    assert found[0].is_contiguous(memory_format=layout)
    for one, other in zip(found, gradients(linear, inputs.leaves(), passed * (out > 0)), strict=True):
        assert_close(one, other, tolerance)


@here
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["x", "identity", "x alone"])
def test_nan_and_infinity_pass_as_through_pytorchs_operators(where: str, value: float) -> None:
    inputs = Inputs((1, 6, 3, 3), channel=where != "x alone", identity=where != "x alone")
    getattr(inputs, where.split()[0]).data[0, 1, 2, 1] = value
    expected = inputs.before_relu().relu()
    found = inputs.fused()
    passed = torch.ones_like(found)
    pairs = zip(gradients(found, inputs.leaves(), passed), gradients(expected, inputs.leaves(), passed), strict=True)
    for one, other in ((found, expected), *pairs):
        torch.testing.assert_close(one.double(), other.double(), equal_nan=True, rtol=1e-4, atol=1e-4)


@here
def test_a_huge_mean_costs_no_digits() -> None:
    inputs = Inputs(identity=False)
    assert inputs.norm.mean is not None
    inputs.norm.mean.add_(1e4)
    inputs.x.data.add_(1e4)
    assert_close(inputs.fused(), inputs.before_relu().clamp(min=0), 1e-6)


@here
def test_results_repeat() -> None:
    inputs = Inputs((1, 8, 23, 31), channel=True, position=True, identity_norm=True)
    runs = []
    for _ in range(2):
        out = inputs.fused()
        runs.append([out, *gradients(out, inputs.leaves(), torch.linspace(-1, 1, out.numel()).view(out.shape))])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@here
@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)], ids=str)
@pytest.mark.parametrize("case", [CASES[0], CASES[4]], ids=str)
def test_sizes_of_zero(shape: tuple[int, ...], case: dict[str, bool], calls: list[str]) -> None:
    inputs = Inputs(shape, **case)  # type: ignore[arg-type]
    out = inputs.fused()
    found = gradients(out, inputs.leaves(), torch.ones_like(out))
    assert not calls
    assert [gradient.shape for gradient in found] == [leaf.shape for leaf in inputs.leaves()]
    assert all(not gradient.any() for gradient in found)


def _strided() -> dict[str, Tensor]:
    base = torch.randn(2, 16, 6, 6)
    return {
        "expanded": base[:1, :8].expand(2, 8, 6, 6),
        "transposed": base[:, :8].transpose(2, 3),
        "strided": base[:, ::2, ::2, ::2],
        "offset": base.flatten()[3 : 3 + 2 * 8 * 9].view(2, 8, 3, 3),
        "a crop, channels-last": base.contiguous(memory_format=torch.channels_last)[:, :8, 1:3, 2:5],
        "one position": torch.randn(16).as_strided((1, 8, 1, 1), (7, 1, 5, 3)),
    }


@interpreted
@pytest.mark.parametrize("name", list(_strided()))
def test_unusual_strides_and_their_fake_forms(name: str) -> None:
    x = _strided()[name]
    one, position, channel = torch.rand(8), torch.rand(x.shape[0], 2, *x.shape[2:]), torch.rand(x.shape[0], 8)
    gradient = torch.randn(x.shape).transpose(2, 3).contiguous().transpose(2, 3)
    operators = torch.ops.sa_mmdet

    def run(x: Tensor, one: Tensor, position: Tensor, channel: Tensor, gradient: Tensor) -> list[Tensor]:
        norm = (one, one, one, one, EPS)
        out = operators.block_end(x, x, *norm, channel, position, *norm)
        alone = operators.block_end(x, None, *norm, None, None, None, None, None, None, 0.0)
        first = operators.block_end_backward(gradient, out, x, x, *norm, channel, position, *norm)
        second = operators.block_end_backward(gradient, None, x, None, *norm, None, None, None, None, None, None, 0.0)
        return [out, alone, *first, *second]

    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (x, one, position, channel, gradient)]
    real, plain = run(x, one, position, channel, gradient), run(x.clone(), one, position, channel, gradient.clone())
    with mode:
        fake = run(*fakes)
    for found, promised, other in zip(real, fake, plain, strict=True):
        assert (found.shape, found.stride(), found.dtype) == (promised.shape, promised.stride(), promised.dtype)
        torch.testing.assert_close(found, other)


@interpreted
@pytest.mark.parametrize("case", [CASES[0], CASES[4]], ids=str)
def test_the_operator_keeps_pytorchs_rules(case: dict[str, bool]) -> None:
    inputs = Inputs((2, 4, 2, 3), **case)  # type: ignore[arg-type]
    gates = (inputs.channel, inputs.position)
    arguments = (inputs.x, inputs.identity, *inputs.norm, *gates, *inputs.identity_norm)
    torch.library.opcheck(torch.ops.sa_mmdet.block_end.default, arguments)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype, calls: list[str]) -> None:
    inputs = Inputs(**CASES[4])  # type: ignore[arg-type]
    leaves, linear = inputs.leaves(), inputs.before_relu()
    inputs.x = inputs.x.to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        out = inputs.fused()
    found = gradients(out, leaves, torch.ones_like(out))
    assert calls == ["forward", "backward"]
    assert out.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps
    assert_close(out, linear.clamp(min=0), tolerance)
    for one, other in zip(found, gradients(linear, leaves, (out > 0).double()), strict=True):
        assert one.dtype == torch.float32
        assert_close(one, other, tolerance)


@interpreted
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_compile(layout: torch.memory_format, calls: list[str]) -> None:
    torch._dynamo.reset()

    def function(inputs: Inputs) -> Tensor:
        return inputs.fused()

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((2, 8, 3, 5), (3, 8, 4, 3)):
        inputs = Inputs(shape, 2, layout=layout, **CASES[4])  # type: ignore[arg-type]
        del calls[:]
        out = compiled(inputs)
        found = [out, *gradients(out, inputs.leaves(), torch.ones_like(out))]
        assert calls == ["forward", "backward"]
        out = inputs.fused()
        for one, other in zip(found, [out, *gradients(out, inputs.leaves(), torch.ones_like(out))], strict=True):
            torch.testing.assert_close(one, other)
            assert one.stride() == other.stride()
    torch._dynamo.reset()


@interpreted
@pytest.mark.parametrize("case", CASES, ids=str)
def test_second_derivatives_leave_the_kernels(case: dict[str, bool], calls: list[str]) -> None:
    inputs = Inputs((1, 4, 2, 3), **case)  # type: ignore[arg-type]
    results: list[Any] = []
    for function in (inputs.fused, lambda: inputs.before_relu().clamp(min=0)):
        first = torch.autograd.grad(function().square().sum(), inputs.leaves(), create_graph=True)
        if not results:
            assert calls == ["forward"]
        penalty = torch.stack([gradient.double().square().sum() for gradient in first]).sum()
        results.append(torch.autograd.grad(penalty, inputs.leaves(), allow_unused=True))
    for one, other in zip(*results, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(one, other, 1e-4)


@interpreted
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_kernel_that_fails_is_replaced(monkeypatch: pytest.MonkeyPatch, direction: str) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of resource: shared memory")

    inputs = Inputs(**CASES[4])  # type: ignore[arg-type]
    monkeypatch.setattr(backends, "failures", {})
    monkeypatch.setattr(backends, "reported", set())
    monkeypatch.setattr(backends.triton_block_end, direction, fail)
    with pytest.warns(RuntimeWarning, match="a fused kernel fails on cpu .*out of resource"):
        found = step(inputs.fused, inputs.leaves())
    wanted = step(lambda: inputs.before_relu().clamp(min=0), inputs.leaves())
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)


@interpreted
def test_wrong_shapes_are_refused() -> None:
    inputs = Inputs()
    assert inputs.identity is not None
    end = BlockEnd(inputs.x, inputs.identity, inputs.norm)
    with pytest.raises(ValueError, match=r"vector of shape \(5,\): expected \(12,\)"):
        norm_relu(inputs.x, EvalNorm(torch.ones(5), None, None, None, 0.0))
    with pytest.raises(ValueError, match="identity of shape"):
        BlockEnd(inputs.x, inputs.identity[:, :, 1:], inputs.norm).gated()
    with pytest.raises(ValueError, match=r"gates for channels of shape \(12,\): expected \(2, 12\)"):
        end.gated(torch.ones(12))
    with pytest.raises(ValueError, match="where G divides C"):
        end.gated(None, torch.ones(2, 5, 5, 7))


@interpreted
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_pools_means_and_similarities(layout: torch.memory_format) -> None:
    inputs = Inputs(layout=layout, channel=True)
    assert inputs.identity is not None
    assert inputs.channel is not None
    assert inputs.norm.weight is not None
    with torch.no_grad():
        inputs.norm.weight[0] = -0.5  # at 0 any element of the channel would be its largest
    end = BlockEnd(inputs.x, inputs.identity, inputs.norm)
    same, means, maxima = end.row_pools()
    same, pools = same.channel_pools(inputs.channel)
    similarity = end.centred_similarity(end.means(), 2)
    y = normed(inputs.x.double(), inputs.norm)
    gated = y * inputs.channel[:, :, None, None]
    products = (y * y.mean((2, 3), keepdim=True)).unflatten(1, (2, 6)).sum(2)
    expected = (
        y.mean((2, 3)),
        y.amax((2, 3)),
        torch.stack((gated.amax(1), gated.mean(1)), 1),
        products - products.mean((2, 3), keepdim=True),
    )
    leaves: Any = [inputs.x, *inputs.norm[:2], inputs.channel]
    for one, other in zip((means, maxima, pools, similarity), expected, strict=True):
        assert_close(one, other)
        passed = torch.linspace(-1, 1, one.numel()).view(one.shape)
        ours = torch.autograd.grad(one, leaves, passed, retain_graph=True, allow_unused=True)
        theirs = torch.autograd.grad(other, leaves, passed.double(), retain_graph=True, allow_unused=True)
        for found, wanted in zip(ours, theirs, strict=True):
            assert (found is None) == (wanted is None)
            if found is not None:
                assert_close(found, wanted)


VARIANTS: dict[str, Any] = {
    "none": None,
    "SE": dict(type="SqueezeExcitation", ratio=4),
    "ECA": dict(type="EfficientChannelAttention"),
    "SGE": dict(type="SpatialGroupEnhance", groups=4),
    "CBAM": dict(type="CBAM", ratio=4),
    "SA": dict(type="ShuffleAttention", groups=4),
}


def first_map(model: Any, x: Tensor) -> Tensor:
    return model(x)[0]


def step(function: Callable[[], Tensor], leaves: list[Tensor]) -> list[Tensor]:
    out = function()
    return [out, *gradients(out, leaves, torch.linspace(-1, 1, out.numel()).view(out.shape))]


@interpreted
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_backbone(variant: str, layout: torch.memory_format, calls: list[str]) -> None:
    cfg: dict[str, Any] = dict(type="AttentionResNet", depth=50, base_channels=4, frozen_stages=-1, num_stages=1)
    cfg |= dict(strides=(1,), dilations=(1,), out_indices=(0,), attention=VARIANTS[variant], implementation="fused")
    models: list[Any] = [MODELS.build(cfg) for _ in range(2)]
    for name, tensor in models[0].state_dict().items():
        if tensor.is_floating_point() and tensor.dim() < 4 and "running_var" not in name:
            tensor.normal_(0.3, 0.5)
    models[1].load_state_dict(models[0].state_dict())
    for module in models[1].modules():
        if hasattr(module, "implementation"):
            module.implementation = "reference"
    x = torch.randn(2, 3, 16, 16).contiguous(memory_format=layout)
    results = []
    for model in models:
        model.to(memory_format=layout).train()
        results.append(step(functools.partial(first_map, model, x), list(model.parameters())))
    assert set(obstacles_to_fusion(models[0]).values()) == {None}
    # Three blocks with two norms and, but for shuffle attention's, one end each.
    count = 6 if variant == "SA" else 9
    assert calls == ["forward"] * count + ["backward"] * count
    for one, other in zip(*results, strict=True):
        assert_close(one, other, 2e-4)
    for module in models[1].modules():
        if hasattr(module, "implementation"):
            module.implementation = "auto"
    calls.clear()
    first_map(models[1], x)
    assert calls == []  # nobody has measured these kernels on a GPU yet
    if variant != "SA":
        assert all("implementation='fused'" in str(reason) for reason in obstacles_to_fusion(models[1]).values())


@interpreted
@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_last_program_past_two_to_the_31st(monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format) -> None:
    """Run only the last program of each launch: the rest of the tensors of 4 GiB is not touched and takes no memory."""
    kernels, shift = backends.triton_block_end, [0]

    def last_program(blocks: Any, pieces: Any) -> tuple[Any, Any, Any]:
        at = kernels.tl.program_id(0) + shift[0]
        return (at // pieces // blocks).to(kernels.tl.int64), at // pieces % blocks, at % pieces

    class Last:
        def __init__(self, kernel: Any):
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int]) -> Any:
            shift[0] = grid[0] - 1
            return self.kernel[(1,)]

    monkeypatch.setattr(kernels, "_program", last_program)
    for name in ("_forward_kernel", "_backward_kernel"):
        monkeypatch.setattr(kernels, name, Last(getattr(kernels, name)))
    shape = (1, 2**17, 257, 64)
    x, identity, gradient = (torch.empty(shape, dtype=torch.float16, memory_format=layout) for _ in range(3))
    assert x.numel() > 2**31
    x[:, -1, -1, -1], identity[:, -1, -1, -1], gradient[:, -1, -1, -1] = 3.0, 0.5, 2.0
    gate = torch.full((1, 2**17), 0.25)
    out = kernels.forward(x, identity, NO_NORM, gate, None, NO_NORM)
    assert out[0, -1, -1, -1] == 1.25
    grad_x, grad_identity, *_ = kernels.backward(gradient, out, x, None, NO_NORM, gate, None, NO_NORM)
    assert (grad_x[0, -1, -1, -1], grad_identity[0, -1, -1, -1]) == (0.5, 2.0)
