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
    """Average the features in each bin of each region (He et al., Mask R-CNN, 2017).

    Args:
        input: (batch, channels, height, width).
        rois: (regions, 5): the index of the image in the batch, and the corners x1, y1, x2, y2.
        output: (regions, channels, aligned_height, aligned_width); the result is written to it.
        argmax_y: Not used; for max pooling.
        argmax_x: Not used; for max pooling.
        aligned_height: The number of bins per region from top to bottom.
        aligned_width: The number of bins per region from left to right.
        spatial_scale: The factor from the corners' unit to pixels of the features.
        sampling_ratio: The number of samples per bin along each axis; 0 for one per pixel.
        pool_mode: 0 for max pooling, 1 for average pooling.
        aligned: Whether the centre of a pixel is at 0.5 instead of 0.

    Raises:
        NotImplementedError: Max pooling is requested, which torchvision does not have.
        RuntimeError: A region has a negative size, with aligned on a CPU, where mmcv raises an error too.
    """
    if pool_mode == 0:
        refuse("roi_align with pool_mode='max'")
    if aligned and rois.device.type == "cpu" and bool((rois[:, 3:] < rois[:, 1:3]).any()):
        raise RuntimeError("RoIAlign with aligned=True needs regions with x1 <= x2 and y1 <= y2")
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
    """Compute the gradient of :func:`roi_align_forward`'s input, and write it to grad_input."""
    # The average is linear in the input: its gradient does not depend on the input's values.
    features = torch.zeros_like(grad_input, requires_grad=True)
    bins = (aligned_height, aligned_width)
    with torch.enable_grad():
        output = torchvision.ops.roi_align(features, rois, bins, spatial_scale, sampling_ratio, aligned)
    [gradient] = torch.autograd.grad(output, features, grad_output)
    grad_input.copy_(gradient)
