"""The specialisations of batch_hard_triplet's kernels that are compiled without a GPU (`tools.kernel_report`)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from motarfuse.kernels import batch_hard_triplet as launchers
from motarfuse.kernels._launch import Launch
from motarfuse.kernels._static import StaticCase

# Features, columns, metric: tiles of large and of small batches, of wide features, rows that are not aligned.
BFLOAT16_SHAPES = (
    (512, 768, "euclidean"), (512, 768, "cosine"), (64, 768, "cosine"), (4096, 2048, "cosine"), (211, 1001, "euclidean")
)  # fmt: skip
FLOAT32_SHAPES = ((512, 768, "euclidean"), (64, 768, "cosine"))
SHAPES = (
    *((torch.bfloat16, shape) for shape in BFLOAT16_SHAPES),
    (torch.float16, BFLOAT16_SHAPES[0]),
    *((torch.float32, shape) for shape in FLOAT32_SHAPES),
)


def static_cases() -> list[StaticCase]:
    """All kernels of a forward that saves for the backward, soft margin, and the backward."""
    cases: list[StaticCase] = []
    for architecture in (80, 90, 100):
        for dtype, (batch, dim, metric) in SHAPES:
            cases += cases_of(batch, dim, metric, dtype, architecture)
    return list({_compiled(case): case for case in reversed(cases)}.values())[::-1]


def _compiled(case: StaticCase) -> str:
    """The same of cases that compile to the same: the loss does not see dtype and columns."""
    return f"{case.kernel.__name__} {case.architecture} {case.signature} {case.constants} {case.divisible}"


def cases_of(batch: int, dim: int, metric: str, dtype: torch.dtype, architecture: int) -> Iterator[StaticCase]:
    """The kernels of contiguous features."""

    def empty(*sizes: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(sizes, dtype=of, device="meta")

    features, labels = empty(batch, dim, of=dtype), empty(batch, of=torch.int64)
    p = launchers.Problem(features, metric)
    tiles = launchers.mining_tiles(batch)
    num_splits, each = launchers.splits(batch, tiles)
    keys, indices = empty(2, num_splits, batch), empty(2, num_splits, batch, of=torch.int32)
    loss, skipped = empty(), empty(of=torch.int64)
    pairs = launchers.Pairs(empty(2, batch, of=torch.int32), empty(2, batch), empty(2, batch))
    lengths = launchers.Lengths(empty(batch), empty(batch)) if p.cosine else launchers.Lengths()
    launches: dict[str, tuple[Launch, tuple[int, ...]]] = {}
    if p.cosine:
        launches["norm"] = (launchers.norm_launch(p, lengths), ())
    mine = launchers.mine_launch(p, labels, lengths, keys, indices, tiles, each)
    launches["mine"] = (mine, (each, -(-dim // tiles.block_d)))
    total = launchers.loss_launch(p, keys, indices, loss, skipped, pairs, None)
    launches["loss"] = (total, (-(-batch // total.constants["BLOCK_M"]),))
    backward = launchers.backward_launch(p, loss, skipped, pairs, lengths, features)
    launches["backward"] = (backward, (-(-batch // backward.constants["CHUNK"]), 1))
    kind = str(dtype).removeprefix("torch.")
    name = f"{kind} {batch}x{dim} {metric}"
    for direction, (launch, trips) in launches.items():
        yield StaticCase.of_call(
            f"batch_hard_triplet {direction} {name}",
            launch.kernel,
            architecture,
            {**launch.arguments, **launch.constants},
            **launch.options,
            expects=frozenset({"ieee"} if dtype == torch.float32 else {"ieee", "no_spills"}),
            trips=trips,
            programs=math.prod(launch.grid),
            shape=name,
        )
