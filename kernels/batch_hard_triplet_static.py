"""The specialisations of batch_hard_triplet's kernels that are compiled without a GPU (`tools.kernel_report`)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from motarfuse.kernels import batch_hard_triplet as launchers
from motarfuse.kernels._launch import Launch
from motarfuse.kernels._static import ARCHITECTURES, SOLE_ARCHITECTURE, StaticCase, distinct

Case = tuple[int, int, str, torch.dtype]
# Features, columns, metric: tiles of large and of small batches, of wide features, rows that are not aligned.
CASES: tuple[Case, ...] = (
    (512, 768, "euclidean", torch.bfloat16),
    (512, 768, "cosine", torch.bfloat16),
    (512, 768, "euclidean", torch.float32),
)
MORE_CASES: tuple[Case, ...] = (
    (64, 768, "cosine", torch.bfloat16),
    (4096, 2048, "cosine", torch.bfloat16),
    (211, 1001, "euclidean", torch.bfloat16),
    (512, 768, "euclidean", torch.float16),
    (64, 768, "cosine", torch.float32),
)


def static_cases() -> list[StaticCase]:
    """All kernels of a forward that saves for the backward, soft margin, and the backward."""
    return distinct(
        case
        for architecture in ARCHITECTURES
        for chosen in (*CASES, *(MORE_CASES if architecture == SOLE_ARCHITECTURE else ()))
        for case in cases_of(*chosen, architecture)
    )


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
