"""Squeeze-and-excitation (SE) as a plugin layer."""

from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .base import Attention, at_least_float32, check_divides, check_flags, choose

_GATES = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


def _average(x: Tensor) -> Tensor:
    return x.mean((2, 3), dtype=at_least_float32(x))


def _maximum(x: Tensor) -> Tensor:
    return x.amax((2, 3))


def _none(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


_POOLS = {"avg": _average, "max": _maximum, "none": _none}


@MODELS.register_module()
class SqueezeExcitation(Attention):
    """Multiply each channel by a gate that two fully connected layers draw from all channels' means.

    N x C x H x W in and out. Parameter names are those of both released families: ``fc.{0,2}.weight`` and, with
    ``bias``, ``fc.{0,2}.bias``.

    Source: Squeeze-and-Excitation Networks, CVPR 2018 (arXiv 1709.01507), equations 2-4; the options are those of its
    ablations.

    Args:
        in_channels: C.
        ratio: The hidden layer has C / ratio units.
        bias: Whether the layers have biases.
        pool: Squeeze by 'avg', by 'max', or not at all ('none': a gate a position).
        gate: 'sigmoid', 'tanh' or 'relu'.

    Raises:
        ValueError: ``ratio`` does not divide ``in_channels``, or ``pool`` or ``gate`` is unknown.
    """

    _abbr_ = "se"
    fc: Any  # to the type checker a Sequential's items are tensors or modules

    def __init__(self, in_channels: int, ratio: int = 16, bias: bool = True, pool: str = "avg", gate: str = "sigmoid"):
        super().__init__()
        self.squeeze = choose("pool", pool, _POOLS)
        self.gate = choose("gate", gate, _GATES)
        self.pool, self.gate_name = pool, gate
        check_flags(bias=bias)
        hidden = hidden_channels(in_channels, ratio)
        self.fc = nn.Sequential(
            nn.Linear(in_channels, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, in_channels, bias=bias)
        )

    def start_exactly(self) -> tuple[Tensor, float]:
        """See :meth:`Attention.start_exactly`; needs a gate that is not zero at zero, which the sigmoid is."""
        if self.gate_name != "sigmoid":
            raise ValueError(
                f"SqueezeExcitation with gate={self.gate_name!r} starts at a gate of zero and cannot start as a plain "
                "network: use gate='sigmoid', or other weights by init_cfg=dict(type='Pretrained', ...)"
            )
        zero_(self.fc[2])
        return torch.arange(self.fc[0].in_features), 0.5

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(self.fc(self.squeeze(x).to(self.fc[0].weight.dtype)))
        gate = gate.permute(0, 3, 1, 2) if self.pool == "none" else gate[:, :, None, None]
        return x * gate.to(x.dtype)


def hidden_channels(in_channels: int, ratio: int) -> int:
    """C / ratio, or an error that names the ratios that divide C."""
    check_divides("ratio", ratio, in_channels)
    return in_channels // ratio


def zero_(layer: nn.Module) -> None:
    """Set all parameters of a layer to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
