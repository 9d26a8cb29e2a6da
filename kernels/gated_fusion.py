"""gated_fusion in Triton: what a call launches. The kernels are in gated_fusion_kernels.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from motarfuse.kernels._launch import Launch
from motarfuse.kernels.gated_fusion_kernels import gated_fusion_bwd_kernel, gated_fusion_fwd_kernel
from motarfuse.kernels.row_norm import (
    as_rows,
    backward_tiles,
    cut_rows,
    forward_tiles,
    multiprocessors_of,
    not_supported_reasons,
    partial_sums,
    rows_launch,
    run,
    sum_launch,
)

__all__ = ["backward", "backward_launches", "forward", "forward_launch", "not_supported_reasons"]

Tensor = torch.Tensor


def forward_launch(
    x: Tensor, motion: Tensor, gate_logits: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor,
    mean: Tensor | None, rstd: Tensor | None,
) -> Launch:  # fmt: skip
    """What a forward launches; vectors must be contiguous."""
    *leading, channels = x.shape
    tiles = forward_tiles(channels, min(x.itemsize, motion.itemsize, gate_logits.itemsize))
    count = math.prod(leading)
    arguments = {"p_weight": weight, "p_bias": bias, "p_out": out, "p_mean": mean, "p_rstd": rstd, "eps": eps}
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = as_rows({"x": x, "motion": motion, "gate": gate_logits})
    programs = -(-count // tiles.block_m)
    return rows_launch(gated_fusion_fwd_kernel, count, channels, compute, rows, tiles, programs, arguments)


def forward(
    x: Tensor, motion: Tensor, gate_logits: Tensor, weight: Tensor, bias: Tensor, eps: float, save_statistics: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and for the backward means and reciprocals of standard deviations, (0,) where not wanted."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = x.new_empty(x.shape)
    mean, rstd = (x.new_empty(x.shape[:-1] if save_statistics else (0,), dtype=compute) for _ in range(2))
    if x.numel():
        launch = forward_launch(
            x, motion, gate_logits, weight.contiguous(), bias.contiguous(), eps, out,
            mean if save_statistics else None, rstd if save_statistics else None,
        )  # fmt: skip
        run(x, launch)
    return out, mean, rstd


def backward_launches(
    grad_out: Tensor, x: Tensor, motion: Tensor, gate_logits: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor,
    results: Sequence[Tensor | None], multiprocessors: int,
) -> list[Launch]:  # fmt: skip
    """What a backward launches.

    Args:
        results: Of the gradients, in the order of the forward's tensors; None where one is not needed.
        multiprocessors: Of the GPU.
    """
    grad_x, grad_motion, grad_gate, *vectors = results
    channels, count = weight.shape[0], mean.numel()
    wanted = [one is not None for one in vectors]
    itemsize = min(one.itemsize for one in (grad_out, x, motion, gate_logits))
    tiles, resident = backward_tiles(channels, itemsize, sum(wanted))
    cut = cut_rows(count, tiles.block_m, multiprocessors, sums=any(wanted), resident=resident)
    terms, sums = partial_sums(mean, wanted, cut.programs, channels, mean.dtype)
    rows = as_rows({"grad_out": grad_out, "x": x, "motion": motion, "gate": gate_logits})
    arguments = {
        "p_weight": weight, "p_mean": mean, "p_rstd": rstd, "p_grad_x": grad_x, "p_grad_motion": grad_motion,
        "p_grad_gate": grad_gate, "p_weight_sums": sums[0], "p_bias_sums": sums[1], "rows_each": cut.rows_each,
    }  # fmt: skip
    launches = [rows_launch(gated_fusion_bwd_kernel, count, channels, mean.dtype, rows, tiles, cut.programs, arguments)]
    if any(wanted):
        launches.append(sum_launch(terms, [one for one in vectors if one is not None]))
    return launches


def backward(
    grad_out: Tensor,
    x: Tensor,
    motion: Tensor,
    gate_logits: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    bias_dtype: torch.dtype,
    needs: int,
) -> tuple[Tensor, ...]:
    """Gradients of the forward's five tensors, (0,) where ``needs``, a bit each, has none."""
    kinds = [(one.shape, one.dtype) for one in (x, motion, gate_logits, weight)] + [(weight.shape, bias_dtype)]
    found = [
        x.new_empty(size if needs & (1 << index) else (0,), dtype=kind) for index, (size, kind) in enumerate(kinds)
    ]
    if x.numel() == 0:
        return tuple(one.zero_() for one in found)
    wanted = [one if needs & (1 << index) else None for index, one in enumerate(found)]
    if needs:
        launches = backward_launches(
            grad_out, x, motion, gate_logits, weight.contiguous(), mean.contiguous(), rstd.contiguous(), wanted,
            multiprocessors_of(x.device),
        )  # fmt: skip
        run(x, *launches)
    return tuple(found)
