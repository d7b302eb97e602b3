"""What the gates of shuffle attention do on a picture, and what each group of channels is worth alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from numpy.typing import NDArray
from torch import Tensor, nn

from sa_mmdet.attention import ShuffleAttention

from .network import Box, Network, Scores

Floats = NDArray[np.floating]


@dataclass
class Gates:
    """Of one layer on one picture."""

    layer: str
    channel: Floats  # G x K
    spatial: Floats  # G x K x H x W


def attention_layers(model: nn.Module) -> dict[str, ShuffleAttention]:
    """By their dotted names.

    Raises:
        ValueError: There are none.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, ShuffleAttention)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no shuffle attention to look at")
    return layers


def gates_of(network: Network, image: Tensor) -> list[Gates]:
    """The gates of all layers.

    Args:
        network: A model with shuffle attention.
        image: 1 x 3 x H x W, as the model takes it.
    """
    found: dict[str, Gates] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor]) -> None:
            channel, spatial = module.gates(inputs[0])
            found[name] = Gates(name, channel[0, :, :, 0, 0].cpu().numpy(), spatial[0].cpu().numpy())

        return hook

    layers = attention_layers(network.model)
    # With hooks on its attention a block does not fuse its end, and calls the module.
    handles = [module.register_forward_pre_hook(keep(name)) for name, module in layers.items()]
    try:
        with torch.no_grad(), network.in_scope():
            network.model.backbone(image)
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
    """What a picture's best object scores when one layer lets a single group of channels through.

    All other channels of the attention's output are zero; the residual addition behind it stays.

    Source: the analysis of groups in SA-Net, ICASSP 2021 (arXiv 2102.00240), section 4.3.

    Args:
        network: A detector or classifier with shuffle attention.
        sample: The picture's data sample.
        image: 1 x 3 x H x W, as the model takes it.
        layer: Name of the attention.
        shuffled: Whether the groups are counted behind the shuffle, or before it.
        progress: Called once a group.

    Returns:
        The class of the best object without a mask, its score, and with each group alone the score of that class: of
        a detector at that place (intersection over union of a half or more; 0 where it is not found).

    Raises:
        ValueError: There is no such layer, or the detector finds nothing in the picture.
    """
    layers = attention_layers(network.model)
    if layer not in layers:
        raise ValueError(f"there is no shuffle attention {layer!r}; there are {', '.join(layers)}")
    module = layers[layer]
    scores = Scores(network, sample)
    with torch.no_grad(), network.in_scope():
        whole = scores(image)[0]
        if not len(whole):
            raise ValueError("the detector finds nothing in this picture")
        best = int(whole.argmax())
        label, box = scores.labels[best], scores.boxes[best] if scores.boxes else None
        alone = []
        for group in range(module.groups):
            with _only(module, group, shuffled):
                masked = scores(image)[0]
            alone.append(_score_of(masked, scores, label, box))
            progress()
    return network.name(label), float(whole[best]), alone


@contextmanager
def _only(module: ShuffleAttention, group: int, shuffled: bool) -> Iterator[None]:
    """Let one group of channels through."""
    width = module.in_channels // module.groups
    inside = torch.arange(module.in_channels) // width == group
    if not shuffled and module.shuffle:  # output channels 2c and 2c + 1 come from c and c + C/2
        inside = inside.reshape(2, -1).t().flatten()
    mask = inside.float().reshape(1, -1, 1, 1)

    def hook(_: Any, inputs: Any, output: Tensor) -> Tensor:
        return output * mask.to(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _score_of(masked: Tensor, scores: Scores, label: int, box: Box | None) -> float:
    if box is None:
        return float(masked[label])
    places = torch.tensor(scores.boxes).reshape(-1, 4)
    here = bbox_overlaps(torch.tensor([box]), places)[0] >= 0.5
    right = torch.tensor([other == label for other in scores.labels], dtype=torch.bool)
    return float(masked.cpu()[here & right].max()) if (here & right).any() else 0.0
