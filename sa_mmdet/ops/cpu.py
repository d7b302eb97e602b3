"""The fused form of shuffle attention: a function of two statistics a channel, with its backward written out.

The mathematics is a SiLU whose slope and offset each image and channel sets by its mean and variance, written to
a permuted channel. With m and v the mean and the variance of x over its positions, y = scale * x + shift (a batch norm
in evaluation mode, or nothing), d = scale * (x - m) and rstd = 1 / sqrt(scale^2 * v + eps):

    channel branch:  gate = sigmoid(cweight * (scale * m + shift) + cbias)
    spatial branch:  gate = sigmoid(sweight * gamma * rstd * d + sweight * beta + sbias)
    out[destination] = y * gate                          attention alone
    out[destination] = relu(identity + y * gate)         attention and the end of a residual block

Forward keeps x, out, m and rstd; backward computes the gates again. Work goes block by block over the groups, so
that no intermediate has the size of x. A block's intermediates are
contiguous rows of one channel each, as PyTorch's group norm takes them, which standardises the spatial branch, forward
and backward, with one channel a group. It is given d, so that a mean far from zero costs no digits.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of a block: enough that calling PyTorch's operators costs little beside their work, few enough for a cache.
BLOCK = 1 << 20

# Axes of the views below: image, half of the channels, group in the half, channel of a branch, position.
_IMAGE, _GROUP = 0, 2


def _branches(tensor: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Channel and spatial branch of N x C x H x W, each N x 2 x G/2 x K x L."""
    n, c, h, w = tensor.shape
    return tensor.view(n, 2, groups // 2, 2, c // (2 * groups), h * w).unbind(3)


def _destinations(tensor: Tensor, groups: int) -> tuple[Tensor, ...]:
    """The same, with each channel where the shuffle puts it: channel c of the one is dest(c) of the other."""
    n, c, h, w = tensor.shape
    return tensor.view(n, groups // 2, 2, c // (2 * groups), 2, h * w).permute(0, 4, 1, 2, 3, 5).unbind(3)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, of equal axes but the last, in pieces of which the first has about ``BLOCK`` elements."""
    first = tensors[0]
    n, half = first.shape[_IMAGE], first.shape[_GROUP]
    image = max(1, first[0].numel())
    images, step = max(1, BLOCK // image), max(1, half * BLOCK // image)
    if images >= n and step >= half:
        yield tensors
        return
    for parts in zip(*(tensor.split(images, _IMAGE) for tensor in tensors), strict=True):
        yield from zip(*(part.split(step, _GROUP) for part in parts), strict=True)


class _Vectors:
    """The six parameters, and of each branch the batch norm's scale and shift, in the dtype of the arithmetic.

    Attributes:
        scale, shift: Of the two branches, each 2 x G/2 x K x 1.
        others: K x 1.
    """

    def __init__(self, parameters: Tensor, scale: Tensor | None, shift: Tensor | None, x: Tensor, groups: int):
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        columns = parameters.to(self.dtype).unsqueeze(-1)
        self.cweight, self.cbias, self.sweight, sbias, self.gamma, self.beta = columns.unbind()
        self.slope, self.offset = self.sweight * self.gamma, self.sweight * self.beta + sbias
        channels = x.shape[1]
        shape = (2, groups // 2, 2, channels // (2 * groups), 1)
        one = parameters.new_ones((), dtype=self.dtype) if scale is None else scale.to(self.dtype)
        zero = parameters.new_zeros((), dtype=self.dtype) if shift is None else shift.to(self.dtype)
        self.scale = one.expand(channels).reshape(shape).unbind(2)
        self.shift = zero.expand(channels).reshape(shape).unbind(2)


def _rows(x: Tensor) -> Tensor:
    """All but the last axis as one, behind an axis of one: the shape in which group norm takes a channel a group."""
    return x.reshape(1, -1, x.shape[-1])


def _each(parameter: Tensor, like: Tensor) -> Tensor:
    """K values for every row; contiguous, for group norm's kernel reads past an expanded tensor's stride of zero."""
    return parameter.expand(like.shape).contiguous().view(-1)


def forward(
    x: Tensor,
    identity: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    parameters: Tensor,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the output, the mean of x (N x C) and the spatial branch's rstd (N x C/2)."""
    n, channels, height, width = x.shape
    positions = height * width
    p = _Vectors(parameters, scale, shift, x, groups)
    x = x.contiguous()
    out = torch.empty_like(x)
    identity = out if identity is None else identity.contiguous()  # a stand-in, not read
    mean = x.new_empty((n, channels, 1, 1), dtype=p.dtype)
    rstd = x.new_empty((n, 2, groups // 2, channels // (2 * groups), 1), dtype=p.dtype)
    residual = identity is not out
    source, added, target, means = (
        _branches(x, groups),
        _destinations(identity, groups),
        _destinations(out, groups),
        _branches(mean, groups),
    )
    per_channel = [t.expand(n, *t.shape) for t in (p.scale[0], p.shift[0])]
    for block, other, to, m, s, t in _blocks(source[0], added[0], target[0], means[0], *per_channel):
        torch.mean(block, -1, True, dtype=p.dtype, out=m)
        gate = (s * m).add_(t).mul_(p.cweight).add_(p.cbias).sigmoid_()
        into = to if to.dtype == p.dtype else torch.empty(block.shape, dtype=p.dtype)
        torch.mul(block, s * gate, out=into)
        if shift is not None:
            into.add_(gate.mul_(t))
        if residual:
            into.add_(other).relu_()
        if into is not to:
            to.copy_(into)
    per_channel = [t.expand(n, *t.shape) for t in (p.scale[1], p.shift[1])]
    for block, other, to, m, r, s, t in _blocks(source[1], added[1], target[1], means[1], rstd, *per_channel):
        torch.mean(block, -1, True, dtype=p.dtype, out=m)
        deviation = torch.empty(block.shape, dtype=p.dtype)  # contiguous, which PyTorch's own choice may not be
        torch.sub(block, m, out=deviation).mul_(s)
        count = m.numel()
        slope, offset = _each(p.slope, m), _each(p.offset, m)
        gate, _, found = torch.native_group_norm(_rows(deviation), slope, offset, 1, count, positions, count, eps)
        r.copy_(found.view(r.shape))
        gate = gate.sigmoid_().view(block.shape)
        y = deviation.add_((s * m).add_(t))
        into = to if to.dtype == p.dtype else deviation
        if residual:
            torch.addcmul(other.to(p.dtype), y, gate, out=into).relu_()
        else:
            torch.mul(y, gate, out=into)
        if into is not to:
            to.copy_(into)
    return out, mean.view(n, channels), rstd.view(n, channels // 2)


def backward(
    gradient: Tensor,
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
    """Gradients of x, identity (empty where ``out`` is None: there was none), scale, shift and the six parameters."""
    n, channels, height, width = x.shape
    positions = height * width
    p = _Vectors(parameters, scale, shift, x, groups)
    x, gradient = x.contiguous(), gradient.contiguous()
    grad_x = torch.empty_like(x)
    grad_identity = x.new_empty(0) if out is None else torch.empty_like(x)
    stand_in = (gradient, gradient) if out is None else (out, grad_identity)
    source, target = _branches(x, groups), _branches(grad_x, groups)
    given, passed, through = (_destinations(tensor, groups) for tensor in (gradient, *stand_in))
    # Sums over the positions: of dL/dy, of dL/dy * x and of dL/dlogit.
    sums, weighted, logits = x.new_empty((3, n, channels, 1, 1), dtype=p.dtype)
    parts = [_branches(tensor, groups) for tensor in (mean.view(n, channels, 1, 1), sums, weighted, logits)]
    rstd = rstd.view(n, 2, groups // 2, channels // (2 * groups), 1)
    normalised = torch.empty_like(rstd)  # and of dL/dlogit * d * rstd

    def passing(g: Tensor, result: Tensor, gradient: Tensor) -> Tensor:
        if out is not None:
            g = torch.ops.aten.threshold_backward.grad_input(g, result, 0, grad_input=gradient)
        return g.to(p.dtype)

    per_channel = [t.expand(n, *t.shape) for t in (p.scale[0], p.shift[0])]
    for block, to, g, result, other, m, total, moment, logit, s, t in _blocks(
        source[0], target[0], given[0], passed[0], through[0], *(part[0] for part in parts), *per_channel
    ):
        g = passing(g, result, other)
        torch.sum(g, -1, True, out=total)
        moment.copy_(torch.linalg.vecdot(g, block.to(p.dtype)).unsqueeze(-1))
        gate = (s * m).add_(t).mul_(p.cweight).add_(p.cbias).sigmoid_()
        torch.ops.aten.sigmoid_backward.grad_input((s * moment).add_(t * total), gate, grad_input=logit)
        alpha = logit * (p.cweight / positions)
        into = to if to.dtype == p.dtype else torch.empty(block.shape, dtype=p.dtype)
        torch.mul(g, s * gate, out=into).add_(s * alpha)
        alpha.mul_(positions)
        total.mul_(gate).add_(alpha)
        moment.mul_(gate).add_(alpha.mul_(m))
        if into is not to:
            to.copy_(into)
    per_channel = [t.expand(n, *t.shape) for t in (p.scale[1], p.shift[1])]
    for block, to, g, result, other, m, total, moment, logit, r, factor, s, t in _blocks(
        source[1],
        target[1],
        given[1],
        passed[1],
        through[1],
        *(part[1] for part in parts),
        rstd,
        normalised,
        *per_channel,
    ):
        g, wide = passing(g, result, other), block.to(p.dtype)
        deviation = torch.empty(block.shape, dtype=p.dtype)
        torch.sub(wide, m, out=deviation).mul_(s)
        gate = (deviation * (p.slope * r)).add_(p.offset).sigmoid_()
        q = (deviation + (s * m).add_(t)).mul_(g)
        torch.ops.aten.sigmoid_backward.grad_input(q, gate, grad_input=q)
        count = m.numel()
        along, found_factor, found_logit = torch.ops.aten.native_group_norm_backward(
            _rows(q),
            _rows(deviation),
            m.new_zeros(1, count),
            r.reshape(1, count),
            _each(p.slope, m),
            *(1, count, positions, count),
            [True, True, True],
        )
        grad_y = gate.mul_(g).add_(along.view(block.shape))
        torch.sum(grad_y, -1, True, out=total)
        moment.copy_(torch.linalg.vecdot(grad_y, wide).unsqueeze(-1))
        logit.copy_(found_logit.view(m.shape))
        factor.copy_(found_factor.view(m.shape))
        if to.dtype == p.dtype:
            torch.mul(grad_y, s, out=to)
        else:
            to.copy_(grad_y.mul_(s))
    channel, spatial = parts[3]
    y_mean = parts[0][0] * p.scale[0] + p.shift[0]
    over = (0, 1, 2, 4)
    along, offsets = normalised.sum(over), spatial.sum(over)
    gamma, beta, sweight = p.gamma[:, 0], p.beta[:, 0], p.sweight[:, 0]
    grad_parameters = torch.stack(
        [
            (channel * y_mean).sum(over),
            channel.sum(over),
            gamma * along + beta * offsets,
            offsets,
            sweight * along,
            sweight * offsets,
        ]
    )
    return grad_x, grad_identity, weighted.sum(0).view(-1), sums.sum(0).view(-1), grad_parameters
