"""The specialisations of linear_cross_entropy's kernels that are compiled without a GPU (`tools.kernel_report`)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from motarfuse.kernels import linear_cross_entropy as launchers
from motarfuse.kernels._launch import Launch
from motarfuse.kernels._static import ARCHITECTURES, SOLE_ARCHITECTURE, StaticCase, distinct
from motarfuse.kernels.linear_cross_entropy_kernels import (
    linear_cross_entropy_bwd_kernel,
    linear_cross_entropy_combine_kernel,
    linear_cross_entropy_fwd_kernel,
    linear_cross_entropy_reduce_kernel,
)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# Rows, columns, classes: a batch with Market-1501's identities, with many classes, rows that are not aligned.
SMALL, LARGE, ODD = (64, 768, 751), (256, 768, 100_000), (256, 771, 10_000)
Case = tuple[tuple[int, int, int], torch.dtype, torch.dtype]
# Dtypes of features and of the weight.
CASES: tuple[Case, ...] = (
    (SMALL, BF16, BF16), (LARGE, BF16, BF16), ((256, 768, 10_000), FP32, FP32),
    (SMALL, BF16, FP32), (LARGE, BF16, FP32), ((256, 768, 10_000), FP16, FP32),
)  # fmt: skip
MORE_CASES: tuple[Case, ...] = (((256, 768, 10_000), FP16, FP16), (ODD, BF16, BF16), (ODD, FP16, FP32))
SMALL_KERNELS = (linear_cross_entropy_combine_kernel, linear_cross_entropy_reduce_kernel)


def static_cases() -> list[StaticCase]:
    """Forward and backward with both gradients, with smoothing."""
    return distinct(
        case
        for architecture in ARCHITECTURES
        for chosen in (*CASES, *(MORE_CASES if architecture == SOLE_ARCHITECTURE else ()))
        for case in cases_of(*chosen, architecture)
    )


def cases_of(
    shape: tuple[int, int, int], dtype: torch.dtype, weight_dtype: torch.dtype, architecture: int
) -> Iterator[StaticCase]:
    """The kernels of contiguous tensors."""
    rows, width, classes = shape

    def empty(*sizes: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(sizes, dtype=of, device="meta")

    features, weight = empty(rows, width, of=dtype), empty(classes, width, of=weight_dtype)
    p = launchers.Problem(features, weight, empty(rows, of=torch.int64), 0.1, architecture)
    loss, count, statistics = empty(), empty(), empty(2, rows)
    launches = {
        "forward": launchers.forward_launches(p, empty(4, 1, rows), loss, count, statistics, -100),
        "features": launchers.backward_launches(p, loss, count, statistics, features, False),
        "weight": launchers.backward_launches(p, loss, count, statistics, weight, True),
    }
    kinds = "+".join(dict.fromkeys(str(one).removeprefix("torch.") for one in (dtype, weight_dtype)))
    name = f"{kinds} {rows}x{width} C{classes}"
    for part, launched in launches.items():
        for launch in launched:
            # Sums over ranges are about the same kernel for features and weight and for all shapes.
            if launch.kernel in SMALL_KERNELS and (part == "weight" or (shape, dtype, weight_dtype) != CASES[0]):
                continue
            yield _case(part, launch, name, p, architecture)


def _case(part: str, launch: Launch, name: str, p: launchers.Problem, architecture: int) -> StaticCase:
    kind = launch.kernel.__name__.removeprefix("linear_cross_entropy_").removesuffix("_kernel")
    expects: set[str] = {"no_spills"} if launch.kernel in SMALL_KERNELS or p.half else set()
    twin = None
    if launch.kernel not in SMALL_KERNELS:
        expects |= {"matrix"}
        expects |= {"wgmma"} if p.half and architecture == 90 else set()
        if p.dtype == torch.float32:
            expects, twin = expects | {"tf32x3"}, {"PRECISION": "tf32"}
    return StaticCase.of_call(
        f"linear_cross_entropy {part} {kind} {name}",
        launch.kernel,
        architecture,
        {**launch.arguments, **launch.constants},
        **launch.options,
        expects=frozenset(expects),
        trips=_trips(launch, p),
        programs=math.prod(launch.grid),
        shape=name,
        twin=twin,
    )


def _trips(launch: Launch, p: launchers.Problem) -> tuple[int, ...]:
    arguments, constants = launch.arguments, launch.constants
    if launch.kernel is linear_cross_entropy_reduce_kernel:
        return (arguments["num_splits"],)
    if launch.kernel is linear_cross_entropy_combine_kernel:
        return (-(-p.rows // constants["BLOCK_B"]),)
    depth = -(-p.width // constants["BLOCK_D"])
    if launch.kernel is linear_cross_entropy_bwd_kernel:
        return arguments["tiles_each"], depth, arguments["blocks_each"]
    assert launch.kernel is linear_cross_entropy_fwd_kernel
    return arguments["tiles_each"], depth
