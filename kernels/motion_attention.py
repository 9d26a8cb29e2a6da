"""Motion attention in Triton: what a call launches. The kernels are in the other files of this name.

A head that fits on chip takes the short forward; everything else, tiles of keys that pass tiles of queries. The
backward is one kernel over queries and one over keys. `motion_attention_table` says which tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from motarfuse.kernels import motion_attention_table as table
from motarfuse.kernels._launch import TYPES, Launch, device_of
from motarfuse.kernels._runtime import reasons_against_call
from motarfuse.kernels.motion_attention_backward import (
    motion_attention_bwd_key_kernel,
    motion_attention_bwd_query_kernel,
    motion_attention_query_extras_kernel,
    sum_heads_kernel,
)
from motarfuse.kernels.motion_attention_forward import motion_attention_fwd_kernel, motion_attention_key_extras_kernel
from motarfuse.kernels.motion_attention_problem import (
    PADDING,
    Problem,
    is_aligned,
    rows_first,
    statistics_shape,
    strides_of,
)
from motarfuse.kernels.motion_attention_short import motion_attention_short_fwd_kernel

MAX_LENGTH = 32768
# Motion and bias are divided by it, in half numbers too.
MAX_SCALE = 1024


def not_supported_reasons(request: Any) -> list[str]:
    """Every reason against a request (``motarfuse.ops.Request``) of motion_attention."""
    reasons = reasons_against_call(request, "query")
    query, key = request.tensors["query"], request.tensors["key"]
    width = query.shape[3]
    if width % 8 or not 16 <= width <= 128:
        reasons.append(f"it takes head dims that are multiples of 8 from 16 to 128, got {width}")
    if query.shape[2] > MAX_LENGTH or key.shape[2] > MAX_LENGTH:
        reasons.append(f"it takes up to {MAX_LENGTH} queries and keys, got {query.shape[2]} and {key.shape[2]}")
    if not 1 / MAX_SCALE <= request.options["scale"] <= MAX_SCALE:
        reasons.append(f"it takes scales from 1/{MAX_SCALE} to {MAX_SCALE}, got {request.options['scale']}")
    return reasons


def forward_launches(problem: Problem, out: torch.Tensor, lse: torch.Tensor) -> Iterator[Launch]:
    """What a forward launches, in order; each is to run before the next is asked for."""
    p = problem
    inputs: dict[str, Any] = {"p_query": p.query, "p_key": p.key, "p_value": p.value, "p_motion_query": p.motion_query}
    inputs |= {"p_motion_scale": p.motion_scale, "p_out": out, "p_lse": lse, **strides_of("out", out, True)}
    heads = p.batch * p.heads
    plan = table.short_plan(p.architecture, p.half, p.block_d, heads, p.queries, p.keys, p.block_r)
    if plan is not None:
        yield p.launch(
            motion_attention_short_fwd_kernel, (heads, plan.programs),
            {**inputs, "p_motion_key": p.motion_key, "p_key_bias": p.key_bias}, plan,
            BLOCK_M=plan.block_m, REST=plan.rest, KEYS_0=plan.keys[0], KEYS_1=plan.keys[1], KEYS_2=plan.keys[2],
        )  # fmt: skip
        return
    extra = None
    if p.has_extra:
        extra, launch = key_extras(p)
        yield launch
    tiles = p.tiles("forward")
    yield p.launch(
        motion_attention_fwd_kernel, (triton.cdiv(p.queries, tiles.block_m) * heads,),
        {**inputs, "p_extra": extra, "num_padded": p.padded_keys}, tiles,
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n,
    )  # fmt: skip


_EXTRAS_TILES = table.Tiles(PADDING, PADDING, num_warps=4, num_stages=1)


def key_extras(p: Problem) -> tuple[torch.Tensor, Launch]:
    """The extra channels of keys and what writes them."""
    extra = p.query.new_empty((p.batch, p.extra_heads, p.padded_keys, 2, p.block_r))
    motion = {f"motion_{axis}": p.strides[f"motion_key_{axis}"] for axis in "bhnr"}
    launch = p.launch(
        motion_attention_key_extras_kernel, (p.padded_keys // PADDING * p.batch * p.extra_heads,),
        {"p_motion": p.motion_key, "p_key_bias": p.key_bias, "p_extra": extra, "num_padded": p.padded_keys,
         "num_heads": p.extra_heads, **motion}, _EXTRAS_TILES, ROWS=PADDING,
    )  # fmt: skip
    return extra, launch


def query_extras(p: Problem) -> tuple[torch.Tensor, Launch]:
    """The extra channels of queries, for the kernel over keys, and what writes them."""
    extra = p.query.new_empty((p.batch, p.heads, p.padded_queries, 2, p.block_r))
    launch = p.launch(
        motion_attention_query_extras_kernel, (p.padded_queries // PADDING * p.batch * p.heads,),
        {"p_motion_query": p.motion_query, "p_motion_scale": p.motion_scale, "p_extra": extra}, _EXTRAS_TILES,
        ROWS=PADDING,
    )  # fmt: skip
    return extra, launch


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    motion_query: torch.Tensor | None,
    motion_key: torch.Tensor | None,
    motion_scale: torch.Tensor | None,
    key_bias: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out (B, H, N, d), in memory (B, N, H, d), and what the backward rebuilds weights from (`statistics_shape`)."""
    problem = Problem(query, key, value, motion_query, motion_key, motion_scale, key_bias, scale)
    out = rows_first(query, query.shape[2])
    lse = query.new_empty(statistics_shape(query), dtype=problem.compute)
    if problem.keys == 0:
        return out.zero_(), lse.fill_(float("inf"))
    if out.numel():
        with device_of(query):
            for launch in forward_launches(problem, out, lse):
                launch.run()
    return out, lse


class Gradients(NamedTuple):
    """Where the kernels write gradients, None for those that are not wanted.

    Motion and bias that heads share have a gradient for each head here, and motion_scale one for each tile of queries.
    """

    query: torch.Tensor | None = None
    key: torch.Tensor | None = None
    value: torch.Tensor | None = None
    motion_query: torch.Tensor | None = None
    motion_key: torch.Tensor | None = None
    motion_scale: torch.Tensor | None = None
    key_bias: torch.Tensor | None = None


def backward_launches(
    p: Problem, grad_out: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, wanted: Gradients
) -> Iterator[Launch]:
    """What a backward launches, in order; each is to run before the next is asked for."""
    heads = p.batch * p.heads
    extra = query_extra = None
    if p.has_extra:
        extra, launch = key_extras(p)
        yield launch
    rows = p.query.new_empty((p.batch, p.heads, 3, p.padded_queries), dtype=p.compute)
    inputs: dict[str, Any] = {"p_query": p.query, "p_key": p.key, "p_value": p.value, "p_extra": extra, "p_rows": rows}
    inputs |= {"p_grad_out": grad_out, **strides_of("grad_out", grad_out, True)}
    tiles = p.tiles("backward_query")
    yield p.launch(
        motion_attention_bwd_query_kernel, (p.padded_queries // tiles.block_m * heads,),
        {**inputs, "p_motion_query": p.motion_query, "p_motion_scale": p.motion_scale, "p_out": out, "p_lse": lse,
         "p_grad_query": wanted.query, "p_grad_motion": wanted.motion_query, "p_grad_scale": wanted.motion_scale,
         **strides_of("out", out, True), **strides_of("grad_query", wanted.query, True)}, tiles,
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n,
    )  # fmt: skip
    if wanted.key is None and wanted.value is None and wanted.motion_key is None and wanted.key_bias is None:
        return
    if p.motion:
        query_extra, launch = query_extras(p)
        yield launch
    tiles = p.tiles("backward_key")
    passes = [wanted]
    if tiles.passes == 2:
        passes = [Gradients(value=wanted.value), wanted._replace(value=None)]
    for part in passes:
        if any(one is not None for one in (part.key, part.value, part.motion_key, part.key_bias)):
            yield p.launch(
                motion_attention_bwd_key_kernel, (triton.cdiv(p.keys, tiles.block_n) * heads,),
                {**inputs, "p_query_extra": query_extra, "p_grad_key": part.key, "p_grad_value": part.value,
                 "p_grad_motion": part.motion_key, "p_grad_bias": part.key_bias,
                 **strides_of("grad_key", part.key, True), **strides_of("grad_value", part.value, True)}, tiles,
                BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n,
            )  # fmt: skip


def backward(
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
    """Gradients of the seven tensors, (0,) where ``needs`` has none; packed: query, key and value in one."""
    p = Problem(query, key, value, motion_query, motion_key, motion_scale, key_bias, scale)
    small = (motion_query, motion_key, motion_scale, key_bias)
    for index, tensor in enumerate(small, start=3):
        if tensor is None:
            needs &= ~(1 << index)
    results = [query.new_empty((0,)) for _ in range(7)]  # not one for all: results of an operator may not alias
    if packed:
        results[0] = query.new_empty((p.batch, p.queries, 3, p.heads, p.width))
        attended = list(results[0].permute(2, 0, 3, 1, 4).unbind(0))
    else:
        attended = [rows_first(tensor, tensor.shape[2]) for tensor in (query, key, value)]
        for index, part in enumerate(attended):
            results[index] = part if needs & (1 << index) else results[index]
    for index, tensor in enumerate(small, start=3):
        if tensor is not None and needs & (1 << index):
            results[index] = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    if p.batch * p.heads * p.queries * p.keys == 0:
        return tuple(result.zero_() for result in results)
    parts = [part if needs & (1 << index) else None for index, part in enumerate(attended)]
    wanted = Gradients(*parts, *per_head(p, results[3:], needs))
    if not is_aligned(grad_out):
        grad_out = grad_out.transpose(1, 2).contiguous().transpose(1, 2)
    with device_of(query):
        for launch in backward_launches(p, grad_out, out, lse, wanted):
            launch.run()
        for result, partial in zip(results[3:], wanted[3:], strict=True):
            if partial is None:
                result.zero_()  # not wanted, or motion of no channels
            elif partial is wanted.motion_scale:
                result.copy_(partial.sum(dim=(0, 2)))
            elif partial is not result:
                sum_heads(partial, result).run()
    return tuple(results)


def per_head(p: Problem, results: list[torch.Tensor], needs: int) -> list[torch.Tensor | None]:
    """What the kernels write for the gradients of motion_query, motion_key, motion_scale and key_bias."""
    tiles = p.padded_queries // p.tiles("backward_query").block_m
    lengths = ((p.queries, p.motion), (p.keys, p.motion), (tiles,), (p.keys,))
    found: list[torch.Tensor | None] = []
    for index, (result, length) in enumerate(zip(results, lengths, strict=True)):
        shared = index == 2 or (result.numel() < p.batch * p.heads * math.prod(length))
        if not needs & (1 << index + 3) or (index < 3 and p.motion == 0):
            found.append(None)
        elif shared:
            found.append(p.query.new_empty((p.batch, p.heads, *length), dtype=p.compute))
        else:
            found.append(result)
    return found


def sum_heads(per_head: torch.Tensor, result: torch.Tensor) -> Launch:
    """(B, H, ...) summed over heads into (B, ...) or (B, 1, ...)."""
    batch, heads = per_head.shape[:2]
    length = math.prod(per_head.shape[2:])
    block = 1024
    return Launch(
        sum_heads_kernel, (triton.cdiv(length, block) * batch,),
        {"p_parts": per_head, "p_sum": result, "num_heads": heads, "length": length},
        {"COMPUTE": TYPES[per_head.dtype], "BLOCK": block}, {"num_warps": 4},
    )  # fmt: skip
