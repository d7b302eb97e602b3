"""Attention layers for places of a network: with options that fit, and as the identity where that is asked for."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.cnn import build_plugin_layer
from mmengine.registry import MODELS
from torch import nn

from sa_mmdet.attention import Attention, ExactStart

AUTO = "auto"
_TOLERANCE = 1e-5
_MANY = 64  # channels, any number that has fitting options


@dataclass(frozen=True)
class Layer:
    """A layer of attention that has not been put into a network yet.

    Attributes:
        abbreviation: What mmcv calls it, such as 'sa'.
        module: The layer.
        scale: What its output is multiplied by, so that it is its input at the start; None if nothing is needed.
    """

    abbreviation: str
    module: nn.Module
    scale: float | None


def build(cfg: Mapping[str, Any], channels: int, exact: bool) -> Layer:
    """Build the layer of a config for a number of channels.

    Args:
        cfg: The config of a plugin layer. 'auto' for ``groups`` or ``ratio`` is the largest value that fits up to the
            default; a value of ``in_channels`` stands for ``channels``.
        channels: The channels of the feature map.
        exact: Whether the layer starts as the identity, times :attr:`Layer.scale`.

    Raises:
        ValueError: The options do not fit, the type is unknown, or the layer cannot start as the identity.
    """
    options = dict(cfg)
    kind = kind_of(options)
    options = {**options, **_chosen(kind, options, channels)}
    options.setdefault("in_channels", channels)
    if options["in_channels"] != channels:
        raise ValueError(
            f"in_channels={options['in_channels']} does not fit a map of {channels} channels: leave it out"
        )
    if exact and issubclass(kind, Attention):
        options = {**kind.keeping_channels, **options}
    try:
        abbreviation, module = build_plugin_layer(options)
    except TypeError as error:
        raise ValueError(f"{kind.__name__} cannot be built: {error}") from error
    return Layer(abbreviation, module, _start(kind, module, channels) if exact else None)


def with_fitting_options(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a layer with 'auto' for the options that must fit the channels and that it does not give.

    Raises:
        ValueError: As :func:`kind_of` raises it.
    """
    kind = kind_of(cfg)
    names = kind.fitting_options(_MANY) if issubclass(kind, Attention) else {}
    return {**cfg, **{name: AUTO for name in names if name not in cfg}}


def kind_of(cfg: Mapping[str, Any]) -> type[nn.Module]:
    """The class of a layer's config.

    Raises:
        ValueError: It has no type, or one that is not registered.
    """
    if not isinstance(cfg, Mapping) or "type" not in cfg:
        raise ValueError(f"{cfg!r} is not the config of a layer: write such as dict(type='ShuffleAttention')")
    kind: Any = cfg["type"]
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"type={cfg['type']!r} is not a registered layer")
    return kind


def _chosen(kind: type[nn.Module], options: Mapping[str, Any], channels: int) -> dict[str, int]:
    """The values of the options that are 'auto'."""
    fitting = kind.fitting_options(channels) if issubclass(kind, Attention) else {}
    chosen = {}
    for name in (name for name, value in options.items() if value == AUTO and name in ("groups", "ratio")):
        if name not in fitting:
            raise ValueError(f"{kind.__name__} does not choose {name} itself: give a number instead of {AUTO!r}")
        limit = inspect.signature(kind).parameters[name].default
        values = [value for value in fitting[name] if value <= limit]
        if not values:
            raise ValueError(f"no value of {name} fits {channels} channels of {kind.__name__}: leave this place out")
        chosen[name] = max(values)
    return chosen


def _start(kind: type[nn.Module], module: nn.Module, channels: int) -> float | None:
    """Start a layer so that it only scales its input, and return what undoes the scale."""
    way_out = "choose another layer, or exact=False for the layer's own start"
    if isinstance(module, ExactStart):
        origin, gate = module.start_exactly()
        if not origin.is_meta and origin.tolist() != list(range(channels)):
            raise ValueError(f"{kind.__name__} moves channels with these options, and is not the identity: {way_out}")
        return None if gate == 1 else 1 / gate
    if not _is_identity(module, channels):
        raise ValueError(f"{kind.__name__} cannot start as the identity: {way_out}")
    return None


def _is_identity(module: nn.Module, channels: int) -> bool:
    """Whether a layer, such as mmcv's ContextBlock, returns its input as it is built."""
    first = next(module.parameters(), torch.zeros(()))
    if first.is_meta:
        return False
    mode = module.training
    x = torch.linspace(-2, 2, 2 * channels * 9, dtype=first.dtype, device=first.device).sin().view(2, channels, 3, 3)
    with torch.no_grad():
        same = torch.allclose(module.eval()(x), x, rtol=0, atol=_TOLERANCE)
    module.train(mode)
    return same
