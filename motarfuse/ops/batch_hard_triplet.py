"""Batch-hard triplet loss, without the distance matrix in memory where a kernel runs."""

from __future__ import annotations

import torch

from motarfuse.ops.backends import AUTO, Backend, Operator, Request, supports_everything
from motarfuse.ops.validation import (
    check_choice,
    check_labels,
    check_number,
    check_rank,
    check_same_device,
    check_tensor,
)
from motarfuse.reference import batch_hard_triplet as reference

METRICS = ("euclidean", "cosine")


def batch_hard_triplet(
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    margin: float | None = None,
    metric: str = "euclidean",
    impl: str = AUTO,
) -> torch.Tensor:
    """Each anchor with its farthest positive and its nearest negative in the batch.

    d_ap = max over y_j = y_i, j != i of d(x_i, x_j),  d_an = min over y_j != y_i of d(x_i, x_j)
    loss = mean_i log(1 + exp(d_ap - d_an)) for margin None (soft margin), mean_i max(0, d_ap - d_an + margin) otherwise

    The mean runs over anchors that have a positive and a negative; without any, the loss is 0 with zero gradients. Ties
    take the lowest index. Euclidean d = sqrt(max(|x_i - x_j|^2, 1e-12)) with zero gradient below; cosine d = 1 - cos.

    Args:
        features: (B, D) float16, bfloat16, float32 or float64.
        labels: (B,) integers.
        margin: None for the soft margin, a finite number >= 0 otherwise.
        metric: ``"euclidean"`` or ``"cosine"``.
        impl: ``"auto"``, or the backend that must run: ``"reference"``.

    Returns:
        A scalar, float32 (float64 from float64).

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, labels that are no integers.
        ValueError: Wrong rank or shape, tensors on different devices, a negative margin, an unknown ``metric`` or
            ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to the features, through the 2 B chosen distances alone.

    Source: Hermans et al. 2017, "In Defense of the Triplet Loss for Person Re-Identification".
    """
    check_tensor("features", features)
    check_rank("features", features, "(B, D)")
    check_labels("labels", labels, features.shape[0], "features")
    check_choice("metric", metric, METRICS)
    if margin is not None:
        check_number("margin", margin)
        if margin < 0:
            raise ValueError(f"margin must be None (soft) or a number >= 0, got {margin!r}")
    tensors: dict[str, torch.Tensor | None] = {"features": features, "labels": labels}
    check_same_device(tensors)
    options = {"margin": margin, "metric": metric}
    backend = OPERATOR.select(Request(features.device, tensors, options), impl)
    return backend.run(features, labels, **options)


def _example(device: torch.device) -> Request:
    features, labels = torch.empty(64, 768, device="meta"), torch.empty(64, dtype=torch.int64, device="meta")
    return Request(device, {"features": features, "labels": labels}, {"margin": None, "metric": "euclidean"})


OPERATOR = Operator("batch_hard_triplet", _example, backends=(Backend("reference", reference, supports_everything),))
