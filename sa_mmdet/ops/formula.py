"""Shuffle attention and the end of a residual block in PyTorch's own operators, differentiable to any order.

What ``implementation='reference'`` computes, and what does the work wherever the fused form cannot. Parameters are
the six of :func:`sa_mmdet.ops.shuffle_attention`, in its order.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Parameters = Sequence[Tensor | None]


def branches(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Channel and spatial branch of N x C x H x W, each NG x K x H x W."""
    n, c, h, w = x.shape
    channel, spatial = x.reshape(n * groups, 2, c // (2 * groups), h, w).unbind(1)
    return channel, spatial


def attention(
    x: Tensor, parameters: Parameters, groups: int, eps: float, shuffle: bool = True, normalised: Tensor | None = None
) -> Tensor:
    """As :func:`sa_mmdet.ops.shuffle_attention`; ``normalised`` stands for the standardised spatial branch."""
    n, c, h, w = x.shape
    channel, spatial = branches(x, groups)
    channel_gate, spatial_gate = gates(channel, spatial, parameters, eps, normalised)
    gated = torch.stack((channel * channel_gate.to(x.dtype), spatial * spatial_gate.to(x.dtype)), dim=1)
    gated = gated.reshape(n, c, h, w)
    # As torch.channel_shuffle, whose derivative came with PyTorch 2.
    return gated.unflatten(1, (2, c // 2)).transpose(1, 2).reshape(n, c, h, w) if shuffle else gated


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
    """As :func:`sa_mmdet.ops.shuffle_attention_residual`."""
    return F.relu(identity + attention(_scaled(x, scale, shift), parameters, groups, eps, shuffle))


def gates(
    channel: Tensor, spatial: Tensor, parameters: Parameters, eps: float, normalised: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gates of the two branches: NG x K x 1 x 1 and NG x K x H x W, in float32 or wider."""
    channel_weight, channel_bias, spatial_weight, spatial_bias, norm_weight, norm_bias = parameters
    k = channel.shape[1]
    wide = torch.promote_types(channel.dtype, torch.float32)
    mean = channel.mean((2, 3), keepdim=True, dtype=wide)
    channel_gate = _affine(mean, channel_weight, channel_bias).sigmoid()
    if normalised is not None:
        return channel_gate, _affine(normalised.to(wide), spatial_weight, spatial_bias).sigmoid()
    if norm_weight is None or norm_bias is None:
        return channel_gate, _affine(spatial.to(wide), spatial_weight, spatial_bias).sigmoid()
    scale, shift = norm_weight.reshape(k).to(wide), norm_bias.reshape(k).to(wide)
    # One channel a normalisation group. A gate's own scale and shift go into those of the normalisation.
    if spatial_weight is not None and spatial_bias is not None and spatial_weight.numel() == k:
        weight, bias = spatial_weight.reshape(k).to(wide), spatial_bias.reshape(k).to(wide)
        return channel_gate, F.group_norm(spatial.to(wide), k, weight * scale, weight * shift + bias, eps).sigmoid_()
    standardised = F.group_norm(spatial.to(wide), k, scale, shift, eps)
    return channel_gate, _affine(standardised, spatial_weight, spatial_bias).sigmoid()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift the K channels of ``x``, or mix them where the weight has K x K elements."""
    if weight is None or bias is None:
        return x
    k = x.shape[1]
    if weight.numel() == k:
        return x * weight.reshape(k, 1, 1).to(x.dtype) + bias.reshape(k, 1, 1).to(x.dtype)
    return F.conv2d(x, weight.reshape(k, k, 1, 1).to(x.dtype), bias.reshape(k).to(x.dtype))


def _scaled(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """scale * x + shift with one rounding to the dtype of ``x``, as a batch norm has."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)) if scale is not None or shift is not None else x
    y = wide if scale is None else wide * scale.to(wide.dtype).reshape(-1, 1, 1)
    y = y if shift is None else y + shift.to(wide.dtype).reshape(-1, 1, 1)
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
    """The output, the mean of x (N x C) and the spatial branch's rstd (N x C/2), as the kernels give them."""
    n, c = x.shape[:2]
    rows = parameters.unbind()
    if identity is None:
        out = attention(_scaled(x, scale, shift), rows, groups, eps)
    else:
        out = residual(x, identity, scale, shift, rows, groups, eps)
    wide = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))
    mean = wide.mean(2)
    variance = (wide - mean.unsqueeze(2)).square().mean(2)
    variance = variance if scale is None else variance * scale.to(wide.dtype).square()
    spatial = variance.unflatten(1, (groups, 2, c // (2 * groups)))[:, :, 1].reshape(n, c // 2)
    return out, mean, (spatial + eps).rsqrt()


def backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients as the kernels give them.

    Takes neither ``mean`` nor ``rstd``, which are constants to autograd, but both anew from ``x``: every step is a
    differentiable function of the gradient, x and the vectors.
    """
    n, c, h, w = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    if out is not None:
        gradient = torch.ops.aten.threshold_backward(gradient, out.detach(), 0)
    shape = (n, groups, 2, c // (2 * groups), h * w)
    given = gradient.reshape(n, c // 2, 2, h, w).transpose(1, 2).reshape(shape).to(dtype)  # the shuffle undone
    source = x.reshape(shape).to(dtype)
    one, zero = x.new_ones((), dtype=dtype), x.new_zeros((), dtype=dtype)
    s = (one if scale is None else scale.to(dtype)).expand(c).reshape(*shape[1:4], 1)
    t = (zero if shift is None else shift.to(dtype)).expand(c).reshape(*shape[1:4], 1)
    cweight, cbias, sweight, sbias, gamma, beta = parameters.to(dtype).unsqueeze(-1).unbind()

    (channel, spatial), (channel_given, spatial_given) = (s * source + t).unbind(2), given.unbind(2)
    centre = channel.mean(-1, keepdim=True)
    gate = (cweight * centre + cbias).sigmoid()
    channel_logit = (channel_given * channel).sum(-1, keepdim=True) * gate * (1 - gate)
    along_channel = channel_given * gate + cweight * channel_logit / (h * w)

    deviation = spatial - spatial.mean(-1, keepdim=True)
    scatter = (deviation.square().mean(-1, keepdim=True) + eps).rsqrt()
    normalised = deviation * scatter
    gate = (sweight * (gamma * normalised + beta) + sbias).sigmoid()
    spatial_logit = spatial_given * spatial * gate * (1 - gate)
    tilt = (spatial_logit * normalised).mean(-1, keepdim=True)
    around = spatial_logit - spatial_logit.mean(-1, keepdim=True) - normalised * tilt
    along_spatial = spatial_given * gate + sweight * gamma * scatter * around

    along = torch.stack((along_channel, along_spatial), 2)
    over = (0, 1, 3)
    logits, tilts = spatial_logit.sum(over), (tilt * (h * w)).sum(over)
    grad_parameters = torch.stack(
        [
            (channel_logit * centre).sum(over),
            channel_logit.sum(over),
            gamma[:, 0] * tilts + beta[:, 0] * logits,
            logits,
            sweight[:, 0] * tilts,
            sweight[:, 0] * logits,
        ]
    )
    grad_x = (along * s).reshape(n, c, h, w).to(x.dtype)
    grad_identity = x.new_empty(0) if out is None else gradient
    return (
        grad_x,
        grad_identity,
        (along * source).sum((0, 4)).reshape(c),
        along.sum((0, 4)).reshape(c),
        grad_parameters,
    )
