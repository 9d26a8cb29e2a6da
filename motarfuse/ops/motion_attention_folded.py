"""Attention of other libraries with the bias folded into the head dimension: PyTorch's SDPA, and xformers.

scale [q, u].[k, w] = scale q.k + motion_scale m_q.m_k + key_bias,  u = [f_q m_q, 1],  w = [f_k m_k, key_bias / scale]

with f_q f_k = motion_scale / scale: R + 1 channels more for query and key, and no N x M tensor where the library's
kernel keeps none. Half types carry each channel as the sum of two half numbers, [a_hi, a_hi, a_lo].[b_hi, b_lo, b_hi],
and the bias as hi + lo against ones: 3 R + 2 channels more, whose products err by 2^-16 of their size instead of 2^-8.

Supported beside what the operator checks: 1/64 <= |scale| <= 64. In float16 the scaled channels must be below 65504; a
key bias counts from the largest of its row, so that its offset does not matter, and as no less than -131008 |scale|.
That is also what hides a key: 16376 below the others at d = 64, a weight of exactly 0 unless q.k makes up for it; other
types use 1e30 |scale|. Gradients pass through the query's type: those of float32 motion and biases beside half tensors
are as accurate as half ones. Differentiable once. Bitwise repeatable as far as the library's backward is.

Cost beside the library's: query, key and value are copied once with their channels, and so are the gradients. Inputs
without motion and key bias are not copied for SDPA.

Source: FlashBias (Wu et al. 2025) folds low-rank biases likewise; the split of half types is this project's.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from motarfuse.ops.backends import Request
from motarfuse.ops.kernels import differentiable_once, transform_reasons
from motarfuse.ops.validation import HALF_DTYPES, dtype_name
from motarfuse.reference import motion_attention as reference
from motarfuse.reference.precision import compute_dtype, without_autocast

# Beyond, key_bias / scale leaves float16's range or resolution before it matters; 1 / sqrt(d) is within for d <= 4096.
_LARGEST_SCALE = 64.0
# What -inf becomes, over scale: finite, so that 0 * bias in the backward is no NaN, and beyond all other scores.
_FARTHEST = {torch.float16: 65504.0}
_FARTHEST_ELSE = 1e30
_MISSING_XFORMERS = [] if importlib.util.find_spec("xformers") else ["it needs xformers: pip install xformers"]
_XFORMERS_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_SDPA_DEVICES = ("cpu", "cuda")
# Of sdpa_is_faster, which has the measurements.
_SHORTEST, _FEWEST_SCORES = 64, 300_000


def run_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    motion_query: torch.Tensor | None,
    motion_key: torch.Tensor | None,
    motion_scale: torch.Tensor | None,
    key_bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """`ops.motion_attention` by ``F.scaled_dot_product_attention``; arguments are validated."""
    extras = (motion_query, motion_key, motion_scale, key_bias)
    if _is_empty(query, key):
        return _of_nothing(query, key, value, *extras, scale)
    # On a CPU torch's half kernels are slower than its float32 ones (float16 by 3 to 7), and less accurate.
    dtype = compute_dtype(query) if query.device.type == "cpu" else query.dtype
    with without_autocast(query.device):
        if motion_query is None and key_bias is None:
            plain = _Once.apply(query.to(dtype), key.to(dtype), value.to(dtype))
            return _sdpa(plain[0], plain[1], plain[2], scale).to(query.dtype)
        # The kernel for float32 on a GPU takes values of another width; those for half types and CPUs do not.
        same_width = query.device.type != "cuda" or dtype in HALF_DTYPES
        return _folded(_sdpa, query, key, value, extras, scale, dtype, same_width)


def run_xformers(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    motion_query: torch.Tensor | None,
    motion_key: torch.Tensor | None,
    motion_scale: torch.Tensor | None,
    key_bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """`ops.motion_attention` by ``xformers.ops.memory_efficient_attention``; arguments are validated."""
    extras = (motion_query, motion_key, motion_scale, key_bias)
    if _is_empty(query, key):
        return _of_nothing(query, key, value, *extras, scale)
    with without_autocast(query.device):
        # Only its CUTLASS kernels, which are the ones for float32, take values of another width.
        same_width = query.dtype in HALF_DTYPES
        return _folded(_xformers, query, key, value, extras, scale, query.dtype, same_width)


def sdpa_reasons(request: Request) -> list[str]:
    """Why SDPA cannot serve a request."""
    reasons = []
    if request.device.type not in _SDPA_DEVICES:
        reasons.append(f"it takes {' and '.join(_SDPA_DEVICES)} tensors, got {request.device.type}")
    return reasons + _common_reasons(request)


def sdpa_is_faster(request: Request) -> bool:
    """Whether ``impl="auto"`` should take SDPA before the reference.

    On a CPU: in float32 and half types, where no gradient is asked for, and not for short sequences with a bias, nor in
    compiled graphs.

    Time of the reference over SDPA's, float32 on one and two cores of an EPYC (Zen 4), R = 10, 12 heads of 64 and 3 of
    32, forward, medians (in brackets forward and backward):

    - neither motion nor bias, 17 to 138 tokens: 2.0-3.5 (1.1-2.0);
    - 129 and 138 tokens, from 400,000 scores on: 1.2-2.8 (0.9-1.7); 197: 2.0-3.9 (1.2-1.8); 516: 1.9-5.7 (1.4-2.3);
      1104: 5.4-5.9 (3.2-3.4);
    - 138 tokens, 3 heads: 1.05 (0.99); 12 heads: 1.13 (0.94);
    - 17 and 33 tokens: 0.5-1.3 (0.6-0.9); 1 query or 8: 0.8-1.3 (0.7-0.9), whatever the batch.

    Gradients stay the reference's: it is differentiable twice, and exact to the last digits where the kernel, which
    recomputes softmax from a rounded log-sum, is not. Where speed counts more, ``impl="sdpa"`` is for long sequences.
    """
    query, key = request.tensors["query"], request.tensors["key"]
    if query is None or key is None or query.dtype == torch.float64:
        return False
    if request.device.type != "cpu":
        return True
    if torch.compiler.is_compiling() or not all(isinstance(size, int) for size in (*query.shape, key.shape[2])):
        return False  # a choice by size would guard a graph's dynamic batch and length
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in request.tensors.values()):
        return False
    if request.tensors["motion_query"] is None and request.tensors["key_bias"] is None:
        return True
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    return min(queries, keys) >= _SHORTEST and batch * heads * queries * keys >= _FEWEST_SCORES


def xformers_reasons(request: Request) -> list[str]:
    """Why xformers cannot serve a request."""
    reasons = list(_MISSING_XFORMERS)
    if request.device.type != "cuda":
        reasons.append(f"it takes cuda tensors, got {request.device.type}")
    query = request.tensors["query"]
    if query is not None and query.dtype not in _XFORMERS_DTYPES:
        reasons.append(
            f"it has no kernel for {dtype_name(query.dtype)} (it has {', '.join(map(dtype_name, _XFORMERS_DTYPES))})"
        )
    return reasons + _common_reasons(request)


def _common_reasons(request: Request) -> list[str]:
    reasons = []
    scale = abs(request.options["scale"])
    if not 1 / _LARGEST_SCALE <= scale <= _LARGEST_SCALE:
        reasons.append(
            f"it divides the bias by scale, whose size must lie in [1/{_LARGEST_SCALE:g}, {_LARGEST_SCALE:g}]; "
            f"got {request.options['scale']}"
        )
    if forward_ad._current_level >= 0:
        reasons.append("forward mode sees through the reference only")
    return reasons + transform_reasons()


def _is_empty(query: torch.Tensor, key: torch.Tensor) -> bool:
    batch, heads, queries, width = query.shape
    return batch == 0 or heads == 0 or queries == 0 or width == 0 or key.shape[2] == 0


def _of_nothing(*arguments: Any) -> torch.Tensor:
    """Zeros or nothing, with gradients of zero; kernels need not know how."""
    query, key, value, motion_query, motion_key, motion_scale, key_bias, scale = arguments
    return reference(
        query, key, value,
        motion_query=motion_query, motion_key=motion_key, motion_scale=motion_scale, key_bias=key_bias, scale=scale,
    )  # fmt: skip


def _sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


def _xformers(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    attention = importlib.import_module("xformers.ops").memory_efficient_attention
    return attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=scale).transpose(1, 2)


def _folded(
    attention: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    extras: tuple[torch.Tensor | None, ...],
    scale: float,
    dtype: torch.dtype,
    same_width: bool,
) -> torch.Tensor:
    """Attention (B, H, N, d) with what is folded, computed in ``dtype``."""
    width = value.shape[-1]
    # 16 bytes: what vector loads and tensor cores take.
    multiple = 16 // dtype.itemsize
    out = attention(*_Fold.apply(query, key, value, *extras, scale, dtype, multiple, same_width), scale)[..., :width]
    key_bias = extras[3]
    if key_bias is not None:
        # This also packs the heads, which whoever flattens them would do otherwise.
        sees_any = (key_bias != -torch.inf).any(dim=-1)
        out = out * (sees_any[:, :, None, None] if key_bias.ndim == 3 else sees_any[:, None, None, None]).to(dtype)
    return out.to(query.dtype)


def _factors(
    motion_scale: torch.Tensor | None, scale: float, split: bool, compute: torch.dtype
) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """f_q and f_k, numbers or (H, 1, 1): motion_scale / scale, shared out so that neither side's halves overflow."""
    if motion_scale is None:
        factor = 1 / scale
        key_factor = max(math.sqrt(abs(factor)), 1.0) if split else 1.0
        return factor / key_factor, key_factor
    factors = motion_scale.to(compute)[:, None, None] / scale
    if not split:
        return factors, 1.0
    key_factors = factors.abs().sqrt().clamp(min=1)
    return factors / key_factors, key_factors


def _halves(numbers: torch.Tensor, dtype: torch.dtype, limit: float | None = None) -> list[torch.Tensor]:
    """Two numbers of a half type whose sum is a number to 2^-17 of its size; each within the limit."""
    high = (numbers if limit is None else numbers.clamp(-limit, limit)).to(dtype)
    low = numbers - high
    return [high, (low if limit is None else low.clamp(-limit, limit)).to(dtype)]


def _bias_channels(key_bias: torch.Tensor, scale: float, dtype: torch.dtype) -> list[torch.Tensor]:
    """Channels (B, H or 1, M, 1) that add key_bias to the scores where the query has ones."""
    bias = key_bias.to(compute_dtype(key_bias))
    limit = _FARTHEST.get(dtype, _FARTHEST_ELSE)
    split = dtype in HALF_DTYPES
    # Softmax does not see a constant of the row, and neither half types nor the log-sum that a library keeps for its
    # backward have digits to spare for one.
    largest = bias.amax(dim=-1, keepdim=True)
    bias = bias - largest.masked_fill(largest == -torch.inf, 0.0)
    bias = (bias[:, None] if bias.ndim == 2 else bias)[..., None] / scale
    return _halves(bias, dtype, limit) if split else [bias.clamp(-limit, limit).to(dtype)]


def _joined(parts: list[torch.Tensor], shape: torch.Size, multiple: int, width: int = 0) -> torch.Tensor:
    """(B, H, N, ...) parts side by side, then zeros up to a multiple and at least a width; (B, N, H, ...) in memory."""
    batch, heads, length, _ = shape
    joined = sum(part.shape[-1] for part in parts)
    padding = max(width, joined + -joined % multiple) - joined
    if padding:
        parts = [*parts, parts[0].new_zeros((1, 1, 1, padding))]
    return torch.cat([part.transpose(1, 2).expand(batch, length, heads, -1) for part in parts], dim=-1).transpose(1, 2)


class _Once(torch.autograd.Function):
    """Its three inputs; a second derivative raises the operator's own error instead of the library's."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return query.view_as(query), key.view_as(key), value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return differentiable_once("motion_attention", _as_they_are, *gradients)


def _as_they_are(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tensors


class _Fold(torch.autograd.Function):
    """query, key and value as the kernels of others take them, (B, H, N or M, d + channels)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        motion_query: torch.Tensor | None,
        motion_key: torch.Tensor | None,
        motion_scale: torch.Tensor | None,
        key_bias: torch.Tensor | None,
        scale: float,
        dtype: torch.dtype,
        multiple: int,
        same_width: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        compute, split = compute_dtype(query), dtype in HALF_DTYPES
        queries, keys = [query.to(dtype)], [key.to(dtype)]
        if motion_query is not None and motion_key is not None:
            query_factor, key_factor = _factors(motion_scale, scale, split, compute)
            a, b = query_factor * motion_query.to(compute), motion_key.to(compute)
            if split:
                (a_high, a_low), (b_high, b_low) = _halves(a, dtype), _halves(key_factor * b, dtype)
                queries += [a_high, a_high, a_low]
                keys += [b_high, b_low, b_high]
            else:
                queries.append(a)
                keys.append(b)
        if key_bias is not None:
            bias = _bias_channels(key_bias, scale, dtype)
            queries.append(query.new_ones((1, 1, 1, len(bias)), dtype=dtype))
            keys += bias
        ctx.save_for_backward(motion_query, motion_key, motion_scale, key_bias)
        ctx.width, ctx.dtype, ctx.scale, ctx.split = query.shape[-1], query.dtype, scale, split
        folded_query = _joined(queries, query.shape, multiple)
        width = folded_query.shape[-1] if same_width else 0
        return (
            folded_query,
            _joined(keys, key.shape, multiple),
            _joined([value.to(dtype)], value.shape, multiple, width),
        )

    @staticmethod
    def backward(ctx: Any, *folded: torch.Tensor) -> Any:
        needs = ctx.needs_input_grad[:7]
        numbers = (ctx.width, ctx.dtype, ctx.scale, ctx.split, needs)
        gradients = differentiable_once("motion_attention", _unfolded, *folded, *ctx.saved_tensors, *numbers)
        return (*(one if needed else None for one, needed in zip(gradients, needs, strict=True)), *(None,) * 4)


def _unfolded(
    folded_query: torch.Tensor,
    folded_key: torch.Tensor,
    folded_value: torch.Tensor,
    motion_query: torch.Tensor | None,
    motion_key: torch.Tensor | None,
    motion_scale: torch.Tensor | None,
    key_bias: torch.Tensor | None,
    width: int,
    dtype: torch.dtype,
    scale: float,
    split: bool,
    needs: tuple[bool, ...],
) -> tuple[torch.Tensor, ...]:
    """The seven gradients from those of what was folded, an empty tensor for each that is not needed."""
    compute = compute_dtype(folded_query)
    nothing = folded_query.new_empty((0,))
    gradients = [nothing] * 7
    for index, gradient in enumerate((folded_query, folded_key, folded_value)):
        if needs[index]:
            gradients[index] = gradient[..., :width].to(dtype)
    last = width
    if motion_query is not None and motion_key is not None:
        channels = motion_query.shape[-1]
        query_factor, key_factor = _factors(motion_scale, scale, split, compute)

        def of_channels(gradient: torch.Tensor, second: int) -> torch.Tensor:
            # The sum of two groups is the gradient of the rounded number; what became of the rest takes no part.
            first = gradient[..., width : width + channels].to(compute)
            if not split:
                return first
            start = width + second * channels
            return first + gradient[..., start : start + channels].to(compute)

        if needs[3] or needs[5]:
            of_query = of_channels(folded_query, 1)
            if needs[3]:
                gradients[3] = _like(query_factor * of_query, motion_query)
            if needs[5] and motion_scale is not None:
                per_channel = (motion_query.to(compute) * of_query).sum(dim=(0, 2, 3))
                factor = key_factor.flatten() if isinstance(key_factor, torch.Tensor) else key_factor
                gradients[5] = (per_channel / (factor * scale)).to(motion_scale.dtype)
        if needs[4]:
            gradients[4] = _like(key_factor * of_channels(folded_key, 2), motion_key)
        last += channels * (3 if split else 1)
    if key_bias is not None and needs[6]:
        of_bias = folded_key[..., last].to(compute) / scale
        gradients[6] = (of_bias.sum(dim=1) if key_bias.ndim == 2 else of_bias).to(key_bias.dtype)
    return tuple(gradients)


def _like(gradient: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
    """(B, H, N, R) as the motion's gradient: summed over heads that share it."""
    shared = motion.shape[1] == 1 and gradient.shape[1] != 1
    return (gradient.sum(dim=1, keepdim=True) if shared else gradient).to(motion.dtype)
