"""The accuracy of a network on a data set when a layer of shuffle attention keeps, or loses, one group of channels."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sa_mmdet.analysis.gates import attention_layers, channels_of, layer_named, only_channels
from sa_mmdet.analysis.network import Network, Scores
from sa_mmdet.analysis.objects import seen_in
from sa_mmdet.analysis.shared_start import shared_start
from sa_mmdet.attention import ShuffleAttention

from .labelled_images import LabelledImages

MEASURES = ("alone", "removed")
BEFORE, AFTER = "before the shuffle", "after the shuffle"


@dataclass
class GroupAccuracy:
    """A metric, 0 to 1, of one group.

    Attributes:
        value: The metric.
        low: The lower end of the 95 % interval, over the images, of the metric less that with all groups.
        high: Its upper end.
    """

    value: float
    low: float
    high: float


@dataclass
class LayerAccuracy:
    """The metric by the groups of one layer.

    Attributes:
        layer: The attention's dotted name.
        metric: What is measured.
        images: On how many images.
        whole: The metric with all groups.
        none: The metric with none of them: the block passes on its input alone.
        groups: For each way of numbering the groups, the metric of each.
    """

    layer: str
    metric: str
    images: int
    whole: float
    none: float
    groups: dict[str, list[GroupAccuracy]]


def accuracy_by_group(
    network: Network,
    layer: str,
    images: LabelledImages,
    measure: str = "alone",
    resamples: int = 200,
    progress: Callable[[], object] = lambda: None,
) -> LayerAccuracy:
    """Measure a network's accuracy on a data set for each group of channels of an attention layer.

    With the measure 'alone' all other channels of the attention's output are zero, with 'removed' those of the group;
    the residual addition after it is not changed, nor are the weights. Groups are numbered before the shuffle, where a
    group has the channels that the attention computed together, half of them by each of its branches; and after it,
    where a group has halves of two such groups: for an even G, those of their channel branches if its number is even,
    those of their spatial branches if it is odd. A layer without shuffle has one numbering.

    Source: the figure of SA-Net, ICASSP 2021 (arXiv 2102.00240), that shows the accuracy by group before and after the
    shuffle. How the paper evaluated a group is not known here: this definition is the package's own.

    Args:
        network: A detector or classifier with shuffle attention.
        layer: The attention's dotted name.
        images: The data set.
        measure: One of :data:`MEASURES`.
        resamples: Of the images, for the intervals.
        progress: Is called once per image.

    Raises:
        ValueError: The layer or the measure does not exist, or an image cannot be read.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure={measure!r} is unknown: choose one of {', '.join(MEASURES)}")
    module = attention_layers(network.model)[layer_named(network.model, layer)]
    numberings = [BEFORE, AFTER] if module.shuffle else ["without a shuffle"]
    kept = list(_kept(module, len(numberings), measure))
    results: list[list[Any]] = [[] for _ in range(len(kept) + 1)]
    for number, path in enumerate(images.paths):
        _, sample, x = network.read(path)
        scores = Scores(network, sample)
        with torch.no_grad(), network.in_scope(), shared_start(network.model, layer):
            for own, channels in zip(results, [None, *kept], strict=True):
                with nullcontext() if channels is None else only_channels(module, channels):
                    own.append(images.result(number, seen_in(network, scores, scores(x))))
        progress()
    return _judged(layer, images, results, numberings, resamples)


def _kept(module: ShuffleAttention, numberings: int, measure: str) -> Iterator[Tensor]:
    """The channels to keep: first none, then for each numbering and group."""
    yield torch.zeros(module.in_channels, dtype=torch.bool)
    for shuffled in (False, True)[:numberings]:
        for group in range(module.groups):
            inside = channels_of(module, group, shuffled)
            yield inside if measure == "alone" else ~inside


def _judged(
    layer: str, images: LabelledImages, results: list[list[Any]], numberings: list[str], resamples: int
) -> LayerAccuracy:
    whole, none, *groups = results
    drawn = images.resampled(whole, resamples, seed=0)
    found = [
        GroupAccuracy(images.accuracy(own), *_interval(images.resampled(own, resamples, seed=0) - drawn))
        for own in groups
    ]
    count = len(found) // len(numberings)
    by_numbering = {name: found[i * count : (i + 1) * count] for i, name in enumerate(numberings)}
    accuracies = images.accuracy(whole), images.accuracy(none)
    return LayerAccuracy(layer, images.metric, len(images.paths), *accuracies, by_numbering)


def _interval(values: NDArray[np.floating]) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
