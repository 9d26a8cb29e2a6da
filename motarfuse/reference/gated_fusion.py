"""Gated addition with layer norm: the definition (``motarfuse.ops.gated_fusion`` says what it computes)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from motarfuse.reference.precision import compute_dtype, without_autocast


def gated_fusion(
    x: torch.Tensor,
    motion: torch.Tensor,
    gate_logits: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-6,
) -> torch.Tensor:
    """LayerNorm(x + sigmoid(gate_logits) motion) weight + bias.

    Args:
        x: (..., C).
        motion: (..., C).
        gate_logits: (..., C).
        weight: (C,).
        bias: (C,).
        eps: Added to the variance.

    Returns:
        (..., C) of x's dtype.
    """
    compute = compute_dtype(x, motion, gate_logits, weight, bias)
    with without_autocast(x.device):
        total = x.to(compute) + torch.sigmoid(gate_logits.to(compute)) * motion.to(compute)
        return F.layer_norm(total, weight.shape, weight.to(compute), bias.to(compute), eps).to(x.dtype)
