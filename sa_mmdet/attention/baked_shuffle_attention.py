"""Shuffle attention for inference, with the shuffle moved into the layer before."""

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from sa_mmdet.ops.tensors import shuffle_channels

from .base import at_least_float32
from .shuffle_attention import ShuffleAttention


@MODELS.register_module()
class BakedShuffleAttention(nn.Module):
    """x * sigmoid(norm(x) + weight * mean of x), of which one summand is constant in every channel.

    What :class:`ShuffleAttention` computes of channels that already stand where its shuffle would put them: no groups,
    no branches, no copies, and nothing but operators that every inference engine has. N x C x H x W in and out.

    Source: SA-Net, ICASSP 2021 (arXiv 2102.00240), section 3, rearranged.

    Args:
        in_channels: C.
        eps: Added to the variance.
    """

    _abbr_ = "sa"

    def __init__(self, in_channels: int, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.GroupNorm(in_channels, in_channels, eps)
        self.weight = nn.Parameter(torch.zeros(1, in_channels, 1, 1))

    @classmethod
    def of(cls, attention: ShuffleAttention) -> tuple["BakedShuffleAttention", Tensor]:
        """The baked form, and the source of each of its channels.

        Raises:
            ValueError: The attention is an ablation, without norm or with other transforms.
        """
        if attention.transform != "affine" or attention.gn is None:
            raise ValueError(
                f"ShuffleAttention with transform={attention.transform!r} and norm={attention.gn is not None} has no "
                "baked form: transform='affine' and norm=True have one"
            )
        channels, groups = attention.in_channels, attention.groups
        # Rows of C: a group's K channels of the channel branch, then its K of the spatial branch.
        values = {name: parameter.detach().flatten() for name, parameter in attention.named_parameters()}
        sweight, zeros = values["sweight"], torch.zeros_like(values["cweight"])
        slope = torch.cat((zeros, sweight * values["gn.weight"])).repeat(groups)
        offset = torch.cat((values["cbias"], sweight * values["gn.bias"] + values["sbias"])).repeat(groups)
        weight = torch.cat((values["cweight"], zeros)).repeat(groups)
        baked = cls(channels, attention.eps).to(weight)
        source = torch.arange(channels)
        if attention.shuffle:
            source = shuffle_channels(source, dim=0)
        baked.norm.weight.data, baked.norm.bias.data = slope[source], offset[source]
        baked.weight.data = weight[source].reshape(1, -1, 1, 1)
        return baked, source

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True, dtype=at_least_float32(x)).to(x.dtype)
        return x * (self.norm(x) + self.weight * mean).sigmoid().to(x.dtype)
