"""Registers the pointwise work of residual blocks on GPUs with PyTorch, as :mod:`sa_mmdet.ops.custom_op` does."""

from typing import Any

import torch
from torch import Tensor

from . import backends, pointwise
from .custom_op import transforms_active
from .eval_norm import EvalNorm
from .tensors import at_least_float32


def block_end(
    x: Tensor,
    identity: Tensor | None,
    norm: EvalNorm,
    channel_gate: Tensor | None,
    position_gate: Tensor | None,
    identity_norm: EvalNorm,
) -> Tensor:
    """Compute :func:`sa_mmdet.ops.pointwise.forward` as one operator.

    Args:
        x: N x C x H x W.
        identity: The same, of the dtype of x; None for relu(norm(x)).
        norm: The batch norm of x.
        channel_gate: N x C, or None.
        position_gate: N x G x H x W, or None; G divides C.
        identity_norm: The batch norm of the identity.

    Raises:
        ValueError: A tensor has another shape than these.
    """
    _check(x, identity, norm, channel_gate, position_gate, identity_norm)
    return fused(x, identity, *norm, channel_gate, position_gate, *identity_norm)


def _check(
    x: Tensor,
    identity: Tensor | None,
    norm: EvalNorm,
    channel_gate: Tensor | None,
    position_gate: Tensor | None,
    identity_norm: EvalNorm,
) -> None:
    n, channels, *size = x.shape
    if identity is not None and identity.shape != x.shape:
        raise ValueError(f"identity of shape {tuple(identity.shape)} for x of shape {tuple(x.shape)}: make them equal")
    for vector in (*norm[:4], *identity_norm[:4]):
        if vector is not None and vector.shape != (channels,):
            raise ValueError(f"a norm's vector of shape {tuple(vector.shape)}: expected {(channels,)}")
    if channel_gate is not None and channel_gate.shape != (n, channels):
        raise ValueError(f"gates for channels of shape {tuple(channel_gate.shape)}: expected {(n, channels)}")
    if position_gate is None:
        return
    shape = tuple(position_gate.shape)
    if len(shape) != 4 or shape != (n, shape[1], *size) or shape[1] < 1 or channels % shape[1]:
        raise ValueError(
            f"gates for positions of shape {shape} for x of shape {tuple(x.shape)}: expected N x G x H x W, "
            "where G divides C"
        )


if backends.AVAILABLE:

    @torch.library.custom_op("sa_mmdet::block_end", mutates_args=())
    def fused(
        x: Tensor,
        identity: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        eps: float,
        channel_gate: Tensor | None,
        position_gate: Tensor | None,
        identity_weight: Tensor | None,
        identity_bias: Tensor | None,
        identity_mean: Tensor | None,
        identity_variance: Tensor | None,
        identity_eps: float,
    ) -> Tensor:
        """See :func:`sa_mmdet.ops.pointwise.forward`."""
        norm = EvalNorm(weight, bias, mean, variance, eps)
        identity_norm = EvalNorm(identity_weight, identity_bias, identity_mean, identity_variance, identity_eps)
        arguments = (x, identity, norm, channel_gate, position_gate, identity_norm)
        return backends.run_block_end("forward", x, arguments)[0]

    @torch.library.custom_op("sa_mmdet::block_end_backward", mutates_args=())
    def fused_backward(
        grad_out: Tensor,
        out: Tensor | None,
        x: Tensor,
        identity: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        eps: float,
        channel_gate: Tensor | None,
        position_gate: Tensor | None,
        identity_weight: Tensor | None,
        identity_bias: Tensor | None,
        identity_mean: Tensor | None,
        identity_variance: Tensor | None,
        identity_eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """See :func:`sa_mmdet.ops.pointwise.backward`."""
        norm = EvalNorm(weight, bias, mean, variance, eps)
        identity_norm = EvalNorm(identity_weight, identity_bias, identity_mean, identity_variance, identity_eps)
        arguments = (grad_out, out, x, identity, norm, channel_gate, position_gate, identity_norm)
        grad_x, grad_identity, vectors, grad_channel, grad_position = backends.run_block_end("backward", x, arguments)
        return grad_x, grad_identity, vectors, grad_channel, grad_position

    @fused.register_fake
    def _(x: Tensor, *_: object) -> Tensor:
        return torch.empty_like(x, memory_format=backends.output_format(x))

    @fused_backward.register_fake
    def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        _, out, x, _, *vectors = arguments
        channel_gate, position_gate, identity_norm = vectors[5], vectors[6], EvalNorm(*vectors[7:])
        grad_x = torch.empty_like(x, memory_format=backends.output_format(x))
        none = x.new_empty(0, dtype=at_least_float32(x))
        count = 4 if out is not None and identity_norm.exists else 2
        return (
            grad_x,
            x.new_empty(0) if out is None else torch.empty_like(grad_x),
            none.new_empty((count, x.shape[1])),
            torch.empty_like(none) if channel_gate is None else none.new_empty(x.shape[:2]),
            none if position_gate is None else none.new_empty(position_gate.shape),
        )

    def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, identity, *vectors = inputs
        ctx.eps, ctx.identity_eps = vectors.pop(4), vectors.pop()
        ctx.residual, normed = identity is not None, any(vector is not None for vector in vectors[6:])
        # The next layer keeps the result anyway; without an identity its sign follows from x.
        ctx.save_for_backward(output if ctx.residual else None, x, identity if normed else None, *vectors)

    def _gradients(ctx: Any, grad_out: Tensor) -> tuple:
        out, x, identity, *vectors = ctx.saved_tensors  # read once: checkpointing recomputes them at each access
        channel_gate, position_gate = vectors[4:6]
        norm, identity_norm = (
            EvalNorm(weight, bias, mean, variance, eps)
            for (weight, bias, mean, variance), eps in ((vectors[:4], ctx.eps), (vectors[6:], ctx.identity_eps))
        )
        if torch.is_grad_enabled() or transforms_active():
            arguments = (grad_out, out, x, identity, norm, channel_gate, position_gate, identity_norm)
            gradients = pointwise.backward(*arguments)
        else:
            flat = (*norm, channel_gate, position_gate, *identity_norm)
            gradients = fused_backward(grad_out, out, x, identity, *flat)
        grad_x, grad_identity, of_vectors, grad_channel, grad_position = gradients
        rows = [*of_vectors, None, None][:4]  # the last two of the identity's norm
        of_weight, of_bias, of_other_weight, of_other_bias = (
            None if row is None or vector is None else row.to(vector.dtype)
            for row, vector in zip(rows, (*norm[:2], *identity_norm[:2]), strict=True)
        )
        of_channel = None if channel_gate is None else grad_channel.to(channel_gate.dtype)
        of_position = None if position_gate is None else grad_position.to(position_gate.dtype)
        return (
            *(grad_x, grad_identity if ctx.residual else None),
            *(of_weight, of_bias, None, None, None),
            *(of_channel, of_position),
            *(of_other_weight, of_other_bias, None, None, None),
        )

    fused.register_autograd(_gradients, setup_context=_save)
