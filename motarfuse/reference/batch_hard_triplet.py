"""Batch-hard triplet loss: the definition (``motarfuse.ops.batch_hard_triplet`` says what it computes)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from motarfuse.reference.precision import compute_dtype, without_autocast

# Below this squared distance the square root's gradient, 1 / (2 d), is taken as zero instead of growing without bound.
MIN_SQUARED_DISTANCE = 1e-12


def batch_hard_triplet(
    features: torch.Tensor, labels: torch.Tensor, *, margin: float | None = None, metric: str = "euclidean"
) -> torch.Tensor:
    """mean_i log(1 + exp(d_ap - d_an)), or of max(0, d_ap - d_an + margin), over anchors that have both.

    Args:
        features: (B, D).
        labels: (B,) integers.
        margin: None for the soft margin.
        metric: ``"euclidean"``, d = sqrt(max(|a - b|^2, 1e-12)), or ``"cosine"``, d = 1 - cos.

    Returns:
        A scalar of the dtype computed in; 0 without any such anchor.
    """
    return counted(features, labels, margin=margin, metric=metric)[0]


def counted(
    features: torch.Tensor, labels: torch.Tensor, *, margin: float | None = None, metric: str = "euclidean"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and how many anchors lack a positive or a negative, an int64 scalar."""
    with without_autocast(features.device):
        features = features.to(compute_dtype(features))
        if features.shape[0] == 0:
            return features.sum(), labels.new_zeros((), dtype=torch.int64)
        if metric == "cosine":
            features = F.normalize(features, dim=1)
        positive, negative, valid = hardest(features.detach(), labels, metric)
        gap = _distance(features, features[positive], metric) - _distance(features, features[negative], metric)
        terms = F.softplus(gap) if margin is None else F.relu(gap + margin)
        count = valid.sum()
        return torch.where(valid, terms, 0.0).sum() / count.clamp(min=1), len(labels) - count


def hardest(
    features: torch.Tensor, labels: torch.Tensor, metric: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Indices (B,) of each anchor's farthest positive and nearest negative, and which anchors have both.

    Cosine takes normalised features, whose length is 1, or less where it was below 1e-12.
    """
    distance = _distances(features)
    if metric == "cosine":
        # 1 - ab = (|a - b|^2 + 1 - |a|^2 + 1 - |b|^2) / 2, where a unit vector's 1 - |a|^2 would be rounding alone.
        lacking = 1 - features.square().sum(1)
        lacking = torch.where(lacking > 1e-3, lacking, 0.0)
        distance = 0.5 * (distance.square() + (lacking[:, None] + lacking[None, :]))
        zero = ~features.any(1)  # cosine 0 with all, exactly
        distance = distance.masked_fill(zero[:, None] | zero[None, :], 1.0)
    same = labels[:, None] == labels[None, :]
    is_positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = distance.masked_fill(~is_positive, -torch.inf).argmax(1)
    # Distances that overflow must stay below those of the same identity: no finite one is as large as this.
    largest = torch.finfo(distance.dtype).max
    negative = distance.clamp(max=largest).masked_fill(same, torch.inf).argmin(1)
    return positive, negative, is_positive.any(1) & ~same.all(1)


def _distances(features: torch.Tensor) -> torch.Tensor:
    """(B, B): of all pairs; those of the upper triangle, mirrored."""
    # Differences, not a product of matrices, whose rounding depends on the place and breaks the ties of duplicates.
    pairs = torch.pdist(features)
    later = torch.ones(len(features), len(features), dtype=torch.bool, device=features.device).triu(1)
    upper = torch.zeros(later.shape, dtype=features.dtype, device=features.device).masked_scatter(later, pairs)
    return upper + upper.t()


def _distance(anchors: torch.Tensor, others: torch.Tensor, metric: str) -> torch.Tensor:
    if metric == "cosine":
        return 1 - (anchors * others).sum(1)
    return (anchors - others).square().sum(1).clamp(min=MIN_SQUARED_DISTANCE).sqrt()
