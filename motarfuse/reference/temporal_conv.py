"""Depthwise convolution over time with GELU: the definition (``motarfuse.ops.temporal_conv`` says what it computes)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from motarfuse.reference.precision import compute_dtype, without_autocast


def temporal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    frame_mask: torch.Tensor | None = None,
    *,
    missing: str = "hold",
) -> torch.Tensor:
    """GELU(bias + sum_j weight_j x_{t + j}), j from -(k - 1) / 2 to (k - 1) / 2; x_{t + j} may be missing.

    Args:
        x: (B, T, N, C).
        weight: (C, k), k odd.
        bias: (C,), or None.
        frame_mask: (B, T) booleans, False for a frame that is not there, or None; such a frame comes out as zero.
        missing: What a neighbour outside the clip or not there reads as: ``"hold"`` x_t itself, ``"zero"`` zero.

    Returns:
        (B, T, N, C) of x's dtype.
    """
    compute = compute_dtype(x, weight, bias)
    batch, frames = x.shape[:2]
    if frame_mask is None:
        frame_mask = torch.ones(batch, frames, dtype=torch.bool, device=x.device)
    with without_autocast(x.device):
        present_here = frame_mask[..., None, None]
        values, taps = torch.where(present_here, x.to(compute), 0.0), weight.to(compute)
        radius = weight.shape[1] // 2
        total = torch.zeros_like(values) if bias is None else bias.to(compute).expand_as(values)
        for offset in range(-radius, radius + 1):
            neighbour, present = _shifted(values, offset), _shifted(frame_mask, offset)[..., None, None]
            instead = values if missing == "hold" else torch.zeros_like(values)
            total = total + taps[:, offset + radius] * torch.where(present, neighbour, instead)
        return torch.where(present_here, F.gelu(total), 0.0).to(x.dtype)


def _shifted(values: torch.Tensor, offset: int) -> torch.Tensor:
    """values[:, t + offset] at t; zero (False) outside the clip."""
    frames = values.shape[1]
    result = torch.zeros_like(values)
    if abs(offset) >= frames:
        return result
    outside = result[:, : abs(offset)]
    if offset < 0:
        return torch.cat((outside, values[:, : frames + offset]), dim=1)
    return torch.cat((values[:, offset:], outside), dim=1)
