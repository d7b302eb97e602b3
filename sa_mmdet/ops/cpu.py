"""The fused operator on CPUs, by PyTorch's operators: two statistics per channel, and a backward that is written out.

With m and v the mean and the variance of a channel of x over its L positions, y = scale * x + shift (a batch norm in
evaluation mode, or x itself), d = scale * (x - m) and rstd = 1 / sqrt(scale^2 * v + eps):

    channel branch:  gate = sigmoid(channel_weight * (scale * m + shift) + channel_bias)
    spatial branch:  gate = sigmoid(logit_weight * rstd * d + logit_bias)
                     logit_weight = spatial_weight * norm_weight
                     logit_bias = spatial_weight * norm_bias + spatial_bias
    alone:           out[shuffled channel] = y * gate
    residual:        out[shuffled channel] = relu(identity + y * gate)

Forward keeps x, out, m and rstd; backward computes the gates again. Both work on one block of groups after the other,
so that no intermediate result is as large as x. PyTorch's group norm, with one channel per group, normalises the
spatial branch, forward and backward. It takes contiguous rows of one channel each, and gets d in place of y, so that
a mean far from zero costs no precision.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .reference import parameter_gradients
from .tensors import at_least_float32, unshuffled_halves

# Elements of a block: enough that calling PyTorch's operators costs little beside their work, few enough for a cache.
BLOCK = 1 << 20

# Axes of the views below: image, half of the channels, group in the half, channel of the branch, position.
_IMAGE, _GROUP = 0, 2


def forward(
    x: Tensor,
    identity: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    parameters: Tensor,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute shuffle attention of scale * x + shift, with the end of a residual block if there is an identity.

    Args:
        x: N x C x H x W.
        identity: N x C x H x W, or None for the attention alone.
        scale: C elements, or None for 1.
        shift: C elements, or None for 0.
        parameters: 6 x K, as :class:`sa_mmdet.ops.reference.Parameters` orders them.
        groups: G, even.
        eps: Added to the variance.

    Returns:
        The output (N x C x H x W, of the dtype of x), and in float32 or float64 the mean of x over its positions
        (N x C) and the spatial branch's rstd (N x C/2).
    """
    n, channels = x.shape[:2]
    context = _Context(x, identity is not None, scale, shift, parameters, groups)
    x = x.contiguous()
    out = torch.empty_like(x)
    identity = out if identity is None else identity.contiguous()  # a placeholder where there is none, never read
    mean = x.new_empty((n, channels, 1, 1), dtype=context.dtype)
    rstd = x.new_empty((n, 2, groups // 2, channels // (2 * groups), 1), dtype=context.dtype)
    plain = [_branches(tensor, groups) for tensor in (x, mean)]
    shuffled = [_shuffled_branches(tensor, groups) for tensor in (identity, out)]
    channel, spatial = zip(*plain, *shuffled, context.scale, context.shift, strict=True)
    for block in _blocks(*channel):
        _channel_forward(context, *block)
    for block in _blocks(*spatial, rstd):
        _spatial_forward(context, eps, *block)
    return out, mean.view(n, channels), rstd.view(n, channels // 2)


def backward(
    grad_out: Tensor,
    x: Tensor,
    out: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    parameters: Tensor,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of all inputs of :func:`forward`.

    Args:
        grad_out: The gradient of the output, N x C x H x W.
        x: As forward took it; so are the arguments from ``scale`` on.
        out: Forward's output, None if there was no identity.
        mean: As forward returned it.
        rstd: As forward returned it.

    Returns:
        The gradients of x (N x C x H x W), identity (the same, or empty if ``out`` is None), scale (C), shift (C) and
        parameters (6 x K).
    """
    n, channels = x.shape[:2]
    context = _Context(x, out is not None, scale, shift, parameters, groups)
    x, grad_out = x.contiguous(), grad_out.contiguous()
    grad_x = torch.empty_like(x)
    grad_identity = x.new_empty(0) if out is None else torch.empty_like(x)
    # Per image and channel: the sums over the positions of dL/dy, of dL/dy * x and of dL/dlogit.
    sums = sum_grad_y, sum_grad_y_x, _ = x.new_empty((3, n, channels, 1, 1), dtype=context.dtype).unbind()
    plain = [_branches(tensor, groups) for tensor in (x, grad_x, mean.view(n, channels, 1, 1), *sums)]
    maps = (grad_out, grad_out, grad_out) if out is None else (grad_out, out, grad_identity)
    shuffled = [_shuffled_branches(tensor, groups) for tensor in maps]
    channel, spatial = zip(*plain, *shuffled, context.scale, context.shift, strict=True)
    rstd = rstd.view(n, 2, groups // 2, channels // (2 * groups), 1)
    sum_grad_logit_normalised = torch.empty_like(rstd)
    for block in _blocks(*channel):
        _channel_backward(context, *block)
    for block in _blocks(*spatial, rstd, sum_grad_logit_normalised):
        _spatial_backward(context, *block)
    means, logits, all_but_k = plain[2], plain[-1], (0, 1, 2, 4)
    grad_parameters = parameter_gradients(
        parameters.to(context.dtype),
        (logits[0] * (means[0] * context.scale[0] + context.shift[0])).sum(all_but_k),
        logits[0].sum(all_but_k),
        sum_grad_logit_normalised.sum(all_but_k),
        logits[1].sum(all_but_k),
    )
    return grad_x, grad_identity, sum_grad_y_x.sum(0).view(-1), sum_grad_y.sum(0).view(-1), grad_parameters


class _Context:
    """What is the same for all blocks; vectors are in the dtype of the arithmetic.

    Attributes:
        dtype: The dtype of the arithmetic, float32 or float64.
        positions: L.
        residual: Whether there is an identity.
        shifted: Whether there is a shift.
        scale: The scale in the channel branch and in the spatial branch, N x 2 x G/2 x K x 1 each; 1 if there is none.
        shift: The shift, as ``scale``; 0 if there is none.
        channel_weight, channel_bias: As in the formula above, K x 1 each.
        logit_weight, logit_bias: As in the formula above, K x 1 each.
    """

    def __init__(
        self, x: Tensor, residual: bool, scale: Tensor | None, shift: Tensor | None, parameters: Tensor, groups: int
    ):
        n, channels, height, width = x.shape
        self.dtype, self.positions = at_least_float32(x), height * width
        self.residual, self.shifted = residual, shift is not None
        rows = parameters.to(self.dtype).unsqueeze(-1).unbind()
        self.channel_weight, self.channel_bias, spatial_weight, spatial_bias, norm_weight, norm_bias = rows
        self.logit_weight = spatial_weight * norm_weight
        self.logit_bias = spatial_weight * norm_bias + spatial_bias
        scale = parameters.new_ones((), dtype=self.dtype) if scale is None else scale.to(self.dtype)
        shift = parameters.new_zeros((), dtype=self.dtype) if shift is None else shift.to(self.dtype)
        self.scale, self.shift = (
            _branches(vector.expand(channels).view(1, channels, 1, 1).expand(n, -1, -1, -1), groups)
            for vector in (scale, shift)
        )


def _branches(x: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Views of the channel and the spatial branch of N x C x H x W, N x 2 x G/2 x K x L each."""
    return _split(x.unflatten(1, (2, x.shape[1] // 2)), groups)


def _shuffled_branches(x: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Views of the same channels as :func:`_branches` has, in a tensor whose channels are shuffled."""
    return _split(unshuffled_halves(x), groups)


def _split(halves: Tensor, groups: int) -> tuple[Tensor, ...]:
    n, _, c, h, w = halves.shape
    return halves.view(n, 2, groups // 2, 2, c // groups, h * w).unbind(3)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors with the same axes but the last into blocks; of the first tensor, about ``BLOCK`` elements each."""
    first = tensors[0]
    n, half = first.shape[_IMAGE], first.shape[_GROUP]
    image = max(1, first[0].numel())
    images, step = max(1, BLOCK // image), max(1, half * BLOCK // image)
    if images >= n and step >= half:
        yield tensors
        return
    for parts in zip(*(tensor.split(images, _IMAGE) for tensor in tensors), strict=True):
        yield from zip(*(part.split(step, _GROUP) for part in parts), strict=True)


# The functions below work on one block: B x L, where B stands for all axes but the last. They write their results
# into views that they are given: ``out``, ``grad_x`` and ``grad_identity`` (B x L), statistics and sums (B x 1).


def _channel_forward(
    context: _Context, x: Tensor, mean: Tensor, identity: Tensor, out: Tensor, scale: Tensor, shift: Tensor
) -> None:
    torch.mean(x, -1, True, dtype=context.dtype, out=mean)
    gate = _channel_gate(context, mean, scale, shift)
    result = out if out.dtype == context.dtype else torch.empty(x.shape, dtype=context.dtype)
    torch.mul(x, scale * gate, out=result)
    if context.shifted:
        result.add_(gate.mul_(shift))
    if context.residual:
        result.add_(identity).relu_()
    if result is not out:
        out.copy_(result)


def _spatial_forward(context: _Context, eps: float, *block: Tensor) -> None:
    x, mean, identity, out, scale, shift, rstd = block
    torch.mean(x, -1, True, dtype=context.dtype, out=mean)
    deviation = _deviation(context, x, mean, scale)
    count = mean.numel()
    weight, bias = _per_row(context.logit_weight, mean), _per_row(context.logit_bias, mean)
    logit, _, found = torch.native_group_norm(_rows(deviation), weight, bias, 1, count, context.positions, count, eps)
    rstd.copy_(found.view(rstd.shape))
    gate = logit.sigmoid_().view(x.shape)
    y = deviation.add_((scale * mean).add_(shift))
    result = out if out.dtype == context.dtype else deviation
    if context.residual:
        torch.addcmul(identity.to(context.dtype), y, gate, out=result).relu_()
    else:
        torch.mul(y, gate, out=result)
    if result is not out:
        out.copy_(result)


def _channel_backward(context: _Context, *block: Tensor) -> None:
    x, grad_x, mean, sum_grad_y, sum_grad_y_x, sum_grad_logit, grad_out, out, grad_identity, scale, shift = block
    grad = _grad_before_relu(context, grad_out, out, grad_identity)
    # First the sums are of the gradient of y * gate, at last of the gradient of y.
    torch.sum(grad, -1, True, out=sum_grad_y)
    sum_grad_y_x.copy_(torch.linalg.vecdot(grad, x.to(context.dtype)).unsqueeze(-1))
    gate = _channel_gate(context, mean, scale, shift)
    grad_gate = (scale * sum_grad_y_x).add_(shift * sum_grad_y)
    torch.ops.aten.sigmoid_backward.grad_input(grad_gate, gate, grad_input=sum_grad_logit)
    grad_mean = sum_grad_logit * (context.channel_weight / context.positions)
    result = grad_x if grad_x.dtype == context.dtype else torch.empty(x.shape, dtype=context.dtype)
    torch.mul(grad, scale * gate, out=result).add_(scale * grad_mean)
    grad_mean.mul_(context.positions)
    sum_grad_y.mul_(gate).add_(grad_mean)
    sum_grad_y_x.mul_(gate).add_(grad_mean.mul_(mean))
    if result is not grad_x:
        grad_x.copy_(result)


def _spatial_backward(context: _Context, *block: Tensor) -> None:
    x, grad_x, mean, sum_grad_y, sum_grad_y_x, sum_grad_logit, grad_out, out, grad_identity, *rest = block
    scale, shift, rstd, sum_grad_logit_normalised = rest
    grad, wide = _grad_before_relu(context, grad_out, out, grad_identity), x.to(context.dtype)
    deviation = _deviation(context, wide, mean, scale)
    gate = (deviation * (context.logit_weight * rstd)).add_(context.logit_bias).sigmoid_()
    grad_logit = (deviation + (scale * mean).add_(shift)).mul_(grad)
    torch.ops.aten.sigmoid_backward.grad_input(grad_logit, gate, grad_input=grad_logit)
    count = mean.numel()
    grad_deviation, grad_weight, grad_bias = torch.ops.aten.native_group_norm_backward(
        _rows(grad_logit),
        _rows(deviation),
        mean.new_zeros(1, count),
        rstd.reshape(1, count),
        _per_row(context.logit_weight, mean),
        *(1, count, context.positions, count),
        [True, True, True],
    )
    grad_y = gate.mul_(grad).add_(grad_deviation.view(x.shape))
    torch.sum(grad_y, -1, True, out=sum_grad_y)
    sum_grad_y_x.copy_(torch.linalg.vecdot(grad_y, wide).unsqueeze(-1))
    sum_grad_logit.copy_(grad_bias.view(mean.shape))
    sum_grad_logit_normalised.copy_(grad_weight.view(mean.shape))
    if grad_x.dtype == context.dtype:
        torch.mul(grad_y, scale, out=grad_x)
    else:
        grad_x.copy_(grad_y.mul_(scale))


def _channel_gate(context: _Context, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (scale * mean).add_(shift).mul_(context.channel_weight).add_(context.channel_bias).sigmoid_()


def _deviation(context: _Context, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """scale * (x - mean), contiguous, which PyTorch's own choice of a layout may not be."""
    return torch.sub(x, mean, out=torch.empty(x.shape, dtype=context.dtype)).mul_(scale)


def _grad_before_relu(context: _Context, grad_out: Tensor, out: Tensor, grad_identity: Tensor) -> Tensor:
    """The gradient before the ReLU, which is also that of the identity and is written there."""
    if context.residual:
        grad_out = torch.ops.aten.threshold_backward.grad_input(grad_out, out, 0, grad_input=grad_identity)
    return grad_out.to(context.dtype)


def _rows(x: Tensor) -> Tensor:
    """1 x B x L, the shape in which group norm takes one channel per group."""
    return x.reshape(1, -1, x.shape[-1])


def _per_row(vector: Tensor, like: Tensor) -> Tensor:
    """The element of K x 1 for each row of ``like`` (B x 1), contiguous: group norm's kernel ignores strides."""
    return vector.expand(like.shape).contiguous().view(-1)
