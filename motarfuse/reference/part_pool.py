"""Mean token of each part: the definition (``motarfuse.ops.part_pool`` says what it computes)."""

from __future__ import annotations

import torch

from motarfuse.reference.precision import compute_dtype, without_autocast

# Added to a part's mass before it divides.
EPSILON = 1e-6


def part_pool(tokens: torch.Tensor, part_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """pooled_k = sum_u M_k x_u / (sum_u M_k + 1e-6), mass_k = mean_u M_k, M = softmax over channels.

    Args:
        tokens: (B, N, C).
        part_logits: (B, K + 1, N), channel 0 the background.

    Returns:
        pooled (B, K, C) of the tokens' dtype; mass (B, K) of the part logits' dtype.
    """
    compute = compute_dtype(tokens, part_logits)
    with without_autocast(tokens.device):
        masks = torch.softmax(part_logits.to(compute), dim=1)[:, 1:]
        total = masks.sum(dim=-1)
        pooled = masks @ tokens.to(compute) / (total + EPSILON)[..., None]
        mass = total / max(tokens.shape[1], 1)
    return pooled.to(tokens.dtype), mass.to(part_logits.dtype)
