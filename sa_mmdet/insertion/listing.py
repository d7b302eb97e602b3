"""The places of a network that take attention, with what stands there."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from .outputs import channels_without_running, run_once

_SIDE = 128  # pixels
_LARGER = 512  # for networks that need it
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Listed:
    """Places that are alike.

    Attributes:
        pattern: Their names, with '*' where they differ.
        count: How many there are.
        kind: The type of the modules there.
        channels: The channels of their maps.
        stride: How many pixels of the image are one position of the map, rounded; None if that is not known.
    """

    pattern: str
    count: int
    kind: str
    channels: int
    stride: int | None


def list_places(network: nn.Module) -> list[Listed]:
    """Find the modules that return one feature map: stages, blocks and convolutions, but not what is inside of a block.

    Args:
        network: A backbone that takes images, or a detector.
    """
    names = [name for name, _ in network.named_modules() if name]
    side = _SIDE
    found, failure = run_once(network, names, sides=[side])
    if failure is not None and not any(output.channels for output in found.values()):
        side = _LARGER
        found, _ = run_once(network, names, sides=[side])
    places = []
    for name in _outside_of_blocks(network, names, {name for name, output in found.items() if output.channels}):
        module, output = network.get_submodule(name), found.get(name)
        channels = (output.channels if output else None) or channels_without_running(module)
        if channels is not None:
            stride = round(side / output.size[0]) if output and output.size else None
            places.append(Listed(name, 1, type(module).__name__, channels, stride))
    return _alike(places)


def _outside_of_blocks(network: nn.Module, names: list[str], maps: set[str]) -> Iterator[str]:
    blocks: list[str] = []
    for name in names:
        module = network.get_submodule(name)
        if any(name.startswith(block) for block in blocks):
            continue
        whole = name in maps or channels_without_running(module) is not None
        if whole and not isinstance(module, _LISTS):
            blocks.append(f"{name}.")
        parent = network.get_submodule(name.rpartition(".")[0])
        if any(True for _ in module.parameters()) or isinstance(parent, _LISTS):
            yield name


def _alike(places: list[Listed]) -> list[Listed]:
    """Put places in one line whose names differ only in the numbers at their ends."""
    lines: dict[tuple, list[Listed]] = {}
    for place in places:
        stem = re.sub(r"\.\d+$", ".*", place.pattern)
        lines.setdefault((stem, place.kind, place.channels, place.stride), []).append(place)
    return [Listed(_name(stem, group, places), len(group), *rest) for (stem, *rest), group in lines.items()]


def _name(stem: str, group: list[Listed], places: list[Listed]) -> str:
    """What a line is called: a pattern that matches its places alone, or the first and the last of them."""
    first, last = group[0].pattern, group[-1].pattern
    if len(group) == 1:
        return first
    return stem if _is_all(stem, group, places) else f"{first} to {last.rpartition('.')[2]}"


def _is_all(stem: str, group: list[Listed], places: list[Listed]) -> bool:
    begin = stem.removesuffix("*")
    return len(group) == sum(re.fullmatch(re.escape(begin) + r"\d+", place.pattern) is not None for place in places)
