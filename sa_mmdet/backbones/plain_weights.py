"""What a ResNet with attention does with weights that are given to it, however they arrive.

``Pretrained``, ``load_from``, ``load_checkpoint``, ``DetInferencer`` and ``load_state_dict`` all end in PyTorch's
``_load_from_state_dict``, where the backbone calls :func:`adapt`.
"""

import contextlib
import logging
import re
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sa_mmdet.attention import Attention, LayerShapes
from sa_mmdet.checkpoints.layer_names import named_layers
from sa_mmdet.checkpoints.resnet_names import attention_by_abbreviation
from sa_mmdet.messages import listed, one_line

from .exact_start import (
    PluginPosition,
    attention_positions,
    layers_after_stages,
    undo_attention,
    weights_before,
)

_WAY_OUT = "give the network the attention that the checkpoint was made with, or load weights of a plain ResNet"

# For each attention layer of a network, by its name, the shapes of its weights, by their names in the layer.
Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]


def attention_shapes(module: nn.Module) -> Shapes:
    """The shapes of the weights of a network's attention; asked before the network is sharded."""
    return {
        name: {
            key: tuple(tensor.shape)
            for key, tensor in layer.state_dict().items()
            if not key.endswith("num_batches_tracked")  # which files from before PyTorch 0.4.1 do not have
        }
        for name, layer in named_layers(module)
        if isinstance(layer, Attention)
    }


def adapt(module: nn.Module, shapes: Shapes, state: dict[str, Any], prefix: str) -> None:
    """Start a network exactly if the weights are those of a plain ResNet; leave weights with its attention as they are.

    Args:
        module: The network with attention.
        shapes: What :func:`attention_shapes` says of it.
        state: The weights, of which the network's are changed where they are those of a plain ResNet.
        prefix: What stands before the network's names.

    Raises:
        RuntimeError: The weights hold a part of the network's attention, attention of another kind or with other
            options, or a part of a convolution and its norm that the exact start changes; or the network is sharded.
            PyTorch raises the same where weights do not fit.
    """
    own = [f"{name}.{key}" for name, weights in shapes.items() for key in weights]
    held = [key for key in own if f"{prefix}{key}" in state]
    if held:
        _refuse_mixture(module, own, held, prefix)
        _refuse_other_options(module, shapes, state, prefix)
    elif own:
        _refuse_foreign_attention(module, state, prefix)
        _start_exactly(module, state, prefix, layers_after_stages(shapes))


def _refuse_mixture(module: nn.Module, own: list[str], held: list[str], prefix: str) -> None:
    present = set(held)
    missing = [f"{prefix}{key}" for key in own if key not in present]
    if missing:
        raise RuntimeError(
            f"the weights do not fit {type(module).__name__}: they hold a part of its attention "
            f"({prefix}{held[0]}, ...), and lack {listed(missing)}: {_WAY_OUT}"
        )


def _refuse_other_options(module: nn.Module, shapes: Shapes, state: Mapping[str, Any], prefix: str) -> None:
    layers: dict[str, Any] = dict(named_layers(module))
    for name, expected in shapes.items():
        begin, layer = f"{prefix}{name}.", layers[name]
        found = {key: tuple(state[f"{begin}{key}"].shape) for key in expected}
        differing = [key for key in expected if found[key] != expected[key]]
        if differing:
            key = differing[0]
            raise RuntimeError(
                f"{begin}{key} has the shape {found[key]} in the checkpoint, and {expected[key]} in the network: the "
                f"checkpoint was made with other options of {type(layer).__name__}{_options(layer, begin, found)}"
            )


def _options(layer: Attention, begin: str, found: dict[str, tuple[int, ...]]) -> str:
    channels = getattr(layer, "in_channels", None)
    options: dict[str, Any] = {}
    if channels:
        with contextlib.suppress(ValueError):
            options = type(layer).options_of(LayerShapes(begin, channels, found))
    return f": {', '.join(f'{name}={value!r}' for name, value in options.items())}" if options else ""


def _refuse_foreign_attention(module: nn.Module, state: Mapping[str, Any], prefix: str) -> None:
    abbreviations = "|".join(map(re.escape, attention_by_abbreviation()))
    pattern = re.compile(rf"{re.escape(prefix)}layer\d\.(\d+\.)?({abbreviations})\.")
    foreign = [key for key in state if pattern.match(key)]
    if foreign:
        raise RuntimeError(
            f"the weights do not fit {type(module).__name__}: they hold another attention: {listed(foreign)}: "
            f"{_WAY_OUT}"
        )


def _start_exactly(module: nn.Module, state: dict[str, Any], prefix: str, after_stages: list[str]) -> None:
    positions = attention_positions(module)
    complete = [position for position in positions if _is_complete(position, state, prefix)]
    if not complete and not (after_stages and f"{prefix}layer1.0.conv1.weight" in state):
        return  # the weights of something else
    inexact = f"{type(module).__name__}: weights of a plain ResNet, whose function the first step does not compute: "
    if after_stages:
        print_log(
            f"{inexact}the new layer {after_stages[0]} has no values that keep it", "current", level=logging.WARNING
        )
    try:
        undo_attention(complete, state, prefix)
    except ValueError as error:
        print_log(f"{inexact}{one_line(error)}", "current", level=logging.WARNING)
        return
    if complete and not after_stages:
        missing = f", {len(positions) - len(complete)} blocks with attention have no weights" * (complete != positions)
        print_log(
            f"{type(module).__name__}: weights of a plain ResNet; the {len(complete)} new attention layers start "
            f"without changing its function{missing}",
            "current",
        )


def _is_complete(position: PluginPosition, state: Mapping[str, Any], prefix: str) -> bool:
    names = weights_before(position)
    if not isinstance(getattr(position.block, position.norm_name), _BatchNorm):
        names = names[:1]  # there is no exact start, which undo_attention says
    missing = [f"{prefix}{name}" for name in names if f"{prefix}{name}" not in state]
    if missing and len(missing) < len(names):
        raise RuntimeError(
            f"weights without attention hold a part of {prefix}{position.prefix}{position.conv_name} and its norm, and "
            f"lack {listed(missing)}: the exact start needs all of them"
        )
    own = getattr(position.block, position.conv_name).weight
    if not missing and own.dim() != 4:
        raise RuntimeError(
            f"{prefix}{position.prefix}{position.conv_name} is sharded, and weights of a plain ResNet cannot start "
            "attention after that: load them before, by the backbone's init_cfg=dict(type='Pretrained', ...)"
        )
    # Of another network: PyTorch or MMEngine names what does not fit.
    return not missing and state[f"{prefix}{names[0]}"].shape == own.shape
