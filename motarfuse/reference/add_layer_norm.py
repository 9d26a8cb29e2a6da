"""Residual addition with layer norm: the definition (``motarfuse.ops.add_layer_norm`` says what it computes)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from motarfuse.reference.precision import compute_dtype, without_autocast


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-6,
    *,
    layer_scale: torch.Tensor | None = None,
    sample_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """sum = residual + sample_scale layer_scale x, normed = LayerNorm(sum) weight + bias.

    Args:
        x: (B, ..., C), the branch.
        residual: (B, ..., C).
        weight: (C,).
        bias: (C,).
        eps: Added to the variance.
        layer_scale: (C,), or None for 1.
        sample_scale: (B,), or None for 1.

    Returns:
        normed (B, ..., C) of x's dtype; sum (B, ..., C) of the residual's dtype.
    """
    compute = compute_dtype(x, residual, weight, bias, layer_scale, sample_scale)
    with without_autocast(x.device):
        branch = x.to(compute)
        if layer_scale is not None:
            branch = branch * layer_scale.to(compute)
        if sample_scale is not None:
            branch = branch * sample_scale.to(compute).reshape(-1, *[1] * (x.ndim - 1))
        total = residual.to(compute) + branch
        normed = F.layer_norm(total, weight.shape, weight.to(compute), bias.to(compute), eps)
    return normed.to(x.dtype), total.to(residual.dtype)
