"""A backbone's config, recognised by the names and shapes of its weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sa_mmdet.attention import Attention, LayerShapes, ShuffleAttention
from sa_mmdet.registry import name_of

from .resnet_names import DEPTHS, attention_by_abbreviation, blocks_of

_CHANNELS = 64  # of a ResNet's first layers, unless its config says otherwise


def recognise(state: Mapping[str, Tensor], path: str | Path) -> tuple[str, dict[str, Any]]:
    """Find out which backbone a state dict belongs to.

    Args:
        state: Under MMDetection's names, without prefix.
        path: The file, which errors name.

    Returns:
        The attention, one of :func:`known_attention`, and the backbone's config.

    Raises:
        ValueError: It is not a known ResNet, holds several kinds of attention, or its shapes do not tell its options.
    """
    bottleneck, counts = blocks_of(state)
    depth = DEPTHS.get((bottleneck, counts))
    if depth is None:
        raise ValueError(
            f"{path}: stages of {counts} {'bottlenecks' if bottleneck else 'basic blocks'} are not those of a known "
            f"ResNet ({', '.join(map(str, DEPTHS.values()))}): perhaps some of the keys are missing"
        )
    shape: dict[str, Any] = dict(depth=depth)
    deep = "stem.0.weight" in state
    stem = state.get("stem.6.weight" if deep else "conv1.weight")
    if stem is not None and stem.dim() == 4 and stem.shape[0] != _CHANNELS:
        shape["base_channels"] = stem.shape[0]
    if deep:
        shape["deep_stem"] = True
    if "layer1.0.downsample.2.weight" in state or "layer2.0.downsample.2.weight" in state:
        shape["avg_down"] = True
    found = _attention_by_stage(state)
    if len(found) > 1:
        raise ValueError(f"{path}: holds several kinds of attention, which no released ResNet has: {', '.join(found)}")
    if not found:
        return "none", dict(type="ResNet", **shape)
    [(name, stages)] = found.items()
    kind = attention_by_abbreviation()[name]
    try:
        options = [kind.options_of(_layer(state, kind, stage)) if stage in stages else None for stage in range(1, 5)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    first = next(option for option in options if option is not None)
    layer = dict(type=name_of(kind))
    if kind.after_stages:
        return name, dict(type="AttentionResNet", **shape, stage_attention={**layer, **first})
    flags = {} if len(stages) == 4 else dict(stage_with_attention=tuple(stage in stages for stage in range(1, 5)))
    if kind is ShuffleAttention:
        return name, dict(type="SAResNet", **shape, **first, **flags)
    if all(option in (None, first) for option in options):
        return name, dict(type="AttentionResNet", **shape, attention={**layer, **first}, **flags)
    layers = [None if option is None else {**layer, **option} for option in options]
    return name, dict(type="AttentionResNet", **shape, attention=layers)


def known_attention() -> tuple[str, ...]:
    """The abbreviations of the kinds of attention that are recognised, and 'none' for a plain ResNet."""
    return ("none", *attention_by_abbreviation())


def _attention_by_stage(state: Mapping[str, Tensor]) -> dict[str, set[int]]:
    """The stages (1 to 4) that have each kind of attention, by its abbreviation."""
    found: dict[str, set[int]] = {}
    for name, kind in attention_by_abbreviation().items():
        pattern = re.compile(rf"layer(\d)\.{'' if kind.after_stages else '[0-9]+[.]'}{re.escape(name)}\.")
        stages = {int(match.group(1)) for key in state if (match := pattern.match(key))}
        if stages:
            found[name] = stages
    return found


def _layer(state: Mapping[str, Tensor], kind: type[Attention], stage: int) -> LayerShapes:
    """The first layer of attention of a stage."""
    prefix = f"layer{stage}.{kind._abbr_}." if kind.after_stages else f"layer{stage}.0.{kind._abbr_}."
    last = "conv3" if f"layer{stage}.0.conv3.weight" in state else "conv2"
    channels = LayerShapes("", 0, _shapes(state)).size(f"layer{stage}.0.{last}.weight", 0)
    return LayerShapes(prefix, channels, _shapes(state, prefix))


def _shapes(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(prefix): tuple(value.shape) for key, value in state.items() if key.startswith(prefix)}
