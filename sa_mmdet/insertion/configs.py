"""The config of a detector with attention in its parts, from its config without."""

from collections.abc import Mapping, Sequence
from typing import Any

from .with_attention import Layers, with_attention

_PARTS = ("backbone", "neck", "detector")  # and all whose names end as heads' do
_TYPE = "WithAttention"


def changes(model: Mapping[str, Any], attention: Layers, replace: Layers, exact: bool = True) -> dict[str, Any]:
    """What has to change in a detector's config, so that its parts are built with attention.

    A part's other options stay where they are, for configs that inherit from it and for what reads them.

    Args:
        model: The detector's config.
        attention: For places of the detector, such as 'backbone.layer*', the config of the layer that goes behind.
        replace: For places of the detector, the config of the layer that goes there instead.
        exact: See :func:`sa_mmdet.insertion.insert`.

    Returns:
        A config to be merged into the detector's. A list, which configs cannot merge, is there as a whole.

    Raises:
        ValueError: A part has attention already.
    """
    changed: dict[str, Any] = {}
    for option, layers in (("attention", attention), ("replace", replace)):
        for place, layer in layers.items():
            path, inside = _part(model, place.split("."))
            part = _at(model, path)
            _check(part, path)
            new = dict(type=_TYPE, module=part["type"], **({} if exact else {"exact": False}))
            entry = _entry(changed, model, path)
            entry.update({**new, option: {**entry.get(option, {}), inside: layer}})
    return changed


def merged(cfg: Any, changed: Any) -> Any:
    """A config with changes, as a config that inherits from it has them."""
    if not (isinstance(cfg, Mapping) and isinstance(changed, Mapping)):
        return changed
    return {**cfg, **{key: merged(cfg.get(key), value) for key, value in changed.items()}}


def _part(model: Mapping[str, Any], names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The path of the innermost part that a config builds on the way to a place, and the place in it."""
    part: Any = model
    depth = 0
    while True:
        name = names[depth]
        steps = 0
        inner = part.get(name) if name in _PARTS or name.endswith("_head") else None
        if isinstance(inner, list | tuple) and len(names) > depth + 2 and names[depth + 1].isdigit():
            index = int(names[depth + 1])
            inner, steps = (inner[index] if index < len(inner) else None), 1
        if not isinstance(inner, Mapping) or "type" not in inner or len(names) <= depth + steps + 1:
            return tuple(names[:depth]), ".".join(names[depth:])
        part, depth = inner, depth + steps + 1


def _at(cfg: Any, path: Sequence[str]) -> Any:
    for name in path:
        cfg = cfg[int(name)] if isinstance(cfg, list | tuple) else cfg[name]
    return cfg


def _check(part: Mapping[str, Any], path: Sequence[str]) -> None:
    where = f"model.{'.'.join(path)}" if path else "model"
    if part["type"] in (_TYPE, with_attention):
        raise ValueError(
            f"{where} has attention already, at {', '.join([*part.get('attention', {}), *part.get('replace', {})])}: "
            "start from its config without, or add the place there"
        )
    if "attention" in part:
        raise ValueError(f"{where}, of type {part['type']}, has an option attention of its own: change that")


def _entry(changed: dict[str, Any], model: Any, path: Sequence[str]) -> dict[str, Any]:
    """The changes of a part, which are put at its path."""
    entry: Any = changed
    for name in path:
        model = model[int(name)] if isinstance(model, list | tuple) else model[name]
        if isinstance(entry, list):
            entry = entry[int(name)]
        else:
            new = [dict(item) for item in model] if isinstance(model, list | tuple) else {}
            entry = entry.setdefault(name, new)
    return entry
