"""Motion attention forward for sequences that fit on chip: keys and values of a head are read once and stay.

A head's keys lie in up to three tiles, together hardly longer than the sequence (129 = 128 + 16). Queries come in exact
tiles of BLOCK_M; what is left over is a narrow tile whose products are transposed, with the queries on the side of the
matrix units that is 8 wide. With one or two tiles softmax sees whole rows: no running maximum, nothing to rescale.
"""

from __future__ import annotations

import triton
import triton.language as tl
from motarfuse.kernels.motion_attention_forward import UNSPECIALIZED
from motarfuse.kernels.motion_attention_tiles import (
    add_extras,
    attend,
    exponential,
    head_of,
    inverse_or_zero,
    key_extras,
    load_key_bias,
    load_motion,
    load_tile,
    query_extras,
    row_of,
    store_statistics,
    store_tile,
    subtractable,
    tile_offsets,
)


@triton.jit
def _load_keys(
    p_key, p_value, p_motion_key, p_key_bias, num_keys, scale, key_n, key_d, value_n, value_d, motion_key_n,
    motion_key_r, key_bias_m, COMPUTE: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, PACKED: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MOTION: tl.constexpr, BLOCK_R: tl.constexpr, START: tl.constexpr,
    KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """KEYS keys from START on: key, value (KEYS, BLOCK_D), extra channels b_hi, b_lo (KEYS, BLOCK_R)."""
    keys_left = num_keys - START
    key = row_of(p_key, START, key_n, ALIGNED) + tile_offsets(key_n, key_d, KEYS, BLOCK_D, ALIGNED)
    value = row_of(p_value, START, value_n, ALIGNED) + tile_offsets(value_n, value_d, KEYS, BLOCK_D, ALIGNED)
    b_key = load_tile(key, keys_left, KEYS, BLOCK_D, HEAD_DIM, MASKED)
    b_value = load_tile(value, keys_left, KEYS, BLOCK_D, HEAD_DIM, MASKED)
    bias = load_key_bias(p_key_bias, START, num_keys, key_bias_m, scale, KEYS, COMPUTE)
    motion = None
    if MOTION > 0:
        pointer = row_of(p_motion_key, START, motion_key_n, False)
        motion = load_motion(pointer, motion_key_n, motion_key_r, keys_left, KEYS, BLOCK_R, MOTION, PACKED, COMPUTE)
    high, low = key_extras(motion, bias, KEYS, BLOCK_R, MOTION, DTYPE, COMPUTE)
    return b_key, b_value, high, low


@triton.jit
def _load_queries(
    p_query, p_motion_query, first, num_queries, factor, query_n, query_d, motion_query_n, motion_query_r,
    COMPUTE: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, PACKED: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, MOTION: tl.constexpr, BLOCK_R: tl.constexpr, QUERIES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """QUERIES queries: query (QUERIES, BLOCK_D), extra channels a_hi, a_lo (QUERIES, BLOCK_R)."""
    left = num_queries - first
    query = row_of(p_query, first, query_n, ALIGNED) + tile_offsets(query_n, query_d, QUERIES, BLOCK_D, ALIGNED)
    b_query = load_tile(query, left, QUERIES, BLOCK_D, HEAD_DIM, MASKED)
    motion = None
    if MOTION > 0:
        pointer = row_of(p_motion_query, first, motion_query_n, False)
        motion = load_motion(pointer, motion_query_n, motion_query_r, left, QUERIES, BLOCK_R, MOTION, PACKED, COMPUTE)
    high, low = query_extras(motion, factor, QUERIES, BLOCK_R, MOTION, DTYPE, COMPUTE)
    return b_query, high, low


@triton.jit
def _scores(
    left, left_high, left_low, right, right_high, right_low, DTYPE: tl.constexpr, COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr, MOTION: tl.constexpr, KEYS_FIRST: tl.constexpr,
):  # fmt: skip
    """Scores before the scale: (queries, keys), or (keys, queries) with KEYS_FIRST."""
    scores = tl.dot(left, tl.trans(right), input_precision=PRECISION, out_dtype=COMPUTE)
    return add_extras(scores, left_high, left_low, right_high, right_low, KEYS_FIRST, MOTION, DTYPE, COMPUTE, PRECISION)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def motion_attention_short_fwd_kernel(
    p_query, p_key, p_value,  # (B, H, N, d), (B, H, M, d), (B, H, M, d)
    p_motion_query, p_motion_key,  # (B, H or 1, N, R), (B, H or 1, M, R), or null
    p_motion_scale,  # (H,) or null
    p_key_bias,  # (B, H or 1, M) or null
    p_out,  # (B, H, N, d)
    p_lse,  # (B, H, N): `store_statistics`
    num_heads, num_queries, num_keys, scale,
    query_b, query_h, query_n, query_d, key_b, key_h, key_n, key_d, value_b, value_h, value_n, value_d,
    out_b, out_h, out_n,
    motion_query_b, motion_query_h, motion_query_n, motion_query_r,
    motion_key_b, motion_key_h, motion_key_n, motion_key_r,
    key_bias_b, key_bias_h, key_bias_m,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, ALIGNED: tl.constexpr, PACKED: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MOTION: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr, REST: tl.constexpr,  # queries of a tile; of a narrow one for the last N % BLOCK_M, or 0
    # Tiles of keys, 0 for none, the last of them masked; with three of them REST is 0.
    KEYS_0: tl.constexpr, KEYS_1: tl.constexpr, KEYS_2: tl.constexpr,
):  # fmt: skip
    """A program takes every num_programs(1)-th tile of queries of one head, the last program the rest as well."""
    batch, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    query = head_of(p_query, batch, head, query_b, query_h, ALIGNED)
    key = head_of(p_key, batch, head, key_b, key_h, ALIGNED)
    value = head_of(p_value, batch, head, value_b, value_h, ALIGNED)
    out = head_of(p_out, batch, head, out_b, out_h, True)
    lse = p_lse + tl.program_id(0).to(tl.int64) * num_queries
    log2_scale = scale * 1.4426950408889634
    motion_query, motion_key, factor = query, key, 1.0 / scale
    if MOTION > 0:
        if p_motion_scale is not None:
            factor = tl.load(p_motion_scale + head).to(COMPUTE) / scale
        motion_query = head_of(p_motion_query, batch, head, motion_query_b, motion_query_h, False)
        motion_key = head_of(p_motion_key, batch, head, motion_key_b, motion_key_h, False)
    if p_key_bias is not None:
        p_key_bias += batch.to(tl.int64) * key_bias_b + head.to(tl.int64) * key_bias_h

    key_0, value_0, high_0, low_0 = _load_keys(
        key, value, motion_key, p_key_bias, num_keys, scale, key_n, key_d, value_n, value_d, motion_key_n,
        motion_key_r, key_bias_m, COMPUTE, DTYPE, ALIGNED, PACKED, HEAD_DIM, BLOCK_D, MOTION, BLOCK_R, 0, KEYS_0,
        KEYS_1 == 0,
    )  # fmt: skip
    if KEYS_1 > 0:
        key_1, value_1, high_1, low_1 = _load_keys(
            key, value, motion_key, p_key_bias, num_keys, scale, key_n, key_d, value_n, value_d, motion_key_n,
            motion_key_r, key_bias_m, COMPUTE, DTYPE, ALIGNED, PACKED, HEAD_DIM, BLOCK_D, MOTION, BLOCK_R, KEYS_0,
            KEYS_1, KEYS_2 == 0,
        )  # fmt: skip
    if KEYS_2 > 0:
        key_2, value_2, high_2, low_2 = _load_keys(
            key, value, motion_key, p_key_bias, num_keys, scale, key_n, key_d, value_n, value_d, motion_key_n,
            motion_key_r, key_bias_m, COMPUTE, DTYPE, ALIGNED, PACKED, HEAD_DIM, BLOCK_D, MOTION, BLOCK_R,
            KEYS_0 + KEYS_1, KEYS_2, True,
        )  # fmt: skip

    whole = num_queries
    if REST > 0:
        whole = num_queries // BLOCK_M * BLOCK_M
    step = tl.num_programs(1) * BLOCK_M
    for first in range(tl.program_id(1) * BLOCK_M, whole, step):
        b_query, high, low = _load_queries(
            query, motion_query, first, num_queries, factor, query_n, query_d, motion_query_n, motion_query_r,
            COMPUTE, DTYPE, ALIGNED, PACKED, HEAD_DIM, BLOCK_D, MOTION, BLOCK_R, BLOCK_M, REST == 0,
        )  # fmt: skip
        if KEYS_2 > 0:  # three tiles of scores at once do not fit in registers
            row_max = tl.full((BLOCK_M,), -float("inf"), COMPUTE)
            row_sum = tl.zeros((BLOCK_M,), COMPUTE)
            b_out = tl.zeros((BLOCK_M, BLOCK_D), COMPUTE)
            scores_0 = _scores(b_query, high, low, key_0, high_0, low_0, DTYPE, COMPUTE, PRECISION, MOTION, False)
            row_max, row_sum, b_out = attend(
                scores_0, row_max, row_sum, b_out, value_0, log2_scale, DTYPE, COMPUTE, PRECISION
            )
            scores_1 = _scores(b_query, high, low, key_1, high_1, low_1, DTYPE, COMPUTE, PRECISION, MOTION, False)
            row_max, row_sum, b_out = attend(
                scores_1, row_max, row_sum, b_out, value_1, log2_scale, DTYPE, COMPUTE, PRECISION
            )
            scores_2 = _scores(b_query, high, low, key_2, high_2, low_2, DTYPE, COMPUTE, PRECISION, MOTION, False)
            row_max, row_sum, b_out = attend(
                scores_2, row_max, row_sum, b_out, value_2, log2_scale, DTYPE, COMPUTE, PRECISION
            )
        else:
            scores_0 = _scores(b_query, high, low, key_0, high_0, low_0, DTYPE, COMPUTE, PRECISION, MOTION, False)
            row_max = tl.max(scores_0, 1)
            if KEYS_1 > 0:
                scores_1 = _scores(b_query, high, low, key_1, high_1, low_1, DTYPE, COMPUTE, PRECISION, MOTION, False)
                row_max = tl.maximum(row_max, tl.max(scores_1, 1))
            shift = subtractable(row_max)
            weight = exponential(scores_0, shift[:, None], log2_scale, False)
            row_sum = tl.sum(weight, 1)
            b_out = tl.dot(weight.to(DTYPE), value_0, input_precision=PRECISION, out_dtype=COMPUTE)
            if KEYS_1 > 0:
                weight = exponential(scores_1, shift[:, None], log2_scale, False)
                row_sum += tl.sum(weight, 1)
                b_out = tl.dot(weight.to(DTYPE), value_1, b_out, input_precision=PRECISION, out_dtype=COMPUTE)
        b_out = b_out * inverse_or_zero(row_sum)[:, None]
        pointers = row_of(out, first, out_n, True) + tile_offsets(out_n, 1, BLOCK_M, BLOCK_D, True)
        store_tile(pointers, b_out, num_queries - first, BLOCK_M, BLOCK_D, HEAD_DIM, REST == 0)
        store_statistics(lse, row_max, row_sum, log2_scale, first, num_queries, BLOCK_M, False)

    if REST > 0:  # noqa: SIM102 (a constant, and what is below it is compiled where it holds)
        if tl.program_id(1) == tl.num_programs(1) - 1:
            b_query, high, low = _load_queries(
                query, motion_query, whole, num_queries, factor, query_n, query_d, motion_query_n, motion_query_r,
                COMPUTE, DTYPE, ALIGNED, PACKED, HEAD_DIM, BLOCK_D, MOTION, BLOCK_R, REST, True,
            )  # fmt: skip
            rest_0 = _scores(key_0, high_0, low_0, b_query, high, low, DTYPE, COMPUTE, PRECISION, MOTION, True)
            rest_max = tl.max(rest_0, 0)  # of (KEYS_0, REST)
            if KEYS_1 > 0:
                rest_1 = _scores(key_1, high_1, low_1, b_query, high, low, DTYPE, COMPUTE, PRECISION, MOTION, True)
                rest_max = tl.maximum(rest_max, tl.max(rest_1, 0))
            rest_shift = subtractable(rest_max)
            rest_weight = exponential(rest_0, rest_shift[None, :], log2_scale, False)
            rest_sum = tl.sum(rest_weight, 0)
            rest_out = tl.dot(
                tl.trans(value_0), rest_weight.to(DTYPE), input_precision=PRECISION, out_dtype=COMPUTE
            )  # (BLOCK_D, REST)
            if KEYS_1 > 0:
                rest_weight = exponential(rest_1, rest_shift[None, :], log2_scale, False)
                rest_sum += tl.sum(rest_weight, 0)
                rest_out = tl.dot(
                    tl.trans(value_1), rest_weight.to(DTYPE), rest_out, input_precision=PRECISION, out_dtype=COMPUTE
                )
            rest_out = tl.trans(rest_out * inverse_or_zero(rest_sum)[None, :])
            pointers = row_of(out, whole, out_n, True) + tile_offsets(out_n, 1, REST, BLOCK_D, True)
            store_tile(pointers, rest_out, num_queries - whole, REST, BLOCK_D, HEAD_DIM, True)
            store_statistics(lse, rest_max, rest_sum, log2_scale, whole, num_queries, REST, False)
