"""Attention with a low-rank bias of motion and a bias of keys."""

from __future__ import annotations

import math
from typing import Any

import torch

from motarfuse.ops.backends import AUTO, Backend, Operator, Request, supports_everything
from motarfuse.ops.validation import (
    check_number,
    check_precisions,
    check_rank,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
)
from motarfuse.reference import motion_attention as reference

MAX_MOTION_CHANNELS = 16


def motion_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    motion_query: torch.Tensor | None = None,
    motion_key: torch.Tensor | None = None,
    motion_scale: torch.Tensor | None = None,
    key_bias: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str = AUTO,
) -> torch.Tensor:
    """Multi-head attention whose scores have a bias of rank R and a bias of each key.

    S = scale q k^T + motion_scale_h m_q m_k^T + key_bias,  out = softmax(S) v

    A Gaussian affinity of motions, -lambda/2 |m_i - m_j|^2, has this form exactly (``motarfuse.nn.motion_channels``).

    Args:
        query: (B, H, N, d) float16, bfloat16, float32 or float64; any strides, so that slices of a packed projection
            are taken as they are.
        key: (B, H, M, d) of the query's dtype. M = 0 gives zeros.
        value: (B, H, M, d) of the query's dtype.
        motion_query: (B, H, N, R) or (B, 1, N, R), R <= 16, of the query's dtype or float32 beside a half one.
        motion_key: (B, H, M, R) or (B, 1, M, R); both or neither.
        motion_scale: (H,) factors lambda_h; None is 1.
        key_bias: (B, M) or (B, H, M), added to the scores of each key; -inf hides a key, and a row whose keys are all
            hidden gives zeros and has zero gradient.
        scale: Finite; None is 1 / sqrt(d).
        impl: ``"auto"``, or the backend that must run: ``"reference"``.

    Returns:
        (B, H, N, d) of the query's dtype, computed in float32 from half types.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported or does not fit the query's.
        ValueError: Wrong rank or shape, tensors on different devices, one motion without the other, more than 16
            motion channels, a scale without motion, an unknown ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to all seven tensors and vectors, where they require one. With P = softmax(S), dP = dout v^T and
    dS = P (dP - sum_j P_j dP_j): dq = scale dS k, dk = scale dS^T q, dv = P^T dout, dm_q = motion_scale dS m_k,
    dm_k = motion_scale dS^T m_q, dmotion_scale_h = sum dS m_q m_k^T, dkey_bias = sum over queries (and heads, where it
    has none) of dS.

    Source: Vaswani et al. 2017; the bias as additional channels of query and key is this project's.
    """
    tensors = {"query": query, "key": key, "value": value}
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    check_rank("query", query, "(B, H, N, d)")
    check_rank("key", key, "(B, H, M, d)")
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    for name in ("key", "value"):
        check_shape(name, tensors[name], "(B, H, M, d)", (batch, heads, keys, width), "query and key")
    check_same_dtype(tensors)
    optional = {
        "motion_query": motion_query, "motion_key": motion_key, "motion_scale": motion_scale, "key_bias": key_bias
    }  # fmt: skip
    for name, extra in optional.items():
        if extra is not None:
            check_tensor(name, extra)
    _check_motion(motion_query, motion_key, motion_scale, (batch, heads, queries, keys))
    if key_bias is not None:
        if key_bias.dim() == 2:
            check_shape("key_bias", key_bias, "(B, M)", (batch, keys), "key")
        else:
            check_shape("key_bias", key_bias, "(B, H, M)", (batch, heads, keys), "key")
    check_precisions({**tensors, **optional})
    check_same_device({**tensors, **optional})
    if scale is None:
        scale = 1 / math.sqrt(max(width, 1))
    check_number("scale", scale)
    request = Request(query.device, {**tensors, **optional}, {"scale": scale})
    backend = OPERATOR.select(request, impl)
    return backend.run(query, key, value, scale=scale, **optional)


def motion_attention_packed(qkv: torch.Tensor, *, impl: str = AUTO, **options: Any) -> torch.Tensor:
    """`motion_attention` of what one projection computes for query, key and value.

    Args:
        qkv: (B, N, 3, H, d), as ``nn.Linear(D, 3 D)`` leaves it after a view.
        impl: As of `motion_attention`.
        **options: The keyword arguments of `motion_attention`.

    Returns:
        (B, N, H, d), which ``flatten(2)`` turns into the input of the output projection without a copy.

    Raises:
        TypeError: As `motion_attention`.
        ValueError: As `motion_attention`; qkv of another shape.
    """
    check_tensor("qkv", qkv)
    check_rank("qkv", qkv, "(B, N, 3, H, d)")
    if qkv.shape[2] != 3:
        raise ValueError(f"qkv must be (B, N, 3, H, d), got shape {tuple(qkv.shape)}")
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return motion_attention(query, key, value, impl=impl, **options).transpose(1, 2)


def _check_motion(
    motion_query: torch.Tensor | None,
    motion_key: torch.Tensor | None,
    motion_scale: torch.Tensor | None,
    shape: tuple[int, int, int, int],
) -> None:
    batch, heads, queries, keys = shape
    if motion_query is None or motion_key is None:
        if motion_query is not None or motion_key is not None:
            missing = "motion_key" if motion_key is None else "motion_query"
            raise ValueError(f"motion_query and motion_key belong together; {missing} is None")
        if motion_scale is not None:
            raise ValueError("motion_scale is given without motion_query and motion_key")
        return
    check_rank("motion_query", motion_query, "(B, H or 1, N, R)")
    channels = motion_query.shape[3]
    if channels > MAX_MOTION_CHANNELS:
        raise ValueError(f"motion_query has {channels} channels; supported: R <= {MAX_MOTION_CHANNELS}")
    for name, motion, length in (("motion_query", motion_query, queries), ("motion_key", motion_key, keys)):
        check_rank(name, motion, "(B, H or 1, M, R)")
        shared = 1 if motion.shape[1] == 1 else heads
        letter = "N" if name == "motion_query" else "M"
        check_shape(
            name, motion, f"(B, H or 1, {letter}, R)", (batch, shared, length, channels), "query, key and motion_query"
        )
    if motion_scale is not None:
        check_shape("motion_scale", motion_scale, "(H,)", (heads,), "query")


def _example(device: torch.device) -> Request:
    def tensor(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta")

    tensors = {name: tensor(64, 12, 129, 64) for name in ("query", "key", "value")}
    tensors |= {name: tensor(64, 1, 129, 10) for name in ("motion_query", "motion_key")}
    tensors |= {"motion_scale": tensor(12), "key_bias": tensor(64, 12, 129)}
    return Request(device, tensors, {"scale": 0.125})


OPERATOR = Operator("motion_attention", _example, backends=(Backend("reference", reference, supports_everything),))
