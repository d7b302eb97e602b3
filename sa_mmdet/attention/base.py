"""What the attention modules have in common."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

_MOST_CHANNELS = 2**16  # beyond what any network has, and below what takes a machine's memory


class Attention(nn.Module):
    """A plugin layer that gates its input, N x C x H x W in and out.

    Subclasses set ``_abbr_``, the name under which OpenMMLab's blocks hold the layer; together with the parameters'
    own names it makes those of the released weights.
    """

    _abbr_: str

    def start_exactly(self) -> tuple[Tensor, float]:
        """Set the values at which the module only scales and moves channels, whatever the input.

        Returns:
            The channel to which each input channel moves (C indices), and the gate that multiplies it. A network that
            undoes both before the module computes what it computes without it.

        Raises:
            ValueError: The module's options leave it no such values.
        """
        raise NotImplementedError


def at_least_float32(x: Tensor) -> torch.dtype:
    """The dtype for statistics of a tensor: a sum over the positions overflows float16 and is coarse in bfloat16."""
    return torch.promote_types(x.dtype, torch.float32)


def check_integer(option: str, value: object) -> None:
    """Refuse what is no integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{option}={value!r} is a {type(value).__name__}: give an integer")


def check_channels(in_channels: int) -> None:
    """Refuse a number of channels that is none."""
    check_integer("in_channels", in_channels)
    if not 1 <= in_channels <= _MOST_CHANNELS:
        raise ValueError(f"in_channels={in_channels} is out of range: give 1 to {_MOST_CHANNELS}")


def check_flags(**flags: object) -> None:
    """Refuse values of switches that are neither True nor False."""
    for option, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{option}={value!r} is a {type(value).__name__}: give True or False")


def choose(option: str, value: str, choices: Mapping[str, T]) -> T:
    """The choice of that name, or an error that lists them."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{option}={value!r} is unknown: choose one of {', '.join(map(repr, choices))}")
    return choices[value]


def check_divides(option: str, value: int, channels: int) -> None:
    """Refuse a value that does not divide the channels, and name those that do."""
    check_channels(channels)
    check_integer(option, value)
    if value < 1 or channels % value:
        fitting = [candidate for candidate in range(1, channels + 1) if channels % candidate == 0]
        raise ValueError(
            f"{option}={value} does not fit {channels} channels: it must divide them; "
            f"values that fit: {', '.join(map(str, fitting))}"
        )
