"""Shuffle attention, alone and with the end of a residual block, as functions of tensors."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import operator

IMPLEMENTATIONS = ("auto", "fused", "reference")
Parameters = Sequence[Tensor | None]


def shuffle_attention(
    x: Tensor,
    channel_weight: Tensor | None,
    channel_bias: Tensor | None,
    spatial_weight: Tensor | None,
    spatial_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    groups: int,
    eps: float = 1e-5,
    shuffle: bool = True,
    implementation: str = "auto",
) -> Tensor:
    """Gate the channels of a feature map and shuffle them.

    Each of the G groups is halved. With m the mean of a channel over its positions and xh the channel standardised
    over them, the first half is multiplied by sigmoid(channel_weight * m + channel_bias), the second by
    sigmoid(spatial_weight * (norm_weight * xh + norm_bias) + spatial_bias). Channel c of the result moves to 2c if
    c < C/2, to 2(c - C/2) + 1 otherwise.

    Source: SA-Net, ICASSP 2021 (arXiv 2102.00240), equations 1-4.

    Args:
        x: N x C x H x W.
        channel_weight: K elements, as are the five that follow; all groups share them. With K x K elements it mixes
            the channels of a branch, as a 1 x 1 convolution does; None, of the bias too, leaves both out.
        channel_bias: K elements or None.
        spatial_weight: K or K x K elements or None, see ``channel_weight``.
        spatial_bias: K elements or None.
        norm_weight: Scale of the standardisation, K elements; None leaves the standardisation out.
        norm_bias: Shift of the standardisation, K elements or None.
        groups: G; 2G divides C.
        eps: Added to the variance.
        shuffle: Whether to move the channels.
        implementation: 'fused' is one operator that keeps x and two numbers a channel for its backward, 'reference' the
            formula in PyTorch's own operators, 'auto' the first where it applies. It takes all six parameters with K
            elements, an even G and the shuffle, on the CPU or, with Triton, on a GPU.

    Returns:
        N x C x H x W, of the dtype of ``x``; the statistics of half-precision input are taken in float32.

    Raises:
        ValueError: ``x`` is not four-dimensional, ``groups`` does not fit its channels, ``implementation`` is unknown,
            or 'fused' is asked for and does not apply.
    """
    if x.dim() != 4:
        raise ValueError(f"shuffle_attention takes N x C x H x W, got a tensor of shape {tuple(x.shape)}")
    n, c, h, w = x.shape
    if groups < 1 or c % (2 * groups):
        raise ValueError(f"groups={groups} does not fit {c} channels: 2 * groups must divide them")
    parameters = (channel_weight, channel_bias, spatial_weight, spatial_bias, norm_weight, norm_bias)
    obstacle = obstacle_to_fusion(x, parameters, groups, shuffle)
    if use_fused(implementation, obstacle):
        return operator.fused(x, None, None, None, stacked(parameters), groups, eps)[0]
    k = c // (2 * groups)
    channel, spatial = x.reshape(n * groups, 2, k, h, w).unbind(1)
    channel_gate, spatial_gate = _gates(channel, spatial, parameters, eps)
    gated = torch.stack((channel * channel_gate.to(x.dtype), spatial * spatial_gate.to(x.dtype)), dim=1)
    gated = gated.reshape(n, c, h, w)
    # As torch.channel_shuffle, whose derivative came with PyTorch 2.
    return gated.unflatten(1, (2, c // 2)).transpose(1, 2).reshape(n, c, h, w) if shuffle else gated


def shuffle_attention_gates(x: Tensor, parameters: Parameters, groups: int, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """The gates by which :func:`shuffle_attention` multiplies.

    Args:
        x: N x C x H x W.
        parameters: The six of :func:`shuffle_attention`, in its order.
        groups: G.
        eps: Added to the variance.

    Returns:
        Of the channel branch N x G x K x 1 x 1, of the spatial branch N x G x K x H x W, both 0 to 1.
    """
    n, c, h, w = x.shape
    channel, spatial = x.reshape(n * groups, 2, c // (2 * groups), h, w).unbind(1)
    gates = _gates(channel, spatial, parameters, eps)
    return gates[0].unflatten(0, (n, groups)), gates[1].unflatten(0, (n, groups))


def _gates(channel: Tensor, spatial: Tensor, parameters: Parameters, eps: float) -> tuple[Tensor, Tensor]:
    """Of the two halves of all groups, each NG x K x H x W."""
    channel_weight, channel_bias, spatial_weight, spatial_bias, norm_weight, norm_bias = parameters
    k = channel.shape[1]
    wide = torch.promote_types(channel.dtype, torch.float32)
    mean = channel.mean((2, 3), keepdim=True, dtype=wide)
    channel_gate = _affine(mean, channel_weight, channel_bias).sigmoid()
    if norm_weight is None or norm_bias is None:
        return channel_gate, _affine(spatial.to(wide), spatial_weight, spatial_bias).sigmoid()
    scale, shift = norm_weight.reshape(k).to(wide), norm_bias.reshape(k).to(wide)
    # One channel a normalisation group. A gate's own scale and shift go into those of the normalisation.
    if spatial_weight is not None and spatial_bias is not None and spatial_weight.numel() == k:
        weight, bias = spatial_weight.reshape(k).to(wide), spatial_bias.reshape(k).to(wide)
        return channel_gate, F.group_norm(spatial.to(wide), k, weight * scale, weight * shift + bias, eps).sigmoid_()
    normalised = F.group_norm(spatial.to(wide), k, scale, shift, eps)
    return channel_gate, _affine(normalised, spatial_weight, spatial_bias).sigmoid()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift the K channels of ``x``, or mix them where the weight has K x K elements."""
    if weight is None or bias is None:
        return x
    k = x.shape[1]
    if weight.numel() == k:
        return x * weight.reshape(k, 1, 1).to(x.dtype) + bias.reshape(k, 1, 1).to(x.dtype)
    return F.conv2d(x, weight.reshape(k, k, 1, 1).to(x.dtype), bias.reshape(k).to(x.dtype))


def shuffle_attention_residual(
    x: Tensor,
    identity: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    channel_weight: Tensor | None,
    channel_bias: Tensor | None,
    spatial_weight: Tensor | None,
    spatial_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    groups: int,
    eps: float = 1e-5,
    shuffle: bool = True,
    implementation: str = "auto",
) -> Tensor:
    """The end of a residual block: relu(identity + shuffle_attention(scale * x + shift)).

    Args:
        x: N x C x H x W, the output of the block's last convolution.
        identity: N x C x H x W.
        scale: C elements, with ``shift`` the last batch norm in evaluation mode; None for both if there is none.
        shift: C elements or None.
        channel_weight: This and the rest as :func:`shuffle_attention` takes them.
        channel_bias: See there.
        spatial_weight: See there.
        spatial_bias: See there.
        norm_weight: See there.
        norm_bias: See there.
        groups: See there.
        eps: See there.
        shuffle: See there.
        implementation: See there.

    Returns:
        N x C x H x W, of the dtype of ``x``.

    Raises:
        ValueError: As :func:`shuffle_attention`, or ``identity`` has another shape.
    """
    if identity.shape != x.shape:
        raise ValueError(
            f"identity of shape {tuple(identity.shape)} for x of shape {tuple(x.shape)}: they must be equal"
        )
    parameters = (channel_weight, channel_bias, spatial_weight, spatial_bias, norm_weight, norm_bias)
    if use_fused(implementation, obstacle_to_fusion(x, parameters, groups, shuffle)):
        return operator.fused(x, identity.to(x.dtype), scale, shift, stacked(parameters), groups, eps)[0]
    y = x if scale is None else x * scale.to(x.dtype).reshape(-1, 1, 1)
    y = y if shift is None else y + shift.to(x.dtype).reshape(-1, 1, 1)
    return F.relu(identity + shuffle_attention(y, *parameters, groups, eps, shuffle, "reference"))


def obstacle_to_fusion(x: Tensor, parameters: Parameters, groups: int, shuffle: bool = True) -> str | None:
    """Why the fused operator does not apply, or None."""
    if groups < 2 or groups % 2 or x.dim() != 4 or x.shape[1] % (2 * groups):
        return f"groups={groups} is odd or does not fit"
    k = x.shape[1] // (2 * groups)
    if not shuffle or any(parameter is None or parameter.numel() != k for parameter in parameters):
        return "it is one of the ablations"
    return operator.obstacle(x)


def use_fused(implementation: str, obstacle: str | None) -> bool:
    """Whether to fuse; refuses unknown names, and a fusion that is asked for and impossible."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is unknown: choose one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "fused" and obstacle is not None:
        raise ValueError(f"implementation='fused' does not apply: {obstacle}; use 'auto' or 'reference'")
    return implementation != "reference" and obstacle is None


def stacked(parameters: Parameters) -> Tensor:
    """The six parameters as rows of one tensor."""
    return torch.stack([parameter.flatten() for parameter in parameters if parameter is not None])
