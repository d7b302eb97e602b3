"""The layers that activation maps can be taken from, and which of them fits an object of some size."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .network import Network

CELLS = 4  # how many of a layer's positions an object should span, along the mean of its sides


@dataclass
class Layer:
    """A layer of a network with maps of C channels, 1 x C x H x W."""

    name: str  # dotted
    module: nn.Module
    stride: float  # pixels of the network's input between two of its positions


def backbone_layers(network: Network, image: Tensor) -> list[Layer]:
    """Find the layers that compute the backbone's feature maps: of a ResNet, the last block of each stage.

    Args:
        network: A detector or classifier.
        image: Its input, 1 x 3 x H x W.

    Returns:
        The layers in the order of their strides.

    Raises:
        ValueError: The network has no backbone, or what its backbone returns is not what one of its layers returns.
    """
    backbone = getattr(network.model, "backbone", None)
    if backbone is None:
        raise ValueError(f"{type(network.model).__name__} has no backbone: give the name of a layer")
    modules = {name: module for name, module in backbone.named_modules() if name}
    with _calls_of(modules) as calls, torch.no_grad(), network.in_scope():
        returned = backbone(image)
        levels = [level for level in (returned if isinstance(returned, list | tuple) else [returned]) if _is_map(level)]
        found = []
        for level in levels:
            names = [name for name, outputs in calls.items() if len(outputs) == 1 and outputs[0]() is level]
            if names:  # the outermost module comes first; its last block computes the map
                name, module = names[0], modules[names[0]]
                while isinstance(module, nn.Sequential):
                    name, module = f"{name}.{len(module) - 1}", module[-1]
                found.append(Layer(f"backbone.{name}", module, image.shape[-1] / level.shape[-1]))
    if not found:
        raise ValueError(f"which layers of {type(backbone).__name__} make its maps is not known: give one by its name")
    return sorted(found, key=lambda layer: layer.stride)


def named_layer(network: Network, image: Tensor, name: str, run: Callable[[], object]) -> Layer:
    """Find a layer by its name, and check that it makes one map of the image.

    Args:
        network: A detector or classifier.
        image: Its input, 1 x 3 x H x W.
        name: The dotted name, such as 'backbone.layer3.5'.
        run: Runs the network on this input.

    Raises:
        ValueError: There is no such layer, it does not run exactly once, or what it returns is no map of the image.
    """
    module = network.layer(name)
    shapes: list[tuple[int, ...]] = []
    handle = module.register_forward_hook(lambda _, __, output: shapes.append(tuple(getattr(output, "shape", ()))))
    try:
        with torch.no_grad(), network.in_scope():
            run()
    finally:
        handle.remove()
    if len(shapes) != 1:
        raise ValueError(f"layer {name!r} runs {len(shapes)} times for an image: give one that runs once")
    [shape] = shapes
    if len(shape) != 4 or shape[0] != 1 or min(shape) < 1:
        raise ValueError(f"layer {name!r} does not return a map of the image, 1 x C x H x W: give a layer that does")
    return Layer(name, module, image.shape[-1] / shape[-1])


def fitting(layers: Sequence[Layer], size: float | None) -> Layer:
    """Choose the deepest layer in which an object spans at least :data:`CELLS` positions, or else the finest layer.

    Args:
        layers: In the order of their strides.
        size: The square root of the area of the object's box, in pixels of the network's input; None for the whole
            image, which the deepest layer fits.
    """
    fine_enough = [layer for layer in layers if size is None or size >= CELLS * layer.stride]
    return fine_enough[-1] if fine_enough else layers[0]


@contextlib.contextmanager
def _calls_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[Any]]]:
    """A context that notes each tensor that modules return, by their names, and does not keep it in memory."""
    calls: dict[str, list[Any]] = {name: [] for name in modules}
    handles = []
    for name, module in modules.items():

        def note(_: Any, __: Any, output: Any, own: list[Any] = calls[name]) -> None:
            own.append(weakref.ref(output) if isinstance(output, Tensor) else lambda: None)

        handles.append(module.register_forward_hook(note))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4
