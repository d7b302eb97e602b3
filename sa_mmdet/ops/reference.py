"""Shuffle attention and the end of a residual block in PyTorch's own operators, differentiable to any order.

``implementation='reference'`` computes these functions, and so does every case that the fused operator cannot take.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .tensors import at_least_float32, shuffle_channels, unshuffle_channels


class Parameters(NamedTuple):
    """The parameters of shuffle attention, shared by all groups.

    The backends take them stacked, 6 x K, in this order.

    Attributes:
        channel_weight: K elements; K x K elements mix the channels of a branch, as a 1 x 1 convolution does; None, of
            the bias too, leaves both out.
        channel_bias: K elements or None.
        spatial_weight: K or K x K elements or None, as ``channel_weight``.
        spatial_bias: K elements or None.
        norm_weight: K elements; None leaves the normalisation out.
        norm_bias: K elements or None.
    """

    channel_weight: Tensor | None
    channel_bias: Tensor | None
    spatial_weight: Tensor | None
    spatial_bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None


def branches(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The channel branch and the spatial branch of x (N x C x H x W), NG x K x H x W each."""
    n, c, h, w = x.shape
    channel, spatial = x.reshape(n * groups, 2, c // (2 * groups), h, w).unbind(1)
    return channel, spatial


def attention(
    x: Tensor, parameters: Parameters, groups: int, eps: float, shuffle: bool = True, normalised: Tensor | None = None
) -> Tensor:
    """Compute :func:`sa_mmdet.ops.shuffle_attention`; ``normalised`` replaces the normalised spatial branch."""
    channel, spatial = branches(x, groups)
    channel_gate, spatial_gate = gates(channel, spatial, parameters, eps, normalised)
    gated = torch.stack((channel * channel_gate.to(x.dtype), spatial * spatial_gate.to(x.dtype)), dim=1)
    gated = gated.reshape(x.shape)
    return shuffle_channels(gated) if shuffle else gated


def residual(
    x: Tensor,
    identity: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    parameters: Parameters,
    groups: int,
    eps: float,
    shuffle: bool = True,
) -> Tensor:
    """Compute :func:`sa_mmdet.ops.shuffle_attention_residual`."""
    return F.relu(identity + attention(_scaled(x, scale, shift), parameters, groups, eps, shuffle))


def gates(
    channel: Tensor, spatial: Tensor, parameters: Parameters, eps: float, normalised: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gates of the two branches: NG x K x 1 x 1 and NG x K x H x W, in float32 or float64."""
    k, dtype = channel.shape[1], at_least_float32(channel)
    mean = channel.mean((2, 3), keepdim=True, dtype=dtype)
    channel_gate = _affine(mean, parameters.channel_weight, parameters.channel_bias).sigmoid()
    weight, bias = parameters.spatial_weight, parameters.spatial_bias
    if normalised is not None:
        return channel_gate, _affine(normalised.to(dtype), weight, bias).sigmoid()
    spatial = spatial.to(dtype)
    if parameters.norm_weight is None or parameters.norm_bias is None:
        return channel_gate, _affine(spatial, weight, bias).sigmoid()
    norm_weight, norm_bias = parameters.norm_weight.reshape(k).to(dtype), parameters.norm_bias.reshape(k).to(dtype)
    if weight is not None and bias is not None and weight.numel() == k:
        # One pass over the map instead of two: the gate's weight and bias become part of the normalisation's.
        weight, bias = weight.reshape(k).to(dtype), bias.reshape(k).to(dtype)
        return channel_gate, F.group_norm(spatial, k, weight * norm_weight, weight * norm_bias + bias, eps).sigmoid_()
    return channel_gate, _affine(F.group_norm(spatial, k, norm_weight, norm_bias, eps), weight, bias).sigmoid()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift the K channels of ``x``, or mix them where the weight has K x K elements."""
    if weight is None or bias is None:
        return x
    k = x.shape[1]
    if weight.numel() == k:
        return x * weight.reshape(k, 1, 1).to(x.dtype) + bias.reshape(k, 1, 1).to(x.dtype)
    return F.conv2d(x, weight.reshape(k, k, 1, 1).to(x.dtype), bias.reshape(k).to(x.dtype))


def _scaled(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """scale * x + shift, rounded once to the dtype of ``x`` as the result of a batch norm is."""
    y = x.to(at_least_float32(x)) if scale is not None or shift is not None else x
    y = y if scale is None else y * scale.to(y.dtype).reshape(-1, 1, 1)
    y = y if shift is None else y + shift.to(y.dtype).reshape(-1, 1, 1)
    return y.to(x.dtype)


def forward(
    x: Tensor,
    identity: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    parameters: Tensor,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of the operator, see :func:`sa_mmdet.ops.cpu.forward`."""
    n, c = x.shape[:2]
    rows = Parameters(*parameters.unbind())
    if identity is None:
        out = attention(_scaled(x, scale, shift), rows, groups, eps)
    else:
        out = residual(x, identity, scale, shift, rows, groups, eps)
    wide = x.flatten(2).to(at_least_float32(x))
    mean = wide.mean(2)
    variance = (wide - mean.unsqueeze(2)).square().mean(2)
    variance = variance if scale is None else variance * scale.to(wide.dtype).square()
    spatial = variance.unflatten(1, (groups, 2, c // (2 * groups)))[:, :, 1].reshape(n, c // 2)
    return out, mean, (spatial + eps).rsqrt()


def backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the operator, see :func:`sa_mmdet.ops.cpu.backward`, as differentiable functions.

    ``mean`` and ``rstd`` are constants to autograd. They are not used: both are computed again from ``x``, so that
    second derivatives are right.
    """
    n, c, h, w = x.shape
    dtype = at_least_float32(x)
    if out is not None:
        grad_out = torch.ops.aten.threshold_backward(grad_out, out.detach(), 0)
    shape = (n, groups, 2, c // (2 * groups), h * w)
    x_wide = x.reshape(shape).to(dtype)
    scale_wide = _per_channel(scale, 1.0, x).reshape(*shape[1:4], 1)
    y = scale_wide * x_wide + _per_channel(shift, 0.0, x).reshape(*shape[1:4], 1)
    grad = unshuffle_channels(grad_out).reshape(shape).to(dtype)
    rows = parameters.to(dtype).unsqueeze(-1).unbind()
    channel_weight, channel_bias, spatial_weight, spatial_bias, norm_weight, norm_bias = rows

    (channel, spatial), (grad_channel, grad_spatial) = y.unbind(2), grad.unbind(2)
    channel_mean = channel.mean(-1, keepdim=True)
    gate = (channel_weight * channel_mean + channel_bias).sigmoid()
    grad_channel_logit = (grad_channel * channel).sum(-1, keepdim=True) * gate * (1 - gate)
    grad_channel = grad_channel * gate + channel_weight * grad_channel_logit / (h * w)

    deviation = spatial - spatial.mean(-1, keepdim=True)
    spatial_rstd = (deviation.square().mean(-1, keepdim=True) + eps).rsqrt()
    normalised = deviation * spatial_rstd
    gate = (spatial_weight * (norm_weight * normalised + norm_bias) + spatial_bias).sigmoid()
    grad_spatial_logit = grad_spatial * spatial * gate * (1 - gate)
    projection = (grad_spatial_logit * normalised).mean(-1, keepdim=True)
    grad_normalised = grad_spatial_logit - grad_spatial_logit.mean(-1, keepdim=True) - normalised * projection
    grad_spatial = grad_spatial * gate + spatial_weight * norm_weight * spatial_rstd * grad_normalised

    grad_y = torch.stack((grad_channel, grad_spatial), 2)
    all_but_k = (0, 1, 3)
    grad_parameters = parameter_gradients(
        parameters.to(dtype),
        (grad_channel_logit * channel_mean).sum(all_but_k),
        grad_channel_logit.sum(all_but_k),
        (projection * (h * w)).sum(all_but_k),
        grad_spatial_logit.sum(all_but_k),
    )
    return (
        (grad_y * scale_wide).reshape(n, c, h, w).to(x.dtype),
        x.new_empty(0) if out is None else grad_out,
        (grad_y * x_wide).sum((0, 4)).reshape(c),
        grad_y.sum((0, 4)).reshape(c),
        grad_parameters,
    )


def parameter_gradients(
    parameters: Tensor, channel_mean: Tensor, channel: Tensor, spatial_normalised: Tensor, spatial: Tensor
) -> Tensor:
    """The gradients of the six parameters (6 x K), from sums over images, groups and positions (K each).

    Args:
        parameters: 6 x K, as :class:`Parameters` orders them.
        channel_mean: The sum of dL/dlogit * (mean of scale * x + shift) in the channel branch.
        channel: The sum of dL/dlogit in the channel branch.
        spatial_normalised: The sum of dL/dlogit * (normalised input) in the spatial branch.
        spatial: The sum of dL/dlogit in the spatial branch.
    """
    _, _, spatial_weight, _, norm_weight, norm_bias = parameters.unbind()
    return torch.stack(
        [
            channel_mean,
            channel,
            norm_weight * spatial_normalised + norm_bias * spatial,
            spatial,
            spatial_weight * spatial_normalised,
            spatial_weight * spatial,
        ]
    )


def _per_channel(vector: Tensor | None, default: float, x: Tensor) -> Tensor:
    """A batch norm's scale or shift (C), or its default, in the dtype of the arithmetic."""
    dtype = at_least_float32(x)
    return x.new_full((x.shape[1],), default, dtype=dtype) if vector is None else vector.to(dtype)
