"""The attentions that can be computed with the end of a residual block: they have ``forward_end``."""

from .baked_shuffle_attention import BakedShuffleAttention
from .cbam import CBAM
from .efficient_channel_attention import EfficientChannelAttention
from .shuffle_attention import ShuffleAttention
from .spatial_group_enhance import SpatialGroupEnhance
from .squeeze_excitation import SqueezeExcitation

FUSED = (
    ShuffleAttention,
    BakedShuffleAttention,
    SqueezeExcitation,
    EfficientChannelAttention,
    SpatialGroupEnhance,
    CBAM,
)
