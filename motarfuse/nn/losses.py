"""Identity classification and batch-hard triplet losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from motarfuse.nn.distributed import gather_features
from motarfuse.ops import linear_cross_entropy
from motarfuse.ops.batch_hard_triplet import METRICS, counted_batch_hard_triplet


class IdLoss(nn.Module):
    """Identity classification by a bias-free linear layer.

    loss = mean_b CE(W x_b, y_b), the target of the cross entropy being (1 - e) onehot(y) + e / C.

    Args:
        dim: Width D of the features.
        num_classes: Number C of training identities.
        label_smoothing: e in [0, 1).
        ignore_index: A label that is left out; a batch of such labels alone gives 0 with zero gradients.

    Shapes: features (B, D), labels (B,) integers in [0, C) -> scalar. Computed in fp32 from half features.

    Source: Szegedy et al. 2016 (smoothing); Luo et al. 2019 (bias-free, normal initialisation with deviation 0.001).
    """

    def __init__(self, dim: int, num_classes: int, label_smoothing: float = 0.1, *, ignore_index: int = -100) -> None:
        super().__init__()
        if dim < 1 or num_classes < 1:
            raise ValueError(f"dim and num_classes must be positive, got {dim} and {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.weight = nn.Parameter(torch.empty(num_classes, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.001)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Args: features (B, D); labels (B,) integers. Returns the mean loss, a scalar (fp32, or fp64 for fp64)."""
        return linear_cross_entropy(
            features, self.weight, labels, label_smoothing=self.label_smoothing, ignore_index=self.ignore_index
        )

    def extra_repr(self) -> str:
        classes, dim = self.weight.shape
        return f"dim={dim}, num_classes={classes}, label_smoothing={self.label_smoothing:g}"


class TripletLoss(nn.Module):
    """Batch-hard triplet loss: each anchor with its farthest positive and its nearest negative in the batch.

    d_ap = max over y_j = y_i, j != i of d(x_i, x_j),  d_an = min over y_j != y_i of d(x_i, x_j)
    loss = mean_i log(1 + exp(d_ap - d_an)) for margin None (soft margin), mean_i max(0, d_ap - d_an + margin) otherwise

    The mean runs over anchors that have a positive and a negative; without any, the loss is 0 with zero gradients. Ties
    take the lowest index. Euclidean d = sqrt(max(|x_i - x_j|^2, 1e-12)) with zero gradient below; cosine d = 1 - cos.

    Args:
        margin: None for the soft margin, a number >= 0 otherwise.
        metric: "euclidean" or "cosine".
        gather: Whether anchors look for their pairs among the features of all processes of a distributed training, see
            ``gather_features``. Every process then computes the same loss, of the joined batch.

    Attributes:
        skipped: Number of anchors of the last batch, the joined one under ``gather``, without a positive or without a
            negative, an int64 scalar on the features' device (a Python number would wait for the device).

    Shapes: features (B, D), labels (B,) -> scalar (fp32, or fp64 for fp64). O(B^2 D) time; O(B^2) memory, on a GPU with
    Triton O(B D). Only the chosen 2 B distances are differentiated. Deterministic.

    Source: Hermans et al. 2017, "In Defense of the Triplet Loss for Person Re-Identification".
    """

    skipped: Tensor

    def __init__(self, margin: float | None = None, metric: str = "euclidean", *, gather: bool = False) -> None:
        super().__init__()
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
        if margin is not None and not margin >= 0:
            raise ValueError(f"margin must be None (soft) or a number >= 0, got {margin!r}")
        self.margin = margin
        self.metric = metric
        self.gather = gather
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Args: features (B, D) floating; labels (B,) integers. Returns the loss, a scalar.

        Raises:
            TypeError: Labels that are no integers.
            ValueError: Shapes that do not fit each other.
        """
        if self.gather:
            features, labels = gather_features(features, labels)
        loss, self.skipped = counted_batch_hard_triplet(features, labels, margin=self.margin, metric=self.metric)
        return loss

    def extra_repr(self) -> str:
        margin = "soft" if self.margin is None else format(self.margin, "g")
        return f"margin={margin}, metric={self.metric}" + (", gather=True" if self.gather else "")
