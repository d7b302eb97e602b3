"""Activation maps: Grad-CAM and HiResCAM of each object that a network detects, computed by captum."""

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sa_mmdet.messages import one_line

from .layers_to_explain import Layer, backbone_layers, fitting, named_layer
from .network import Box, Network, Scores
from .objects import Seen, seen_in

METHODS = ("hirescam", "gradcam")


@dataclass
class Look:
    """An image, as a network sees it.

    Attributes:
        shown: What the maps belong to, H x W x 3 with channels in OpenCV's order: the whole image for a detector, the
            part that its pipeline crops for a classifier.
        sample: The image's data sample.
        inputs: The network's input, 1 x 3 x H' x W', which may be padded.
        size: The height and width of the image without padding, in pixels of the input.
        seen: Everything that the network sees, those with high scores first.
        layers: Those that can be explained.
    """

    shown: NDArray[np.uint8]
    sample: Any
    inputs: Tensor
    size: tuple[int, int]
    seen: list[Seen]
    layers: list[Layer]


@dataclass
class Found:
    """A detected object, or a class of the whole image, with the activation map of its score."""

    name: str  # of the class
    score: float
    box: Box | None  # None for a class of the whole image
    map: NDArray[np.float32]  # H x W, the image's size; 0 to 1
    layer: Layer


class ActivationMaps:
    """Computes the activation maps of a detector's objects or of a classifier's classes.

    Grad-CAM's map of a score is relu(sum over channels of activation * mean gradient of the score), scaled to 0..1. It
    is high at all positions where a channel is active that influences the score anywhere in the image. For one object
    among many such positions may be outside of the object; HiResCAM uses the gradient of each position instead of the
    mean.

    Source: Grad-CAM, ICCV 2017 (arXiv 1610.02391), equations 1 and 2; HiResCAM (arXiv 2011.08891), equation 4; captum's
    LayerGradCam and LayerGradientXActivation.

    Args:
        config: The model's config.
        checkpoint: Its weights.
        layer: The layer whose activations are used, by its dotted name. If None, for each object the last block of the
            deepest of the backbone's stages in which the object spans at least 4 positions, see
            :func:`sa_mmdet.analysis.layers_to_explain.fitting`.
        method: 'hirescam' or 'gradcam'.
        device: A device of PyTorch.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: The method is unknown, captum is not installed, the weights do not fit the config, or the layer does
            not exist.
    """

    def __init__(
        self,
        config: str | Path,
        checkpoint: str | Path,
        layer: str | None = None,
        method: str = "hirescam",
        device: str = "cpu",
    ):
        if method not in METHODS:
            raise ValueError(f"method={method!r} is unknown: choose one of {', '.join(METHODS)}")
        self.method, self.layer = method, layer
        if importlib.util.find_spec("captum") is None:
            raise ValueError("activation maps need captum: pip install captum")
        self.network = Network(config, checkpoint, device)
        if layer is not None:
            self.network.layer(layer)  # raises if there is none

    def __call__(
        self, image: str | Path, top: int = 4, threshold: float = 0.3
    ) -> tuple[NDArray[np.uint8], list[Found]]:
        """Compute the maps of the objects, or of the classes, with the highest scores in an image.

        Args:
            image: The image file.
            top: The largest number of objects.
            threshold: Objects with a lower score are left out.

        Returns:
            The image that the maps belong to, see :class:`Look`, and the objects, those with high scores first.

        Raises:
            ValueError: As :meth:`look` and :meth:`explain` raise it.
        """
        look = self.look(image)
        return look.shown, [self.explain(look, one) for one in look.seen[:top] if one.score >= threshold]

    def look(self, image: str | Path) -> Look:
        """Read an image and detect all objects in it, or compute the scores of all classes.

        Raises:
            ValueError: The file is not a readable image, or no layer can be explained.
        """
        shown, sample, inputs = self.network.read(image)
        scores = Scores(self.network, sample)
        with torch.no_grad(), self.network.in_scope():
            seen = seen_in(self.network, scores, scores(inputs))
        if self.layer is None:
            layers = backbone_layers(self.network, inputs)
        else:
            layers = [named_layer(self.network, inputs, self.layer, lambda: scores(inputs))]
        size = shown.shape[:2] if self.network.classifies else sample.img_shape
        seen.sort(key=lambda one: -one.score)
        return Look(shown, sample, inputs, (int(size[0]), int(size[1])), seen, layers)

    def explain(self, look: Look, one: Seen) -> Found:
        """Compute the map of one object.

        Args:
            look: An image.
            one: Something that the network sees in it.

        Raises:
            ValueError: The layer does not influence the score.
        """
        from captum.attr import LayerGradCam, LayerGradientXActivation

        layer = fitting(look.layers, None if one.box is None else extent(look, one.box))
        method = LayerGradCam if self.method == "gradcam" else LayerGradientXActivation
        with self.network.in_scope(), _attached_scores():
            explain = method(Scores(self.network, look.sample, logits=True), layer.module)
            try:
                attribution = explain.attribute(look.inputs, target=one.index)
            except RuntimeError as error:
                if "not have been used in the graph" not in str(error) and "does not require grad" not in str(error):
                    raise
                raise ValueError(f"layer {layer.name!r} does not influence the score: {one_line(error, 80)}") from error
        raised = attribution.sum(1, keepdim=True).clamp(min=0).detach()
        heat = _at_image_size(raised, look.inputs.shape[-2:], look.size, look.shown.shape)
        return Found(one.name, one.score, one.box, heat, layer)


def extent(look: Look, box: Box | None) -> float:
    """The square root of a box's area in pixels of the network's input; 0 for a class of the whole image."""
    if box is None:
        return 0.0
    left, top, right, bottom = box
    area = max(right - left, 0) * max(bottom - top, 0)
    scale = (look.size[0] / look.shown.shape[0]) * (look.size[1] / look.shown.shape[1])
    return (area * scale) ** 0.5


@contextlib.contextmanager
def _attached_scores() -> Iterator[None]:
    """A context in which a dense head's scores keep their gradients; MMDetection detaches them for selecting boxes."""
    module: Any = importlib.import_module("mmdet.models.dense_heads.base_dense_head")
    original = module.select_single_mlvl

    def attached(levels: Any, index: int, detach: bool = True) -> Any:
        return original(levels, index, detach=False)

    module.select_single_mlvl = attached
    try:
        yield
    finally:
        module.select_single_mlvl = original


def _at_image_size(
    attribution: Tensor, padded: Any, resized: tuple[int, int], original: tuple[int, int]
) -> NDArray[np.float32]:
    """Resize a map from the layer's size to the network's input, cut its padding, and resize to the image."""
    maps = F.interpolate(attribution.float(), tuple(padded), mode="bilinear", align_corners=False)
    maps = maps[:, :, : resized[0], : resized[1]]
    maps = F.interpolate(maps, tuple(original[:2]), mode="bilinear", align_corners=False)[0, 0]
    return (maps / maps.max().clamp(min=torch.finfo(maps.dtype).tiny)).cpu().numpy()
