"""Cross entropy of a linear classifier: the definition (``motarfuse.ops.linear_cross_entropy`` says what it is)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from motarfuse.reference.precision import compute_dtype, without_autocast


def linear_cross_entropy(
    features: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> torch.Tensor:
    """mean_b [log sum_c exp z_bc - (1 - e) z_by - e mean_c z_bc], z = features weight^T, e the smoothing.

    Args:
        features: (B, D).
        weight: (C, D).
        labels: (B,) integers in [0, C), or ``ignore_index``.
        label_smoothing: e in [0, 1].
        ignore_index: A label that is left out of the mean.

    Returns:
        A scalar of the dtype computed in; 0 when every label is left out.
    """
    compute = compute_dtype(features, weight)
    with without_autocast(features.device):
        logits = F.linear(features.to(compute), weight.to(compute))
        labels = labels.long()  # before the comparison: in eight bits 156 is -100
        total = F.cross_entropy(
            logits, labels, ignore_index=ignore_index, reduction="sum", label_smoothing=label_smoothing
        )
        return total / (labels != ignore_index).sum().clamp(min=1)
