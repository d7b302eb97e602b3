"""Batch norms in evaluation mode with what follows them in a block: compiled operators against the formulas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import assert_threads_change_no_bit
from torch import Tensor

from sa_mmdet.ops import compiled
from sa_mmdet.ops.block_end import BlockEnd, norm_relu
from sa_mmdet.ops.eval_norm import EvalNorm

pytestmark = pytest.mark.skipif(compiled.missing is not None, reason=str(compiled.missing))
EPS = 1e-3
SHAPE = (2, 6, 5, 7)


def formula(x: Tensor, norm: EvalNorm) -> Tensor:
    """Batch norm, written from its definition."""
    weight, bias, mean, variance = (vector.view(-1, 1, 1) for vector in norm[:4] if vector is not None)
    return (x - mean) / torch.sqrt(variance + EPS) * weight + bias


class Inputs:
    """Random tensors; those of :meth:`leaves` require gradients."""

    def __init__(
        self,
        shape: tuple[int, ...] = SHAPE,
        channel: bool = False,
        position: bool = False,
        identity_norm: bool = False,
        weight: float | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        n, c, h, w = shape
        self.x, self.identity = (torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(2))
        self.norm = self._norm(c)
        if weight is not None:
            assert self.norm.weight is not None
            self.norm.weight.data[0] = weight
        self.identity_norm = self._norm(c) if identity_norm else None
        self.channel = (torch.rand(n, c, dtype=torch.float64) + 0.1).requires_grad_() if channel else None
        self.position = (torch.rand(n, 2, h, w, dtype=torch.float64)).requires_grad_() if position else None

    @staticmethod
    def _norm(channels: int) -> EvalNorm:
        weight, bias, mean = (torch.randn(channels, dtype=torch.float64) for _ in range(3))
        variance = torch.rand(channels, dtype=torch.float64) + 0.3
        return EvalNorm(weight.requires_grad_(), bias.requires_grad_(), mean, variance, EPS)

    def leaves(self) -> list[Tensor]:
        norms = [vector for norm in (self.norm, self.identity_norm) if norm for vector in norm[:2]]
        given = [self.x, self.identity, *norms, self.channel, self.position]
        return [tensor for tensor in given if tensor is not None]

    def fused(self, keep: bool = False) -> Tensor:
        end = BlockEnd(self.x, self.identity, self.norm, self.identity_norm, keep)
        return end.gated(self.channel, self.position)

    def expected(self) -> Tensor:
        y, identity = formula(self.x.double(), self.norm), self.identity.double()
        if self.channel is not None:
            y = y * self.channel[:, :, None, None]
        if self.position is not None:
            y = y * self.position.repeat_interleave(y.shape[1] // 2, 1)
        identity = identity if self.identity_norm is None else formula(identity, self.identity_norm)
        return (y + identity).clamp(min=0)


def assert_same(found: Tensor, expected: Tensor, leaves: list[Tensor], tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(expected)
    ours = torch.autograd.grad((found * weight).sum(), leaves, allow_unused=True)
    theirs = torch.autograd.grad((expected * weight).sum(), leaves, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * max(1, other.abs().max().item()))


OPTIONS = [
    dict(),
    dict(channel=True),
    dict(position=True),
    dict(channel=True, position=True, identity_norm=True),
    dict(channel=True, identity_norm=True),
    dict(channel=True, weight=0.0),
    dict(identity_norm=True, weight=1e-12),
]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_blocks_end_equals_the_formula(options: dict[str, Any], keep: bool) -> None:
    inputs = Inputs(**options)
    assert_same(inputs.fused(keep), inputs.expected(), inputs.leaves())


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("weight", [None, 0.0, 1e-12, -1e-3])
def test_norm_and_relu_equal_the_formula(weight: float | None, keep: bool) -> None:
    inputs = Inputs(weight=weight)
    leaves = [inputs.x, *inputs.leaves()[2:4]]
    assert_same(norm_relu(inputs.x, inputs.norm, keep), formula(inputs.x, inputs.norm).clamp(min=0), leaves)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40).map(lambda c: 2 * c), st.integers(1, 9), st.integers(1, 9)),
    channel=st.booleans(),
    position=st.booleans(),
    identity_norm=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_strides(shape: tuple[int, ...], channels_last: bool, seed: int, **options: bool) -> None:
    torch.manual_seed(seed)
    inputs = Inputs(shape, **options)  # type: ignore[arg-type]
    if channels_last:
        inputs.x = inputs.x.detach().to(memory_format=torch.channels_last).requires_grad_()
    assert_same(inputs.fused(), inputs.expected(), inputs.leaves(), 1e-9)
    leaves = [inputs.x, *inputs.leaves()[2:4]]
    assert_same(norm_relu(inputs.x, inputs.norm), formula(inputs.x, inputs.norm).clamp(min=0), leaves, 1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_first_and_second_derivatives(options: dict[str, Any]) -> None:
    inputs = Inputs((2, 4, 2, 3), **options)
    leaves = inputs.leaves()
    for function in (lambda *_: inputs.fused(), lambda *_: norm_relu(inputs.x, inputs.norm)):
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves, atol=1e-4)


def test_the_identity_may_be_what_x_was_computed_from() -> None:
    inputs = Inputs((1, 4, 2, 3), channel=True)

    def function(identity: Tensor, *_: Tensor) -> Tensor:
        inputs.x = identity.sin()
        return inputs.fused()

    assert torch.autograd.gradcheck(function, inputs.leaves()[1:])
    assert torch.autograd.gradgradcheck(function, inputs.leaves()[1:], atol=1e-4)


def gradient_errors(inputs: Inputs, function: Callable[[], Tensor], expected: Tensor) -> list[float]:
    leaves = inputs.leaves()
    weight = torch.randn_like(expected)
    ours = torch.autograd.grad((function().double() * weight).sum(), leaves, allow_unused=True)
    theirs = torch.autograd.grad((expected * weight).sum(), leaves, allow_unused=True)
    return [
        ((one.double() - other).norm() / other.norm()).item()
        for one, other in zip(ours, theirs, strict=True)
        if one is not None and other is not None
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precision(dtype: torch.dtype) -> None:
    inputs = Inputs((2, 64, 24, 20), channel=True, identity_norm=True, dtype=dtype)
    rounding = torch.finfo(dtype).eps
    exact = inputs.expected()
    torch.testing.assert_close(inputs.fused().double(), exact, rtol=2 * rounding, atol=16 * rounding)
    # Where x is computed again, six bits of float32 may be lost; in half precision none.
    bound = 64 * rounding if dtype == torch.float32 else 8 * rounding
    assert max(gradient_errors(inputs, inputs.fused, exact)) < bound
    positive = formula(inputs.x.double(), inputs.norm).clamp(min=0)
    errors = gradient_errors(inputs, lambda: norm_relu(inputs.x, inputs.norm), positive)
    assert max(errors) < bound


def kept(function: Callable[[], Tensor]) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found.append(function())
    return found


def test_what_is_kept_for_the_gradients() -> None:
    inputs = Inputs((2, 8, 16, 16), channel=True)
    assert inputs.norm.weight is not None
    inputs.norm.weight.data.copy_(torch.tensor([1, 1, 1, 0, 1, 1e-9, -1, 1]))
    maps = kept(inputs.fused)
    assert {t.data_ptr() for t in maps if t.numel() == inputs.x.numel()} == {
        inputs.identity.data_ptr(),
        maps[-1].data_ptr(),
    }
    assert [t.shape for t in maps if t.dim() == 2 and t.shape[1] == 256] == [(4, 256)]  # two channels of two images
    maps = kept(lambda: norm_relu(inputs.x, inputs.norm))
    assert {t.data_ptr() for t in maps if t.numel() == inputs.x.numel()} == {maps[-1].data_ptr()}
    maps = kept(lambda: inputs.fused(keep=True))
    assert inputs.x.data_ptr() in {t.data_ptr() for t in maps}


def test_an_identity_that_dwarfs_the_rest_costs_no_digits() -> None:
    inputs = Inputs((2, 8, 16, 16))
    inputs.identity.data.add_(1e7)
    assert_same(inputs.fused(), inputs.expected(), inputs.leaves())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["x", "identity"])
def test_nan_and_infinity_pass_as_through_pytorchs_operators(value: float, where: str) -> None:
    inputs = Inputs(channel=True)
    getattr(inputs, where).data[0, 1, 2, 3] = value
    y = torch.nn.functional.batch_norm(
        inputs.x, inputs.norm.mean, inputs.norm.variance, inputs.norm.weight, inputs.norm.bias, eps=EPS
    )
    assert inputs.channel is not None
    expected = (y * inputs.channel[:, :, None, None] + inputs.identity).relu()
    found = inputs.fused()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())
    ours, theirs = (torch.autograd.grad(out.sum(), inputs.leaves()) for out in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())
        torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads_does_not_change_a_bit(dtype: torch.dtype) -> None:
    inputs = Inputs((2, 64, 40, 30), position=True, dtype=dtype)

    def results() -> tuple[Tensor, ...]:
        out = inputs.fused()
        return out, *torch.autograd.grad(out.float().square().sum(), inputs.leaves())

    assert_threads_change_no_bit(results)


def test_the_means_of_the_normed_map() -> None:
    inputs = Inputs()
    end = BlockEnd(inputs.x, inputs.identity, inputs.norm)
    leaves = [inputs.x, *inputs.leaves()[2:4]]
    assert_same(end.means(), formula(inputs.x, inputs.norm).mean((2, 3)), leaves)


def test_wrong_shapes_are_refused() -> None:
    inputs = Inputs()
    with pytest.raises(RuntimeError, match="a vector has 5 elements for 6 channels"):
        norm_relu(inputs.x, EvalNorm(torch.ones(5), None, None, None, 0.0))
    with pytest.raises(RuntimeError, match="expected contiguous maps of one dtype and shape"):
        BlockEnd(inputs.x, inputs.identity[:, :, 1:], inputs.norm).gated()
    with pytest.raises(RuntimeError, match="expected a gate for each image and channel"):
        BlockEnd(inputs.x, inputs.identity, inputs.norm).gated(torch.ones(6))
    with pytest.raises(RuntimeError, match="4 groups of gates for 6 channels"):
        BlockEnd(inputs.x, inputs.identity, inputs.norm).gated(None, torch.ones(2, 4, 5, 7))


def test_inference_mode_and_tensors_without_values() -> None:
    inputs = Inputs(channel=True, identity_norm=True)
    expected = inputs.fused().detach(), norm_relu(inputs.x, inputs.norm).detach()
    with torch.inference_mode():
        assert torch.equal(inputs.fused(), expected[0])
        assert torch.equal(norm_relu(inputs.x, inputs.norm), expected[1])
    x = inputs.x.detach().to("meta")
    assert norm_relu(x, inputs.norm).shape == x.shape
    assert BlockEnd(x, x, inputs.norm).gated().shape == x.shape


@pytest.mark.skipif(not hasattr(torch.library, "opcheck"), reason="opcheck came with PyTorch 2.4")
def test_the_operators_keep_pytorchs_rules() -> None:
    inputs = Inputs((2, 4, 3, 3), channel=True, identity_norm=True)
    assert inputs.identity_norm is not None
    operators = torch.ops.sa_mmdet_cpu
    for keep in (False, True):
        torch.library.opcheck(operators.norm_relu.default, (inputs.x, *inputs.norm, keep))
        arguments = (inputs.x, inputs.identity, *inputs.norm, inputs.channel, None, *inputs.identity_norm, keep)
        torch.library.opcheck(operators.residual.default, arguments)
    torch.library.opcheck(operators.row_means.default, (inputs.x,))
    parameters = [torch.randn(2, dtype=torch.float64).requires_grad_() for _ in range(6)]
    shuffled = (inputs.x, inputs.identity, *inputs.norm, *inputs.identity_norm, *parameters, 1e-5, False)
    torch.library.opcheck(operators.shuffle_attention.default, shuffled)
