"""The yardstick: shuffle attention from the paper's formulas, a channel at a time, sharing no code with ours."""

import torch
from torch import Tensor


def shuffle_attention(x: Tensor, parameters: dict[str, Tensor], groups: int, eps: float = 1e-5) -> Tensor:
    """``parameters`` bears the released weights' names and holds K elements each."""
    channels = x.shape[1]
    k = channels // (2 * groups)
    p = {name: value.flatten() for name, value in parameters.items()}
    out: list[Tensor | None] = [None] * channels
    for c in range(channels):
        y, j = x[:, c], c % k
        mean = y.sum((1, 2), keepdim=True) / (y.shape[1] * y.shape[2])
        if c % (2 * k) < k:
            gate = torch.sigmoid(p["cweight"][j] * mean + p["cbias"][j])
        else:
            variance = ((y - mean) ** 2).sum((1, 2), keepdim=True) / (y.shape[1] * y.shape[2])
            normalised = p["gn.weight"][j] * (y - mean) / torch.sqrt(variance + eps) + p["gn.bias"][j]
            gate = torch.sigmoid(p["sweight"][j] * normalised + p["sbias"][j])
        out[2 * c if c < channels // 2 else 2 * (c - channels // 2) + 1] = y * gate
    return torch.stack([channel for channel in out if channel is not None], dim=1)
