"""The specialisations of motion attention's kernels that are compiled without a GPU (`tools.kernel_report`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from motarfuse.kernels import motion_attention as launchers
from motarfuse.kernels import motion_attention_table as table
from motarfuse.kernels._launch import Launch
from motarfuse.kernels._static import ARCHITECTURES, SOLE_ARCHITECTURE, StaticCase, distinct

# Batch, heads, queries, keys, head dim, motion channels.
HALF_SHAPES = (
    (64, 12, 129, 129, 64, 10), (64, 12, 243, 243, 64, 16), (64, 3, 129, 129, 32, 10), (16, 12, 1032, 1032, 64, 12),
    (16, 3, 1032, 1032, 32, 16), (16, 8, 1032, 1032, 128, 16), (64, 12, 128, 128, 64, 10),
)  # fmt: skip
FLOAT_SHAPES = ((16, 3, 1032, 1032, 32, 12), (16, 12, 1032, 1032, 64, 12), (16, 8, 1032, 1032, 128, 12))
# Of float32, whose kernels are compiled three times to prove that all products are made of three.
PROVEN_SHAPE = FLOAT_SHAPES[1]
MORE_HALF_SHAPES = (
    (64, 12, 138, 138, 64, 10), (64, 12, 211, 211, 64, 10), (64, 12, 243, 243, 64, 10), (64, 3, 243, 243, 32, 10),
    (16, 12, 1032, 1032, 64, 0), (16, 12, 1032, 1032, 64, 16), (16, 3, 1032, 1032, 32, 12), (64, 16, 257, 257, 80, 10),
    # Every cut of the short forward with 32 extra channels, with queries left over where that takes another tile.
    *((64, 12, 96 if keys <= 144 else 64, keys, 64, 16) for keys in table.SHORT_LENGTHS),
    *((64, 12, 64 + rest, 144, 64, 16) for rest in (0, 16)),
    *((64, 3, keys, keys, 32, 16) for keys in (144, 224)),
)  # fmt: skip


def static_cases() -> list[StaticCase]:
    """Every entry of the table, at shapes of the network and of common ViTs, in bfloat16 and float32."""
    cases: list[StaticCase] = []
    for architecture in ARCHITECTURES:
        half_shapes = (*HALF_SHAPES, *(MORE_HALF_SHAPES if architecture == SOLE_ARCHITECTURE else ()))
        for dtype, shapes in ((torch.bfloat16, half_shapes), (torch.float32, FLOAT_SHAPES)):
            for shape in shapes:
                cases += cases_of(shape, dtype, architecture)
    return distinct(cases)


def cases_of(shape: Sequence[int], dtype: torch.dtype, architecture: int) -> Iterator[StaticCase]:
    """The kernels of a forward and of a backward with all gradients, of slices of packed projections."""
    batch, heads, queries, keys, width, motion = shape

    def empty(*sizes: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*sizes, dtype=of, device="meta")

    qkv = [empty(batch, rows, 3, heads, width, of=dtype).permute(2, 0, 3, 1, 4) for rows in (queries, keys)]
    motions = [empty(batch, 1, rows, motion) if motion else None for rows in (queries, keys)]
    strength = empty(heads) if motion else None
    bias = empty(batch, heads, keys)
    p = launchers.Problem(qkv[0][0], qkv[1][1], qkv[1][2], *motions, strength, bias, width**-0.5, architecture)
    out, lse = launchers.rows_first(p.query, queries), empty(*launchers.statistics_shape(p.query))
    lengths = f"{queries}" if queries == keys else f"{queries}+{keys}"
    name = f"{str(dtype).removeprefix('torch.')} {batch}x{heads}x{lengths}x{width} R{motion}"
    launches = list(launchers.forward_launches(p, out, lse))
    rows = [launchers.rows_first(p.query, length) for length in (queries, keys, keys)]
    small = launchers.per_head(p, [empty(0), empty(0), empty(heads), bias], needs=127)
    wanted = launchers.Gradients(*rows, *small)
    launches += launchers.backward_launches(p, launchers.rows_first(p.query, queries), out, lse, wanted)
    launches.append(launchers.sum_heads(empty(batch, heads, keys, max(motion, 1)), empty(batch, 1, keys, motion)))
    for launch in launches:
        yield _case(launch, name, shape, p)


def _case(launch: Launch, name: str, shape: Sequence[int], p: launchers.Problem) -> StaticCase:
    kernel, constants = launch.kernel, launch.constants
    short_name = kernel.__name__.removeprefix("motion_attention_").removesuffix("_kernel")
    if kernel is launchers.motion_attention_bwd_key_kernel and launch.arguments["p_grad_key"] is None:
        short_name += " value alone"
    elif kernel is launchers.motion_attention_bwd_key_kernel and launch.arguments["p_grad_value"] is None:
        short_name += " without value"
    expects = {"no_spills"} if p.half else set()
    if "BLOCK_D" in constants:
        expects |= {"matrix", "wgmma"} if p.half and p.architecture == 90 else {"matrix"}
        expects |= {"tf32x3"} if p.dtype == torch.float32 and shape == PROVEN_SHAPE else set()
    return StaticCase.of_call(
        f"motion_attention {short_name} {name}",
        kernel,
        p.architecture,
        {**launch.arguments, **constants},
        **launch.options,
        expects=frozenset(expects),
        trips=_trips(launch, p),
        programs=math.prod(launch.grid),
        shape=name,
        twin={"PRECISION": "tf32"} if "tf32x3" in expects else None,
    )


def _trips(launch: Launch, p: launchers.Problem) -> tuple[int, ...]:
    """How often the loop runs; a second one, for float32's delta, likewise."""
    if "KEYS_0" in launch.constants:
        return (max(1, p.queries // launch.constants["BLOCK_M"] // launch.grid[1]),)
    if launch.kernel is launchers.motion_attention_bwd_key_kernel:
        return (p.queries // launch.constants["BLOCK_M"],)
    if "BLOCK_N" in launch.constants:
        return (p.keys // launch.constants["BLOCK_N"],) * (1 if p.half else 2)
    return (p.heads,)
