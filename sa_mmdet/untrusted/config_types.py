"""Whether a config that came with a file may be built: MMEngine would import and call whatever its types name."""

import builtins
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry, root
from torch import nn

from sa_mmdet.messages import short

from .errors import RefusedFileError

# Names of types that no registry has: mmcv evaluates them as names of its functions.
_FUNCTIONS = {"nms", "soft_nms", "nms_match", "nms_quadri", "nms_rotated"}
# The entries of a config that inference and the report build, and the registries from which their parts come.
_BUILT = {"model", "test_dataloader", "visualizer"}
_PARTS = {
    "model",
    "dataset",
    "transform",
    "function",
    "task util",
    "data sampler",
    "visualizer",
    "weight initializer",
}


def check_buildable(cfg: Config, source: object) -> None:
    """Refuse a config that would import or call something that is not registered.

    MMEngine takes a type that no registry has for the path of any object, such as ``os.system``, and calls it with
    the other entries; mmcv evaluates the type of a non-maximum suppression as Python.

    Args:
        cfg: Read by :func:`sa_mmdet.untrusted.literal_config`.
        source: Where it is from, which errors name.

    Raises:
        RefusedFileError: It has such a type, or asks for the import of a module that is not imported yet.
    """
    _check_imports(cfg.get("custom_imports"), source)
    registered: _Registered | None = None
    for part, key, value in _settings(cfg.to_dict()):
        if key in ("_scope_", "default_scope") and value is not None and not _is_scope(value):
            raise RefusedFileError(
                f"{source}: its config names the scope {short(value)}, which is not a package of OpenMMLab"
            )
        if key != "type":
            continue
        if registered is None:
            registered = _Registered()
        if not isinstance(value, str) or not (
            value in registered.names
            or value in _FUNCTIONS
            or registered.has(value, part in _BUILT)
            or _is_layer(value)
            or _means_nothing(value)
        ):
            raise RefusedFileError(
                f"{source}: its config has the type {short(value)}, which is not registered and was not called: import "
                "the module that registers it, or give the config file"
            )


class _Registered:
    """All that is registered when this is made."""

    def __init__(self) -> None:
        self.names: set[str] = set()  # by which configs call them
        self._objects: dict[int, Any] = {}
        self._parts: dict[int, Any] = {}
        for registry in _registries():
            if registry is not root:
                registry.import_from_location()
            for name, value in list(registry.module_dict.items()):
                self._objects[id(value)] = value
                self.names |= {name, f"{registry.scope}.{name}"}
                if registry.name in _PARTS:
                    self._parts[id(value)] = value

    def has(self, path: str, is_built: bool) -> bool:
        """Whether a dotted path names a registered object.

        Args:
            path: As lazy configs have it; MMEngine then does not ask which registry it is from.
            is_built: Whether the object is one of those that are built, which a runner may not be among.
        """
        return id(_imported(path)) in (self._parts if is_built else self._objects)


def _is_layer(name: str) -> bool:
    """Whether a name is that of a layer of mmcv's operators, such as RoIAlign, which MMDetection looks up there."""
    found = getattr(importlib.import_module("mmcv.ops"), name, None)
    return isinstance(found, type) and issubclass(found, nn.Module)


def _means_nothing(name: str) -> bool:
    """Whether a name is a mere word, which MMEngine cannot import and mmcv cannot evaluate."""
    return (
        name.isidentifier()
        and not hasattr(builtins, name)
        and not hasattr(importlib.import_module("mmcv.ops.nms"), name)
        and name not in sys.modules
        and importlib.util.find_spec(name) is None
    )


def _check_imports(custom: Any, source: object) -> None:
    modules = custom.get("imports") if isinstance(custom, dict) else custom
    for name in modules if isinstance(modules, list | tuple) else [modules]:
        if name is not None and (not isinstance(name, str) or name not in sys.modules):
            raise RefusedFileError(
                f"{source}: its config asks to import {short(name)}, which was not done: import it yourself before, or "
                "give the config file"
            )


def _settings(value: Any, part: str = "") -> Iterator[tuple[str, str, Any]]:
    """All keys and values of dicts, at every level, each with the config's own entry that it belongs to."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield part, key, inner
            yield from _settings(inner, part or str(key))
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from _settings(inner, part)


def _is_scope(value: Any) -> bool:
    return isinstance(value, str) and (
        value == "mmengine" or value in MODULE2PACKAGE or f"{value}.registry" in sys.modules
    )


def _registries() -> Iterator[Registry]:
    module: Any = importlib.import_module("mmengine.registry")
    waiting = [value for value in vars(module).values() if isinstance(value, Registry)]
    while waiting:
        registry = waiting.pop()
        yield registry
        waiting += registry.children.values()


def _imported(path: str) -> Any:
    """The object that a dotted path names among what is imported, None if there is none."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        found = sys.modules.get(".".join(parts[:end]))
        if found is not None:
            for part in parts[end:]:
                found = vars(found).get(part) if hasattr(found, "__dict__") else None
            return found
    return None
