"""Places of a network: dotted names of its modules, with wildcards."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from sa_mmdet.messages import listed

_FROM_THE_END = re.compile(r"-\d+")


@dataclass(frozen=True)
class Place:
    """A module of a network that a pattern names.

    Attributes:
        pattern: The pattern, such as 'layer*'.
        name: The module's dotted name.
        module: The module.
    """

    pattern: str
    name: str
    module: nn.Module


def matching(root: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    """The modules whose dotted names match a pattern.

    Args:
        root: The network.
        pattern: Names joined by dots. In each name ``*``, ``?`` and ``[...]`` stand for what they do in file names; a
            negative number counts a list's modules from its end.

    Raises:
        ValueError: Nothing matches; the error gives the nearest names.
    """
    found: list[tuple[str, nn.Module]] = [("", root)]
    for position, part in enumerate(str(pattern).split(".")):
        children = [(name, child) for name, module in found for child in _children(name, module)]
        inner = [(name, module) for parent, (name, module) in children if _fits(part, name, parent, children)]
        if not inner:
            raise ValueError(_nothing(root, pattern, position, [name for _, (name, _) in children]))
        found = inner
    return found


def _children(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for key, child in module.named_children():
        yield f"{name}.{key}" if name else key, child


def _fits(part: str, name: str, parent: str, children: list[tuple[str, tuple[str, nn.Module]]]) -> bool:
    if not _FROM_THE_END.fullmatch(part):
        return fnmatchcase(name.rpartition(".")[2], part)
    siblings = [child for other, (child, _) in children if other == parent]
    return len(siblings) >= -int(part) > 0 and siblings[int(part)] == name


def _nothing(root: nn.Module, pattern: str, position: int, names: list[str]) -> str:
    where = ".".join(str(pattern).split(".")[:position])
    wanted = str(pattern).split(".")[position]
    last = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    near = difflib.get_close_matches(wanted, last, n=4, cutoff=0.3) or last
    inside = f"{type(root).__name__}{f' at {where!r}' if where else ''}"
    has = f"{'has ' + listed(near, 8)} there" if near else "has no modules there"
    return f"no module of {type(root).__name__} matches {pattern!r}: {inside} {has}"


def places(root: nn.Module, patterns: list[str]) -> list[Place]:
    """The modules behind which attention goes, one for each name that a pattern matches.

    Behind a Sequential is behind its last module, which a network that iterates over it runs, too.

    Args:
        root: The network.
        patterns: See :func:`matching`.

    Raises:
        ValueError: A pattern matches nothing or a list of modules; two patterns name one module; or a module has
            several names in the network.
    """
    found: dict[int, Place] = {}
    names = _all_names(root)
    for pattern in patterns:
        for outer, given in matching(root, pattern):
            name, module = _last(outer, given)
            if isinstance(module, nn.ModuleList | nn.ModuleDict):
                raise ValueError(f"{name} is a list of {len(module)} modules, not a layer: write '{pattern}.*'")
            if len(names[id(module)]) > 1:
                raise ValueError(
                    f"{listed(names[id(module)])} are one module, which the network shares: attention behind one would "
                    "be behind all; name a module around it"
                )
            if id(module) in found:
                raise ValueError(
                    f"{found[id(module)].pattern!r} and {pattern!r} both name {name}: leave it out of one of them"
                )
            found[id(module)] = Place(pattern, name, module)
    return list(found.values())


def _last(name: str, module: nn.Module) -> tuple[str, nn.Module]:
    while type(module).forward is nn.Sequential.forward and len(module._modules):
        key, inner = list(module.named_children())[-1]
        name, module = f"{name}.{key}", inner
    return name, module


def _all_names(root: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return names
