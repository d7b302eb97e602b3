"""Efficient channel attention (ECA)."""

import math
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from sa_mmdet.ops.block_end import BlockEnd
from sa_mmdet.ops.tensors import at_least_float32
from sa_mmdet.registry import register

from .base import Attention, ExactStart, LayerShapes, check_odd


def default_kernel_size(channels: int) -> int:
    """The paper's formula with gamma = 2 and b = 1: int((log2(C) + 1) / 2), plus 1 if that is even."""
    kernel_size = int((math.log2(channels) + 1) / 2)
    return kernel_size if kernel_size % 2 else kernel_size + 1


@register(MODELS)
class EfficientChannelAttention(ExactStart, Attention):
    """Multiply each channel by a gate that a convolution along the channels computes from the means of its neighbours.

    N x C x H x W in and out. The parameter has the name of the released weights, ``conv.weight``.

    Source: ECA-Net, CVPR 2020 (arXiv 1910.03151), equations 5 and 9.

    Args:
        in_channels: C.
        kernel_size: The size of the convolution, odd; None for the paper's formula. The released weights differ from
            the formula: 3, 5, 5, 7 by stage for ResNet-50 and 3, 3, 5, 7 for ResNet-101.

    Raises:
        ValueError: ``kernel_size`` is even or not positive.
    """

    _abbr_ = "eca"
    label = "ECA"
    foreign_names = {"se.conv.": "conv."}  # timm
    uncounted = (nn.Conv1d,)

    def __init__(self, in_channels: int, kernel_size: int | None = None):
        super().__init__()
        if kernel_size is None:
            kernel_size = default_kernel_size(in_channels)
        check_odd("kernel_size", kernel_size)
        self.in_channels = in_channels
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    @classmethod
    def options_of(cls, shapes: LayerShapes) -> dict[str, Any]:
        return dict(kernel_size=shapes.size("conv.weight", 2))

    def start_exactly(self) -> tuple[Tensor, float]:
        nn.init.zeros_(self.conv.weight)
        return torch.arange(self.in_channels), 0.5

    def obstacle_to_fusion(self) -> str | None:
        """None: the gates follow from the channels' means."""
        return None

    def forward_end(self, end: BlockEnd) -> Tensor:
        """Compute the end of a block, relu(identity + forward(norm(x))), from the means of norm(x)."""
        return end.gated(self._gates(end.means()))

    def _gates(self, means: Tensor) -> Tensor:
        return self.conv(means.to(self.conv.weight.dtype)[:, None]).sigmoid()[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        gate = self._gates(x.mean((2, 3), dtype=at_least_float32(x)))[:, :, None, None]
        return x * gate.to(x.dtype)
