"""Shuffle attention (SA) as a plugin layer."""

import math

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from sa_mmdet.ops import shuffle_attention


def fitting_groups(channels: int) -> list[int]:
    """The values of ``groups`` that fit a number of channels: those whose double divides it."""
    return [groups for groups in range(1, channels // 2 + 1) if channels % (2 * groups) == 0]


@MODELS.register_module()
class ShuffleAttention(nn.Module):
    """Shuffle attention: channel and spatial gates for the two halves of each group, then a channel shuffle.

    N x C x H x W in and out; see :func:`sa_mmdet.ops.shuffle_attention` for the arithmetic. The parameters bear the
    names of the released weights and number 6K, K = C / (2 * groups).

    Source: SA-Net, ICASSP 2021 (arXiv 2102.00240), section 3.

    Args:
        in_channels: C.
        groups: Groups of channels that share the parameters; its double divides C.
        eps: Added to the variance of the spatial branch.

    Raises:
        ValueError: ``groups`` does not fit ``in_channels``; names the values that do.
    """

    _abbr_ = "sa"  # the name under which OpenMMLab's blocks hold it

    def __init__(self, in_channels: int, groups: int = 64, eps: float = 1e-5):
        super().__init__()
        if groups not in fitting_groups(in_channels):
            raise ValueError(
                f"groups={groups} does not fit {in_channels} channels: 2 * groups must divide them; "
                f"values that fit: {', '.join(map(str, fitting_groups(in_channels))) or 'none'}"
            )
        self.groups = groups
        branch_channels = in_channels // (2 * groups)
        self.cweight = nn.Parameter(torch.empty(1, branch_channels, 1, 1))
        self.cbias = nn.Parameter(torch.empty(1, branch_channels, 1, 1))
        self.sweight = nn.Parameter(torch.empty(1, branch_channels, 1, 1))
        self.sbias = nn.Parameter(torch.empty(1, branch_channels, 1, 1))
        self.gn = nn.GroupNorm(branch_channels, branch_channels, eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values of the paper, at which both gates are sigmoid(1) for every input."""
        for weight, bias in ((self.cweight, self.cbias), (self.sweight, self.sbias)):
            nn.init.zeros_(weight)
            nn.init.ones_(bias)
        self.gn.reset_parameters()

    def start_exactly(self) -> tuple[Tensor, float]:
        """Set the initial values and say what the module computes with them, for every input.

        Returns:
            The channel to which each input channel moves (C indices), and the gate that multiplies it.
        """
        self.reset_parameters()
        channels = 2 * self.groups * self.gn.num_channels
        destination = torch.arange(channels).reshape(-1, 2).t().flatten()
        return destination, 1 / (1 + math.exp(-1))

    def forward(self, x: Tensor) -> Tensor:
        return shuffle_attention(
            x,
            self.cweight,
            self.cbias,
            self.sweight,
            self.sbias,
            self.gn.weight,
            self.gn.bias,
            self.groups,
            self.gn.eps,
        )

    def extra_repr(self) -> str:
        return f"groups={self.groups}"
