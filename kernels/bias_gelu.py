"""bias_gelu in Triton: what a call launches, with which tiles. The kernels are in bias_gelu_kernels.py.

Tiles are chosen by what the compiler says of them (docs/kernels/static_report.csv). None has been timed on a GPU yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from motarfuse.kernels._launch import TYPES, Launch
from motarfuse.kernels._runtime import reasons_against_call
from motarfuse.kernels.bias_gelu_kernels import bias_gelu_bwd_kernel, bias_gelu_fwd_kernel
from motarfuse.kernels.row_norm import WIDE_ROWS, as_rows, multiprocessors_of, run, sum_launch

Tensor = torch.Tensor
# Programs that keep a large GPU busy: four on each of 132 multiprocessors.
BUSY = 528
# Rows that one lane of a program adds up: with more of them float32 would lose what a tree of sums keeps.
MAX_CHAIN = 128


def not_supported_reasons(request: Any) -> list[str]:
    """Every reason against a request (``motarfuse.ops.Request``) of bias_gelu, or of another elementwise operator."""
    return reasons_against_call(request)


class Tiles(NamedTuple):
    """Rows and channels of a tile, powers of two, and the warps of its program."""

    block_m: int
    block_c: int
    num_warps: int = 4


def channel_block(channels: int, most: int) -> int:
    """The largest power of two up to ``most`` that pads channels by a quarter at most, and 64 where none does."""
    if channels <= 64:
        return triton.next_power_of_2(channels)
    block = most
    while block > 64 and -(-channels // block) * block * 4 > channels * 5:
        block //= 2
    return block


def forward_tiles(rows: int, channels: int, half: bool) -> Tiles:
    """Four loads of 16 bytes a thread; one, where that leaves too few programs."""
    block_c = channel_block(channels, 1024)
    size = 4096 if half else 2048
    if rows * channels < size * BUSY:
        size //= 4
    return Tiles(max(1, min(size // block_c, triton.next_power_of_2(rows))), block_c)


def backward_tiles(rows: int, channels: int) -> Tiles:
    """16 numbers a thread of each tensor, because sums over rows stay in registers beside them."""
    block_c = channel_block(channels, 512)
    return Tiles(max(1, min(2048 // block_c, triton.next_power_of_2(rows))), block_c)


def launch(
    kernel: Any, views: Mapping[str, Tensor], bias: Tensor | None, activation: str, tiles: Tiles, programs: int,
    arguments: Mapping[str, Any],
) -> Launch:  # fmt: skip
    """A launch of a kernel that finds its arguments by name; ``views`` are passed with strides, x among them."""
    x = views["x"]
    count = math.prod(x.shape[:-1])
    rows = as_rows(views)
    known = {
        "num_rows": count, "p_bias": bias, "bias_channel": 1 if bias is None else bias.stride(0), **rows.arguments(),
        **arguments,
    }  # fmt: skip
    constants = {
        "ACTIVATION": activation, "CHANNELS": x.shape[-1], "COMPUTE": TYPES[_compute(x)], "UNIT": rows.unit,
        "INDEX": tl.int64 if count >= WIDE_ROWS else tl.int32, "BLOCK_M": tiles.block_m, "BLOCK_C": tiles.block_c,
    }  # fmt: skip
    names = kernel.arg_names
    chosen = {name: known[name] for name in names if name in known}
    return Launch(kernel, (programs,), chosen, constants, {"num_warps": tiles.num_warps, "num_stages": 1})


def forward_launch(x: Tensor, bias: Tensor | None, activation: str, out: Tensor) -> Launch:
    """What a forward launches; x has two dimensions or more."""
    *leading, channels = x.shape
    count = math.prod(leading)
    tiles = forward_tiles(count, channels, x.element_size() == 2)
    programs = -(-count // tiles.block_m) * -(-channels // tiles.block_c)
    return launch(bias_gelu_fwd_kernel, {"x": x}, bias, activation, tiles, programs, {"p_out": out})


def forward(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """activation(x + bias), contiguous."""
    out = x.new_empty(x.shape)
    if x.numel():
        run(x, forward_launch(x if x.ndim > 1 else x[None], bias, activation, out))
    return out


def backward_launches(
    grad_out: Tensor, x: Tensor, bias: Tensor | None, activation: str, grad_x: Tensor | None, grad_bias: Tensor | None,
    multiprocessors: int,
) -> list[Launch]:  # fmt: skip
    """What a backward launches: gradients that are wanted, of tensors of two dimensions or more."""
    *leading, channels = x.shape
    count = math.prod(leading)
    tiles = backward_tiles(count, channels)
    blocks = -(-channels // tiles.block_c)
    steps = -(-count // tiles.block_m)
    each = 1 if grad_bias is None else min(MAX_CHAIN, -(-steps // max(1, 4 * multiprocessors // blocks)))
    parts = -(-steps // each)
    sums = None if grad_bias is None else x.new_empty((1, parts, channels), dtype=_compute(x))
    arguments = {"p_grad_x": grad_x, "p_sums": sums, "rows_each": each * tiles.block_m}
    views = {"grad_out": grad_out, "x": x}
    launches = [launch(bias_gelu_bwd_kernel, views, bias, activation, tiles, parts * blocks, arguments)]
    if grad_bias is not None:
        launches.append(sum_launch(sums, [grad_bias]))
    return launches


def backward(
    grad_out: Tensor, x: Tensor, bias: Tensor | None, activation: str, needs_x: bool, needs_bias: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and bias, (0,) where not needed."""
    like = x if bias is None else bias
    grad_x, grad_bias = x.new_empty(x.shape if needs_x else (0,)), like.new_empty(x.shape[-1:] if needs_bias else (0,))
    if x.numel() == 0:
        return grad_x, grad_bias.zero_()
    if x.ndim == 1:
        grad_out, x = grad_out[None], x[None]
    if needs_x or needs_bias:
        wanted = (grad_x if needs_x else None, grad_bias if needs_bias else None)
        run(x, *backward_launches(grad_out, x, bias, activation, *wanted, multiprocessors_of(x.device)))
    return grad_x, grad_bias


def _compute(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
