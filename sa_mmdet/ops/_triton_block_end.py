"""The pointwise work of residual blocks on GPUs, by Triton's kernels: what :mod:`sa_mmdet.ops.pointwise` defines.

Shapes: N images, C channels, L = H * W positions, G groups of D = C / G adjacent channels, which share their gates for
positions. Memory is laid out as :mod:`sa_mmdet.ops._triton` says, and its programs are counted in the same way.

A program works on tiles of one image, BLOCK_L positions by BLOCK_C channels: the channels of BLOCK_G groups, as many of
each, from ``blocks_per_group`` programs for a group. Without gates for positions all channels are one group.

Everything is computed in float32 and rounded once. Passes over memory of the size of x: forward 2 without an identity,
3 with one; backward 3, or 5, or 6 where the identity has a norm. Backward sums over its tiles in a fixed order, in
splits of the positions, of the images and of a group's channels, which PyTorch adds up: results repeat bit by bit.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._triton import _FUSED, _MULTIPROCESSORS, _current_device, _program, _tile_mask, _tile_pointers
from .eval_norm import EvalNorm
from .tensors import in_memory_format, memory_format

# Sizes that change from batch to batch; see _triton.
_SIZES = ["L", "N", "G", "D", "channel_blocks", "blocks_per_group", "chunks", "tiles_per_chunk"]
_ELEMENTS = 2048  # of a tile
_CHANNELS_LAST_BLOCK = 64  # channels of a channels-last tile
_GATED_BLOCK = 16  # channels of a contiguous tile whose gates for positions have gradients to be summed


@triton.jit
def _tile_channels(
    block, blocks_per_group, C, G, D, ADJACENT: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr
):
    """The channels of a tile (BLOCK_C), C where there is none, and the groups that they belong to (BLOCK_G)."""
    i = tl.arange(0, BLOCK_C)
    groups = block // blocks_per_group * BLOCK_G + tl.arange(0, BLOCK_G)
    if ADJACENT:
        return block * BLOCK_C + i, groups
    group = block // blocks_per_group * BLOCK_G + i // (BLOCK_C // BLOCK_G)
    in_group = block % blocks_per_group * (BLOCK_C // BLOCK_G) + i % (BLOCK_C // BLOCK_G)
    return tl.where((group < G) & (in_group < D), group * D + in_group, C), groups


@triton.jit
def _load_norm(weight_ptr, bias_ptr, mean_ptr, variance_ptr, eps, c, mask, NORM: tl.constexpr):
    """A batch norm's mean, 1 / sqrt(variance + eps), both times the weight, and bias (BLOCK_C each)."""
    if NORM:
        weight = tl.load(weight_ptr + c, mask, 0.0).to(tl.float32)
        bias = tl.load(bias_ptr + c, mask, 0.0).to(tl.float32)
        mean = tl.load(mean_ptr + c, mask, 0.0).to(tl.float32)
        rstd = tl.rsqrt(tl.load(variance_ptr + c, mask, 1.0).to(tl.float32) + eps)
    else:
        weight = tl.full(c.shape, 1.0, tl.float32)
        bias = tl.full(c.shape, 0.0, tl.float32)
        mean = tl.full(c.shape, 0.0, tl.float32)
        rstd = tl.full(c.shape, 1.0, tl.float32)
    return mean, rstd, weight * rstd, bias


@triton.jit
def _load_tile(ptr, n, c, start, C, L, CHANNELS_LAST: tl.constexpr, BLOCK_L: tl.constexpr):
    mask = _tile_mask(c, start, C, L, BLOCK_L)
    return tl.load(_tile_pointers(ptr, n, c, start, C, L, CHANNELS_LAST, BLOCK_L), mask, 0.0).to(tl.float32)


@triton.jit
def _store_tile(ptr, values, n, c, start, C, L, CHANNELS_LAST: tl.constexpr, BLOCK_L: tl.constexpr):
    mask = _tile_mask(c, start, C, L, BLOCK_L)
    pointers = _tile_pointers(ptr, n, c, start, C, L, CHANNELS_LAST, BLOCK_L)
    tl.store(pointers, values.to(ptr.dtype.element_ty), mask)


@triton.jit
def _load_gates(gate_ptr, n, groups, start, G, L, BLOCK_L: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr):
    """The gates of a tile's positions (N x G x L in memory), for each of its channels or one for all of them."""
    gates = _load_tile(gate_ptr, n, groups, start, G, L, False, BLOCK_L)
    if BLOCK_G > 1:
        spread = tl.broadcast_to(gates[:, :, None], (BLOCK_L, BLOCK_G, BLOCK_C // BLOCK_G))
        gates = tl.reshape(spread, (BLOCK_L, BLOCK_C))
    return gates


@triton.jit(do_not_specialize=_SIZES)
def _forward_kernel(
    x_ptr,  # N x C x L
    identity_ptr,  # N x C x L, read if IDENTITY
    out_ptr,  # N x C x L
    weight_ptr,  # C, as the next three, read if NORM
    bias_ptr,
    mean_ptr,
    variance_ptr,
    eps,
    identity_weight_ptr,  # C, as the next three, read if IDENTITY_NORM
    identity_bias_ptr,
    identity_mean_ptr,
    identity_variance_ptr,
    identity_eps,
    channel_gate_ptr,  # N x C, read if CHANNEL_GATE
    position_gate_ptr,  # N x G x L, read if POSITION_GATE
    C,
    L,
    G,
    D,
    channel_blocks,
    blocks_per_group,
    chunks,  # of positions, one program each
    tiles_per_chunk,
    L_DIVISOR: tl.constexpr,  # L is passed divided by this, which tells the compiler how rows are aligned
    NORM: tl.constexpr,
    IDENTITY: tl.constexpr,
    IDENTITY_NORM: tl.constexpr,
    CHANNEL_GATE: tl.constexpr,
    POSITION_GATE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ADJACENT: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    L = L * L_DIVISOR
    n, block, chunk = _program(channel_blocks, chunks)
    c, groups = _tile_channels(block, blocks_per_group, C, G, D, ADJACENT, BLOCK_G, BLOCK_C)
    c_mask = c < C
    mean, _, scale, bias = _load_norm(weight_ptr, bias_ptr, mean_ptr, variance_ptr, eps, c, c_mask, NORM)
    other_mean, _, other_scale, other_bias = _load_norm(
        identity_weight_ptr,
        identity_bias_ptr,
        identity_mean_ptr,
        identity_variance_ptr,
        identity_eps,
        c,
        c_mask,
        IDENTITY_NORM,
    )
    begin, end = chunk * tiles_per_chunk * BLOCK_L, tl.minimum((chunk + 1) * tiles_per_chunk * BLOCK_L, L)
    for start in range(begin, end, BLOCK_L):
        x = _load_tile(x_ptr, n, c, start, C, L, CHANNELS_LAST, BLOCK_L)
        y = (x - mean[None, :]) * scale[None, :] + bias[None, :]
        if CHANNEL_GATE:
            y *= tl.load(channel_gate_ptr + n * C + c, c_mask, 0.0).to(tl.float32)[None, :]
        if POSITION_GATE:
            y *= _load_gates(position_gate_ptr, n, groups, start, G, L, BLOCK_L, BLOCK_G, BLOCK_C)
        if IDENTITY:
            other = _load_tile(identity_ptr, n, c, start, C, L, CHANNELS_LAST, BLOCK_L)
            y += (other - other_mean[None, :]) * other_scale[None, :] + other_bias[None, :]
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
        _store_tile(out_ptr, y, n, c, start, C, L, CHANNELS_LAST, BLOCK_L)


@triton.jit(do_not_specialize=_SIZES)
def _backward_kernel(
    grad_out_ptr,  # N x C x L
    out_ptr,  # N x C x L, read if IDENTITY
    x_ptr,  # N x C x L
    identity_ptr,  # N x C x L, read if IDENTITY_NORM
    grad_x_ptr,  # N x C x L
    grad_identity_ptr,  # N x C x L, written if IDENTITY
    partial_ptr,  # (2 or 4) x S x N x C: the sums of each chunk of positions, S in all
    partial_gate_ptr,  # blocks_per_group x N x G x L, written if POSITION_GATE
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    eps,
    identity_weight_ptr,
    identity_bias_ptr,
    identity_mean_ptr,
    identity_variance_ptr,
    identity_eps,
    channel_gate_ptr,
    position_gate_ptr,
    C,
    L,
    G,
    D,
    channel_blocks,
    blocks_per_group,
    chunks,  # S
    tiles_per_chunk,
    N,
    L_DIVISOR: tl.constexpr,
    NORM: tl.constexpr,
    IDENTITY: tl.constexpr,
    IDENTITY_NORM: tl.constexpr,
    CHANNEL_GATE: tl.constexpr,
    POSITION_GATE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ADJACENT: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute the gradients of the maps, and of the rest the sums over this program's tiles.

    With z the gradient before the ReLU, the sums of a channel are those of z * (gate of the position) * (normalised x)
    and of the same without the normalised x; then, if IDENTITY_NORM, of z * (normalised identity) and of z.
    """
    L = L * L_DIVISOR
    n, block, chunk = _program(channel_blocks, chunks)
    c, groups = _tile_channels(block, blocks_per_group, C, G, D, ADJACENT, BLOCK_G, BLOCK_C)
    c_mask = c < C
    mean, rstd, scale, bias = _load_norm(weight_ptr, bias_ptr, mean_ptr, variance_ptr, eps, c, c_mask, NORM)
    other_mean, other_rstd, other_scale, _ = _load_norm(
        identity_weight_ptr,
        identity_bias_ptr,
        identity_mean_ptr,
        identity_variance_ptr,
        identity_eps,
        c,
        c_mask,
        IDENTITY_NORM,
    )
    gate = tl.full((BLOCK_C,), 1.0, tl.float32)
    if CHANNEL_GATE:
        gate = tl.load(channel_gate_ptr + n * C + c, c_mask, 0.0).to(tl.float32)
    total = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    total_x = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    total_other = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    total_z = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    begin, end = chunk * tiles_per_chunk * BLOCK_L, tl.minimum((chunk + 1) * tiles_per_chunk * BLOCK_L, L)
    for start in range(begin, end, BLOCK_L):
        z = _load_tile(grad_out_ptr, n, c, start, C, L, CHANNELS_LAST, BLOCK_L)
        deviation = _load_tile(x_ptr, n, c, start, C, L, CHANNELS_LAST, BLOCK_L) - mean[None, :]
        y = deviation * scale[None, :] + bias[None, :]
        # The gradient passes where the result is NaN, as PyTorch's does.
        if IDENTITY:
            z = tl.where(_load_tile(out_ptr, n, c, start, C, L, CHANNELS_LAST, BLOCK_L) <= 0.0, 0.0, z)
            _store_tile(grad_identity_ptr, z * other_scale[None, :], n, c, start, C, L, CHANNELS_LAST, BLOCK_L)
        else:
            z = tl.where(y.to(x_ptr.dtype.element_ty).to(tl.float32) <= 0.0, 0.0, z)
        if IDENTITY_NORM:
            other = _load_tile(identity_ptr, n, c, start, C, L, CHANNELS_LAST, BLOCK_L)
            total_other += z * (other - other_mean[None, :])
            total_z += z
        grad = z
        if POSITION_GATE:
            of_groups = tl.reshape(z * gate[None, :] * y, (BLOCK_L, BLOCK_G, BLOCK_C // BLOCK_G))
            pointer = partial_gate_ptr + (block % blocks_per_group) * N.to(tl.int64) * G * L
            _store_tile(pointer, tl.sum(of_groups, 2), n, groups, start, G, L, False, BLOCK_L)
            grad = z * _load_gates(position_gate_ptr, n, groups, start, G, L, BLOCK_L, BLOCK_G, BLOCK_C)
        _store_tile(grad_x_ptr, grad * (gate * scale)[None, :], n, c, start, C, L, CHANNELS_LAST, BLOCK_L)
        total += grad
        total_x += grad * deviation
    size = chunks * N.to(tl.int64) * C
    pointers = partial_ptr + (chunk * N + n) * C + c
    tl.store(pointers, tl.sum(total_x, 0) * rstd, c_mask)
    tl.store(pointers + size, tl.sum(total, 0), c_mask)
    if IDENTITY_NORM:
        tl.store(pointers + 2 * size, tl.sum(total_other, 0) * other_rstd, c_mask)
        tl.store(pointers + 3 * size, tl.sum(total_z, 0), c_mask)


class _Plan:
    """How a launch divides N x C x L into tiles and these among programs.

    Attributes:
        grid: The programs.
        blocks_per_group: Programs side by side in the channels of a group.
        chunks: Programs one after the other in the positions.
        sizes: The kernels' arguments from C to ``tiles_per_chunk``.
        options: Those that are known when the kernels are compiled.
    """

    def __init__(self, x: Tensor, groups: int | None, programs: int, per_thread: int):
        n, c, h, w = x.shape
        length, in_group = h * w, c // (groups or 1)
        last = memory_format(x) == torch.channels_last
        fitting = triton.next_power_of_2(in_group)
        many = 1  # groups of a tile
        if last:
            channels = min(_CHANNELS_LAST_BLOCK, triton.next_power_of_2(c))
            of_each = min(channels, fitting)
            many = channels // of_each if groups else 1
        else:
            of_each = min(_GATED_BLOCK, fitting) if groups else 1
        positions = _positions(length, _ELEMENTS // (many * of_each))
        if not last and not groups:
            of_each = min(_ELEMENTS // positions, fitting)
        channels = many * of_each
        self.blocks_per_group = triton.cdiv(in_group, of_each)
        channel_blocks = triton.cdiv(groups or 1, many) * self.blocks_per_group
        tiles = triton.cdiv(length, positions)
        tiles_per_chunk = triton.cdiv(tiles, min(tiles, triton.cdiv(programs, n * channel_blocks)))
        self.chunks = triton.cdiv(tiles, tiles_per_chunk)
        self.grid = (n * channel_blocks * self.chunks,)
        # Rows begin at multiples of the length. Told of a common divisor, Triton loads that many elements at once.
        divisor = math.gcd(length, 16 // x.element_size())
        in_channels = (in_group, channel_blocks, self.blocks_per_group)
        self.sizes = (c, length // divisor, groups or 1, *in_channels, self.chunks, tiles_per_chunk)
        self.options: dict[str, Any] = dict(
            L_DIVISOR=divisor,
            CHANNELS_LAST=last,
            ADJACENT=not groups or (in_group % of_each == 0 and (many == 1 or of_each == in_group)),
            BLOCK_L=positions,
            BLOCK_G=many,
            BLOCK_C=channels,
            num_warps=max(1, min(8, positions * channels // (32 * per_thread))),
            **_FUSED,
        )


def _positions(length: int, most: int) -> int:
    """The positions of a tile, a power of two: the most of which at most a fifth is wasted at the end of a row."""
    found = min(most, triton.next_power_of_2(length))
    while found > 64 and 5 * length < 4 * found * triton.cdiv(length, found):
        found //= 2
    return found


def _vectors(norm: EvalNorm, like: Tensor) -> list[Any]:
    """A norm as the kernels take it; placeholders if there is none."""
    if not norm.exists:
        return [*[like] * 4, 0.0]
    channels = like.shape[1]
    weight, bias, mean, variance = (vector if vector is None else vector.contiguous() for vector in norm[:4])
    zeros = like.new_zeros(channels, dtype=torch.float32)
    # Without a variance there is nothing that eps could be added to.
    ones, eps = torch.ones_like(zeros), norm.eps if variance is not None else 0.0
    return [
        ones if weight is None else weight,
        zeros if bias is None else bias,
        zeros if mean is None else mean,
        ones if variance is None else variance,
        eps,
    ]


def _flags(
    identity: Tensor | None,
    norm: EvalNorm,
    channel_gate: Tensor | None,
    position_gate: Tensor | None,
    identity_norm: EvalNorm,
) -> dict[str, bool]:
    return dict(
        NORM=norm.exists,
        IDENTITY=identity is not None,
        IDENTITY_NORM=identity is not None and identity_norm.exists,
        CHANNEL_GATE=channel_gate is not None,
        POSITION_GATE=position_gate is not None,
    )


def forward(
    x: Tensor,
    identity: Tensor | None,
    norm: EvalNorm,
    channel_gate: Tensor | None,
    position_gate: Tensor | None,
    identity_norm: EvalNorm,
) -> Tensor:
    """Compute what :func:`sa_mmdet.ops.pointwise.forward` does, in one launch."""
    layout = memory_format(x)
    x = in_memory_format(x, layout)
    out = torch.empty_like(x)
    if not x.numel():
        return out
    # As many programs as there are tiles: each costs no more than a few numbers a channel.
    plan = _Plan(x, None if position_gate is None else position_gate.shape[1], 1 << 31, 16)
    with _current_device(x):
        _forward_kernel[plan.grid](
            x,
            x if identity is None else in_memory_format(identity, layout),
            out,
            *_vectors(norm, x),
            *_vectors(identity_norm, x),
            x if channel_gate is None else channel_gate.contiguous(),
            x if position_gate is None else position_gate.contiguous(),
            *plan.sizes,
            **_flags(identity, norm, channel_gate, position_gate, identity_norm),
            **plan.options,
        )
    return out


def backward(
    grad_out: Tensor,
    out: Tensor | None,
    x: Tensor,
    identity: Tensor | None,
    norm: EvalNorm,
    channel_gate: Tensor | None,
    position_gate: Tensor | None,
    identity_norm: EvalNorm,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute what :func:`sa_mmdet.ops.pointwise.backward` does, in one launch and a few sums of numbers a channel."""
    layout = memory_format(x)
    x, grad_out = in_memory_format(x, layout), in_memory_format(grad_out, layout)
    n, c, h, w = x.shape
    groups = None if position_gate is None else position_gate.shape[1]
    none = x.new_empty(0, dtype=torch.float32)
    grad_x = torch.empty_like(x)
    grad_identity = x.new_empty(0) if out is None else torch.empty_like(x)
    flags = _flags(out, norm, channel_gate, position_gate, identity_norm)
    count = 4 if flags["IDENTITY_NORM"] else 2
    # Enough programs to fill a GPU; each costs a few sums.
    plan = _Plan(x, groups, (4 if layout == torch.channels_last else 8) * _MULTIPROCESSORS, 8)
    partial = x.new_empty((count, plan.chunks, n, c), dtype=torch.float32)
    gates = none if groups is None else x.new_empty((plan.blocks_per_group, n, groups, h, w), dtype=torch.float32)
    with _current_device(x):
        _backward_kernel[plan.grid](
            grad_out,
            x if out is None else in_memory_format(out, layout),
            x,
            in_memory_format(identity, layout) if identity is not None and flags["IDENTITY_NORM"] else x,
            grad_x,
            grad_identity,
            partial,
            gates,
            *_vectors(norm, x),
            *_vectors(identity_norm, x),
            x if channel_gate is None else channel_gate.contiguous(),
            x if position_gate is None else position_gate.contiguous(),
            *plan.sizes,
            n,
            **flags,
            **plan.options,
        )
    grad_position = none if groups is None else gates.sum(0)
    if channel_gate is None:
        return grad_x, grad_identity, partial.sum((1, 2)), none.clone(), grad_position
    sums = partial.sum(1)
    weight, bias = (None if vector is None else vector.float() for vector in norm[:2])
    grad_channel = sums[0] if weight is None else sums[0] * weight
    grad_channel = grad_channel.clone() if bias is None else torch.addcmul(grad_channel, sums[1], bias)
    sums[:2] *= channel_gate.float().reshape(n, c)
    return grad_x, grad_identity, sums.sum(1), grad_channel, grad_position
