"""Efficient channel attention (ECA) as a plugin layer."""

import math

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .base import Attention, at_least_float32, check_channels, check_integer


def default_kernel_size(channels: int) -> int:
    """The paper's formula with gamma = 2, b = 1: the odd number at or above int((log2(C) + 1) / 2)."""
    kernel_size = int((math.log2(channels) + 1) / 2)
    return kernel_size if kernel_size % 2 else kernel_size + 1


@MODELS.register_module()
class EfficientChannelAttention(Attention):
    """Multiply each channel by a gate drawn from the means of its neighbours, by a convolution along the channels.

    N x C x H x W in and out. The parameter bears the released weights' name, ``conv.weight``.

    Source: ECA-Net, CVPR 2020 (arXiv 1910.03151), equations 5 and 9.

    Args:
        in_channels: C.
        kernel_size: Odd, at most C; the paper's formula if None. The released weights differ from the formula: 3, 5,
            5, 7 by stage for ResNet-50 and 3, 3, 5, 7 for ResNet-101.

    Raises:
        ValueError: ``kernel_size`` is even, not positive or above ``in_channels``.
    """

    _abbr_ = "eca"

    def __init__(self, in_channels: int, kernel_size: int | None = None):
        super().__init__()
        check_channels(in_channels)
        if kernel_size is None:
            kernel_size = default_kernel_size(in_channels)
        check_integer("kernel_size", kernel_size)
        if kernel_size % 2 == 0 or not 1 <= kernel_size <= in_channels:
            raise ValueError(
                f"kernel_size={kernel_size} does not fit {in_channels} channels: it must be odd and from 1 to "
                f"{in_channels}; the formula gives {default_kernel_size(in_channels)}"
            )
        self.in_channels = in_channels
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def start_exactly(self) -> tuple[Tensor, float]:
        nn.init.zeros_(self.conv.weight)
        return torch.arange(self.in_channels), 0.5

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), dtype=at_least_float32(x)).to(self.conv.weight.dtype)
        gate = self.conv(mean[:, None]).sigmoid()[:, 0, :, None, None]
        return x * gate.to(x.dtype)
