"""Whether two detectors predict the same: their feature maps and predictions on some images, compared."""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from .network import Network

_NOISE_IMAGES = 2
# What feature maps and heads are computed in: some operators and heads know float32 alone.
_PRECISIONS = ((torch.float64, torch.float64), (torch.float64, torch.float32), (torch.float32, torch.float32))


@dataclass
class Agreement:
    """How far the outputs of two detectors differ.

    Attributes:
        difference: The largest difference of a value, divided by the largest value of its tensor; infinite if they
            detect different numbers of objects.
        detections: How many objects the first one detects in all images.
        dtype: In which the heads were computed, float64 where they can be; feature maps are, too, where they can be.
    """

    difference: float
    detections: int
    dtype: torch.dtype


def compare_predictions(
    one: tuple[str | Path, str | Path], other: tuple[str | Path, str | Path], images: Sequence[str | Path] = ()
) -> Agreement:
    """Compare the feature maps and the predictions of two detectors.

    Args:
        one: A detector's config and checkpoint.
        other: The other's.
        images: The images; noise if there are none.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file does not fit or is not an image.
    """
    networks = Network(*one), Network(*other)
    precisions = list(_PRECISIONS)
    worst, detections = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        for image in list(images) or [_noise(Path(folder, f"{number}.png"), number) for number in range(_NOISE_IMAGES)]:
            inputs = [(network, *network.read(image)[1:]) for network in networks]
            (ours, count), (theirs, _) = _first_possible(inputs, precisions)
            detections += count
            worst = max(worst, _largest_difference(ours, theirs))
    return Agreement(worst, detections, precisions[0][1])


def _first_possible(inputs: list[Any], precisions: list[Any]) -> list[tuple[list[Tensor], int]]:
    """The outputs in the first of the precisions that can be computed; those before it are removed from the list."""
    while True:
        try:
            return [_outputs(*given, *precisions[0]) for given in inputs]
        except (RuntimeError, NotImplementedError):
            if len(precisions) == 1:
                raise
            del precisions[0]


def _noise(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(pixels, (640, 480), interpolation=cv2.INTER_LINEAR))
    return path


def _outputs(
    network: Network, sample: Any, x: Tensor, of_maps: torch.dtype, of_heads: torch.dtype
) -> tuple[list[Tensor], int]:
    """The feature maps and the predictions of an image, and how many detections there are."""
    model = network.model.to(of_heads)
    vars(model).pop("extract_feat", None)  # of another precision
    if of_maps != of_heads:
        _compute_maps_in(of_maps, of_heads, model)
    with torch.no_grad(), network.in_scope():
        maps = [level for level in model.extract_feat(x.to(of_heads)) if isinstance(level, Tensor)]
        [result] = model.predict(x.to(of_heads), [copy.deepcopy(sample)], rescale=True)
    instances, segments = (getattr(result, name, None) for name in ("pred_instances", "pred_panoptic_seg"))
    values = [value for part in (instances, segments) if part is not None for _, value in sorted(part.items())]
    tensors = [value for value in values if isinstance(value, Tensor)]
    return [*maps, *tensors], len(instances) if instances is not None else 0


def _compute_maps_in(of_maps: torch.dtype, of_heads: torch.dtype, model: Any) -> None:
    """Give heads that know float32 alone maps without its rounding, which changes the order of similar scores."""
    for name in ("backbone", "neck"):
        if getattr(model, name, None) is not None:
            getattr(model, name).to(of_maps)
    extract = type(model).extract_feat

    def extract_feat(x: Tensor, *arguments: Any, **options: Any) -> Any:
        found = extract(model, x.to(of_maps), *arguments, **options)
        return tuple(level.to(of_heads) if isinstance(level, Tensor) else level for level in found)

    model.extract_feat = extract_feat


def _largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if one.shape != other.shape:
            return float("inf")
        if one.numel():
            one, other = one.double(), other.double()
            worst = max(worst, ((one - other).abs().max() / one.abs().max().clamp(min=1e-6)).item())
    return worst
