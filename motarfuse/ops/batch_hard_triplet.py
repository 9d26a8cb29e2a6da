"""Batch-hard triplet loss, without the distance matrix in memory where a kernel runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from motarfuse.ops.backends import AUTO, Backend, Operator, Request, supports_everything
from motarfuse.ops.kernels import (
    KernelFamily,
    Kernels,
    Schema,
    differentiable_once,
    differentiating,
    keep_missing_gradients,
)
from motarfuse.ops.validation import (
    FLOAT_DTYPES,
    INTEGER_DTYPES,
    check_choice,
    check_labels,
    check_number,
    check_rank,
    check_same_device,
    check_tensor,
)
from motarfuse.reference.batch_hard_triplet import counted as reference
from motarfuse.reference.precision import compute_dtype

METRICS = ("euclidean", "cosine")


class CountedTriplet(NamedTuple):
    """Results of ``counted_batch_hard_triplet``: loss, a scalar; skipped, an int64 scalar without a gradient."""

    loss: torch.Tensor
    skipped: torch.Tensor


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
        features: (B, D) float16, bfloat16, float32 or float64; any strides.
        labels: (B,) integers.
        margin: None for the soft margin, a finite number >= 0 otherwise.
        metric: ``"euclidean"`` or ``"cosine"``.
        impl: ``"auto"``, or the backend that must run: ``"cpu"``, ``"triton"`` or ``"reference"``.

    Returns:
        A scalar, float32 (float64 from float64).

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, labels that are no integers.
        ValueError: Wrong rank or shape, tensors on different devices, a negative margin, an unknown ``metric`` or
            ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to the features, through the 2 B chosen distances alone. Compiled kernels are differentiable once and
    raise on the second derivative; the reference is differentiable any number of times.

    Deterministic: every sum has a fixed order; two runs are bitwise equal.

    Cost: B^2 D differences, squared and added (half of them on the CPU, each pair once), and O(B D) memory in kernels;
    the reference stores (B, B) matrices. The backward reads each chosen pair twice.

    Source: Hermans et al. 2017, "In Defense of the Triplet Loss for Person Re-Identification".
    """
    return counted_batch_hard_triplet(features, labels, margin=margin, metric=metric, impl=impl).loss


def counted_batch_hard_triplet(
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    margin: float | None = None,
    metric: str = "euclidean",
    impl: str = AUTO,
) -> CountedTriplet:
    """``batch_hard_triplet`` and the number of anchors without a positive or without a negative, from the same pass.

    Args:
        features, labels, margin, metric, impl: As of ``batch_hard_triplet``, which raises the same errors.

    Returns:
        loss, a scalar; skipped, an int64 scalar on the features' device.
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
    return CountedTriplet(*backend.run(features, labels, **options))


def _fake_forward(
    features: torch.Tensor, labels: torch.Tensor, margin: float | None, metric: str, save_statistics: bool
) -> tuple[torch.Tensor, ...]:
    batch, compute = features.shape[0], compute_dtype(features)
    pairs = (2, batch) if save_statistics else (0,)
    rows = (batch,) if metric == "cosine" else (0,)
    return (
        features.new_empty((), dtype=compute),
        features.new_empty((), dtype=torch.int64),
        features.new_empty(pairs, dtype=torch.int32),
        features.new_empty(pairs, dtype=compute),
        features.new_empty(pairs, dtype=compute),
        features.new_empty(rows, dtype=compute),
        features.new_empty(rows, dtype=compute),
    )


def _fake_backward(grad_loss: torch.Tensor, features: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(features)


class _KernelFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, features: torch.Tensor, labels: torch.Tensor, margin: float | None, metric: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss, skipped, *statistics = kernels.forward(features, labels, margin, metric, True)
        ctx.save_for_backward(features, skipped, *statistics)
        ctx.kernels, ctx.metric = kernels, metric
        ctx.mark_non_differentiable(skipped)
        keep_missing_gradients(ctx)
        return loss, skipped

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor | None, _: Any) -> tuple[torch.Tensor | None, ...]:
        if grad_loss is None:
            return None, None, None, None, None
        grad = differentiable_once(
            "batch_hard_triplet", ctx.kernels.backward, grad_loss, *ctx.saved_tensors, ctx.metric
        )
        return None, grad, None, None, None


def _run_kernels(
    kernels: Kernels, features: torch.Tensor, labels: torch.Tensor, *, margin: float | None, metric: str
) -> tuple[torch.Tensor, torch.Tensor]:
    if not differentiating(features.requires_grad):
        loss, skipped, *_ = kernels.forward(features, labels, margin, metric, False)
        return loss, skipped
    return _KernelFunction.apply(kernels, features, labels, margin, metric)


def _example(device: torch.device) -> Request:
    features, labels = torch.empty(64, 768, device="meta"), torch.empty(64, dtype=torch.int64, device="meta")
    return Request(device, {"features": features, "labels": labels}, {"margin": None, "metric": "euclidean"})


KERNELS = KernelFamily(
    "batch_hard_triplet",
    forward=Schema(
        "(Tensor features, Tensor labels, float? margin, str metric, bool save_statistics) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _fake_forward,
    ),
    backward=Schema(
        "(Tensor grad_loss, Tensor features, Tensor skipped, Tensor chosen, Tensor distances, Tensor weights, "
        "Tensor inverse, Tensor short, str metric) -> Tensor",
        _fake_backward,
    ),
    run=_run_kernels,
)


def _load_triton() -> Any:  # a statement, which torch.compile can trace
    from motarfuse.kernels import batch_hard_triplet

    return batch_hard_triplet


OPERATOR = Operator(
    "batch_hard_triplet",
    _example,
    backends=(
        KERNELS.native("cpu", dtypes=FLOAT_DTYPES + INTEGER_DTYPES),
        KERNELS.triton(_load_triton),
        Backend("reference", reference, supports_everything),
    ),
)
