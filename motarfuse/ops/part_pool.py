"""Mean token of each body part."""

from __future__ import annotations

from typing import NamedTuple

import torch

from motarfuse.ops.backends import AUTO, Backend, Operator, Request, supports_everything
from motarfuse.ops.validation import check_precisions, check_rank, check_same_device, check_shape, check_tensor
from motarfuse.reference import part_pool as reference


class PartPool(NamedTuple):
    """Results of ``part_pool``: pooled (B, K, C), mass (B, K)."""

    pooled: torch.Tensor
    mass: torch.Tensor


def part_pool(tokens: torch.Tensor, part_logits: torch.Tensor, *, impl: str = AUTO) -> PartPool:
    """Averages the tokens of each part, weighted by its mask, in one read of the tokens.

    With M = softmax of the part logits over channels, 0 being the background, for the K others:
    pooled_k = sum_u M_k x_u / (sum_u M_k + 1e-6), mass_k = mean_u M_k.

    Args:
        tokens: (B, N, C) float16, bfloat16, float32 or float64; any strides.
        part_logits: (B, K + 1, N), K >= 0.
        impl: ``"auto"``, or the backend that must run: ``"reference"``.

    Returns:
        pooled (B, K, C) of the tokens' dtype; mass (B, K) of the part logits' dtype; computed in float32 from half
        types, which may be mixed with float32. Without tokens (N = 0) both are zero.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, float64 beside another.
        ValueError: Wrong rank or shape, tensors on different devices, an unknown ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to both, where they require one: dx_u = sum_k M_k dpooled_k / (S_k + 1e-6), S_k = sum_u M_k, and
    dM_k(u) = <dpooled_k, x_u - pooled_k> / (S_k + 1e-6) + dmass_k / N, through the softmax to the logits.

    Source: mask-weighted pooling, as in Kalayeh et al. 2018 (SPReID), with soft learned masks.
    """
    check_tensor("tokens", tokens)
    check_tensor("part_logits", part_logits)
    check_rank("tokens", tokens, "(B, N, C)")
    check_rank("part_logits", part_logits, "(B, K + 1, N)")
    batch, cells, _ = tokens.shape
    channels = part_logits.shape[1]
    if channels < 1:
        raise ValueError(f"part_logits must be (B, K + 1, N), background included; got {tuple(part_logits.shape)}")
    check_shape("part_logits", part_logits, "(B, K + 1, N)", (batch, channels, cells), "tokens")
    tensors: dict[str, torch.Tensor | None] = {"tokens": tokens, "part_logits": part_logits}
    check_precisions(tensors)
    check_same_device(tensors)
    backend = OPERATOR.select(Request(tokens.device, tensors, {}), impl)
    return PartPool(*backend.run(tokens, part_logits))


def _example(device: torch.device) -> Request:
    tokens, part_logits = (torch.empty(*shape, device="meta") for shape in ((64, 128, 768), (64, 9, 128)))
    return Request(device, {"tokens": tokens, "part_logits": part_logits}, {})


OPERATOR = Operator("part_pool", _example, backends=(Backend("reference", reference, supports_everything),))
