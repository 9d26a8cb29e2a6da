"""Cross entropy of a linear classifier, without its logits in memory where a kernel runs."""

from __future__ import annotations

import torch

from motarfuse.ops.backends import AUTO, Backend, Operator, Request, supports_everything
from motarfuse.ops.validation import (
    check_labels,
    check_number,
    check_precisions,
    check_rank,
    check_same_device,
    check_shape,
    check_tensor,
)
from motarfuse.reference import linear_cross_entropy as reference


def linear_cross_entropy(
    features: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    impl: str = AUTO,
) -> torch.Tensor:
    """``F.cross_entropy(features @ weight.T, labels, label_smoothing=e)``, the mean over labels that count.

    loss = mean_b [log sum_c exp z_bc - (1 - e) z_by - e mean_c z_bc], z = features weight^T, y the label of b

    Args:
        features: (B, D) float16, bfloat16, float32 or float64.
        weight: (C, D), C >= 1.
        labels: (B,) integers in [0, C), or ``ignore_index``. They are not checked, which would wait for the device.
        label_smoothing: e in [0, 1].
        ignore_index: A label that is left out of the mean.
        impl: ``"auto"``, or the backend that must run: ``"reference"``.

    Returns:
        A scalar, float32 (float64 from float64); products of half types are summed in float32. 0 with zero gradients
        when no label counts, where PyTorch's function gives NaN.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, float64 beside others, labels that are no integers.
        ValueError: Wrong rank or shape, no class, tensors on different devices, a smoothing outside [0, 1], an unknown
            ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to features and weight, where they require one: dz_b = (softmax(z_b) - (1 - e) onehot(y) - e / C) / n, n
    the number of labels that count, dfeatures = dz weight, dweight = dz^T features.

    Source: Szegedy et al. 2016 (smoothing); Wijmans et al. 2024 (Cut Cross-Entropy) avoid the logits in the same way.
    """
    check_tensor("features", features)
    check_tensor("weight", weight)
    check_rank("features", features, "(B, D)")
    check_rank("weight", weight, "(C, D)")
    check_shape("weight", weight, "(C, D)", (weight.shape[0], features.shape[1]), "features")
    if weight.shape[0] < 1:
        raise ValueError("weight must have at least one row, a class")
    check_labels("labels", labels, features.shape[0], "features")
    check_number("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    floats: dict[str, torch.Tensor | None] = {"features": features, "weight": weight}
    check_precisions(floats)
    tensors = {**floats, "labels": labels}
    check_same_device(tensors)
    options = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
    backend = OPERATOR.select(Request(features.device, tensors, options), impl)
    return backend.run(features, weight, labels, **options)


def _example(device: torch.device) -> Request:
    features, weight = torch.empty(64, 768, device="meta"), torch.empty(751, 768, device="meta")
    labels = torch.empty(64, dtype=torch.int64, device="meta")
    tensors = {"features": features, "weight": weight, "labels": labels}
    return Request(device, tensors, {"label_smoothing": 0.1, "ignore_index": -100})


OPERATOR = Operator("linear_cross_entropy", _example, backends=(Backend("reference", reference, supports_everything),))
