"""What all attention layers have in common, and what the rest of the package asks of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from mmengine.registry import MODELS
from torch import Tensor, nn

from sa_mmdet.registry import MODELS as OWN_MODELS
from sa_mmdet.registry import name_of

T = TypeVar("T")

_NARROWEST = 8  # hidden channels


@dataclass(frozen=True)
class LayerShapes:
    """The shapes of an attention layer's weights in a checkpoint.

    Attributes:
        prefix: What stands before the names of the weights, such as 'layer1.0.se.'; errors name it.
        channels: C, the channels of the feature map that the layer takes.
        shapes: The shape of each weight, by its name without the prefix.
    """

    prefix: str
    channels: int
    shapes: Mapping[str, tuple[int, ...]]

    def size(self, name: str, axis: int) -> int:
        """The length of an axis of a weight.

        Raises:
            ValueError: The weight is missing, or its axis is missing or empty.
        """
        if name not in self.shapes:
            raise ValueError(f"{self.prefix}{name} is missing")
        shape = self.shapes[name]
        if len(shape) <= axis or shape[axis] < 1:
            raise ValueError(f"{self.prefix}{name} of shape {shape} has no axis {axis} of at least one element")
        return shape[axis]

    def ratio(self, name: str) -> int:
        """The reduction ratio of a hidden layer whose weight has one row per hidden unit."""
        return max(1, self.channels // self.size(name, 0))


class Attention(nn.Module):
    """A layer that multiplies a feature map by gates, N x C x H x W in and out.

    It takes the number of channels as ``in_channels``, which OpenMMLab's blocks add to the layer's config. A subclass
    is known to the whole package once it is registered in MMEngine's ``MODELS``: configs name it, tables print its
    label, complexity counts it, and converters recognise its weights. What they need to know is in class attributes.

    Attributes:
        _abbr_: The name under which OpenMMLab's blocks hold the layer. With the names of the parameters it makes the
            names of the released weights, such as ``layer1.0.se.fc.0.weight``.
        label: The name in tables and reports.
        after_stages: Whether it follows the stages of a network instead of the last norm of each block.
        converted: Whether converters recognise its weights in checkpoints, by ``_abbr_``.
        foreign_names: For each beginning of a weight's name in another library's block, the beginning of the name here.
        pooled: How many times the layer's own pooling reads each element of its input. This and the two below are what
            the SA-Net paper counts, see :func:`sa_mmdet.analysis.analyze`.
        uncounted: The classes of layers in it whose multiply-adds the paper does not count.
        biases_in_detectors: Whether the paper counts its biases as parameters of two-stage detectors.
        keeping_channels: The options with which it leaves all channels in their places.
    """

    _abbr_: str
    label: ClassVar[str]
    after_stages: ClassVar[bool] = False
    converted: ClassVar[bool] = True
    foreign_names: ClassVar[Mapping[str, str]] = {}
    pooled: float = 1
    uncounted: ClassVar[tuple[type[nn.Module], ...]] = ()
    biases_in_detectors: ClassVar[bool] = True
    keeping_channels: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def fitting_options(cls, channels: int) -> dict[str, list[int]]:
        """For each option that must fit the number of channels, the values that do, ascending."""
        return {}

    @classmethod
    def options_of(cls, shapes: LayerShapes) -> dict[str, Any]:
        """The options with which weights of these shapes were made.

        Raises:
            ValueError: A weight that tells an option is missing or has too few axes.
        """
        return {}


class ExactStart:
    """For attention layers that can start by only scaling and moving channels, whatever the input.

    :class:`sa_mmdet.backbones.ResNetPretrained` undoes both in the layers before, so that the network starts by
    computing exactly what it computes without attention.
    """

    def start_exactly(self) -> tuple[Tensor, float]:
        """Set the parameters to such values.

        Returns:
            The channel to which each input channel moves (C indices), and the gate that multiplies all of them.

        Raises:
            ValueError: With the layer's options, no values do that.
        """
        raise NotImplementedError


def attention_types() -> dict[str, type[Attention]]:
    """All registered attention layers, by their names in configs."""
    own = {name_of(kind): kind for kind in OWN_MODELS.module_dict.values()}
    return {
        name: kind
        for name, kind in {**own, **MODELS.module_dict}.items()
        if isinstance(kind, type) and issubclass(kind, Attention)
    }


def label_of(kind: str | type) -> str:
    """The label of a layer in tables; for a layer that is not a registered attention layer, the name of its class.

    Args:
        kind: The ``type`` in its config, with or without a scope.
    """
    types = attention_types()
    scoped = name_of(kind) if isinstance(kind, type) else kind
    name = scoped.rpartition(".")[2]
    found = types.get(scoped) or types.get(name)
    return found.label if found else name


def choose(option: str, value: str, choices: Mapping[str, T]) -> T:
    """The choice of that name, or a ValueError that lists all choices."""
    if value not in choices:
        raise ValueError(f"{option}={value!r} is unknown: choose one of {', '.join(map(repr, choices))}")
    return choices[value]


def divisors(number: int) -> list[int]:
    """All positive divisors of a number, ascending."""
    small = [divisor for divisor in range(1, int(number**0.5) + 1) if number % divisor == 0] if number > 0 else []
    return sorted({*small, *(number // divisor for divisor in small)})


def check_divides(option: str, value: int, channels: int) -> None:
    """Raise a ValueError unless the value divides the channels; it lists the values that do."""
    fitting = divisors(channels)
    if value not in fitting:
        raise ValueError(
            f"{option}={value} does not fit {channels} channels: it must divide them; "
            f"values that fit: {', '.join(map(str, fitting)) or 'none'}"
        )


def check_odd(option: str, value: int) -> None:
    """Raise a ValueError unless the value is odd and positive."""
    if value < 1 or value % 2 == 0:
        raise ValueError(f"{option}={value} must be odd and positive: use {max(value, 0) + 1}")


def hidden_channels(in_channels: int, ratio: int) -> int:
    """C / ratio, or a ValueError that lists the ratios that divide C."""
    check_divides("ratio", ratio, in_channels)
    return in_channels // ratio


def fitting_ratios(channels: int) -> list[int]:
    """The ratios that divide C and leave a hidden layer that is not so narrow that all its ReLUs may be inactive."""
    return [ratio for ratio in divisors(channels) if channels // ratio >= _NARROWEST] or [1]


def zero_(layer: nn.Module) -> None:
    """Set all parameters of a layer to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
