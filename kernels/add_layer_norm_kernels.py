"""add_layer_norm in Triton; rows and formulas of the norm are in row_norm_kernels.py."""

from __future__ import annotations

import triton
import triton.language as tl
from motarfuse.kernels.row_norm_kernels import (
    channel_index,
    load_packed_rows,
    load_rows,
    load_statistics,
    load_vector,
    load_vector_beside,
    norm_backward,
    normalise,
    row_places,
    row_sum,
    store_partial,
    store_rows,
)


@triton.jit
def load_layer_scale(pointer, channels, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr):
    """(CHUNKS, 1, CHUNK), or a 1 where it is null."""
    if pointer is None:
        return tl.full((1, 1, 1), 1.0, COMPUTE)
    else:
        return load_vector(pointer, channels, CHANNELS, COMPUTE)


@triton.jit
def load_layer_scale_beside(pointer, rows, channels, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr):
    """A tile, or a 1 where it is null."""
    if pointer is None:
        return tl.full((1, 1, 1), 1.0, COMPUTE)
    else:
        return load_vector_beside(pointer, rows, channels, CHANNELS, COMPUTE)


@triton.jit
def load_sample_scale(pointer, rows, has_row, rows_sample, COMPUTE: tl.constexpr):
    """(1, BLOCK_M, 1), or a 1 where it is null."""
    if pointer is None:
        return tl.full((1, 1, 1), 1.0, COMPUTE)
    else:
        return tl.load(pointer + rows // rows_sample, mask=has_row, other=0.0).to(COMPUTE)[None, :, None]


@triton.jit(
    do_not_specialize=(
        "num_rows", "rows_inner", "rows_sample", "x_outer", "x_inner", "residual_outer", "residual_inner"
    )
)  # fmt: skip
def add_layer_norm_fwd_kernel(
    p_x, p_residual,  # (rows, C) with strides
    p_weight, p_bias, p_layer_scale, p_sample_scale,  # (C,), (C,), (C,) or null, (B,) or null
    p_normed, p_sum, p_mean, p_rstd,  # (rows, C) twice; (rows,) twice, or null
    eps, num_rows, rows_inner, rows_sample,
    x_outer, x_inner, x_channel, residual_outer, residual_inner, residual_channel,
    CHANNELS: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_M rows."""
    rows = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    has_row = rows < num_rows
    channels = channel_index(BLOCK_C, CHUNK)
    inside = has_row[None, :, None] & (channels < CHANNELS)
    outer, inner = row_places(rows, rows_inner)
    layer_scale = load_layer_scale(p_layer_scale, channels, CHANNELS, COMPUTE)
    sample_scale = load_sample_scale(p_sample_scale, rows, has_row, rows_sample, COMPUTE)
    x = load_rows(p_x, outer, inner, channels, inside, x_outer, x_inner, x_channel, UNIT, COMPUTE)
    residual = load_rows(
        p_residual, outer, inner, channels, inside, residual_outer, residual_inner, residual_channel, UNIT, COMPUTE
    )  # fmt: skip
    total = residual + x * layer_scale * sample_scale
    store_rows(p_sum, rows, channels, inside, total, CHANNELS)
    y, mean, rstd = normalise(total, channels, eps, CHANNELS, BLOCK_C)
    weight = load_vector(p_weight, channels, CHANNELS, COMPUTE)
    bias = load_vector(p_bias, channels, CHANNELS, COMPUTE)
    store_rows(p_normed, rows, channels, inside, y * weight + bias, CHANNELS)
    if p_mean is not None:
        tl.store(p_mean + rows, mean, mask=has_row)
        tl.store(p_rstd + rows, rstd, mask=has_row)


@triton.jit(
    do_not_specialize=(
        "num_rows", "rows_each", "rows_inner", "rows_sample", "grad_normed_outer", "grad_normed_inner",
        "grad_sum_outer", "grad_sum_inner", "x_outer", "x_inner", "residual_outer", "residual_inner",
    )
)  # fmt: skip
def add_layer_norm_bwd_kernel(
    p_grad_normed, p_grad_sum,  # (rows, C) with strides, or null
    p_x, p_residual,  # (rows, C) with strides, or null where they are not needed
    p_total,  # (rows, C) the exact sum, or null: then it is made of the two above
    p_weight, p_layer_scale, p_sample_scale, p_mean, p_rstd,  # (C,), (C,) or null, (B,) or null, (rows,) twice
    p_grad_x, p_grad_residual,  # (rows, C), or null
    p_weight_sums, p_bias_sums, p_layer_sums,  # (programs, C), or null
    p_products,  # (rows,) <dsum, layer_scale x>, or null
    num_rows, rows_each, rows_inner, rows_sample,
    grad_normed_outer, grad_normed_inner, grad_normed_channel, grad_sum_outer, grad_sum_inner, grad_sum_channel,
    x_outer, x_inner, x_channel, residual_outer, residual_inner, residual_channel,
    CHANNELS: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A program takes ``rows_each`` rows, BLOCK_M at a time, and sums the vectors' gradients over them."""
    first = tl.program_id(0).to(INDEX) * rows_each
    channels = channel_index(BLOCK_C, CHUNK)
    weight_sums = tl.zeros((BLOCK_C // CHUNK, BLOCK_M, CHUNK), COMPUTE)
    bias_sums = tl.zeros((BLOCK_C // CHUNK, BLOCK_M, CHUNK), COMPUTE)
    layer_sums = tl.zeros((BLOCK_C // CHUNK, BLOCK_M, CHUNK), COMPUTE)
    for step in range(0, rows_each, BLOCK_M):
        rows = first + step + tl.arange(0, BLOCK_M)
        has_row = rows < num_rows
        inside = has_row[None, :, None] & (channels < CHANNELS)
        outer, inner = row_places(rows, rows_inner)
        layer_scale = load_layer_scale_beside(p_layer_scale, rows, channels, CHANNELS, COMPUTE)
        sample_scale = load_sample_scale(p_sample_scale, rows, has_row, rows_sample, COMPUTE)
        grad = tl.zeros((BLOCK_C // CHUNK, BLOCK_M, CHUNK), COMPUTE)
        if p_x is not None:
            x = load_rows(p_x, outer, inner, channels, inside, x_outer, x_inner, x_channel, UNIT, COMPUTE)
        if p_grad_sum is not None:
            grad += load_rows(
                p_grad_sum, outer, inner, channels, inside, grad_sum_outer, grad_sum_inner, grad_sum_channel, UNIT,
                COMPUTE,
            )  # fmt: skip
        if p_grad_normed is not None:
            grad_normed = load_rows(
                p_grad_normed, outer, inner, channels, inside, grad_normed_outer, grad_normed_inner,
                grad_normed_channel, UNIT, COMPUTE,
            )  # fmt: skip
            if p_total is not None:
                total = load_packed_rows(p_total, rows, channels, inside, CHANNELS, COMPUTE)
            else:
                total = load_rows(
                    p_residual, outer, inner, channels, inside, residual_outer, residual_inner, residual_channel,
                    UNIT, COMPUTE,
                )  # fmt: skip
                total += x * layer_scale * sample_scale
            mean, rstd = load_statistics(p_mean, p_rstd, rows, has_row)
            y = (total - mean[None, :, None]) * rstd[None, :, None]
            weight = load_vector_beside(p_weight, rows, channels, CHANNELS, COMPUTE)
            grad += norm_backward(grad_normed, weight, y, rstd, CHANNELS)
            if p_weight_sums is not None:
                weight_sums += grad_normed * y
            if p_bias_sums is not None:
                bias_sums += grad_normed
        if p_layer_sums is not None:
            layer_sums += grad * sample_scale * x
        if p_products is not None:
            tl.store(p_products + rows, row_sum(grad * layer_scale * x), mask=has_row)
        if p_grad_x is not None:
            store_rows(p_grad_x, rows, channels, inside, grad * layer_scale * sample_scale, CHANNELS)
        if p_grad_residual is not None:
            store_rows(p_grad_residual, rows, channels, inside, grad, CHANNELS)
    if p_weight_sums is not None:
        store_partial(p_weight_sums, weight_sums, channels, CHANNELS)
    if p_bias_sums is not None:
        store_partial(p_bias_sums, bias_sums, channels, CHANNELS)
    if p_layer_sums is not None:
        store_partial(p_layer_sums, layer_sums, channels, CHANNELS)
