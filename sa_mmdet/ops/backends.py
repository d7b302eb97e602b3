"""Which code computes the fused operators on a tensor, and what happens where a GPU kernel fails.

CPUs compute by :mod:`sa_mmdet.ops.compiled`, or by :mod:`sa_mmdet.ops.cpu` where that is not installed; GPUs by
Triton's kernels. Where one of these fails to compile or to launch, the formula in PyTorch's own operators does the
work, inside the operator: a run goes on, and whoever has compiled or checkpointed a model sees the same operator as
before.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import compiled, cpu, pointwise, reference
from .tensors import in_memory_format, memory_format

# torch.library.custom_op came with PyTorch 2.4; before, only the formula is available.
AVAILABLE = hasattr(torch.library, "custom_op")
# Why no custom operator can be called at all, or None.
unusable: str | None = None if AVAILABLE else f"PyTorch {torch.__version__} has no torch.library.custom_op"
# The kernels for GPUs, or why there are none.
triton: Any = None
triton_block_end: Any = None
without_triton = "Triton is not installed"
if AVAILABLE and importlib.util.find_spec("triton"):
    try:
        importlib.import_module("triton.language")
    except Exception as error:  # PyTorch imports it whenever a custom operator is called; anything can be raised
        unusable = f"Triton cannot be imported: {type(error).__name__}: {error}"
    else:
        try:
            triton_block_end = importlib.import_module("sa_mmdet.ops._triton_block_end")
            triton = importlib.import_module("sa_mmdet.ops._triton")
        except Exception as error:  # a version of Triton that does not fit
            without_triton = f"Triton does not accept the kernels: {type(error).__name__}: {error}"

# The devices on which a kernel has failed, with the cause, and the causes that a warning has named.
failures: dict[torch.device, str] = {}
reported: set[str] = set()
# After one of these errors, in the words of CUDA and of Triton, the GPU cannot compute anything any more.
_CONTEXT_LOST = (
    "device-side assert",
    "illegal memory access",
    "illegal address",
    "illegal instruction",
    "misaligned address",
    "invalid address space",
    "invalid program counter",
    "unspecified launch failure",
    "launch timed out",
    "hardware stack error",
    "uncorrectable ecc",
    "context is destroyed",
)


def describe() -> dict[str, str]:
    """For each kind of device, how the fused operator is computed there, or why it is not."""
    without_compiled = f"not fused: {unusable}" if unusable else f"fused, by PyTorch's operators: {compiled.missing}"
    return dict(
        cpu=without_compiled if compiled.missing else "fused, by compiled C++",
        cuda="fused, by Triton" if triton else f"not fused: {unusable or without_triton}",
    )


def obstacle(x: Tensor) -> str | None:
    """Why the fused operator cannot compute on a tensor's device and dtype, or None."""
    if x.device.type == "cpu":
        return None if x.is_floating_point() else f"the input is of dtype {x.dtype}"
    if x.device.type != "cuda":
        return f"there is no kernel for {x.device.type}"
    if triton is None:
        return without_triton
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernels do not compute in {x.dtype}"
    return None


def by_triton(x: Tensor) -> bool:
    """Whether Triton's kernels compute on a tensor; no other place decides that."""
    return x.is_cuda and triton is not None


def obstacle_to_compiled(x: Tensor) -> str | None:
    """Why the compiled operators that have their own derivatives cannot take a tensor at this moment, or None."""
    return "Triton's kernels compute it" if by_triton(x) else compiled.obstacle(x)


def obstacle_to_block_end(x: Tensor) -> str | None:
    """Why no operator computes the pointwise work of residual blocks on a tensor, or None."""
    if by_triton(x):
        return obstacle(x)
    if reason := compiled.obstacle(x):
        return reason
    return "the feature maps are channels-last" if memory_format(x) == torch.channels_last else None


def output_format(x: Tensor) -> torch.memory_format:
    """The layout of the operator's feature maps: with Triton's kernels that of the input, otherwise contiguous."""
    return memory_format(x) if by_triton(x) else torch.contiguous_format


def run(direction: str, x: Tensor, arguments: tuple, fallback: bool) -> tuple[Tensor, ...]:
    """Compute the operator or its gradients.

    Args:
        direction: 'forward' or 'backward'.
        x: The operator's input, which decides who computes.
        arguments: Those of :func:`sa_mmdet.ops.cpu.forward` or :func:`sa_mmdet.ops.cpu.backward`.
        fallback: Whether PyTorch's own operators compute where a kernel fails; otherwise its error is raised.
    """
    layout = output_format(x)
    backend = _backend(x, fallback)
    if backend is not triton:
        return _maps_in(layout, getattr(backend, direction)(*arguments))

    def kernel() -> tuple[Tensor, ...]:
        return getattr(triton, direction)(*_maps_in(layout, arguments))

    return _maps_in(layout, _guarded(kernel, lambda: getattr(reference, direction)(*arguments), x.device, fallback))


def run_block_end(direction: str, x: Tensor, arguments: tuple) -> tuple[Tensor, ...]:
    """Compute the pointwise work of a residual block, or its gradients.

    Args:
        direction: 'forward' or 'backward'.
        x: The operator's input, which decides who computes.
        arguments: Those of :func:`sa_mmdet.ops.pointwise.forward` or :func:`sa_mmdet.ops.pointwise.backward`.

    Returns:
        What these functions return, as a tuple; the maps have the layout of x.
    """
    layout = output_format(x)

    def formula() -> tuple[Tensor, ...]:
        return _tuple(getattr(pointwise, direction)(*arguments))

    def kernel() -> tuple[Tensor, ...]:
        return _tuple(getattr(triton_block_end, direction)(*arguments))

    # The kernels count the positions of a row in 32 bits.
    kernels = by_triton(x) and x.numel() > 0 and x.shape[2] * x.shape[3] < 2**31 - 2**16 and x.device not in failures
    results = _guarded(kernel, formula, x.device, True) if kernels else formula()
    maps = 1 if direction == "forward" else 2
    return (*_maps_in(layout, results[:maps]), *(result.contiguous() for result in results[maps:]))


def _tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def _guarded(
    kernel: Callable[[], tuple[Tensor, ...]],
    formula: Callable[[], tuple[Tensor, ...]],
    device: torch.device,
    fallback: bool,
) -> tuple[Tensor, ...]:
    """What the kernel returns or, where it fails and ``fallback`` is set, the formula."""
    try:
        return kernel()
    except Exception as error:
        if not fallback or _is_fatal(error, device):
            raise
        failure = error.with_traceback(None)  # the frames of the traceback hold the kernel's results
    results = formula()  # if the error is the caller's, it is raised here again
    _report(failure, device)
    return results


def _backend(x: Tensor, fallback: bool) -> Any:
    if x.numel() and by_triton(x):
        return reference if fallback and x.device in failures else triton
    if not x.numel() or x.device.type != "cpu":
        return reference
    return cpu if compiled.missing else compiled


def _maps_in(layout: torch.memory_format, values: tuple) -> tuple:
    """The values, with all feature maps among them in that layout."""
    return tuple(in_memory_format(v, layout) if isinstance(v, Tensor) and v.dim() == 4 else v for v in values)


def _is_fatal(error: Exception, device: torch.device) -> bool:
    """Whether PyTorch's own operators would fail, too: memory is exhausted, or the GPU's context is lost."""
    out_of_memory = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)  # its name from PyTorch 2.5 on
    message = str(error).lower()
    if isinstance(error, out_of_memory | MemoryError) or "out of memory" in message:
        return True
    if any(sign in message for sign in _CONTEXT_LOST):
        return True
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize(device)  # raises if the context is lost
    return False


def _report(error: Exception, device: torch.device) -> None:
    """Remember that kernels fail on a device, and warn of each cause once."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or ["no message"]
    message = lines[-1] if len(lines[-1]) <= 500 else f"{lines[-1][:250]} ... {lines[-1][-250:]}"
    failures[device] = cause = f"{type(error).__name__}: {message}"
    if cause not in reported:
        reported.add(cause)
        warnings.warn(
            f"a fused kernel fails on {device} ({cause}). From now on PyTorch's own operators "
            "compute the same there; implementation='fused' raises the error instead",
            RuntimeWarning,
            stacklevel=2,
        )
