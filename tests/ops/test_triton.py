"""The GPU kernels against the formula; without a GPU in a process of their own, by Triton's interpreter."""

import os
import subprocess
import sys
from typing import Any

import needs
import pytest
import reference
import torch
from torch import Tensor

from sa_mmdet.ops import backends

pytestmark = needs.triton
NAMES = ("cweight", "cbias", "sweight", "sbias", "gn.weight", "gn.bias")
INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
DEVICE = "cpu" if INTERPRETED else "cuda"
# N, C, G, H, W: whole rows on chip, one position, sizes without common divisors, longer than channels-last rows on chip
# may be, longer than any row on chip may be, several blocks of channels.
SHAPES = [
    (2, 16, 4, 5, 7),
    (1, 8, 2, 1, 1),
    (2, 24, 6, 9, 13),
    (2, 8, 2, 23, 31),
    (1, 4, 2, 91, 97),
    (1, 80, 4, 17, 18),
]
here = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="neither a GPU nor Triton's interpreter"
)


def kernels() -> Any:
    return backends.triton


@needs.triton_interpreter()
@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="the tests below run here")
@pytest.mark.parametrize(
    "which",
    ["float32 and tail and (shape0 or shape3)", pytest.param("", marks=pytest.mark.long)],
    ids=["some", "all"],
)
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
    out, mean, rstd = _triton.forward(x, *optional, parameters, groups, 1e-5)
    tolerance = {torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)

    # The ReLU passes a gradient where the kernels' own result is positive, which may be rounded to zero.
    through = gradient.double() if mode == "alone" else gradient.double() * (out > 0)
    linear = reference.shuffle_attention(y, dict(zip(NAMES, leaves[4], strict=True)), groups) + leaves[1]
    theirs = torch.autograd.grad(linear, leaves, through, allow_unused=True)
    ours = _triton.backward(
        gradient, x, None if mode == "alone" else out, mean, rstd, *optional[1:], parameters, groups, 1e-5
    )
    compared = [0, 4] + ([1] if mode != "alone" else []) + ([2, 3] if mode == "tail" else [])
    for index in compared:
        one, other = ours[index].double(), theirs[index]
        bound = tolerance * max(1.0, other.abs().max().item())
        torch.testing.assert_close(one, other, rtol=tolerance, atol=bound)


@here
@pytest.mark.parametrize("shape", [(1, 8, 30, 30), (1, 4, 70, 120)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_huge_mean_does_not_lose_the_variance(shape: tuple[int, ...], channels_last: bool) -> None:
    x = torch.randn(shape, device=DEVICE) + 1e4
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    channels = shape[1]
    _, mean, rstd = kernels().forward(x, None, None, None, torch.randn(6, channels // 4, device=DEVICE), 2, 1e-5)
    exact = x.double().flatten(2)
    torch.testing.assert_close(mean.double(), exact.mean(2), rtol=1e-6, atol=0)
    spatial = exact.view(1, 2, 2, channels // 4, -1)[:, :, 1].var(-1, correction=0).flatten(1)
    torch.testing.assert_close(rstd.double(), torch.rsqrt(spatial + 1e-5), rtol=3e-3, atol=0)


@here
@pytest.mark.parametrize(
    ("shape", "value"),
    [((2, 8, 6, 6), torch.nan), ((2, 8, 6, 6), torch.inf), ((2, 8, 6, 6), -torch.inf), ((1, 4, 91, 97), torch.inf)],
    ids=str,
)
def test_nan_and_infinity_pass_as_with_pytorchs_operators(shape: tuple[int, ...], value: float) -> None:
    channels = shape[1]
    parameters = torch.randn(6, channels // 4, device=DEVICE)
    for channel in (0, channels // 4):  # in the channel branch, in the spatial branch
        x, identity = torch.randn(shape, device=DEVICE), torch.randn(shape, device=DEVICE)
        x[0, channel, 2, 3] = value
        identity[0, channel, 0, 0] = value
        out, mean, rstd = kernels().forward(x, identity, None, None, parameters, 2, 1e-5)
        gated = reference.shuffle_attention(x, dict(zip(NAMES, parameters, strict=True)), 2)
        torch.testing.assert_close(out, torch.relu(gated + identity), equal_nan=True, rtol=1e-4, atol=1e-4)
        # The ReLU passes the gradient where its result is NaN.
        gradient = torch.ones_like(x)
        passed = kernels().backward(gradient, x, out, mean, rstd, None, None, parameters, 2, 1e-5)[1]
        assert torch.equal(passed, torch.ops.aten.threshold_backward(gradient, out, 0))


@here
@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)], ids=str)
def test_empty_maps(shape: tuple[int, ...]) -> None:
    x, parameters = torch.randn(shape, device=DEVICE), torch.randn(6, 2, device=DEVICE)
    out, mean, rstd = kernels().forward(x, x, None, None, parameters, 2, 1e-5)
    assert (out.shape, mean.shape, rstd.shape) == (x.shape, (shape[0], 8), (shape[0], 4))
    gradients = kernels().backward(x, x, out, mean, rstd, None, None, parameters, 2, 1e-5)
    assert [gradient.shape for gradient in gradients] == [x.shape, x.shape, (8,), (8,), (6, 2)]
    assert all(not gradient.any() for gradient in gradients)


@here
@pytest.mark.parametrize("kind", ["expanded", "transposed", "strided", "offset"])
def test_unusual_strides(kind: str) -> None:
    def strided() -> Tensor:
        base = torch.randn(2, 16, 12, 12, device=DEVICE)
        return {
            "expanded": base[:1, :8, :6, :6].expand(2, 8, 6, 6),
            "transposed": base[:, :8, :6, :6].transpose(2, 3),
            "strided": base[:, ::2, ::2, ::2],
            "offset": base.flatten()[3 : 3 + 2 * 8 * 36].view(2, 8, 6, 6),
        }[kind]

    x, identity, gradient = strided(), strided(), strided()
    parameters = torch.randn(6, 2, device=DEVICE)
    results = []
    for make in (lambda t: t, lambda t: t.clone(memory_format=torch.contiguous_format)):
        images = [make(t) for t in (x, identity, gradient)]
        out, mean, rstd = kernels().forward(*images[:2], None, None, parameters, 2, 1e-5)
        results.append(
            (out, *kernels().backward(images[2], images[0], out, mean, rstd, None, None, parameters, 2, 1e-5))
        )
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.skipif(not INTERPRETED, reason="counts what Triton's interpreter reads and writes")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("on_chip", [True, False])
@pytest.mark.parametrize("mode", ["alone", "tail"])
def test_passes_over_memory(monkeypatch: pytest.MonkeyPatch, on_chip: bool, mode: str, channels_last: bool) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    moved = [0]

    def counting(access: Any) -> Any:
        def counted(self: Any, pointers: Any, *rest: Any) -> Any:
            mask = next(handle for handle in rest if getattr(handle, "data", None) is not None and is_mask(handle))
            moved[0] += int(mask.data.sum()) * 4
            return access(self, pointers, *rest)

        return counted

    for name in ("create_masked_load", "create_masked_store"):
        monkeypatch.setattr(InterpreterBuilder, name, counting(getattr(InterpreterBuilder, name)))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    side = 100 if not on_chip else 8 if channels_last else 40
    c = 4 if not on_chip else 8
    x, identity, gradient = (torch.randn(1, c, side, side).contiguous(memory_format=layout) for _ in range(3))
    parameters, affine = torch.randn(6, c // 4), [torch.randn(c) if mode == "tail" else None for _ in range(2)]
    out, mean, rstd = kernels().forward(x, identity if mode == "tail" else None, *affine, parameters, 2, 1e-5)
    forward = moved[0] / (4 * x.numel())
    kernels().backward(gradient, x, out if mode == "tail" else None, mean, rstd, *affine, parameters, 2, 1e-5)
    backward = moved[0] / (4 * x.numel()) - forward
    expected = {("alone", True): (2, 3), ("alone", False): (3, 5), ("tail", True): (3, 5), ("tail", False): (4, 7)}
    # Numbers per channel and per split come on top. They matter on the smallest map only, with its 64 positions.
    for passes, bound in zip((forward, backward), expected[mode, on_chip], strict=True):
        assert bound <= passes < bound + (0.9 if side == 8 else 0.35)


def is_mask(handle: Any) -> bool:
    return handle.data.dtype == bool


@here
def test_results_repeat() -> None:
    _triton = kernels()
    x, identity, gradient = (torch.randn(1, 8, 91, 97, device=DEVICE) for _ in range(3))
    parameters = torch.randn(6, 2, device=DEVICE)
    runs = []
    for _ in range(2):
        out, mean, rstd = _triton.forward(x, identity, None, None, parameters, 2, 1e-5)
        runs.append((out, *_triton.backward(gradient, x, out, mean, rstd, None, None, parameters, 2, 1e-5)))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.skipif(not INTERPRETED, reason="runs single programs of a launch")
@pytest.mark.long
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_last_program_past_two_to_the_31st(monkeypatch: pytest.MonkeyPatch, channels_last: bool) -> None:
    """Run only the last program of each launch: the rest of the tensors of 4 GiB is not touched and takes no memory."""
    _triton = kernels()
    shift = [0]

    def last_program(blocks: Any, pieces: Any) -> tuple[Any, Any, Any]:
        at = _triton.tl.program_id(0) + shift[0]
        return (at // pieces // blocks).to(_triton.tl.int64), at // pieces % blocks, at % pieces

    class Last:
        def __init__(self, kernel: Any):
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int]) -> Any:
            shift[0] = grid[0] - 1
            return self.kernel[(1,)]

    monkeypatch.setattr(_triton, "_program", last_program)
    for name in ("_statistics_kernel", "_forward_kernel", "_sums_kernel", "_backward_kernel"):
        monkeypatch.setattr(_triton, name, Last(getattr(_triton, name)))
    # Splits that no program has summed count as zero.
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    shape, layout = (1, 2**17, 257, 64), torch.channels_last if channels_last else torch.contiguous_format
    x, identity, gradient = (torch.empty(shape, dtype=torch.float16, memory_format=layout) for _ in range(3))
    assert x.numel() > 2**31
    # The last tile of the output: one channel, or the last 32, which are the last 16 in each half of x.
    written = [shape[1] - 1] if not channels_last else list(range(shape[1] - 32, shape[1]))
    read = sorted({channel // 2 + channel % 2 * (shape[1] // 2) for channel in written})
    x[:, read] = torch.arange(len(read), dtype=torch.float16)[:, None, None] / 8
    identity[:, written], gradient[:, written] = -0.25, 2.0
    parameters = torch.zeros(6, 1024)
    parameters[1] = parameters[3] = 1.0  # all gates are sigmoid(1), whatever the statistics
    gate = torch.sigmoid(torch.tensor(1.0)).item()
    out, mean, rstd = _triton.forward(x, identity, None, None, parameters, 64, 1e-5)
    values = x[0, [channel // 2 + channel % 2 * (shape[1] // 2) for channel in written]].float()
    torch.testing.assert_close(out[0, written].float(), torch.relu(values * gate - 0.25), atol=2e-3, rtol=0)
    passing = 2.0 * (out[0, written] > 0)
    grad_x, grad_identity, *_ = _triton.backward(gradient, x, out, mean, rstd, None, None, parameters, 64, 1e-5)
    torch.testing.assert_close(grad_identity[0, written].float(), passing.float())
    moved = [channel // 2 + channel % 2 * (shape[1] // 2) for channel in written]
    torch.testing.assert_close(grad_x[0, moved].float(), passing * gate, atol=2e-3, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_offsets_past_two_to_the_31st() -> None:
    """Offsets in the second image alone fit into 32 bits, those in both images do not."""
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
