"""ResNet with attention in its blocks, and SA-Net, ResNet with shuffle attention."""

import math
from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_plugin_layer
from mmdet.models.backbones.resnet import ResNet
from mmdet.registry import MODELS

from sa_mmdet.attention.shuffle_attention import fitting_groups

from .basic_block import PluginBasicBlock
from .bottleneck import FusedBottleneck


@MODELS.register_module()
class AttentionResNet(ResNet):
    """ResNet with an attention module after the last norm of each block, before the residual addition.

    Takes all options of :class:`mmdet.models.ResNet`, of which it differs in two things: ``attention`` is shorter
    than a list of plugins, and depths 18 and 34 take plugins too, at the position 'after_conv2'.

    Args:
        depth: 18, 34, 50, 101 or 152.
        attention: Config of a plugin layer, such as ``dict(type='SqueezeExcitation', ratio=16)``, or a list of one a
            stage; None in the list leaves a stage without.
        stage_with_attention: A flag a stage; all stages have attention if None.
        plugins: Plugin layers beside the attention, as ResNet takes them. Those at the attention's own position run
            after it.
        stage_attention: Config of a layer behind each stage but the last, such as ``dict(type='BAM')``.
        **kwargs: As :class:`mmdet.models.ResNet` takes them.

    Raises:
        ValueError: ``attention`` or ``stage_with_attention`` has not one entry a stage, or ``plugins`` names a type
            twice at one position.
    """

    arch_settings = {
        depth: (FusedBottleneck if block.expansion > 1 else PluginBasicBlock, blocks)
        for depth, (block, blocks) in ResNet.arch_settings.items()
    }

    def __init__(
        self,
        depth: int,
        attention: dict | Sequence[dict | None] | None = None,
        stage_with_attention: Sequence[bool] | None = None,
        plugins: Sequence[dict] | None = None,
        stage_attention: dict | None = None,
        **kwargs: Any,
    ):
        num_stages = kwargs.get("num_stages", 4)
        one_for_all = attention is None or isinstance(attention, dict)
        layers = _one_a_stage("attention", [attention] * num_stages if one_for_all else attention, num_stages, dict)
        flags = _flags(stage_with_attention, num_stages)
        _check_layers(attention=layers, stage_attention=[stage_attention], plugins=[] if plugins is None else plugins)
        layers = [layer if flag else None for layer, flag in zip(layers, flags, strict=True)]
        if depth in self.arch_settings:  # otherwise ResNet says what is wrong
            position = "after_conv2" if self.arch_settings[depth][0] is PluginBasicBlock else "after_conv3"
            own = [
                dict(cfg=layer, stages=tuple(i == stage for i in range(num_stages)), position=position)
                for stage, layer in enumerate(layers)
                if layer is not None
            ]
            plugins = own + list(plugins or [])
            _check_twice(plugins, num_stages)
        super().__init__(depth, plugins=plugins or None, **kwargs)
        if stage_attention is not None:
            self._attend_behind_stages(stage_attention)

        # ResNet gives its own blocks this start and does not know subclasses of them.
        starts_from_scratch = kwargs.get("init_cfg") is None and kwargs.get("pretrained") is None
        if self.zero_init_residual and starts_from_scratch:
            for block in self.modules():
                if isinstance(block, PluginBasicBlock | FusedBottleneck):
                    last = block.norm2_name if isinstance(block, PluginBasicBlock) else block.norm3_name
                    block.init_cfg = dict(type="Constant", val=0, override=dict(name=last))

    def _attend_behind_stages(self, cfg: dict) -> None:
        """Append the layer to the stages themselves, whose forward then runs it."""
        for name in self.res_layers[:-1]:
            stage = getattr(self, name)
            stage.add_module(*build_plugin_layer(cfg, in_channels=stage[-1].conv1.in_channels))
        self._freeze_stages()  # as ResNet did before these layers were there


@MODELS.register_module()
class SAResNet(AttentionResNet):
    """ResNet with shuffle attention after the last norm of each block, before the residual addition.

    Takes all options of :class:`mmdet.models.ResNet`. The parameters bear the names of the released SA-Net weights
    (``layer1.0.sa.cweight``, ...), so that these load through ``init_cfg=dict(type='Pretrained', ...)``; a plain
    ResNet's load through ``init_cfg=dict(type='ResNetPretrained', ...)``.

    Source: SA-Net, ICASSP 2021 (arXiv 2102.00240); 64 groups in every stage.

    Args:
        depth: 18, 34, 50, 101 or 152.
        groups: Groups of shuffle attention; its double divides the channels of every stage that has attention.
        stage_with_attention: A flag a stage; all stages have attention if None.
        implementation: 'fused', 'reference' (MMDetection's block and PyTorch's own operators) or 'auto', which fuses
            where that applies; same parameters, same results.
        **kwargs: As :class:`AttentionResNet` takes them.

    Raises:
        ValueError: ``groups`` does not fit, or as :class:`AttentionResNet` raises it.
    """

    def __init__(
        self,
        depth: int,
        groups: int = 64,
        stage_with_attention: Sequence[bool] | None = None,
        implementation: str = "auto",
        **kwargs: Any,
    ):
        if depth in self.arch_settings:
            stages = range(kwargs.get("num_stages", 4))
            flags = _flags(stage_with_attention, len(stages))
            expansion = self.arch_settings[depth][0].expansion
            channels = [kwargs.get("base_channels", 64) * expansion * 2**stage for stage in stages]
            _check_groups(groups, [c for c, attends in zip(channels, flags, strict=False) if attends])
        attention = dict(type="ShuffleAttention", groups=groups, implementation=implementation)
        super().__init__(depth, attention=attention, stage_with_attention=stage_with_attention, **kwargs)


def _flags(stage_with_attention: Any, num_stages: int) -> list[bool]:
    if stage_with_attention is None:
        return [True] * num_stages
    return _one_a_stage("stage_with_attention", stage_with_attention, num_stages, bool)


def _one_a_stage(name: str, entries: Any, num_stages: int, kind: type) -> list[Any]:
    """The entries as a list, or an error if they are not one a stage."""
    if not isinstance(entries, list | tuple) or not all(e is None or isinstance(e, kind) for e in entries):
        raise TypeError(f"{name}={entries!r} is no list of {kind.__name__}s: give one a stage")
    if len(entries) != num_stages:
        raise ValueError(
            f"{name}={entries} has {len(entries)} entries, num_stages={num_stages} asks for {num_stages}: give one a "
            "stage"
        )
    return list(entries)


def _check_layers(**options: Any) -> None:
    """Refuse what are no configs of plugin layers."""
    for name, layers in options.items():
        if not isinstance(layers, list | tuple):
            raise TypeError(f"{name}={layers!r} is no list: give configs of plugin layers")
        for layer in layers:
            if name == "plugins":
                cfg = layer.get("cfg") if isinstance(layer, dict) and isinstance(layer.get("position"), str) else None
            elif layer is None:
                continue
            else:
                cfg = layer
            if not isinstance(cfg, dict) or not isinstance(cfg.get("type"), str | type):
                example = (
                    "dict(cfg=dict(type='CBAM'), position='after_conv2')" if name == "plugins" else "dict(type='CBAM')"
                )
                raise TypeError(f"{name}: {layer!r} is no config of a plugin layer, such as {example}")


def _check_groups(groups: int, channels: Sequence[int]) -> None:
    """Refuse a number of groups that does not fit the channels of all stages with attention."""
    fitting = fitting_groups(math.gcd(*channels)) if channels else [groups]
    if groups not in fitting:
        raise ValueError(
            f"groups={groups} does not fit stages of {', '.join(map(str, channels))} channels: 2 * groups must divide "
            f"each; values that fit: {', '.join(map(str, fitting)) or 'none'}"
        )


def _check_twice(plugins: Sequence[dict], num_stages: int) -> None:
    """Refuse a plugin that stands twice at one position of a stage, whose names would collide."""
    seen = set()
    for plugin in plugins:
        stages = plugin.get("stages") or (True,) * num_stages
        for stage in (i for i, attends in enumerate(stages) if attends):
            key = (stage, str(plugin["cfg"]["type"]), plugin["cfg"].get("postfix", ""))
            if (key, plugin["position"]) in seen:
                raise ValueError(
                    f"{key[1]} stands twice at {plugin['position']!r} of stage {stage + 1}, once perhaps as the "
                    "backbone's own attention: leave one out, or give one a postfix"
                )
            seen.add((key, plugin["position"]))
