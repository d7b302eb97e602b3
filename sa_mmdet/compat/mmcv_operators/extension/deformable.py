"""Deformable convolution (Dai et al., 2017) and its second version (Zhu et al., 2019), by torchvision's operator."""

from typing import Any

import torch
import torchvision.ops
from torch import Tensor


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **options: int
) -> None:
    """Compute a convolution that samples the input for each element (tap) of its kernel at an offset.

    Args:
        input: (batch, channels, height, width).
        weight: (out channels, channels / groups, kernel height, kernel width).
        offset: (batch, deformable groups * taps * 2, height of the output, width of the output), y before x.
        output: (batch, out channels, height of the output, width of the output); the result is written to it.
        columns: Not used; a buffer of mmcv.
        ones: Not used; a buffer of mmcv.
        options: mmcv's stride (dH, dW), padding (padH, padW) and dilation (dilationH, dilationW). The shapes determine
            the groups; im2col_step, the number of images that mmcv processes at once, does not change the result.
    """
    output.copy_(_convolve(input, weight, offset, **_geometry(options)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **options: int,
) -> None:
    """Compute the gradients of input and offset, and write them to grad_input and grad_offset."""
    geometry = _geometry(options)
    gradients = _gradients(grad_output, dict(input=input, offset=offset), dict(weight=weight), geometry)
    grad_input.copy_(gradients["input"])
    grad_offset.copy_(gradients["offset"])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **options: int,
) -> None:
    """Compute the gradient of the weight, and add it, multiplied by scale, to grad_weight."""
    weight = torch.zeros_like(grad_weight)  # any values: the convolution is linear in the weight
    gradients = _gradients(grad_output, dict(weight=weight), dict(input=input, offset=offset), _geometry(options))
    grad_weight.add_(gradients["weight"], alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **options: int,
) -> None:
    """Like :func:`deform_conv_forward`, with each sample multiplied by a mask, and with a bias.

    Args:
        input: (batch, channels, height, width).
        weight: (out channels, channels / groups, kernel height, kernel width).
        bias: (out channels,); ignored unless with_bias is set.
        ones: Not used; a buffer of mmcv.
        offset: (batch, deformable groups * taps * 2, height of the output, width of the output), y before x.
        mask: (batch, deformable groups * taps, height of the output, width of the output).
        output: (batch, out channels, height of the output, width of the output); the result is written to it.
        columns: Not used; a buffer of mmcv.
        with_bias: Whether to add the bias.
        options: mmcv's stride_h, stride_w, pad_h, pad_w, dilation_h and dilation_w. The shapes determine the groups.
    """
    biases = dict(bias=bias) if with_bias else {}
    output.copy_(_convolve(input, weight, offset, mask=mask, **biases, **_geometry(options)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **options: int,
) -> None:
    """Compute the gradients of :func:`modulated_deform_conv_forward`, and write them to the five grad_ tensors."""
    inputs = dict(input=input, weight=weight, offset=offset, mask=mask) | (dict(bias=bias) if with_bias else {})
    written = dict(input=grad_input, weight=grad_weight, offset=grad_offset, mask=grad_mask, bias=grad_bias)
    for name, gradient in _gradients(grad_output, inputs, {}, _geometry(options)).items():
        written[name].copy_(gradient)


def _geometry(options: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Give the arguments of mmcv's first or second version torchvision's names."""
    modulated = "stride_h" in options
    names = dict(
        stride=("stride_h", "stride_w") if modulated else ("dH", "dW"),
        padding=("pad_h", "pad_w") if modulated else ("padH", "padW"),
        dilation=("dilation_h", "dilation_w") if modulated else ("dilationH", "dilationW"),
    )
    return {name: (options[vertical], options[horizontal]) for name, (vertical, horizontal) in names.items()}


def _convolve(input: Tensor, weight: Tensor, offset: Tensor, **options: Any) -> Tensor:
    return torchvision.ops.deform_conv2d(input, offset, weight, **options)


def _gradients(
    grad_output: Tensor, differentiated: dict[str, Tensor], constant: dict[str, Tensor], geometry: dict[str, Any]
) -> dict[str, Tensor]:
    """The gradients of some of the inputs, by their names; the other inputs are constant."""
    leaves = {name: value.detach().requires_grad_() for name, value in differentiated.items()}
    with torch.enable_grad():
        output = _convolve(**leaves, **constant, **geometry)
    gradients = dict(zip(leaves, torch.autograd.grad(output, list(leaves.values()), grad_output), strict=True))
    if "offset" in gradients:
        inputs = {**differentiated, **constant}
        inside = _samples_inside(inputs["offset"], inputs["input"].shape[2:], inputs["weight"].shape[2:], **geometry)
        gradients["offset"] = gradients["offset"] * inside
    return gradients


def _samples_inside(
    offset: Tensor,
    size: torch.Size,
    kernel: torch.Size,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """A mask of the offsets that have a gradient in mmcv: those of samples less than one pixel outside of the input.

    In torchvision samples exactly one pixel outside have a gradient too; if all offsets are 0, the samples in a padding
    of one pixel are there.
    """
    batch, _, *out = offset.shape
    taps = torch.meshgrid(*(torch.arange(length, device=offset.device) for length in kernel), indexing="ij")
    shifts = offset.detach().view(batch, -1, kernel.numel(), 2, *out)
    inside = torch.ones_like(shifts[:, :, :, 0], dtype=torch.bool)
    for axis in (0, 1):
        corners = torch.arange(out[axis], device=offset.device) * stride[axis] - padding[axis]
        regular = taps[axis].reshape(-1, 1, 1) * dilation[axis] + (corners[:, None] if axis == 0 else corners)
        position = regular + shifts[:, :, :, axis]
        inside &= (position > -1) & (position < size[axis])
    return inside.unsqueeze(3).expand_as(shifts).reshape(offset.shape)
