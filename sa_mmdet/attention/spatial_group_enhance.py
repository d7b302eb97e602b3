"""Spatial group-wise enhance (SGE) as a plugin layer."""

import math

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .base import Attention, at_least_float32, check_divides

_EPS = 1e-5  # added to the standard deviation, not to the variance


@MODELS.register_module()
class SpatialGroupEnhance(Attention):
    """Multiply each position of a group of channels by a gate: how alike it is to the group's mean, standardised.

    N x C x H x W in and out. Parameter names are those of the released weights, ``weight`` and ``bias``.

    Source: Spatial Group-wise Enhance (arXiv 1905.09646), equations 1-5.

    Args:
        in_channels: C.
        groups: Divides C.

    Raises:
        ValueError: ``groups`` does not divide ``in_channels``; names the values that do.
    """

    _abbr_ = "sge"

    def __init__(self, in_channels: int, groups: int = 64):
        super().__init__()
        check_divides("groups", groups, in_channels)
        self.in_channels, self.groups = in_channels, groups
        self.weight = nn.Parameter(torch.zeros(1, groups, 1, 1))
        self.bias = nn.Parameter(torch.ones(1, groups, 1, 1))

    def start_exactly(self) -> tuple[Tensor, float]:
        nn.init.zeros_(self.weight)
        nn.init.ones_(self.bias)
        return torch.arange(self.in_channels), 1 / (1 + math.exp(-1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        wide = x.reshape(n, self.groups, c // self.groups, h * w).to(at_least_float32(x))
        likeness = (wide * wide.mean(3, keepdim=True)).sum(2)
        centred = likeness - likeness.mean(2, keepdim=True)
        # The unbiased deviation; a single position has none, and is its own mean.
        deviation = centred.std(2, correction=int(h * w > 1), keepdim=True)
        gate = (centred / (deviation + _EPS)).reshape(n, self.groups, h, w) * self.weight + self.bias
        gated = x.reshape(n, self.groups, c // self.groups, h, w) * gate.sigmoid().to(x.dtype)[:, :, None]
        return gated.reshape(n, c, h, w)
