"""Squeeze-and-excitation (SE)."""

from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from sa_mmdet.ops.block_end import BlockEnd
from sa_mmdet.ops.tensors import at_least_float32
from sa_mmdet.registry import register

from .base import Attention, ExactStart, LayerShapes, choose, fitting_ratios, hidden_channels, zero_

_GATES = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


def _average(x: Tensor) -> Tensor:
    return x.mean((2, 3), dtype=at_least_float32(x))


def _maximum(x: Tensor) -> Tensor:
    return x.amax((2, 3))


def _none(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


_POOLS = {"avg": _average, "max": _maximum, "none": _none}


@register(MODELS)
class SqueezeExcitation(ExactStart, Attention):
    """Multiply each channel by a gate that two fully connected layers compute from the means of all channels.

    N x C x H x W in and out. The parameters have the names of both families of released weights: ``fc.{0,2}.weight``
    and, with ``bias``, ``fc.{0,2}.bias``.

    Source: Squeeze-and-Excitation Networks, CVPR 2018 (arXiv 1709.01507), equations 2-4; the options are those of its
    ablations.

    Args:
        in_channels: C.
        ratio: The hidden layer has C / ratio units.
        bias: Whether the layers have biases.
        pool: 'avg' for the means, 'max' for the maxima, 'none' for a gate per position without pooling.
        gate: 'sigmoid', 'tanh' or 'relu'.

    Raises:
        ValueError: ``ratio`` does not divide ``in_channels``, or ``pool`` or ``gate`` is unknown.
    """

    _abbr_ = "se"
    label = "SE"
    foreign_names = {
        "se.fc1.": "fc.0.",  # timm
        "se.fc2.": "fc.2.",
        "se_layer.conv1.conv.": "fc.0.",  # MMPretrain
        "se_layer.conv2.conv.": "fc.2.",
    }
    biases_in_detectors = False
    fc: Any  # to the type checker a Sequential's items are tensors or modules

    def __init__(self, in_channels: int, ratio: int = 16, bias: bool = True, pool: str = "avg", gate: str = "sigmoid"):
        super().__init__()
        self.squeeze = choose("pool", pool, _POOLS)
        self.gate = choose("gate", gate, _GATES)
        self.pool, self.gate_name = pool, gate
        hidden = hidden_channels(in_channels, ratio)
        self.fc = nn.Sequential(
            nn.Linear(in_channels, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, in_channels, bias=bias)
        )

    @classmethod
    def fitting_options(cls, channels: int) -> dict[str, list[int]]:
        return dict(ratio=fitting_ratios(channels))

    @classmethod
    def options_of(cls, shapes: LayerShapes) -> dict[str, Any]:
        return dict(ratio=shapes.ratio("fc.0.weight"), bias="fc.0.bias" in shapes.shapes)

    def start_exactly(self) -> tuple[Tensor, float]:
        """Set the last layer to zero, see :meth:`ExactStart.start_exactly`; the gate must not be zero at zero."""
        if self.gate_name != "sigmoid":
            raise ValueError(
                f"SqueezeExcitation with gate={self.gate_name!r} starts at a gate of zero and cannot start as a plain "
                "network: use gate='sigmoid', or other weights by init_cfg=dict(type='Pretrained', ...)"
            )
        zero_(self.fc[2])
        return torch.arange(self.fc[0].in_features), 0.5

    def obstacle_to_fusion(self) -> str | None:
        """Why the gates do not follow from the channels' means, or None."""
        return None if self.pool == "avg" else f"the gates of pool={self.pool!r} do not follow from means"

    def forward_end(self, end: BlockEnd) -> Tensor:
        """Compute the end of a block, relu(identity + forward(norm(x))), from the means of norm(x)."""
        return end.gated(self._gates(end.means()))

    def _gates(self, squeezed: Tensor) -> Tensor:
        return self.gate(self.fc(squeezed.to(self.fc[0].weight.dtype)))

    def forward(self, x: Tensor) -> Tensor:
        gate = self._gates(self.squeeze(x))
        gate = gate.permute(0, 3, 1, 2) if self.pool == "none" else gate[:, :, None, None]
        return x * gate.to(x.dtype)
