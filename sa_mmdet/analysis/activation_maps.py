"""Where a network looked for each object that it found: Grad-CAM and HiResCAM, by captum."""

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
    """An object, or an image's class, and the activation map of its score."""

    name: str
    score: float
    box: Box | None
    map: NDArray[np.float32]  # of the image's size H x W, 0 to 1


class ActivationMaps:
    """Grad-CAM of a detector's objects or of a classifier's classes.

    Grad-CAM's map of a score is relu(sum over the channels of activation * mean gradient of the score), scaled to 0..1.
    It is high wherever a channel is active that matters somewhere in the image, which for one object among many may be
    beside the object; HiResCAM takes each position's own gradient instead of the mean.

    Source: Grad-CAM, ICCV 2017 (arXiv 1610.02391), equations 1 and 2; HiResCAM (arXiv 2011.08891), equation 4; captum's
    LayerGradCam and LayerGradientXActivation.

    Args:
        config: The model's config.
        checkpoint: Its weights.
        layer: The layer's dotted name; the last block of the backbone if None.
        method: 'gradcam' or 'hirescam'.
        device: A device of PyTorch.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: captum is missing, the weights do not fit, or the layer does not exist.
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
        """Find the best objects in an image, or a classifier's best classes, with their maps.

        Args:
            image: The file.
            top: The largest number of objects.
            threshold: Objects with a lower score are left out.

        Returns:
            The image that the maps lie over, H x W x 3 with channels in OpenCV's order: all of it for a detector, what
            its pipeline leaves of it for a classifier; and what was found, the best first.

        Raises:
            ValueError: The file is not a readable image.
        """
        from captum.attr import LayerGradCam, LayerGradientXActivation

        with self.network.in_scope():
            shown, sample, inputs = self.network.read(image)
            scores = Scores(self.network, sample)
            with torch.no_grad():
                best = scores(inputs)[0]
            order = best.argsort(descending=True)[:top]
            method = LayerGradCam if self.method == "gradcam" else LayerGradientXActivation
            explain = method(Scores(self.network, sample, logits=True), self.layer)
            found = []
            for index in (int(i) for i in order if best[i] >= threshold):
                with _attached_scores():
                    attribution = explain.attribute(inputs, target=index).sum(1, keepdim=True).clamp(min=0)
                resized = shown.shape[:2] if self.network.classifies else sample.img_shape
                found.append(
                    Found(
                        self.network.name(scores.labels[index]),
                        float(best[index]),
                        scores.boxes[index] if scores.boxes else None,
                        _at_image_size(attribution.detach(), inputs.shape[-2:], resized, shown.shape),
                    )
                )
        return shown, found


@contextlib.contextmanager
def _attached_scores() -> Iterator[None]:
    """Keep the gradient graph of a dense head's scores, which MMDetection detaches before it selects among them."""
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
    """Draw what several networks found in an image: one row per network, one panel per object with its map.

    Args:
        path: The image file to write, atomically.
        image: H x W x 3 with channels in OpenCV's order.
        rows: For each network's name what it found.
        top: The number of columns.
    """
    height, width = image.shape[:2]
    size = (3.2 * top, 0.4 + len(rows) * (3.2 * height / width + 0.3))
    plot = pyplot()
    figure, axes = plot.subplots(len(rows), top, figsize=size, squeeze=False, constrained_layout=True)
    for panels, (name, found) in zip(axes, rows.items(), strict=True):
        for column, panel in enumerate(panels):
            panel.set_xticks([])
            panel.set_yticks([])
            panel.imshow(image[..., ::-1])
            if column == 0:
                panel.set_ylabel(name)
            if column >= len(found):
                panel.set_title("nothing more" if column else "nothing found", fontsize=9)
                panel.images[0].set_alpha(0.3)
                continue
            one = found[column]
            if one.map.max() > 0:
                panel.imshow(one.map, cmap="jet", alpha=0.45, vmin=0, vmax=1)
            note = "" if one.map.max() > 0 else ", nothing in this layer raised it"
            panel.set_title(f"{one.name} {one.score:.2f}{note}", fontsize=9)
            if one.box is not None:
                left, above, right, below = one.box
                frame = plot.Rectangle((left, above), right - left, below - above, fill=False, color="white", lw=1.5)
                panel.add_patch(frame)
    save_figure(figure, path)
