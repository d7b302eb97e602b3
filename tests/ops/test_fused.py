"""The fused operator against the formula, alone and with the end of a residual block."""

from collections.abc import Iterator
from typing import Any

import needs
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sa_mmdet import ops
from sa_mmdet.ops import compiled

# Untyped, because the tests pass the six parameters as a list.
shuffle_attention: Any = ops.shuffle_attention
shuffle_attention_residual: Any = ops.shuffle_attention_residual

NAMES = ("cweight", "cbias", "sweight", "sbias", "gn.weight", "gn.bias")
# N, C, G, H, W: one channel per branch, several blocks of groups, a single position, sizes without common divisors.
SHAPES = [(2, 8, 4, 5, 7), (1, 64, 16, 1, 9), (2, 16, 2, 1, 1), (2, 256, 64, 7, 5), (1, 32, 8, 97, 131)]


@pytest.fixture(scope="module", params=["C++", "fallback"], autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "C++" and compiled.missing:
        pytest.skip(compiled.missing)
    with pytest.MonkeyPatch.context() as change:
        if request.param != "C++":
            change.setattr(compiled, "missing", "not in this test")
        yield


class Inputs:
    """Random tensors for all arguments, all of which require gradients."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, offset: float = 0.0):
        needs.operator()
        n, c, self.groups, h, w = shape
        k = c // (2 * self.groups)
        self.x = (torch.randn(n, c, h, w, dtype=torch.float64) + offset).to(dtype).requires_grad_()
        self.identity = torch.randn(n, c, h, w, dtype=torch.float64).to(dtype).requires_grad_()
        self.scale = torch.randn(c, dtype=torch.float64).requires_grad_()
        self.shift = torch.randn(c, dtype=torch.float64).requires_grad_()
        self.parameters = [torch.randn(k, dtype=torch.float64).requires_grad_() for _ in NAMES]

    def leaves(self) -> list[Tensor]:
        return [self.x, self.identity, self.scale, self.shift, *self.parameters]

    def fused(self, residual: bool = True, bn: bool = True) -> Tensor:
        if not residual:
            return shuffle_attention(self.x, *self.parameters, self.groups, implementation="fused")
        scale, shift = (self.scale, self.shift) if bn else (None, None)
        return shuffle_attention_residual(
            self.x, self.identity, scale, shift, *self.parameters, self.groups, implementation="fused"
        )

    def formula(self, residual: bool = True, bn: bool = True) -> Tensor:
        y = self.x
        if residual and bn:
            y = y * self.scale[:, None, None] + self.shift[:, None, None]
        out = reference.shuffle_attention(y, dict(zip(NAMES, self.parameters, strict=True)), self.groups)
        return (out + self.identity).clamp(min=0) if residual else out


def assert_equal(inputs: Inputs, tolerance: float, **options: bool) -> None:
    actual, expected = inputs.fused(**options), inputs.formula(**options)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(expected)
    ours, theirs = (
        torch.autograd.grad((out * weight).sum(), inputs.leaves(), allow_unused=True) for out in (actual, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * max(1, other.abs().max().item()))


@pytest.mark.parametrize("options", [dict(residual=False), dict(bn=False), dict()], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_equal_the_formula(shape: tuple[int, ...], options: dict[str, bool]) -> None:
    assert_equal(Inputs(shape), 1e-9, **options)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3),
    groups=st.integers(1, 6).map(lambda g: 2 * g),
    k=st.integers(1, 4),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    residual=st.booleans(),
    bn=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_strides(
    n: int, groups: int, k: int, h: int, w: int, residual: bool, bn: bool, channels_last: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    inputs = Inputs((n, 2 * groups * k, groups, h, w))
    if channels_last:
        inputs.x = inputs.x.detach().to(memory_format=torch.channels_last).requires_grad_()
    assert_equal(inputs, 1e-9, residual=residual, bn=bn)


def test_gradcheck() -> None:
    inputs = Inputs((2, 8, 2, 3, 3))

    def function(x: Tensor, identity: Tensor, scale: Tensor, shift: Tensor, *parameters: Tensor) -> Tensor:
        return shuffle_attention_residual(x, identity, scale, shift, *parameters, 2, implementation="fused")

    assert torch.autograd.gradcheck(function, tuple(inputs.leaves()))


@pytest.mark.parametrize("residual", [True, False])
def test_the_operator_keeps_pytorchs_rules(residual: bool) -> None:
    inputs = Inputs((2, 8, 4, 5, 7), torch.float32)
    stacked = torch.stack(inputs.parameters).detach().float().requires_grad_()
    optional = (inputs.identity, inputs.scale, inputs.shift) if residual else (None, None, None)
    arguments = (inputs.x, *optional, stacked, 4, 1e-5)
    torch.library.opcheck(torch.ops.sa_mmdet.shuffle_attention.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_rounds_only_the_result(dtype: torch.dtype) -> None:
    inputs = Inputs((2, 32, 8, 24, 20), dtype)
    exact = inputs.formula().to(torch.float64)
    actual = inputs.fused()
    assert actual.dtype == dtype
    # Arithmetic in float32, then one rounding to the dtype.
    tolerance = 2 * torch.finfo(dtype).eps if dtype != torch.float32 else 2e-6
    torch.testing.assert_close(actual.double(), exact, rtol=tolerance, atol=tolerance)
    actual.float().mean().backward()
    assert inputs.x.grad is not None
    assert inputs.x.grad.dtype == dtype


@pytest.mark.parametrize("offset", [1e4, -3e4])
def test_a_huge_mean_does_not_lose_the_variance(offset: float) -> None:
    inputs = Inputs((2, 16, 4, 30, 30), torch.float32, offset)
    for tensor in inputs.parameters:
        tensor.data = tensor.data.float().double()
    exact = inputs.formula(residual=False)
    relative = (inputs.fused(residual=False).double() - exact).abs().max() / exact.abs().max()
    # float32 keeps three digits of a deviation of 1 from 1e4; E[x^2] - m^2 would keep none.
    assert relative < 2e-3


def test_channels_without_variance_and_constants() -> None:
    inputs = Inputs((2, 16, 4, 6, 6))
    inputs.x = torch.full_like(inputs.x, 3.0).requires_grad_()
    assert_equal(inputs, 1e-9)
    assert_equal(inputs, 1e-9, residual=False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_pass_as_in_the_reference(value: float) -> None:
    inputs = Inputs((2, 16, 4, 6, 6))
    for channel in (0, 2):  # in the channel branch, in the spatial branch
        inputs.x.data.normal_()
        inputs.x.data[0, channel, 2, 3] = value
        actual = inputs.fused(residual=False)
        expected = shuffle_attention(inputs.x, *inputs.parameters, inputs.groups, implementation="reference")
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.isinf(), expected.isinf())


def test_what_is_kept_for_the_gradients() -> None:
    inputs = Inputs((2, 64, 8, 16, 16), torch.float32)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = inputs.fused()
    full = {t.data_ptr() for t in kept if t.numel() == inputs.x.numel()}
    if compiled.missing:
        assert full == {inputs.x.data_ptr(), out.data_ptr()}
        return
    assert full == {inputs.identity.data_ptr(), out.data_ptr()}
    # The scales are random: the spatial branch is half of x, and some channels more have scales near zero.
    [rows] = [t for t in kept if t.dim() == 2 and t.shape[1] == 16 * 16]
    assert 0.5 <= rows.numel() / inputs.x.numel() < 0.6


def test_checkpointing_and_compile_see_one_operator() -> None:
    inputs = Inputs((2, 16, 4, 6, 6))
    once = torch.autograd.grad(inputs.fused().sum(), inputs.leaves())
    again = torch.autograd.grad(checkpoint(inputs.fused, use_reentrant=False).sum(), inputs.leaves())
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))
    compiled = torch.compile(inputs.fused, backend="aot_eager", fullgraph=True)
    compared = torch.autograd.grad(compiled().sum(), inputs.leaves())
    assert all(torch.allclose(one, other) for one, other in zip(once, compared, strict=True))


def test_fused_is_refused_where_it_does_not_apply() -> None:
    k = [torch.zeros(4)] * 6
    x = torch.zeros(1, 24, 4, 4)
    with pytest.raises(ValueError, match=r"'fused' does not apply: groups=3 is odd.*use 'auto' or 'reference'"):
        shuffle_attention(x, *k, 3, implementation="fused")
    with pytest.raises(ValueError, match="implementation='quick' is unknown"):
        shuffle_attention(x, *k, 3, implementation="quick")
    with pytest.raises(ValueError, match=r"identity of shape \(1, 24, 4, 5\) for x of shape"):
        shuffle_attention_residual(x, torch.zeros(1, 24, 4, 5), None, None, *k, 3)
    assert nn.functional.relu(x).equal(shuffle_attention_residual(x, x, None, None, *k, 3))
