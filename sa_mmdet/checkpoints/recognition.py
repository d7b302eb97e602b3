"""A backbone's config, recognised by the names and shapes of its weights."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .resnet_names import DEPTHS, blocks_of

ATTENTIONS = ("none", "sa", "se", "eca", "sge", "cbam", "bam")


def recognise(state: Mapping[str, Tensor], path: str | Path) -> tuple[str, dict[str, Any]]:
    """Find out which backbone a state dict belongs to.

    Args:
        state: Under MMDetection's names, without prefix.
        path: The file, which errors name.

    Returns:
        The attention, one of :data:`ATTENTIONS`, and the backbone's config.

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
    if "stem.0.weight" in state:
        shape["deep_stem"] = True
    if "layer1.0.downsample.2.weight" in state or "layer2.0.downsample.2.weight" in state:
        shape["avg_down"] = True
    found = _attentions_by_stage(state)
    if len(found) > 1:
        raise ValueError(f"{path}: holds several kinds of attention, which no released ResNet has: {', '.join(found)}")
    if not found:
        return "none", dict(type="ResNet", **shape)
    [(name, stages)] = found.items()
    shapes = _Shapes(state, path)
    if name == "bam":
        return name, dict(type="AttentionResNet", **shape, stage_attention=dict(type="BAM", **_bam(shapes, 1)))
    each = [_OPTIONS[name](shapes, stage) if stage in stages else None for stage in range(1, 5)]
    first = next(options for options in each if options is not None)
    flags = {} if len(stages) == 4 else dict(stage_with_attention=tuple(stage in stages for stage in range(1, 5)))
    if name == "sa":
        return name, dict(type="SAResNet", **shape, **first, **flags)
    layer = dict(type=_TYPES[name])
    if all(options in (None, first) for options in each):
        return name, dict(type="AttentionResNet", **shape, attention={**layer, **first}, **flags)
    layers = [None if options is None else {**layer, **options} for options in each]
    return name, dict(type="AttentionResNet", **shape, attention=layers)


def _attentions_by_stage(state: Mapping[str, Tensor]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for key in state:
        match = re.match(r"layer(\d)\.(?:\d+\.(sa|se|eca|sge|cbam)\.|(bam)\.)", key)
        if match:
            found.setdefault(match.group(2) or match.group(3), set()).add(int(match.group(1)))
    return found


class _Shapes:
    """Sizes in a state dict."""

    def __init__(self, state: Mapping[str, Tensor], path: str | Path):
        self.state, self.path = state, path

    def __call__(self, key: str, axis: int) -> int:
        if key not in self.state:
            raise ValueError(f"{self.path}: {key} is missing")
        shape = tuple(self.state[key].shape)
        if len(shape) <= axis or shape[axis] < 1:
            raise ValueError(f"{self.path}: {key} of shape {shape} has no axis {axis} of at least one element")
        return shape[axis]

    def channels(self, stage: int) -> int:
        """The output channels of a stage's blocks."""
        last = "conv3" if f"layer{stage}.0.conv3.weight" in self.state else "conv2"
        return self(f"layer{stage}.0.{last}.weight", 0)

    def ratio(self, stage: int, hidden: str) -> int:
        return max(1, self.channels(stage) // self(hidden, 0))


def _sa(shapes: _Shapes, stage: int) -> dict[str, Any]:
    return dict(groups=max(1, shapes.channels(stage) // (2 * shapes(f"layer{stage}.0.sa.cweight", 1))))


def _se(shapes: _Shapes, stage: int) -> dict[str, Any]:
    bias = f"layer{stage}.0.se.fc.0.bias" in shapes.state
    return dict(ratio=shapes.ratio(stage, f"layer{stage}.0.se.fc.0.weight"), bias=bias)


def _eca(shapes: _Shapes, stage: int) -> dict[str, Any]:
    return dict(kernel_size=shapes(f"layer{stage}.0.eca.conv.weight", 2))


def _sge(shapes: _Shapes, stage: int) -> dict[str, Any]:
    return dict(groups=shapes(f"layer{stage}.0.sge.weight", 1))


def _cbam(shapes: _Shapes, stage: int) -> dict[str, Any]:
    prefix = f"layer{stage}.0.cbam."
    ratio = shapes.ratio(stage, f"{prefix}ChannelGate.mlp.1.weight")
    return dict(ratio=ratio, kernel_size=shapes(f"{prefix}SpatialGate.spatial.conv.weight", 2))


def _bam(shapes: _Shapes, stage: int) -> dict[str, Any]:
    return dict(ratio=shapes.ratio(stage, f"layer{stage}.bam.channel_att.gate_c.gate_c_fc_0.weight"))


_OPTIONS: dict[str, Callable[[_Shapes, int], dict[str, Any]]] = dict(sa=_sa, se=_se, eca=_eca, sge=_sge, cbam=_cbam)
_TYPES = dict(se="SqueezeExcitation", eca="EfficientChannelAttention", sge="SpatialGroupEnhance", cbam="CBAM")
