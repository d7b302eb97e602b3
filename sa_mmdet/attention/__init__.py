"""Attention modules, one a file: plugin layers that any OpenMMLab config can name.

They are registered in MMEngine's root registry, where the registries of all OpenMMLab packages look last: a plugin
layer registered in MMDetection alone is not found when the default scope is another's.
"""

from .baked_shuffle_attention import BakedShuffleAttention
from .bam import BAM
from .base import Attention
from .cbam import CBAM
from .efficient_channel_attention import EfficientChannelAttention
from .shuffle_attention import ShuffleAttention
from .spatial_group_enhance import SpatialGroupEnhance
from .squeeze_excitation import SqueezeExcitation

__all__ = [
    "BAM",
    "CBAM",
    "Attention",
    "BakedShuffleAttention",
    "EfficientChannelAttention",
    "ShuffleAttention",
    "SpatialGroupEnhance",
    "SqueezeExcitation",
]
