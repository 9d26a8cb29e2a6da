"""part_pool in Triton: what a call launches, with which tiles. The kernels are in part_pool_kernels.py.

Tiles are chosen by what the compiler says of them: no spilled registers for half types, most programs on a
multiprocessor, fewest instructions (docs/kernels/static_report.csv). None has been timed on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
from motarfuse.kernels._launch import TYPES, Launch, architecture_of, device_of
from motarfuse.kernels._runtime import reasons_against_call
from motarfuse.kernels.part_pool_kernels import part_pool_bwd_kernel, part_pool_fwd_kernel, part_pool_short_fwd_kernel

MAX_PARTS = 128
# Programs that keep a large GPU busy: two on each of 132 multiprocessors.
BUSY = 264
_HALF = (torch.float16, torch.bfloat16)


def not_supported_reasons(request: Any) -> list[str]:
    """Every reason against a request (``motarfuse.ops.Request``) of part_pool."""
    reasons = reasons_against_call(request)
    parts = request.tensors["part_logits"].shape[1] - 1
    if parts > MAX_PARTS:
        reasons.append(f"it takes up to {MAX_PARTS} parts, got {parts}")
    return reasons


class Tiles(NamedTuple):
    """Channels and cells of a tile, and how the kernel is compiled; parts are padded to ``Problem.block_k``."""

    block_c: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 2


def short_tiles(half: bool, block_k: int, cells: int) -> Tiles | None:
    """Of the forward with all cells in one tile; None where they do not fit into registers and 99 KB."""
    block_n = max(16, triton.next_power_of_2(cells))
    if block_n > 256 or block_n * block_k > 8192 or (not half and block_n * block_k > 4096):
        return None
    if half:
        return Tiles(64, block_n)  # 86, 98 and 135 registers for 16, 32 and 64 parts and 128 cells
    return Tiles(64, block_n, 8) if block_n <= 128 else None  # 157 and 242; with four warps 32 parts spill


def forward_tiles(half: bool, block_k: int, channels: int) -> Tiles:
    """Of the forward for any number of cells. More cells a tile reduce the work of the softmax across warps."""
    block_c = 128 if channels > 64 and block_k <= 32 else 64
    if not half:
        return Tiles(block_c, 32)
    # 64 to 254 registers; 128 cells of 32 parts and 128 channels spill.
    return Tiles(block_c, max(32, min(128, (1 << 18) // (block_k * block_c))))


def backward_tiles(architecture: int, half: bool, block_k: int, cells: int, items: int) -> Tiles:
    """Of the backward: as many cells as leave enough programs, all of an item if possible, so that pooled is not read.

    150 to 196 registers for 16 parts and at most 128 cells. 32 parts spill with 128 cells where rows of logits are not
    aligned, or on 8.0 where pooled is read, and everywhere but on Hopper with 64 cells of four warps.
    """
    block_c = 64 if half else 32
    if block_k > 32:
        return Tiles(block_c, 32, 8)
    sizes = [128, 64, 32]
    if block_k == 32 and (cells % 16 or (cells > 128 and architecture == 80)):
        sizes = [64, 32]
    sizes = [size for size in sizes if size < 2 * cells or size == 32]
    block_n = next((size for size in sizes if items * -(-cells // size) >= BUSY), sizes[-1])
    return Tiles(block_c, block_n, 8 if block_k == 32 and block_n == 64 and architecture != 90 else 4)


class Problem:
    """A call's tensors with what its kernels want to know of them.

    ``dtype`` is what products are made of: a half type if all their tensors have it, else the type computed in.
    """

    def __init__(
        self, tokens: torch.Tensor, part_logits: torch.Tensor, grad_pooled: torch.Tensor | None = None,
        architecture: int | None = None,
    ) -> None:  # fmt: skip
        self.tokens, self.part_logits = tokens, part_logits
        self.batch, self.cells, self.channels = tokens.shape
        self.parts = part_logits.shape[1] - 1
        self.block_k = max(16, triton.next_power_of_2(self.parts))
        self.compute = torch.float64 if tokens.dtype == torch.float64 else torch.float32
        alike = grad_pooled is None or grad_pooled.dtype == tokens.dtype
        self.half = tokens.dtype in _HALF and alike
        self.dtype = tokens.dtype if self.half else self.compute
        self.architecture = architecture_of(tokens.device) if architecture is None else architecture

    @property
    def terms(self) -> int:
        """Half numbers that make a mask of the forward."""
        if not self.half:
            return 1
        return 3 if self.tokens.dtype == torch.bfloat16 and self.part_logits.dtype not in _HALF else 2

    def launch(
        self,
        kernel: Any,
        programs: int,
        arguments: dict[str, Any],
        tiles: Tiles,
        views: Mapping[str, torch.Tensor | None],
    ) -> Launch:
        """A launch of a kernel that finds its arguments and constants by name; ``views`` are passed with strides."""
        known: dict[str, Any] = {"num_cells": self.cells, **arguments}
        for name, tensor in views.items():
            known[f"p_{name}"] = tensor
            strides = (0, 0, 1) if tensor is None else tensor.stride()
            axes = "bnc" if name.endswith("tokens") else "bkn"
            known |= {f"{name}_{axis}": stride for axis, stride in zip(axes, strides, strict=True)}
        constants = {
            "PARTS": self.parts, "CHANNELS": self.channels, "DTYPE": TYPES[self.dtype], "COMPUTE": TYPES[self.compute],
            # Plain TF32 would lose half of float32's digits; three products keep them.
            "PRECISION": "tf32x3" if self.dtype == torch.float32 else "ieee",
            # Not 1, so that the compiler leaves the sum of tiles outside of the products.
            "SCALE": 32768.0 if self.dtype == torch.float16 else 0.5, "TERMS": self.terms,
            "BLOCK_K": self.block_k, "BLOCK_C": tiles.block_c, "BLOCK_N": tiles.block_n,
        }  # fmt: skip
        names = kernel.arg_names
        return Launch(
            kernel,
            (programs,),
            {name: known[name] for name in names if name in known},
            {name: constants[name] for name in names if name in constants},
            {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages},
        )


def forward_launch(
    p: Problem, pooled: torch.Tensor, mass: torch.Tensor, total: torch.Tensor | None, exact: torch.Tensor | None
) -> Launch:
    """What a forward launches."""
    results: dict[str, Any] = {"p_pooled": pooled, "p_mass": mass, "p_total": total, "p_exact": exact}
    views = {"tokens": p.tokens, "logits": p.part_logits}
    short = short_tiles(p.half, p.block_k, p.cells)
    tiles = forward_tiles(p.half, p.block_k, p.channels) if short is None else short
    blocks = max(1, -(-p.channels // tiles.block_c))
    if short is None:
        return p.launch(part_pool_fwd_kernel, p.batch * blocks, results, tiles, views)
    blocks_each = -(-blocks // min(blocks, -(-BUSY // p.batch)))
    groups = -(-blocks // blocks_each)
    cut = {"blocks_each": blocks_each, "num_groups": groups}
    return p.launch(part_pool_short_fwd_kernel, p.batch * groups, results | cut, tiles, views)


def forward(
    tokens: torch.Tensor, part_logits: torch.Tensor, save_statistics: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """pooled, mass, and for the backward S_k and pooled in the type computed in, (0,) where not wanted."""
    p = Problem(tokens, part_logits)
    keeps = save_statistics and tokens.dtype != p.compute
    small, large = (p.batch, p.parts), (p.batch, p.parts, p.channels)
    pooled, mass = tokens.new_empty(large), part_logits.new_empty(small)
    total = tokens.new_empty(small if save_statistics else (0,), dtype=p.compute)
    exact = tokens.new_empty(large if keeps else (0,), dtype=p.compute)
    if p.batch * p.parts == 0 or p.cells == 0:
        return pooled.zero_(), mass.zero_(), total.zero_(), exact.zero_()
    with device_of(tokens):
        forward_launch(p, pooled, mass, total if save_statistics else None, exact if keeps else None).run()
    return pooled, mass, total, exact


def backward_launch(
    p: Problem, grad_pooled: torch.Tensor | None, grad_mass: torch.Tensor | None, pooled: torch.Tensor,
    total: torch.Tensor, grad_tokens: torch.Tensor | None, grad_logits: torch.Tensor | None,
) -> Launch:  # fmt: skip
    """What a backward launches."""
    tiles = backward_tiles(p.architecture, p.half, p.block_k, p.cells, p.batch)
    arguments = {
        "p_grad_pooled": grad_pooled, "p_grad_mass": grad_mass, "p_total": total,
        "p_pooled": pooled if p.cells > tiles.block_n else None,
    }  # fmt: skip
    views = {"tokens": p.tokens, "logits": p.part_logits, "grad_tokens": grad_tokens, "grad_logits": grad_logits}
    return p.launch(part_pool_bwd_kernel, p.batch * -(-p.cells // tiles.block_n), arguments, tiles, views)


def backward(
    grad_pooled: torch.Tensor | None,
    grad_mass: torch.Tensor | None,
    tokens: torch.Tensor,
    part_logits: torch.Tensor,
    pooled: torch.Tensor,
    total: torch.Tensor,
    needs_tokens: bool,
    needs_logits: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of tokens and part_logits, (0,) where not needed; ``pooled`` in the type computed in."""
    p = Problem(tokens, part_logits, grad_pooled)
    grad_tokens = torch.empty_like(tokens) if needs_tokens else tokens.new_empty((0,))
    grad_logits = torch.empty_like(part_logits) if needs_logits else part_logits.new_empty((0,))
    if p.batch * p.parts * p.cells == 0 or (grad_pooled is None and grad_mass is None):
        return grad_tokens.zero_(), grad_logits.zero_()
    wants_tokens = needs_tokens and grad_pooled is not None
    if needs_tokens and not wants_tokens:
        grad_tokens.zero_()
    if wants_tokens or needs_logits:
        with device_of(tokens):
            backward_launch(
                p, grad_pooled, grad_mass, pooled, total, grad_tokens if wants_tokens else None,
                grad_logits if needs_logits else None,
            ).run()  # fmt: skip
    return grad_tokens, grad_logits
