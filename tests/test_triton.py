"""The GPU kernels: in Triton's interpreter where there is no GPU, in a process of its own."""

import importlib
import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import reference
import torch
from torch import Tensor

from sa_mmdet.ops.operator import AVAILABLE

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not AVAILABLE, reason="Triton is not installed, or not used"
)
NAMES = ("cweight", "cbias", "sweight", "sbias", "gn.weight", "gn.bias")
INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
DEVICE = "cpu" if INTERPRETED else "cuda"
# N, C, G, H, W: whole rows on chip, one position, no multiple of anything; the last ones longer than a row may be.
SHAPES = [(2, 16, 4, 5, 7), (1, 8, 2, 1, 1), (2, 24, 6, 9, 13), (1, 8, 2, 67, 71)]
here = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="neither a GPU nor Triton's interpreter"
)


def kernels() -> Any:
    return importlib.import_module("sa_mmdet.ops._triton")


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="the tests below run here")
@pytest.mark.parametrize("which", ["float32", pytest.param("", marks=pytest.mark.long)])
def test_the_kernels_in_the_interpreter(which: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", which, __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


@here
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", ["alone", "residual", "tail"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_the_formula(shape: tuple[int, ...], dtype: torch.dtype, mode: str, channels_last: bool) -> None:
    _triton = kernels()
    n, c, groups, h, w = shape
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def image() -> Tensor:
        return torch.randn(n, c, h, w, device=DEVICE).to(dtype).contiguous(memory_format=layout)

    x, identity, gradient = image(), image(), image()
    scale, shift = (torch.randn(c, device=DEVICE) for _ in range(2))
    scale[0] = 0  # as a batch norm that starts a block as an identity
    parameters = torch.randn(6, c // (2 * groups), device=DEVICE)
    leaves: Any = [t.double().requires_grad_() for t in (x, identity, scale, shift, parameters)]
    y = leaves[0] * leaves[2][:, None, None] + leaves[3][:, None, None] if mode == "tail" else leaves[0]
    expected = reference.shuffle_attention(y, dict(zip(NAMES, leaves[4], strict=True)), groups)
    if mode != "alone":
        expected = (expected + leaves[1]).clamp(min=0)

    optional = (None if mode == "alone" else identity, *((scale, shift) if mode == "tail" else (None, None)))
    out, mean, variance = _triton.forward(x, *optional, parameters, groups, 1e-5)
    tolerance = {torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)

    # The ReLU passes a gradient where the result is positive: take the kernels' own, which rounds some to zero.
    through = gradient.double() if mode == "alone" else gradient.double() * (out > 0)
    linear = reference.shuffle_attention(y, dict(zip(NAMES, leaves[4], strict=True)), groups) + leaves[1]
    theirs = torch.autograd.grad(linear, leaves, through, allow_unused=True)
    ours = _triton.backward(
        gradient, x, None if mode == "alone" else out, mean, variance, *optional[1:], parameters, groups, 1e-5
    )
    compared = [0, 4] + ([1] if mode != "alone" else []) + ([2, 3] if mode == "tail" else [])
    for index in compared:
        one, other = ours[index].double(), theirs[index]
        bound = tolerance * max(1.0, other.abs().max().item())
        torch.testing.assert_close(one, other, rtol=tolerance, atol=bound)


@here
def test_a_huge_mean_does_not_lose_the_variance() -> None:
    _triton = kernels()
    x = torch.randn(1, 8, 70, 70, device=DEVICE) + 1e4
    _, mean, variance = _triton.forward(x, None, None, None, torch.randn(6, 2, device=DEVICE), 2, 1e-5)
    exact = x.double().flatten(2)
    torch.testing.assert_close(mean.double(), exact.mean(2), rtol=1e-6, atol=0)
    spatial = exact.view(1, 2, 2, 2, -1)[:, :, 1].var(-1, correction=0).flatten(1)
    torch.testing.assert_close(variance.double(), spatial, rtol=5e-3, atol=0)


@here
def test_results_repeat() -> None:
    _triton = kernels()
    x, identity, gradient = (torch.randn(1, 8, 67, 71, device=DEVICE) for _ in range(3))
    parameters = torch.randn(6, 2, device=DEVICE)
    runs = []
    for _ in range(2):
        out, mean, variance = _triton.forward(x, identity, None, None, parameters, 2, 1e-5)
        runs.append((out, *_triton.backward(gradient, x, out, mean, variance, None, None, parameters, 2, 1e-5)))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_offsets_past_two_to_the_31st() -> None:
    """The second image alone is short enough for 32 bits; both together are not."""
    _triton = kernels()
    x = torch.randn(2, 256, 2050, 2050, device="cuda", dtype=torch.float16)
    assert x.numel() > 2**31
    parameters = torch.randn(6, 2, device="cuda")
    whole = _triton.forward(x, x, None, None, parameters, 64, 1e-5)
    alone = _triton.forward(x[1:], x[1:], None, None, parameters, 64, 1e-5)
    for one, other in zip(whole, alone, strict=True):
        assert torch.equal(one[1:], other)
    gradients = _triton.backward(x, x, whole[0], *whole[1:], None, None, parameters, 64, 1e-5)
    expected = _triton.backward(x[1:], x[1:], *alone, None, None, parameters, 64, 1e-5)
    assert torch.equal(gradients[0][1:], expected[0])
    assert torch.equal(gradients[1][1:], expected[1])
