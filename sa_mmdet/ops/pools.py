"""Pools of norm(x) in PyTorch's own operators, without keeping norm(x): what CBAM makes its gates of on GPUs.

Each takes x (N x C x H x W) and a batch norm in evaluation mode, and returns float32 or float64. The maxima are looked
for first, and then computed again from the elements that were found, so that autograd keeps nothing but x and places.
"""

import torch
from torch import Tensor

from .eval_norm import EvalNorm
from .tensors import at_least_float32


def row_means(x: Tensor) -> Tensor:
    """The means of x over its positions, N x C."""
    return x.mean((2, 3), dtype=at_least_float32(x))


def row_pools(x: Tensor, norm: EvalNorm) -> tuple[Tensor, Tensor]:
    """The means and the maxima of norm(x) over its positions, N x C each; the first of several maxima counts."""
    rows = x.flatten(2)
    with torch.no_grad():
        largest, smallest = rows.max(2).indices, rows.min(2).indices
        falling = norm.scale(rows).to(at_least_float32(x)).flatten() < 0
        places = torch.where(falling, smallest, largest)
    extremes = rows.gather(2, places[:, :, None])[:, :, 0].to(at_least_float32(x))
    means, maxima = (norm.affine(norm.normalised(found[:, :, None, None])) for found in (row_means(x), extremes))
    return means.flatten(1), maxima.flatten(1)


def channel_pools(x: Tensor, norm: EvalNorm, channel_gate: Tensor) -> Tensor:
    """The maximum and the mean of channel_gate * norm(x) over the channels, N x 2 x H x W.

    Args:
        x: N x C x H x W.
        norm: The batch norm of x.
        channel_gate: N x C.
    """
    n, channels, height, width = x.shape
    dtype = at_least_float32(x)
    scale, shift = (channel_gate.to(dtype) * vector.to(dtype) for vector in norm.scale_and_shift())
    with torch.no_grad():
        places = torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None]).max(1, keepdim=True).indices
    flat = places.flatten(1)
    factors, summands = (vector.gather(1, flat).view(n, 1, height, width) for vector in (scale, shift))
    maxima = torch.addcmul(summands, x.gather(1, places).to(dtype), factors)
    with torch.autocast(x.device.type, enabled=False):
        products = torch.bmm(scale[:, None] / channels, x.flatten(2).to(dtype))
    means = products.view(n, 1, height, width) + shift.mean(1)[:, None, None, None]
    return torch.cat((maxima, means), 1)
