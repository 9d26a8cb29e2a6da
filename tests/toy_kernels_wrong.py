# mypy: disable-error-code="no-untyped-def"
"""Static cases that no report takes, and a kernel without any."""

from __future__ import annotations

import triton
import triton.language as tl
from motarfuse.kernels._static import StaticCase

from tests.toy_kernels import case


@triton.jit
def lonely_kernel(p_out):
    """Has no case."""
    tl.store(p_out, 0.0)


def static_cases() -> list[StaticCase]:
    good = case("good", 90, "bf16", "tf32")
    types = {name: kind for name, kind in good.signature.items() if name != "scale"}
    values = {name: value for name, value in good.constants.items() if name != "TILE"}
    return [
        good._replace(name="no type", signature=types),
        good._replace(name="unknown", divisible=("bias",)),
        good._replace(name="no value", signature={**good.signature, "TILE": "constexpr"}, constants=values),
        good._replace(name="demand", expects=frozenset({"fast"})),
        good._replace(name="old", architecture=75),
        good._replace(name="no twin", expects=frozenset({"tf32x3"})),
        good._replace(name="toy bf16"),
    ]
