"""The specialisations of part_pool's kernels that are compiled without a GPU (`tools.kernel_report`)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from motarfuse.kernels import part_pool as launchers
from motarfuse.kernels._launch import Launch
from motarfuse.kernels._static import ARCHITECTURES, SOLE_ARCHITECTURE, StaticCase, distinct

# Batch, cells, channels, parts.
SHAPES = ((512, 128, 768, 8), (512, 128, 768, 32), (512, 2048, 64, 8), (512, 2048, 64, 32))
# Rows that are not aligned, many cells of many channels, few programs, more parts than persons have.
MORE_SHAPES = (
    (512, 211, 768, 8), (512, 211, 768, 32), (512, 2048, 768, 8), (512, 2048, 768, 32), (64, 128, 768, 8),
    (64, 128, 768, 32), (192, 128, 768, 8), (512, 128, 768, 64), (512, 2048, 768, 128),
)  # fmt: skip
# Of float32, whose kernels are compiled three times to prove that all products are made of three.
PROVEN_SHAPE = SHAPES[0]
BFLOAT16_FLOAT32 = (torch.bfloat16, torch.float32)
# Of tokens and of part logits, with the shapes that go with them.
CASES = (
    *((shape, BFLOAT16_FLOAT32) for shape in SHAPES),
    (PROVEN_SHAPE, (torch.float16, torch.float32)),
    (PROVEN_SHAPE, (torch.float32, torch.float32)),
)
MORE_CASES = (
    *((shape, BFLOAT16_FLOAT32) for shape in MORE_SHAPES),
    *((SHAPES[-1], (dtype, torch.float32)) for dtype in (torch.float16, torch.float32)),
    *((shape, (dtype, dtype)) for dtype in (torch.bfloat16, torch.float16) for shape in (SHAPES[0], SHAPES[-1])),
)


def static_cases() -> list[StaticCase]:
    """Forward and backward at shapes of the network, with all results and gradients."""
    return distinct(
        case
        for architecture in ARCHITECTURES
        for shape, dtypes in (*CASES, *(MORE_CASES if architecture == SOLE_ARCHITECTURE else ()))
        for case in cases_of(shape, *dtypes, architecture)
    )


def cases_of(
    shape: tuple[int, int, int, int], dtype: torch.dtype, logits_dtype: torch.dtype, architecture: int
) -> Iterator[StaticCase]:
    """The two kernels of contiguous tensors."""
    batch, cells, channels, parts = shape

    def empty(*sizes: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*sizes, dtype=of, device="meta")

    tokens, logits = empty(batch, cells, channels, of=dtype), empty(batch, parts + 1, cells, of=logits_dtype)
    pooled, mass = empty(batch, parts, channels, of=dtype), empty(batch, parts, of=logits_dtype)
    total, exact = empty(batch, parts), empty(batch, parts, channels)
    p = launchers.Problem(tokens, logits, pooled, architecture)
    launches = {
        "forward": launchers.forward_launch(p, pooled, mass, total, exact if p.half else None),
        "backward": launchers.backward_launch(p, pooled, mass, exact, total, tokens, logits),
    }
    kinds = "+".join(dict.fromkeys(str(one).removeprefix("torch.") for one in (dtype, logits_dtype)))
    name = f"{kinds} {batch}x{cells}x{channels} K{parts}"
    for direction, launch in launches.items():
        expects = {"matrix", "no_spills"} if p.half else {"matrix"}
        # Products with the few parts on their N axis; the short forward has them on M, so that results lie in rows.
        wide = launch.kernel is not launchers.part_pool_short_fwd_kernel and launch.constants["BLOCK_N"] >= 64
        expects |= {"wgmma"} if p.half and wide and architecture == 90 else set()
        expects |= {"tf32x3"} if dtype == torch.float32 and shape == PROVEN_SHAPE else set()
        yield StaticCase.of_call(
            f"part_pool {direction} {name}",
            launch.kernel,
            architecture,
            {**launch.arguments, **launch.constants},
            **launch.options,
            expects=frozenset(expects),
            trips=_trips(launch, p),
            programs=math.prod(launch.grid),
            shape=name,
            twin={"PRECISION": "tf32"} if "tf32x3" in expects else None,
        )


def _trips(launch: Launch, p: launchers.Problem) -> tuple[int, ...]:
    if launch.kernel is launchers.part_pool_short_fwd_kernel:
        return (launch.arguments["blocks_each"],)
    if launch.kernel is launchers.part_pool_fwd_kernel:
        return (-(-p.cells // launch.constants["BLOCK_N"]),)
    return (-(-p.channels // launch.constants["BLOCK_C"]),)
