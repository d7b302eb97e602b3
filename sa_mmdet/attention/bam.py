"""Bottleneck attention module (BAM), which follows the stages of a network."""

from collections import OrderedDict
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional

from sa_mmdet.ops.tensors import at_least_float32
from sa_mmdet.registry import register

from .base import Attention, LayerShapes, fitting_ratios, hidden_channels

_DILATED_CONVOLUTIONS = 2
_ENOUGH_VECTORS = 16


class _VectorNorm(nn.BatchNorm1d):
    """Batch norm of vectors, N x C, that also trains on the few images per GPU of a detector.

    The statistics of one vector do not exist, and those of two make each value +1 or -1, whatever it was. With fewer
    than 16 vectors it normalises by the running statistics, as in evaluation mode, and lets them follow the vectors.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or len(x) >= _ENOUGH_VECTORS:
            return super().forward(x)
        statistics: Any = self
        mean, variance = statistics.running_mean, statistics.running_var
        with torch.no_grad():
            # About the running mean, since one vector has no variance about its own.
            vectors = x.to(mean.dtype)
            variance.lerp_((vectors - mean).square().mean(0), statistics.momentum)
            mean.lerp_(vectors.mean(0), statistics.momentum)
            statistics.num_batches_tracked.add_(1)
        # Copies, since a second forward pass before the backward pass changes the statistics again.
        return functional.batch_norm(x, mean.clone(), variance.clone(), self.weight, self.bias, eps=self.eps)


class _ChannelAttention(nn.Module):
    gate_c: Any  # to the type checker a Sequential's items are tensors or modules

    def __init__(self, in_channels: int, hidden: int):
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            gate_c_fc_0=nn.Linear(in_channels, hidden),
            gate_c_bn_1=_VectorNorm(hidden),
            gate_c_relu_1=nn.ReLU(),
            gate_c_fc_final=nn.Linear(hidden, in_channels),
        )
        self.gate_c = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), dtype=at_least_float32(x)).to(self.gate_c[0].weight.dtype)
        return self.gate_c(mean)[:, :, None, None]


class _SpatialAttention(nn.Module):
    def __init__(self, in_channels: int, hidden: int, dilation: int):
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(gate_s_conv_reduce0=nn.Conv2d(in_channels, hidden, 1))
        layers["gate_s_bn_reduce0"] = nn.BatchNorm2d(hidden)
        layers["gate_s_relu_reduce0"] = nn.ReLU()
        for i in range(_DILATED_CONVOLUTIONS):
            layers[f"gate_s_conv_di_{i}"] = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
            layers[f"gate_s_bn_di_{i}"] = nn.BatchNorm2d(hidden)
            layers[f"gate_s_relu_di_{i}"] = nn.ReLU()
        layers["gate_s_conv_final"] = nn.Conv2d(hidden, 1, 1)
        self.gate_s = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate_s(x)


@register(MODELS)
class BAM(Attention):
    """Multiply by 1 + sigmoid(channel attention * spatial attention).

    Channel attention, N x C x 1 x 1, is a perceptron of the channels' means. Spatial attention, N x 1 x H x W, is a
    1 x 1 convolution to C / ratio channels, two dilated 3 x 3 convolutions and a 1 x 1 convolution to one channel,
    with batch norm and ReLU between them. It follows a whole stage instead of the last norm of each block:
    ``AttentionResNet(stage_attention=dict(type='BAM'))``. The parameters have the names of the released weights,
    ``channel_att.gate_c.*`` and ``spatial_att.gate_s.*``.

    Source: BAM, BMVC 2018 (arXiv 1807.06514), equations 1-5.

    Args:
        in_channels: C.
        ratio: The hidden layers have C / ratio channels.
        dilation: The dilation of the 3 x 3 convolutions.

    Raises:
        ValueError: ``ratio`` does not divide ``in_channels``.
    """

    _abbr_ = "bam"
    label = "BAM"
    after_stages = True

    def __init__(self, in_channels: int, ratio: int = 16, dilation: int = 4):
        super().__init__()
        hidden = hidden_channels(in_channels, ratio)
        self.channel_att = _ChannelAttention(in_channels, hidden)
        self.spatial_att = _SpatialAttention(in_channels, hidden, dilation)

    @classmethod
    def fitting_options(cls, channels: int) -> dict[str, list[int]]:
        return dict(ratio=fitting_ratios(channels))

    @classmethod
    def options_of(cls, shapes: LayerShapes) -> dict[str, Any]:
        return dict(ratio=shapes.ratio("channel_att.gate_c.gate_c_fc_0.weight"))

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + torch.sigmoid(self.channel_att(x) * self.spatial_att(x))).to(x.dtype)
