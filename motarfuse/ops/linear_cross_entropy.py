"""Cross entropy of a linear classifier, without its logits in memory where a kernel runs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from motarfuse.ops.backends import AUTO, Backend, Operator, Request, supports_everything
from motarfuse.ops.kernels import KernelFamily, Kernels, Schema, differentiable_once, differentiating, transform_reasons
from motarfuse.ops.validation import (
    HALF_DTYPES,
    check_labels,
    check_number,
    check_precisions,
    check_rank,
    check_same_device,
    check_shape,
    check_tensor,
)
from motarfuse.reference import linear_cross_entropy as reference
from motarfuse.reference.precision import autocast_enabled, compute_dtype


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
        features: (B, D) float16, bfloat16, float32 or float64; any strides.
        weight: (C, D), C >= 1; any strides, and any of these dtypes but float64 beside others. Half features beside a
            float32 weight, which autocast leaves, are multiplied as half numbers at float32's precision in
            ``"triton"``; other mixed dtypes as float32 (three TF32 products, slower).
        labels: (B,) integers in [0, C), or ``ignore_index``. They are not checked, which would wait for the device: any
            other label makes the loss and all gradients that depend on its row NaN in ``"triton"``, and is whatever
            PyTorch's ``gather`` makes of it in ``"reference"``: an error on a CPU, an assertion of the device on a GPU.
        label_smoothing: e in [0, 1].
        ignore_index: A label that is left out of the mean.
        impl: ``"auto"``, or the backend that must run: ``"triton"``, ``"cpu"`` or ``"reference"``.

    Returns:
        A scalar, float32 (float64 from float64); products of half types are summed in float32. 0 with zero gradients
        when no label counts, where PyTorch's function gives NaN.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, float64 beside others, labels that are no integers.
        ValueError: Wrong rank or shape, no class, tensors on different devices, a smoothing outside [0, 1], an unknown
            ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to features and weight, where they require one: dz_b = (softmax(z_b) - (1 - e) onehot(y) - e / C) / n, n
    the number of labels that count, dfeatures = dz weight, dweight = dz^T features. The Triton kernels round n dz once
    to the half type that features and weight share (to features' half type beside a float32 weight, for dfeatures
    alone: dweight has float32's precision); they are differentiable once and raise on the second derivative.
    The reference is differentiable any number of times, and is what ``impl="auto"`` takes under ``torch.func``.

    Deterministic: every sum has a fixed order; two runs are bitwise equal.

    Memory: triton stores no logits. The forward takes 16 bytes a row and range of classes (at most 264 ranges) and the
    backward, where a gradient is summed over several tiles and is no float32 or the sum is divided among programs,
    float32 sums of at most that gradient's numbers, or 264 blocks of 128 rows of it. The others store the logits.

    Cost: 2 B C D FLOP forward, 4 B C D for each gradient, which makes the logits again (beside a float32 weight 2 to 3
    times these in products of half numbers); the weight is read once
    forward and once for its own gradient where B <= 128, and about twice for features' gradient.

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


def _fake_forward(
    features: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, label_smoothing: float, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    compute = compute_dtype(features)
    return (
        features.new_empty((), dtype=compute),
        features.new_empty((), dtype=compute),
        features.new_empty((2, features.shape[0]), dtype=compute),
    )


def _fake_backward(
    grad_loss: torch.Tensor,
    features: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    count: torch.Tensor,
    statistics: torch.Tensor,
    label_smoothing: float,
    needs_features: bool,
    needs_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.empty_like(features) if needs_features else features.new_empty((0,)),
        torch.empty_like(weight) if needs_weight else weight.new_empty((0,)),
    )


class _KernelFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        features: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        label_smoothing: float,
        ignore_index: int,
    ) -> torch.Tensor:
        loss, count, statistics = kernels.forward(features, weight, labels, label_smoothing, ignore_index)
        ctx.save_for_backward(features, weight, labels, count, statistics)
        ctx.kernels, ctx.label_smoothing = kernels, label_smoothing
        result: torch.Tensor = loss
        return result

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needs_features, needs_weight = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        grad_features, grad_weight = differentiable_once(
            "linear_cross_entropy",
            ctx.kernels.backward,
            grad_loss,
            *ctx.saved_tensors,
            ctx.label_smoothing,
            needs_features,
            needs_weight,
        )
        return None, grad_features if needs_features else None, grad_weight if needs_weight else None, None, None, None


def _run_kernels(
    kernels: Kernels,
    features: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    label_smoothing: float,
    ignore_index: int,
) -> torch.Tensor:
    arguments = features, weight, labels, label_smoothing, ignore_index
    if differentiating(features.requires_grad or weight.requires_grad):
        return _KernelFunction.apply(kernels, *arguments)
    result: torch.Tensor = kernels.forward(*arguments)[0]
    return result


def _run_on_cpu(
    features: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, *, label_smoothing: float, ignore_index: int
) -> torch.Tensor:
    """The definition in two calls where a label counts, which the result itself tells: reading it costs a CPU nothing.

    The definition's own sum, count and quotient are four calls more, an eighth of a small classifier's forward.
    """
    logits = F.linear(features, weight)
    loss = F.cross_entropy(logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing)
    if loss.isnan() and not bool((labels != ignore_index).any()):
        return reference(features, weight, labels, label_smoothing=label_smoothing, ignore_index=ignore_index)
    return loss


def _has_values(tensor: torch.Tensor) -> bool:
    """Whether a number can be read of a tensor, and nothing records what is done."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return plain and not torch.jit.is_tracing() and torch._C._len_torch_dispatch_stack() == 0


def _not_for_cpu(request: Request) -> list[str]:
    reasons = transform_reasons()
    if request.device.type != "cpu":
        reasons.append(f"it takes cpu tensors, got {request.device.type}")
    features, weight, labels = (request.tensors[name] for name in ("features", "weight", "labels"))
    assert features is not None
    assert weight is not None
    assert labels is not None
    if features.dtype in HALF_DTYPES or weight.dtype in HALF_DTYPES or labels.dtype != torch.int64:
        reasons.append("it computes in the dtype of features and weight, and takes int64 labels")
    if torch.compiler.is_compiling() or not _has_values(features):
        reasons.append("a graph that is traced, and a tensor without values, cannot be asked for one")
    elif autocast_enabled(request.device):
        reasons.append("autocast would round the products")
    return reasons


def _example(device: torch.device) -> Request:
    features, weight = torch.empty(64, 768, device="meta"), torch.empty(751, 768, device="meta")
    labels = torch.empty(64, dtype=torch.int64, device="meta")
    tensors = {"features": features, "weight": weight, "labels": labels}
    return Request(device, tensors, {"label_smoothing": 0.1, "ignore_index": -100})


KERNELS = KernelFamily(
    "linear_cross_entropy",
    forward=Schema(
        "(Tensor features, Tensor weight, Tensor labels, float label_smoothing, int ignore_index) "
        "-> (Tensor, Tensor, Tensor)",
        _fake_forward,
    ),
    backward=Schema(
        "(Tensor grad_loss, Tensor features, Tensor weight, Tensor labels, Tensor count, Tensor statistics, "
        "float label_smoothing, bool needs_features, bool needs_weight) -> (Tensor, Tensor)",
        _fake_backward,
    ),
    run=_run_kernels,
)


def _load_triton() -> Any:  # a statement, which torch.compile can trace
    from motarfuse.kernels import linear_cross_entropy

    return linear_cross_entropy


OPERATOR = Operator(
    "linear_cross_entropy",
    _example,
    backends=(
        KERNELS.triton(_load_triton),
        Backend("cpu", _run_on_cpu, _not_for_cpu, auto_devices=("cpu",)),
        Backend("reference", reference, supports_everything),
    ),
)
