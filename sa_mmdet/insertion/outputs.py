"""What the modules of a network return: their channels, found from the layer itself or by running the network once."""

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from sa_mmdet.messages import one_line

SIZES = "hw_shape"  # the argument by which MMDetection's transformers tell their layers a map's height and width
IMAGE_SIDES = (64, 128, 320, 512)  # pixels; some networks need larger images than others
_LEVELS = 5
_LARGEST_IMAGE = 16  # channels


@dataclass(frozen=True)
class Output:
    """What a module returned when it was run.

    Attributes:
        text: What it is, for people, such as '1 x 256 x 16 x 16'.
        channels: C of a feature map, N x C x H x W, or of its tokens, N x L x C; None if it is neither.
        size: H and W.
        error: Why the network could not be run further, where the module was not reached.
    """

    text: str
    channels: int | None = None
    size: tuple[int, int] | None = None


def argument_of_sizes(module: nn.Module) -> int | None:
    """The position of the argument that tells a module the height and width of its tokens, or None if none does."""
    try:
        names = list(inspect.signature(type(module).forward).parameters)[1:]
    except (TypeError, ValueError):
        return None
    return names.index(SIZES) if SIZES in names else None


def size_of_tokens(position: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """The height and width that a call tells of its tokens."""
    height, width = args[position] if len(args) > position else kwargs[SIZES]
    return int(height), int(width)


def channels_without_running(module: nn.Module) -> int | None:
    """The channels of the map that a convolution or norm returns, or None for other modules."""
    layer: Any = module
    if isinstance(module, ConvModule):
        two_dimensional = getattr(layer.conv, "weight", None) is None or layer.conv.weight.dim() == 4
        return layer.out_channels if two_dimensional else None
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return module.out_channels
    return module.num_features if isinstance(module, nn.BatchNorm2d) else None


def run_once(
    root: nn.Module, names: Iterable[str], in_channels: Any = None, sides: Sequence[int] = IMAGE_SIDES
) -> tuple[dict[str, Output], Exception | None]:
    """Run a network on made-up inputs and say what some of its modules return.

    The network is in evaluation mode meanwhile, so that it stays as it is.

    Args:
        root: A backbone, neck, head or detector.
        names: The modules' names.
        in_channels: The channels of its inputs, as its config names them, a number or one per level; None if it
            takes images.
        sides: Heights and widths of images in pixels, which are tried in this order.

    Returns:
        The outputs of the modules that were run, by their names, and the last error that ended a run.
    """
    modules = {name: root.get_submodule(name) for name in names}
    found: dict[str, Output] = {}
    failure: Exception | None = None
    with _evaluated(root), _recorded(modules, found), torch.no_grad():
        for call in _calls(root, in_channels, sides):
            complete = False
            try:
                call()
                complete = True
            except Exception as error:  # whatever a network raises for inputs that it does not take
                failure = error
            if all(name in found and (complete or found[name].channels) for name in modules):
                break
    return found, failure


def _calls(root: Any, in_channels: Any, sides: Sequence[int]) -> Iterator[Any]:
    """Calls of a network with made-up inputs, the likely ones first."""
    first = next((p for p in root.parameters() if p.is_floating_point()), torch.zeros(()))

    def zeros(channels: int, side: int) -> Tensor:
        return torch.zeros(1, channels, side, side, dtype=first.dtype, device=first.device)

    def levels(channels: Iterable[int], side: int) -> tuple[Tensor, ...]:
        return tuple(zeros(number, max(1, side >> level)) for level, number in enumerate(channels))

    for side in sides:
        if isinstance(in_channels, list | tuple):
            yield lambda side=side: root(levels(in_channels, side // 4))
            yield lambda side=side: root(levels(reversed(in_channels), side // 4))
        elif in_channels is not None and in_channels > _LARGEST_IMAGE:
            for number in (_LEVELS, _LEVELS - 1):
                yield lambda side=side, number=number: root(levels([in_channels] * number, side // 4))
            yield lambda side=side: root(zeros(in_channels, side // 4))
        else:
            image = zeros(in_channels or 3, side)
            if hasattr(root, "extract_feat"):
                yield lambda image=image: root.extract_feat(image)
            yield lambda image=image: root(image)


@contextlib.contextmanager
def _evaluated(root: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in root.modules()}
    for module in modes:  # not by eval(), which networks override
        module.training = False
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def _recorded(modules: Mapping[str, nn.Module], found: dict[str, Output]) -> Iterator[None]:
    """A context in which modules say what they return; their hooks would not be told of keyword arguments."""
    for name, module in modules.items():
        vars(module)["forward"] = _recorder(name, module, found)
    try:
        yield
    finally:
        for module in modules.values():
            del vars(module)["forward"]


def _recorder(name: str, module: nn.Module, found: dict[str, Output]) -> Any:
    forward, position = module.forward, argument_of_sizes(module)

    def recording(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if name not in found or found[name].channels is None:
            size = size_of_tokens(position, args, kwargs) if position is not None else None
            found[name] = _described(output, size)
        return output

    return recording


def _described(output: Any, size: tuple[int, int] | None) -> Output:
    if not isinstance(output, Tensor):
        if isinstance(output, list | tuple):
            return Output(f"a {type(output).__name__} of {len(output)} values")
        return Output(f"a {type(output).__name__}")
    text = " x ".join(map(str, output.shape))
    if output.dim() == 4:
        return Output(text, output.shape[1], (output.shape[2], output.shape[3]))
    if output.dim() == 3 and size is not None and size[0] * size[1] == output.shape[1]:
        return Output(f"{text} tokens", output.shape[2], size)
    return Output(f"a tensor of {text}")


def reason(failure: Exception | None) -> str:
    """Why a module was not run, in an error's words."""
    return f" ({one_line(failure, 120)})" if failure else ""
