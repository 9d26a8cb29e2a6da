"""Motion attention forward for any length: tiles of keys pass a tile of queries, softmax is carried along."""

from __future__ import annotations

import triton
import triton.language as tl
from motarfuse.kernels.motion_attention_tiles import (
    add_extras,
    attend,
    head_of,
    inverse_or_zero,
    key_extras,
    load_key_bias,
    load_motion,
    load_tile,
    program_of,
    query_extras,
    row_of,
    store_statistics,
    store_tile,
    tile_offsets,
)

# Values that change from call to call and must not compile a kernel of their own.
UNSPECIALIZED = (
    "num_heads", "num_queries", "num_keys", "num_padded",
    "query_b", "query_h", "query_n", "key_b", "key_h", "key_n", "value_b", "value_h", "value_n", "out_b", "out_h",
    "out_n", "motion_query_b", "motion_query_h", "motion_query_n", "motion_key_b", "motion_key_h", "motion_key_n",
    "motion_b", "motion_h", "motion_n", "key_bias_b", "key_bias_h",
)  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALIZED)
def motion_attention_key_extras_kernel(
    p_motion, p_key_bias,  # (B, H or 1, M, R), (B, H or 1, M), or null
    p_extra,  # (B, heads, num_padded, 2, BLOCK_R): b_hi, b_lo
    num_heads, num_keys, num_padded, scale, motion_b, motion_h, motion_n, motion_r, key_bias_b, key_bias_h, key_bias_m,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, PACKED: tl.constexpr, MOTION: tl.constexpr, BLOCK_R: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """The extra channels of keys, once for all tiles of queries; keys from num_keys to num_padded are hidden."""
    both, tile, _ = program_of(num_padded, ROWS)
    batch, head, first = both // num_heads, both % num_heads, tile * ROWS
    motion = None
    if MOTION > 0:
        pointer = row_of(head_of(p_motion, batch, head, motion_b, motion_h, False), first, motion_n, False)
        motion = load_motion(pointer, motion_n, motion_r, num_keys - first, ROWS, BLOCK_R, MOTION, PACKED, COMPUTE)
    if p_key_bias is not None:
        p_key_bias += batch.to(tl.int64) * key_bias_b + head.to(tl.int64) * key_bias_h
    bias = load_key_bias(p_key_bias, first, num_keys, key_bias_m, scale, ROWS, COMPUTE)
    high, low = key_extras(motion, bias, ROWS, BLOCK_R, MOTION, DTYPE, COMPUTE)
    extra = p_extra + (both.to(tl.int64) * num_padded + first) * 2 * BLOCK_R
    offsets = tl.arange(0, ROWS)[:, None] * (2 * BLOCK_R) + tl.arange(0, BLOCK_R)[None, :]
    tl.store(extra + offsets, high)
    tl.store(extra + offsets + BLOCK_R, low)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def motion_attention_fwd_kernel(
    p_query, p_key, p_value,  # (B, H, N, d), (B, H, M, d), (B, H, M, d)
    p_motion_query, p_motion_scale,  # (B, H or 1, N, R), (H,), or null
    p_extra,  # (B, H or 1, num_padded, 2, BLOCK_R) of `motion_attention_key_extras_kernel`, or null without any bias
    p_out,  # (B, H, N, d)
    p_lse,  # (B, H, N), or (B, H, 2, N) for float32: `store_statistics`
    num_heads, num_queries, num_keys, num_padded, scale,
    query_b, query_h, query_n, query_d, key_b, key_h, key_n, key_d, value_b, value_h, value_n, value_d,
    out_b, out_h, out_n, motion_query_b, motion_query_h, motion_query_n, motion_query_r,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, ALIGNED: tl.constexpr, PACKED: tl.constexpr,
    EXTRA_PER_HEAD: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MOTION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_M queries of one head through tiles of BLOCK_N keys."""
    both, tile, _ = program_of(num_queries, BLOCK_M)
    batch, head, first = both // num_heads, both % num_heads, tile * BLOCK_M
    queries_left = num_queries - first
    query = row_of(head_of(p_query, batch, head, query_b, query_h, ALIGNED), first, query_n, ALIGNED)
    query += tile_offsets(query_n, query_d, BLOCK_M, BLOCK_D, ALIGNED)
    b_query = load_tile(query, queries_left, BLOCK_M, BLOCK_D, HEAD_DIM, True)  # (BLOCK_M, BLOCK_D)
    key = head_of(p_key, batch, head, key_b, key_h, ALIGNED)
    value = head_of(p_value, batch, head, value_b, value_h, ALIGNED)
    key_offsets = tile_offsets(key_n, key_d, BLOCK_N, BLOCK_D, ALIGNED)
    value_offsets = tile_offsets(value_n, value_d, BLOCK_N, BLOCK_D, ALIGNED)
    log2_scale = scale * 1.4426950408889634
    EXTRA: tl.constexpr = p_extra is not None
    if EXTRA:
        motion, factor = None, log2_scale
        if MOTION > 0:
            factor = 1.0 / scale
            if p_motion_scale is not None:
                factor = tl.load(p_motion_scale + head).to(COMPUTE) / scale
            pointer = head_of(p_motion_query, batch, head, motion_query_b, motion_query_h, False)
            motion = load_motion(
                row_of(pointer, first, motion_query_n, False), motion_query_n, motion_query_r, queries_left, BLOCK_M,
                BLOCK_R, MOTION, PACKED, COMPUTE,
            )  # fmt: skip
        query_high, query_low = query_extras(motion, factor, BLOCK_M, BLOCK_R, MOTION, DTYPE, COMPUTE)
        extra_head = batch
        if EXTRA_PER_HEAD:
            extra_head = both
        extra = p_extra + extra_head.to(tl.int64) * num_padded * 2 * BLOCK_R
        extra_offsets = tl.arange(0, BLOCK_N)[:, None] * (2 * BLOCK_R) + tl.arange(0, BLOCK_R)[None, :]
    row_max = tl.full((BLOCK_M,), -float("inf"), COMPUTE)
    row_sum = tl.zeros((BLOCK_M,), COMPUTE)
    b_out = tl.zeros((BLOCK_M, BLOCK_D), COMPUTE)
    whole = num_keys // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        b_key = load_tile(row_of(key, start, key_n, ALIGNED) + key_offsets, BLOCK_N, BLOCK_N, BLOCK_D, HEAD_DIM, False)
        scores = tl.dot(b_query, tl.trans(b_key), input_precision=PRECISION, out_dtype=COMPUTE)
        if EXTRA:
            extras = row_of(extra, start, 2 * BLOCK_R, False) + extra_offsets
            scores = add_extras(
                scores, query_high, query_low, tl.load(extras), tl.load(extras + BLOCK_R), False, MOTION, DTYPE,
                COMPUTE, PRECISION,
            )  # fmt: skip
        b_value = load_tile(
            row_of(value, start, value_n, ALIGNED) + value_offsets, BLOCK_N, BLOCK_N, BLOCK_D, HEAD_DIM, False
        )
        row_max, row_sum, b_out = attend(
            scores, row_max, row_sum, b_out, b_value, log2_scale, DTYPE, COMPUTE, PRECISION
        )
    if whole < num_keys:
        keys_left = num_keys - whole
        b_key = load_tile(row_of(key, whole, key_n, ALIGNED) + key_offsets, keys_left, BLOCK_N, BLOCK_D, HEAD_DIM, True)
        scores = tl.dot(b_query, tl.trans(b_key), input_precision=PRECISION, out_dtype=COMPUTE)
        if EXTRA:
            extras = row_of(extra, whole, 2 * BLOCK_R, False) + extra_offsets
            scores = add_extras(
                scores, query_high, query_low, tl.load(extras), tl.load(extras + BLOCK_R), False, MOTION, DTYPE,
                COMPUTE, PRECISION,
            )  # fmt: skip
        else:
            scores = tl.where(tl.arange(0, BLOCK_N)[None, :] < keys_left, scores, -float("inf"))
        b_value = load_tile(
            row_of(value, whole, value_n, ALIGNED) + value_offsets, keys_left, BLOCK_N, BLOCK_D, HEAD_DIM, True
        )
        row_max, row_sum, b_out = attend(
            scores, row_max, row_sum, b_out, b_value, log2_scale, DTYPE, COMPUTE, PRECISION
        )
    out = row_of(head_of(p_out, batch, head, out_b, out_h, True), first, out_n, True)
    out += tile_offsets(out_n, 1, BLOCK_M, BLOCK_D, True)
    store_tile(out, b_out * inverse_or_zero(row_sum)[:, None], queries_left, BLOCK_M, BLOCK_D, HEAD_DIM, True)
    EXACT: tl.constexpr = DTYPE == COMPUTE
    if EXACT:
        statistics = p_lse + both.to(tl.int64) * 2 * num_queries
    else:
        statistics = p_lse + both.to(tl.int64) * num_queries
    store_statistics(statistics, row_max, row_sum, log2_scale, first, num_queries, BLOCK_M, EXACT)
