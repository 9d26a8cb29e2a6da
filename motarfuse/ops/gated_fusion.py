"""Gated addition of motion to appearance, with layer norm."""

from __future__ import annotations

import torch

from motarfuse.ops.backends import AUTO, Backend, Operator, Request, supports_everything
from motarfuse.ops.validation import (
    check_positive,
    check_precisions,
    check_same_device,
    check_shape,
    check_tensor,
    check_tokens,
)
from motarfuse.reference import gated_fusion as reference


def gated_fusion(
    x: torch.Tensor,
    motion: torch.Tensor,
    gate_logits: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-6,
    *,
    impl: str = AUTO,
) -> torch.Tensor:
    """LayerNorm(x + sigmoid(gate_logits) motion): how much motion enters, each channel decides for itself.

    Args:
        x: (..., C) float16, bfloat16, float32 or float64, at least two dimensions.
        motion: The shape of x.
        gate_logits: The shape of x.
        weight: (C,).
        bias: (C,).
        eps: Finite and greater than 0.
        impl: ``"auto"``, or the backend that must run: ``"reference"``.

    Returns:
        The shape and dtype of x, computed in float32 from half types, which may be mixed with float32.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, float64 beside others.
        ValueError: Wrong rank or shape, tensors on different devices, an eps that is not positive, an unknown ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to all tensors, where they require one. With dsum of the layer norm and s = sigmoid(gate_logits):
    dx = dsum, dmotion = s dsum, dgate_logits = s (1 - s) motion dsum.

    Source: the gate is this project's reading of the fusion of MOTAR-FUSE (Ling et al. 2025).
    """
    check_tokens("x", x)
    tensors = {"motion": motion, "gate_logits": gate_logits, "weight": weight, "bias": bias}
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    for name in ("motion", "gate_logits"):
        if tensors[name].shape != x.shape:
            raise ValueError(f"{name} must have the shape of x, {tuple(x.shape)}; got {tuple(tensors[name].shape)}")
    for name in ("weight", "bias"):
        check_shape(name, tensors[name], "(C,)", x.shape[-1:], "x")
    eps = check_positive("eps", eps)
    everything: dict[str, torch.Tensor | None] = {"x": x, **tensors}
    check_precisions(everything)
    check_same_device(everything)
    backend = OPERATOR.select(Request(x.device, everything, {"eps": eps}), impl)
    return backend.run(x, motion, gate_logits, weight, bias, eps)


def _example(device: torch.device) -> Request:
    tokens, vector = torch.empty(64, 128, 768, device="meta"), torch.empty(768, device="meta")
    tensors = {"x": tokens, "motion": tokens, "gate_logits": tokens, "weight": vector, "bias": vector}
    return Request(device, tensors, {"eps": 1e-6})


OPERATOR = Operator("gated_fusion", _example, backends=(Backend("reference", reference, supports_everything),))
