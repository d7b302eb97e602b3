"""The fused form of shuffle attention: a function of two statistics a channel, with its backward written out.

The mathematics is a SiLU whose slope and offset each image and channel sets by its mean and variance, written to
a permuted channel. With m and v the mean and the variance of x over its positions, y = scale * x + shift (a batch norm
in evaluation mode, or nothing), d = scale * (x - m) and rstd = 1 / sqrt(scale^2 * v + eps):

    channel branch:  gate = sigmoid(cweight * (scale * m + shift) + cbias)
    spatial branch:  gate = sigmoid(sweight * gamma * rstd * d + sweight * beta + sbias)
    out[destination] = y * gate                          attention alone
    out[destination] = relu(identity + y * gate)         attention and the end of a residual block

Forward keeps x, out, m and rstd; backward computes the gates again. Work goes block by block over the groups, so
that what stands between stays in the processor's cache: no intermediate has the size of x. A block's intermediates are
contiguous rows of one channel each, as PyTorch's group norm takes them, which standardises the spatial branch, forward
and backward, with one channel a group. It is given d, so that a mean far from zero costs no digits.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of a block: enough that calling PyTorch's operators costs little beside their work, few enough for a cache.
BLOCK = 1 << 20


class _Block(NamedTuple):
    """One branch of some groups of some images, of both halves of the channels: I x 2 x B x K (x L)."""

    spatial: bool
    rows: tuple  # indices into an N x 2 x G/2 x 2 x K (x L) view
    halves: tuple  # indices into an N x 2 x G/2 x K view: of what the spatial branch alone has
    channels: tuple  # indices into a 2 x G/2 x 2 x K view


def _blocks(n: int, groups: int, k: int, positions: int) -> Iterator[_Block]:
    half = groups // 2
    images = max(1, BLOCK // (groups * k * positions))
    step = half if images > 1 else max(1, BLOCK // (2 * k * positions))
    for first in range(0, n, images):
        some = slice(first, first + images)
        for begin in range(0, half, step):
            part = slice(begin, begin + step)
            for branch in range(2):
                rows = (some, slice(None), part, branch)
                yield _Block(branch == 1, rows, rows[:3], rows[1:])


def _in_place(tensor: Tensor, groups: int) -> Tensor:
    """N x C x H x W as N x 2 x G/2 x 2 x K x L: half, group, branch, channel, position."""
    n, c, h, w = tensor.shape
    return tensor.view(n, 2, groups // 2, 2, c // (2 * groups), h * w)


def _at_destination(tensor: Tensor, groups: int) -> Tensor:
    """The same axes, with each channel where the shuffle puts it: channel c of the one is dest(c) of the other."""
    n, c, h, w = tensor.shape
    return tensor.view(n, groups // 2, 2, c // (2 * groups), 2, h * w).permute(0, 4, 1, 2, 3, 5)


class _Parameters:
    """The six parameters and the batch norm's, in the shapes and the dtype of the arithmetic."""

    def __init__(self, parameters: Tensor, scale: Tensor | None, shift: Tensor | None, x: Tensor, groups: int):
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.cweight, self.cbias, self.sweight, sbias, self.gamma, self.beta = parameters.to(self.dtype)
        self.slope, self.offset = self.sweight * self.gamma, self.sweight * self.beta + sbias
        channels = x.shape[1]
        shape = (2, groups // 2, 2, channels // (2 * groups))
        one, zero = parameters.new_ones((), dtype=self.dtype), parameters.new_zeros((), dtype=self.dtype)
        self.scale = (one if scale is None else scale.to(self.dtype)).expand(channels).reshape(shape)
        self.shift = (zero if shift is None else shift.to(self.dtype)).expand(channels).reshape(shape)


def _columns(x: Tensor) -> Tensor:
    return x.unsqueeze(-1)


def _each(parameter: Tensor, rows: Tensor) -> Tensor:
    """K values for every row; contiguous, for group norm's kernel reads past an expanded tensor's stride of zero."""
    return parameter.expand(rows.shape).flatten().contiguous()


def _rows(x: Tensor) -> Tensor:
    """All but the last axis as one, behind an axis of one: the shape in which group norm takes a channel a group."""
    return x.reshape(1, -1, x.shape[-1])


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
    k, positions = channels // (2 * groups), height * width
    p = _Parameters(parameters, scale, shift, x, groups)
    x = x.contiguous()
    out = torch.empty_like(x)
    rows, moved = _in_place(x, groups), _at_destination(out, groups)
    added = None if identity is None else _at_destination(identity.contiguous(), groups)
    mean = x.new_empty(rows.shape[:-1], dtype=p.dtype)
    rstd = x.new_empty((n, 2, groups // 2, k), dtype=p.dtype)
    for branch in _blocks(n, groups, k, positions):
        s, t = p.scale[branch.channels], p.shift[branch.channels]
        block, target = rows[branch.rows], moved[branch.rows]
        into = target if target.dtype == p.dtype else torch.empty(block.shape, dtype=p.dtype)
        m = block.mean(-1, dtype=p.dtype)
        mean[branch.rows] = m
        if branch.spatial:
            deviation = torch.empty(block.shape, dtype=p.dtype)  # contiguous, which PyTorch's own choice may not be
            torch.sub(block, _columns(m), out=deviation).mul_(_columns(s))
            count = m.numel()
            slope, offset = _each(p.slope, m), _each(p.offset, m)
            logits, _, r = torch.native_group_norm(_rows(deviation), slope, offset, 1, count, positions, count, eps)
            rstd[branch.halves] = r.view(m.shape)
            gate = logits.sigmoid_().view(block.shape)
            y = deviation.add_(_columns(s * m + t))
            if added is None:
                torch.mul(y, gate, out=into)
            else:
                torch.addcmul(added[branch.rows].to(p.dtype), y, gate, out=into).relu_()
        else:
            gate = (p.cweight * (s * m + t)).add_(p.cbias).sigmoid_()
            torch.mul(block, _columns(s * gate), out=into)
            if shift is not None:
                into.add_(_columns(t * gate))
            if added is not None:
                into.add_(added[branch.rows]).relu_()
        if into is not target:
            target.copy_(into)
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
    k, positions = channels // (2 * groups), height * width
    p = _Parameters(parameters, scale, shift, x, groups)
    x, gradient = x.contiguous(), gradient.contiguous()
    grad_x = torch.empty_like(x)
    grad_identity = x.new_empty(0) if out is None else torch.empty_like(x)
    rows, grad_rows = _in_place(x, groups), _in_place(grad_x, groups)
    given = _at_destination(gradient, groups)
    means, rstds = mean.view(rows.shape[:-1]), rstd.view(n, 2, groups // 2, k)
    # Sums over the positions: of dL/dy, of dL/dy * x and of dL/dlogit.
    sums, weighted, logits = (torch.empty_like(means) for _ in range(3))
    normalised = torch.empty_like(rstds)  # and of dL/dlogit * d * rstd
    for branch in _blocks(n, groups, k, positions):
        s, t = p.scale[branch.channels], p.shift[branch.channels]
        block, target, m = rows[branch.rows], grad_rows[branch.rows], means[branch.rows]
        g = given[branch.rows]
        if out is not None:
            passed, through = (_at_destination(tensor, groups)[branch.rows] for tensor in (out, grad_identity))
            g = torch.ops.aten.threshold_backward.grad_input(g, passed, 0, grad_input=through)
        g, wide = g.to(p.dtype), block.to(p.dtype)
        into = target if target.dtype == p.dtype else torch.empty(block.shape, dtype=p.dtype)
        if branch.spatial:
            r = rstds[branch.halves]
            deviation = torch.empty(block.shape, dtype=p.dtype)
            torch.sub(wide, _columns(m), out=deviation).mul_(_columns(s))
            gate = (deviation * _columns(p.slope * r)).add_(_columns(p.offset)).sigmoid_()
            q = (deviation + _columns(s * m + t)).mul_(g)
            torch.ops.aten.sigmoid_backward.grad_input(q, gate, grad_input=q)
            count = m.numel()
            along, factor, logit = torch.ops.aten.native_group_norm_backward(
                _rows(q),
                _rows(deviation),
                m.new_zeros(1, count),
                r.reshape(1, count),
                _each(p.slope, m),
                *(1, count, positions, count),
                [True, True, True],
            )
            grad_y = gate.mul_(g).add_(along.view(block.shape))
            sums[branch.rows] = grad_y.sum(-1)
            weighted[branch.rows] = torch.linalg.vecdot(grad_y, wide)
            torch.mul(grad_y, _columns(s), out=into)
            logits[branch.rows], normalised[branch.halves] = logit.view(m.shape), factor.view(m.shape)
        else:
            gate = (p.cweight * (s * m + t)).add_(p.cbias).sigmoid_()
            total, moment = g.sum(-1), torch.linalg.vecdot(g, wide)
            logit = gate * (1 - gate) * (s * moment + t * total)
            alpha = p.cweight * logit / positions
            torch.mul(g, _columns(s * gate), out=into).add_(_columns(s * alpha))
            sums[branch.rows] = gate * total + alpha * positions
            weighted[branch.rows] = gate * moment + alpha * positions * m
            logits[branch.rows] = logit
        if into is not target:
            target.copy_(into)
    channel, spatial = logits.unbind(3)
    y_mean = (p.scale * means + p.shift)[:, :, :, 0]
    grad_parameters = torch.stack(
        [
            (channel * y_mean).sum((0, 1, 2)),
            channel.sum((0, 1, 2)),
            (p.gamma * normalised + p.beta * spatial).sum((0, 1, 2)),
            spatial.sum((0, 1, 2)),
            (p.sweight * normalised).sum((0, 1, 2)),
            (p.sweight * spatial).sum((0, 1, 2)),
        ]
    )
    return (
        grad_x,
        grad_identity,
        weighted.sum(0).flatten(),
        sums.sum(0).flatten(),
        grad_parameters,
    )
