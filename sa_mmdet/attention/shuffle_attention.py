"""Shuffle attention (SA)."""

import math
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.fx import Proxy

from sa_mmdet.ops import Parameters, shuffle_attention, shuffle_attention_gates
from sa_mmdet.ops.block_end import BlockEnd
from sa_mmdet.ops.functional import shuffle_attention_normalised, spatial_branch
from sa_mmdet.ops.fusion import IMPLEMENTATIONS, Replaceable, obstacle_in_groups, obstacle_in_modules, use_fused
from sa_mmdet.ops.tensors import unshuffle_channels
from sa_mmdet.registry import register

from .base import Attention, ExactStart, LayerShapes, choose, divisors

_GROUP_NORM = Replaceable(nn.GroupNorm)

# torch.fx cannot follow decisions that depend on a tensor's shape: each of these becomes one node of its graph.
for _name in ("shuffle_attention", "shuffle_attention_normalised", "spatial_branch"):
    torch.fx.wrap(_name)


def fitting_groups(channels: int) -> list[int]:
    """The values of ``groups`` that fit a number of channels: those whose double divides it."""
    return [] if channels % 2 else divisors(channels // 2)


@register(MODELS)
class ShuffleAttention(ExactStart, Attention):
    """Multiply the two halves of each group of channels by channel gates and spatial gates, and shuffle the channels.

    N x C x H x W in and out; see :func:`sa_mmdet.ops.shuffle_attention` for the arithmetic. The 6K parameters, with
    K = C / (2 * groups), have the names of the released weights.

    Source: SA-Net, ICASSP 2021 (arXiv 2102.00240), section 3.

    Args:
        in_channels: C.
        groups: The number of groups, which share the parameters; 2 * groups divides C.
        eps: Added to the variance of the spatial branch.
        norm: Whether to normalise the spatial branch. This and the options below are the paper's ablations (its
            Table 1); their defaults are shuffle attention as published.
        transform: What computes the gates' logits: 'affine' for a scale and a shift per channel, 'conv' for a 1 x 1
            convolution within the branch, 'none' for nothing.
        shuffle: Whether to shuffle the channels.
        implementation: 'fused', 'reference' or 'auto', see :func:`sa_mmdet.ops.shuffle_attention`.

    Raises:
        ValueError: ``groups`` does not fit ``in_channels`` (the error lists the values that do), or ``transform`` or
            ``implementation`` is unknown.
    """

    _abbr_ = "sa"
    label = "SA"
    pooled = 0.5
    keeping_channels = {"shuffle": False}
    cweight: nn.Parameter | None
    cbias: nn.Parameter | None
    sweight: nn.Parameter | None
    sbias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        groups: int = 64,
        eps: float = 1e-5,
        norm: bool = True,
        transform: str = "affine",
        shuffle: bool = True,
        implementation: str = "auto",
    ):
        super().__init__()
        fitting = fitting_groups(in_channels)
        if groups not in fitting:
            raise ValueError(
                f"groups={groups} does not fit {in_channels} channels: 2 * groups must divide them; "
                f"values that fit: {', '.join(map(str, fitting)) or 'none'}"
            )
        self.in_channels, self.groups = in_channels, groups
        self.transform, self.shuffle = transform, shuffle
        self.implementation = choose("implementation", implementation, {name: name for name in IMPLEMENTATIONS})
        k = in_channels // (2 * groups)
        shape = choose("transform", transform, {"affine": (1, k, 1, 1), "conv": (k, k, 1, 1), "none": None})
        for name in ("cweight", "cbias", "sweight", "sbias"):
            size = (1, k, 1, 1) if shape and name.endswith("bias") else shape
            self.register_parameter(name, nn.Parameter(torch.empty(size)) if size else None)
        self.gn = nn.GroupNorm(k, k, eps) if norm else None
        self.reset_parameters()

    @classmethod
    def fitting_options(cls, channels: int) -> dict[str, list[int]]:
        return dict(groups=fitting_groups(channels))

    @classmethod
    def options_of(cls, shapes: LayerShapes) -> dict[str, Any]:
        return dict(groups=max(1, shapes.channels // (2 * shapes.size("cweight", 1))))

    def reset_parameters(self) -> None:
        """Set the paper's initial values, at which all gates are sigmoid(1), whatever the input."""
        for name, parameter in self.named_parameters(recurse=False):
            nn.init.constant_(parameter, 1.0 if name.endswith("bias") else 0.0)
        if self.gn is not None:
            self.gn.reset_parameters()

    def start_exactly(self) -> tuple[Tensor, float]:
        if self.transform == "none":
            raise ValueError(
                "ShuffleAttention with transform='none' has gates that depend on the input from the start and cannot "
                "start as a plain network: use other weights by init_cfg=dict(type='Pretrained', ...)"
            )
        self.reset_parameters()
        destination = torch.arange(self.in_channels)
        if self.shuffle:
            destination = unshuffle_channels(destination, dim=0)
        return destination, 1 / (1 + math.exp(-1))

    @property
    def eps(self) -> float:
        """Added to the variance of the spatial branch; zero without its normalisation."""
        return getattr(self.gn, "eps", 0.0)

    def obstacle_to_fusion(self) -> str | None:
        """Why the fused operator does not compute what this layer does, or None."""
        if self.transform != "affine" or not self.shuffle or self.gn is None:
            return "it is one of the ablations"
        return obstacle_in_groups(self.groups, self.in_channels) or self._obstacle_in_norm()

    def _obstacle_in_norm(self) -> str | None:
        """Why the normalisation, if there is one, must be called itself, or None."""
        norm: Any = self.gn
        if norm is None:
            return None
        if obstacle := obstacle_in_modules() or _GROUP_NORM.obstacle("gn", norm):
            return obstacle
        k = self.in_channels // (2 * self.groups)
        changed = norm.weight is None or norm.bias is None or norm.num_groups != k
        return "gn does not have one group per channel, a weight and a bias" if changed else None

    def _parameters_in_order(self) -> Parameters:
        norm_weight, norm_bias = getattr(self.gn, "weight", None), getattr(self.gn, "bias", None)
        return Parameters(self.cweight, self.cbias, self.sweight, self.sbias, norm_weight, norm_bias)

    def _normalised(self, x: Tensor) -> Tensor:
        """The spatial branch (NG x K x H x W) as the layer's own normalisation returns it."""
        norm: Any = self.gn
        dtypes = [parameter.dtype for parameter in norm.parameters()]
        return norm(spatial_branch(x, self.groups, dtypes[0] if dtypes else None))

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The channel branch's gates, N x G x K x 1 x 1, and the spatial branch's, N x G x K x H x W."""
        normalised = self._normalised(x) if self._obstacle_in_norm() else None
        return shuffle_attention_gates(x, self._parameters_in_order(), self.groups, self.eps, normalised)

    def forward(self, x: Tensor) -> Tensor:
        parameters = self._parameters_in_order()
        # A graph of torch.fx holds the normalisation as a module.
        obstacle = self._obstacle_in_norm() or ("torch.fx traces it" if isinstance(x, Proxy) else None)
        if self.gn is not None and obstacle:
            use_fused(self.implementation, obstacle)  # raises if the implementation is 'fused'
            return shuffle_attention_normalised(x, self._normalised(x), parameters, self.groups, self.shuffle)
        return shuffle_attention(x, *parameters, self.groups, self.eps, self.shuffle, self.implementation)

    def forward_end(self, end: BlockEnd) -> Tensor:
        """Compute the end of a block, relu(identity + forward(norm(x))), as one operator where possible."""
        return end.shuffled(self._parameters_in_order(), self.groups, self.eps, self.implementation)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"
