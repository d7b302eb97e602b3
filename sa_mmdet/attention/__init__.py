"""Attention layers, one paper per module: plugin layers that any OpenMMLab config can name.

To add one, write a module with a subclass of :class:`Attention` (and of :class:`ExactStart`, if it can start so) and
import it here. They are registered in MMEngine's root registry, where the registries of all OpenMMLab packages look
last: a layer that only MMDetection registers is not found where the default scope is another package's. Where other
code has a layer of that name, ours is found under the scope ``sa_mmdet`` alone.
"""

from .baked_shuffle_attention import BakedShuffleAttention
from .bam import BAM
from .base import Attention, ExactStart, LayerShapes, attention_types, label_of
from .cbam import CBAM
from .efficient_channel_attention import EfficientChannelAttention
from .group_branches import GroupBranches
from .shuffle_attention import ShuffleAttention
from .spatial_group_enhance import SpatialGroupEnhance
from .squeeze_excitation import SqueezeExcitation

__all__ = [
    "BAM",
    "CBAM",
    "Attention",
    "BakedShuffleAttention",
    "EfficientChannelAttention",
    "ExactStart",
    "GroupBranches",
    "LayerShapes",
    "ShuffleAttention",
    "SpatialGroupEnhance",
    "SqueezeExcitation",
    "attention_types",
    "label_of",
]
