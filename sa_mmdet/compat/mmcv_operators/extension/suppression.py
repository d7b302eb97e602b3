"""Non-maximum suppression, in single precision as mmcv's."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torchvision.ops
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """The boxes that overlap no better one by more than the threshold.

    Args:
        boxes: (n, 4), corners x1, y1, x2, y2.
        scores: (n,).
        iou_threshold: Largest intersection over union that is kept.
        offset: Added to each width and height, 0 or 1.

    Returns:
        Indices of the kept boxes, best first.
    """
    # Sorted by mmcv's own call: torchvision's orders equal scores otherwise.
    order = scores.sort(0, descending=True)[1]
    boxes = boxes.float()[order]
    if offset:  # which torchvision does not have
        best = [first for first, _ in _clusters(boxes, lambda overlap: overlap > np.float32(iou_threshold), offset)]
        return order[torch.tensor(best, dtype=torch.long, device=order.device)]
    descending = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    # mmcv compares with the threshold in single precision, torchvision in double.
    return order[torchvision.ops.nms(boxes, descending, float(np.float32(iou_threshold)))]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Each kept box, and after it those that it suppresses: overlaps of at least the threshold.

    Args:
        dets: (n, 5), corners and score.
        iou_threshold: Smallest intersection over union that is suppressed.

    Returns:
        Indices of the boxes, by clusters, best first.
    """
    order = dets[:, 4].sort(0, descending=True)[1]
    clusters = _clusters(dets[order, :4], lambda overlap: overlap >= np.float32(iou_threshold))
    return [order[[first, *others]].tolist() for first, others in clusters]


def _clusters(
    boxes: Tensor, suppressed: Callable[[Array], NDArray[np.bool_]], offset: int = 0
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The kept ones of the sorted boxes, each with those that it suppresses."""
    corners = boxes.detach().float().cpu().numpy()
    areas = _areas(corners, offset)
    left = np.arange(len(corners))
    while len(left):
        first, others = left[0], left[1:]
        overlap = _overlaps(corners[first], areas[first], corners[others], areas[others], offset)
        hit = suppressed(overlap)
        yield int(first), others[hit]
        left = others[~hit]


def _areas(corners: Array, offset: int) -> Array:
    return (corners[:, 2] - corners[:, 0] + offset) * (corners[:, 3] - corners[:, 1] + offset)


def _overlaps(box: Array, area: Array, corners: Array, areas: Array, offset: int) -> Array:
    """Intersection over union of a box with others, each step rounded as mmcv's."""
    width = np.minimum(box[2], corners[:, 2]) - np.maximum(box[0], corners[:, 0]) + offset
    height = np.minimum(box[3], corners[:, 3]) - np.maximum(box[1], corners[:, 1]) + offset
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # boxes without an area, as in mmcv
        return intersection / (area + areas - intersection)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft NMS: a box's score decays by its overlaps with better ones (Bodla et al., 2017).

    Args:
        boxes: (n, 4), corners, on the CPU.
        scores: (n,).
        dets: (n, 5), which the kept boxes and their decayed scores are written to, best first.
        iou_threshold: Overlap from which on scores decay, but for the Gaussian method.
        sigma: Width of the Gaussian.
        min_score: Boxes are dropped below it.
        method: 0 sets scores to 0, 1 decays linearly, 2 by a Gaussian.
        offset: Added to each width and height, 0 or 1.

    Returns:
        Indices of the kept boxes, in the order of dets.
    """
    corners = boxes.detach().float().numpy().copy()
    current = scores.detach().float().numpy().copy()
    areas = _areas(corners, offset)
    indices = np.arange(len(corners))
    done = 0
    while done < len(indices):
        best = done + _first_largest(current[done:])
        for values in (corners, current, areas, indices):
            values[[done, best]] = values[[best, done]]
        rest = slice(done + 1, None)
        overlap = _overlaps(corners[done], areas[done], corners[rest], areas[rest], offset)
        current[rest] *= _decay(overlap, np.float32(iou_threshold), np.float32(sigma), method)
        kept = np.concatenate([np.arange(done + 1), done + 1 + _survivors(current[rest] < np.float32(min_score))])
        corners, current, areas, indices = corners[kept], current[kept], areas[kept], indices[kept]
        done += 1
    dets[: len(indices)] = torch.from_numpy(np.concatenate([corners, current[:, None]], axis=1))
    return torch.from_numpy(indices)


def _first_largest(scores: Array) -> int:
    """As mmcv's search, in which nothing is larger than NaN and NaN is larger than nothing."""
    return 0 if np.isnan(scores[0]) else int(np.nanargmax(scores))


def _decay(overlap: Array, threshold: np.float32, sigma: np.float32, method: int) -> Array:
    if method == 2:
        # By way of double precision the exponential is rounded as C's, numpy's own in single precision is not.
        return np.exp((-(overlap * overlap) / sigma).astype(np.float64)).astype(np.float32)
    decayed = np.float32(0) if method == 0 else 1 - overlap
    return np.where(overlap >= threshold, decayed, np.float32(1))


def _survivors(dropped: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Positions of those kept, in mmcv's order, on which equal scores depend: the last one fills the first gap."""
    count = int(np.count_nonzero(~dropped))
    order = np.arange(count)
    order[dropped[:count]] = (count + np.flatnonzero(~dropped[count:]))[::-1]
    return order
