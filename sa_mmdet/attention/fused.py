"""The attentions that can be computed with the end of a residual block: they have ``forward_end``."""

from .efficient_channel_attention import EfficientChannelAttention
from .shuffle_attention import ShuffleAttention
from .squeeze_excitation import SqueezeExcitation

FUSED = (ShuffleAttention, SqueezeExcitation, EfficientChannelAttention)
