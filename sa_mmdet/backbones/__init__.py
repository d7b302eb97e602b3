"""Backbones with attention, and the weights that they start from."""

from .attention_resnet import AttentionResNet, SAResNet
from .basic_block import PluginBasicBlock
from .resnet_pretrained import ResNetPretrained

__all__ = ["AttentionResNet", "PluginBasicBlock", "ResNetPretrained", "SAResNet"]
