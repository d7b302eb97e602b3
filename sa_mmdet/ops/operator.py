"""Registers the fused form with PyTorch, so that torch.compile, export, DDP, AMP and checkpointing see one operator.

On GPUs the kernels are Triton's. Where one of them fails to compile or to launch, PyTorch's own operators do the work
inside the operator, so that a run goes on, and whoever has compiled or checkpointed a model sees the same operator.
"""

import importlib
import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import cpu, formula

# torch.library.custom_op came with torch 2.4; before, the composite form does the work.
AVAILABLE = hasattr(torch.library, "custom_op")
# Stand-ins for plain tensors while PyTorch traces, which the operator has a fake form for.
TRACED: tuple[type, ...] = ()

_triton: Any = None
_without_triton = "Triton is not installed"
# Why custom operators do not run at all: PyTorch itself imports Triton when one is called.
broken: str | None = None
if AVAILABLE:
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    TRACED = (FakeTensor, FunctionalTensor)
    if importlib.util.find_spec("triton"):
        try:
            importlib.import_module("triton.language")
        except Exception as error:  # whatever a broken installation makes of an import
            broken = f"Triton cannot be imported: {type(error).__name__}: {error}"
    if importlib.util.find_spec("triton") and not broken:
        try:
            _triton = importlib.import_module("sa_mmdet.ops._triton")
        except Exception as error:  # a Triton of another age
            _without_triton = f"Triton does not take the kernels: {type(error).__name__}: {error}"

# Of each device on which a kernel has failed, the cause; and the causes that were told.
failures: dict[torch.device, str] = {}
_told: set[str] = set()
# After these a GPU computes nothing any more, whoever asks. So says CUDA, here and in Triton's words.
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


def backends() -> dict[str, str]:
    """What computes the fused form on each kind of device, or why nothing does."""
    if not AVAILABLE or broken:
        reason = f"not fused: {broken or f'PyTorch {torch.__version__} has no torch.library.custom_op'}"
        return dict(cpu=reason, cuda=reason)
    return dict(
        cpu="fused, by PyTorch's operators", cuda="fused, by Triton" if _triton else f"not fused: {_without_triton}"
    )


def transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work, whose rules the operator does not have."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def obstacle(x: Tensor) -> str | None:
    """Why there is no kernel for a tensor, or None."""
    if x.device.type == "cpu":
        return None if x.is_floating_point() else f"the input is of dtype {x.dtype}"
    if x.device.type != "cuda":
        return f"there is no kernel for {x.device.type}"
    if _triton is None:
        return _without_triton
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernels do not compute in {x.dtype}"
    return None


def by_triton(x: Tensor) -> bool:
    """Whether Triton's kernels compute on a tensor: the one place that chooses them."""
    return x.is_cuda and _triton is not None


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout of what the operator returns: by Triton's kernels that of its input, else contiguous."""
    return _triton.memory_format(x) if by_triton(x) else torch.contiguous_format


def _run(name: str, x: Tensor, arguments: tuple, fallback: bool) -> tuple[Tensor, ...]:
    """'forward' or 'backward', by whatever computes on such a tensor."""
    layout = memory_format(x)
    backend = _backend(x, fallback)
    compute = getattr(backend, name)
    if backend is not _triton:
        return _all_laid_out(compute(*arguments), layout)
    try:
        return _all_laid_out(compute(*_all_laid_out(arguments, layout)), layout)
    except Exception as error:
        if not fallback or _beyond_help(error, x.device):
            raise
        failure = error.with_traceback(None)  # whose frames hold the kernel's results
    results = getattr(formula, name)(*arguments)  # which raises what is the caller's own mistake
    _report(failure, x.device)
    return _all_laid_out(results, layout)


def _backend(x: Tensor, fallback: bool) -> Any:
    if x.numel() and by_triton(x):
        return formula if fallback and x.device in failures else _triton
    return cpu if x.numel() and x.device.type == "cpu" else formula


def _all_laid_out(values: tuple, layout: torch.memory_format) -> tuple:
    """The values, of which feature maps get exactly the strides of a new one: an axis of length 1 may have any."""
    return tuple(_laid_out(v, layout) if isinstance(v, Tensor) and v.dim() == 4 else v for v in values)


def _laid_out(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    if not tensor.numel():
        return torch.empty_like(tensor, memory_format=layout)
    _, c, h, w = tensor.shape
    strides = (c * h * w, h * w, w, 1) if layout == torch.contiguous_format else (c * h * w, 1, w * c, c)
    tensor = tensor.contiguous(memory_format=layout)
    return tensor if tensor.stride() == strides else tensor.as_strided(tensor.shape, strides)


def _beyond_help(error: Exception, device: torch.device) -> bool:
    """Whether PyTorch's own operators would fail, too: memory is short, or the GPU's context is lost."""
    out_of_memory = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)  # where it is from torch 2.5
    message = str(error).lower()
    if isinstance(error, out_of_memory | MemoryError) or "out of memory" in message:
        return True
    if any(sign in message for sign in _CONTEXT_LOST):
        return True
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize(device)  # raises where the context is lost
    return False


def _report(error: Exception, device: torch.device) -> None:
    """Note that the kernels do not run on a device; tell each cause once."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or ["no message"]
    message = lines[-1] if len(lines[-1]) <= 500 else f"{lines[-1][:250]} ... {lines[-1][-250:]}"
    failures[device] = cause = f"{type(error).__name__}: {message}"
    if cause not in _told:
        _told.add(cause)
        warnings.warn(
            f"a kernel of the fused shuffle attention fails on {device} ({cause}). From now on PyTorch's own operators "
            "compute there what it would; implementation='fused' raises the error itself",
            RuntimeWarning,
            stacklevel=2,
        )


if AVAILABLE:

    @torch.library.custom_op("sa_mmdet::shuffle_attention", mutates_args=())
    def fused(
        x: Tensor,
        identity: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        parameters: Tensor,
        groups: int,
        eps: float,
        fallback: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The output, the mean of x and the spatial branch's rstd.
        out, mean, rstd = _run("forward", x, (x, identity, scale, shift, parameters, groups, eps), fallback)
        return out, mean, rstd

    @torch.library.custom_op("sa_mmdet::shuffle_attention_backward", mutates_args=())
    def fused_backward(
        gradient: Tensor,
        x: Tensor,
        out: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        parameters: Tensor,
        groups: int,
        eps: float,
        fallback: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        arguments = (gradient, x, out, mean, rstd, scale, shift, parameters, groups, eps)
        grad_x, grad_identity, grad_scale, grad_shift, grad_parameters = _run("backward", x, arguments, fallback)
        return grad_x, grad_identity, grad_scale, grad_shift, grad_parameters

    @fused.register_fake
    def _(
        x: Tensor,
        identity: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        parameters: Tensor,
        groups: int,
        eps: float,
        fallback: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, channels = x.shape[:2]
        wide = torch.promote_types(x.dtype, torch.float32)
        out = torch.empty_like(x, memory_format=memory_format(x))
        return out, x.new_empty((n, channels), dtype=wide), x.new_empty((n, channels // 2), dtype=wide)

    @fused_backward.register_fake
    def _(
        gradient: Tensor,
        x: Tensor,
        out: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        parameters: Tensor,
        groups: int,
        eps: float,
        fallback: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        grad_x = torch.empty_like(x, memory_format=memory_format(x))
        grad_identity = x.new_empty(0) if out is None else torch.empty_like(grad_x)
        channels = x.new_empty(x.shape[1], dtype=mean.dtype)
        return (
            grad_x,
            grad_identity,
            channels,
            torch.empty_like(channels),
            torch.empty_like(parameters, dtype=mean.dtype),
        )

    def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, identity, scale, shift, parameters, ctx.groups, ctx.eps, ctx.fallback = inputs
        out, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, None if identity is None else out, mean, rstd, scale, shift, parameters)

    def _gradients(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple:
        saved = ctx.saved_tensors  # once: checkpointing recomputes them at each access
        _, out, _, _, scale, shift, parameters = saved
        arguments = (gradient, *saved, ctx.groups, ctx.eps)
        differentiated = torch.is_grad_enabled() or transformed()
        gradients = formula.backward(*arguments) if differentiated else fused_backward(*arguments, ctx.fallback)
        grad_x, grad_identity, grad_scale, grad_shift, grad_parameters = gradients
        return (
            grad_x,
            None if out is None else grad_identity,
            None if scale is None else grad_scale.to(scale.dtype),
            None if shift is None else grad_shift.to(shift.dtype),
            grad_parameters.to(parameters.dtype),
            None,
            None,
            None,
        )

    fused.register_autograd(_gradients, setup_context=_save)
