"""Cross entropy of a linear classifier: the definition (``motarfuse.ops.linear_cross_entropy`` says what it is)."""

from __future__ import annotations

import torch

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
        logits = features.to(compute) @ weight.to(compute).T
        counted = labels != ignore_index
        target = logits.gather(1, labels.long().masked_fill(~counted, 0)[:, None])[:, 0]
        terms = logits.logsumexp(dim=1) - (1 - label_smoothing) * target - label_smoothing * logits.mean(dim=1)
        return torch.where(counted, terms, 0.0).sum() / counted.sum().clamp(min=1)
