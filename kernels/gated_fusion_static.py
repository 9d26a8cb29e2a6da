"""The specialisations of gated_fusion's kernels that are compiled without a GPU (`tools.kernel_report`)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from motarfuse.kernels import gated_fusion as launchers
from motarfuse.kernels._static import ARCHITECTURES, SOLE_ARCHITECTURE, StaticCase, distinct
from motarfuse.kernels.row_norm_kernels import row_norm_sum_kernel

MULTIPROCESSORS = 132
Case = tuple[tuple[int, int, int], torch.dtype]
# Batch, tokens, channels; dtype of x and motion.
CASES: tuple[Case, ...] = (
    ((64, 128, 768), torch.bfloat16),
    ((64, 128, 768), torch.float32),
    ((64, 128, 4096), torch.bfloat16),
)
MORE_CASES: tuple[Case, ...] = (
    ((64, 128, 768), torch.float16),
    ((512, 128, 64), torch.bfloat16),
    ((64, 128, 1000), torch.bfloat16),
    ((64, 128, 2048), torch.bfloat16),
    ((64, 128, 4096), torch.float32),
)


def static_cases() -> list[StaticCase]:
    """Forward and backward at shapes of the network, with all results and gradients."""
    return distinct(
        case
        for architecture in ARCHITECTURES
        for chosen in (*CASES, *(MORE_CASES if architecture == SOLE_ARCHITECTURE else ()))
        for case in cases_of(*chosen, architecture)
    )


def cases_of(shape: tuple[int, int, int], dtype: torch.dtype, architecture: int) -> Iterator[StaticCase]:
    """The two kernels of tokens without their first one and contiguous others, beside float32 parameters."""
    batch, length, channels = shape

    def empty(*sizes: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*sizes, dtype=of, device="meta")

    x, other = empty(batch, length + 1, channels, of=dtype)[:, 1:], empty(*shape, of=dtype)
    vector, statistics = empty(channels), empty(batch, length)
    forward = launchers.forward_launch(x, other, other, vector, vector, 1e-6, other, statistics, statistics)
    backward, *sums = launchers.backward_launches(
        other, x, other, other, vector, statistics, statistics, (other, other, other, vector, vector), MULTIPROCESSORS
    )
    assert all(one.kernel is row_norm_sum_kernel for one in sums)  # add_layer_norm_static.py has it
    name = f"{str(dtype).removeprefix('torch.')} {batch}x{length}x{channels}"
    for direction, launch in (("forward", forward), ("backward", backward)):
        yield StaticCase.of_call(
            f"gated_fusion {direction} {name}",
            launch.kernel,
            architecture,
            {**launch.arguments, **launch.constants},
            **launch.options,
            expects=frozenset({"no_spills"} if dtype != torch.float32 else ()),
            trips=(launch.arguments["rows_each"] // launch.constants["BLOCK_M"],) if direction == "backward" else (),
            programs=math.prod(launch.grid),
            shape=name,
        )
