"""Backbones with attention, and the weights that they start from."""

from .basic_block import PluginBasicBlock
from .resnet_pretrained import ResNetPretrained
from .sa_resnet import SAResNet

__all__ = ["PluginBasicBlock", "ResNetPretrained", "SAResNet"]
