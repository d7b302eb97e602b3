"""SA-Net for inference: neither batch norms nor shuffles."""

import copy
from typing import Any

from mmcv.cnn import fuse_conv_bn
from mmdet.registry import MODELS
from torch import Tensor

from sa_mmdet.attention.baked_shuffle_attention import BakedShuffleAttention
from sa_mmdet.attention.shuffle_attention import ShuffleAttention

from .attention_resnet import AttentionResNet
from .resnet_pretrained import plugin_positions


@MODELS.register_module()
class BakedSAResNet(AttentionResNet):
    """SAResNet whose batch norms and shuffles are in its convolutions; for inference alone.

    Its weights come from :func:`bake`. Takes all options of :class:`SAResNet` but ``groups`` and ``implementation``.

    Args:
        depth: 18, 34, 50, 101 or 152.
        **kwargs: As :class:`AttentionResNet` takes them.
    """

    def __init__(self, depth: int, **kwargs: Any):
        attention = dict(type="BakedShuffleAttention")
        super().__init__(depth, attention=attention, **{**kwargs, "zero_init_residual": False})
        self.eval()
        fuse_conv_bn(self)


def bake(backbone: AttentionResNet) -> dict[str, Tensor]:
    """The weights with which :class:`BakedSAResNet` computes what a backbone does.

    The rows of the convolution and of the batch norm before each attention are put where the shuffle would move their
    channels, the attention's parameters with them; then all batch norms go into their convolutions.

    Args:
        backbone: With shuffle attention; left as it is.

    Raises:
        ValueError: It has none, or an attention that has no baked form or follows another plugin.
    """
    model: Any = copy.deepcopy(backbone)
    dtype = next(model.parameters()).dtype
    model.double().eval()  # products of float32 weights are rounded once
    found = 0
    for block in list(model.modules()):
        for conv_name, norm_name, plugins in plugin_positions(block):
            shuffling = [plugin for plugin in plugins if isinstance(plugin, ShuffleAttention)]
            if not shuffling:
                continue
            if shuffling != plugins[:1]:
                raise ValueError(
                    f"shuffle attention after {conv_name} is not the one plugin there that shuffles, or first"
                )
            baked, source = BakedShuffleAttention.of(shuffling[0])
            name = next(name for name, child in block.named_children() if child is shuffling[0])
            setattr(block, name, baked)
            conv, norm = getattr(block, conv_name), getattr(block, norm_name)
            for tensor in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.data = tensor.data[source.to(tensor.device)]
            found += 1
    if not found:
        raise ValueError(f"{type(backbone).__name__} has no shuffle attention to bake")
    return fuse_conv_bn(model).to(dtype).state_dict()


def baked_config(cfg: dict[str, Any]) -> dict[str, Any]:
    """The config of the backbone that takes what :func:`bake` makes of a backbone of config ``cfg``.

    Raises:
        ValueError: It is no SAResNet's.
    """
    scope, _, name = str(cfg.get("type")).rpartition(".")
    if name != "SAResNet":
        raise ValueError(f"the backbone is of type {cfg.get('type')!r}: shuffles to bake are SAResNet's")
    left_out = ("type", "groups", "implementation", "init_cfg", "pretrained", "frozen_stages", "zero_init_residual")
    kept = {key: value for key, value in cfg.items() if key not in left_out}
    return dict(type=f"{scope}.BakedSAResNet" if scope else "BakedSAResNet", **kept)
