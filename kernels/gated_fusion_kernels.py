"""gated_fusion in Triton; rows and formulas of the norm are in row_norm_kernels.py."""

from __future__ import annotations

import triton
import triton.language as tl
from motarfuse.kernels.row_norm_kernels import (
    channel_index,
    load_rows,
    load_statistics,
    load_vector,
    load_vector_beside,
    norm_backward,
    normalise,
    row_places,
    store_partial,
    store_rows,
)


@triton.jit
def sigmoid(x):
    """Where exp2 is infinite it is 0."""
    return 1.0 / (1.0 + tl.exp2(x * -1.4426950408889634))


@triton.jit(
    do_not_specialize=(
        "num_rows", "rows_inner", "x_outer", "x_inner", "motion_outer", "motion_inner", "gate_outer", "gate_inner"
    )
)  # fmt: skip
def gated_fusion_fwd_kernel(
    p_x, p_motion, p_gate,  # (rows, C) with strides
    p_weight, p_bias,  # (C,)
    p_out, p_mean, p_rstd,  # (rows, C); (rows,) twice, or null
    eps, num_rows, rows_inner,
    x_outer, x_inner, x_channel, motion_outer, motion_inner, motion_channel, gate_outer, gate_inner, gate_channel,
    CHANNELS: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_M rows."""
    rows = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    has_row = rows < num_rows
    channels = channel_index(BLOCK_C, CHUNK)
    inside = has_row[None, :, None] & (channels < CHANNELS)
    outer, inner = row_places(rows, rows_inner)
    gate = load_rows(p_gate, outer, inner, channels, inside, gate_outer, gate_inner, gate_channel, UNIT, COMPUTE)
    motion = load_rows(
        p_motion, outer, inner, channels, inside, motion_outer, motion_inner, motion_channel, UNIT, COMPUTE
    )  # fmt: skip
    total = load_rows(p_x, outer, inner, channels, inside, x_outer, x_inner, x_channel, UNIT, COMPUTE)
    y, mean, rstd = normalise(total + sigmoid(gate) * motion, channels, eps, CHANNELS, BLOCK_C)
    weight = load_vector(p_weight, channels, CHANNELS, COMPUTE)
    bias = load_vector(p_bias, channels, CHANNELS, COMPUTE)
    store_rows(p_out, rows, channels, inside, y * weight + bias, CHANNELS)
    if p_mean is not None:
        tl.store(p_mean + rows, mean, mask=has_row)
        tl.store(p_rstd + rows, rstd, mask=has_row)


@triton.jit(
    do_not_specialize=(
        "num_rows", "rows_each", "rows_inner", "grad_out_outer", "grad_out_inner", "x_outer", "x_inner",
        "motion_outer", "motion_inner", "gate_outer", "gate_inner",
    )
)  # fmt: skip
def gated_fusion_bwd_kernel(
    p_grad_out, p_x, p_motion, p_gate,  # (rows, C) with strides
    p_weight, p_mean, p_rstd,  # (C,), (rows,) twice
    p_grad_x, p_grad_motion, p_grad_gate,  # (rows, C), or null
    p_weight_sums, p_bias_sums,  # (programs, C), or null
    num_rows, rows_each, rows_inner,
    grad_out_outer, grad_out_inner, grad_out_channel, x_outer, x_inner, x_channel,
    motion_outer, motion_inner, motion_channel, gate_outer, gate_inner, gate_channel,
    CHANNELS: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A program takes ``rows_each`` rows, BLOCK_M at a time, and sums the vectors' gradients over them."""
    first = tl.program_id(0).to(INDEX) * rows_each
    channels = channel_index(BLOCK_C, CHUNK)
    weight_sums = tl.zeros((BLOCK_C // CHUNK, BLOCK_M, CHUNK), COMPUTE)
    bias_sums = tl.zeros((BLOCK_C // CHUNK, BLOCK_M, CHUNK), COMPUTE)
    for step in range(0, rows_each, BLOCK_M):
        rows = first + step + tl.arange(0, BLOCK_M)
        has_row = rows < num_rows
        inside = has_row[None, :, None] & (channels < CHANNELS)
        outer, inner = row_places(rows, rows_inner)
        grad_out = load_rows(
            p_grad_out, outer, inner, channels, inside, grad_out_outer, grad_out_inner, grad_out_channel, UNIT, COMPUTE
        )  # fmt: skip
        gate = load_rows(p_gate, outer, inner, channels, inside, gate_outer, gate_inner, gate_channel, UNIT, COMPUTE)
        motion = load_rows(
            p_motion, outer, inner, channels, inside, motion_outer, motion_inner, motion_channel, UNIT, COMPUTE
        )  # fmt: skip
        total = load_rows(p_x, outer, inner, channels, inside, x_outer, x_inner, x_channel, UNIT, COMPUTE)
        opened = sigmoid(gate)
        mean, rstd = load_statistics(p_mean, p_rstd, rows, has_row)
        y = (total + opened * motion - mean[None, :, None]) * rstd[None, :, None]
        weight = load_vector_beside(p_weight, rows, channels, CHANNELS, COMPUTE)
        grad = norm_backward(grad_out, weight, y, rstd, CHANNELS)
        if p_weight_sums is not None:
            weight_sums += grad_out * y
        if p_bias_sums is not None:
            bias_sums += grad_out
        if p_grad_x is not None:
            store_rows(p_grad_x, rows, channels, inside, grad, CHANNELS)
        if p_grad_motion is not None:
            store_rows(p_grad_motion, rows, channels, inside, opened * grad, CHANNELS)
        if p_grad_gate is not None:
            store_rows(p_grad_gate, rows, channels, inside, opened * (1.0 - opened) * motion * grad, CHANNELS)
    if p_weight_sums is not None:
        store_partial(p_weight_sums, weight_sums, channels, CHANNELS)
    if p_bias_sums is not None:
        store_partial(p_bias_sums, bias_sums, channels, CHANNELS)
