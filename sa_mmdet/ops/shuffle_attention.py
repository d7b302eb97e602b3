"""Shuffle attention as a function of tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor


def shuffle_attention(
    x: Tensor,
    channel_weight: Tensor,
    channel_bias: Tensor,
    spatial_weight: Tensor,
    spatial_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    groups: int,
    eps: float = 1e-5,
) -> Tensor:
    """Gate the channels of a feature map and shuffle them.

    Each of the G groups is halved. With m the mean of a channel over its positions and xh the channel standardised
    over them, the first half is multiplied by sigmoid(channel_weight * m + channel_bias), the second by
    sigmoid(spatial_weight * (norm_weight * xh + norm_bias) + spatial_bias). Channel c of the result moves to 2c if
    c < C/2, to 2(c - C/2) + 1 otherwise.

    Source: SA-Net, ICASSP 2021 (arXiv 2102.00240), equations 1-4.

    Args:
        x: N x C x H x W.
        channel_weight: K elements, as are the five that follow; all groups share them.
        channel_bias: See ``channel_weight``.
        spatial_weight: See ``channel_weight``.
        spatial_bias: See ``channel_weight``.
        norm_weight: Scale of the standardisation.
        norm_bias: Shift of the standardisation.
        groups: G; 2G divides C.
        eps: Added to the variance.

    Returns:
        N x C x H x W, of the dtype of ``x``; the statistics of half-precision input are taken in float32.

    Raises:
        ValueError: ``x`` is not four-dimensional, or ``groups`` does not fit its channels.
    """
    if x.dim() != 4:
        raise ValueError(f"shuffle_attention takes N x C x H x W, got a tensor of shape {tuple(x.shape)}")
    n, c, h, w = x.shape
    if groups < 1 or c % (2 * groups):
        raise ValueError(f"groups={groups} does not fit {c} channels: 2 * groups must divide them")
    k = c // (2 * groups)
    wide = torch.promote_types(x.dtype, torch.float32)
    channel_weight, channel_bias, spatial_weight, spatial_bias, norm_weight, norm_bias = (
        parameter.reshape(k).to(wide)
        for parameter in (channel_weight, channel_bias, spatial_weight, spatial_bias, norm_weight, norm_bias)
    )

    channel, spatial = x.reshape(n * groups, 2, k, h, w).unbind(1)
    mean = channel.mean((2, 3), dtype=wide)
    channel_gate = (channel_weight * mean + channel_bias).sigmoid()[..., None, None]
    # One channel a normalisation group; the gate's own affine map goes into that of the normalisation.
    spatial_gate = F.group_norm(
        spatial.to(wide),
        k,
        spatial_weight * norm_weight,
        spatial_weight * norm_bias + spatial_bias,
        eps,
    ).sigmoid_()

    gated = torch.stack((channel * channel_gate.to(x.dtype), spatial * spatial_gate.to(x.dtype)), dim=1)
    return F.channel_shuffle(gated.reshape(n, c, h, w), 2)
