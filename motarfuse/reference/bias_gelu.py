"""Bias and GELU, the epilogue of an MLP's first layer: the definition (``motarfuse.ops.bias_gelu`` explains it)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from motarfuse.reference.precision import compute_dtype, without_autocast


def bias_gelu(x: torch.Tensor, bias: torch.Tensor | None, *, activation: str = "gelu") -> torch.Tensor:
    """activation(x + bias).

    Args:
        x: (..., C).
        bias: (C,), or None.
        activation: ``"gelu"`` u Phi(u), ``"gelu_tanh"`` its approximation by tanh, ``"quick_gelu"`` u sigmoid(1.702 u).

    Returns:
        The shape and dtype of x.
    """
    compute = compute_dtype(x, bias)
    with without_autocast(x.device):
        total = x.to(compute) if bias is None else x.to(compute) + bias.to(compute)
        if activation == "quick_gelu":
            return (total * torch.sigmoid(1.702 * total)).to(x.dtype)
        return F.gelu(total, approximate="tanh" if activation == "gelu_tanh" else "none").to(x.dtype)
