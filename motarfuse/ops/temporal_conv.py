"""Depthwise convolution over the frames of a clip, with GELU."""

from __future__ import annotations

import torch

from motarfuse.ops.backends import AUTO, Backend, Operator, Request, supports_everything
from motarfuse.ops.validation import (
    check_choice,
    check_precisions,
    check_rank,
    check_same_device,
    check_shape,
    check_tensor,
)
from motarfuse.reference import temporal_conv as reference

MISSING = ("hold", "zero")


def temporal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    frame_mask: torch.Tensor | None = None,
    *,
    missing: str = "hold",
    impl: str = AUTO,
) -> torch.Tensor:
    """Each token sees the same token of the neighbouring frames: GELU(bias + sum_j weight_j x_{t + j}).

    j runs from -(k - 1) / 2 to (k - 1) / 2, GELU is the exact one (erf), the length stays. With ``missing="hold"`` a
    neighbour outside the clip or masked reads as x_t itself, so that a clip of equal frames gives in each frame what
    its single frame gives, wherever it begins, ends or has holes.

    Args:
        x: (B, T, N, C) float16, bfloat16, float32 or float64.
        weight: (C, k), k odd; column (k - 1) / 2 is the frame itself.
        bias: (C,), or None for 0.
        frame_mask: (B, T) booleans, False for a frame that is not there (padding); None: all are. What a masked frame
            holds is never read, and it comes out as zero.
        missing: ``"hold"`` or ``"zero"``, what a neighbour that is not there reads as.
        impl: ``"auto"``, or the backend that must run: ``"reference"``.

    Returns:
        (B, T, N, C) of x's dtype, computed in float32 from half types, which may be mixed with float32.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, float64 beside others, a mask that is not boolean.
        ValueError: Wrong rank or shape, an even k, tensors on different devices, an unknown ``missing`` or ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to x, weight and bias, where they require one; masked frames take none.

    Source: depthwise temporal convolution in adapters: Pan et al. 2022 (ST-Adapter).
    """
    check_tensor("x", x)
    check_tensor("weight", weight)
    check_rank("x", x, "(B, T, N, C)")
    check_rank("weight", weight, "(C, k)")
    batch, frames, _, channels = x.shape
    width = weight.shape[1]
    check_shape("weight", weight, "(C, k)", (channels, width), "x")
    if width % 2 == 0:
        raise ValueError(f"weight must be (C, k) with k odd, got shape {tuple(weight.shape)}")
    if bias is not None:
        check_tensor("bias", bias)
        check_shape("bias", bias, "(C,)", (channels,), "x")
    if frame_mask is not None:
        check_tensor("frame_mask", frame_mask, (torch.bool,))
        check_shape("frame_mask", frame_mask, "(B, T)", (batch, frames), "x")
    check_choice("missing", missing, MISSING)
    tensors = {"x": x, "weight": weight, "bias": bias}
    check_precisions(tensors)
    tensors["frame_mask"] = frame_mask
    check_same_device(tensors)
    backend = OPERATOR.select(Request(x.device, tensors, {"missing": missing}), impl)
    return backend.run(x, weight, bias, frame_mask, missing=missing)


def _example(device: torch.device) -> Request:
    tensors = {"x": torch.empty(16, 8, 129, 192, device="meta"), "weight": torch.empty(192, 3, device="meta")}
    return Request(device, {**tensors, "bias": None, "frame_mask": None}, {"missing": "hold"})


OPERATOR = Operator("temporal_conv", _example, backends=(Backend("reference", reference, supports_everything),))
