"""Backbones with attention, and the weights that they start from."""

from .attention_resnet import AttentionResNet, SAResNet
from .baked import BakedSAResNet, bake
from .basic_block import PluginBasicBlock
from .bottleneck import obstacles_to_fusion
from .resnet_pretrained import ResNetPretrained

__all__ = [
    "AttentionResNet",
    "BakedSAResNet",
    "PluginBasicBlock",
    "ResNetPretrained",
    "SAResNet",
    "bake",
    "obstacles_to_fusion",
]
