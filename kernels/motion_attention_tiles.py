"""What the kernels of motion attention share: tiles in memory, and the bias as extra channels of query and key.

The bias lambda_h m_q m_k + key_bias enters the matrix product of the scores as BLOCK_R more channels, which costs no
instruction per score: S / scale = q k + a b with a = [lambda_h / scale m_q, 1, 1, 1], b = [m_k, key_bias / scale]. In
half types both are split into hi + lo, and a_hi b_hi + a_hi b_lo + a_lo b_hi errs by about 2^-16 of a term in bfloat16
and 2^-22 in float16, where one product errs by 2^-8 and 2^-11. A key's bias is split into three numbers that lie in
b_lo, which meets a_hi = 1 alone, so that -inf hides a key without a NaN (0 times -inf).

Strides: ALIGNED says that channels lie one after the other and that all other strides are multiples of 8 elements; they
are then passed divided by 8, because the compiler only believes in 16-byte accesses that it sees in the arithmetic.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def program_of(length, BLOCK: tl.constexpr):
    """Which head (of batch times heads), which of its tiles, how many it has; one axis, because others end at 65535."""
    tiles = tl.cdiv(length, BLOCK)
    return tl.program_id(0) // tiles, tl.program_id(0) % tiles, tiles


@triton.jit
def head_of(pointer, batch, head, stride_batch, stride_head, ALIGNED: tl.constexpr):
    """Where a head of a (B, H, rows, channels) tensor begins."""
    offset = batch.to(tl.int64) * stride_batch + head.to(tl.int64) * stride_head
    if ALIGNED:
        offset = offset * 8
    return pointer + offset


@triton.jit
def row_of(pointer, row, stride_row, ALIGNED: tl.constexpr):
    """Where a row of a head begins."""
    offset = (tl.full((), 0, tl.int64) + row) * stride_row  # an interpreted loop counts in plain integers
    if ALIGNED:
        offset = offset * 8
    return pointer + offset


@triton.jit
def tile_offsets(stride_row, stride_channel, ROWS: tl.constexpr, CHANNELS: tl.constexpr, ALIGNED: tl.constexpr):
    """(ROWS, CHANNELS) offsets from a row on; ALIGNED ones fit into 32 bits."""
    rows, channels = tl.arange(0, ROWS)[:, None], tl.arange(0, CHANNELS)[None, :]
    if ALIGNED:
        return rows * stride_row * 8 + channels
    else:
        return rows.to(tl.int64) * stride_row + channels.to(tl.int64) * stride_channel


@triton.jit
def load_tile(
    pointers, rows_left, ROWS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr
):
    """A tile whose channels from WIDTH on, and if MASKED whose rows from rows_left on, read as zero."""
    if MASKED and WIDTH < CHANNELS:
        inside = (tl.arange(0, ROWS)[:, None] < rows_left) & (tl.arange(0, CHANNELS)[None, :] < WIDTH)
        return tl.load(pointers, mask=inside, other=0.0)
    elif MASKED:
        return tl.load(pointers, mask=tl.arange(0, ROWS)[:, None] < rows_left, other=0.0)
    elif WIDTH < CHANNELS:
        return tl.load(pointers, mask=tl.arange(0, CHANNELS)[None, :] < WIDTH, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def store_tile(
    pointers, tile, rows_left, ROWS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr
):
    """Writes the part of a tile that `load_tile` would read."""
    tile = tile.to(pointers.dtype.element_ty)
    if MASKED and WIDTH < CHANNELS:
        inside = (tl.arange(0, ROWS)[:, None] < rows_left) & (tl.arange(0, CHANNELS)[None, :] < WIDTH)
        tl.store(pointers, tile, mask=inside)
    elif MASKED:
        tl.store(pointers, tile, mask=tl.arange(0, ROWS)[:, None] < rows_left)
    elif WIDTH < CHANNELS:
        tl.store(pointers, tile, mask=tl.arange(0, CHANNELS)[None, :] < WIDTH)
    else:
        tl.store(pointers, tile)


@triton.jit
def load_motion(
    p_motion, stride_row, stride_channel, rows_left, ROWS: tl.constexpr, BLOCK_R: tl.constexpr, MOTION: tl.constexpr,
    PACKED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """(ROWS, BLOCK_R) motion from a row on, zero beyond MOTION channels; PACKED rows follow one another directly."""
    if PACKED:
        offsets = tl.arange(0, ROWS)[:, None] * MOTION + tl.arange(0, BLOCK_R)[None, :]
    else:
        offsets = tile_offsets(stride_row, stride_channel, ROWS, BLOCK_R, False)
    return load_tile(p_motion + offsets, rows_left, ROWS, BLOCK_R, MOTION, True).to(COMPUTE)


@triton.jit
def load_key_bias(p_key_bias, first, num_keys, stride, scale, ROWS: tl.constexpr, COMPUTE: tl.constexpr):
    """(ROWS,) key bias / scale from a key on, zero where none is given, -inf from num_keys on."""
    keys = first + tl.arange(0, ROWS)
    if p_key_bias is None:
        return tl.where(keys < num_keys, 0.0, -float("inf")).to(COMPUTE)
    else:
        bias = tl.load(p_key_bias + keys.to(tl.int64) * stride, mask=keys < num_keys, other=-float("inf"))
        return bias.to(COMPUTE) / scale


@triton.jit
def query_extras(
    motion, factor, ROWS: tl.constexpr, BLOCK_R: tl.constexpr, MOTION: tl.constexpr, DTYPE: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """(ROWS, BLOCK_R) a_hi and a_lo of queries; a_hi is 1 in the channels of the key bias. motion: None for none."""
    channels = tl.arange(0, BLOCK_R)[None, :]
    is_bias = (channels >= MOTION) & (channels < MOTION + 3)
    if MOTION > 0:
        scaled = motion * factor
        high = scaled.to(DTYPE)
        low = (scaled - high.to(COMPUTE)).to(DTYPE)
        return tl.where(is_bias, 1.0, high).to(DTYPE), low
    else:
        ones = tl.where(is_bias & (tl.arange(0, ROWS)[:, None] >= 0), 1.0, 0.0).to(DTYPE)
        return ones, ones


@triton.jit
def key_extras(
    motion, bias, ROWS: tl.constexpr, BLOCK_R: tl.constexpr, MOTION: tl.constexpr, DTYPE: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """(ROWS, BLOCK_R) b_hi and b_lo of keys: motion (None for none) and the bias / scale in three half numbers.

    Where DTYPE is what is computed in, all of it is in b_hi, and -inf is -1e30: products in three steps of tf32 cannot
    take it.
    """
    channels = tl.arange(0, BLOCK_R)[None, :]
    if MOTION == 0:
        motion = tl.zeros((ROWS, BLOCK_R), COMPUTE)
    if DTYPE == COMPUTE:
        both = tl.where(channels == MOTION, tl.maximum(bias, -1e30)[:, None], motion)
        return both, both
    else:
        high = motion.to(DTYPE)
        low = (motion - high.to(COMPUTE)).to(DTYPE)
        first = bias.to(DTYPE)
        hidden = first.to(COMPUTE) == -float("inf")
        rest = tl.where(hidden, 0.0, bias) - tl.where(hidden, 0.0, first.to(COMPUTE))
        second = rest.to(DTYPE)
        third = (rest - second.to(COMPUTE)).to(DTYPE)
        low = tl.where(channels == MOTION, first[:, None], low)
        low = tl.where(channels == MOTION + 1, second[:, None], low)
        low = tl.where(channels == MOTION + 2, third[:, None], low)
        return high, low


@triton.jit
def add_extras(
    scores, left_high, left_low, right_high, right_low, KEYS_FIRST: tl.constexpr, MOTION: tl.constexpr,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """scores (I, J) + a b; left (I, BLOCK_R), right (J, BLOCK_R): queries and keys, or keys and queries."""
    if DTYPE == COMPUTE:
        return tl.dot(left_high, tl.trans(right_high), scores, input_precision=PRECISION, out_dtype=COMPUTE)
    elif KEYS_FIRST:
        scores = tl.dot(left_low, tl.trans(right_high), scores)
        if MOTION > 0:
            scores = tl.dot(left_high, tl.trans(right_high), scores)
            scores = tl.dot(left_high, tl.trans(right_low), scores)
        return scores
    else:
        scores = tl.dot(left_high, tl.trans(right_low), scores)
        if MOTION > 0:
            scores = tl.dot(left_high, tl.trans(right_high), scores)
            scores = tl.dot(left_low, tl.trans(right_high), scores)
        return scores


@triton.jit
def subtractable(row_max):
    """Row maxima that can be subtracted: 0 for rows that see no key (-inf, or -1e30 as `key_extras` has it)."""
    return tl.where(row_max < -5e29, 0.0, row_max)


@triton.jit
def exponential(scores, shift, log2_scale, EXACT: tl.constexpr):
    """exp(scale (scores - shift)); EXACT subtracts first, which keeps float32's digits where scores are large."""
    if EXACT:
        return tl.exp2((scores - shift) * log2_scale)
    else:
        return tl.exp2(scores * log2_scale - shift * log2_scale)


@triton.jit
def attend(
    scores, row_max, row_sum, out, value, log2_scale, DTYPE: tl.constexpr, COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax; scores (I, J) before the scale, value (J, BLOCK_D), out (I, BLOCK_D)."""
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    shift = subtractable(new_max)
    weight = exponential(scores, shift[:, None], log2_scale, DTYPE == COMPUTE)
    shrink = exponential(row_max, shift, log2_scale, DTYPE == COMPUTE)
    row_sum = row_sum * shrink + tl.sum(weight, 1)
    out = out * shrink[:, None]
    out = tl.dot(weight.to(DTYPE), value, out, input_precision=PRECISION, out_dtype=COMPUTE)
    return new_max, row_sum, out


@triton.jit
def inverse_or_zero(row_sum):
    """1 / row sums, 0 for rows that see no key."""
    return tl.where(row_sum > 0, 1.0 / tl.where(row_sum > 0, row_sum, 1.0), 0.0)


@triton.jit
def store_statistics(
    p_statistics, row_max, row_sum, log2_scale, first, num_queries, ROWS: tl.constexpr, EXACT: tl.constexpr
):
    """What the backward rebuilds the weights from, for a head's rows.

    log2 of the row sums of exp(S), +inf for rows that see no key; EXACT: the maximum before the scale and the inverse
    of the sum, because one number of that size would lose what float32 has to tell.
    """
    rows = first + tl.arange(0, ROWS)
    inside = rows < num_queries
    if EXACT:
        tl.store(p_statistics + rows, subtractable(row_max), mask=inside)
        tl.store(p_statistics + num_queries + rows, inverse_or_zero(row_sum), mask=inside)
    else:
        visible = row_sum > 0
        lse = row_max * log2_scale + tl.log2(tl.where(visible, row_sum, 1.0))
        tl.store(p_statistics + rows, tl.where(visible, lse, float("inf")), mask=inside)
