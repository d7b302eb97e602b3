"""Registers the fused operator with PyTorch: torch.compile, export, DDP, AMP and checkpointing see one operator."""

from typing import Any

import torch
from mmengine.utils import digit_version
from torch import Tensor
from torch.autograd import forward_ad

from . import backends, reference
from .tensors import at_least_float32, is_compiling

# TorchDynamo understands the question from PyTorch 2.5 on.
_CANNOT_ASK = digit_version(torch.__version__) < digit_version("2.5.0")


def transforms_active() -> bool:
    """Whether torch.func or forward-mode differentiation is active, for which the operator has no rules."""
    if _CANNOT_ASK and is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


if backends.AVAILABLE:

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
        """See :func:`sa_mmdet.ops.cpu.forward`, and for ``fallback`` :func:`sa_mmdet.ops.backends.run`."""
        arguments = (x, identity, scale, shift, parameters, groups, eps)
        out, mean, rstd = backends.run("forward", x, arguments, fallback)
        return out, mean, rstd

    @torch.library.custom_op("sa_mmdet::shuffle_attention_backward", mutates_args=())
    def fused_backward(
        grad_out: Tensor,
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
        """See :func:`sa_mmdet.ops.cpu.backward`."""
        arguments = (grad_out, x, out, mean, rstd, scale, shift, parameters, groups, eps)
        grad_x, grad_identity, grad_scale, grad_shift, grad_parameters = backends.run(
            "backward", x, arguments, fallback
        )
        return grad_x, grad_identity, grad_scale, grad_shift, grad_parameters

    @fused.register_fake
    def _(x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
        n, channels = x.shape[:2]
        dtype = at_least_float32(x)
        out = torch.empty_like(x, memory_format=backends.output_format(x))
        return out, x.new_empty((n, channels), dtype=dtype), x.new_empty((n, channels // 2), dtype=dtype)

    @fused_backward.register_fake
    def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        _, x, out, mean, _, _, _, parameters, *_ = arguments
        grad_x = torch.empty_like(x, memory_format=backends.output_format(x))
        grad_identity = x.new_empty(0) if out is None else torch.empty_like(grad_x)
        grad_scale = x.new_empty(x.shape[1], dtype=mean.dtype)
        grad_parameters = torch.empty_like(parameters, dtype=mean.dtype)
        return grad_x, grad_identity, grad_scale, torch.empty_like(grad_scale), grad_parameters

    def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, identity, scale, shift, parameters, ctx.groups, ctx.eps, ctx.fallback = inputs
        out, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, None if identity is None else out, mean, rstd, scale, shift, parameters)

    def _gradients(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple:
        saved = ctx.saved_tensors  # read once: checkpointing recomputes them at each access
        _, out, _, _, scale, shift, parameters = saved
        arguments = (grad_out, *saved, ctx.groups, ctx.eps)
        differentiated = torch.is_grad_enabled() or transforms_active()
        gradients = reference.backward(*arguments) if differentiated else fused_backward(*arguments, ctx.fallback)
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
