"""Convolutional block attention module (CBAM)."""

from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from sa_mmdet.ops.block_end import BlockEnd
from sa_mmdet.ops.fusion import Replaceable
from sa_mmdet.ops.tensors import at_least_float32
from sa_mmdet.registry import register

from .base import Attention, ExactStart, LayerShapes, check_odd, fitting_ratios, hidden_channels, zero_


class _ChannelGate(nn.Module):
    mlp: Any  # to the type checker a Sequential's items are tensors or modules

    def __init__(self, in_channels: int, ratio: int):
        super().__init__()
        hidden = hidden_channels(in_channels, ratio)
        self.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(in_channels, hidden), nn.ReLU(), nn.Linear(hidden, in_channels)
        )
        for layer in (self.mlp[1], self.mlp[3]):
            nn.init.zeros_(layer.bias)

    def gates(self, means: Tensor, maxima: Tensor) -> Tensor:
        """The gates of all channels, N x C, from their means and maxima."""
        n, dtype = means.shape[0], self.mlp[1].weight.dtype
        # Both in one call, since reading the weights takes most of the time.
        found = self.mlp(torch.cat((means.to(dtype), maxima.to(dtype))))
        return (found[:n] + found[n:]).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates(x.mean((2, 3), dtype=at_least_float32(x)), x.amax((2, 3)))
        return x * gates[:, :, None, None].to(x.dtype)


class _SpatialGate(nn.Module):
    spatial: Any

    def __init__(self, kernel_size: int):
        super().__init__()
        self.spatial = nn.Sequential()
        self.spatial.add_module("conv", nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False))
        self.spatial.add_module("bn", nn.BatchNorm2d(1, momentum=0.01))

    def gates(self, pools: Tensor) -> Tensor:
        """The gates of all positions, N x 1 x H x W, from the maxima and the means over channels, N x 2 x H x W."""
        return self.spatial(pools.to(self.spatial.conv.weight.dtype)).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        average = x.mean(1, keepdim=True, dtype=at_least_float32(x))
        pools = torch.cat((x.amax(1, keepdim=True).to(average.dtype), average), dim=1)
        return x * self.gates(pools).to(x.dtype)


_CHANNEL_GATE, _SPATIAL_GATE = Replaceable(_ChannelGate), Replaceable(_SpatialGate)


@register(MODELS)
class CBAM(ExactStart, Attention):
    """Multiply first each channel by a gate, then each position.

    The gate of a channel is computed from the means and the maxima of all channels, by one perceptron for both. The
    gate of a position is computed from the mean and the maximum over the channels, by a convolution and a batch norm.
    N x C x H x W in and out. The parameters have the names of the released weights, ``ChannelGate.mlp.{1,3}.*`` and
    ``SpatialGate.spatial.{conv,bn}.*``.

    Source: CBAM, ECCV 2018 (arXiv 1807.06521), equations 2 and 3.

    Args:
        in_channels: C.
        ratio: The perceptron's hidden layer has C / ratio units.
        kernel_size: The size of the convolution, odd.

    Raises:
        ValueError: ``ratio`` does not divide ``in_channels``, or ``kernel_size`` is even or not positive.
    """

    _abbr_ = "cbam"
    label = "CBAM"
    pooled = 2

    def __init__(self, in_channels: int, ratio: int = 16, kernel_size: int = 7):
        super().__init__()
        check_odd("kernel_size", kernel_size)
        self.in_channels = in_channels
        self.ChannelGate = _ChannelGate(in_channels, ratio)
        self.SpatialGate = _SpatialGate(kernel_size)
        self.init_weights()

    @classmethod
    def fitting_options(cls, channels: int) -> dict[str, list[int]]:
        return dict(ratio=fitting_ratios(channels))

    @classmethod
    def options_of(cls, shapes: LayerShapes) -> dict[str, Any]:
        ratio = shapes.ratio("ChannelGate.mlp.1.weight")
        return dict(ratio=ratio, kernel_size=shapes.size("SpatialGate.spatial.conv.weight", 2))

    def init_weights(self) -> None:
        """Set the batch norm's weight to zero; MMDetection calls this after it has set those of all norms to 1."""
        nn.init.zeros_(self.SpatialGate.spatial.bn.weight)

    def start_exactly(self) -> tuple[Tensor, float]:
        zero_(self.ChannelGate.mlp[3])
        zero_(self.SpatialGate.spatial.bn)
        return torch.arange(self.in_channels), 0.25

    def obstacle_to_fusion(self) -> str | None:
        """Why the two halves must be called themselves, or None."""
        return _CHANNEL_GATE.obstacle("ChannelGate", self.ChannelGate) or _SPATIAL_GATE.obstacle(
            "SpatialGate", self.SpatialGate
        )

    def forward_end(self, end: BlockEnd) -> Tensor:
        """Compute the end of a block, relu(identity + forward(norm(x)))."""
        end, means, maxima = end.row_pools()
        channel_gate = self.ChannelGate.gates(means, maxima)
        end, pools = end.channel_pools(channel_gate)
        return end.gated(channel_gate, self.SpatialGate.gates(pools))

    def forward(self, x: Tensor) -> Tensor:
        return self.SpatialGate(self.ChannelGate(x))
