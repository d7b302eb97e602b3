"""The gates of shuffle attention on an image, and the network's scores with a single group of channels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sa_mmdet.attention import ShuffleAttention
from sa_mmdet.ops.tensors import shuffle_channels

from .network import Network, Scores
from .objects import score_of

Floats = NDArray[np.floating]


@dataclass
class Gates:
    """The gates of one layer on one image, 0 to 1: G groups with K channels in each of their two branches."""

    layer: str
    channel: Floats  # G x K
    spatial: Floats  # G x K x H x W


def attention_layers(model: nn.Module) -> dict[str, ShuffleAttention]:
    """Find the layers of shuffle attention in a model, by their dotted names.

    Raises:
        ValueError: The model has no shuffle attention.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, ShuffleAttention)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no shuffle attention")
    return layers


def layer_named(model: nn.Module, name: str | None = None) -> str:
    """The name of a layer of shuffle attention; the last one of the backbone, or else of the model, if None is given.

    Raises:
        ValueError: The model has no shuffle attention, or none of this name.
    """
    layers = list(attention_layers(model))
    if name is None:
        return ([layer for layer in layers if layer.startswith("backbone.")] or layers)[-1]
    if name not in layers:
        raise ValueError(f"no shuffle attention has the name {name!r}; give one of {', '.join(layers)}")
    return name


def gates_of(network: Network, image: Tensor) -> list[Gates]:
    """Compute the gates of all layers of shuffle attention.

    Args:
        network: A model with shuffle attention.
        image: The model's input, 1 x 3 x H x W.

    Raises:
        ValueError: The model has no shuffle attention.
    """
    found: dict[str, Gates] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor]) -> None:
            channel, spatial = module.gates(inputs[0])
            found[name] = Gates(name, channel[0, :, :, 0, 0].cpu().numpy(), spatial[0].cpu().numpy())

        return hook

    layers = attention_layers(network.model)
    # A block whose attention has hooks does not use the fused operator but calls the module, and with it the hooks.
    handles = [module.register_forward_pre_hook(keep(name)) for name, module in layers.items()]
    try:
        with torch.no_grad(), network.in_scope():
            network.model.extract_feat(image)  # the neck may have attention, too
    finally:
        for handle in handles:
            handle.remove()
    return [found[name] for name in layers if name in found]


def group_scores(
    network: Network,
    sample: Any,
    image: Tensor,
    layer: str,
    shuffled: bool,
    progress: Callable[[], None] = lambda: None,
) -> tuple[str, float, list[float]]:
    """For each group of a layer, score an image's best object with all other groups of channels set to zero.

    The channels are those of the attention's output; the residual addition after it is not changed.

    Source: the analysis of groups in SA-Net, ICASSP 2021 (arXiv 2102.00240), section 4.3.

    Args:
        network: A detector or classifier with shuffle attention.
        sample: The image's data sample.
        image: The model's input, 1 x 3 x H x W.
        layer: The attention's dotted name.
        shuffled: Whether groups are numbered after the shuffle, or before it.
        progress: Is called once per group.

    Returns:
        The class of the object with the highest score with all groups, that score, and for each group alone the score
        of that class. With a detector only boxes with an intersection over union of at least 0.5 count; the score is 0
        if there is none.

    Raises:
        ValueError: The layer does not exist, or the detector finds nothing in the image.
    """
    module = attention_layers(network.model)[layer_named(network.model, layer)]
    scores = Scores(network, sample)
    with torch.no_grad(), network.in_scope():
        whole = scores(image)[0]
        if not len(whole):
            raise ValueError("the detector finds nothing in this image")
        best = int(whole.argmax())
        label, box = scores.labels[best], scores.boxes[best] if scores.boxes else None
        alone = []
        for group in range(module.groups):
            with only_group(module, group, shuffled):
                masked = scores(image)
            alone.append(score_of(masked, scores, label, box))
            progress()
    return network.name(label), float(whole[best]), alone


@contextmanager
def only_group(module: ShuffleAttention, group: int, shuffled: bool) -> Iterator[None]:
    """A context in which all channels of a module's output are zero, except for one group.

    Args:
        module: The attention.
        group: The group's number, from 0.
        shuffled: Whether groups are numbered after the shuffle, or before it.
    """
    with only_channels(module, channels_of(module, group, shuffled)):
        yield


def channels_of(module: ShuffleAttention, group: int, shuffled: bool) -> Tensor:
    """Which channels of a module's output belong to a group, C times true or false.

    Args:
        module: The attention.
        group: The group's number, from 0.
        shuffled: Whether groups are numbered after the shuffle, or before it.
    """
    width = module.in_channels // module.groups
    inside = torch.arange(module.in_channels) // width == group
    return shuffle_channels(inside, dim=0) if module.shuffle and not shuffled else inside


@contextmanager
def only_channels(module: ShuffleAttention, kept: Tensor) -> Iterator[None]:
    """A context in which all channels of a module's output are zero, except for some.

    Args:
        module: The attention.
        kept: Which channels, C times true or false.
    """
    mask = kept.float().reshape(1, -1, 1, 1)

    def hook(_: Any, inputs: Any, output: Tensor) -> Tensor:
        return output * mask.to(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
