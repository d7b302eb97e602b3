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
from torch import Tensor, nn

from sa_mmdet.plotting import pyplot, save_figure

from .network import Box, Network, Scores

METHODS = ("gradcam", "hirescam")


@dataclass
class Found:
    """A detected object, or a class of the whole image, with the activation map of its score."""

    name: str  # of the class
    score: float
    box: Box | None  # None for a class of the whole image
    map: NDArray[np.float32]  # H x W, the image's size; 0 to 1


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
        layer: The layer whose activations are used, by its dotted name; the last block of the backbone if None.
        method: 'gradcam' or 'hirescam'.
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
        method: str = "gradcam",
        device: str = "cpu",
    ):
        if method not in METHODS:
            raise ValueError(f"method={method!r} is unknown: choose one of {', '.join(METHODS)}")
        self.method = method
        if importlib.util.find_spec("captum") is None:
            raise ValueError("activation maps need captum: pip install captum")
        self.network = Network(config, checkpoint, device)
        self.layer = self._last_block() if layer is None else self.network.layer(layer)

    def _last_block(self) -> nn.Module:
        backbone = self.network.model.backbone
        stages = [child for key, child in backbone.named_children() if key.startswith("layer")]
        if not stages:
            raise ValueError(f"{type(backbone).__name__} has no stages layer1, layer2, ...: give the name of a layer")
        return stages[-1][-1]

    def __call__(
        self, image: str | Path, top: int = 4, threshold: float = 0.3
    ) -> tuple[NDArray[np.uint8], list[Found]]:
        """Compute the maps of the objects, or of the classes, with the highest scores in an image.

        Args:
            image: The image file.
            top: The largest number of objects.
            threshold: Objects with a lower score are left out.

        Returns:
            The image that the maps belong to, H x W x 3 with channels in OpenCV's order: the whole image for a
            detector, the part that its pipeline crops for a classifier; and the objects, those with high scores first.

        Raises:
            ValueError: The file is not a readable image.
        """
        from captum.attr import LayerGradCam, LayerGradientXActivation

        with self.network.in_scope():
            shown, sample, inputs = self.network.read(image)
            scores = Scores(self.network, sample)
            with torch.no_grad():
                values = scores(inputs)[0]
            best = [int(i) for i in values.argsort(descending=True)[:top] if values[i] >= threshold]
            method = LayerGradCam if self.method == "gradcam" else LayerGradientXActivation
            explain = method(Scores(self.network, sample, logits=True), self.layer)
            resized = shown.shape[:2] if self.network.classifies else sample.img_shape
            found = []
            for index in best:
                with _attached_scores():
                    attribution = explain.attribute(inputs, target=index).sum(1, keepdim=True).clamp(min=0)
                name, box = self.network.name(scores.labels[index]), scores.boxes[index] if scores.boxes else None
                heat = _at_image_size(attribution.detach(), inputs.shape[-2:], resized, shown.shape)
                found.append(Found(name, float(values[index]), box, heat))
        return shown, found


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


def draw_sheet(path: str | Path, image: NDArray[np.uint8], rows: dict[str, list[Found]], top: int) -> None:
    """Draw the objects that several networks found in an image: one row per network, one panel per object.

    Args:
        path: The image file to write, atomically.
        image: The image, H x W x 3 with channels in OpenCV's order.
        rows: For each network its name and its objects.
        top: The number of columns.
    """
    height, width = image.shape[:2]
    size = (3.2 * top, 0.4 + len(rows) * (3.2 * height / width + 0.3))
    figure, axes = pyplot().subplots(len(rows), top, figsize=size, squeeze=False, constrained_layout=True)
    for panels, (name, found) in zip(axes, rows.items(), strict=True):
        panels[0].set_ylabel(name)
        for column, panel in enumerate(panels):
            panel.set_xticks([])
            panel.set_yticks([])
            panel.imshow(image[..., ::-1])
            if column < len(found):
                _draw_object(panel, found[column])
            else:
                panel.set_title("nothing more" if column else "nothing found", fontsize=9)
                panel.images[0].set_alpha(0.3)
    save_figure(figure, path)


def _draw_object(panel: Any, found: Found) -> None:
    """Draw an object's map and box over the image."""
    has_map = found.map.max() > 0
    if has_map:
        panel.imshow(found.map, cmap="jet", alpha=0.45, vmin=0, vmax=1)
    note = "" if has_map else ", no positive influence in this layer"
    panel.set_title(f"{found.name} {found.score:.2f}{note}", fontsize=9)
    if found.box is not None:
        left, top, right, bottom = found.box
        box = pyplot().Rectangle((left, top), right - left, bottom - top, fill=False, color="white", lw=1.5)
        panel.add_patch(box)
