"""Spatial group-wise enhance (SGE)."""

import math
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from sa_mmdet.ops.block_end import BlockEnd
from sa_mmdet.ops.tensors import at_least_float32
from sa_mmdet.registry import register

from .base import Attention, ExactStart, LayerShapes, check_divides, divisors

_EPS = 1e-5  # added to the standard deviation, not to the variance


@register(MODELS)
class SpatialGroupEnhance(ExactStart, Attention):
    """Multiply each position of a group of channels by a gate: its similarity to the group's mean, normalised.

    N x C x H x W in and out. The parameters have the names of the released weights, ``weight`` and ``bias``.

    Source: Spatial Group-wise Enhance (arXiv 1905.09646), equations 1-5.

    Args:
        in_channels: C.
        groups: G, which divides C.

    Raises:
        ValueError: ``groups`` does not divide ``in_channels``; the error lists the values that do.
    """

    _abbr_ = "sge"
    label = "SGE"

    def __init__(self, in_channels: int, groups: int = 64):
        super().__init__()
        check_divides("groups", groups, in_channels)
        self.in_channels, self.groups = in_channels, groups
        self.weight = nn.Parameter(torch.zeros(1, groups, 1, 1))
        self.bias = nn.Parameter(torch.ones(1, groups, 1, 1))

    @classmethod
    def fitting_options(cls, channels: int) -> dict[str, list[int]]:
        return dict(groups=divisors(channels))

    @classmethod
    def options_of(cls, shapes: LayerShapes) -> dict[str, Any]:
        return dict(groups=shapes.size("weight", 1))

    def start_exactly(self) -> tuple[Tensor, float]:
        nn.init.zeros_(self.weight)
        nn.init.ones_(self.bias)
        return torch.arange(self.in_channels), 1 / (1 + math.exp(-1))

    def obstacle_to_fusion(self) -> str | None:
        """None: the gates follow from the channels' means and one product per position."""
        return None

    def forward_end(self, end: BlockEnd) -> Tensor:
        """Compute the end of a block, relu(identity + forward(norm(x))), without norm(x) itself."""
        return end.gated(position_gate=self._gates(end.centred_similarity(end.means(), self.groups)))

    def _gates(self, centred: Tensor) -> Tensor:
        """The gates for each position's similarity to the mean of its group, less its mean (N x G x H x W)."""
        positions = centred.shape[2] * centred.shape[3]
        # The unbiased standard deviation, which a single position does not have; Tensor.std takes four times as long.
        norms = torch.linalg.vector_norm(centred.flatten(2), dim=2)[:, :, None, None]
        slope = self.weight / (norms / math.sqrt(max(1, positions - 1)) + _EPS)
        # In place: of the maps here autograd keeps the gates and the centred similarities alone.
        return (centred * slope + self.bias).sigmoid_()

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        wide = x.reshape(n, self.groups, c // self.groups, h * w).to(at_least_float32(x))
        similarity = (wide * wide.mean(3, keepdim=True)).sum(2).reshape(n, self.groups, h, w)
        gates = self._gates(similarity - similarity.mean((2, 3), keepdim=True)).to(x.dtype)
        return (x.reshape(n, self.groups, c // self.groups, h, w) * gates[:, :, None]).reshape(n, c, h, w)
