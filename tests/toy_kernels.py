"""A small kernel for the tests of the kernel report: scores, softmax over tiles of keys, and a product."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from motarfuse.kernels._static import StaticCase

TILE = 64
POINTERS = ("p_query", "p_key", "p_value", "p_out")


@triton.jit
def toy_kernel(
    p_query, p_key, p_value, p_bias, p_out, keys, stride, scale,
    TILE: tl.constexpr, HEAD_DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program takes a tile of queries."""
    rows, channels = tl.arange(0, TILE), tl.arange(0, HEAD_DIM)
    tile = rows[:, None] * stride + channels[None, :]
    query = tl.load(p_query + tl.program_id(0) * TILE * stride + tile)
    row_max = tl.full([TILE], float("-inf"), tl.float32)
    row_sum = tl.zeros([TILE], tl.float32)
    total = tl.zeros([TILE, HEAD_DIM], tl.float32)
    for start in range(0, keys, TILE):
        key = tl.load(p_key + start * stride + tile)
        value = tl.load(p_value + start * stride + tile)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        if p_bias is not None:
            scores += tl.load(p_bias + start + rows)[None, :]
        shift = tl.maximum(row_max, tl.max(scores, 1))
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(row_max - shift)
        row_sum = row_sum * decay + tl.sum(weights, 1)
        total = tl.dot(weights.to(value.dtype), value, total * decay[:, None], input_precision=PRECISION)
        row_max = shift
    out = total / row_sum[:, None]
    tl.store(p_out + tl.program_id(0) * TILE * stride + tile, out.to(p_out.dtype.element_ty))


def case(name: str, architecture: int, dtype: str, precision: str, **changes: Any) -> StaticCase:
    """The kernel for two tiles of keys."""
    made = StaticCase(
        name=name,
        kernel=toy_kernel,
        architecture=architecture,
        signature={**dict.fromkeys(POINTERS, f"*{dtype}"), "keys": "i32", "stride": "i32", "scale": "fp32"},
        constants={"p_bias": None, "TILE": TILE, "HEAD_DIM": 64, "PRECISION": precision},
        divisible=(*POINTERS, "stride"),
        trips=(2,),
        programs=1000,
        shape="1000 programs, 128 keys",
    )
    return made._replace(**changes)


def static_cases() -> list[StaticCase]:
    """Two that are as they should be on every architecture, and some that are not."""
    clean, exact, ieee = frozenset({"no_spills", "wgmma"}), frozenset({"tf32x3"}), frozenset({"ieee"})
    twin = {"PRECISION": "tf32"}
    large = {"p_bias": None, "TILE": 128, "HEAD_DIM": 256, "PRECISION": "tf32"}
    return [
        *(case("toy bf16", architecture, "bf16", "tf32", expects=clean) for architecture in (80, 90, 100)),
        *(
            case("toy tf32x3", architecture, "fp32", "tf32x3", expects=exact, twin=twin)
            for architecture in (80, 90, 100)
        ),
        case("toy tf32 for tf32x3", 90, "fp32", "tf32", expects=exact, twin=twin),
        case("toy tf32 for ieee", 90, "fp32", "tf32", expects=ieee),
        case("toy capped", 90, "bf16", "tf32", expects=clean, maxnreg=72, trips=()),
        case("toy too large", 90, "bf16", "tf32", constants=large, num_warps=8, num_stages=3),
        case("toy with a wrong option", 90, "bf16", "tf32", num_warps=3),
    ]
