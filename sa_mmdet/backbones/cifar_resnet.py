"""The ResNets for images of 32 x 32 pixels, with attention in their blocks."""

from typing import Any

from mmcv.cnn import build_conv_layer
from mmdet.registry import MODELS
from torch import nn

from sa_mmdet.registry import register

from .attention_resnet import AttentionResNet
from .basic_block import PluginBasicBlock
from .bottleneck import FusedBottleneck


@register(MODELS)
class CifarResNet(AttentionResNet):
    """ResNet for images of 32 x 32 pixels: three stages of 16, 32 and 64 channels after a 3 x 3 convolution.

    Nothing is pooled before the last stage, whose maps have 8 x 8 positions for such images. Depths 20, 32, 56 and 110
    have basic blocks, 164 has bottlenecks, whose stages end with four times as many channels. Takes all options of
    :class:`AttentionResNet`; those that have an entry per stage have three. Its defaults train from scratch: all norms
    learn, and no residual starts at zero.

    Source: Deep Residual Learning, CVPR 2016 (arXiv 1512.03385), section 4.2; ResNet-164: Identity Mappings, ECCV 2016
    (arXiv 1603.05027). It differs from both: where the channels change, the identity passes a 1 x 1 convolution and a
    batch norm as in MMDetection's ResNet, instead of zeros being added to its channels; and the bottlenecks of
    ResNet-164 have their norms and ReLUs after the convolutions, not before them.

    Args:
        depth: 20, 32, 56, 110 or 164.
        attention: As :class:`AttentionResNet` takes it. 2 * groups of shuffle attention divides 16 for depths up to
            110, and 64 for 164.
        **kwargs: As :class:`AttentionResNet` takes them.

    Raises:
        ValueError: The depth is another, or as :class:`AttentionResNet` raises it.
    """

    arch_settings = {depth: (PluginBasicBlock, (depth // 6,) * 3) for depth in (20, 32, 56, 110)}
    arch_settings[164] = (FusedBottleneck, (18,) * 3)

    def __init__(self, depth: int, attention: Any = None, **kwargs: Any):
        if depth not in self.arch_settings:
            raise ValueError(f"depth={depth} is unknown: choose one of {', '.join(map(str, self.arch_settings))}")
        own = dict(base_channels=16, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,))
        own |= dict(stage_with_dcn=(False,) * 3, norm_eval=False, zero_init_residual=False)
        super().__init__(depth, attention, **{**own, **kwargs})

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        if not self.deep_stem:
            self.conv1 = build_conv_layer(self.conv_cfg, in_channels, stem_channels, 3, padding=1, bias=False)
        self.maxpool = nn.Identity()
