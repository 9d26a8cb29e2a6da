"""What kernels that normalise rows share: rows in memory, statistics, the backward of a layer norm, sums over rows.

A tile is (CHUNKS, BLOCK_M, CHUNK): BLOCK_M rows, their channels padded to BLOCK_C = CHUNKS CHUNK, a power of two. That
order makes the compiler give each warp its own rows where CHUNK is as wide as a warp reads at once: sums over channels
need no other warp, and pieces that are padding only are left out. What lies outside of a tensor reads as zero.

Strides: rows lie at outer strides and inner ones, of which there are ``rows_inner``, or at inner ones alone where that
is null. Both are passed divided by UNIT, because the compiler only believes in 16-byte accesses that it sees in the
arithmetic; they must not be specialised otherwise. Channels have their own stride, which a launch specialises to 1.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_places(rows, rows_inner):
    """(outer, inner) index of rows."""
    if rows_inner is None:
        return rows.to(tl.int64) * 0, rows.to(tl.int64)
    else:
        return (rows // rows_inner).to(tl.int64), (rows % rows_inner).to(tl.int64)


@triton.jit
def channel_index(BLOCK_C: tl.constexpr, CHUNK: tl.constexpr):
    """(CHUNKS, 1, CHUNK)."""
    return tl.arange(0, BLOCK_C // CHUNK)[:, None, None] * CHUNK + tl.arange(0, CHUNK)[None, None, :]


@triton.jit
def load_rows(
    pointer, outer, inner, channels, inside, stride_outer, stride_inner, stride_channel, UNIT: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """A tile of a tensor with strides, in the type computed in."""
    starts = pointer + (outer * stride_outer + inner * stride_inner) * UNIT  # (BLOCK_M,)
    offsets = channels.to(tl.int64) * stride_channel
    return tl.load(starts[None, :, None] + offsets, mask=inside, other=0.0).to(COMPUTE)


@triton.jit
def load_packed_rows(pointer, rows, channels, inside, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr):
    """A tile of a contiguous tensor, in the type computed in."""
    starts = pointer + rows.to(tl.int64) * CHANNELS
    return tl.load(starts[None, :, None] + channels, mask=inside, other=0.0).to(COMPUTE)


@triton.jit
def store_rows(pointer, rows, channels, inside, tile, CHANNELS: tl.constexpr):
    """Writes a tile of a contiguous tensor, rounded to its type."""
    starts = pointer + rows.to(tl.int64) * CHANNELS
    tl.store(starts[None, :, None] + channels, tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def load_vector(pointer, channels, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr):
    """(CHUNKS, 1, CHUNK) of a contiguous (C,) tensor."""
    return tl.load(pointer + channels, mask=channels < CHANNELS, other=0.0).to(COMPUTE)


@triton.jit
def load_vector_beside(pointer, rows, channels, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr):
    """The same for each of the rows, a tile: as it lies in their lanes, no warp has to wait for another one's part.

    Inside a loop this costs fewer registers than a vector that waits in them.
    """
    return load_vector(pointer, channels + (rows * 0)[None, :, None], CHANNELS, COMPUTE)


@triton.jit
def row_sum(tile):
    """(BLOCK_M,)."""
    return tl.sum(tl.sum(tile, 0), 1)


@triton.jit
def normalise(total, channels, eps, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Normalised rows, (BLOCK_M,) means and reciprocals of standard deviations; channels outside hold anything.

    Rounding the mean leaves a rest in the deviations from it, which beside a large common offset is no longer small
    against them: their own mean is taken off as well.
    """
    mean = row_sum(total) / CHANNELS
    centred = total - mean[None, :, None]
    if CHANNELS < BLOCK_C:
        centred = tl.where(channels < CHANNELS, centred, 0.0)
    rest = row_sum(centred) / CHANNELS
    variance = tl.maximum(row_sum(centred * centred) / CHANNELS - rest * rest, 0.0)
    rstd = tl.rsqrt(variance + eps)
    return centred * rstd[None, :, None] - (rest * rstd)[None, :, None], mean + rest, rstd


@triton.jit
def load_statistics(p_mean, p_rstd, rows, has_row):
    """(BLOCK_M,) as `normalise` returned them."""
    return tl.load(p_mean + rows, mask=has_row, other=0.0), tl.load(p_rstd + rows, mask=has_row, other=0.0)


@triton.jit
def norm_backward(grad_normed, weight, y, rstd, CHANNELS: tl.constexpr):
    """Gradient of the rows before the norm, of which ``y`` is what `normalise` made; channels outside hold anything."""
    grad = grad_normed * weight
    mean = row_sum(grad) / CHANNELS
    slope = row_sum(grad * y) / CHANNELS
    return (grad - mean[None, :, None] - y * slope[None, :, None]) * rstd[None, :, None]


@triton.jit
def store_partial(pointer, tile, channels, CHANNELS: tl.constexpr):
    """Writes a program's sum over its rows as a row of (programs, C)."""
    place = tl.program_id(0).to(tl.int64) * CHANNELS + channels
    tl.store(pointer + place, tl.sum(tile, 1)[:, None, :], mask=channels < CHANNELS)


@triton.jit(do_not_specialize=("terms", "columns", "stride_vector"))
def row_norm_sum_kernel(
    p_terms,  # (vectors, terms, columns) with strides
    p_first, p_second, p_third,  # (columns,), sums over the terms of a vector each, or null
    terms, columns, stride_vector, stride_term, stride_column,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A program sums BLOCK_C columns of a vector, the terms always in the same order."""
    place = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    vector = tl.program_id(1)
    has_column = place < columns
    p_terms += vector.to(tl.int64) * stride_vector
    sums = tl.zeros((BLOCK_T, BLOCK_C), COMPUTE)
    for start in range(0, terms, BLOCK_T):
        term = start + tl.arange(0, BLOCK_T)
        pointers = p_terms + term.to(tl.int64)[:, None] * stride_term + place[None, :] * stride_column
        sums += tl.load(pointers, mask=(term < terms)[:, None] & has_column[None, :], other=0.0)
    total = tl.sum(sums, 0)  # (BLOCK_C,)
    if vector == 0:
        tl.store(p_first + place, total.to(p_first.dtype.element_ty), mask=has_column)
    if p_second is not None and vector == 1:
        tl.store(p_second + place, total.to(p_second.dtype.element_ty), mask=has_column)
    if p_third is not None and vector == 2:
        tl.store(p_third + place, total.to(p_third.dtype.element_ty), mask=has_column)
