"""ResNet with attention in its blocks, and SA-Net, which is ResNet with shuffle attention."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import build_plugin_layer
from mmdet.models.backbones.resnet import ResNet
from mmdet.registry import MODELS

from sa_mmdet.attention import Attention, ShuffleAttention, label_of
from sa_mmdet.attention.base import choose
from sa_mmdet.insertion import HoldingAttention
from sa_mmdet.insertion.classes import derive
from sa_mmdet.registry import name_of, register

from .basic_block import PluginBasicBlock
from .bottleneck import FusedBottleneck
from .checks import check_duplicates, check_groups, one_per_stage
from .max_pool import replace_max_pool
from .placements import PLACEMENTS, place, plugin_position
from .plain_weights import adapt, attention_shapes


@register(MODELS)
class AttentionResNet(ResNet):
    """ResNet with an attention layer after the last norm of each block, before the residual addition.

    Takes all options of :class:`mmdet.models.ResNet`. It differs in four points: ``attention`` is shorter than a list
    of plugins, depths 18 and 34 take plugins, too, at the position 'after_conv2', ``norm_eval`` does not concern
    the norms inside of attention, which learn their own statistics, and the stem's max pooling is a
    :class:`sa_mmdet.backbones.max_pool.StemMaxPool`.

    The weights of a plain ResNet start it so that it computes the plain ResNet's function, whatever loads them: see
    :mod:`sa_mmdet.backbones.exact_start`.

    Args:
        depth: 18, 34, 50, 101 or 152.
        attention: The config of a plugin layer, such as ``dict(type='SqueezeExcitation', ratio=16)``, or a list of one
            config per stage, where None leaves a stage without attention.
        stage_with_attention: One flag per stage; None for attention in all stages.
        plugins: Further plugin layers, as ResNet takes them. At the position of the attention they run after it.
        stage_attention: The config of a layer that follows each stage but the last, such as ``dict(type='BAM')``.
        placement: Where in a block the attention is, by the names of the SE paper's Table 14: 'standard' as above;
            'pre' before the block's first convolution; 'post' after its last ReLU; 'identity' on the connection that
            is added to the block's output; 'conv2' after the 3 x 3 convolution of a bottleneck. 'pre', 'post' and
            'identity' start as the identity, whatever weights there are: see :func:`sa_mmdet.insertion.insert`.
        implementation: 'auto' to compute norms, gates, additions and ReLUs of Bottlenecks by one operator each, and the
            stem's pooling by another, where nobody can tell the difference; 'reference' to run MMDetection's own blocks
            and PyTorch's pooling. The parameters and the results are the same. On GPUs 'auto' does so for the ends with
            shuffle attention alone, and 'fused' for all: these kernels have not been measured yet.
        keep_inputs: Whether those operators keep the norms' inputs for the backward pass. By default they compute them
            again from their results wherever that costs at most six bits of float32, and need less memory; on GPUs they
            keep them in any case.
        **kwargs: As :class:`mmdet.models.ResNet` takes them.

    Raises:
        ValueError: ``attention`` or ``stage_with_attention`` does not have one entry per stage, two plugins of the
            same type are at the same position, or the placement is unknown or not one of the depth's blocks.
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
        placement: str = "standard",
        implementation: str = "auto",
        keep_inputs: bool = False,
        **kwargs: Any,
    ):
        choose("placement", placement, PLACEMENTS)
        choose("implementation", implementation, dict.fromkeys(("auto", "fused", "reference")))
        num_stages = kwargs.get("num_stages", 4)
        if attention is None or isinstance(attention, dict):
            attention = [attention] * num_stages
        layers = one_per_stage("attention", attention, num_stages)
        flags = _flags(stage_with_attention, num_stages)
        layers = [layer if flag else None for layer, flag in zip(layers, flags, strict=True)]
        if depth in self.arch_settings:  # otherwise ResNet raises the error
            position = plugin_position(placement, basic=self.arch_settings[depth][0] is PluginBasicBlock)
            own = [
                dict(cfg=layer, stages=tuple(i == stage for i in range(num_stages)), position=position)
                for stage, layer in enumerate(layers)
                if layer is not None and position is not None
            ]
            plugins = own + list(plugins or [])
            check_duplicates(plugins, num_stages)
        super().__init__(depth, plugins=plugins or None, **kwargs)
        if implementation != "reference":
            replace_max_pool(self)
        if stage_attention is not None:
            self._add_after_stages(stage_attention)
        if plugin_position(placement) is None:
            for name, layer in zip(self.res_layers, layers, strict=True):
                place(getattr(self, name), layer, placement)
            derive(self, HoldingAttention)
            self._freeze_stages()
        self._attention_shapes = attention_shapes(self)
        for block in self.modules():
            if isinstance(block, FusedBottleneck):
                block.implementation, block.keep_inputs = implementation, keep_inputs

        # ResNet gives its own blocks this start, and does not know subclasses of them.
        starts_from_scratch = kwargs.get("init_cfg") is None and kwargs.get("pretrained") is None
        if self.zero_init_residual and starts_from_scratch:
            for block in self.modules():
                if isinstance(block, PluginBasicBlock | FusedBottleneck):
                    last = block.norm2_name if isinstance(block, PluginBasicBlock) else block.norm3_name
                    block.init_cfg = dict(type="Constant", val=0, override=dict(name=last))

    def train(self, mode: bool = True) -> None:
        """Set the mode as ResNet does; ``norm_eval`` does not concern the norms inside of attention.

        It keeps the statistics that the ResNet's norms have from pretraining. Those of new attention would stay at mean
        0 and variance 1 for ever.
        """
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, Attention) and layer.training:  # not in frozen stages
                layer.train(mode)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        adapt(self, self._attention_shapes, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _add_after_stages(self, cfg: dict) -> None:
        """Append the layer to the stages themselves, whose forward then runs it."""
        for name in self.res_layers[:-1]:
            stage = getattr(self, name)
            stage.add_module(*build_plugin_layer(cfg, in_channels=stage[-1].conv1.in_channels))
        self._freeze_stages()  # ResNet has done so before these layers existed


@register(MODELS)
class SAResNet(AttentionResNet):
    """ResNet with shuffle attention after the last norm of each block, before the residual addition.

    Takes all options of :class:`mmdet.models.ResNet`. The parameters have the names of the released SA-Net weights
    (``layer1.0.sa.cweight``, ...), so that these load by ``init_cfg=dict(type='Pretrained', ...)``. The weights of a
    plain ResNet load by ``init_cfg=dict(type='ResNetPretrained', ...)``.

    Source: SA-Net, ICASSP 2021 (arXiv 2102.00240), with 64 groups in every stage.

    Args:
        depth: 18, 34, 50, 101 or 152.
        groups: The number of groups of shuffle attention; 2 * groups divides the channels of every stage that has it.
        stage_with_attention: One flag per stage; None for attention in all stages.
        implementation: 'fused', 'reference' (MMDetection's block and PyTorch's own operators) or 'auto', which fuses
            where that is possible; the parameters and the results are the same.
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
            flags = _flags(stage_with_attention, kwargs.get("num_stages", 4))
            width = kwargs.get("base_channels", 64) * self.arch_settings[depth][0].expansion
            check_groups(groups, [width * 2**stage for stage, flag in enumerate(flags) if flag])
        attention = dict(type=name_of(ShuffleAttention), groups=groups, implementation=implementation)
        kwargs["implementation"] = implementation
        super().__init__(depth, attention=attention, stage_with_attention=stage_with_attention, **kwargs)


def attention_label(cfg: Mapping[str, Any]) -> str:
    """The attention in a backbone's config, as tables name it: 'SA', 'SE', ...; 'none' for a plain ResNet.

    Several kinds are joined by '+'. A backbone of another class adds its own name.

    Args:
        cfg: The config of the backbone.
    """
    name = str(cfg["type"]).rpartition(".")[2]
    if "module" in cfg:  # of what attention was inserted into
        places = [*(cfg.get("attention") or {}).values(), *(cfg.get("replace") or {}).values()]
        inner = {key: value for key, value in cfg.items() if key not in ("attention", "replace", "module")}
        own = attention_label({**inner, "type": cfg["module"]})
        labels = [own, *(label_of(layer["type"]) for layer in places)]
        labels = [label for label in labels if label not in ("none", "Identity")]  # the latter is torch.nn's
        return "+".join(dict.fromkeys(labels)) or "none"
    plugins = [plugin.get("cfg") for plugin in _as_list(cfg.get("plugins")) if isinstance(plugin, Mapping)]
    layers = [*_as_list(cfg.get("attention")), *plugins, cfg.get("stage_attention")]
    labels = [ShuffleAttention.label] if name == "SAResNet" else []
    labels += [] if name in ("ResNet", "AttentionResNet", "SAResNet") else [name]
    labels += [label_of(layer["type"]) for layer in layers if isinstance(layer, Mapping) and layer.get("type")]
    return "+".join(dict.fromkeys(labels)) or "none"


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _flags(stage_with_attention: Sequence[bool] | None, num_stages: int) -> list[bool]:
    flags = [True] * num_stages if stage_with_attention is None else stage_with_attention
    return one_per_stage("stage_with_attention", flags, num_stages)
