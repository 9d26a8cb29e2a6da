"""Moments of part heat maps: the definition (``motarfuse.ops.part_moments`` says what it computes)."""

from __future__ import annotations

import torch

from motarfuse.reference.precision import compute_dtype, softmax_or_zeros, without_autocast


def cell_centers(grid: tuple[int, int], *, device: torch.device | None = None, dtype: torch.dtype) -> torch.Tensor:
    """Centres u = (x, y) of a grid's cells in [-1, 1], row-major.

    Args:
        grid: (h, w). Cell (row, column) has its centre at ((2 column + 1) / w - 1, (2 row + 1) / h - 1): the centres of
            ``F.grid_sample`` with ``align_corners=False``.
        device, dtype: Of the result.

    Returns:
        (h*w, 2), x first.
    """
    height, width = grid
    x = (2 * torch.arange(width, device=device, dtype=dtype) + 1) / width - 1
    y = (2 * torch.arange(height, device=device, dtype=dtype) + 1) / height - 1
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).reshape(height * width, 2)


def part_moments(
    logits: torch.Tensor,
    affine: torch.Tensor | None = None,
    *,
    grid: tuple[int, int],
    temperature: float = 0.1,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """P = softmax(logits / temperature); keypoints sum P u, affines sum P a, confidence sum P^2.

    Args:
        logits: (B, K, N), N = h*w row-major; -inf hides a cell, and a row of hidden cells gives zeros.
        affine: (B, K, N, 2, 2), or None for the identity in every cell.
        grid: (h, w).
        temperature: Positive.
        dtype: Of the results; None is the dtype computed in (float32, or float64 if an input is).

    Returns:
        keypoints (B, K, 2), affines (B, K, 2, 2), confidence (B, K).
    """
    compute = compute_dtype(logits, affine)
    with without_autocast(logits.device):
        probability = softmax_or_zeros(logits.to(compute) / temperature)
        keypoints = probability @ cell_centers(grid, device=logits.device, dtype=compute)
        if affine is None:
            identity = torch.eye(2, device=logits.device, dtype=compute)
            affines = probability.sum(dim=-1)[..., None, None] * identity
        else:
            affines = torch.einsum("bkn,bknij->bkij", probability, affine.to(compute))
        confidence = probability.square().sum(dim=-1)
    if dtype is None:
        dtype = compute
    return keypoints.to(dtype), affines.to(dtype), confidence.to(dtype)
