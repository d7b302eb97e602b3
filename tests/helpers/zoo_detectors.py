"""Detectors of MMDetection's configs without their weights, on a made-up image."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmdet.testing import demo_mm_inputs, demo_mm_proposals
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.utils import get_installed_path
from places import MMDETECTION
from torch import Tensor, nn

ROOT = Path(get_installed_path(MMDETECTION), ".mim", "configs")


def single_detector(config: str) -> Any:
    """The config of the detector, of its student where it has a teacher, of its detector where it tracks."""
    model = copy.deepcopy(Config.fromfile(ROOT / f"{config}.py").model)
    if "detector" in model:
        model = model.detector
        model.data_preprocessor = dict(type="DetDataPreprocessor")
    for part in parts(model):
        part.pop("init_cfg", None)
        part.pop("teacher_ckpt", None)
        part.pop("pretrained", None)
    return model


def parts(value: Any) -> Iterator[Any]:
    """A config and all configs in it."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from parts(part)


def randomise(network: Any) -> None:
    """Give the norms statistics and scales as if they had been trained."""
    norms: list[Any] = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
        norm.weight.data.uniform_(0.5, 1)
        norm.bias.data.normal_(0, 0.2)


def settle(model: Any, data: dict[str, Any]) -> None:
    """Give the norms the statistics of a batch, so that no random network's values grow without bounds."""
    norms: list[Any] = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = norm.running_mean is not None, 1.0
    with torch.no_grad():
        model.extract_feat(data["inputs"])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.training, norm.momentum = False, momentum
        if norm.running_var is not None:
            norm.running_var.clamp_(min=0.1)  # channels that are almost constant would amplify rounding


def batch(model: Any, cfg: Any, images: int = 1, height: int = 128, width: int = 128) -> dict[str, Any]:
    """Random images with three objects each, as the detector's own preprocessor returns them."""
    classes = next((part["num_classes"] for part in parts(cfg) if isinstance(part.get("num_classes"), int)), 80)
    shapes = [(3, height, width)] * images
    numbers = dict(num_items=[3] * images, num_classes=min(classes, 10))
    heads = any(key.startswith("mask_") for part in parts(cfg) for key in part)
    with_mask = heads or bool(cfg.data_preprocessor.get("pad_mask"))
    inputs = demo_mm_inputs(images, shapes, **numbers, with_mask=with_mask, with_semantic=True)
    for sample in inputs["data_samples"]:
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))  # panoptic heads go back to the original size
    if cfg.type == "FastRCNN":
        for sample, proposals in zip(inputs["data_samples"], demo_mm_proposals(shapes, 20), strict=True):
            sample.proposals = proposals.to_instances() if hasattr(proposals, "to_instances") else proposals
    for step in ("iter", "epoch"):  # YOLOX's preprocessor and TOOD's head ask for them
        MessageHub.get_current_instance().update_info(step, 0)
    return model.data_preprocessor(inputs, True)


def predictions(model: Any, data: dict[str, Any]) -> list[Tensor]:
    """All tensors of a detector's predictions."""
    model.eval()
    head = getattr(model, "bbox_head", None)
    if head is not None and not hasattr(head, "loss_cls"):
        head.loss_cls = None  # without it MMDetection 3.3's SSD cannot predict
    with torch.no_grad():
        found = model.predict(data["inputs"], copy.deepcopy(data["data_samples"]), rescale=False)
    results: list[Any] = [
        getattr(sample, "pred_instances", getattr(sample, "pred_panoptic_seg", None)) for sample in found
    ]
    return [value.double() for result in results for _, value in sorted(result.items()) if isinstance(value, Tensor)]


def maps(model: Any, data: dict[str, Any]) -> list[Tensor]:
    """The maps of a detector's backbone and neck."""
    model.eval()
    with torch.no_grad():
        return list(model.extract_feat(data["inputs"]))


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference of an element, divided by the largest element of its tensor; infinite if sizes differ."""
    assert len(ours) == len(theirs) > 0
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if one.shape != other.shape:
            return float("inf")
        if other.numel():
            scale = max(other.abs().max().item(), 1e-3)
            worst = max(worst, (one - other).abs().max().item() / scale)
    return worst


class Reference:
    """A detector with which others are compared on one batch.

    Random scores are so similar that rounding may change their order. Then predictions are compared in float64, and
    where that cannot be computed, the maps of backbone and neck are compared alone, if need be in float64.
    """

    def __init__(self, model: Any, data: dict[str, Any]):
        self.model, self.data = model, data
        self.maps, self.predictions = maps(model, data), predictions(model, data)
        assert all(level.isfinite().all() for level in self.maps)
        self.in_float64: list[Tensor] | None = None

    def difference(self, model: Any) -> tuple[float, str]:
        """The largest difference of another detector, and what was compared."""
        worst = largest_difference(maps(model, self.data), self.maps)
        difference = max(worst, largest_difference(predictions(model, self.data), self.predictions))
        if difference <= 1e-5:
            compared = "predictions" if any(tensor.numel() for tensor in self.predictions) else "maps"
            return difference, compared
        double = {**self.data, "inputs": self.data["inputs"].double()}
        try:
            if self.in_float64 is None:
                self.in_float64 = predictions(copy.deepcopy(self.model).double(), double)
            found = predictions(copy.deepcopy(model).double(), double)
        except (RuntimeError, NotImplementedError):  # an operator of mmcv, or a head that makes float32 tensors
            if worst <= 1e-5:
                return worst, "maps"
            pair = [maps(copy.deepcopy(network).double(), double) for network in (model, self.model)]
            return largest_difference(*pair), "maps in float64"
        return largest_difference(found, self.in_float64), "predictions in float64"
