"""Motion attention backward for any length: one kernel over queries, one over keys, no atomics.

With P = exp2(S log2 e - lse), delta = rowsum(dout out) and dS = P (dout v^T - delta) (in float32: P from the maximum
and the sum of its row, delta = rowsum(P dout v^T) summed in a pass of its own), the first kernel accumulates
dq = scale dS k and dS m_k over the keys, the second dv = P^T dout, dk = scale dS^T q and dS^T a over the queries, where
a are the extra channels of `motion_attention_tiles`: its motion channels give dmotion_key, its ones the column sums of
dS, which are dkey_bias.
"""

from __future__ import annotations

import triton
import triton.language as tl
from motarfuse.kernels.motion_attention_forward import UNSPECIALIZED
from motarfuse.kernels.motion_attention_tiles import (
    add_extras,
    head_of,
    inverse_or_zero,
    load_motion,
    load_tile,
    program_of,
    query_extras,
    row_of,
    store_tile,
    tile_offsets,
)

BACKWARD_UNSPECIALIZED = (
    *UNSPECIALIZED, "num_padded_queries", "num_padded_keys", "grad_out_b", "grad_out_h", "grad_out_n",
    "grad_query_b", "grad_query_h", "grad_query_n", "grad_key_b", "grad_key_h", "grad_key_n", "grad_value_b",
    "grad_value_h", "grad_value_n",
)  # fmt: skip


@triton.jit
def rebuilt(scores, lse, inverse, log2_scale, EXACT: tl.constexpr):
    """The softmax weights, from scores before the scale and the statistics of their rows (`store_statistics`)."""
    if EXACT:
        return tl.exp2((scores - lse) * log2_scale) * inverse
    else:
        return tl.exp2(scores * log2_scale - lse)


@triton.jit
def _query_step(
    query, grad_out, query_high, query_low, lse, inverse, delta, row_sum, key_rows, value_rows, extra_rows, key_offsets,
    value_offsets, extra_offsets, keys_left, log2_scale, grad_query, grad_motion, DTYPE: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    MOTION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, EXTRA: tl.constexpr, SUM_DELTA: tl.constexpr,
    GRAD_QUERY: tl.constexpr, GRAD_MOTION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A tile of keys adds to grad_query (BLOCK_M, BLOCK_D), grad_motion (BLOCK_M, BLOCK_R), or to sums of rows."""
    key = load_tile(key_rows + key_offsets, keys_left, BLOCK_N, BLOCK_D, HEAD_DIM, MASKED)
    value = load_tile(value_rows + value_offsets, keys_left, BLOCK_N, BLOCK_D, HEAD_DIM, MASKED)
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=COMPUTE)
    if EXTRA:
        key_high, key_low = tl.load(extra_rows + extra_offsets), tl.load(extra_rows + extra_offsets + BLOCK_R)
        scores = add_extras(scores, query_high, query_low, key_high, key_low, False, MOTION, DTYPE, COMPUTE, PRECISION)
    elif MASKED:
        scores = tl.where(tl.arange(0, BLOCK_N)[None, :] < keys_left, scores, -float("inf"))
    weight = rebuilt(scores, lse[:, None], inverse[:, None], log2_scale, DTYPE == COMPUTE)
    grad_weight = tl.dot(grad_out, tl.trans(value), input_precision=PRECISION, out_dtype=COMPUTE)
    if SUM_DELTA:
        delta += tl.sum(weight * grad_weight, 1)
        row_sum += tl.sum(weight, 1)
    else:
        grad_scores = (weight * (grad_weight - delta[:, None])).to(DTYPE)  # (BLOCK_M, BLOCK_N)
        if GRAD_QUERY:
            grad_query = tl.dot(grad_scores, key, grad_query, input_precision=PRECISION, out_dtype=COMPUTE)
        if GRAD_MOTION:
            grad_motion = tl.dot(grad_scores, key_high, grad_motion, input_precision=PRECISION, out_dtype=COMPUTE)
    return delta, row_sum, grad_query, grad_motion


@triton.jit
def _over_keys(
    query, grad_out, query_high, query_low, lse, inverse, delta, row_sum, key, value, extra, key_n, value_n,
    key_offsets, value_offsets, extra_offsets, num_keys, log2_scale, grad_query, grad_motion, DTYPE: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, ALIGNED: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, MOTION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, EXTRA: tl.constexpr,
    SUM_DELTA: tl.constexpr, GRAD_QUERY: tl.constexpr, GRAD_MOTION: tl.constexpr,
):  # fmt: skip
    """`_query_step` for all keys, the last tile masked."""
    whole = num_keys // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        delta, row_sum, grad_query, grad_motion = _query_step(
            query, grad_out, query_high, query_low, lse, inverse, delta, row_sum, row_of(key, start, key_n, ALIGNED),
            row_of(value, start, value_n, ALIGNED), row_of(extra, start, 2 * BLOCK_R, False), key_offsets,
            value_offsets, extra_offsets, BLOCK_N, log2_scale, grad_query, grad_motion, DTYPE, COMPUTE, PRECISION,
            HEAD_DIM, BLOCK_D, MOTION, BLOCK_R, BLOCK_N, EXTRA, SUM_DELTA, GRAD_QUERY, GRAD_MOTION, False,
        )  # fmt: skip
    if whole < num_keys:
        delta, row_sum, grad_query, grad_motion = _query_step(
            query, grad_out, query_high, query_low, lse, inverse, delta, row_sum, row_of(key, whole, key_n, ALIGNED),
            row_of(value, whole, value_n, ALIGNED), row_of(extra, whole, 2 * BLOCK_R, False), key_offsets,
            value_offsets, extra_offsets, num_keys - whole, log2_scale, grad_query, grad_motion, DTYPE, COMPUTE,
            PRECISION, HEAD_DIM, BLOCK_D, MOTION, BLOCK_R, BLOCK_N, EXTRA, SUM_DELTA, GRAD_QUERY, GRAD_MOTION, True,
        )  # fmt: skip
    return delta, row_sum, grad_query, grad_motion


@triton.jit(do_not_specialize=BACKWARD_UNSPECIALIZED)
def motion_attention_bwd_query_kernel(
    p_query, p_key, p_value,  # (B, H, N, d), (B, H, M, d), (B, H, M, d)
    p_motion_query, p_motion_scale,  # (B, H or 1, N, R), (H,), or null
    p_extra,  # (B, H or 1, num_padded_keys, 2, BLOCK_R), or null without any bias
    p_out, p_grad_out, p_lse,  # (B, H, N, d), (B, H, N, d), (B, H, N)
    p_rows,  # (B, H, 3, num_padded_queries), written: statistics as forward has them, delta between; no weight beyond N
    p_grad_query,  # (B, H, N, d) or null
    p_grad_motion,  # (B, H, N, R), of each head and with lambda, or null
    p_grad_scale,  # (B, H, tiles), sums over a tile's queries, or null
    num_heads, num_queries, num_keys, num_padded_queries, num_padded_keys, scale,
    query_b, query_h, query_n, query_d, key_b, key_h, key_n, key_d, value_b, value_h, value_n, value_d,
    out_b, out_h, out_n, grad_out_b, grad_out_h, grad_out_n, grad_query_b, grad_query_h, grad_query_n,
    motion_query_b, motion_query_h, motion_query_n, motion_query_r,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, ALIGNED: tl.constexpr, PACKED: tl.constexpr,
    EXTRA_PER_HEAD: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MOTION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_M queries of one head through tiles of BLOCK_N keys."""
    both, tile, tiles = program_of(num_padded_queries, BLOCK_M)
    batch, head, first = both // num_heads, both % num_heads, tile * BLOCK_M
    left = num_queries - first
    rows = tl.arange(0, BLOCK_M)
    out = row_of(head_of(p_out, batch, head, out_b, out_h, True), first, out_n, True)
    b_out = load_tile(out + tile_offsets(out_n, 1, BLOCK_M, BLOCK_D, True), left, BLOCK_M, BLOCK_D, HEAD_DIM, True)
    grad_out = row_of(head_of(p_grad_out, batch, head, grad_out_b, grad_out_h, True), first, grad_out_n, True)
    grad_out += tile_offsets(grad_out_n, 1, BLOCK_M, BLOCK_D, True)
    b_grad_out = load_tile(grad_out, left, BLOCK_M, BLOCK_D, HEAD_DIM, True)
    delta = tl.sum(b_out.to(COMPUTE) * b_grad_out.to(COMPUTE), 1)  # rowsum(P dP), by way of out
    EXACT: tl.constexpr = DTYPE == COMPUTE
    kept = p_rows + both.to(tl.int64) * 3 * num_padded_queries + first + rows
    if EXACT:
        statistics = p_lse + both.to(tl.int64) * 2 * num_queries + first + rows
        lse = tl.load(statistics, mask=rows < left, other=float("inf"))  # exp2(-inf): no weight, whatever the bias
        inverse = tl.load(statistics + num_queries, mask=rows < left, other=0.0)
        tl.store(kept + 2 * num_padded_queries, inverse)
    else:
        statistics = p_lse + both.to(tl.int64) * num_queries + first + rows
        lse = tl.load(statistics, mask=rows < left, other=float("inf"))
        inverse = lse
    tl.store(kept, lse)
    tl.store(kept + num_padded_queries, delta)
    GRAD_QUERY: tl.constexpr = p_grad_query is not None
    GRAD_MOTION: tl.constexpr = (p_grad_motion is not None) or (p_grad_scale is not None)
    if GRAD_QUERY or GRAD_MOTION or EXACT:
        query = row_of(head_of(p_query, batch, head, query_b, query_h, ALIGNED), first, query_n, ALIGNED)
        query += tile_offsets(query_n, query_d, BLOCK_M, BLOCK_D, ALIGNED)
        b_query = load_tile(query, left, BLOCK_M, BLOCK_D, HEAD_DIM, True)
        key = head_of(p_key, batch, head, key_b, key_h, ALIGNED)
        value = head_of(p_value, batch, head, value_b, value_h, ALIGNED)
        key_offsets = tile_offsets(key_n, key_d, BLOCK_N, BLOCK_D, ALIGNED)
        value_offsets = tile_offsets(value_n, value_d, BLOCK_N, BLOCK_D, ALIGNED)
        log2_scale = scale * 1.4426950408889634
        EXTRA: tl.constexpr = p_extra is not None
        query_high, query_low, extra, extra_offsets = b_query, b_query, key, key_offsets
        strength = tl.full((), 1.0, COMPUTE)
        if EXTRA:
            motion = None
            if MOTION > 0:
                if p_motion_scale is not None:
                    strength = tl.load(p_motion_scale + head).to(COMPUTE)
                pointer = head_of(p_motion_query, batch, head, motion_query_b, motion_query_h, False)
                motion_rows = row_of(pointer, first, motion_query_n, False)
                motion = load_motion(
                    motion_rows, motion_query_n, motion_query_r, left, BLOCK_M, BLOCK_R, MOTION, PACKED, COMPUTE
                )
            query_high, query_low = query_extras(motion, strength / scale, BLOCK_M, BLOCK_R, MOTION, DTYPE, COMPUTE)
            extra_head = batch
            if EXTRA_PER_HEAD:
                extra_head = both
            extra = p_extra + extra_head.to(tl.int64) * num_padded_keys * 2 * BLOCK_R
            extra_offsets = tl.arange(0, BLOCK_N)[:, None] * (2 * BLOCK_R) + tl.arange(0, BLOCK_R)[None, :]
        grad_query = tl.zeros((BLOCK_M, BLOCK_D), COMPUTE)
        grad_motion = tl.zeros((BLOCK_M, BLOCK_R), COMPUTE)
        row_sum = tl.zeros((BLOCK_M,), COMPUTE)
        if EXACT:
            # out is rounded, and so are the forward's sums, which costs float32's gradients half of their accuracy: a
            # pass of its own sums delta, and the weights as they are rebuilt here.
            delta, row_sum, grad_query, grad_motion = _over_keys(
                b_query, b_grad_out, query_high, query_low, lse, inverse, tl.zeros((BLOCK_M,), COMPUTE), row_sum, key,
                value, extra, key_n, value_n, key_offsets, value_offsets, extra_offsets, num_keys, log2_scale,
                grad_query, grad_motion, DTYPE, COMPUTE, PRECISION, ALIGNED, HEAD_DIM, BLOCK_D, MOTION, BLOCK_R,
                BLOCK_N, EXTRA, True, GRAD_QUERY, GRAD_MOTION,
            )  # fmt: skip
            correction = inverse_or_zero(row_sum)
            delta, inverse = delta * correction, inverse * correction
            tl.store(kept + num_padded_queries, delta)
            tl.store(kept + 2 * num_padded_queries, inverse)
        if GRAD_QUERY or GRAD_MOTION:
            delta, row_sum, grad_query, grad_motion = _over_keys(
                b_query, b_grad_out, query_high, query_low, lse, inverse, delta, row_sum, key, value, extra, key_n,
                value_n, key_offsets, value_offsets, extra_offsets, num_keys, log2_scale, grad_query, grad_motion,
                DTYPE, COMPUTE, PRECISION, ALIGNED, HEAD_DIM, BLOCK_D, MOTION, BLOCK_R, BLOCK_N, EXTRA, False,
                GRAD_QUERY, GRAD_MOTION,
            )  # fmt: skip
        if GRAD_QUERY:
            target = row_of(
                head_of(p_grad_query, batch, head, grad_query_b, grad_query_h, True), first, grad_query_n, True
            )
            target += tile_offsets(grad_query_n, 1, BLOCK_M, BLOCK_D, True)
            store_tile(target, grad_query * scale, left, BLOCK_M, BLOCK_D, HEAD_DIM, True)
        if p_grad_motion is not None:
            target = p_grad_motion + (both.to(tl.int64) * num_queries + first) * MOTION
            target += rows[:, None] * MOTION + tl.arange(0, BLOCK_R)[None, :]
            store_tile(target, grad_motion * strength, left, BLOCK_M, BLOCK_R, MOTION, True)
        if p_grad_scale is not None:
            motion = load_motion(
                motion_rows, motion_query_n, motion_query_r, left, BLOCK_M, BLOCK_R, MOTION, PACKED, COMPUTE
            )
            grad_motion = tl.where(tl.arange(0, BLOCK_R)[None, :] < MOTION, grad_motion, 0.0)
            # Flat: a sum over channels and then over rows does not compile for sm_100 (Triton 3.7.1).
            total = tl.sum(tl.reshape(motion * grad_motion, (BLOCK_M * BLOCK_R,)), 0)
            tl.store(p_grad_scale + both.to(tl.int64) * tiles + tile, total)


@triton.jit(do_not_specialize=BACKWARD_UNSPECIALIZED)
def motion_attention_query_extras_kernel(
    p_motion_query, p_motion_scale,  # (B, H or 1, N, R), (H,) or null
    p_extra,  # (B, H, num_padded_queries, 2, BLOCK_R): a_hi, a_lo
    num_heads, num_queries, num_padded_queries, scale,
    motion_query_b, motion_query_h, motion_query_n, motion_query_r,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, PACKED: tl.constexpr, MOTION: tl.constexpr, BLOCK_R: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """The extra channels of queries, once for all tiles of keys."""
    both, tile, _ = program_of(num_padded_queries, ROWS)
    batch, head, first = both // num_heads, both % num_heads, tile * ROWS
    factor = 1.0 / scale
    if p_motion_scale is not None:
        factor = tl.load(p_motion_scale + head).to(COMPUTE) / scale
    pointer = row_of(
        head_of(p_motion_query, batch, head, motion_query_b, motion_query_h, False), first, motion_query_n, False
    )
    motion = load_motion(
        pointer, motion_query_n, motion_query_r, num_queries - first, ROWS, BLOCK_R, MOTION, PACKED, COMPUTE
    )
    high, low = query_extras(motion, factor, ROWS, BLOCK_R, MOTION, DTYPE, COMPUTE)
    extra = p_extra + (both.to(tl.int64) * num_padded_queries + first) * 2 * BLOCK_R
    offsets = tl.arange(0, ROWS)[:, None] * (2 * BLOCK_R) + tl.arange(0, BLOCK_R)[None, :]
    tl.store(extra + offsets, high)
    tl.store(extra + offsets + BLOCK_R, low)


@triton.jit
def _key_step(
    key, value, key_high, key_low, queries, grad_outs, query_extra, kept, padded, queries_left, log2_scale, grad_key,
    grad_value, grad_extra, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MOTION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr,
    EXTRA: tl.constexpr, GRAD_KEY: tl.constexpr, GRAD_VALUE: tl.constexpr, GRAD_EXTRA: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """A tile of queries adds to grad_key, grad_value (BLOCK_N, BLOCK_D) and grad_extra (BLOCK_N, BLOCK_R)."""
    query = load_tile(queries, queries_left, BLOCK_M, BLOCK_D, HEAD_DIM, MASKED)
    grad_out = load_tile(grad_outs, queries_left, BLOCK_M, BLOCK_D, HEAD_DIM, MASKED)
    scores = tl.dot(key, tl.trans(query), input_precision=PRECISION, out_dtype=COMPUTE)  # (BLOCK_N, BLOCK_M)
    if EXTRA:
        if MOTION > 0:
            query_high, query_low = tl.load(query_extra), tl.load(query_extra + BLOCK_R)
        else:
            query_high, query_low = query_extras(None, 1.0, BLOCK_M, BLOCK_R, 0, DTYPE, COMPUTE)
        scores = add_extras(scores, key_high, key_low, query_high, query_low, True, MOTION, DTYPE, COMPUTE, PRECISION)
    inverse = kept
    if DTYPE == COMPUTE:
        inverse = tl.load(kept + 2 * padded)[None, :]
    weight = rebuilt(scores, tl.load(kept)[None, :], inverse, log2_scale, DTYPE == COMPUTE)
    if GRAD_VALUE:
        grad_value = tl.dot(weight.to(DTYPE), grad_out, grad_value, input_precision=PRECISION, out_dtype=COMPUTE)
    if GRAD_KEY or GRAD_EXTRA:
        grad_weight = tl.dot(value, tl.trans(grad_out), input_precision=PRECISION, out_dtype=COMPUTE)
        grad_scores = (weight * (grad_weight - tl.load(kept + padded)[None, :])).to(DTYPE)
        if GRAD_KEY:
            grad_key = tl.dot(grad_scores, query, grad_key, input_precision=PRECISION, out_dtype=COMPUTE)
        if GRAD_EXTRA:
            grad_extra = tl.dot(grad_scores, query_high, grad_extra, input_precision=PRECISION, out_dtype=COMPUTE)
    return grad_key, grad_value, grad_extra


@triton.jit(do_not_specialize=BACKWARD_UNSPECIALIZED)
def motion_attention_bwd_key_kernel(
    p_query, p_key, p_value,  # (B, H, N, d), (B, H, M, d), (B, H, M, d)
    p_query_extra,  # (B, H, num_padded_queries, 2, BLOCK_R), or null without motion
    p_extra,  # (B, H or 1, num_padded_keys, 2, BLOCK_R), or null without any bias
    p_grad_out,  # (B, H, N, d)
    p_rows,  # (B, H, 3, num_padded_queries): statistics and delta
    p_grad_key, p_grad_value,  # (B, H, M, d) or null
    p_grad_motion,  # (B, H, M, R), of each head and with lambda, or null
    p_grad_bias,  # (B, H, M), of each head, or null
    num_heads, num_queries, num_keys, num_padded_queries, num_padded_keys, scale,
    query_b, query_h, query_n, query_d, key_b, key_h, key_n, key_d, value_b, value_h, value_n, value_d,
    grad_out_b, grad_out_h, grad_out_n, grad_key_b, grad_key_h, grad_key_n, grad_value_b, grad_value_h, grad_value_n,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, ALIGNED: tl.constexpr,
    EXTRA_PER_HEAD: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MOTION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_N keys of one head through tiles of BLOCK_M queries."""
    both, tile, _ = program_of(num_keys, BLOCK_N)
    batch, head, first = both // num_heads, both % num_heads, tile * BLOCK_N
    left = num_keys - first
    key = row_of(head_of(p_key, batch, head, key_b, key_h, ALIGNED), first, key_n, ALIGNED)
    key += tile_offsets(key_n, key_d, BLOCK_N, BLOCK_D, ALIGNED)
    value = row_of(head_of(p_value, batch, head, value_b, value_h, ALIGNED), first, value_n, ALIGNED)
    value += tile_offsets(value_n, value_d, BLOCK_N, BLOCK_D, ALIGNED)
    b_key = load_tile(key, left, BLOCK_N, BLOCK_D, HEAD_DIM, True)
    b_value = load_tile(value, left, BLOCK_N, BLOCK_D, HEAD_DIM, True)
    EXTRA: tl.constexpr = p_extra is not None
    GRAD_KEY: tl.constexpr = p_grad_key is not None
    GRAD_VALUE: tl.constexpr = p_grad_value is not None
    GRAD_EXTRA: tl.constexpr = (p_grad_motion is not None) or (p_grad_bias is not None)
    key_high, key_low = b_key, b_key
    if EXTRA:
        extra_head = batch
        if EXTRA_PER_HEAD:
            extra_head = both
        extra = p_extra + (extra_head.to(tl.int64) * num_padded_keys + first) * 2 * BLOCK_R
        extra += tl.arange(0, BLOCK_N)[:, None] * (2 * BLOCK_R) + tl.arange(0, BLOCK_R)[None, :]
        key_high, key_low = tl.load(extra), tl.load(extra + BLOCK_R)
    query = head_of(p_query, batch, head, query_b, query_h, ALIGNED)
    grad_out = head_of(p_grad_out, batch, head, grad_out_b, grad_out_h, True)
    query_offsets = tile_offsets(query_n, query_d, BLOCK_M, BLOCK_D, ALIGNED)
    grad_out_offsets = tile_offsets(grad_out_n, 1, BLOCK_M, BLOCK_D, True)
    query_extra, query_extra_offsets = query, query_offsets
    if MOTION > 0:
        query_extra = p_query_extra + both.to(tl.int64) * num_padded_queries * 2 * BLOCK_R
        query_extra_offsets = tl.arange(0, BLOCK_M)[:, None] * (2 * BLOCK_R) + tl.arange(0, BLOCK_R)[None, :]
    kept = p_rows + both.to(tl.int64) * 3 * num_padded_queries + tl.arange(0, BLOCK_M)
    log2_scale = scale * 1.4426950408889634
    grad_key = tl.zeros((BLOCK_N, BLOCK_D), COMPUTE)
    grad_value = tl.zeros((BLOCK_N, BLOCK_D), COMPUTE)
    grad_extra = tl.zeros((BLOCK_N, BLOCK_R), COMPUTE)
    whole = num_queries // BLOCK_M * BLOCK_M
    for start in range(0, whole, BLOCK_M):
        queries = row_of(query, start, query_n, ALIGNED) + query_offsets
        grad_outs = row_of(grad_out, start, grad_out_n, True) + grad_out_offsets
        query_extra_rows = row_of(query_extra, start, 2 * BLOCK_R, False) + query_extra_offsets
        grad_key, grad_value, grad_extra = _key_step(
            b_key, b_value, key_high, key_low, queries, grad_outs, query_extra_rows, kept + start, num_padded_queries,
            BLOCK_M, log2_scale, grad_key, grad_value, grad_extra, DTYPE, COMPUTE, PRECISION, HEAD_DIM, BLOCK_D, MOTION,
            BLOCK_R, BLOCK_M, EXTRA, GRAD_KEY, GRAD_VALUE, GRAD_EXTRA, False,
        )  # fmt: skip
    if whole < num_queries:
        queries = row_of(query, whole, query_n, ALIGNED) + query_offsets
        grad_outs = row_of(grad_out, whole, grad_out_n, True) + grad_out_offsets
        query_extra_rows = row_of(query_extra, whole, 2 * BLOCK_R, False) + query_extra_offsets
        grad_key, grad_value, grad_extra = _key_step(
            b_key, b_value, key_high, key_low, queries, grad_outs, query_extra_rows, kept + whole, num_padded_queries,
            num_queries - whole, log2_scale, grad_key, grad_value, grad_extra, DTYPE, COMPUTE, PRECISION, HEAD_DIM,
            BLOCK_D, MOTION, BLOCK_R, BLOCK_M, EXTRA, GRAD_KEY, GRAD_VALUE, GRAD_EXTRA, True,
        )  # fmt: skip
    if GRAD_KEY:
        target = row_of(head_of(p_grad_key, batch, head, grad_key_b, grad_key_h, True), first, grad_key_n, True)
        target += tile_offsets(grad_key_n, 1, BLOCK_N, BLOCK_D, True)
        store_tile(target, grad_key * scale, left, BLOCK_N, BLOCK_D, HEAD_DIM, True)
    if GRAD_VALUE:
        target = row_of(head_of(p_grad_value, batch, head, grad_value_b, grad_value_h, True), first, grad_value_n, True)
        target += tile_offsets(grad_value_n, 1, BLOCK_N, BLOCK_D, True)
        store_tile(target, grad_value, left, BLOCK_N, BLOCK_D, HEAD_DIM, True)
    keys = tl.arange(0, BLOCK_N)
    if p_grad_motion is not None:
        target = p_grad_motion + (both.to(tl.int64) * num_keys + first) * MOTION
        target += keys[:, None] * MOTION + tl.arange(0, BLOCK_R)[None, :]
        store_tile(target, grad_extra * scale, left, BLOCK_N, BLOCK_R, MOTION, True)
    if p_grad_bias is not None:
        column = tl.sum(tl.where(tl.arange(0, BLOCK_R)[None, :] == MOTION, grad_extra, 0.0), 1)
        target = p_grad_bias + both.to(tl.int64) * num_keys + first + keys
        tl.store(target, column.to(p_grad_bias.dtype.element_ty), mask=keys < left)


@triton.jit
def sum_heads_kernel(
    p_parts,  # (B, H, length)
    p_sum,  # (B, length)
    num_heads, length,
    COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over heads in their order: gradients of what heads share."""
    batch, tile, _ = program_of(length, BLOCK)
    inside = tile * BLOCK + tl.arange(0, BLOCK)
    parts = p_parts + batch.to(tl.int64) * num_heads * length + inside
    total = tl.zeros((BLOCK,), COMPUTE)
    for head in range(num_heads):
        total += tl.load(parts + (tl.full((), 0, tl.int64) + head) * length, mask=inside < length, other=0.0)
    target = p_sum + batch.to(tl.int64) * length + inside
    tl.store(target, total.to(p_sum.dtype.element_ty), mask=inside < length)
