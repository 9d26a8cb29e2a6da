"""bias_gelu in Triton: an elementwise pass forward, one pass with sums over rows backward.

A tile is (BLOCK_M, BLOCK_C): rows and channels. Rows lie in memory as row_norm_kernels.py says.
"""

from __future__ import annotations

import triton
import triton.language as tl
from motarfuse.kernels.bias_gelu_math import gelu, gelu_derivative
from motarfuse.kernels.row_norm_kernels import row_places


@triton.jit
def load_tile(pointer, outer, inner, channels, inside, stride_outer, stride_inner, stride_channel, UNIT: tl.constexpr):
    """(BLOCK_M, BLOCK_C) of a tensor with strides, 0 where not inside."""
    starts = pointer + (outer * stride_outer + inner * stride_inner) * UNIT
    return tl.load(starts[:, None] + (channels.to(tl.int64) * stride_channel)[None, :], mask=inside, other=0.0)


@triton.jit
def load_bias(p_bias, channels, has_channel, bias_channel, COMPUTE: tl.constexpr):
    """(1, BLOCK_C) of the bias, or 0."""
    if p_bias is None:
        return tl.zeros(channels.shape, COMPUTE)[None, :]
    else:
        return tl.load(p_bias + channels.to(tl.int64) * bias_channel, mask=has_channel, other=0.0).to(COMPUTE)[None, :]


@triton.jit(do_not_specialize=("num_rows", "rows_inner", "x_outer", "x_inner"))
def bias_gelu_fwd_kernel(
    p_x, p_bias,  # (rows, C) with strides; (C,), or null
    p_out,  # (rows, C)
    num_rows, rows_inner, x_outer, x_inner, x_channel, bias_channel,
    ACTIVATION: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program takes a tile; those beside one another take the channels of the same rows."""
    blocks: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    channels = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = (tl.program_id(0) // blocks).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    has_channel = channels < CHANNELS
    inside = (rows < num_rows)[:, None] & has_channel[None, :]
    outer, inner = row_places(rows, rows_inner)
    x = load_tile(p_x, outer, inner, channels, inside, x_outer, x_inner, x_channel, UNIT)
    out = gelu(x.to(COMPUTE) + load_bias(p_bias, channels, has_channel, bias_channel, COMPUTE), ACTIVATION)
    place = (rows.to(tl.int64) * CHANNELS)[:, None] + channels[None, :]
    tl.store(p_out + place, out.to(p_out.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=("num_rows", "rows_inner", "x_outer", "x_inner", "grad_out_outer", "grad_out_inner", "rows_each")
)
def bias_gelu_bwd_kernel(
    p_grad_out, p_x, p_bias,  # (rows, C) with strides, twice; (C,), or null
    p_grad_x,  # (rows, C), or null
    p_sums,  # (programs of a block of channels, C): sums over their rows; or null
    rows_each,  # of a program, a multiple of BLOCK_M
    num_rows, rows_inner, grad_out_outer, grad_out_inner, grad_out_channel, x_outer, x_inner, x_channel, bias_channel,
    ACTIVATION: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program takes a block of channels through its rows, and keeps its sums over them in registers."""
    blocks: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    channels = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = tl.program_id(0) // blocks
    first = part.to(INDEX) * rows_each
    has_channel = channels < CHANNELS
    bias = load_bias(p_bias, channels, has_channel, bias_channel, COMPUTE)
    sums = tl.zeros((BLOCK_M, BLOCK_C), COMPUTE)
    for start in range(0, rows_each, BLOCK_M):
        rows = first + start + tl.arange(0, BLOCK_M)
        inside = (rows < num_rows)[:, None] & has_channel[None, :]
        outer, inner = row_places(rows, rows_inner)
        x = load_tile(p_x, outer, inner, channels, inside, x_outer, x_inner, x_channel, UNIT)
        grad = load_tile(
            p_grad_out, outer, inner, channels, inside, grad_out_outer, grad_out_inner, grad_out_channel, UNIT
        )  # fmt: skip
        grad_x = gelu_derivative(x.to(COMPUTE) + bias, ACTIVATION) * grad.to(COMPUTE)
        if p_grad_x is not None:
            place = (rows.to(tl.int64) * CHANNELS)[:, None] + channels[None, :]
            tl.store(p_grad_x + place, grad_x.to(p_grad_x.dtype.element_ty), mask=inside)
        if p_sums is not None:
            sums += grad_x
    if p_sums is not None:
        tl.store(p_sums + part.to(tl.int64) * CHANNELS + channels, tl.sum(sums, 0), mask=has_channel)
