"""SA-Net for inference, without batch norms and shuffles."""

import copy
from typing import Any

from mmcv.cnn import fuse_conv_bn
from mmcv.cnn.bricks import Conv2d
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from sa_mmdet.attention import BakedShuffleAttention, ShuffleAttention
from sa_mmdet.registry import name_of, register

from .attention_resnet import AttentionResNet
from .exact_start import plugin_positions

# Convolutions whose weights are their parameters; those of ConvWS are computed from them.
_PLAIN = (nn.Conv2d, Conv2d)


@register(MODELS)
class BakedSAResNet(AttentionResNet):
    """An SAResNet whose convolutions do the work of its batch norms and shuffles, for inference only.

    Its weights come from :func:`bake`. Takes all options of :class:`SAResNet` but ``groups`` and ``implementation``.

    Args:
        depth: 18, 34, 50, 101 or 152.
        **kwargs: As :class:`AttentionResNet` takes them.
    """

    def __init__(self, depth: int, **kwargs: Any):
        attention = dict(type=name_of(BakedShuffleAttention))
        super().__init__(depth, attention=attention, **{**kwargs, "zero_init_residual": False})
        self.eval()
        fuse_conv_bn(self)


def bake(backbone: AttentionResNet) -> dict[str, Tensor]:
    """Compute the weights with which :class:`BakedSAResNet` computes what a backbone does.

    The channels of the convolution and of the norm before each attention are put where the shuffle would move them,
    and so are the attention's parameters. Then all batch norms are merged into their convolutions; instance norms
    stay.

    Args:
        backbone: A backbone with shuffle attention; it is not changed.

    Returns:
        The state dict of the baked backbone.

    Raises:
        ValueError: The backbone has no shuffle attention, or one that has no baked form or follows another plugin, or
            layers that cannot be merged, such as group norms or convolutions of type ConvWS.
    """
    _check(backbone)
    model: Any = copy.deepcopy(backbone)
    dtype = next(model.parameters()).dtype
    model.double().eval()  # so that products of float32 weights are rounded only once
    found = 0
    for position in list(plugin_positions(model)):
        block, shuffling = position.block, [p for p in position.plugins if isinstance(p, ShuffleAttention)]
        if not shuffling:
            continue
        if shuffling != position.plugins[:1]:
            raise ValueError(
                f"{position.prefix}{position.conv_name}: shuffle attention must be the first plugin after it and the "
                "only one that shuffles"
            )
        baked, source = BakedShuffleAttention.of(shuffling[0])
        name = next(name for name, child in block.named_children() if child is shuffling[0])
        setattr(block, name, baked)
        conv: Any = getattr(block, position.conv_name)
        norm: Any = getattr(block, position.norm_name)
        for tensor in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            if tensor is not None:  # instance norms have some of these only
                tensor.data = tensor.data[source.to(tensor.device)]
        found += 1
    if not found:
        raise ValueError(f"{type(backbone).__name__} has no shuffle attention to bake")
    return fuse_conv_bn(model).to(dtype).state_dict()


def _check(backbone: nn.Module) -> None:
    """Raise a ValueError that names the first layer which keeps a backbone from being baked."""
    for position in plugin_positions(backbone):
        norm: Any = getattr(position.block, position.norm_name)
        shuffles = any(isinstance(plugin, ShuffleAttention) for plugin in position.plugins)
        if shuffles and not isinstance(norm, _BatchNorm | _InstanceNorm):
            raise ValueError(
                f"{position.prefix}{position.norm_name} is of the class {type(norm).__name__}, which mixes channels "
                "that the shuffle would move: batch norms and instance norms can be baked"
            )
    merged = False
    for name, module in backbone.named_modules():
        if isinstance(module, _BatchNorm):
            merged = True
            if module.weight is None or module.running_mean is None:
                raise ValueError(
                    f"{name} has no weight or no running statistics: only affine batch norms with running statistics "
                    "can be merged into convolutions"
                )
    for name, module in backbone.named_modules():
        if merged and isinstance(module, nn.Conv2d) and type(module) not in _PLAIN:
            raise ValueError(
                f"{name} is of the class {type(module).__name__}, whose output a batch norm that is merged into its "
                "weight may change in another way: only plain convolutions take batch norms"
            )


def baked_config(cfg: dict[str, Any]) -> dict[str, Any]:
    """The config of the backbone that takes the weights that :func:`bake` computes.

    Args:
        cfg: The config of the backbone that is baked.

    Raises:
        ValueError: It is not the config of an SAResNet.
    """
    scope, _, name = str(cfg.get("type")).rpartition(".")
    if name != "SAResNet":
        raise ValueError(f"the backbone is of type {cfg.get('type')!r}: only an SAResNet has shuffles to bake")
    left_out = ("type", "groups", "implementation", "init_cfg", "pretrained", "frozen_stages", "zero_init_residual")
    kept = {key: value for key, value in cfg.items() if key not in left_out}
    return dict(type=f"{scope}.BakedSAResNet" if scope else "BakedSAResNet", **kept)
