"""add_layer_norm in Triton: what a call launches. The kernels are in add_layer_norm_kernels.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from motarfuse.kernels._launch import Launch
from motarfuse.kernels.add_layer_norm_kernels import add_layer_norm_bwd_kernel, add_layer_norm_fwd_kernel
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
# Gradients of x, residual, weight, bias, layer_scale and sample_scale.
GRADIENTS = 6


def forward_launch(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, layer_scale: Tensor | None, sample_scale: Tensor | None,
    eps: float, normed: Tensor, total: Tensor, mean: Tensor | None, rstd: Tensor | None,
) -> Launch:  # fmt: skip
    """What a forward launches; vectors must be contiguous."""
    *leading, channels = x.shape
    tiles = forward_tiles(channels, min(x.itemsize, residual.itemsize))
    count = math.prod(leading)
    arguments = {
        "p_weight": weight, "p_bias": bias, "p_layer_scale": layer_scale, "p_sample_scale": sample_scale,
        "p_normed": normed, "p_sum": total, "p_mean": mean, "p_rstd": rstd, "eps": eps,
        "rows_sample": count // leading[0],
    }  # fmt: skip
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = as_rows({"x": x, "residual": residual})
    programs = -(-count // tiles.block_m)
    return rows_launch(add_layer_norm_fwd_kernel, count, channels, compute, rows, tiles, programs, arguments)


def forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    layer_scale: Tensor | None,
    sample_scale: Tensor | None,
    eps: float,
    save_statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """normed, sum, and for the backward means and reciprocals of standard deviations, (0,) where not wanted."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    normed, total = x.new_empty(x.shape), residual.new_empty(x.shape)
    mean, rstd = (x.new_empty(x.shape[:-1] if save_statistics else (0,), dtype=compute) for _ in range(2))
    if x.numel():
        launch = forward_launch(
            x, residual, weight.contiguous(), bias.contiguous(), _packed(layer_scale), _packed(sample_scale), eps,
            normed, total, mean if save_statistics else None, rstd if save_statistics else None,
        )  # fmt: skip
        run(x, launch)
    return normed, total, mean, rstd


def backward_launches(
    grad_normed: Tensor | None, grad_sum: Tensor | None, x: Tensor | None, residual: Tensor | None,
    total: Tensor | None, weight: Tensor, layer_scale: Tensor | None, sample_scale: Tensor | None, mean: Tensor,
    rstd: Tensor, results: Sequence[Tensor | None], multiprocessors: int,
) -> list[Launch]:  # fmt: skip
    """What a backward launches, for a gradient of normed, of sum, or of both.

    Args:
        results: Of the gradients, in the order of the forward's tensors; None where one is not needed.
        multiprocessors: Of the GPU.
    """
    grad_x, grad_residual, *vectors, grad_sample = results
    channels, count, batch = weight.shape[0], mean.numel(), mean.shape[0]
    wanted = [one is not None for one in vectors]
    products = None if grad_sample is None else torch.empty_like(mean)
    scaled = vectors[2] is not None or grad_sample is not None
    remade = grad_normed is not None and total is None
    views = {
        "grad_normed": grad_normed, "grad_sum": grad_sum, "x": x if scaled or remade else None,
        "residual": residual if remade else None,
    }  # fmt: skip
    itemsize = min(one.itemsize for one in (*views.values(), total) if one is not None)
    tiles, resident = backward_tiles(channels, itemsize, sum(wanted))
    cut = cut_rows(count, tiles.block_m, multiprocessors, sums=any(wanted), resident=resident)
    terms, sums = partial_sums(mean, wanted, cut.programs, channels, mean.dtype)
    rows = as_rows(views)
    arguments = {
        "p_total": total if grad_normed is not None else None, "p_weight": weight, "p_layer_scale": layer_scale,
        "p_sample_scale": sample_scale, "p_mean": mean, "p_rstd": rstd, "p_grad_x": grad_x,
        "p_grad_residual": grad_residual, "p_weight_sums": sums[0], "p_bias_sums": sums[1], "p_layer_sums": sums[2],
        "p_products": products, "rows_each": cut.rows_each, "rows_sample": count // batch,
    }  # fmt: skip
    launches = [
        rows_launch(add_layer_norm_bwd_kernel, count, channels, mean.dtype, rows, tiles, cut.programs, arguments)
    ]
    if any(wanted):
        launches.append(sum_launch(terms, [one for one in vectors if one is not None]))
    if products is not None and grad_sample is not None:
        launches.append(sum_launch(products.view(1, batch, count // batch).transpose(1, 2), [grad_sample]))
    return launches


def backward(
    grad_normed: Tensor | None,
    grad_sum: Tensor | None,
    x: Tensor | None,
    residual: Tensor | None,
    total: Tensor | None,
    weight: Tensor,
    layer_scale: Tensor | None,
    sample_scale: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    x_dtype: torch.dtype,
    bias_dtype: torch.dtype,
    needs: int,
) -> tuple[Tensor, ...]:
    """Gradients of the forward's six tensors, (0,) where ``needs``, a bit each, has none.

    ``total`` is the sum before it was rounded, or None beside x and residual; x also where a scale takes a gradient.
    """
    shape, channels = (*mean.shape, weight.shape[0]), weight.shape
    kept = residual if total is None else total
    residual_dtype = x_dtype if kept is None else kept.dtype
    kinds = (
        (shape, x_dtype), (shape, residual_dtype), (channels, weight.dtype), (channels, bias_dtype),
        (channels, None if layer_scale is None else layer_scale.dtype),
        (mean.shape[:1], None if sample_scale is None else sample_scale.dtype),
    )  # fmt: skip
    found = [
        mean.new_empty(size if needs & (1 << index) else (0,), dtype=kind) for index, (size, kind) in enumerate(kinds)
    ]
    wanted = [one if needs & (1 << index) else None for index, one in enumerate(found)]
    if grad_normed is None:  # weight and bias are not part of the sum
        wanted[2:4] = [None, None]
    if mean.numel() == 0 or (grad_normed is None and grad_sum is None):
        wanted = [None] * GRADIENTS
    for one, mine in zip(found, wanted, strict=True):
        if mine is None:
            one.zero_()
    if any(one is not None for one in wanted):
        launches = backward_launches(
            grad_normed, grad_sum, x, residual, None if total is None else total.contiguous(), weight.contiguous(),
            _packed(layer_scale), _packed(sample_scale), mean.contiguous(), rstd.contiguous(), wanted,
            multiprocessors_of(mean.device),
        )  # fmt: skip
        run(mean, *launches)
    return tuple(found)


def _packed(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()
