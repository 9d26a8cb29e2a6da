"""Attention with a low-rank bias of motion and a bias of keys."""

from __future__ import annotations

import math
from typing import Any

import torch

from motarfuse.ops.backends import AUTO, Backend, Operator, Request, supports_everything
from motarfuse.ops.kernels import KernelFamily, Kernels, Schema, differentiable_once, differentiating
from motarfuse.ops.motion_attention_folded import (
    run_sdpa,
    run_xformers,
    sdpa_is_faster,
    sdpa_reasons,
    xformers_reasons,
)
from motarfuse.ops.validation import (
    HALF_DTYPES,
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
        impl: ``"auto"``, or the backend that must run: ``"triton"``, ``"sdpa"``, ``"xformers"`` or ``"reference"``.

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

    Twice: the reference alone; the other backends raise on the second derivative. On a CPU ``auto`` takes the reference
    where a gradient is asked for, and what is fastest where none is.

    Deterministic: no atomics; two runs of a kernel are bitwise equal (of ``sdpa`` and ``xformers``, as far as the
    library's backward is). CUDA graphs capture it; it never waits for the device.

    Precision: half types accumulate in float32; the motion product and the key bias are accurate to float32 beside half
    query and key too (hi + lo). Beside half types, gradients of float32 motion and bias are sums of products of half
    numbers. In float16, motion_scale / scale * motion must be below 65504 in size and key_bias below 65504 scale; a
    finite key_bias below -65504 scale counts as -inf (in other types: below -1e30 scale).

    Cost, N queries and M keys of each head: 4 N M d + 2 N M R FLOP forward, 10 N M d + 6 N M R backward at least; reads
    query, key, value and the bias once or once a tile, writes out and (B, H, N) statistics. No N x M tensor.

    Source: Vaswani et al. 2017; the bias as additional channels of query and key is this project's.
    """
    request = _request(query, key, value, motion_query, motion_key, motion_scale, key_bias, scale)
    backend = OPERATOR.select(request, impl)
    return backend.run(
        query,
        key,
        value,
        motion_query=motion_query,
        motion_key=motion_key,
        motion_scale=motion_scale,
        key_bias=key_bias,
        scale=request.options["scale"],
    )


def motion_attention_packed(
    qkv: torch.Tensor,
    *,
    motion_query: torch.Tensor | None = None,
    motion_key: torch.Tensor | None = None,
    motion_scale: torch.Tensor | None = None,
    key_bias: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str = AUTO,
) -> torch.Tensor:
    """`motion_attention` of what one projection computes for query, key and value.

    The kernels read it through its strides and write one gradient of its shape; autograd through ``unbind`` would copy
    both once more.

    Args:
        qkv: (B, N, 3, H, d), as ``nn.Linear(D, 3 D)`` leaves it after a view.
        motion_query, motion_key, motion_scale, key_bias, scale, impl: As of `motion_attention`, with M = N.

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
    query, key, value = _unpacked(qkv)
    request = _request(query, key, value, motion_query, motion_key, motion_scale, key_bias, scale)
    backend = OPERATOR.select(request, impl)
    bias = (motion_query, motion_key, motion_scale, key_bias, request.options["scale"])
    if backend.name == TRITON:
        return _run_kernels(TRITON_KERNELS, (qkv,), *bias).transpose(1, 2)
    names = ("motion_query", "motion_key", "motion_scale", "key_bias", "scale")
    return backend.run(query, key, value, **dict(zip(names, bias, strict=True))).transpose(1, 2)


def _unpacked(qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def _request(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    motion_query: torch.Tensor | None,
    motion_key: torch.Tensor | None,
    motion_scale: torch.Tensor | None,
    key_bias: torch.Tensor | None,
    scale: float | None,
) -> Request:
    """The validated call."""
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
    return Request(query.device, {**tensors, **optional}, {"scale": scale})


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


class _KernelFunction(torch.autograd.Function):
    """Of query, key and value, or of one packed tensor; then motion and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        scale: float,
        packed: bool,
        motion_query: torch.Tensor | None,
        motion_key: torch.Tensor | None,
        motion_scale: torch.Tensor | None,
        key_bias: torch.Tensor | None,
        *attended: torch.Tensor,
    ) -> torch.Tensor:
        query, key, value = _unpacked(attended[0]) if packed else attended
        out, lse = kernels.forward(query, key, value, motion_query, motion_key, motion_scale, key_bias, scale)
        ctx.save_for_backward(motion_query, motion_key, motion_scale, key_bias, out, lse, *attended)
        ctx.kernels, ctx.scale, ctx.packed = kernels, scale, packed
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        motion_query, motion_key, motion_scale, key_bias, out, lse, *attended = ctx.saved_tensors
        query, key, value = _unpacked(attended[0]) if ctx.packed else attended
        bias_needs, attended_needs = ctx.needs_input_grad[3:7], ctx.needs_input_grad[7:]
        wanted = (*(attended_needs * 3 if ctx.packed else attended_needs), *bias_needs)
        needs = sum(1 << bit for bit, is_wanted in enumerate(wanted) if is_wanted)
        packed = ctx.packed and attended_needs[0]
        gradients = differentiable_once(
            "motion_attention",
            ctx.kernels.backward,
            grad_out,
            query,
            key,
            value,
            motion_query,
            motion_key,
            motion_scale,
            key_bias,
            out,
            lse,
            ctx.scale,
            packed,
            needs,
        )
        found = [gradient if is_wanted else None for gradient, is_wanted in zip(gradients, wanted, strict=True)]
        return None, None, None, *found[3:], *found[: len(attended)]


def _run_kernels(
    kernels: Kernels,
    attended: tuple[torch.Tensor, ...],
    motion_query: torch.Tensor | None,
    motion_key: torch.Tensor | None,
    motion_scale: torch.Tensor | None,
    key_bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    bias = (motion_query, motion_key, motion_scale, key_bias)
    packed = len(attended) == 1
    requires_grad = any(tensor is not None and tensor.requires_grad for tensor in (*attended, *bias))
    if not differentiating(requires_grad):
        return kernels.forward(*(_unpacked(attended[0]) if packed else attended), *bias, scale)[0]
    return _KernelFunction.apply(kernels, scale, packed, *bias, *attended)


def _run_family(
    kernels: Kernels, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **bias: Any
) -> torch.Tensor:
    return _run_kernels(kernels, (query, key, value), **bias)


def _rows_first(like: torch.Tensor) -> torch.Tensor:
    batch, heads, rows, width = like.shape
    return like.new_empty((batch, rows, heads, width)).transpose(1, 2)


def _fake_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    motion_query: torch.Tensor | None,
    motion_key: torch.Tensor | None,
    motion_scale: torch.Tensor | None,
    key_bias: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    batch, heads, rows, _ = query.shape
    statistics = (batch, heads, rows) if query.dtype in HALF_DTYPES else (batch, heads, 2, rows)
    return _rows_first(query), query.new_empty(statistics, dtype=compute)


def _fake_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    motion_query: torch.Tensor | None,
    motion_key: torch.Tensor | None,
    motion_scale: torch.Tensor | None,
    key_bias: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    packed: bool,
    needs: int,
) -> tuple[torch.Tensor, ...]:
    results = [query.new_empty((0,)) for _ in range(7)]
    if packed:
        batch, heads, rows, width = query.shape
        results[0] = query.new_empty((batch, rows, 3, heads, width))
    else:
        for index, tensor in enumerate((query, key, value)):
            if needs & (1 << index):
                results[index] = _rows_first(tensor)
    for index, extra in enumerate((motion_query, motion_key, motion_scale, key_bias), start=3):
        if extra is not None and needs & (1 << index):
            results[index] = extra.new_empty(extra.shape)
    return tuple(results)


_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? motion_query, Tensor? motion_key, Tensor? motion_scale, "
    "Tensor? key_bias"
)
KERNELS = KernelFamily(
    "motion_attention",
    forward=Schema(f"({_INPUTS}, float scale) -> (Tensor, Tensor)", _fake_forward),
    backward=Schema(
        f"(Tensor grad_out, {_INPUTS}, Tensor out, Tensor lse, float scale, bool packed, int needs) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _fake_backward,
    ),
    run=_run_family,
)
TRITON = "triton"


def _load_triton() -> Any:
    from motarfuse.ops import motion_attention_triton

    return motion_attention_triton


def _no_use_of_sdpa(request: Request) -> list[str]:
    return [] if sdpa_is_faster(request) else ["it is slower here, or its gradient not the reference's"]


_TRITON_BACKEND = KERNELS.triton(_load_triton)
TRITON_KERNELS = KERNELS.kernels(TRITON)

OPERATOR = Operator(
    "motion_attention",
    _example,
    backends=(
        _TRITON_BACKEND,
        Backend("sdpa", run_sdpa, sdpa_reasons, _no_use_of_sdpa),
        Backend("xformers", run_xformers, xformers_reasons, auto_devices=("cuda",)),
        Backend("reference", reference, supports_everything),
    ),
)
