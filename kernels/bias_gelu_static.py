"""The specialisations of bias_gelu's kernels that are compiled without a GPU (`tools.kernel_report`)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from motarfuse.kernels import bias_gelu as launchers
from motarfuse.kernels._launch import Launch
from motarfuse.kernels._static import ARCHITECTURES, SOLE_ARCHITECTURE, StaticCase, distinct
from motarfuse.kernels.bias_gelu_kernels import bias_gelu_bwd_kernel

MULTIPROCESSORS = 132
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
Shape = tuple[int, int, int]
# Batch, tokens, channels; dtypes of x and of the bias.
Case = tuple[Shape, torch.dtype, torch.dtype, str]
CASES: tuple[Case, ...] = (
    ((64, 129, 3072), BF16, BF16, "gelu"),
    ((64, 129, 3072), FP32, FP32, "gelu"),
)
MORE_CASES: tuple[Case, ...] = (
    ((64, 129, 3072), BF16, FP32, "gelu"),
    ((64, 129, 3072), BF16, BF16, "gelu_tanh"),
    ((64, 129, 3072), BF16, BF16, "quick_gelu"),
    ((64, 129, 3072), FP16, FP16, "gelu"),
    ((64, 129, 384), BF16, BF16, "gelu"),
    ((1, 129, 3072), BF16, BF16, "gelu"),
    ((64, 129, 1000), BF16, BF16, "gelu"),
)


def static_cases() -> list[StaticCase]:
    """Forward and backward at shapes of the network, with both gradients."""
    return distinct(
        case
        for architecture in ARCHITECTURES
        for chosen in (*CASES, *(MORE_CASES if architecture == SOLE_ARCHITECTURE else ()))
        for case in cases_of(*chosen, architecture)
    )


def cases_of(
    shape: Shape, dtype: torch.dtype, bias_dtype: torch.dtype, activation: str, architecture: int
) -> Iterator[StaticCase]:
    """The two kernels of contiguous tensors."""
    x = torch.empty(shape, dtype=dtype, device="meta")
    bias = torch.empty(shape[-1], dtype=bias_dtype, device="meta")
    backward, _ = launchers.backward_launches(x, x, bias, activation, x, bias, MULTIPROCESSORS)
    launches = {"forward": launchers.forward_launch(x, bias, activation, x), "backward": backward}
    kinds = "+".join(dict.fromkeys(str(one).removeprefix("torch.") for one in (dtype, bias_dtype)))
    name = f"{activation} {kinds} {'x'.join(map(str, shape))}"
    for direction, launch in launches.items():
        yield StaticCase.of_call(
            f"bias_gelu {direction} {name}",
            launch.kernel,
            architecture,
            {**launch.arguments, **launch.constants},
            **launch.options,
            expects=frozenset({"no_spills"}),
            trips=_trips(launch),
            programs=math.prod(launch.grid),
            shape=name,
        )


def _trips(launch: Launch) -> tuple[int, ...]:
    if launch.kernel is not bias_gelu_bwd_kernel:
        return ()
    return (launch.arguments["rows_each"] // launch.constants["BLOCK_M"],)
