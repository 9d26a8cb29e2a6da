"""Features of body parts from tokens and part masks."""

from __future__ import annotations

from torch import Tensor, nn

from motarfuse import ops
from motarfuse.ops import PartPool as PooledParts


class PartPool(nn.Module):
    """Mean token of each part, weighted by its mask: pooled_k = sum_u M_k x_u / (sum_u M_k + 1e-6).

    Shapes: tokens (B, N, C), part logits (B, K + 1, N), channel 0 the background -> pooled (B, K, C), mass (B, K), the
    share of the cells that a part owns.

    See `motarfuse.ops.part_pool`.
    """

    def forward(self, tokens: Tensor, part_logits: Tensor) -> PooledParts:
        """Args: tokens (B, N, C); part_logits (B, K + 1, N). Returns (pooled, mass)."""
        return ops.part_pool(tokens, part_logits)
