"""RoIAlign with average pooling, by torchvision's operator."""

import torch
import torchvision.ops
from torch import Tensor

from .refusal import refuse


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average features over the bins of regions (He et al., Mask R-CNN, 2017).

    Args:
        input: (batch, channels, height, width).
        rois: (regions, 5), an index into the batch and corners.
        output: (regions, channels, aligned_height, aligned_width), which is written.
        argmax_y: Unused, for max pooling.
        argmax_x: Unused, for max pooling.
        aligned_height: Bins of a region, from top to bottom.
        aligned_width: Bins of a region, from left to right.
        spatial_scale: From the corners' unit to the features' pixels.
        sampling_ratio: Samples of a bin along each axis; 0 takes as many as it has pixels.
        pool_mode: 0 for max pooling, 1 for the average.
        aligned: Pixels' centres lie at halves.

    Raises:
        NotImplementedError: Max pooling, which torchvision does not have.
        RuntimeError: A region of negative size with aligned, on the CPU, where mmcv refuses it, too.
    """
    if pool_mode == 0:
        refuse("roi_align with pool_mode='max'")
    if aligned and rois.device.type == "cpu" and bool((rois[:, 3:] < rois[:, 1:3]).any()):
        raise RuntimeError("RoIAlign with aligned=True takes regions with x1 <= x2 and y1 <= y2 only")
    bins = (aligned_height, aligned_width)
    output.copy_(torchvision.ops.roi_align(input, rois, bins, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """The gradient of :func:`roi_align_forward`'s input, written to grad_input."""
    # The average is linear in the input, so that any input of the shape has the same gradient.
    features = torch.zeros_like(grad_input, requires_grad=True)
    bins = (aligned_height, aligned_width)
    with torch.enable_grad():
        output = torchvision.ops.roi_align(features, rois, bins, spatial_scale, sampling_ratio, aligned)
    [gradient] = torch.autograd.grad(output, features, grad_output)
    grad_input.copy_(gradient)
