"""Motion field of parts and the warp along it: the definition (``motarfuse.ops.motion_warp`` says what it computes)."""

from __future__ import annotations

import torch

from motarfuse.reference.part_moments import cell_centers
from motarfuse.reference.precision import compute_dtype, without_autocast

# Smaller determinants are taken as this one, so that no posture raises.
MIN_DETERMINANT = 1e-8


def motion_warp(
    source: torch.Tensor,
    source_keypoints: torch.Tensor,
    source_affines: torch.Tensor,
    target_keypoints: torch.Tensor,
    target_affines: torch.Tensor,
    part_logits: torch.Tensor,
    source_part_logits: torch.Tensor | None = None,
    *,
    grid: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """flow = M_0 u + sum_k M_k (p_k^s + J_k (u - p_k^t)), the source sampled there, and how far it was visible.

    Args:
        source: (B, N, C), N = h*w row-major.
        source_keypoints: (B, K, 2) p^s.
        source_affines: (B, K, 2, 2) A^s.
        target_keypoints: (B, K, 2) p^t.
        target_affines: (B, K, 2, 2) A^t; J = A^s (A^t)^-1.
        part_logits: (B, K + 1, N) of the target, channel 0 the background; M is their softmax over channels.
        source_part_logits: (B, K + 1, N) of the source, or None.
        grid: (h, w).

    Returns:
        warped (B, N, C) of the source's dtype; flow (B, N, 2) of the source keypoints' dtype; visibility (B, N) of the
        part logits' dtype.
    """
    compute = compute_dtype(source, source_keypoints, source_affines, target_keypoints, target_affines, part_logits)
    with without_autocast(source.device):
        cells = cell_centers(grid, device=source.device, dtype=compute)
        masks = torch.softmax(part_logits.to(compute), dim=1)
        jacobians = source_affines.to(compute) @ inverse_2x2(target_affines.to(compute))
        offsets = cells - target_keypoints.to(compute)[:, :, None]  # (B, K, N, 2)
        moved = source_keypoints.to(compute)[:, :, None] + offsets @ jacobians.transpose(-1, -2)
        flow = masks[:, 0, :, None] * cells + (masks[:, 1:, :, None] * moved).sum(dim=1)
        warped = sample_bilinear(source.to(compute), flow, grid)
        visibility = torch.ones_like(masks[:, 0])
        if source_part_logits is not None:
            source_foreground = 1 - torch.softmax(source_part_logits.to(compute), dim=1)[:, 0]
            visibility = 1 - source_foreground * masks[:, 0].detach()
    return warped.to(source.dtype), flow.to(source_keypoints.dtype), visibility.to(part_logits.dtype)


def inverse_2x2(matrices: torch.Tensor) -> torch.Tensor:
    """adj(A) / det(A) of (..., 2, 2), |det| being at least 1e-8 with its sign kept; never raises."""
    (a, b), (c, d) = (row.unbind(-1) for row in matrices.unbind(-2))
    det = a * d - b * c
    smallest = torch.full_like(det, MIN_DETERMINANT).copysign(det.detach())
    det = torch.where(det.abs() < MIN_DETERMINANT, smallest, det)
    adjugate = torch.stack((torch.stack((d, -b), -1), torch.stack((-c, a), -1)), -2)
    return adjugate / det[..., None, None]


def sample_bilinear(source: torch.Tensor, positions: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """``F.grid_sample(..., padding_mode="border", align_corners=False)`` on tokens, differentiable twice.

    Args:
        source: (B, N, C), N = h*w row-major.
        positions: (B, P, 2), x first, in [-1, 1]; beyond, the border's cell is read and positions take no gradient.
        grid: (h, w).

    Returns:
        (B, P, C).
    """
    height, width = grid
    x0, x1, x_weight = _neighbours(positions[..., 0], width)
    y0, y1, y_weight = _neighbours(positions[..., 1], height)

    def read(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return source.gather(1, (y * width + x)[..., None].expand(-1, -1, source.shape[2]))

    upper = read(y0, x0) * (1 - x_weight) + read(y0, x1) * x_weight
    lower = read(y1, x0) * (1 - x_weight) + read(y1, x1) * x_weight
    return upper * (1 - y_weight) + lower * y_weight


def _neighbours(position: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two cells around a coordinate in [-1, 1], and the share (..., 1) of the second."""
    at = ((position + 1) * size - 1) / 2
    # As grid_sample has it, a position on the border itself takes no gradient either.
    at = torch.where((at > 0) & (at < size - 1), at, at.detach().clamp(0, size - 1))
    first = at.detach().nan_to_num().floor().clamp(0, size - 1)
    return first.long(), (first + 1).clamp(max=size - 1).long(), (at - first)[..., None]
