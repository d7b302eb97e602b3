"""Norm, gates, addition and ReLU of a residual block in PyTorch's own operators: what Triton's kernels compute.

With y = norm(x) and the gates, which are numbers for each image and channel (N x C), for each position of each of G
groups of adjacent channels (N x G x H x W), both, or 1:

    without an identity:  out = relu(y)
    with one:             out = relu(identity_norm(identity) + gates * y)

The backward below is written out, and is differentiable itself: derivatives of higher order are those of its operators.
"""

import torch
from torch import Tensor

from .eval_norm import EvalNorm
from .tensors import at_least_float32

_ALL_BUT_CHANNELS = (0, 2, 3)


def forward(
    x: Tensor,
    identity: Tensor | None,
    norm: EvalNorm,
    channel_gate: Tensor | None,
    position_gate: Tensor | None,
    identity_norm: EvalNorm,
) -> Tensor:
    """Compute the formula above; gates come with an identity only.

    Returns:
        N x C x H x W of the dtype of x, rounded once.
    """
    y = norm.affine(norm.normalised(x))
    y = _times(_times(y, _of_channels(channel_gate, y)), _of_positions(position_gate, y))
    if identity is not None:
        y = y + identity_norm.affine(identity_norm.normalised(identity)).to(y.dtype)
    return torch.relu(y.to(x.dtype))


def backward(
    grad_out: Tensor,
    out: Tensor | None,
    x: Tensor,
    identity: Tensor | None,
    norm: EvalNorm,
    channel_gate: Tensor | None,
    position_gate: Tensor | None,
    identity_norm: EvalNorm,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of all inputs of :func:`forward`.

    Args:
        grad_out: The gradient of the output, N x C x H x W.
        out: Forward's output, None if there was no identity: then it is computed again.
        x: As forward took it; so are the norms and the gates.
        identity: As forward took it, if it has a norm; otherwise it may be None.

    Returns:
        The gradients of x and, if ``out`` is given, of the identity (N x C x H x W each); of the weight and the bias of
        the norm and then of the identity's norm, if there is one (2 x C or 4 x C); of the gates for channels
        (N x C) and for positions (N x G x H x W). What there was not is empty. All but the first two are in float32 or
        float64.
    """
    normalised = norm.normalised(x)
    y = norm.affine(normalised)
    result = y.to(x.dtype) if out is None else out
    through = torch.ops.aten.threshold_backward(grad_out, result.detach(), 0).to(at_least_float32(x))
    by_channel, by_position = _of_channels(channel_gate, y), _of_positions(position_gate, y)
    grad_y = _times(_times(through, by_channel), by_position)
    vectors = [(grad_y * normalised).sum(_ALL_BUT_CHANNELS), grad_y.sum(_ALL_BUT_CHANNELS)]
    # Each in memory of its own, as PyTorch demands of an operator's results.
    grad_identity, grad_channel, grad_position = (through.new_empty(0) for _ in range(3))
    if out is not None:
        grad_identity = through * identity_norm.scale(through)
        if identity_norm.exists and identity is not None:
            other = identity_norm.normalised(identity)
            vectors += [(through * other).sum(_ALL_BUT_CHANNELS), through.sum(_ALL_BUT_CHANNELS)]
    if channel_gate is not None:
        grad_channel = (_times(through, by_position) * y).sum((2, 3))
    if position_gate is not None:
        gated = (_times(through, by_channel) * y).unflatten(1, (position_gate.shape[1], -1))
        grad_position = gated.sum(2)
    grad_x = (grad_y * norm.scale(grad_y)).to(x.dtype)
    return grad_x, grad_identity.to(x.dtype), torch.stack(vectors), grad_channel, grad_position


def _times(y: Tensor, gate: Tensor | None) -> Tensor:
    return y if gate is None else y * gate


def _of_channels(gate: Tensor | None, y: Tensor) -> Tensor | None:
    return None if gate is None else gate.to(y.dtype).reshape(*y.shape[:2], 1, 1)


def _of_positions(gate: Tensor | None, y: Tensor) -> Tensor | None:
    """The gate of each channel's group, N x C x H x W or N x 1 x H x W."""
    if gate is None or gate.shape[1] == 1:
        return None if gate is None else gate.to(y.dtype)
    return gate.to(y.dtype).repeat_interleave(y.shape[1] // gate.shape[1], 1)
