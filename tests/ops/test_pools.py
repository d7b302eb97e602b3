"""The pools of CBAM over positions and channels, without the normed map, against the formula in PyTorch's operators."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import assert_threads_change_no_bit
from torch import Tensor

from sa_mmdet.ops import compiled
from sa_mmdet.ops.block_end import BlockEnd
from sa_mmdet.ops.eval_norm import EvalNorm

pytestmark = pytest.mark.skipif(compiled.missing is not None, reason=str(compiled.missing))
EPS = 1e-3


class Inputs:
    """Random tensors that require gradients; the first channel's weight is negative, the second one's is zero."""

    def __init__(self, shape: tuple[int, ...] = (2, 6, 5, 7), dtype: torch.dtype = torch.float64):
        n, c = shape[:2]
        self.x, self.identity = (torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(2))
        weight, bias, mean = (torch.randn(c, dtype=torch.float64) for _ in range(3))
        weight[0] = -weight[0].abs() - 0.1
        self.vectors = (weight.requires_grad_(), bias.requires_grad_(), mean, torch.rand(c, dtype=torch.float64) + 0.3)
        self.norm = EvalNorm(*self.vectors, EPS)
        self.gate = (torch.rand(n, c, dtype=torch.float64) + 0.1).requires_grad_()
        self.leaves = [self.x, weight, bias, self.gate]

    def end(self) -> BlockEnd:
        return BlockEnd(self.x, self.identity, self.norm)

    def normed(self) -> Tensor:
        weight, bias, mean, variance = (vector.view(1, -1, 1, 1) for vector in self.vectors)
        return (self.x.double() - mean) / (variance + EPS).sqrt() * weight + bias

    def fused(self) -> tuple[Tensor, ...]:
        """The pools, and a result that was computed from what they hand on."""
        end, means, maxima = self.end().row_pools()
        end, pools = end.channel_pools(self.gate)
        return means, maxima, pools, end.gated(self.gate)

    def expected(self) -> tuple[Tensor, ...]:
        y = self.normed()
        gated = y * self.gate[:, :, None, None]
        pools = torch.cat((gated.amax(1, keepdim=True), gated.mean(1, keepdim=True)), 1)
        return y.mean((2, 3)), y.amax((2, 3)), pools, (gated + self.identity).clamp(min=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_first_maximum_of_a_long_row_is_found_wherever_it_is(dtype: torch.dtype) -> None:
    # Rows are computed in blocks of 2048 positions.
    norm = EvalNorm(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.25]), None, None, 0.0)
    for places in ([0], [2047], [2048], [4700], [100, 3000], [2050, 2051, 4600]):
        x = torch.zeros(1, 2, 47, 101, dtype=dtype)
        x[:, 0].view(-1)[places] = 3
        x[:, 1].view(-1)[places] = -3
        x.requires_grad_()
        _, means, maxima = BlockEnd(x, x, norm).row_pools()
        assert maxima.tolist() == [[3.5, 6.25]]
        share = 3 * len(places) / 4747
        torch.testing.assert_close(means.double(), torch.tensor([[0.5 + share, 0.25 + 2 * share]]).double())
        [gradient] = torch.autograd.grad(maxima.sum(), x)
        assert gradient.flatten(2).nonzero()[:, 1:].tolist() == [[0, places[0]], [1, places[0]]]


@pytest.mark.parametrize("place", [3, 2048, 4000])
def test_nan_in_a_long_row_is_its_maximum(place: int) -> None:
    x = torch.randn(1, 2, 47, 101)
    x[0, 0].view(-1)[place] = float("nan")
    x[0, 1].view(-1)[place] = float("inf")
    _, means, maxima = BlockEnd(x, x, EvalNorm(None, None, None, None, 0.0)).row_pools()
    assert means[0, 0].isnan()
    assert maxima[0, 0].isnan()
    assert means[0, 1] == maxima[0, 1] == float("inf")


def gradients(outputs: tuple[Tensor, ...], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    weights = [torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view_as(out) for out in outputs]
    total = torch.stack([(out.double() * weight).sum() for out, weight in zip(outputs, weights, strict=True)]).sum()
    return torch.autograd.grad(total, leaves)


def assert_same(inputs: Inputs, tolerance: float = 1e-10) -> None:
    fused, expected = inputs.fused(), inputs.expected()
    leaves = [*inputs.leaves, inputs.identity]
    for one, other in zip((*fused, *gradients(fused, leaves)), (*expected, *gradients(expected, leaves)), strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


def test_they_equal_the_formula() -> None:
    assert_same(Inputs())


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_strides(shape: tuple[int, ...], channels_last: bool, seed: int) -> None:
    torch.manual_seed(seed)
    inputs = Inputs(shape)
    if channels_last:
        inputs.x = inputs.x.detach().to(memory_format=torch.channels_last).requires_grad_()
        inputs.leaves[0] = inputs.x
    assert_same(inputs, 1e-9)


def test_first_and_second_derivatives() -> None:
    inputs = Inputs((2, 4, 2, 3))
    for function in (lambda *_: inputs.fused(), lambda *_: inputs.fused()[1:3], lambda *_: inputs.fused()[0]):
        leaves = inputs.leaves[:3]
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves, atol=1e-4)
    assert torch.autograd.gradcheck(lambda *_: inputs.fused(), inputs.leaves)
    assert torch.autograd.gradgradcheck(lambda *_: inputs.fused(), inputs.leaves, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precision(dtype: torch.dtype) -> None:
    inputs = Inputs((2, 64, 24, 20), dtype)
    expected, found = inputs.expected(), inputs.fused()
    rounding = torch.finfo(dtype).eps
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2 * rounding, atol=16 * rounding)
    # In half precision several positions are equally large: one has the whole gradient here, all have parts in amax.
    compared = slice(0 if dtype == torch.float32 else 1, None)
    ours, theirs = gradients(found, inputs.leaves), gradients(expected, inputs.leaves)
    for one, other in zip(ours[compared], theirs[compared], strict=True):
        assert (one.double() - other).norm() < 64 * rounding * other.norm()


def test_the_first_of_equal_elements_has_the_gradient() -> None:
    inputs = Inputs((1, 2, 2, 2))
    inputs.x.data.fill_(1.0)
    inputs.vectors[0].data.fill_(1.0)
    _, _, maxima = inputs.end().row_pools()
    [gradient] = torch.autograd.grad(maxima.sum(), [inputs.x])
    assert gradient.flatten(2).ne(0).tolist() == [[[True, False, False, False]] * 2]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_pass_as_through_pytorchs_operators(value: float) -> None:
    inputs = Inputs()
    inputs.vectors[0].data[1] = 0.5
    for channel in (0, 1):
        inputs.x.data[0, channel, 2, 3] = value
        for one, other in zip(inputs.fused(), inputs.expected(), strict=True):
            torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads_does_not_change_a_bit(dtype: torch.dtype) -> None:
    inputs = Inputs((2, 64, 40, 30), dtype)

    def results() -> tuple[Tensor, ...]:
        outs = inputs.fused()
        return *outs, *gradients(outs, inputs.leaves)

    assert_threads_change_no_bit(results)


def test_inference_mode_and_tensors_without_values() -> None:
    inputs = Inputs()
    expected = inputs.fused()
    with torch.inference_mode():
        assert all(torch.equal(one, other) for one, other in zip(inputs.fused(), expected, strict=True))
    weight, bias, mean, variance = (vector.to("meta") for vector in inputs.vectors)
    norm = EvalNorm(weight, bias, mean, variance, EPS)
    end = BlockEnd(inputs.x.detach().to("meta"), inputs.identity, norm)
    end, means, maxima = end.row_pools()
    _, pools = end.channel_pools(inputs.gate)
    assert (means.shape, maxima.shape, pools.shape) == ((2, 6), (2, 6), (2, 2, 5, 7))


def test_a_gate_of_another_shape_is_refused() -> None:
    with pytest.raises(RuntimeError, match="expected a gate for each image and channel"):
        Inputs().end().channel_pools(torch.ones(6))
