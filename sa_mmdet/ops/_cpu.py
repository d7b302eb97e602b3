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

# Elements of a block: what a forward or backward holds of one fits a core's cache several times over.
BLOCK = 1 << 16


class _Branch(NamedTuple):
    """One branch of a block of groups of one image, B groups of K channels."""

    spatial: bool
    rows: tuple  # of an N x G x 2 x K (x L) view of the input: B x K (x L)
    moved: tuple  # of an N x G/2 x 2 x K x 2 x L view of the output: the same channels at their destinations


def _branches(n: int, groups: int, k: int, positions: int) -> Iterator[_Branch]:
    half, step = groups // 2, max(1, BLOCK // (k * positions))
    for image in range(n):
        for part in range(2):
            for begin in range(0, half, step):
                end = min(begin + step, half)
                for branch in range(2):
                    yield _Branch(
                        branch == 1,
                        (image, slice(part * half + begin, part * half + end), branch),
                        (image, slice(begin, end), branch, slice(None), part),
                    )


class _Parameters:
    """The six parameters and the batch norm's, in the shapes and the dtype of the arithmetic."""

    def __init__(self, parameters: Tensor, scale: Tensor | None, shift: Tensor | None, x: Tensor, groups: int):
        wide = torch.promote_types(x.dtype, torch.float32)
        self.cweight, self.cbias, self.sweight, self.sbias, self.gamma, self.beta = parameters.to(wide)
        channels = x.shape[1]
        shape = (groups, 2, channels // (2 * groups))
        one, zero = parameters.new_ones((), dtype=wide), parameters.new_zeros((), dtype=wide)
        self.scale = (one if scale is None else scale.to(wide)).expand(channels).reshape(shape)
        self.shift = (zero if shift is None else shift.to(wide)).expand(channels).reshape(shape)

    def of(self, branch: _Branch) -> tuple[Tensor, Tensor]:
        """Scale and shift of a branch's channels, B x K."""
        return self.scale[branch.rows[1:]], self.shift[branch.rows[1:]]


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
    rows, moved = x.view(n, groups, 2, k, positions), out.view(n, groups // 2, 2, k, 2, positions)
    added = None if identity is None else identity.contiguous().view_as(moved)
    mean = x.new_empty((n, groups, 2, k), dtype=wide)
    variance = x.new_empty((n, groups, k), dtype=wide)
    for branch in _branches(n, groups, k, positions):
        s, t = p.of(branch)
        block = rows[branch.rows].to(wide)
        target = moved[branch.moved]
        into = target if target.dtype == wide else torch.empty_like(block)
        m = mean[branch.rows]
        torch.mean(block, -1, out=m)
        if branch.spatial:
            deviation = block - _columns(m)
            v = torch.linalg.vector_norm(deviation, dim=-1).square_().div_(positions)
            variance[branch.rows[:2]] = v
            slope = p.sweight * p.gamma * (s.square() * v + eps).rsqrt() * s
            gate = torch.addcmul(_columns(p.sweight * p.beta + p.sbias), deviation, _columns(slope)).sigmoid_()
            y = deviation.mul_(_columns(s)).add_(_columns(s * m + t))
            if added is None:
                torch.mul(y, gate, out=into)
            else:
                torch.addcmul(added[branch.moved].to(wide), y, gate, out=into).relu_()
        else:
            channel_gate = (p.cweight * (s * m + t) + p.cbias).sigmoid_()
            factor, offset = _columns(s * channel_gate), _columns(t * channel_gate)
            if added is None:
                torch.mul(block, factor, out=into)
            else:
                torch.addcmul(added[branch.moved].to(wide), block, factor, out=into)
            if shift is not None:
                into.add_(offset)
            if added is not None:
                into.relu_()
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
    moved_shape = (n, groups // 2, 2, k, 2, positions)
    rows, grad_rows = (tensor.view(n, groups, 2, k, positions) for tensor in (x, grad_x))
    given = gradient.view(moved_shape)
    means, variances = mean.view(n, groups, 2, k), variance.view(n, groups, k)
    # Sums over the positions: of dL/dy and of dL/dy * x, and what the parameters' gradients are made of.
    sums, weighted, logits = (x.new_empty((n, groups, 2, k), dtype=wide) for _ in range(3))
    normalised = x.new_empty((n, groups, k), dtype=wide)
    for branch in _branches(n, groups, k, positions):
        s, t = p.of(branch)
        m = means[branch.rows]
        block = rows[branch.rows].to(wide)
        if out is None:
            g = given[branch.moved].to(wide)
        else:
            through = grad_identity.view(moved_shape)[branch.moved]
            torch.ops.aten.threshold_backward.grad_input(
                given[branch.moved], out.view(moved_shape)[branch.moved], 0, grad_input=through
            )
            g = through.to(wide)
        target = grad_rows[branch.rows]
        into = target if target.dtype == wide else torch.empty_like(block)
        if branch.spatial:
            v = variances[branch.rows[:2]]
            r = (s.square() * v + eps).rsqrt()
            a = p.sweight * p.gamma * r
            deviation = block - _columns(m)
            gate = torch.addcmul(_columns(p.sweight * p.beta + p.sbias), deviation, _columns(a * s)).sigmoid_()
            gated = g * gate
            q = (deviation * _columns(s)).add_(_columns(s * m + t)).mul_(gated)
            q.addcmul_(q, gate, value=-1)
            torch.mul(gated, deviation, out=gate)  # the gate itself is used up
            total, moment = gated.sum(-1), gate.sum(-1)
            logit = q.sum(-1)
            torch.mul(q, deviation, out=gate)
            along = gate.sum(-1)
            c0 = a * r.square() * s * along / positions
            torch.mul(q, _columns(a * s), out=into)
            into.addcmul_(gated, _columns(s)).addcmul_(deviation, _columns(s.square() * c0), value=-1)
            into.sub_(_columns(a * s * logit / positions))
            normalised[branch.rows[:2]] = r * s * along
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
    channel, spatial = logits.unbind(2)
    y_mean = (p.scale * means + p.shift)[:, :, 0]
    grad_parameters = torch.stack(
        [
            (channel * y_mean).sum((0, 1)),
            channel.sum((0, 1)),
            (p.gamma * normalised + p.beta * spatial).sum((0, 1)),
            spatial.sum((0, 1)),
            (p.sweight * normalised).sum((0, 1)),
            (p.sweight * spatial).sum((0, 1)),
        ]
    )
    return (
        grad_x,
        grad_identity,
        weighted.sum(0).flatten(),
        sums.sum(0).flatten(),
        grad_parameters,
    )
