"""Registers the fused form with PyTorch, so that torch.compile, export, DDP, AMP and checkpointing see one operator."""

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from . import _cpu

# torch.library.custom_op came with torch 2.4; before, the composite form does the work.
AVAILABLE = hasattr(torch.library, "custom_op")

_triton: Any = None
if AVAILABLE and importlib.util.find_spec("triton"):
    _triton = importlib.import_module("sa_mmdet.ops._triton")


def obstacle(x: Tensor) -> str | None:
    """Why the operator cannot take a tensor, whatever else is asked of it, or None."""
    if not AVAILABLE:
        return f"PyTorch {torch.__version__} has no torch.library.custom_op"
    if torch.jit.is_tracing():
        return "a trace takes PyTorch's own operators alone"
    if x.device.type == "cpu":
        return None if x.is_floating_point() else f"the input is of dtype {x.dtype}"
    if x.device.type != "cuda":
        return f"there is no kernel for {x.device.type}"
    if _triton is None:
        return "Triton is not installed"
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernels do not compute in {x.dtype}"
    return None


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout of what the operator returns: on GPUs that of its input, else contiguous."""
    last = x.is_cuda and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _kernels(x: Tensor) -> Any:
    return _triton if x.is_cuda else _cpu


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
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The output, the mean of x and what the kernels keep of the spatial branch's spread: on the CPU rstd, on
        # a GPU the variance.
        return _kernels(x).forward(x, identity, scale, shift, parameters, groups, eps)

    @torch.library.custom_op("sa_mmdet::shuffle_attention_backward", mutates_args=())
    def fused_backward(
        gradient: Tensor,
        x: Tensor,
        out: Tensor | None,
        mean: Tensor,
        spread: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        parameters: Tensor,
        groups: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        kernels = _kernels(x)
        return kernels.backward(gradient, x, out, mean, spread, scale, shift, parameters, groups, eps)

    @fused.register_fake
    def _(
        x: Tensor,
        identity: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        parameters: Tensor,
        groups: int,
        eps: float,
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
        spread: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        parameters: Tensor,
        groups: int,
        eps: float,
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
        x, identity, scale, shift, parameters, ctx.groups, ctx.eps = inputs
        out, mean, spread = output
        ctx.mark_non_differentiable(mean, spread)
        ctx.save_for_backward(x, None if identity is None else out, mean, spread, scale, shift, parameters)

    def _gradients(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple:
        saved = ctx.saved_tensors  # once: checkpointing recomputes them at each access
        _, out, _, _, scale, shift, parameters = saved
        grad_x, grad_identity, grad_scale, grad_shift, grad_parameters = fused_backward(
            gradient, *saved, ctx.groups, ctx.eps
        )
        return (
            grad_x,
            None if out is None else grad_identity,
            None if scale is None else grad_scale.to(scale.dtype),
            None if shift is None else grad_shift.to(shift.dtype),
            grad_parameters.to(parameters.dtype),
            None,
            None,
        )

    fused.register_autograd(_gradients, setup_context=_save)
