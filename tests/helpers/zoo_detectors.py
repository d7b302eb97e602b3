"""Detectors of MMDetection's configs without their weights, on a made-up image."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmdet.testing import demo_mm_inputs, demo_mm_proposals
from mmengine.config import Config
from mmengine.utils import get_installed_path
from places import MMDETECTION
from torch import Tensor, nn

ROOT = Path(get_installed_path(MMDETECTION), ".mim", "configs")


def single_detector(config: str) -> Any:
    """The config of the detector, of its student where it has a teacher, of its detector where it tracks."""
    model = copy.deepcopy(Config.fromfile(ROOT / f"{config}.py").model)
    model = model.get("detector", model)
    for part in parts(model):
        part.pop("init_cfg", None)
        part.pop("teacher_ckpt", None)
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


def batch(model: Any, cfg: Any, width: int = 128) -> dict[str, Any]:
    """A random image with three objects, as the detector's own preprocessor returns it."""
    classes = next((part["num_classes"] for part in parts(cfg) if isinstance(part.get("num_classes"), int)), 80)
    shapes = [(3, 128, width)]
    numbers = dict(num_items=[3], num_classes=min(classes, 10))
    inputs = demo_mm_inputs(1, shapes, **numbers, with_mask=True, with_semantic=True)
    if cfg.type == "FastRCNN":
        for sample, proposals in zip(inputs["data_samples"], demo_mm_proposals(shapes, 20), strict=True):
            sample.proposals = proposals.to_instances() if hasattr(proposals, "to_instances") else proposals
    return model.data_preprocessor(inputs, True)


def predictions(model: Any, data: dict[str, Any]) -> list[Tensor]:
    """All tensors of a detector's predictions."""
    model.eval()
    with torch.no_grad():
        found = model.predict(data["inputs"], copy.deepcopy(data["data_samples"]), rescale=False)
    results: list[Any] = [
        getattr(sample, "pred_instances", getattr(sample, "pred_panoptic_seg", None)) for sample in found
    ]
    return [value.double() for result in results for _, value in sorted(result.items()) if isinstance(value, Tensor)]


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference of an element, divided by the largest element of its tensor."""
    assert len(ours) == len(theirs) > 0
    assert any(tensor.numel() for tensor in theirs)
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if one.shape != other.shape:
            return float("inf")
        if other.numel():
            scale = max(other.abs().max().item(), 1e-3)
            worst = max(worst, (one - other).abs().max().item() / scale)
    return worst


def difference_of_predictions(one: Any, other: Any, data: dict[str, Any]) -> tuple[float, torch.dtype]:
    """The largest difference of two detectors' predictions, and the dtype in which they were computed.

    Random scores are so similar that rounding changes their order. Then it is float64, where that can be computed.
    """
    difference = largest_difference(predictions(one, data), predictions(other, data))
    if difference <= 1e-5:
        return difference, torch.float32
    double = {**data, "inputs": data["inputs"].double()}
    found = [predictions(copy.deepcopy(model).double(), double) for model in (one, other)]
    return largest_difference(*found), torch.float64
