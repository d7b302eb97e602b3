"""Undo in a plain ResNet's weights what attention with its first values does, so that the function stays the same.

Attention at its first values multiplies its input by a constant gate and, in the case of shuffle attention, moves its
channels. Both can be undone in the convolution and the batch norm before it: their channels are permuted, and the batch
norm's weight and bias are divided by the gate.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sa_mmdet.attention import Attention, ExactStart
from sa_mmdet.checkpoints.layer_names import named_layers

_OTHER_WEIGHTS = "use other weights by init_cfg=dict(type='Pretrained', ...)"


@dataclass
class PluginPosition:
    """A position of a block that has plugins.

    Attributes:
        prefix: What stands before the names of the block's parameters, such as 'layer1.0.'.
        block: The block.
        conv_name: The block's name for the convolution before the plugins.
        norm_name: The block's name for the norm between that convolution and the plugins.
        plugin_names: The block's names for the plugin layers, in the order in which they run.
    """

    prefix: str
    block: nn.Module
    conv_name: str
    norm_name: str
    plugin_names: list[str]

    @property
    def plugins(self) -> list[nn.Module]:
        """The plugin layers, in the order in which they run."""
        return [getattr(self.block, name) for name in self.plugin_names]


def plugin_positions(module: nn.Module) -> Iterator[PluginPosition]:
    """All positions in the blocks of a network that have plugins."""
    for name, block in named_layers(module):
        for number in (1, 2, 3):
            plugin_names = getattr(block, f"after_conv{number}_plugin_names", [])
            if plugin_names:
                norm_name = getattr(block, f"norm{number}_name")
                yield PluginPosition(f"{name}." if name else "", block, f"conv{number}", norm_name, plugin_names)


def layers_after_stages(names: Iterable[str]) -> list[str]:
    """The layers that follow stages instead of standing in their blocks, such as 'layer1.bam'.

    Args:
        names: The names of layers or of their weights.
    """
    return list(dict.fromkeys(found.group() for name in names if (found := re.match(r"layer\d\.[^\d.][^.]*", name))))


def attention_positions(module: nn.Module) -> list[PluginPosition]:
    """All positions in the blocks of a network that have attention."""
    return [
        position
        for position in plugin_positions(module)
        if any(isinstance(plugin, Attention) for plugin in position.plugins)
    ]


def undo_attention(positions: Sequence[PluginPosition], state: dict[str, Any], prefix: str = "") -> None:
    """Change a plain ResNet's weights so that the network computes the same function with attention.

    The attention layers get their first values, which are added to the weights. Neither ``state`` nor its tensors are
    changed if an error is raised.

    Args:
        positions: Positions of the network that have attention; the weights of all of them are there.
        state: The weights of the plain ResNet under the network's names; it is changed, its tensors are not.
        prefix: What stands before the network's names.

    Raises:
        ValueError: A layer has no such start, follows another plugin, or the layers before it cannot be changed so.
    """
    for position in positions:
        _check(position)
    starts = [_start(position) for position in positions]
    for position, (destination, gate) in zip(positions, starts, strict=True):
        weight, *moved = (f"{prefix}{key}" for key in weights_before(position))
        for key in (weight, *moved):
            state[key] = state[key][destination.to(state[key].device)]
        norm_layer: Any = getattr(position.block, position.norm_name)
        for key in moved[:2]:  # in the network's precision, where the checkpoint's is lower
            state[key] = state[key].to(torch.promote_types(state[key].dtype, norm_layer.weight.dtype)) / gate
        name = f"{prefix}{position.prefix}{position.plugin_names[0]}."
        state.update({f"{name}{key}": value.clone() for key, value in position.plugins[0].state_dict().items()})


def weights_before(position: PluginPosition) -> list[str]:
    """The names of the tensors before a position that its start changes: first the convolution's, then the norm's."""
    conv, norm = f"{position.prefix}{position.conv_name}", f"{position.prefix}{position.norm_name}"
    return [f"{conv}.weight", *(f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var"))]


def _check(position: PluginPosition) -> None:
    first, *later = position.plugins
    where = f"after {position.prefix}{position.conv_name}"
    second = next((type(plugin).__name__ for plugin in later if isinstance(plugin, Attention)), None)
    if second:
        raise ValueError(f"{where} {second} follows another plugin: put it first, or {_OTHER_WEIGHTS}")
    if not isinstance(first, ExactStart):
        raise ValueError(
            f"{where} {type(first).__name__} cannot start as a plain network, whatever its values: {_OTHER_WEIGHTS}"
        )
    conv, norm = getattr(position.block, position.conv_name), getattr(position.block, position.norm_name)
    if not isinstance(norm, _BatchNorm) or not norm.affine or getattr(conv, "groups", 1) != 1:
        raise ValueError(
            f"{where} the start of {type(first).__name__} needs an ungrouped convolution and an affine batch norm, "
            f"found {type(conv).__name__} and {type(norm).__name__}: {_OTHER_WEIGHTS}"
        )


def _start(position: PluginPosition) -> tuple[Tensor, float]:
    attention: Any = position.plugins[0]
    return attention.start_exactly()
