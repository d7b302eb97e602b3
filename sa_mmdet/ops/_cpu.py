"""The fused form of shuffle attention: a function of two statistics a channel, with its backward written out.

The mathematics is a SiLU whose slope and offset each image and channel sets by its mean and variance, written to
a permuted channel. With y = scale * x + shift (a batch norm in evaluation mode, or nothing), m and v the mean and the
variance of x, d = x - m and r = 1 / sqrt(scale^2 * v + eps):

    channel branch:  gate = sigmoid(cweight * (scale * m + shift) + cbias)
    spatial branch:  gate = sigmoid(sweight * gamma * r * scale * d + sweight * beta + sbias)
    out[destination] = y * gate                          attention alone
    out[destination] = relu(identity + y * gate)         attention and the end of a residual block

Forward keeps x, out, m and v; backward computes the gates again. Work goes block by block over the groups, so that what
stands between stays in the processor's cache: no intermediate has the size of x.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of a block: enough that calling PyTorch's operators costs little beside their work, few enough for a cache.
BLOCK = 1 << 19


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
        wide = torch.promote_types(x.dtype, torch.float32)
        self.cweight, self.cbias, self.sweight, sbias, self.gamma, self.beta = parameters.to(wide)
        self.slope, self.offset = self.sweight * self.gamma, self.sweight * self.beta + sbias
        channels = x.shape[1]
        shape = (2, groups // 2, 2, channels // (2 * groups))
        one, zero = parameters.new_ones((), dtype=wide), parameters.new_zeros((), dtype=wide)
        self.scale = (one if scale is None else scale.to(wide)).expand(channels).reshape(shape)
        self.shift = (zero if shift is None else shift.to(wide)).expand(channels).reshape(shape)


def _columns(x: Tensor) -> Tensor:
    return x.unsqueeze(-1)


def forward(
    x: Tensor,
    identity: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    parameters: Tensor,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the output and the statistics, mean (N x C) and variance (N x C/2, of the spatial branch), of x."""
    n, channels, height, width = x.shape
    k, positions = channels // (2 * groups), height * width
    p = _Parameters(parameters, scale, shift, x, groups)
    wide = p.cweight.dtype
    x = x.contiguous()
    out = torch.empty_like(x)
    rows, moved = _in_place(x, groups), _at_destination(out, groups)
    added = None if identity is None else _at_destination(identity.contiguous(), groups)
    mean = x.new_empty(rows.shape[:-1], dtype=wide)
    variance = x.new_empty((n, 2, groups // 2, k), dtype=wide)
    for branch in _blocks(n, groups, k, positions):
        s, t = p.scale[branch.channels], p.shift[branch.channels]
        block = rows[branch.rows].to(wide)
        target = moved[branch.rows]
        into = target if target.dtype == wide else torch.empty_like(block)
        m = mean[branch.rows]
        torch.mean(block, -1, out=m)
        if branch.spatial:
            deviation = block - _columns(m)
            v = torch.linalg.vector_norm(deviation, dim=-1).square_().div_(positions)
            variance[branch.halves] = v
            slope = p.slope * (s.square() * v + eps).rsqrt() * s
            # Not addcmul, which is several times slower where it broadcasts.
            gate = (deviation * _columns(slope)).add_(_columns(p.offset)).sigmoid_()
            y = deviation.mul_(_columns(s)).add_(_columns(s * m + t))
            if added is None:
                torch.mul(y, gate, out=into)
            else:
                torch.addcmul(added[branch.rows].to(wide), y, gate, out=into).relu_()
        else:
            channel_gate = (p.cweight * (s * m + t) + p.cbias).sigmoid_()
            torch.mul(block, _columns(s * channel_gate), out=into)
            if shift is not None:
                into.add_(_columns(t * channel_gate))
            if added is not None:
                into.add_(added[branch.rows]).relu_()
        if into is not target:
            target.copy_(into)
    return out, mean.view(n, channels), variance.view(n, channels // 2)


def backward(
    gradient: Tensor,
    x: Tensor,
    out: Tensor | None,
    mean: Tensor,
    variance: Tensor,
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
    wide = p.cweight.dtype
    x, gradient = x.contiguous(), gradient.contiguous()
    grad_x = torch.empty_like(x)
    grad_identity = x.new_empty(0) if out is None else torch.empty_like(x)
    rows, grad_rows = _in_place(x, groups), _in_place(grad_x, groups)
    given = _at_destination(gradient, groups)
    means, variances = mean.view(rows.shape[:-1]), variance.view(n, 2, groups // 2, k)
    # Sums over the positions: of dL/dy and of dL/dy * x, and what the parameters' gradients are made of.
    sums, weighted, logits = (torch.empty_like(means) for _ in range(3))
    normalised = torch.empty_like(variances)
    for branch in _blocks(n, groups, k, positions):
        s, t = p.scale[branch.channels], p.shift[branch.channels]
        m = means[branch.rows]
        block = rows[branch.rows].to(wide)
        if out is None:
            g = given[branch.rows].to(wide)
        else:
            through = _at_destination(grad_identity, groups)[branch.rows]
            passed = _at_destination(out, groups)[branch.rows]
            torch.ops.aten.threshold_backward.grad_input(given[branch.rows], passed, 0, grad_input=through)
            g = through.to(wide)
        target = grad_rows[branch.rows]
        into = target if target.dtype == wide else torch.empty_like(block)
        if branch.spatial:
            v = variances[branch.halves]
            r = (s.square() * v + eps).rsqrt()
            a = p.slope * r
            deviation = block - _columns(m)
            gate = (deviation * _columns(a * s)).add_(_columns(p.offset)).sigmoid_()
            gated = g * gate
            q = (deviation * _columns(s)).add_(_columns(s * m + t)).mul_(gated)
            q.addcmul_(q, gate, value=-1)
            torch.mul(gated, deviation, out=gate)  # the gate itself is used up
            total, moment = gated.sum(-1), gate.sum(-1)
            logit = q.sum(-1)
            torch.mul(q, deviation, out=gate)
            along = gate.sum(-1)
            c0 = a * r.square() * s * along / positions
            torch.add(gated.mul_(_columns(s)), q.mul_(_columns(a * s)), out=into)
            into.sub_(deviation.mul_(_columns(s.square() * c0))).sub_(_columns(a * s * logit / positions))
            normalised[branch.halves] = r * s * along
            sums[branch.rows] = total
            weighted[branch.rows] = moment + m * total + a * along - c0 * s * positions * v
        else:
            gate = (p.cweight * (s * m + t) + p.cbias).sigmoid_()
            total, moment = g.sum(-1), (g * block).sum(-1)
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
