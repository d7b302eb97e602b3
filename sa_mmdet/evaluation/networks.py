"""Which network a config is of: the names that papers give it, and the settings that their ablations change."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sa_mmdet.attention import attention_types
from sa_mmdet.backbones import attention_label
from sa_mmdet.insertion.configs import merged
from sa_mmdet.untrusted import literal_config

_RESNETS = ("ResNet", "AttentionResNet", "SAResNet")
_ABLATED = ("bias", "gate", "norm", "pool", "ratio", "shuffle", "transform")  # options of attention layers


def backbone_name(backbone: Mapping[str, Any]) -> str:
    """The backbone without its attention, as papers call it, such as 'ResNet-50'; others by their class.

    Args:
        backbone: Its config.
    """
    kind = _class(backbone)
    return ("ResNet" if kind in _RESNETS else kind) + (f"-{backbone['depth']}" if "depth" in backbone else "")


def attention_name(backbone: Mapping[str, Any]) -> str:
    """The attention, as papers call it; 'none' for the plain network.

    Args:
        backbone: Its config.
    """
    labels = attention_label(backbone).split("+")
    return "+".join(label for label in labels if label != _class(backbone)) or "none"


def ablated(backbone: Mapping[str, Any]) -> dict[str, object]:
    """The settings of a backbone's attention that papers' ablations are about, where they are not the defaults.

    Args:
        backbone: Its config.

    Returns:
        Options of the attention layers, or 'layers' where these differ; and 'placement', 'stages' and 'places' where
        they are not the usual ones.
    """
    found: dict[str, object] = {}
    inserted = {**_mapping(backbone.get("attention")), **_mapping(backbone.get("replace"))}
    layers: list[Any] = list(inserted.values())
    stages: list[bool] = []
    if "module" in backbone:
        found["places"] = tuple(inserted)
    else:
        layers = _listed(backbone.get("attention"))
        flags = _listed(backbone.get("stage_with_attention")) or [True] * len(layers)
        stages = [bool(flag) for flag in flags]
        if len(layers) > 1:
            stages = [flag and layer is not None for flag, layer in zip(stages, layers, strict=False)]
    plugins = [_mapping(plugin).get("cfg") for plugin in _listed(backbone.get("plugins"))]
    every = [layer for layer in (*layers, *plugins, backbone.get("stage_attention")) if isinstance(layer, Mapping)]
    changed = [dict(_changed(layer)) for layer in every]
    if any(one != changed[0] for one in changed):
        found["layers"] = changed
    elif changed:
        found |= changed[0]
    if not all(stages):
        found["stages"] = tuple(stages)
    if backbone.get("placement", "standard") != "standard":
        found["placement"] = backbone["placement"]
    return found


def own_model(path: Path) -> dict[str, Any]:
    """The model of one of this package's configs, without what the bases of other packages say about it.

    Args:
        path: The config, and the bases in this package, of literals alone.
    """
    cfg = literal_config(path.read_text(encoding="utf-8"), path)
    model: dict[str, Any] = {}
    for base in cfg.get("_base_", []):
        if "::" not in base:
            model = merged(model, own_model(path.parent / base))
    return merged(model, cfg.get("model", {}))


def _class(backbone: Mapping[str, Any]) -> str:
    return str(backbone.get("module", backbone["type"])).rpartition(".")[2]  # what attention was inserted into


def _changed(layer: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    kind = attention_types().get(str(layer.get("type")).rpartition(".")[2])
    options = inspect.signature(kind).parameters if kind else {}
    for name in _ABLATED:
        if name in options and layer.get(name, options[name].default) != options[name].default:
            yield name, layer[name]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
