"""Where a kernel fails, PyTorch's own operators compute. Stand-ins for the kernels are called on CPU tensors."""

import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from mmdet.registry import MODELS
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sa_mmdet import obstacles_to_fusion, ops
from sa_mmdet.ops import backends, cpu, custom_op, pointwise

pytestmark = pytest.mark.skipif(not backends.AVAILABLE, reason="custom operators came with PyTorch 2.4")
shuffle_attention: Any = ops.shuffle_attention_residual


class CompilationError(Exception):
    """Like Triton's, whose message is the source code with the cause in the last line."""


class OutOfResources(Exception):
    """Like Triton's: a kernel needs more than the GPU has."""


FAILURES = [
    CompilationError(
        "at 12:4:\n    a, b, _ = _gate(spatial)\n    ^\nLoop-carried variable _ has initial type <['1'], fp32>"
    ),
    OutOfResources("out of resource: shared memory, Required: 270336, Hardware limit: 232448"),
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
    RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
    subprocess.CalledProcessError(1, ["gcc", "main.c", "-I/usr/include/python3.11"]),
    FileNotFoundError(2, "No such file or directory: 'ptxas'"),
    AttributeError("module 'triton' has no attribute 'next_power_of_2'"),
    RuntimeError(""),
]
FATAL = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("CUDA error: misaligned address"),
    MemoryError(),
]


class Kernels(types.SimpleNamespace):
    """Stand-ins that compute by the backend for CPUs, unless they are told to fail."""

    def __init__(self) -> None:
        super().__init__(forward_fails=None, backward_fails=None, calls=[])

    def forward(self, *arguments: Any) -> Any:
        self.calls.append("forward")
        if self.forward_fails is not None:
            raise self.forward_fails
        return cpu.forward(*arguments)

    def backward(self, *arguments: Any) -> Any:
        self.calls.append("backward")
        if self.backward_fails is not None:
            raise self.backward_fails
        return cpu.backward(*arguments)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    stand_in = Kernels()
    monkeypatch.setattr(backends, "triton", stand_in)
    monkeypatch.setattr(backends, "triton_block_end", pointwise)
    monkeypatch.setattr(backends, "by_triton", lambda x: True)
    monkeypatch.setattr(backends, "failures", {})
    monkeypatch.setattr(backends, "reported", set())
    return stand_in


def tensors() -> list[Tensor]:
    """x, identity, scale, shift and the six parameters."""
    sizes: list[Any] = [(2, 16, 5, 6)] * 2 + [(16,)] * 2 + [(2,)] * 6
    return [torch.randn(size, dtype=torch.float64).requires_grad_() for size in sizes]


def step(function: Callable[[], Tensor], leaves: list[Tensor]) -> list[Tensor]:
    for leaf in leaves:
        leaf.grad = None
    out = function()
    out.square().sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def expected(leaves: list[Tensor]) -> list[Tensor]:
    return step(lambda: shuffle_attention(*leaves, 4, implementation="reference"), leaves)


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_kernel_that_fails_is_reported_once_and_replaced(kernels: Kernels, error: Exception, direction: str) -> None:
    setattr(kernels, f"{direction}_fails", error)
    leaves = tensors()
    wanted = expected(leaves)
    with warnings.catch_warnings(record=True) as reported:
        warnings.simplefilter("always")
        for _ in range(3):
            assert_equal(step(lambda: shuffle_attention(*leaves, 4), leaves), wanted)
    assert len(reported) == 1
    assert f"a fused kernel fails on cpu ({type(error).__name__}" in str(reported[0].message)
    assert " ".join(str(error).splitlines()[-1:]) in str(reported[0].message)
    assert kernels.calls == (["forward"] if direction == "forward" else ["forward", "backward"])


def test_layouts_stay_those_of_the_kernels(kernels: Kernels) -> None:
    leaves = tensors()
    leaves[0] = leaves[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    kernels.forward_fails = FAILURES[0]
    with pytest.warns(RuntimeWarning, match="Loop-carried"):
        found = step(lambda: shuffle_attention(*leaves, 4), leaves)
    assert all(found[i].is_contiguous(memory_format=torch.channels_last) for i in (0, 1))
    assert_equal(found, expected(leaves))


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("error", FATAL, ids=lambda error: str(error)[-20:])
def test_errors_that_pytorch_would_meet_too_are_raised(kernels: Kernels, error: Exception, direction: str) -> None:
    setattr(kernels, f"{direction}_fails", error)
    leaves = tensors()
    with pytest.raises(type(error)):
        step(lambda: shuffle_attention(*leaves, 4), leaves)
    assert backends.failures == {}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_kernel_that_is_asked_for_raises_its_error(kernels: Kernels, direction: str) -> None:
    setattr(kernels, f"{direction}_fails", FAILURES[1])
    leaves = tensors()
    for _ in range(2):
        with pytest.raises(OutOfResources, match="shared memory"):
            step(lambda: shuffle_attention(*leaves, 4, implementation="fused"), leaves)
    with pytest.warns(RuntimeWarning, match="shared memory"):
        step(lambda: shuffle_attention(*leaves, 4), leaves)
    with pytest.raises(OutOfResources, match="shared memory"):
        step(lambda: shuffle_attention(*leaves, 4, implementation="fused"), leaves)


def test_a_callers_mistake_is_raised_and_changes_nothing(kernels: Kernels) -> None:
    x, parameters = torch.randn(1, 16, 4, 4), torch.randn(6, 3)
    kernels.forward_fails = ValueError("no such shape")
    with pytest.raises(RuntimeError, match="shape"):
        custom_op.fused(x, None, None, None, parameters, 4, 1e-5)
    assert backends.failures == {}


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_checkpointing(kernels: Kernels, reentrant: bool) -> None:
    """The kernel fails in a backward; the block before it is recomputed only after that."""
    kernels.backward_fails = FAILURES[0]
    leaves = tensors()

    def twice(operate: Callable[..., Tensor]) -> Tensor:
        return operate(operate(leaves[0], *leaves[1:]), *leaves[1:])

    def checkpointed(*tensors: Tensor) -> Tensor:
        return checkpoint(lambda *tensors: shuffle_attention(*tensors, 4), *tensors, use_reentrant=reentrant)

    with pytest.warns(RuntimeWarning, match="Loop-carried"):
        found = step(lambda: twice(checkpointed), leaves)
    wanted = step(lambda: twice(lambda *t: shuffle_attention(*t, 4, implementation="reference")), leaves)
    assert_equal(found, wanted)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_under_compile(kernels: Kernels, direction: str) -> None:
    leaves = tensors()
    torch._dynamo.reset()
    compiled = torch.compile(lambda: shuffle_attention(*leaves, 4), backend="aot_eager", fullgraph=True)
    assert_equal(step(compiled, leaves), expected(leaves))
    setattr(kernels, f"{direction}_fails", FAILURES[0])
    with pytest.warns(RuntimeWarning, match="Loop-carried"):
        assert_equal(step(compiled, leaves), expected(leaves))
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", needs.HALF, ids=str)
def test_in_half_precision(kernels: Kernels, dtype: torch.dtype) -> None:
    kernels.forward_fails = FAILURES[0]
    leaves = [leaf.detach().to(dtype if leaf.dim() == 4 else torch.float32).requires_grad_() for leaf in tensors()]
    with torch.autocast("cpu", dtype=dtype), pytest.warns(RuntimeWarning, match="Loop-carried"):
        found = step(lambda: shuffle_attention(*leaves, 4), leaves)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    assert found[0].dtype == dtype
    torch.testing.assert_close(found[0].double(), expected(wide)[0], rtol=0.03, atol=0.03)
    assert [one.dtype for one in found[1:]] == [leaf.dtype for leaf in leaves]


def test_the_report_names_the_failure(kernels: Kernels) -> None:
    model: Any = MODELS.build(dict(type="SAResNet", depth=50, base_channels=8, groups=8, frozen_stages=-1))
    model.train()
    kernels.forward_fails = FAILURES[1]
    with pytest.warns(RuntimeWarning, match="shared memory"):
        model(torch.randn(1, 3, 32, 32))
    assert all("OutOfResources" in str(reason) for reason in obstacles_to_fusion(model).values())


PROGRAM = """
import torch, sa_mmdet
from mmdet.registry import MODELS
model = MODELS.build(dict(type="SAResNet", depth=50, base_channels=8, groups=8, frozen_stages=-1))
model.train()
with torch.no_grad():
    print(tuple(model(torch.randn(1, 3, 32, 32))[3].shape))
print(sa_mmdet.ops.backends.describe()["cuda"])
"""


@pytest.mark.parametrize(
    "content",
    [
        "raise ImportError('libtriton.so: no such file')",
        *(pytest.param(content, marks=pytest.mark.long) for content in ("raise OSError(5, 'input')", "")),
    ],
)
def test_a_broken_triton_does_not_break_the_package(content: str, tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(content)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    shape, said = result.stdout.splitlines()
    assert shape == "(1, 256, 1, 1)"
    assert said.startswith("not fused: Triton cannot be imported")
