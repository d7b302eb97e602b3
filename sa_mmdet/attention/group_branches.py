"""Shuffle attention taken apart: its groups, its two branches, their fusion and its shuffle, each by its own option."""

import math
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from sa_mmdet.ops.tensors import at_least_float32, shuffle_channels, unshuffle_channels
from sa_mmdet.registry import register

from .base import Attention, ExactStart, check_divides, choose
from .shuffle_attention import fitting_groups

_BRANCHES = {"both": ("c", "s"), "channel": ("c",), "spatial": ("s",)}
_HALVED = {"cat": True, "add": False}


@register(MODELS)
class GroupBranches(ExactStart, Attention):
    """Multiply each group of channels by the gates of a channel branch, of a spatial branch, or of both.

    N x C x H x W in and out. With m the mean of a channel over its positions and GN(x) the channel normalised over
    them, the channel branch has the logit cweight * m + cbias, the spatial branch sweight * GN(x) + sbias. All groups
    share these parameters, one of each per channel of a branch: K = C / (2 * groups) with ``fusion='cat'`` and both
    branches, C / groups otherwise. They have the names of :class:`ShuffleAttention`'s, which this is with its defaults.

    Source: SA-Net, ICASSP 2021 (arXiv 2102.00240), equations 1-4; the addition of two branches under one sigmoid is
    that of BAM, BMVC 2018 (arXiv 1807.06514), equations 1 and 2, without its residual.

    Its exact start: at the initial values, which are the paper's, the gates are sigmoid(1), whatever the options and
    the input. For this the biases of branches that are added start at 1/2 each, all others at 1.

    Args:
        in_channels: C.
        groups: The number of groups; 1 for none. It divides C, and 2 * groups does where the branches have one half of
            the channels each.
        branches: 'both', 'channel' or 'spatial'.
        fusion: With both branches, 'cat' for one half of each group's channels to each of them, 'add' for the sum of
            their logits as the logit of all channels.
        shuffle: Whether to shuffle the channels as shuffle attention does: channel c moves to 2c if c < C/2, to
            2(c - C/2) + 1 otherwise.
        eps: Added to the variance of the spatial branch.

    Raises:
        ValueError: ``groups`` does not fit ``in_channels`` (the error lists the values that do), C is odd and shuffled,
            or ``branches`` or ``fusion`` is unknown.
    """

    _abbr_ = "branches"
    label = "Branches"
    converted = False
    keeping_channels = {"shuffle": False}

    def __init__(
        self,
        in_channels: int,
        groups: int = 64,
        branches: str = "both",
        fusion: str = "cat",
        shuffle: bool = True,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.names = choose("branches", branches, _BRANCHES)
        self.halved = choose("fusion", fusion, _HALVED) and branches == "both"
        if self.halved and groups not in fitting_groups(in_channels):
            raise ValueError(
                f"groups={groups} does not fit {in_channels} channels: 2 * groups must divide them, half a group for "
                f"each branch; values that fit: {', '.join(map(str, fitting_groups(in_channels))) or 'none'}"
            )
        check_divides("groups", groups, in_channels)
        if shuffle and in_channels % 2:
            raise ValueError(f"an odd number of channels, {in_channels}, cannot be shuffled: set shuffle=False")
        self.in_channels, self.groups, self.shuffle = in_channels, groups, shuffle
        self.branches, self.fusion = branches, fusion
        self.pooled = 0.5 if self.halved else float("c" in self.names)
        k = in_channels // (2 * groups if self.halved else groups)
        for name in self.names:
            for part in ("weight", "bias"):
                self.register_parameter(f"{name}{part}", nn.Parameter(torch.empty(1, k, 1, 1)))
        self.gn = nn.GroupNorm(k, k, eps) if "s" in self.names else None
        self.reset_parameters()

    @classmethod
    def fitting_options(cls, channels: int) -> dict[str, list[int]]:
        return dict(groups=fitting_groups(channels))

    def reset_parameters(self) -> None:
        """Set the initial values, at which all gates are sigmoid(1), whatever the input."""
        bias = 1.0 if self.halved else 1 / len(self.names)
        for name, parameter in self.named_parameters(recurse=False):
            nn.init.constant_(parameter, bias if name.endswith("bias") else 0.0)
        if self.gn is not None:
            self.gn.reset_parameters()

    def start_exactly(self) -> tuple[Tensor, float]:
        self.reset_parameters()
        destination = torch.arange(self.in_channels)
        return unshuffle_channels(destination, dim=0) if self.shuffle else destination, 1 / (1 + math.exp(-1))

    def _logits(self, name: str, x: Tensor) -> Tensor:
        """A branch's logits (NG x K x 1 x 1 or NG x K x H x W) for the channels that it sees, NG x K x H x W."""
        dtype = at_least_float32(x)
        weight, bias = (getattr(self, f"{name}{part}").to(dtype) for part in ("weight", "bias"))
        if name == "c":
            return x.mean((2, 3), keepdim=True, dtype=dtype) * weight + bias
        norm: Any = self.gn
        normalised = F.group_norm(x.to(dtype), norm.num_groups, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)
        return normalised * weight + bias

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if self.halved:
            halves = x.reshape(n * self.groups, 2, c // (2 * self.groups), h, w).unbind(1)
            gates = [self._logits(name, half).sigmoid() for name, half in zip(self.names, halves, strict=True)]
            out = torch.stack([half * gate.to(x.dtype) for half, gate in zip(halves, gates, strict=True)], dim=1)
        else:
            grouped = x.reshape(n * self.groups, c // self.groups, h, w)
            logits = [self._logits(name, grouped) for name in self.names]
            out = grouped * reduce(torch.add, logits).sigmoid().to(x.dtype)
        out = out.reshape(x.shape)
        return shuffle_channels(out) if self.shuffle else out

    def extra_repr(self) -> str:
        return f"groups={self.groups}, branches={self.branches!r}, fusion={self.fusion!r}, shuffle={self.shuffle}"
