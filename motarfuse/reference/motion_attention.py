"""Attention with a low-rank motion bias: the definition (``motarfuse.ops.motion_attention`` says what it computes)."""

from __future__ import annotations

import torch

from motarfuse.reference.precision import compute_dtype, softmax_or_zeros, without_autocast


def motion_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    motion_query: torch.Tensor | None = None,
    motion_key: torch.Tensor | None = None,
    motion_scale: torch.Tensor | None = None,
    key_bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """out = softmax(scale q k^T + motion_scale m_q m_k^T + key_bias) v.

    Args:
        query: (B, H, N, d).
        key: (B, H, M, d).
        value: (B, H, M, d).
        motion_query: (B, H or 1, N, R), or None for no motion.
        motion_key: (B, H or 1, M, R), together with ``motion_query``.
        motion_scale: (H,), or None for 1.
        key_bias: (B, M) or (B, H, M), or None; -inf hides a key, and a row whose keys are all hidden gives zeros.
        scale: None is 1 / sqrt(d).

    Returns:
        (B, H, N, d) of the query's dtype.
    """
    compute = compute_dtype(query, motion_query, motion_key, motion_scale, key_bias)
    if scale is None:
        scale = query.shape[-1] ** -0.5
    with without_autocast(query.device):
        scores = scale * (query.to(compute) @ key.to(compute).transpose(-1, -2))
        if motion_query is not None and motion_key is not None:
            motion = motion_query.to(compute) @ motion_key.to(compute).transpose(-1, -2)
            scores = scores + (motion if motion_scale is None else motion_scale.to(compute)[:, None, None] * motion)
        if key_bias is not None:
            scores = scores + (key_bias[:, None] if key_bias.ndim == 2 else key_bias)[:, :, None].to(compute)
        return (softmax_or_zeros(scores) @ value.to(compute)).to(query.dtype)
