"""This package's names in MMEngine's and MMDetection's registries: in its own scope, and alone where they are free.

``type='sa_mmdet.CBAM'`` is this package's class in any case. ``type='CBAM'`` is, too, unless other code registers that
name, be it before or after this package is imported: then it is theirs, and a warning says so once.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from mmdet import registry as mmdet
from mmengine import registry as mmengine
from mmengine.logging import print_log
from mmengine.registry import Registry

SCOPE = "sa_mmdet"

MODELS = Registry("model", parent=mmengine.MODELS, scope=SCOPE, locations=[SCOPE])
HOOKS = Registry("hook", parent=mmengine.HOOKS, scope=SCOPE, locations=[SCOPE])
WEIGHT_INITIALIZERS = Registry(
    "weight initializer", parent=mmengine.WEIGHT_INITIALIZERS, scope=SCOPE, locations=[SCOPE]
)

_OWN = (MODELS, HOOKS, WEIGHT_INITIALIZERS)
# Where the same names are looked up without a scope.
_SHARED = {
    MODELS.name: (mmengine.MODELS, mmdet.MODELS),
    HOOKS.name: (mmengine.HOOKS, mmdet.HOOKS),
    WEIGHT_INITIALIZERS.name: (mmengine.WEIGHT_INITIALIZERS, mmdet.WEIGHT_INITIALIZERS),
}

Kind = TypeVar("Kind", bound=Callable[..., Any])


def register(registry: Registry, *names: str) -> Callable[[Kind], Kind]:
    """A decorator that registers a class, or a function that builds a module, of this package.

    Args:
        registry: One of MMEngine's or MMDetection's, from which configs build the class without a scope.
        names: The names in configs; none for the name of the class.
    """
    own = next(own for own in _OWN if own.name == registry.name)

    def decorate(kind: Kind) -> Kind:
        for name in names or (kind.__name__,):
            own.register_module(name=name, module=kind)
            takers = [shared.module_dict[name] for shared in _SHARED[own.name] if name in shared.module_dict]
            if takers:
                _say(name, takers[-1])
            else:
                registry.register_module(name=name, module=kind)
        return kind

    return decorate


def name_of(kind: type) -> str:
    """The name by which configs get a registered class: with this package's scope where the name alone is another's."""
    for own in _OWN:
        for name, registered in own.module_dict.items():
            if registered is kind:
                alone = any(shared.module_dict.get(name) is kind for shared in _SHARED[own.name])
                return name if alone else f"{SCOPE}.{name}"
    return kind.__name__


def _say(name: str, taker: Any) -> None:
    path = f"{getattr(taker, '__module__', '?')}.{getattr(taker, '__qualname__', name)}"
    print_log(
        f"type={name!r} builds {path}, which is registered under that name; that of {SCOPE} is type='{SCOPE}.{name}'",
        logger="current",
        level=logging.WARNING,
    )


def _give_way(own: Registry, registry: Registry) -> None:
    """Let others register this package's names in a registry, which MMEngine refuses with a KeyError."""
    register_module = registry._register_module

    @functools.wraps(register_module)
    def registering(module: Any, module_name: Any = None, force: bool = False) -> None:
        names = [module_name] if isinstance(module_name, str) else module_name or [getattr(module, "__name__", "")]
        for name in names:
            ours = own.module_dict.get(name)
            if ours is not None and ours is not module:
                for shared in _SHARED[own.name]:
                    if shared.module_dict.get(name) is ours:
                        del shared.module_dict[name]
                _say(name, module)
        register_module(module=module, module_name=module_name, force=force)

    registry._register_module = registering


for _own in _OWN:
    for _registry in _SHARED[_own.name]:
        _give_way(_own, _registry)
