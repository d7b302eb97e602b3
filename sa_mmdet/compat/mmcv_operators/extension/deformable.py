"""Deformable convolution (Dai et al., 2017) and its second version (Zhu et al., 2019), by torchvision's operator."""

from typing import Any

import torch
import torchvision.ops
from torch import Tensor


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **options: int
) -> None:
    """Convolution that samples each tap of the kernel at an offset.

    Args:
        input: (batch, channels, height, width).
        weight: (out channels, channels / groups, kernel height, kernel width).
        offset: (batch, deformable groups * taps * 2, height of the output, width of the output), y before x.
        output: Which is written.
        columns: Unused, mmcv's buffer.
        ones: Unused, mmcv's buffer.
        options: mmcv's stride (dH, dW), padding (padH, padW) and dilation (dilationH, dilationW). The groups follow
            from the shapes; what mmcv computes at once (im2col_step) does not change the result.
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
    """The gradients of input and offset, written to grad_input and grad_offset."""
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
    """The gradient of the weight, added scale times to grad_weight."""
    weight = torch.zeros_like(grad_weight)  # in which the convolution is linear
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
    """As :func:`deform_conv_forward`, each sample multiplied by a mask, and with a bias.

    Args:
        input: (batch, channels, height, width).
        weight: (out channels, channels / groups, kernel height, kernel width).
        bias: (out channels,), ignored without with_bias.
        ones: Unused, mmcv's buffer.
        offset: (batch, deformable groups * taps * 2, height of the output, width of the output), y before x.
        mask: (batch, deformable groups * taps, height of the output, width of the output).
        output: Which is written.
        columns: Unused, mmcv's buffer.
        with_bias: Add the bias.
        options: mmcv's stride_h, stride_w, pad_h, pad_w, dilation_h and dilation_w. The groups follow from the shapes.
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
    """The gradients of :func:`modulated_deform_conv_forward`'s inputs, written to the five grad_ tensors."""
    inputs = dict(input=input, weight=weight, offset=offset, mask=mask) | (dict(bias=bias) if with_bias else {})
    written = dict(input=grad_input, weight=grad_weight, offset=grad_offset, mask=grad_mask, bias=grad_bias)
    for name, gradient in _gradients(grad_output, inputs, {}, _geometry(options)).items():
        written[name].copy_(gradient)


def _geometry(options: dict[str, int]) -> dict[str, tuple[int, int]]:
    """torchvision's names for the arguments of mmcv's first or second version."""
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
    grad_output: Tensor, wanted: dict[str, Tensor], given: dict[str, Tensor], geometry: dict[str, Any]
) -> dict[str, Tensor]:
    """The gradients of the wanted inputs by their names."""
    leaves = {name: value.detach().requires_grad_() for name, value in wanted.items()}
    with torch.enable_grad():
        output = _convolve(**leaves, **given, **geometry)
    gradients = dict(zip(leaves, torch.autograd.grad(output, list(leaves.values()), grad_output), strict=True))
    if "offset" in gradients:
        inputs = {**wanted, **given}
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
    """Where offsets have a gradient in mmcv: at samples less than a pixel outside the input.

    torchvision gives them one a whole pixel outside, too, where all samples of the padding lie while offsets are 0.
    """
    batch, _, *out = offset.shape
    taps = torch.meshgrid(*(torch.arange(length, device=offset.device) for length in kernel), indexing="ij")
    shifts = offset.detach().view(batch, -1, kernel.numel(), 2, *out)
    inside = torch.ones_like(shifts[:, :, :, 0], dtype=torch.bool)
    for axis in (0, 1):
        along = torch.arange(out[axis], device=offset.device) * stride[axis] - padding[axis]
        base = taps[axis].reshape(-1, 1, 1) * dilation[axis] + (along[:, None] if axis == 0 else along)
        position = base + shifts[:, :, :, axis]
        inside &= (position > -1) & (position < size[axis])
    return inside.unsqueeze(3).expand_as(shifts).reshape(offset.shape)
