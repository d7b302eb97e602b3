"""Checks of the backbones' options, for mistakes that would be found late or not at all."""

import math
from collections.abc import Sequence
from typing import TypeVar

from sa_mmdet.attention.shuffle_attention import fitting_groups

T = TypeVar("T")


def one_per_stage(option: str, entries: Sequence[T], num_stages: int) -> list[T]:
    """The entries as a list, or a ValueError if there is not one for each stage."""
    if len(entries) != num_stages:
        raise ValueError(
            f"{option}={entries} has {len(entries)} entries, but num_stages={num_stages}: give one per stage"
        )
    return list(entries)


def check_groups(groups: int, channels: Sequence[int]) -> None:
    """Raise a ValueError unless the groups of shuffle attention fit the channels of all stages that have it."""
    fitting = fitting_groups(math.gcd(*channels)) if channels else [groups]
    if groups not in fitting:
        raise ValueError(
            f"groups={groups} does not fit stages of {', '.join(map(str, channels))} channels: 2 * groups must divide "
            f"each; values that fit: {', '.join(map(str, fitting)) or 'none'}"
        )


def check_duplicates(plugins: Sequence[dict], num_stages: int) -> None:
    """Raise a ValueError if two plugins of a block would have the same name."""
    seen = set()
    for plugin in plugins:
        stages = plugin.get("stages") or (True,) * num_stages
        for stage in (i for i, attends in enumerate(stages) if attends):
            kind, position = str(plugin["cfg"]["type"]), plugin["position"]
            key = (stage, position, kind, plugin["cfg"].get("postfix", ""))
            if key in seen:
                raise ValueError(
                    f"duplicate plugin {kind} at {position!r} of stage {stage + 1}, perhaps the backbone's own "
                    "attention: remove one, or give one a postfix"
                )
            seen.add(key)
