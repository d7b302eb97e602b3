"""The fused form on GPUs, in Triton: the arithmetic of :mod:`sa_mmdet.ops.cpu`, in float32 for every dtype.

Shapes: N images, C channels, L = H*W positions, G groups, K = C / (2G) channels of a branch, S splits of the positions.

A program works on a tile of L x C of one image, BL positions by BC channels, and counts the channels in the order of
the output: output channel o comes from channel ``_source(o)`` of x. What is read and written in the two layouts:

- contiguous: a channel is a row of L elements, and the shuffle only chooses which row;
- channels-last: a run of output channels comes from two runs of x, one of each half of the channels, interleaved.

Rows that fit on chip are read once, statistics included. Longer ones take one launch for the sums over the positions,
in S splits so that a small batch fills the GPU, and one that adds the splits up and applies them. Passes over memory
of the size of x, with the residual addition: forward 3 on chip, else 4; backward 5 on chip, else 7, for the launch
that sums also writes the gradient of the identity, and the next one reads that in place of the gradient and the
output. Sums run over fixed tiles in a fixed order and nothing is added atomically, so results repeat bit by bit.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_MULTIPROCESSORS = 132  # of an H100 or H200; smaller GPUs are filled, too
_LONGEST_ROW = {False: 8192, True: 64}  # positions that are read once, by whether the layout is channels-last
_LAST_CHANNELS = 32  # of a channels-last tile: 64 bytes or more of each position together
# Sizes that change from batch to batch. Compiling anew for the value 1, or for multiples of 16, would gain nothing.
_SIZES = ["L", "K", "images", "groups", "splits", "split_length", "chunk", "blocks", "pieces", "piece"]
# Multiplication and addition in one instruction, which from Triton 3.10 on is not the default.
_FUSED = dict(enable_fp_fusion=True)
_FROM_LOG2 = tl.constexpr(-math.log2(math.e))  # sigmoid(z) = 1 / (1 + 2^(-z log2(e)))


@triton.jit
def _source(o, C):
    """The channel of x that the shuffle moves to channel o of the output."""
    return o // 2 + (o % 2) * (C // 2)


@triton.jit
def _program(blocks, pieces):
    """Image, block of channels and piece of the positions of this program; one axis, for the others end at 65,535."""
    program = tl.program_id(0)
    return (program // pieces // blocks).to(tl.int64), program // pieces % blocks, program % pieces


@triton.jit
def _pointers(tensor, n, channel, begin, C, L, LAST: tl.constexpr, BL: tl.constexpr):
    """Pointers, BL x BC, to the positions from ``begin`` on of some channels (BC) of image n."""
    at = tl.arange(0, BL)[:, None]
    if LAST:
        return tensor + (n * L + begin) * C + (at * C + channel[None, :])
    return tensor + (n * C + channel.to(tl.int64))[None, :] * L + (begin + at)


@triton.jit
def _inside(o, begin, C, L, BL: tl.constexpr):
    """Which of a tile's elements (BL x BC) exist."""
    return (begin + tl.arange(0, BL) < L)[:, None] & (o < C)[None, :]


@triton.jit
def _half(block, C, BC: tl.constexpr):
    """Of a channels-last tile, the channels of x in the first half of the channels (BC/2)."""
    return block * (BC // 2) + tl.arange(0, BC // 2)


@triton.jit
def _load_x(x, n, block, begin, C, L, LAST: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr):
    """A tile of x (N x C x L, any dtype) in the order of the output: BL x BC in float32, zero outside."""
    if LAST:
        half = _half(block, C, BC)
        inside = _inside(half, begin, C // 2, L, BL)
        first = tl.load(_pointers(x, n, half, begin, C, L, LAST, BL), inside, 0.0)
        second = tl.load(_pointers(x + C // 2, n, half, begin, C, L, LAST, BL), inside, 0.0)
        return tl.interleave(first, second).to(tl.float32)
    o = block * BC + tl.arange(0, BC)
    rows = _pointers(x, n, _source(o, C), begin, C, L, LAST, BL)
    return tl.load(rows, _inside(o, begin, C, L, BL), 0.0).to(tl.float32)


@triton.jit
def _store_x(x, values, n, block, begin, C, L, LAST: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr):
    """The reverse of :func:`_load_x`."""
    values = values.to(x.dtype.element_ty)
    if LAST:
        half = _half(block, C, BC)
        inside = _inside(half, begin, C // 2, L, BL)
        first, second = tl.split(tl.reshape(values, (BL, BC // 2, 2)))
        tl.store(_pointers(x, n, half, begin, C, L, LAST, BL), first, inside)
        tl.store(_pointers(x + C // 2, n, half, begin, C, L, LAST, BL), second, inside)
    else:
        o = block * BC + tl.arange(0, BC)
        rows = _pointers(x, n, _source(o, C), begin, C, L, LAST, BL)
        tl.store(rows, values, _inside(o, begin, C, L, BL))


@triton.jit
def _channel(c, keep, scale, shift, parameters, K, AFFINE: tl.constexpr):
    """What a channel's index tells (BC each): whether its branch is the spatial one, its parameters, scale and shift.

    Args:
        c: BC indices of channels of x; ``keep`` marks those that exist.
        scale, shift: C each, read if AFFINE.
        parameters: 6 x K.
    """
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
def _gate(spatial, cweight, cbias, slope, offset, s, t, mean, rstd):
    """Slope of the gate's logit in y, and its value at the mean (BC each)."""
    return tl.where(spatial, slope * rstd, 0.0), tl.where(spatial, offset, cweight * (s * mean + t) + cbias)


@triton.jit
def _sigmoid(logit):
    return 1.0 / (1.0 + tl.exp2(logit * _FROM_LOG2))


@triton.jit
def _kept(n, c, C, K):
    """Where a channel of the spatial branch has its rstd (N x C/2)."""
    return n * (C // 2) + (c // (2 * K)) * K + c % K


@triton.jit(do_not_specialize=_SIZES)
def _statistics_kernel(
    x,  # N x C x L
    partial,  # 2 x S x N x C: mean and sum of squared deviations of each split
    C,
    L,
    images,  # N
    splits,  # S
    chunk,  # tiles of a split
    blocks,  # of channels
    UNIT: tl.constexpr,  # L counts units of so many positions, which tells the compiler how rows are aligned
    LAST: tl.constexpr,
    BL: tl.constexpr,
    BC: tl.constexpr,
):
    """Mean and sum of squared deviations over each split of the positions, in x's own order of channels.

    Each element of the tile takes its own positions one by one (Welford's way); E[x^2] - E[x]^2 would lose the variance
    of a large mean. The mean is taken from a plain sum, which stays infinite where an element is.
    """
    L = L * UNIT
    n, block, split = _program(blocks, splits)
    c = block * BC + tl.arange(0, BC)
    begin = split * chunk * BL
    end = tl.minimum(begin + chunk * BL, L)
    total = tl.zeros((BL, BC), tl.float32)
    mean = tl.zeros((BL, BC), tl.float32)
    squares = tl.zeros((BL, BC), tl.float32)
    count = 0.0
    for start in range(begin, end, BL):
        inside = _inside(c, start, C, L, BL)
        values = tl.load(_pointers(x, n, c, start, C, L, LAST, BL), inside, 0.0).to(tl.float32)
        count += 1.0
        total += values
        deviation = tl.where(inside, values - mean, 0.0)
        mean += deviation * (1.0 / count)
        squares += tl.where(inside, deviation * (values - mean), 0.0)
    length = (end - begin).to(tl.float32)
    sum_of_all = tl.sum(total, 0)
    mean_of_all = sum_of_all / length
    # How many positions each element of the tile took.
    taken = ((end - begin + BL - 1 - tl.arange(0, BL)) // BL).to(tl.float32)[:, None]
    apart = mean - mean_of_all[None, :]
    to = partial + (split * images + n) * C + c
    tl.store(to, mean_of_all, c < C)
    tl.store(to + splits * images.to(tl.int64) * C, tl.sum(squares + taken * apart * apart, 0), c < C)


@triton.jit
def _of_all_splits(partial, n, c, keep, C, L, images, splits, split_length, S: tl.constexpr):
    """Mean and variance (BC each) of what :func:`_statistics_kernel` left."""
    split = tl.arange(0, S)
    inside = (split < splits)[:, None] & keep[None, :]
    length = tl.minimum(split_length, L - split * split_length).to(tl.float32)[:, None]
    at = partial + (split * images + n)[:, None] * C + c[None, :]
    means = tl.load(at, inside, 0.0)
    squares = tl.load(at + splits * images.to(tl.int64) * C, inside, 0.0)
    mean = tl.sum(tl.where(inside, means * length, 0.0), 0) / L
    apart = means - mean[None, :]
    return mean, tl.sum(tl.where(inside, squares + length * apart * apart, 0.0), 0) / L


@triton.jit
def _apply(
    values,  # BL x BC, of x
    identity,
    out,
    spatial,
    slope,
    offset,
    s,
    t,
    m,
    n,
    block,
    begin,
    C,
    L,
    RESIDUAL: tl.constexpr,
    LAST: tl.constexpr,
    BL: tl.constexpr,
    BC: tl.constexpr,
):
    """Write a tile of the output."""
    o = block * BC + tl.arange(0, BC)
    inside = _inside(o, begin, C, L, BL)
    # The channel branch does not look at the deviation: so its gate is a number where the mean is infinite.
    logit = slope[None, :] * (values - m[None, :]) + offset[None, :]
    gate = _sigmoid(tl.where(spatial[None, :], logit, offset[None, :]))
    result = (s[None, :] * values + t[None, :]) * gate
    if RESIDUAL:
        result += tl.load(_pointers(identity, n, o, begin, C, L, LAST, BL), inside, 0.0).to(tl.float32)
        result = tl.maximum(result, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(_pointers(out, n, o, begin, C, L, LAST, BL), result.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=_SIZES)
def _forward_kernel(
    x,  # N x C x L
    identity,  # N x C x L, read if RESIDUAL
    out,  # N x C x L
    mean,  # N x C
    rstd,  # N x C/2
    partial,  # 2 x S x N x C, read unless ROW
    scale,  # C
    shift,  # C
    parameters,  # 6 x K
    C,
    L,
    K,
    eps,
    images,  # N
    splits,  # S
    split_length,  # positions of a split
    blocks,  # of channels
    pieces,  # of positions, each for one program
    piece,  # tiles of a piece
    UNIT: tl.constexpr,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROW: tl.constexpr,  # whether a tile holds whole rows
    LAST: tl.constexpr,
    S: tl.constexpr,  # splits, rounded up to a power of two
    BL: tl.constexpr,
    BC: tl.constexpr,
):
    """Apply the gates; take the statistics, too, if ROW."""
    L = L * UNIT
    n, block, part = _program(blocks, pieces)
    o = block * BC + tl.arange(0, BC)
    keep = o < C
    first = o < tl.where(part == 0, C, 0)  # one program per row stores what it has one of
    c = _source(o, C)
    spatial, cweight, cbias, slope, offset, s, t = _channel(c, keep, scale, shift, parameters, K, AFFINE)
    values = tl.zeros((BL, BC), tl.float32)
    if ROW:
        values = _load_x(x, n, block, 0, C, L, LAST, BL, BC)
        m = tl.sum(values, 0) / L
        deviation = tl.where(_inside(o, 0, C, L, BL), values - m[None, :], 0.0)
        v = tl.sum(deviation * deviation, 0) / L
    else:
        m, v = _of_all_splits(partial, n, c, keep, C, L, images, splits, split_length, S)
    r = tl.rsqrt(s * s * v + eps)
    tl.store(mean + n * C + c, m, first)
    tl.store(rstd + _kept(n, c, C, K), r, first & spatial)
    a, b = _gate(spatial, cweight, cbias, slope, offset, s, t, m, r)
    if ROW:
        _apply(values, identity, out, spatial, a * s, b, s, t, m, n, block, 0, C, L, RESIDUAL, LAST, BL, BC)
    else:
        for begin in range(part * piece * BL, tl.minimum((part + 1) * piece * BL, L), BL):
            values = _load_x(x, n, block, begin, C, L, LAST, BL, BC)
            _apply(values, identity, out, spatial, a * s, b, s, t, m, n, block, begin, C, L, RESIDUAL, LAST, BL, BC)


@triton.jit
def _passing(gradient, out, o, n, begin, C, L, RESIDUAL: tl.constexpr, LAST: tl.constexpr, BL: tl.constexpr):
    """The gradient that passes the ReLU (BL x BC), in the gradient's dtype."""
    inside = _inside(o, begin, C, L, BL)
    g = tl.load(_pointers(gradient, n, o, begin, C, L, LAST, BL), inside, 0.0)
    if RESIDUAL:
        result = tl.load(_pointers(out, n, o, begin, C, L, LAST, BL), inside, 0.0)
        g = tl.where(result <= 0.0, 0.0, g).to(g.dtype)  # passes where the result is not a number, as PyTorch's
    return g


@triton.jit
def _gated(g, values, inside, slope, offset, s, t, m):
    """Of a tile (BL x BC each): d = x - mean, the gradient times the gate, and dL/dlogit."""
    deviation = tl.where(inside, values - m[None, :], 0.0)
    gate = _sigmoid(slope[None, :] * deviation + offset[None, :])
    gated = g * gate
    return deviation, gated, gated * (s[None, :] * values + t[None, :]) * (1.0 - gate)


@triton.jit
def _saved(n, c, keep, mean, rstd, scale, shift, parameters, C, K, AFFINE: tl.constexpr):
    """What a channel's index tells, and what forward kept (BC each)."""
    spatial, cweight, cbias, slope, offset, s, t = _channel(c, keep, scale, shift, parameters, K, AFFINE)
    m = tl.load(mean + n * C + c, keep, 0.0)
    r = tl.load(rstd + _kept(n, c, C, K), keep & spatial, 0.0)
    a, b = _gate(spatial, cweight, cbias, slope, offset, s, t, m, r)
    return spatial, cweight, s, t, m, r, a, b


@triton.jit(do_not_specialize=_SIZES)
def _sums_kernel(
    gradient,  # N x C x L
    x,  # N x C x L
    out,  # N x C x L, read if RESIDUAL
    grad_identity,  # N x C x L, written if RESIDUAL
    mean,  # N x C
    rstd,  # N x C/2
    scale,  # C
    shift,  # C
    parameters,  # 6 x K
    partial,  # 4 x S x N x C: over each split, the sums of gated, gated * d, dL/dlogit and dL/dlogit * d
    C,
    L,
    K,
    images,  # N
    splits,  # S
    chunk,  # tiles of a split
    blocks,  # of channels
    UNIT: tl.constexpr,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    LAST: tl.constexpr,
    BL: tl.constexpr,
    BC: tl.constexpr,
):
    """Sums over each split of the positions, with d = x - mean; writes the gradient of the identity on the way."""
    L = L * UNIT
    n, block, split = _program(blocks, splits)
    o = block * BC + tl.arange(0, BC)
    keep = o < C
    c = _source(o, C)
    _, _, s, t, m, _, a, b = _saved(n, c, keep, mean, rstd, scale, shift, parameters, C, K, AFFINE)
    total = tl.zeros((BL, BC), tl.float32)
    moment = tl.zeros((BL, BC), tl.float32)
    logit = tl.zeros((BL, BC), tl.float32)
    logit_moment = tl.zeros((BL, BC), tl.float32)
    for begin in range(split * chunk * BL, tl.minimum((split + 1) * chunk * BL, L), BL):
        inside = _inside(o, begin, C, L, BL)
        g = _passing(gradient, out, o, n, begin, C, L, RESIDUAL, LAST, BL)
        if RESIDUAL:
            tl.store(_pointers(grad_identity, n, o, begin, C, L, LAST, BL), g, inside)
        values = _load_x(x, n, block, begin, C, L, LAST, BL, BC)
        d, gated, q = _gated(g.to(tl.float32), values, inside, a * s, b, s, t, m)
        total += gated
        moment += gated * d
        logit += q
        logit_moment += q * d
    to = partial + (split * images + n) * C + c
    size = splits * images.to(tl.int64) * C
    tl.store(to, tl.sum(total, 0), keep)
    tl.store(to + size, tl.sum(moment, 0), keep)
    tl.store(to + 2 * size, tl.sum(logit, 0), keep)
    tl.store(to + 3 * size, tl.sum(logit_moment, 0), keep)


@triton.jit
def _sum_of_splits(partial, which, n, c, keep, C, images, splits, S: tl.constexpr):
    """One of the four sums of :func:`_sums_kernel` over all positions (BC)."""
    split = tl.arange(0, S)
    at = partial + ((which * splits + split) * images + n)[:, None] * C + c[None, :]
    return tl.sum(tl.load(at, (split < splits)[:, None] & keep[None, :], 0.0), 0)


@triton.jit(do_not_specialize=_SIZES)
def _backward_kernel(
    gradient,  # N x C x L; unless ROW that of the identity where there is one, which has passed the ReLU
    x,  # N x C x L
    out,  # N x C x L, read if ROW and RESIDUAL
    grad_identity,  # N x C x L, written if ROW and RESIDUAL
    mean,  # N x C
    rstd,  # N x C/2
    scale,  # C
    shift,  # C
    parameters,  # 6 x K
    partial,  # 4 x S x N x C, read unless ROW
    sums,  # 4 x N x C: the sums over all positions
    grad_x,  # N x C x L
    C,
    L,
    K,
    images,  # N
    splits,  # S
    blocks,  # of channels
    pieces,  # of positions, each for one program
    piece,  # tiles of a piece
    UNIT: tl.constexpr,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROW: tl.constexpr,
    LAST: tl.constexpr,
    S: tl.constexpr,
    BL: tl.constexpr,
    BC: tl.constexpr,
):
    """Gradient of x, and of the identity and the sums if ROW."""
    L = L * UNIT
    n, block, part = _program(blocks, pieces)
    o = block * BC + tl.arange(0, BC)
    keep = o < C
    first = o < tl.where(part == 0, C, 0)  # one program per row stores what it has one of
    c = _source(o, C)
    spatial, cweight, s, t, m, r, a, b = _saved(n, c, keep, mean, rstd, scale, shift, parameters, C, K, AFFINE)
    d = tl.zeros((BL, BC), tl.float32)
    gated = tl.zeros((BL, BC), tl.float32)
    q = tl.zeros((BL, BC), tl.float32)
    if ROW:
        inside = _inside(o, 0, C, L, BL)
        g = _passing(gradient, out, o, n, 0, C, L, RESIDUAL, LAST, BL)
        if RESIDUAL:
            tl.store(_pointers(grad_identity, n, o, 0, C, L, LAST, BL), g, inside)
        values = _load_x(x, n, block, 0, C, L, LAST, BL, BC)
        d, gated, q = _gated(g.to(tl.float32), values, inside, a * s, b, s, t, m)
        total = tl.sum(gated, 0)
        moment = tl.sum(gated * d, 0)
        logit = tl.sum(q, 0)
        logit_moment = tl.sum(q * d, 0)
    else:
        total = _sum_of_splits(partial, 0, n, c, first, C, images, splits, S)
        moment = _sum_of_splits(partial, 1, n, c, first, C, images, splits, S)
        logit = _sum_of_splits(partial, 2, n, c, keep, C, images, splits, S)
        logit_moment = _sum_of_splits(partial, 3, n, c, keep, C, images, splits, S)
    to = sums + n * C + c
    size = images.to(tl.int64) * C
    tl.store(to, total, first)
    tl.store(to + size, moment, first)
    tl.store(to + 2 * size, logit, first)
    tl.store(to + 3 * size, logit_moment, first)
    # dL/dx = scale * (gated + a q + constant - curvature d): through y itself, the logit, and the two statistics.
    constant = s * tl.where(spatial, -a, cweight) * logit / L
    curvature = a * r * r * s * s * s * logit_moment / L
    if ROW:
        result = s[None, :] * gated + ((a * s)[None, :] * q + (constant[None, :] - curvature[None, :] * d))
        _store_x(grad_x, result, n, block, 0, C, L, LAST, BL, BC)
    else:
        for begin in range(part * piece * BL, tl.minimum((part + 1) * piece * BL, L), BL):
            inside = _inside(o, begin, C, L, BL)
            g = _passing(gradient, out, o, n, begin, C, L, False, LAST, BL)
            values = _load_x(x, n, block, begin, C, L, LAST, BL, BC)
            d, gated, q = _gated(g.to(tl.float32), values, inside, a * s, b, s, t, m)
            result = s[None, :] * gated + ((a * s)[None, :] * q + (constant[None, :] - curvature[None, :] * d))
            _store_x(grad_x, result, n, block, begin, C, L, LAST, BL, BC)


@triton.jit(do_not_specialize=_SIZES)
def _vectors_kernel(
    sums,  # 4 x N x C
    mean,  # N x C
    rstd,  # N x C/2
    scale,  # C
    shift,  # C
    parameters,  # 6 x K
    grad_scale,  # C
    grad_shift,  # C
    grad_parameters,  # 6 x K
    C,
    K,
    eps,
    images,  # N
    groups,  # G
    AFFINE: tl.constexpr,
    BN: tl.constexpr,
    BG: tl.constexpr,
):
    """Gradients of scale, shift and the parameters: program j adds up the channels that have the j-th parameters."""
    j = tl.program_id(0)
    cweight = tl.load(parameters + j).to(tl.float32)
    sweight = tl.load(parameters + 2 * K + j).to(tl.float32)
    gamma = tl.load(parameters + 4 * K + j).to(tl.float32)
    beta = tl.load(parameters + 5 * K + j).to(tl.float32)
    size = images.to(tl.int64) * C
    along_mean = tl.zeros((BG,), tl.float32)
    channel_logits = tl.zeros((BG,), tl.float32)
    along_normal = tl.zeros((BG,), tl.float32)
    spatial_logits = tl.zeros((BG,), tl.float32)
    for first in range(0, groups, BG):
        g = first + tl.arange(0, BG)
        for half in range(2):  # the channel branch, the spatial branch
            c = g * 2 * K + half * K + j
            keep = g < groups
            s = tl.full((BG,), 1.0, tl.float32)
            t = tl.full((BG,), 0.0, tl.float32)
            if AFFINE:
                s = tl.load(scale + c, keep, 0.0).to(tl.float32)
                t = tl.load(shift + c, keep, 0.0).to(tl.float32)
            of_scale = tl.zeros((BG,), tl.float32)
            of_shift = tl.zeros((BG,), tl.float32)
            for begin in range(0, images, BN):
                n = (begin + tl.arange(0, BN)).to(tl.int64)
                inside = (n < images)[:, None] & keep[None, :]
                at = n[:, None] * C + c[None, :]
                total = tl.load(sums + at, inside, 0.0)
                moment = tl.load(sums + size + at, inside, 0.0)
                logit = tl.load(sums + 2 * size + at, inside, 0.0)
                logit_moment = tl.load(sums + 3 * size + at, inside, 0.0)
                m = tl.load(mean + at, inside, 0.0)
                r = tl.load(rstd + _kept(n[:, None], c[None, :], C, K), inside & (half == 1), 0.0)
                if half == 0:
                    total += cweight * logit
                    along_mean += tl.sum(tl.where(inside, logit * (s[None, :] * m + t[None, :]), 0.0), 0)
                    channel_logits += tl.sum(logit, 0)
                else:
                    # 1 - (r s)^2 v = eps r^2, of which the left side would be a difference of near numbers.
                    moment += sweight * gamma * r * logit_moment * (eps * r * r)
                    along_normal += tl.sum(r * s[None, :] * logit_moment, 0)
                    spatial_logits += tl.sum(logit, 0)
                of_shift += tl.sum(total, 0)
                of_scale += tl.sum(moment + tl.where(inside, m * total, 0.0), 0)
            tl.store(grad_scale + c, of_scale, keep)
            tl.store(grad_shift + c, of_shift, keep)
    normal = tl.sum(along_normal, 0)
    offsets = tl.sum(spatial_logits, 0)
    tl.store(grad_parameters + j, tl.sum(along_mean, 0))
    tl.store(grad_parameters + K + j, tl.sum(channel_logits, 0))
    tl.store(grad_parameters + 2 * K + j, gamma * normal + beta * offsets)
    tl.store(grad_parameters + 3 * K + j, offsets)
    tl.store(grad_parameters + 4 * K + j, sweight * normal)
    tl.store(grad_parameters + 5 * K + j, sweight * offsets)


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout in which the kernels read a tensor and write what belongs to it."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _on(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


class _Cut(NamedTuple):
    """How a launch cuts N x C x L into tiles and hands them to programs."""

    grid: tuple[int]
    blocks: int  # of channels
    pieces: int  # of positions, a program each
    piece: int  # tiles of a piece
    options: dict[str, int]  # the tile's sizes and the warps that work on it


class _Plan:
    """Layout, tiles and grids for one tensor's shape, dtype and layout."""

    def __init__(self, x: Tensor, groups: int):
        n, c, h, w = x.shape
        self.images, self.channels, self.length = n, c, h * w
        self.last = memory_format(x) == torch.channels_last
        self.row = self.length <= _LONGEST_ROW[self.last]
        self.vector = 16 // x.element_size()  # what a thread loads at once
        # Rows begin at multiples of the length: told of a common divisor, Triton loads so many elements at once.
        self.unit = math.gcd(self.length, self.vector)
        self.sizes = (c, self.length // self.unit)
        self.branch = c // (2 * groups)

    def cut(self, elements: int, each: int, programs: int) -> _Cut:
        """Tiles of so many elements, ``each`` a thread, for at least so many programs where there are enough tiles."""
        whole = triton.next_power_of_2(self.length)
        channels = _LAST_CHANNELS if self.last else 1
        if self.row:
            channels = channels if self.last else max(1, elements // whole)
            least = 16 if self.last else 1  # of which 8 in each half of x: 16 bytes in half precision
            while channels > least and self.images * triton.cdiv(self.channels, channels) < 2 * _MULTIPROCESSORS:
                channels //= 2
        channels = min(channels, triton.next_power_of_2(self.channels))
        positions = whole if self.row else elements // channels
        blocks, most = triton.cdiv(self.channels, channels), triton.cdiv(self.length, positions)
        piece = triton.cdiv(most, min(most, triton.cdiv(programs, self.images * blocks)))
        pieces = triton.cdiv(most, piece)
        warps = max(1, min(16, positions * channels // (32 * each)))
        options = dict(BL=positions, BC=channels, num_warps=warps, **_FUSED)
        return _Cut((self.images * blocks * pieces,), blocks, pieces, piece, options)

    def statistics(self) -> _Cut:
        """For sums of x. Each piece costs the next launch an addition, most of all in channels-last tiles."""
        return self.cut(4096, 16, (2 if self.last else 8) * _MULTIPROCESSORS)

    def sums(self) -> _Cut:
        """For backward's sums, of which every element has four, of three tensors."""
        cut = self.cut(2048, 8, (2 if self.last else 8) * _MULTIPROCESSORS)
        if self.last:  # two programs of 256 threads have 128 registers a thread; without the word it takes a few more
            cut.options["maxnreg"] = 128
        return cut

    def apply(self, forward: bool) -> _Cut:
        """For what reads and writes all elements: a tile a program, or more tiles where a tile has many channels."""
        each = 16 if forward else 8
        if self.last and forward:
            # Whole rows are kept in registers; else a thread takes 16 bytes of each half of x at once.
            each = 8 if self.row else 2 * self.vector
        return self.cut(2048, each, 4 * _MULTIPROCESSORS if self.last else 1 << 31)


def forward(
    x: Tensor,
    identity: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    parameters: Tensor,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`sa_mmdet.ops.cpu.forward`, in one launch or two."""
    layout = memory_format(x)
    x = x.contiguous(memory_format=layout)
    n, c = x.shape[:2]
    out = torch.empty_like(x)
    mean, rstd = x.new_zeros((n, c), dtype=torch.float32), x.new_zeros((n, c // 2), dtype=torch.float32)
    if not x.numel():
        return out, mean, rstd
    plan = _Plan(x, groups)
    parameters = parameters.contiguous()
    cut, measured = plan.apply(forward=True), plan.statistics()
    flags = dict(UNIT=plan.unit, LAST=plan.last)
    partial = mean
    with _on(x):
        if not plan.row:
            partial = x.new_empty((2, measured.pieces, n, c), dtype=torch.float32)
            _statistics_kernel[measured.grid](
                x,
                partial,
                *plan.sizes,
                n,
                measured.pieces,
                measured.piece,
                measured.blocks,
                **flags,
                **measured.options,
            )
        _forward_kernel[cut.grid](
            x,
            x if identity is None else identity.contiguous(memory_format=layout),
            out,
            mean,
            rstd,
            partial,
            parameters if scale is None else scale.contiguous(),
            parameters if shift is None else shift.contiguous(),
            parameters,
            *plan.sizes,
            plan.branch,
            eps,
            n,
            measured.pieces,
            measured.piece * measured.options["BL"],
            cut.blocks,
            cut.pieces,
            cut.piece,
            **flags,
            AFFINE=scale is not None,
            RESIDUAL=identity is not None,
            ROW=plan.row,
            S=triton.next_power_of_2(measured.pieces),
            **cut.options,
        )
    return out, mean, rstd


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
    """As :func:`sa_mmdet.ops.cpu.backward`, in two launches or three."""
    layout = memory_format(x)
    x, gradient = (tensor.contiguous(memory_format=layout) for tensor in (x, gradient))
    n, c = x.shape[:2]
    grad_x = torch.empty_like(x)
    grad_identity = x.new_empty(0) if out is None else torch.empty_like(x)
    grad_scale, grad_shift = (x.new_zeros(c, dtype=torch.float32) for _ in range(2))  # of which none aliases another
    grad_parameters = torch.zeros_like(parameters, dtype=torch.float32, memory_format=torch.contiguous_format)
    if not x.numel():
        return grad_x, grad_identity, grad_scale, grad_shift, grad_parameters
    plan = _Plan(x, groups)
    parameters = parameters.contiguous()
    vectors = (
        mean.contiguous(),
        rstd.contiguous(),
        parameters if scale is None else scale.contiguous(),
        parameters if shift is None else shift.contiguous(),
        parameters,
    )
    cut, summed = plan.apply(forward=False), plan.sums()
    sums = x.new_empty((4, n, c), dtype=torch.float32)
    partial = sums
    affine = scale is not None
    flags = dict(UNIT=plan.unit, LAST=plan.last, AFFINE=affine, RESIDUAL=out is not None)
    masked = (x if out is None else out.contiguous(memory_format=layout), x if out is None else grad_identity)
    with _on(x):
        if not plan.row:
            partial = x.new_empty((4, summed.pieces, n, c), dtype=torch.float32)
            _sums_kernel[summed.grid](
                gradient,
                x,
                *masked,
                *vectors,
                partial,
                *plan.sizes,
                plan.branch,
                n,
                summed.pieces,
                summed.piece,
                summed.blocks,
                **flags,
                **summed.options,
            )
        _backward_kernel[cut.grid](
            gradient if plan.row or out is None else grad_identity,
            x,
            *masked,
            *vectors,
            partial,
            sums,
            grad_x,
            *plan.sizes,
            plan.branch,
            n,
            summed.pieces,
            cut.blocks,
            cut.pieces,
            cut.piece,
            **flags,
            ROW=plan.row,
            S=triton.next_power_of_2(summed.pieces),
            **cut.options,
        )
        per_branch = min(64, triton.next_power_of_2(groups))
        _vectors_kernel[(plan.branch,)](
            sums,
            *vectors,
            grad_scale,
            grad_shift,
            grad_parameters,
            c,
            plan.branch,
            eps,
            n,
            groups,
            AFFINE=affine,
            BN=min(16, triton.next_power_of_2(n)),
            BG=per_branch,
            num_warps=4,
            **_FUSED,
        )
    return grad_x, grad_identity, grad_scale, grad_shift, grad_parameters
