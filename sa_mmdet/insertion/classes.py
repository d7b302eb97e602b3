"""Modules that run more than their class does, as instances of subclasses that are made for them.

A forward hook would not do: a deep copy, as moving averages make, keeps the hook of the module that was copied.
"""

from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound="Derived")

_made: dict[tuple[type, type], type] = {}  # each class once, by what it extends and by what


class Derived(nn.Module):
    """A base of classes that are put before a module's own; copies and pickles make such classes again."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        return (_empty, _parts(type(self)), *reduced[2:])


def derive(module: nn.Module, extension: type[M]) -> M:
    """Put a class before a module's own.

    Args:
        module: The module, which stays the same object with the same name of its class.
        extension: The class.
    """
    module.__class__ = _subclass(extension, type(module))
    assert isinstance(module, extension)
    return module


def _subclass(extension: type, kind: type) -> Any:
    if (extension, kind) not in _made:
        named = {"__module__": kind.__module__, "__doc__": kind.__doc__}
        _made[extension, kind] = type(kind.__name__, (extension, kind), named)
    return _made[extension, kind]


def _parts(kind: type) -> tuple[type, ...]:
    """The class that a module had at first, and what was put before it, in that order."""
    extensions: list[type] = []
    while issubclass(kind, Derived):
        extension, kind = kind.__bases__
        extensions.insert(0, extension)
    return (kind, *extensions)


def _empty(kind: Any, *extensions: type) -> Any:
    for extension in extensions:
        kind = _subclass(extension, kind)
    return kind.__new__(kind)
