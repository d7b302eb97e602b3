"""ResNet with shuffle attention (SA-Net)."""

import math
from collections.abc import Sequence
from typing import Any

from mmdet.models.backbones.resnet import ResNet
from mmdet.registry import MODELS

from sa_mmdet.attention.shuffle_attention import fitting_groups

from .basic_block import PluginBasicBlock


@MODELS.register_module()
class SAResNet(ResNet):
    """ResNet with shuffle attention after the last norm of each block, before the residual addition.

    Takes all options of :class:`mmdet.models.ResNet`. The parameters bear the names of the released SA-Net weights
    (``layer1.0.sa.cweight``, ...), so that these load through ``init_cfg=dict(type='Pretrained', ...)``; a plain
    ResNet's load through ``init_cfg=dict(type='ResNetPretrained', ...)``.

    Source: SA-Net, ICASSP 2021 (arXiv 2102.00240); 64 groups in every stage.

    Args:
        depth: 18, 34, 50, 101 or 152.
        groups: Groups of shuffle attention; its double divides the channels of every stage that has attention.
        stage_with_attention: A flag a stage; all stages have attention if None.
        plugins: Plugin layers beside the attention, as ResNet takes them. Those at the attention's own position run
            after it.
        **kwargs: As :class:`mmdet.models.ResNet` takes them.

    Raises:
        ValueError: ``groups`` does not fit, ``stage_with_attention`` has not one flag a stage, or ``plugins`` names
            ShuffleAttention once more.
    """

    arch_settings = {
        depth: (block if block.expansion > 1 else PluginBasicBlock, blocks)
        for depth, (block, blocks) in ResNet.arch_settings.items()
    }

    def __init__(
        self,
        depth: int,
        groups: int = 64,
        stage_with_attention: Sequence[bool] | None = None,
        plugins: Sequence[dict] | None = None,
        **kwargs: Any,
    ):
        num_stages = kwargs.get("num_stages", 4)
        if stage_with_attention is None:
            stage_with_attention = (True,) * num_stages
        if len(stage_with_attention) != num_stages:
            raise ValueError(
                f"stage_with_attention={tuple(stage_with_attention)} has {len(stage_with_attention)} flags, "
                f"num_stages={num_stages} asks for {num_stages}: give one flag a stage"
            )
        all_plugins = list(plugins or [])
        if depth in self.arch_settings:  # otherwise ResNet says what is wrong
            expansion = self.arch_settings[depth][0].expansion
            channels = [kwargs.get("base_channels", 64) * expansion * 2**stage for stage in range(num_stages)]
            _check_groups(groups, [c for c, attends in zip(channels, stage_with_attention, strict=True) if attends])
            position = "after_conv2" if self.arch_settings[depth][0] is PluginBasicBlock else "after_conv3"
            if any(p["position"] == position and p["cfg"]["type"] == "ShuffleAttention" for p in all_plugins):
                raise ValueError(
                    f"plugins name ShuffleAttention at {position!r}, where SAResNet has it already: "
                    "leave it out, or use type='ResNet'"
                )
            cfg = dict(type="ShuffleAttention", groups=groups)
            all_plugins.insert(0, dict(cfg=cfg, stages=tuple(stage_with_attention), position=position))
        super().__init__(depth, plugins=all_plugins, **kwargs)

        # ResNet gives its own BasicBlock this start and does not know a subclass of it.
        starts_from_scratch = kwargs.get("init_cfg") is None and kwargs.get("pretrained") is None
        if self.zero_init_residual and starts_from_scratch:
            for block in self.modules():
                if isinstance(block, PluginBasicBlock):
                    block.init_cfg = dict(type="Constant", val=0, override=dict(name=block.norm2_name))


def _check_groups(groups: int, channels: Sequence[int]) -> None:
    """Refuse a number of groups that does not fit the channels of all stages with attention."""
    fitting = fitting_groups(math.gcd(*channels)) if channels else [groups]
    if groups not in fitting:
        raise ValueError(
            f"groups={groups} does not fit stages of {', '.join(map(str, channels))} channels: 2 * groups must divide "
            f"each; values that fit: {', '.join(map(str, fitting)) or 'none'}"
        )
