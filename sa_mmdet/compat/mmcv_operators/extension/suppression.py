"""Non-maximum suppression (NMS), in single precision like mmcv's."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torchvision.ops
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Find the boxes that do not overlap a kept box with a higher score by more than the threshold.

    Args:
        boxes: (n, 4), corners x1, y1, x2, y2.
        scores: (n,).
        iou_threshold: The largest intersection over union of two kept boxes.
        offset: Is added to each width and height, 0 or 1.

    Returns:
        The indices of the kept boxes, in descending order of their scores.
    """
    # Sorted by the same call as in mmcv: torchvision's NMS orders equal scores in another way.
    order = scores.sort(0, descending=True)[1]
    boxes = boxes.float()[order]
    if offset:  # torchvision has no such option
        best = [first for first, _ in _clusters(boxes, lambda overlap: overlap > np.float32(iou_threshold), offset)]
        return order[torch.tensor(best, dtype=torch.long, device=order.device)]
    descending = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    # mmcv compares with the threshold in single precision, torchvision in double.
    return order[torchvision.ops.nms(boxes, descending, float(np.float32(iou_threshold)))]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Find the boxes that NMS keeps, and for each of them those that it suppresses.

    Args:
        dets: (n, 5), corners x1, y1, x2, y2 and score.
        iou_threshold: The smallest intersection over union at which a box is suppressed.

    Returns:
        For each kept box its index, followed by the indices of the boxes that it suppresses.
    """
    order = dets[:, 4].sort(0, descending=True)[1]
    clusters = _clusters(dets[order, :4], lambda overlap: overlap >= np.float32(iou_threshold))
    return [order[[first, *others]].tolist() for first, others in clusters]


def _clusters(
    boxes: Tensor, suppressed: Callable[[Array], NDArray[np.bool_]], offset: int = 0
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """For sorted boxes, give the index of each kept box and the indices of the boxes that it suppresses."""
    corners = boxes.detach().float().cpu().numpy()
    areas = _areas(corners, offset)
    remaining = np.arange(len(corners))
    while len(remaining):
        first, others = remaining[0], remaining[1:]
        overlap = _overlaps(corners[first], areas[first], corners[others], areas[others], offset)
        hit = suppressed(overlap)
        yield int(first), others[hit]
        remaining = others[~hit]


def _areas(corners: Array, offset: int) -> Array:
    return (corners[:, 2] - corners[:, 0] + offset) * (corners[:, 3] - corners[:, 1] + offset)


def _overlaps(box: Array, area: Array, corners: Array, areas: Array, offset: int) -> Array:
    """The intersection over union of a box with others; each step is rounded as in mmcv."""
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
    """Soft NMS (Bodla et al., 2017): a box's score decreases with its overlaps with boxes of higher scores.

    Args:
        boxes: (n, 4), corners x1, y1, x2, y2, on the CPU.
        scores: (n,).
        dets: (n, 5); the kept boxes and their new scores are written to it, in descending order of the scores.
        iou_threshold: The smallest overlap at which scores decrease; the Gaussian method has no threshold.
        sigma: The width of the Gaussian.
        min_score: Boxes with a lower new score are dropped.
        method: How scores decrease: 0 to zero, 1 linearly, 2 by a Gaussian.
        offset: Is added to each width and height, 0 or 1.

    Returns:
        The indices of the kept boxes, in the order of dets.
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
    """The index of the first largest score. As in mmcv's search, comparisons with NaN are false."""
    return 0 if np.isnan(scores[0]) else int(np.nanargmax(scores))


def _decay(overlap: Array, threshold: np.float32, sigma: np.float32, method: int) -> Array:
    if method == 2:
        # In double precision and then rounded, as in C; numpy's exponential in single precision is rounded differently.
        return np.exp((-(overlap * overlap) / sigma).astype(np.float64)).astype(np.float32)
    decayed = np.float32(0) if method == 0 else 1 - overlap
    return np.where(overlap >= threshold, decayed, np.float32(1))


def _survivors(dropped: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The positions of the kept boxes in mmcv's order, which matters for equal scores: the last box fills a gap."""
    count = int(np.count_nonzero(~dropped))
    order = np.arange(count)
    order[dropped[:count]] = (count + np.flatnonzero(~dropped[count:]))[::-1]
    return order
