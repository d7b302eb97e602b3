"""Shuffle attention for inference, with the shuffle moved into the layer before."""

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from sa_mmdet.ops.block_end import BlockEnd
from sa_mmdet.ops.fusion import Replaceable, obstacle_in_modules
from sa_mmdet.ops.tensors import at_least_float32, shuffle_channels
from sa_mmdet.registry import register

from .base import Attention
from .shuffle_attention import ShuffleAttention

_GROUP_NORM = Replaceable(nn.GroupNorm)


@register(MODELS)
class BakedShuffleAttention(Attention):
    """Multiply by sigmoid(norm(x) + weight * mean of x), where one of the summands is constant in every channel.

    This is what :class:`ShuffleAttention` computes if the channels are in the order of its output already. There are no
    groups, no branches and no copies, and only operators that every inference engine has. N x C x H x W in and out.

    Source: SA-Net, ICASSP 2021 (arXiv 2102.00240), section 3, rearranged.

    Args:
        in_channels: C.
        eps: Added to the variance.
    """

    _abbr_ = "sa"
    label = ShuffleAttention.label
    converted = False  # its weights are made here, with the config that they need

    def __init__(self, in_channels: int, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.GroupNorm(in_channels, in_channels, eps)
        self.weight = nn.Parameter(torch.zeros(1, in_channels, 1, 1))

    @classmethod
    def of(cls, attention: ShuffleAttention) -> tuple["BakedShuffleAttention", Tensor]:
        """Make the baked form of a layer.

        Returns:
            The baked form, and for each of its channels the channel of the original layer's input (C indices).

        Raises:
            ValueError: The layer is an ablation, without norm or with another transform.
        """
        if attention.transform != "affine" or attention.gn is None:
            raise ValueError(
                f"ShuffleAttention with transform={attention.transform!r} and norm={attention.gn is not None} has no "
                "baked form: transform='affine' and norm=True have one"
            )
        channels, groups = attention.in_channels, attention.groups
        # Vectors of C: for each group, the K channels of its channel branch, then the K of its spatial branch.
        values = {name: parameter.detach().flatten() for name, parameter in attention.named_parameters()}
        spatial_weight, zeros = values["sweight"], torch.zeros_like(values["cweight"])
        norm_weight = torch.cat((zeros, spatial_weight * values["gn.weight"])).repeat(groups)
        norm_bias = torch.cat((values["cbias"], spatial_weight * values["gn.bias"] + values["sbias"])).repeat(groups)
        weight = torch.cat((values["cweight"], zeros)).repeat(groups)
        baked = cls(channels, attention.eps).to(weight)
        source = torch.arange(channels)
        if attention.shuffle:
            source = shuffle_channels(source, dim=0)
        baked.norm.weight.data, baked.norm.bias.data = norm_weight[source], norm_bias[source]
        baked.weight.data = weight[source].reshape(1, -1, 1, 1)
        return baked, source

    def obstacle_to_fusion(self) -> str | None:
        """Why one operator cannot compute the end of a block with this layer, or None."""
        if torch.is_grad_enabled():
            return "the operator for the baked form has no derivatives: use torch.no_grad()"
        return obstacle_in_modules() or _GROUP_NORM.obstacle("norm", self.norm)

    def forward_end(self, end: BlockEnd) -> Tensor:
        """Compute the end of a block, relu(identity + forward(x)), as one operator."""
        norm = self.norm
        return end.baked(self.weight, norm.weight, norm.bias, norm.eps)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True, dtype=at_least_float32(x)).to(x.dtype)
        # The operator itself: the layer refuses maps of one position at batch size 1, of which the norm is its bias.
        norm = self.norm
        normalised = torch.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return x * (normalised + self.weight * mean).sigmoid().to(x.dtype)
