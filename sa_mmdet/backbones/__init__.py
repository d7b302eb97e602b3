"""Backbones with attention, and how they start from the weights of a plain ResNet."""

from .attention_resnet import AttentionResNet, SAResNet, attention_label
from .baked import BakedSAResNet, bake
from .basic_block import PluginBasicBlock
from .bottleneck import obstacles_to_fusion
from .cifar_resnet import CifarResNet
from .resnet_pretrained import ResNetPretrained

__all__ = [
    "AttentionResNet",
    "BakedSAResNet",
    "CifarResNet",
    "PluginBasicBlock",
    "ResNetPretrained",
    "SAResNet",
    "attention_label",
    "bake",
    "obstacles_to_fusion",
]
