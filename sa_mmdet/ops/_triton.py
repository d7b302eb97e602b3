"""The fused operator on GPUs, by Triton's kernels: the arithmetic of :mod:`sa_mmdet.ops.cpu`, in float32 throughout.

Shapes: N images, C channels, L = H * W positions, G groups, K = C / (2G) channels per branch, S splits of the
positions. A contiguous tensor is N x C x L in memory, a channels-last tensor N x L x C; kernels name both N x C x L.

A program works on tiles of one image, BLOCK_L positions by BLOCK_C channels, with the channels in the order of the
output: output channel o is computed from channel ``_input_channel(o, C)`` of x. In the two layouts this means:

- contiguous: a channel is a row of L elements, and the shuffle only chooses the row;
- channels-last: adjacent output channels come from two runs of x, one in each half of its channels, interleaved.

Rows that fit on chip are read once, statistics included. Longer rows take one launch that sums over the positions, in
S splits so that a small batch fills the GPU, and one that adds up the splits and applies the result. Passes over memory
of the size of x, with the residual addition: forward 3 on chip, else 4; backward 5 on chip, else 7, because the launch
that sums also writes the gradient of the identity, and the next one reads that in place of the output's gradient and
the output. Sums run over fixed tiles in a fixed order without atomic additions, so results repeat bit by bit.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tensors import memory_format

_MULTIPROCESSORS = 132  # of an H100 or H200; enough for smaller GPUs, too
_LONGEST_ROW = {False: 8192, True: 64}  # positions that are read once, by whether the layout is channels-last
_CHANNELS_LAST_BLOCK = 32  # channels of a channels-last tile: 64 bytes or more of each position are adjacent
# Sizes that change from batch to batch. Compiling anew for the value 1, or for multiples of 16, would gain nothing.
_SIZES = ["L", "K", "N", "G", "splits", "split_length", "tiles_per_split"]
_SIZES += ["channel_blocks", "chunks", "tiles_per_chunk"]
# Multiplication and addition in one instruction, which is not the default from Triton 3.10 on.
_FUSED = dict(enable_fp_fusion=True)
_FROM_LOG2 = tl.constexpr(-math.log2(math.e))  # sigmoid(z) = 1 / (1 + 2^(-z log2(e)))


# Indices and memory


@triton.jit
def _input_channel(o, C):
    """The channel of x that :func:`sa_mmdet.ops.tensors.shuffle_channels` moves to output channel o."""
    return o // 2 + (o % 2) * (C // 2)


@triton.jit
def _program(channel_blocks, chunks):
    """The image, the block of channels and the chunk of positions of this program.

    All are counted on the first axis of the grid, since the others end at 65,535.
    """
    program = tl.program_id(0)
    return (program // chunks // channel_blocks).to(tl.int64), program // chunks % channel_blocks, program % chunks


@triton.jit
def _tile_pointers(tensor_ptr, n, channels, start, C, L, CHANNELS_LAST: tl.constexpr, BLOCK_L: tl.constexpr):
    """Pointers (BLOCK_L x BLOCK_C) to the positions from ``start`` on of some channels (BLOCK_C) of image n."""
    positions = tl.arange(0, BLOCK_L)[:, None]
    if CHANNELS_LAST:
        return tensor_ptr + (n * L + start) * C + (positions * C + channels[None, :])
    return tensor_ptr + (n * C + channels.to(tl.int64))[None, :] * L + (start + positions)


@triton.jit
def _tile_mask(channels, start, C, L, BLOCK_L: tl.constexpr):
    """Which elements of a tile (BLOCK_L x BLOCK_C) exist."""
    return (start + tl.arange(0, BLOCK_L) < L)[:, None] & (channels < C)[None, :]


@triton.jit
def _first_half_channels(block, C, BLOCK_C: tl.constexpr):
    """The channels of x (BLOCK_C/2) that a channels-last tile takes from the first half of all channels."""
    return block * (BLOCK_C // 2) + tl.arange(0, BLOCK_C // 2)


@triton.jit
def _load_x(x_ptr, n, block, start, C, L, CHANNELS_LAST: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr):
    """A tile of x in the order of the output (BLOCK_L x BLOCK_C), in float32, zero where there is no element."""
    if CHANNELS_LAST:
        half = _first_half_channels(block, C, BLOCK_C)
        mask = _tile_mask(half, start, C // 2, L, BLOCK_L)
        first = tl.load(_tile_pointers(x_ptr, n, half, start, C, L, CHANNELS_LAST, BLOCK_L), mask, 0.0)
        second = tl.load(_tile_pointers(x_ptr + C // 2, n, half, start, C, L, CHANNELS_LAST, BLOCK_L), mask, 0.0)
        return tl.interleave(first, second).to(tl.float32)
    o = block * BLOCK_C + tl.arange(0, BLOCK_C)
    pointers = _tile_pointers(x_ptr, n, _input_channel(o, C), start, C, L, CHANNELS_LAST, BLOCK_L)
    return tl.load(pointers, _tile_mask(o, start, C, L, BLOCK_L), 0.0).to(tl.float32)


@triton.jit
def _store_x(
    x_ptr, values, n, block, start, C, L, CHANNELS_LAST: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Store a tile that is in the order of the output where :func:`_load_x` loads it."""
    values = values.to(x_ptr.dtype.element_ty)
    if CHANNELS_LAST:
        half = _first_half_channels(block, C, BLOCK_C)
        mask = _tile_mask(half, start, C // 2, L, BLOCK_L)
        first, second = tl.split(tl.reshape(values, (BLOCK_L, BLOCK_C // 2, 2)))
        tl.store(_tile_pointers(x_ptr, n, half, start, C, L, CHANNELS_LAST, BLOCK_L), first, mask)
        tl.store(_tile_pointers(x_ptr + C // 2, n, half, start, C, L, CHANNELS_LAST, BLOCK_L), second, mask)
    else:
        o = block * BLOCK_C + tl.arange(0, BLOCK_C)
        pointers = _tile_pointers(x_ptr, n, _input_channel(o, C), start, C, L, CHANNELS_LAST, BLOCK_L)
        tl.store(pointers, values, _tile_mask(o, start, C, L, BLOCK_L))


@triton.jit
def _rstd_offset(n, c, C, K):
    """Where rstd (N x C/2) holds channel c of x, which is in a spatial branch."""
    return n * (C // 2) + (c // (2 * K)) * K + c % K


# The formula


@triton.jit
def _load_channel(c, mask, scale_ptr, shift_ptr, parameters_ptr, K, AFFINE: tl.constexpr):
    """What is the same for all images.

    Args:
        c: Channels of x (BLOCK_C).
        mask: Which of them exist (BLOCK_C).
        scale_ptr: C, read if AFFINE.
        shift_ptr: C, read if AFFINE.
        parameters_ptr: 6 x K.

    Returns:
        Whether the channel is in a spatial branch, channel_weight, channel_bias, logit_weight and logit_bias as
        :mod:`sa_mmdet.ops.cpu` defines them, scale and shift (BLOCK_C each).
    """
    k = c % K
    spatial = (c // K) % 2 == 1
    channel_weight = tl.load(parameters_ptr + k, mask, 0.0).to(tl.float32)
    channel_bias = tl.load(parameters_ptr + K + k, mask, 0.0).to(tl.float32)
    spatial_weight = tl.load(parameters_ptr + 2 * K + k, mask, 0.0).to(tl.float32)
    spatial_bias = tl.load(parameters_ptr + 3 * K + k, mask, 0.0).to(tl.float32)
    norm_weight = tl.load(parameters_ptr + 4 * K + k, mask, 0.0).to(tl.float32)
    norm_bias = tl.load(parameters_ptr + 5 * K + k, mask, 0.0).to(tl.float32)
    if AFFINE:
        scale = tl.load(scale_ptr + c, mask, 0.0).to(tl.float32)
        shift = tl.load(shift_ptr + c, mask, 0.0).to(tl.float32)
    else:
        scale = tl.full(c.shape, 1.0, tl.float32)
        shift = tl.full(c.shape, 0.0, tl.float32)
    logit_weight, logit_bias = spatial_weight * norm_weight, spatial_weight * norm_bias + spatial_bias
    return spatial, channel_weight, channel_bias, logit_weight, logit_bias, scale, shift


@triton.jit
def _logit(spatial, channel_weight, channel_bias, logit_weight, logit_bias, scale, shift, mean, rstd):
    """The gate's logit as a function of y = scale * x + shift: its slope, and its value at the mean (BLOCK_C each)."""
    slope = tl.where(spatial, logit_weight * rstd, 0.0)
    return slope, tl.where(spatial, logit_bias, channel_weight * (scale * mean + shift) + channel_bias)


@triton.jit
def _sigmoid(logit):
    return 1.0 / (1.0 + tl.exp2(logit * _FROM_LOG2))


# Forward


@triton.jit(do_not_specialize=_SIZES)
def _statistics_kernel(
    x_ptr,  # N x C x L
    partial_ptr,  # 2 x S x N x C: mean and sum of squared deviations of each split
    C,
    L,
    N,
    splits,  # S
    tiles_per_split,
    channel_blocks,
    L_DIVISOR: tl.constexpr,  # L is passed divided by this, which tells the compiler how rows are aligned
    CHANNELS_LAST: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute mean and sum of squared deviations over each split of the positions, in x's own order of channels.

    Each element of the tile takes its own positions one by one (Welford's algorithm), since E[x^2] - E[x]^2 would lose
    the variance of a large mean. The mean is taken from a plain sum, which stays infinite where an element is.
    """
    L = L * L_DIVISOR
    n, block, split = _program(channel_blocks, splits)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    begin = split * tiles_per_split * BLOCK_L
    end = tl.minimum(begin + tiles_per_split * BLOCK_L, L)
    sums = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    means = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    count = 0.0
    for start in range(begin, end, BLOCK_L):
        mask = _tile_mask(c, start, C, L, BLOCK_L)
        pointers = _tile_pointers(x_ptr, n, c, start, C, L, CHANNELS_LAST, BLOCK_L)
        x = tl.load(pointers, mask, 0.0).to(tl.float32)
        count += 1.0
        sums += x
        deviation = tl.where(mask, x - means, 0.0)
        means += deviation * (1.0 / count)
        squares += tl.where(mask, deviation * (x - means), 0.0)
    length = (end - begin).to(tl.float32)
    mean = tl.sum(sums, 0) / length
    # How many positions each element of the tile has taken.
    counts = ((end - begin + BLOCK_L - 1 - tl.arange(0, BLOCK_L)) // BLOCK_L).to(tl.float32)[:, None]
    delta = means - mean[None, :]
    pointers = partial_ptr + (split * N + n) * C + c
    tl.store(pointers, mean, c < C)
    tl.store(pointers + splits * N.to(tl.int64) * C, tl.sum(squares + counts * delta * delta, 0), c < C)


@triton.jit
def _combine_statistics(partial_ptr, n, c, c_mask, C, L, N, splits, split_length, BLOCK_S: tl.constexpr):
    """Mean and variance over all positions (BLOCK_C each), from what :func:`_statistics_kernel` stored."""
    split = tl.arange(0, BLOCK_S)
    mask = (split < splits)[:, None] & c_mask[None, :]
    lengths = tl.minimum(split_length, L - split * split_length).to(tl.float32)[:, None]
    pointers = partial_ptr + (split * N + n)[:, None] * C + c[None, :]
    means = tl.load(pointers, mask, 0.0)
    squares = tl.load(pointers + splits * N.to(tl.int64) * C, mask, 0.0)
    mean = tl.sum(tl.where(mask, means * lengths, 0.0), 0) / L
    delta = means - mean[None, :]
    return mean, tl.sum(tl.where(mask, squares + lengths * delta * delta, 0.0), 0) / L


@triton.jit
def _gated(x, spatial, slope, at_mean, scale, shift, mean):
    """y * gate for a tile of x (BLOCK_L x BLOCK_C); ``slope`` is the logit's slope in x (BLOCK_C)."""
    # The channel branch takes its logit without the deviation, so that its gate is a number where the mean is infinite.
    logit = slope[None, :] * (x - mean[None, :]) + at_mean[None, :]
    gate = _sigmoid(tl.where(spatial[None, :], logit, at_mean[None, :]))
    return (scale[None, :] * x + shift[None, :]) * gate


@triton.jit
def _store_output(
    result,  # BLOCK_L x BLOCK_C
    identity_ptr,
    out_ptr,
    n,
    block,
    start,
    C,
    L,
    RESIDUAL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add the identity and apply the ReLU if RESIDUAL, and store a tile of the output."""
    o = block * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = _tile_mask(o, start, C, L, BLOCK_L)
    if RESIDUAL:
        pointers = _tile_pointers(identity_ptr, n, o, start, C, L, CHANNELS_LAST, BLOCK_L)
        result += tl.load(pointers, mask, 0.0).to(tl.float32)
        result = tl.maximum(result, 0.0, propagate_nan=tl.PropagateNan.ALL)
    pointers = _tile_pointers(out_ptr, n, o, start, C, L, CHANNELS_LAST, BLOCK_L)
    tl.store(pointers, result.to(out_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=_SIZES)
def _forward_kernel(
    x_ptr,  # N x C x L
    identity_ptr,  # N x C x L, read if RESIDUAL
    out_ptr,  # N x C x L
    mean_ptr,  # N x C
    rstd_ptr,  # N x C/2
    partial_ptr,  # 2 x S x N x C, read unless WHOLE_ROWS
    scale_ptr,  # C, read if AFFINE
    shift_ptr,  # C, read if AFFINE
    parameters_ptr,  # 6 x K
    C,
    L,
    K,
    eps,
    N,
    splits,  # S
    split_length,  # positions of a split
    channel_blocks,
    chunks,  # of positions, one program each
    tiles_per_chunk,
    L_DIVISOR: tl.constexpr,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,  # whether a tile holds all positions
    CHANNELS_LAST: tl.constexpr,
    BLOCK_S: tl.constexpr,  # S, rounded up to a power of two
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Apply the gates; compute the statistics, too, if WHOLE_ROWS."""
    L = L * L_DIVISOR
    n, block, chunk = _program(channel_blocks, chunks)
    o = block * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = o < C
    first_mask = o < tl.where(chunk == 0, C, 0)  # one program per row stores what the row has one of
    c = _input_channel(o, C)
    spatial, channel_weight, channel_bias, logit_weight, logit_bias, scale, shift = _load_channel(
        c, mask, scale_ptr, shift_ptr, parameters_ptr, K, AFFINE
    )
    x = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    if WHOLE_ROWS:
        x = _load_x(x_ptr, n, block, 0, C, L, CHANNELS_LAST, BLOCK_L, BLOCK_C)
        mean = tl.sum(x, 0) / L
        deviation = tl.where(_tile_mask(o, 0, C, L, BLOCK_L), x - mean[None, :], 0.0)
        variance = tl.sum(deviation * deviation, 0) / L
    else:
        mean, variance = _combine_statistics(partial_ptr, n, c, mask, C, L, N, splits, split_length, BLOCK_S)
    rstd = tl.rsqrt(scale * scale * variance + eps)
    tl.store(mean_ptr + n * C + c, mean, first_mask)
    tl.store(rstd_ptr + _rstd_offset(n, c, C, K), rstd, first_mask & spatial)
    slope, at_mean = _logit(spatial, channel_weight, channel_bias, logit_weight, logit_bias, scale, shift, mean, rstd)
    if WHOLE_ROWS:
        result = _gated(x, spatial, slope * scale, at_mean, scale, shift, mean)
        _store_output(result, identity_ptr, out_ptr, n, block, 0, C, L, RESIDUAL, CHANNELS_LAST, BLOCK_L, BLOCK_C)
    else:
        begin, end = chunk * tiles_per_chunk * BLOCK_L, tl.minimum((chunk + 1) * tiles_per_chunk * BLOCK_L, L)
        for start in range(begin, end, BLOCK_L):
            x = _load_x(x_ptr, n, block, start, C, L, CHANNELS_LAST, BLOCK_L, BLOCK_C)
            result = _gated(x, spatial, slope * scale, at_mean, scale, shift, mean)
            _store_output(
                result, identity_ptr, out_ptr, n, block, start, C, L, RESIDUAL, CHANNELS_LAST, BLOCK_L, BLOCK_C
            )


# Backward


@triton.jit
def _load_grad(
    grad_out_ptr, out_ptr, o, n, start, C, L, RESIDUAL: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_L: tl.constexpr
):
    """A tile of the gradient before the ReLU, if there is one (BLOCK_L x BLOCK_C), in the gradient's dtype."""
    mask = _tile_mask(o, start, C, L, BLOCK_L)
    grad = tl.load(_tile_pointers(grad_out_ptr, n, o, start, C, L, CHANNELS_LAST, BLOCK_L), mask, 0.0)
    if RESIDUAL:
        out = tl.load(_tile_pointers(out_ptr, n, o, start, C, L, CHANNELS_LAST, BLOCK_L), mask, 0.0)
        grad = tl.where(out <= 0.0, 0.0, grad).to(grad.dtype)  # passes where the output is NaN, as PyTorch's does
    return grad


@triton.jit
def _tile_gradients(grad, x, mask, slope, at_mean, scale, shift, mean):
    """Of a tile (BLOCK_L x BLOCK_C each): x - mean, the gradient times the gate, and the gradient of the logit."""
    deviation = tl.where(mask, x - mean[None, :], 0.0)
    gate = _sigmoid(slope[None, :] * deviation + at_mean[None, :])
    direct = grad * gate
    return deviation, direct, direct * (scale[None, :] * x + shift[None, :]) * (1.0 - gate)


@triton.jit
def _load_saved(n, c, mask, mean_ptr, rstd_ptr, scale_ptr, shift_ptr, parameters_ptr, C, K, AFFINE: tl.constexpr):
    """What forward knew of a channel (BLOCK_C each)."""
    spatial, channel_weight, channel_bias, logit_weight, logit_bias, scale, shift = _load_channel(
        c, mask, scale_ptr, shift_ptr, parameters_ptr, K, AFFINE
    )
    mean = tl.load(mean_ptr + n * C + c, mask, 0.0)
    rstd = tl.load(rstd_ptr + _rstd_offset(n, c, C, K), mask & spatial, 0.0)
    slope, at_mean = _logit(spatial, channel_weight, channel_bias, logit_weight, logit_bias, scale, shift, mean, rstd)
    return spatial, channel_weight, scale, shift, mean, rstd, slope, at_mean


@triton.jit(do_not_specialize=_SIZES)
def _sums_kernel(
    grad_out_ptr,  # N x C x L
    x_ptr,  # N x C x L
    out_ptr,  # N x C x L, read if RESIDUAL
    grad_identity_ptr,  # N x C x L, written if RESIDUAL
    mean_ptr,  # N x C
    rstd_ptr,  # N x C/2
    scale_ptr,  # C, read if AFFINE
    shift_ptr,  # C, read if AFFINE
    parameters_ptr,  # 6 x K
    partial_ptr,  # 4 x S x N x C: the four sums of each split
    C,
    L,
    K,
    N,
    splits,  # S
    tiles_per_split,
    channel_blocks,
    L_DIVISOR: tl.constexpr,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum over each split of the positions what :func:`_tile_gradients` computes, and store the identity's gradient.

    The four sums are, with deviation = x - mean: the gradient times the gate ("direct"), the same times the deviation,
    the gradient of the logit, and the same times the deviation.
    """
    L = L * L_DIVISOR
    n, block, split = _program(channel_blocks, splits)
    o = block * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = o < C
    c = _input_channel(o, C)
    _, _, scale, shift, mean, _, slope, at_mean = _load_saved(
        n, c, c_mask, mean_ptr, rstd_ptr, scale_ptr, shift_ptr, parameters_ptr, C, K, AFFINE
    )
    sum_direct = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    sum_direct_deviation = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    sum_logit = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    sum_logit_deviation = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    begin, end = split * tiles_per_split * BLOCK_L, tl.minimum((split + 1) * tiles_per_split * BLOCK_L, L)
    for start in range(begin, end, BLOCK_L):
        mask = _tile_mask(o, start, C, L, BLOCK_L)
        grad = _load_grad(grad_out_ptr, out_ptr, o, n, start, C, L, RESIDUAL, CHANNELS_LAST, BLOCK_L)
        if RESIDUAL:
            tl.store(_tile_pointers(grad_identity_ptr, n, o, start, C, L, CHANNELS_LAST, BLOCK_L), grad, mask)
        x = _load_x(x_ptr, n, block, start, C, L, CHANNELS_LAST, BLOCK_L, BLOCK_C)
        deviation, direct, grad_logit = _tile_gradients(
            grad.to(tl.float32), x, mask, slope * scale, at_mean, scale, shift, mean
        )
        sum_direct += direct
        sum_direct_deviation += direct * deviation
        sum_logit += grad_logit
        sum_logit_deviation += grad_logit * deviation
    pointers = partial_ptr + (split * N + n) * C + c
    size = splits * N.to(tl.int64) * C
    tl.store(pointers, tl.sum(sum_direct, 0), c_mask)
    tl.store(pointers + size, tl.sum(sum_direct_deviation, 0), c_mask)
    tl.store(pointers + 2 * size, tl.sum(sum_logit, 0), c_mask)
    tl.store(pointers + 3 * size, tl.sum(sum_logit_deviation, 0), c_mask)


@triton.jit
def _combine_sums(partial_ptr, which, n, c, mask, C, N, splits, BLOCK_S: tl.constexpr):
    """One of the four sums over all positions (BLOCK_C), from what :func:`_sums_kernel` stored."""
    split = tl.arange(0, BLOCK_S)
    pointers = partial_ptr + ((which * splits + split) * N + n)[:, None] * C + c[None, :]
    return tl.sum(tl.load(pointers, (split < splits)[:, None] & mask[None, :], 0.0), 0)


@triton.jit
def _tile_grad_x(direct, grad_logit, deviation, slope, scale, mean_term, variance_term):
    """The gradient of x for a tile (BLOCK_L x BLOCK_C), see :func:`_backward_kernel`."""
    from_statistics = mean_term[None, :] - variance_term[None, :] * deviation
    return scale[None, :] * direct + ((slope * scale)[None, :] * grad_logit + from_statistics)


@triton.jit(do_not_specialize=_SIZES)
def _backward_kernel(
    grad_out_ptr,  # N x C x L; the identity's gradient, if there is one and not WHOLE_ROWS: it has passed the ReLU
    x_ptr,  # N x C x L
    out_ptr,  # N x C x L, read if WHOLE_ROWS and RESIDUAL
    grad_identity_ptr,  # N x C x L, written if WHOLE_ROWS and RESIDUAL
    mean_ptr,  # N x C
    rstd_ptr,  # N x C/2
    scale_ptr,  # C, read if AFFINE
    shift_ptr,  # C, read if AFFINE
    parameters_ptr,  # 6 x K
    partial_ptr,  # 4 x S x N x C, read unless WHOLE_ROWS
    sums_ptr,  # 4 x N x C: the sums of _sums_kernel over all positions
    grad_x_ptr,  # N x C x L
    C,
    L,
    K,
    N,
    splits,  # S
    channel_blocks,
    chunks,  # of positions, one program each
    tiles_per_chunk,
    L_DIVISOR: tl.constexpr,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute the gradient of x; that of the identity and the sums, too, if WHOLE_ROWS.

    dL/dx = scale * (direct + slope * grad_logit + mean_term - variance_term * deviation): through y, through the logit,
    and through the two statistics, whose terms are the same for all positions of a channel.
    """
    L = L * L_DIVISOR
    n, block, chunk = _program(channel_blocks, chunks)
    o = block * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = o < C
    first_mask = o < tl.where(chunk == 0, C, 0)  # one program per row stores what the row has one of
    c = _input_channel(o, C)
    spatial, channel_weight, scale, shift, mean, rstd, slope, at_mean = _load_saved(
        n, c, c_mask, mean_ptr, rstd_ptr, scale_ptr, shift_ptr, parameters_ptr, C, K, AFFINE
    )
    deviation = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    direct = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    grad_logit = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    if WHOLE_ROWS:
        mask = _tile_mask(o, 0, C, L, BLOCK_L)
        grad = _load_grad(grad_out_ptr, out_ptr, o, n, 0, C, L, RESIDUAL, CHANNELS_LAST, BLOCK_L)
        if RESIDUAL:
            tl.store(_tile_pointers(grad_identity_ptr, n, o, 0, C, L, CHANNELS_LAST, BLOCK_L), grad, mask)
        x = _load_x(x_ptr, n, block, 0, C, L, CHANNELS_LAST, BLOCK_L, BLOCK_C)
        deviation, direct, grad_logit = _tile_gradients(
            grad.to(tl.float32), x, mask, slope * scale, at_mean, scale, shift, mean
        )
        sum_direct = tl.sum(direct, 0)
        sum_direct_deviation = tl.sum(direct * deviation, 0)
        sum_logit = tl.sum(grad_logit, 0)
        sum_logit_deviation = tl.sum(grad_logit * deviation, 0)
    else:
        sum_direct = _combine_sums(partial_ptr, 0, n, c, first_mask, C, N, splits, BLOCK_S)
        sum_direct_deviation = _combine_sums(partial_ptr, 1, n, c, first_mask, C, N, splits, BLOCK_S)
        sum_logit = _combine_sums(partial_ptr, 2, n, c, c_mask, C, N, splits, BLOCK_S)
        sum_logit_deviation = _combine_sums(partial_ptr, 3, n, c, c_mask, C, N, splits, BLOCK_S)
    pointers = sums_ptr + n * C + c
    size = N.to(tl.int64) * C
    tl.store(pointers, sum_direct, first_mask)
    tl.store(pointers + size, sum_direct_deviation, first_mask)
    tl.store(pointers + 2 * size, sum_logit, first_mask)
    tl.store(pointers + 3 * size, sum_logit_deviation, first_mask)
    # Both terms are multiplied by the scale already.
    mean_term = scale * tl.where(spatial, -slope, channel_weight) * sum_logit / L
    variance_term = slope * rstd * rstd * scale * scale * scale * sum_logit_deviation / L
    if WHOLE_ROWS:
        result = _tile_grad_x(direct, grad_logit, deviation, slope, scale, mean_term, variance_term)
        _store_x(grad_x_ptr, result, n, block, 0, C, L, CHANNELS_LAST, BLOCK_L, BLOCK_C)
    else:
        begin, end = chunk * tiles_per_chunk * BLOCK_L, tl.minimum((chunk + 1) * tiles_per_chunk * BLOCK_L, L)
        for start in range(begin, end, BLOCK_L):
            mask = _tile_mask(o, start, C, L, BLOCK_L)
            grad = _load_grad(grad_out_ptr, out_ptr, o, n, start, C, L, False, CHANNELS_LAST, BLOCK_L)
            x = _load_x(x_ptr, n, block, start, C, L, CHANNELS_LAST, BLOCK_L, BLOCK_C)
            deviation, direct, grad_logit = _tile_gradients(
                grad.to(tl.float32), x, mask, slope * scale, at_mean, scale, shift, mean
            )
            result = _tile_grad_x(direct, grad_logit, deviation, slope, scale, mean_term, variance_term)
            _store_x(grad_x_ptr, result, n, block, start, C, L, CHANNELS_LAST, BLOCK_L, BLOCK_C)


@triton.jit(do_not_specialize=_SIZES)
def _vectors_kernel(
    sums_ptr,  # 4 x N x C: the sums of _sums_kernel over all positions
    mean_ptr,  # N x C
    rstd_ptr,  # N x C/2
    scale_ptr,  # C, read if AFFINE
    shift_ptr,  # C, read if AFFINE
    parameters_ptr,  # 6 x K
    grad_scale_ptr,  # C
    grad_shift_ptr,  # C
    grad_parameters_ptr,  # 6 x K
    C,
    K,
    eps,
    N,
    G,
    AFFINE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Compute the gradients of scale, shift and the parameters.

    Program k sums over all images and over the channels that share the k-th parameters: one per group and branch.
    """
    k = tl.program_id(0)
    channel_weight = tl.load(parameters_ptr + k).to(tl.float32)
    spatial_weight = tl.load(parameters_ptr + 2 * K + k).to(tl.float32)
    norm_weight = tl.load(parameters_ptr + 4 * K + k).to(tl.float32)
    norm_bias = tl.load(parameters_ptr + 5 * K + k).to(tl.float32)
    size = N.to(tl.int64) * C
    channel_mean = tl.zeros((BLOCK_G,), tl.float32)  # these four as reference.parameter_gradients takes them
    channel = tl.zeros((BLOCK_G,), tl.float32)
    spatial_normalised = tl.zeros((BLOCK_G,), tl.float32)
    spatial = tl.zeros((BLOCK_G,), tl.float32)
    for first_group in range(0, G, BLOCK_G):
        g = first_group + tl.arange(0, BLOCK_G)
        for branch in range(2):  # the channel branch, the spatial branch
            c = g * 2 * K + branch * K + k
            g_mask = g < G
            scale = tl.full((BLOCK_G,), 1.0, tl.float32)
            shift = tl.full((BLOCK_G,), 0.0, tl.float32)
            if AFFINE:
                scale = tl.load(scale_ptr + c, g_mask, 0.0).to(tl.float32)
                shift = tl.load(shift_ptr + c, g_mask, 0.0).to(tl.float32)
            grad_scale = tl.zeros((BLOCK_G,), tl.float32)
            grad_shift = tl.zeros((BLOCK_G,), tl.float32)
            for first_image in range(0, N, BLOCK_N):
                n = (first_image + tl.arange(0, BLOCK_N)).to(tl.int64)
                mask = (n < N)[:, None] & g_mask[None, :]
                offsets = n[:, None] * C + c[None, :]
                sum_direct = tl.load(sums_ptr + offsets, mask, 0.0)
                sum_direct_deviation = tl.load(sums_ptr + size + offsets, mask, 0.0)
                sum_logit = tl.load(sums_ptr + 2 * size + offsets, mask, 0.0)
                sum_logit_deviation = tl.load(sums_ptr + 3 * size + offsets, mask, 0.0)
                mean = tl.load(mean_ptr + offsets, mask, 0.0)
                rstd = tl.load(rstd_ptr + _rstd_offset(n[:, None], c[None, :], C, K), mask & (branch == 1), 0.0)
                if branch == 0:
                    sum_direct += channel_weight * sum_logit
                    of_mean = sum_logit * (scale[None, :] * mean + shift[None, :])
                    channel_mean += tl.sum(tl.where(mask, of_mean, 0.0), 0)
                    channel += tl.sum(sum_logit, 0)
                else:
                    # 1 - (rstd * scale)^2 * variance, which would be a difference of near numbers, is eps * rstd^2.
                    slope = spatial_weight * norm_weight * rstd
                    sum_direct_deviation += slope * sum_logit_deviation * (eps * rstd * rstd)
                    spatial_normalised += tl.sum(rstd * scale[None, :] * sum_logit_deviation, 0)
                    spatial += tl.sum(sum_logit, 0)
                grad_shift += tl.sum(sum_direct, 0)
                grad_scale += tl.sum(sum_direct_deviation + tl.where(mask, mean * sum_direct, 0.0), 0)
            tl.store(grad_scale_ptr + c, grad_scale, g_mask)
            tl.store(grad_shift_ptr + c, grad_shift, g_mask)
    normalised = tl.sum(spatial_normalised, 0)
    logit = tl.sum(spatial, 0)
    tl.store(grad_parameters_ptr + k, tl.sum(channel_mean, 0))
    tl.store(grad_parameters_ptr + K + k, tl.sum(channel, 0))
    tl.store(grad_parameters_ptr + 2 * K + k, norm_weight * normalised + norm_bias * logit)
    tl.store(grad_parameters_ptr + 3 * K + k, logit)
    tl.store(grad_parameters_ptr + 4 * K + k, spatial_weight * normalised)
    tl.store(grad_parameters_ptr + 5 * K + k, spatial_weight * logit)


# Launches


def _current_device(x: Tensor) -> AbstractContextManager:
    """A context in which the tensor's device is current: Triton launches there, wherever the tensors are."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


class _Tiling(NamedTuple):
    """How a launch divides N x C x L into tiles and these among programs."""

    grid: tuple[int]
    channel_blocks: int
    chunks: int  # of positions, one program each
    tiles_per_chunk: int
    options: dict[str, int]  # a tile's sizes and the number of warps that work on it


class _Plan:
    """The launches for one tensor's shape, dtype and layout."""

    def __init__(self, x: Tensor, groups: int):
        n, c, h, w = x.shape
        self.images, self.channels, self.length = n, c, h * w
        self.channels_last = memory_format(x) == torch.channels_last
        self.whole_rows = self.length <= _LONGEST_ROW[self.channels_last]
        self.vector = 16 // x.element_size()  # elements that a thread loads at once
        # Rows begin at multiples of the length. Told of a common divisor, Triton loads that many elements at once.
        self.divisor = math.gcd(self.length, self.vector)
        self.sizes = (c, self.length // self.divisor)
        self.branch_channels = c // (2 * groups)

    def statistics(self) -> _Tiling:
        """For the sums of x. Each split costs the next launch an addition, most of all in channels-last tiles."""
        return self._tiling(4096, 16, (2 if self.channels_last else 8) * _MULTIPROCESSORS)

    def sums(self) -> _Tiling:
        """For backward's sums, four per element, which read three tensors."""
        tiling = self._tiling(2048, 8, (2 if self.channels_last else 8) * _MULTIPROCESSORS)
        if self.channels_last:  # so that two programs of 256 threads fit: without a limit, a few registers too many
            tiling.options["maxnreg"] = 128
        return tiling

    def apply(self, forward: bool) -> _Tiling:
        """For what reads and writes all elements: one tile per program, or more where a tile has many channels."""
        per_thread = 16 if forward else 8
        if self.channels_last and forward:
            # Whole rows stay in registers; otherwise a thread takes 16 bytes of each half of x at once.
            per_thread = 8 if self.whole_rows else 2 * self.vector
        return self._tiling(2048, per_thread, 4 * _MULTIPROCESSORS if self.channels_last else 1 << 31)

    def _tiling(self, elements: int, per_thread: int, programs: int) -> _Tiling:
        """Tiles of so many elements, shared by so many programs or more where there are enough tiles."""
        whole = triton.next_power_of_2(self.length)
        channels = _CHANNELS_LAST_BLOCK if self.channels_last else 1
        if self.whole_rows:
            channels = channels if self.channels_last else max(1, elements // whole)
            least = 16 if self.channels_last else 1  # of which 8 in each half of x: 16 bytes in half precision
            while channels > least and self.images * triton.cdiv(self.channels, channels) < 2 * _MULTIPROCESSORS:
                channels //= 2
        channels = min(channels, triton.next_power_of_2(self.channels))
        positions = whole if self.whole_rows else elements // channels
        channel_blocks, tiles = triton.cdiv(self.channels, channels), triton.cdiv(self.length, positions)
        tiles_per_chunk = triton.cdiv(tiles, min(tiles, triton.cdiv(programs, self.images * channel_blocks)))
        chunks = triton.cdiv(tiles, tiles_per_chunk)
        warps = max(1, min(16, positions * channels // (32 * per_thread)))
        options = dict(BLOCK_L=positions, BLOCK_C=channels, num_warps=warps, **_FUSED)
        return _Tiling((self.images * channel_blocks * chunks,), channel_blocks, chunks, tiles_per_chunk, options)


def forward(
    x: Tensor,
    identity: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    parameters: Tensor,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what :func:`sa_mmdet.ops.cpu.forward` does, in one launch or two."""
    layout = memory_format(x)
    x = x.contiguous(memory_format=layout)
    n, c = x.shape[:2]
    out = torch.empty_like(x)
    mean, rstd = x.new_zeros((n, c), dtype=torch.float32), x.new_zeros((n, c // 2), dtype=torch.float32)
    if not x.numel():
        return out, mean, rstd
    plan = _Plan(x, groups)
    parameters = parameters.contiguous()
    tiling, statistics = plan.apply(forward=True), plan.statistics()
    flags = dict(L_DIVISOR=plan.divisor, CHANNELS_LAST=plan.channels_last)
    partial = mean  # a placeholder where whole rows are read
    with _current_device(x):
        if not plan.whole_rows:
            partial = x.new_empty((2, statistics.chunks, n, c), dtype=torch.float32)
            _statistics_kernel[statistics.grid](
                x,
                partial,
                *plan.sizes,
                n,
                statistics.chunks,
                statistics.tiles_per_chunk,
                statistics.channel_blocks,
                **flags,
                **statistics.options,
            )
        _forward_kernel[tiling.grid](
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
            plan.branch_channels,
            eps,
            n,
            statistics.chunks,
            statistics.tiles_per_chunk * statistics.options["BLOCK_L"],
            tiling.channel_blocks,
            tiling.chunks,
            tiling.tiles_per_chunk,
            **flags,
            AFFINE=scale is not None,
            RESIDUAL=identity is not None,
            WHOLE_ROWS=plan.whole_rows,
            BLOCK_S=triton.next_power_of_2(statistics.chunks),
            **tiling.options,
        )
    return out, mean, rstd


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
    """Compute what :func:`sa_mmdet.ops.cpu.backward` does, in two launches or three."""
    layout = memory_format(x)
    x, grad_out = (tensor.contiguous(memory_format=layout) for tensor in (x, grad_out))
    n, c = x.shape[:2]
    grad_x = torch.empty_like(x)
    grad_identity = x.new_empty(0) if out is None else torch.empty_like(x)
    # Each in memory of its own, as PyTorch demands of an operator's results.
    grad_scale, grad_shift = (x.new_zeros(c, dtype=torch.float32) for _ in range(2))
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
    tiling, summing = plan.apply(forward=False), plan.sums()
    sums = x.new_empty((4, n, c), dtype=torch.float32)
    partial = sums  # a placeholder where whole rows are read
    affine = scale is not None
    flags = dict(L_DIVISOR=plan.divisor, CHANNELS_LAST=plan.channels_last, AFFINE=affine, RESIDUAL=out is not None)
    relu = (x if out is None else out.contiguous(memory_format=layout), x if out is None else grad_identity)
    with _current_device(x):
        if not plan.whole_rows:
            partial = x.new_empty((4, summing.chunks, n, c), dtype=torch.float32)
            _sums_kernel[summing.grid](
                grad_out,
                x,
                *relu,
                *vectors,
                partial,
                *plan.sizes,
                plan.branch_channels,
                n,
                summing.chunks,
                summing.tiles_per_chunk,
                summing.channel_blocks,
                **flags,
                **summing.options,
            )
        _backward_kernel[tiling.grid](
            grad_out if plan.whole_rows or out is None else grad_identity,
            x,
            *relu,
            *vectors,
            partial,
            sums,
            grad_x,
            *plan.sizes,
            plan.branch_channels,
            n,
            summing.chunks,
            tiling.channel_blocks,
            tiling.chunks,
            tiling.tiles_per_chunk,
            **flags,
            WHOLE_ROWS=plan.whole_rows,
            BLOCK_S=triton.next_power_of_2(summing.chunks),
            **tiling.options,
        )
        _vectors_kernel[(plan.branch_channels,)](
            sums,
            *vectors,
            grad_scale,
            grad_shift,
            grad_parameters,
            c,
            plan.branch_channels,
            eps,
            n,
            groups,
            AFFINE=affine,
            BLOCK_N=min(16, triton.next_power_of_2(n)),
            BLOCK_G=min(64, triton.next_power_of_2(groups)),
            num_warps=4,
            **_FUSED,
        )
    return grad_x, grad_identity, grad_scale, grad_shift, grad_parameters
