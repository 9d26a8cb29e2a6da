"""The specialisations of temporal_conv's kernels that are compiled without a GPU (`tools.kernel_report`)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from motarfuse.kernels import temporal_conv as launchers
from motarfuse.kernels._static import ARCHITECTURES, SOLE_ARCHITECTURE, StaticCase, distinct

MULTIPROCESSORS = 132
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
Shape = tuple[int, int, int, int]
# Batch, frames, tokens, channels; taps; dtypes of x and of the weights; whether frames are masked.
Case = tuple[Shape, int, torch.dtype, torch.dtype, bool]
CASES: tuple[Case, ...] = (
    ((64, 8, 129, 192), 3, BF16, FP32, True),
    ((64, 8, 129, 192), 3, FP32, FP32, True),
    ((64, 8, 129, 192), 15, BF16, FP32, True),
)
MORE_CASES: tuple[Case, ...] = (
    ((64, 8, 129, 192), 3, BF16, BF16, False),
    ((64, 8, 129, 192), 3, FP16, FP16, True),
    ((64, 8, 129, 192), 5, BF16, FP32, True),
    ((64, 8, 129, 192), 7, BF16, FP32, True),
    ((64, 8, 129, 192), 9, BF16, FP32, True),
    ((64, 8, 129, 24), 3, BF16, FP32, True),
    ((64, 1, 129, 192), 3, BF16, FP32, False),
)


def static_cases() -> list[StaticCase]:
    """Forward and backward at shapes of the network, with all gradients."""
    return distinct(
        case
        for architecture in ARCHITECTURES
        for chosen in (*CASES, *(MORE_CASES if architecture == SOLE_ARCHITECTURE else ()))
        for case in cases_of(*chosen, architecture)
    )


def cases_of(
    shape: Shape, width: int, dtype: torch.dtype, weight_dtype: torch.dtype, masked: bool, architecture: int
) -> Iterator[StaticCase]:
    """The kernels of contiguous tensors."""

    def empty(*sizes: int, of: torch.dtype = weight_dtype) -> torch.Tensor:
        return torch.empty(*sizes, dtype=of, device="meta")

    batch, frames, _, channels = shape
    x, weight, bias = empty(*shape, of=dtype), empty(channels, width), empty(channels)
    mask = empty(batch, frames, of=torch.bool) if masked else None
    p = launchers.Problem(x, weight, bias, mask, "hold")
    forward = launchers.forward_launch(p, x)
    p = launchers.Problem(x, weight, bias, mask, "hold", x)
    backward, total = launchers.backward_launches(p, x, weight, bias, MULTIPROCESSORS)
    kinds = "+".join(dict.fromkeys(str(one).removeprefix("torch.") for one in (dtype, weight_dtype)))
    name = f"{kinds} {'x'.join(map(str, shape))} k{width}{' masked' if masked else ''}"
    loads = -(-total.arguments["parts"] // total.constants["BLOCK_P"])
    # Loops over frames are unrolled by the number of taps, if few; what is left of them runs in a loop of its own.
    each = (frames // width, frames % width) if 1 < width <= 5 else (frames,)
    trips = {"forward": each, "backward": (backward.arguments["tasks_each"], *each), "sum": (loads,)}
    for direction, launch in {"forward": forward, "backward": backward, "sum": total}.items():
        yield StaticCase.of_call(
            f"temporal_conv {direction} {name}",
            launch.kernel,
            architecture,
            {**launch.arguments, **launch.constants},
            **launch.options,
            expects=frozenset({"no_spills"} if dtype != FP32 else ()),
            trips=trips[direction],
            programs=math.prod(launch.grid),
            shape=name,
        )
