"""The loss of part features: a triplet on the visibility-weighted part distance and a classifier of all parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motarfuse.nn.losses import IdLoss

_EPSILON = 1e-6


def part_distances(features: Tensor, visibility: Tensor) -> Tensor:
    """(B, B) visibility-weighted part distances, sum_l v_il v_jl (1 - cos(f_il, f_jl)) / (sum_l v_il v_jl + 1e-6).

    Two matrix products; no (B, B, L) tensor is made. Half types are computed, and returned, in float32.

    Args:
        features: (B, L, D).
        visibility: (B, L) in [0, 1].
    """
    if features.dtype != torch.float64:
        features, visibility = features.float(), visibility.float()
    weighted = (visibility[..., None] * F.normalize(features, dim=-1)).flatten(1)
    total = visibility @ visibility.T
    return (total - weighted @ weighted.T) / (total + _EPSILON)


class PartLoss(nn.Module):
    """Batch-hard triplet (soft margin) on the part distance + cross entropy on the concatenated parts.

    With e the part embeddings, before a BNNeck, and f the part features after it:

    d_ij = sum_l v_il v_jl (1 - cos(e_il, e_jl)) / sum_l v_il v_jl
    L_tri = mean_i log(1 + exp(max over positives d - min over negatives d))
    L_id = CE(W [v_1 f_1; ...; v_L f_L] / mean_l v_l)

    The triplet's mean runs over anchors with a positive and a negative, ties take the lowest index. In L_id what is
    hidden does not decide. Visibility takes no gradient from either: hiding a part must not pay.

    Args:
        dim: Width D of a part's feature.
        num_parts: L.
        num_classes: Training identities; None leaves the classifier out.
        label_smoothing: Of the cross entropy.

    Shapes: embeddings and features (B, L, D), visibility (B, L), labels (B,) -> scalar.

    Source: this project's reading of the part features of MOTAR-FUSE (Ling et al. 2025).
    """

    def __init__(self, dim: int, num_parts: int, num_classes: int | None, *, label_smoothing: float = 0.1) -> None:
        super().__init__()
        self.dim, self.num_parts = dim, num_parts
        self.identity = IdLoss(dim * num_parts, num_classes, label_smoothing) if num_classes else None

    def forward(self, embeddings: Tensor, features: Tensor, visibility: Tensor, labels: Tensor) -> Tensor:
        """Args: embeddings, features (B, L, D); visibility (B, L); labels (B,). Returns the loss, a scalar."""
        visibility = visibility.detach()
        distances = part_distances(embeddings, visibility)
        same = labels[:, None] == labels
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        positive, negative = same & ~itself, ~same
        valid = positive.any(1) & negative.any(1)
        farthest = distances.detach().masked_fill(~positive, -torch.inf).argmax(1, keepdim=True)
        nearest = distances.detach().masked_fill(~negative, torch.inf).argmin(1, keepdim=True)
        gap = (distances.gather(1, farthest) - distances.gather(1, nearest)).squeeze(1)
        # where, not a product with the mask: an anchor without a pair has a gap of no meaning.
        loss = torch.where(valid, F.softplus(gap), 0.0).sum() / valid.sum().clamp(min=1)
        if self.identity is None:
            return loss
        # Over its mean: visibilities near 0.2 as they are cost a third of the parts' mAP after 150 steps.
        share = visibility / (visibility.mean(1, keepdim=True) + _EPSILON)
        return loss + self.identity((share[..., None] * features).flatten(1), labels)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_parts={self.num_parts}"
