"""Attention in any place of any network that a config builds."""

from collections.abc import Mapping
from typing import Any

from mmdet.registry import MODELS as DETECTION_MODELS
from mmengine.registry import MODELS
from torch import nn

from sa_mmdet.messages import one_line
from sa_mmdet.registry import register

from . import layers
from .classes import derive
from .modules import Attending, HoldingAttention, Insertion, Replacing
from .outputs import Output, argument_of_sizes, channels_without_running, reason, run_once
from .places import Place, places

Layers = Mapping[str, Mapping[str, Any]]


@register(MODELS, "WithAttention")
def with_attention(
    module: str | type,
    attention: Layers | None = None,
    replace: Layers | None = None,
    exact: bool = True,
    **options: Any,
) -> nn.Module:
    """Build a backbone, neck, head or whole detector with attention in it.

    It is an instance of the module's own class, and all its parameters have the names that they have without attention.
    In a config, ``type='WithAttention', module='CSPNeXt'`` takes the place of ``type='CSPNeXt'``.

    Args:
        module: The type of the module, as its config named it.
        attention: See :func:`insert`.
        replace: See :func:`insert`.
        exact: See :func:`insert`.
        **options: The options of the module.

    Returns:
        The module.

    Raises:
        ValueError: As :func:`insert` raises it, or the module has an option ``attention`` of its own.
    """
    if attention is not None and "type" in attention:
        raise ValueError(
            f"attention={dict(attention)!r} is a layer instead of a map from places to layers: write such as "
            f"{{'layer4': dict(...)}}; {module} with an option attention of its own takes the layer itself"
        )
    network = DETECTION_MODELS.build(dict(type=module, **options))
    return insert(network, attention, replace, exact, options.get("in_channels"))


def insert(
    network: nn.Module,
    attention: Layers | None = None,
    replace: Layers | None = None,
    exact: bool = True,
    in_channels: Any = None,
) -> nn.Module:
    """Put attention into a network: behind modules, or in the place of modules.

    What returns N x C x H x W takes attention, and what returns N x L x C tokens if it is told their height and width
    by the argument ``hw_shape``. The channels are those of convolutions and norms, otherwise the network is run once on
    made-up inputs.

    Args:
        network: The network; it is changed.
        attention: For places, the config of the layer that runs behind each module there. A place is a dotted name
            with wildcards, such as 'layer*' or 'stages.*.blocks.-1'; see :func:`sa_mmdet.insertion.places.matching`.
            In a layer, 'auto' for ``groups`` or ``ratio`` is the largest value that fits up to the default;
            a ratio leaves at least 8 hidden channels.
        replace: For places, the config of the layer that stands there instead of the module.
        exact: Whether what is inserted behind modules starts as the identity: its output is divided by the gate that
            it starts with, and its channels are not shuffled. Otherwise it starts as its paper has it, as what
            replaces another layer does in any case.
        in_channels: The channels of the network's inputs, a number or one per level; None if it takes images.

    Returns:
        The network.

    Raises:
        ValueError: A place matches nothing, is not one map, is a module that several places share or already has
            attention, or a layer does not fit it. The network is not changed then.
    """
    if not attention and not replace:
        raise ValueError("no place for attention is given: write such as attention={'layer4': dict(...)}")
    behind, instead = places(network, list(attention or {})), places(network, list(replace or {}))
    _check_apart(behind, instead)
    channels = _channels(network, {**(attention or {}), **(replace or {})}, [*behind, *instead], in_channels)
    new = [(place, _built(place, (attention or {})[place.pattern], channels, exact)) for place in behind]
    other = [(place, _built(place, (replace or {})[place.pattern], channels, exact=False)) for place in instead]
    for place, layer in new:
        attach(place.module, layer, exact)
    for place, layer in other:
        _replace(network, place, layer)
    if not isinstance(network, HoldingAttention):
        derive(network, HoldingAttention)
    return network


def _check_apart(behind: list[Place], instead: list[Place]) -> None:
    for place in behind:
        if isinstance(place.module, Attending):
            raise ValueError(f"{place.name} already has attention behind it: leave it out of {place.pattern!r}")
    gone = {place.name: place for place in instead}
    for place in behind:
        for name in (place.name.rsplit(".", depth)[0] for depth in range(place.name.count(".") + 1)):
            if name in gone:
                raise ValueError(f"{place.name} is in {name}, which is replaced: leave it out of {place.pattern!r}")


def _channels(network: nn.Module, configs: Layers, wanted: list[Place], in_channels: Any) -> dict[str, int]:
    """The channels at places, by their names."""
    found = {place.name: channels_without_running(place.module) for place in wanted}
    unknown = [name for name, channels in found.items() if channels is None]
    outputs: dict[str, Output] = {}
    failure: Exception | None = None
    if unknown:
        outputs, failure = run_once(network, unknown, in_channels)
    for place in wanted:
        if found[place.name] is None:
            found[place.name] = _channels_at(place, configs[place.pattern], outputs.get(place.name), failure)
    return {name: channels for name, channels in found.items() if channels is not None}


def _channels_at(place: Place, cfg: Mapping[str, Any], output: Output | None, failure: Exception | None) -> int:
    kind = type(place.module).__name__
    if output is not None and output.channels is None:
        raise ValueError(
            f"{place.name}, a {kind}, returns {output.text}, not one feature map: name modules in it that return one, "
            "N x C x H x W, or tokens whose height and width they are told"
        )
    given = output.channels if output is not None else cfg.get("in_channels")
    if not isinstance(given, int):
        raise ValueError(
            f"the channels of {place.name}, a {kind}, are not known, since no made-up input reaches it"
            f"{reason(failure)}: give in_channels in its layer"
        )
    return given


def _built(place: Place, cfg: Mapping[str, Any], channels: Mapping[str, int], exact: bool) -> layers.Layer:
    try:
        return layers.build(cfg, channels[place.name], exact)
    except (ValueError, KeyError) as error:
        raise ValueError(f"no attention at {place.name}: {one_line(error)}") from error


def attach(module: nn.Module, layer: layers.Layer, exact: bool, front: bool = False) -> None:
    """Put a layer behind a module, or in front of it.

    Args:
        module: The module, which becomes an :class:`Attending`.
        layer: The layer.
        exact: Whether the layer was built to start as the identity.
        front: Whether it goes in front.
    """
    insertion = Insertion(f"inserted_{layer.abbreviation}", layer.scale, exact, argument_of_sizes(module), front)
    module.add_module(insertion.name, _like(layer.module, module))
    derive(module, Attending).insertion = insertion


def _replace(network: nn.Module, place: Place, layer: layers.Layer) -> None:
    parent, _, key = place.name.rpartition(".")
    network.get_submodule(parent)._modules[key] = derive(_like(layer.module, place.module), Replacing)


def _like(layer: nn.Module, module: nn.Module) -> nn.Module:
    """A layer where a module's weights are, in its mode, and frozen if it is."""
    parameters = list(module.parameters())
    if parameters:
        layer.to(parameters[0].device, parameters[0].dtype)
        layer.requires_grad_(any(parameter.requires_grad for parameter in parameters))
    return layer.train(module.training)
