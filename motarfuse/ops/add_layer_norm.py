"""Residual addition and layer norm."""

from __future__ import annotations

from typing import NamedTuple

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
from motarfuse.reference import add_layer_norm as reference


class AddLayerNorm(NamedTuple):
    """Results of ``add_layer_norm``: normed and sum, both (B, ..., C)."""

    normed: torch.Tensor
    sum: torch.Tensor


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-6,
    *,
    layer_scale: torch.Tensor | None = None,
    sample_scale: torch.Tensor | None = None,
    impl: str = AUTO,
) -> AddLayerNorm:
    """Adds a branch to the residual stream and normalises the sum: both are needed by the next block.

    sum = residual + sample_scale layer_scale x
    normed = (sum - mean) / sqrt(var + eps) weight + bias, mean and (biased) variance over the last dimension

    Args:
        x: (B, ..., C) float16, bfloat16, float32 or float64, at least two dimensions.
        residual: (B, ..., C), often float32 beside a half branch.
        weight: (C,).
        bias: (C,).
        eps: Finite and greater than 0.
        layer_scale: (C,), or None for 1.
        sample_scale: (B,), or None for 1: zero or 1 / (1 - p) for stochastic depth.
        impl: ``"auto"``, or the backend that must run: ``"reference"``.

    Returns:
        normed of x's dtype, which the next matrix product takes; sum of the residual's dtype; computed in float32 from
        half types, which may be mixed with float32.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, float64 beside others.
        ValueError: Wrong rank or shape, tensors on different devices, an eps that is not positive, an unknown ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to all tensors, where they require one. With y the normalised sum before weight and bias, g = dnormed
    weight and s the standard deviation: dsum_total = dsum + (g - mean g - y mean(g y)) / s, dresidual = dsum_total,
    dx = sample_scale layer_scale dsum_total.

    Source: Ba et al. 2016 (layer norm); Touvron et al. 2021 (layer scale); Huang et al. 2016 (stochastic depth).
    """
    check_tokens("x", x)
    required = {"residual": residual, "weight": weight, "bias": bias}
    tensors = {**required, "layer_scale": layer_scale, "sample_scale": sample_scale}
    for name, tensor in tensors.items():
        if tensor is not None or name in required:
            check_tensor(name, tensor)
    if residual.shape != x.shape:
        raise ValueError(f"residual must have the shape of x, {tuple(x.shape)}; got {tuple(residual.shape)}")
    for name in ("weight", "bias", "layer_scale"):
        vector = tensors[name]
        if vector is not None:
            check_shape(name, vector, "(C,)", x.shape[-1:], "x")
    if sample_scale is not None:
        check_shape("sample_scale", sample_scale, "(B,)", x.shape[:1], "x")
    eps = check_positive("eps", eps)
    everything = {"x": x, **tensors}
    check_precisions(everything)
    check_same_device(everything)
    backend = OPERATOR.select(Request(x.device, everything, {"eps": eps}), impl)
    return AddLayerNorm(
        *backend.run(x, residual, weight, bias, eps, layer_scale=layer_scale, sample_scale=sample_scale)
    )


def _example(device: torch.device) -> Request:
    tokens, vector = torch.empty(64, 129, 768, device="meta"), torch.empty(768, device="meta")
    tensors = {
        "x": tokens,
        "residual": tokens,
        "weight": vector,
        "bias": vector,
        "layer_scale": None,
        "sample_scale": None,
    }
    return Request(device, tensors, {"eps": 1e-6})


OPERATOR = Operator("add_layer_norm", _example, backends=(Backend("reference", reference, supports_everything),))
