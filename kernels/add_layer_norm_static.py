"""The specialisations of add_layer_norm's kernels that are compiled without a GPU (`tools.kernel_report`)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from motarfuse.kernels import add_layer_norm as launchers
from motarfuse.kernels._launch import Launch
from motarfuse.kernels._static import ARCHITECTURES, SOLE_ARCHITECTURE, StaticCase, distinct
from motarfuse.kernels.add_layer_norm_kernels import add_layer_norm_bwd_kernel
from motarfuse.kernels.row_norm_kernels import row_norm_sum_kernel

MULTIPROCESSORS = 132
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
Case = tuple[tuple[int, int, int], torch.dtype, torch.dtype, bool]
# Batch, tokens, channels; dtypes of x and of the residual; whether with both scales and their gradients.
CASES: tuple[Case, ...] = (
    ((64, 129, 768), BF16, FP32, False),
    ((64, 129, 768), BF16, FP32, True),
    ((64, 129, 768), FP32, FP32, True),
    ((64, 129, 4096), BF16, FP32, True),
)
MORE_CASES: tuple[Case, ...] = (
    ((64, 129, 768), BF16, BF16, False),
    ((64, 129, 768), FP16, FP32, True),
    ((512, 129, 64), BF16, FP32, False),
    ((64, 129, 1000), BF16, FP32, True),
    ((64, 129, 2048), BF16, FP32, True),
    ((64, 129, 4096), FP32, FP32, True),
)


def static_cases() -> list[StaticCase]:
    """Forward and backward at shapes of the network, with all results and gradients."""
    return distinct(
        case
        for architecture in ARCHITECTURES
        for chosen in (*CASES, *(MORE_CASES if architecture == SOLE_ARCHITECTURE else ()))
        for case in cases_of(*chosen, architecture)
    )


def cases_of(
    shape: tuple[int, int, int], dtype: torch.dtype, residual_dtype: torch.dtype, scaled: bool, architecture: int
) -> Iterator[StaticCase]:
    """The kernels of tokens without their first one and a contiguous residual, beside float32 parameters."""
    batch, length, channels = shape

    def empty(*sizes: int, of: torch.dtype = FP32) -> torch.Tensor:
        return torch.empty(*sizes, dtype=of, device="meta")

    x, residual = empty(batch, length + 1, channels, of=dtype)[:, 1:], empty(*shape, of=residual_dtype)
    layer, sample = (empty(channels), empty(batch)) if scaled else (None, None)
    vectors = (empty(channels), empty(channels), layer, sample)
    normed, total, statistics = empty(*shape, of=dtype), empty(*shape, of=residual_dtype), empty(batch, length)
    weight = vectors[0]
    assert weight is not None
    exact = total if residual_dtype == FP32 else None
    launches = [
        launchers.forward_launch(x, residual, weight, weight, layer, sample, 1e-6, normed, total, *[statistics] * 2),
        *launchers.backward_launches(normed, total, x, residual, exact, weight, layer, sample, statistics, statistics,
                                     (normed, total, *vectors), MULTIPROCESSORS),
    ]  # fmt: skip
    kinds = "+".join(dict.fromkeys(str(one).removeprefix("torch.") for one in (dtype, residual_dtype)))
    name = f"{kinds} {batch}x{length}x{channels}{' scaled' if scaled else ''}"
    for launch in launches:
        yield _case(launch, name, architecture, half=dtype != FP32)


def _case(launch: Launch, name: str, architecture: int, *, half: bool) -> StaticCase:
    kernel = launch.kernel
    trips: tuple[int, ...] = ()
    if kernel is row_norm_sum_kernel:
        of_samples = launch.arguments["stride_column"] != 1
        name = f"{launch.arguments['terms']}x{launch.arguments['columns']}"
        title = f"add_layer_norm {'sample_sum' if of_samples else 'sum'} {name}"
        trips = (-(-launch.arguments["terms"] // launch.constants["BLOCK_T"]),)
    elif kernel is add_layer_norm_bwd_kernel:
        title = f"add_layer_norm backward {name}"
        trips = (launch.arguments["rows_each"] // launch.constants["BLOCK_M"],)
    else:
        title = f"add_layer_norm forward {name}"
    return StaticCase.of_call(
        title,
        kernel,
        architecture,
        {**launch.arguments, **launch.constants},
        **launch.options,
        expects=frozenset({"no_spills"} if half else ()),
        trips=trips,
        programs=math.prod(launch.grid),
        shape=name,
    )
