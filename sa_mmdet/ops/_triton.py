"""The fused form on GPUs, in Triton: the arithmetic of :mod:`sa_mmdet.ops._cpu`, in float32 for every dtype.

A program works on a tile of channels by positions of one image. Rows that fit on chip are read once, statistics and
all; longer ones take one pass for the statistics and one to apply them. Sums run over fixed tiles in fixed order, so
that results repeat. Layouts differ in their strides alone: contiguous and channels-last tensors are both read along
what lies together in memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # elements
_ROW = 4096  # positions up to which a row is read once


@triton.jit
def _statistics(values, keep, length):
    """Mean and sum of squared deviations along the second axis, of ``length`` elements that ``keep`` marks."""
    mean = tl.sum(tl.where(keep, values, 0.0), 1) / length
    deviation = tl.where(keep, values - mean[:, None], 0.0)
    return mean, tl.sum(deviation * deviation, 1)


@triton.jit
def _channel(c, keep, scale, shift, parameters, K, AFFINE: tl.constexpr):
    """What a channel's index tells: its branch, its parameters, the batch norm's scale and shift."""
    j = c % K
    spatial = (c // K) % 2 == 1
    cweight = tl.load(parameters + j, keep, 0.0).to(tl.float32)
    cbias = tl.load(parameters + K + j, keep, 0.0).to(tl.float32)
    sweight = tl.load(parameters + 2 * K + j, keep, 0.0).to(tl.float32)
    sbias = tl.load(parameters + 3 * K + j, keep, 0.0).to(tl.float32)
    gamma = tl.load(parameters + 4 * K + j, keep, 0.0).to(tl.float32)
    beta = tl.load(parameters + 5 * K + j, keep, 0.0).to(tl.float32)
    if AFFINE:
        s = tl.load(scale + c, keep, 0.0).to(tl.float32)
        t = tl.load(shift + c, keep, 0.0).to(tl.float32)
    else:
        s = tl.full(c.shape, 1.0, tl.float32)
        t = tl.full(c.shape, 0.0, tl.float32)
    return spatial, cweight, cbias, sweight * gamma, sweight * beta + sbias, s, t


@triton.jit
def _gate(spatial, cweight, cbias, slope, offset, s, t, mean, variance, eps):
    """The gate's slope in y and its logit at the mean, and 1 / sqrt(scale^2 * variance + eps)."""
    r = tl.rsqrt(s * s * variance + eps)
    return tl.where(spatial, slope * r, 0.0), tl.where(spatial, offset, cweight * (s * mean + t) + cbias), r


@triton.jit
def _destination(c, C):
    return tl.where(c < C // 2, 2 * c, 2 * c - C + 1)


@triton.jit
def _variance_index(n, c, C, K):
    """Where the variance of a channel of the spatial branch is kept."""
    return n * (C // 2) + (c // (2 * K)) * K + c % K


@triton.jit
def _statistics_kernel(x, mean, variance, C, L, K, stride_n, stride_c, stride_l, BC: tl.constexpr, BL: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    keep = c < C
    rows = x + n * stride_n + c.to(tl.int64) * stride_c
    count = 0.0
    m = tl.zeros((BC,), tl.float32)
    squares = tl.zeros((BC,), tl.float32)
    for begin in range(0, L, BL):
        at = begin + tl.arange(0, BL)
        inside = keep[:, None] & (at < L)[None, :]
        values = tl.load(rows[:, None] + at[None, :].to(tl.int64) * stride_l, inside, 0.0).to(tl.float32)
        size = tl.minimum(BL, L - begin).to(tl.float32)
        # Two sets' means and squares make those of their union; E[x^2] - m^2 would lose the variance of a large mean.
        block_mean, block_squares = _statistics(values, inside, size)
        total = count + size
        delta = block_mean - m
        m += delta * (size / total)
        squares += block_squares + delta * delta * (count * size / total)
        count = total
    tl.store(mean + n * C + c, m, keep)
    tl.store(variance + _variance_index(n, c, C, K), squares / L, keep & ((c // K) % 2 == 1))


@triton.jit
def _forward_kernel(
    x,
    identity,
    out,
    mean,
    variance,
    scale,
    shift,
    parameters,
    C,
    L,
    K,
    eps,
    stride_n,
    stride_c,
    stride_l,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROW: tl.constexpr,
    BC: tl.constexpr,
    BL: tl.constexpr,
):
    """Apply the gates; take the statistics too where a tile holds whole rows (ROW)."""
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    at = tl.program_id(2) * BL + tl.arange(0, BL)
    keep = c < C
    inside = keep[:, None] & (at < L)[None, :]
    along = n * stride_n + at[None, :].to(tl.int64) * stride_l
    values = tl.load(x + along + c[:, None].to(tl.int64) * stride_c, inside, 0.0).to(tl.float32)
    spatial, cweight, cbias, slope, offset, s, t = _channel(c, keep, scale, shift, parameters, K, AFFINE)
    kept = _variance_index(n, c, C, K)
    if ROW:
        m, squares = _statistics(values, inside, L)
        v = squares / L
        tl.store(mean + n * C + c, m, keep)
        tl.store(variance + kept, v, keep & spatial)
    else:
        m = tl.load(mean + n * C + c, keep, 0.0)
        v = tl.load(variance + kept, keep & spatial, 0.0)
    a, b, _ = _gate(spatial, cweight, cbias, slope, offset, s, t, m, v, eps)
    deviation = values - m[:, None]
    y = s[:, None] * deviation + (s * m + t)[:, None]
    result = y * tl.sigmoid((a * s)[:, None] * deviation + b[:, None])
    moved = along + _destination(c, C)[:, None].to(tl.int64) * stride_c
    if RESIDUAL:
        result += tl.load(identity + moved, inside, 0.0).to(tl.float32)
        # Not tl.maximum, which drops a NaN.
        result = tl.where(result < 0.0, 0.0, result)
    tl.store(out + moved, result.to(out.dtype.element_ty), inside)


@triton.jit
def _gradient(given, out, values, m, s, t, a, b, moved, inside, RESIDUAL: tl.constexpr):
    """Of a tile: the gradient that passes the ReLU, d = x - mean, the gated gradient, and q = dL/dlogit."""
    g = tl.load(given + moved, inside, 0.0).to(tl.float32)
    if RESIDUAL:
        g = tl.where(tl.load(out + moved, inside, 0.0).to(tl.float32) > 0.0, g, 0.0)
    deviation = tl.where(inside, values - m[:, None], 0.0)
    p = tl.sigmoid((a * s)[:, None] * deviation + b[:, None])
    gated = g * p
    y = s[:, None] * deviation + (s * m + t)[:, None]
    return g, deviation, gated, gated * y * (1.0 - p)


@triton.jit
def _sums_kernel(
    given,
    x,
    out,
    mean,
    variance,
    scale,
    shift,
    parameters,
    sums,
    C,
    L,
    K,
    eps,
    stride_n,
    stride_c,
    stride_l,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BC: tl.constexpr,
    BL: tl.constexpr,
):
    """Sums over the positions of gated, gated * d, q and q * d, with d = x - mean."""
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    keep = c < C
    spatial, cweight, cbias, slope, offset, s, t = _channel(c, keep, scale, shift, parameters, K, AFFINE)
    m = tl.load(mean + n * C + c, keep, 0.0)
    v = tl.load(variance + _variance_index(n, c, C, K), keep & spatial, 0.0)
    a, b, _ = _gate(spatial, cweight, cbias, slope, offset, s, t, m, v, eps)
    total = tl.zeros((BC,), tl.float32)
    moment = tl.zeros((BC,), tl.float32)
    logit = tl.zeros((BC,), tl.float32)
    tilt = tl.zeros((BC,), tl.float32)
    for begin in range(0, L, BL):
        at = begin + tl.arange(0, BL)
        inside = keep[:, None] & (at < L)[None, :]
        along = n * stride_n + at[None, :].to(tl.int64) * stride_l
        values = tl.load(x + along + c[:, None].to(tl.int64) * stride_c, inside, 0.0).to(tl.float32)
        moved = along + _destination(c, C)[:, None].to(tl.int64) * stride_c
        _, deviation, gated, q = _gradient(given, out, values, m, s, t, a, b, moved, inside, RESIDUAL)
        total += tl.sum(gated, 1)
        moment += tl.sum(gated * deviation, 1)
        logit += tl.sum(q, 1)
        tilt += tl.sum(q * deviation, 1)
    to = sums + n * C + c
    size = tl.num_programs(0).to(tl.int64) * C
    tl.store(to, total, keep)
    tl.store(to + size, moment, keep)
    tl.store(to + 2 * size, logit, keep)
    tl.store(to + 3 * size, tilt, keep)


@triton.jit
def _backward_kernel(
    given,
    x,
    out,
    mean,
    variance,
    scale,
    shift,
    parameters,
    sums,
    grad_x,
    grad_identity,
    C,
    L,
    K,
    eps,
    stride_n,
    stride_c,
    stride_l,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROW: tl.constexpr,
    BC: tl.constexpr,
    BL: tl.constexpr,
):
    """Gradients of x and identity; the sums too where a tile holds whole rows (ROW)."""
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    at = tl.program_id(2) * BL + tl.arange(0, BL)
    keep = c < C
    inside = keep[:, None] & (at < L)[None, :]
    along = n * stride_n + at[None, :].to(tl.int64) * stride_l
    own = along + c[:, None].to(tl.int64) * stride_c
    moved = along + _destination(c, C)[:, None].to(tl.int64) * stride_c
    spatial, cweight, cbias, slope, offset, s, t = _channel(c, keep, scale, shift, parameters, K, AFFINE)
    m = tl.load(mean + n * C + c, keep, 0.0)
    v = tl.load(variance + _variance_index(n, c, C, K), keep & spatial, 0.0)
    a, b, r = _gate(spatial, cweight, cbias, slope, offset, s, t, m, v, eps)
    values = tl.load(x + own, inside, 0.0).to(tl.float32)
    g, deviation, gated, q = _gradient(given, out, values, m, s, t, a, b, moved, inside, RESIDUAL)
    to = sums + n * C + c
    size = tl.num_programs(0).to(tl.int64) * C
    if ROW:
        logit = tl.sum(q, 1)
        tilt = tl.sum(q * deviation, 1)
        tl.store(to, tl.sum(gated, 1), keep)
        tl.store(to + size, tl.sum(gated * deviation, 1), keep)
        tl.store(to + 2 * size, logit, keep)
        tl.store(to + 3 * size, tilt, keep)
    else:
        logit = tl.load(to + 2 * size, keep, 0.0)
        tilt = tl.load(to + 3 * size, keep, 0.0)
    constant = tl.where(spatial, -a, cweight) * logit / L
    curve = a * r * r * s * s * tilt / L
    result = s[:, None] * (gated + a[:, None] * q + constant[:, None] - curve[:, None] * deviation)
    tl.store(grad_x + own, result.to(grad_x.dtype.element_ty), inside)
    if RESIDUAL:
        tl.store(grad_identity + moved, g.to(grad_identity.dtype.element_ty), inside)


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout in which the kernels read a tensor and write what belongs to it."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class _Layout:
    """Strides, tiles and grids for one tensor's shape and layout."""

    def __init__(self, x: Tensor, groups: int):
        n, c, h, w = x.shape
        length = h * w
        last = memory_format(x) == torch.channels_last
        self.arguments = (c, length, c // (2 * groups))
        self.strides = (c * length, 1, c) if last else (c * length, length, 1)
        self.row = length <= _ROW
        if self.row:
            positions = triton.next_power_of_2(length)
            channels = max(1, _TILE // positions)
        else:
            channels, positions = (64, _TILE // 64) if last else (1, _TILE)
        channels = min(channels, triton.next_power_of_2(c))
        self.tile = dict(BC=channels, BL=positions)
        self.rows = (n, triton.cdiv(c, channels))
        self.tiles = (*self.rows, triton.cdiv(length, positions))


def forward(
    x: Tensor,
    identity: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    parameters: Tensor,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`sa_mmdet.ops._cpu.forward`."""
    layout_format = memory_format(x)
    x = x.contiguous(memory_format=layout_format)
    layout = _Layout(x, groups)
    out = torch.empty_like(x)
    n, c = x.shape[:2]
    mean = x.new_empty((n, c), dtype=torch.float32)
    variance = x.new_empty((n, c // 2), dtype=torch.float32)
    parameters = parameters.contiguous()
    if not layout.row:
        _statistics_kernel[layout.rows](x, mean, variance, *layout.arguments, *layout.strides, **layout.tile)
    _forward_kernel[layout.tiles](
        x,
        x if identity is None else identity.contiguous(memory_format=layout_format),
        out,
        mean,
        variance,
        parameters if scale is None else scale.contiguous(),
        parameters if shift is None else shift.contiguous(),
        parameters,
        *layout.arguments,
        eps,
        *layout.strides,
        AFFINE=scale is not None,
        RESIDUAL=identity is not None,
        ROW=layout.row,
        **layout.tile,
    )
    return out, mean, variance


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
    """As :func:`sa_mmdet.ops._cpu.backward`."""
    layout_format = memory_format(x)
    x, gradient = (tensor.contiguous(memory_format=layout_format) for tensor in (x, gradient))
    layout = _Layout(x, groups)
    n, c = x.shape[:2]
    length, k = layout.arguments[1:]
    grad_x = torch.empty_like(x)
    grad_identity = x.new_empty(0) if out is None else torch.empty_like(x)
    sums = x.new_empty((4, n, c), dtype=torch.float32)
    parameters = parameters.contiguous()
    inputs = (
        gradient,
        x,
        x if out is None else out,
        mean,
        variance,
        parameters if scale is None else scale.contiguous(),
        parameters if shift is None else shift.contiguous(),
        parameters,
        sums,
    )
    flags = dict(AFFINE=scale is not None, RESIDUAL=out is not None)
    if not layout.row:
        _sums_kernel[layout.rows](*inputs, *layout.arguments, eps, *layout.strides, **flags, **layout.tile)
    _backward_kernel[layout.tiles](
        *inputs, grad_x, grad_identity, *layout.arguments, eps, *layout.strides, **flags, ROW=layout.row, **layout.tile
    )
    return grad_x, grad_identity, *_of_vectors(sums, mean, variance, scale, shift, parameters, groups, eps, length, k)


def _of_vectors(
    sums: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    parameters: Tensor,
    groups: int,
    eps: float,
    length: int,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of scale, shift and the parameters: vectors alone, so PyTorch's own operators do."""
    n, c = mean.shape
    shape = (n, groups, 2, k)
    cweight, _, sweight, _, gamma, beta = parameters.float()
    one, zero = mean.new_ones(()), mean.new_zeros(())
    s = (one if scale is None else scale.float()).expand(c).reshape(shape[1:])
    t = (zero if shift is None else shift.float()).expand(c).reshape(shape[1:])
    total, moment, logit, tilt = (part.view(shape) for part in sums)
    m, v = mean.view(shape), variance.view(n, groups, k)
    alpha = cweight * logit[:, :, 0]
    r = torch.rsqrt(s[:, 1].square() * v + eps)
    normalised = r * s[:, 1] * tilt[:, :, 1]
    a = sweight * gamma * r
    grad_shift = total.clone()  # the sum of dL/dy
    grad_shift[:, :, 0] += alpha
    around = moment.clone()  # the sum of dL/dy * (x - mean)
    around[:, :, 1] += a * tilt[:, :, 1] * (1 - (r * s[:, 1]).square() * v)
    grad_scale = around + m * grad_shift
    y_mean = (s * m + t)[:, :, 0]
    channel, spatial = logit.unbind(2)
    grad_parameters = torch.stack(
        [
            (channel * y_mean).sum((0, 1)),
            channel.sum((0, 1)),
            (gamma * normalised + beta * spatial).sum((0, 1)),
            spatial.sum((0, 1)),
            (sweight * normalised).sum((0, 1)),
            (sweight * spatial).sum((0, 1)),
        ]
    )
    return grad_scale.sum(0).flatten(), grad_shift.sum(0).flatten(), grad_parameters
