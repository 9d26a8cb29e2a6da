"""Nearest and farthest samples of a set among itself: each pair of blocks is multiplied once, for both its sides."""

from __future__ import annotations

import torch
from torch import Tensor

from motarfuse.ops.ranking import ranking_functions
from motarfuse.retrieval.features import PersonFeatures
from motarfuse.retrieval.ranks import PairRules
from motarfuse.retrieval.rows import Filter, pack_rows
from motarfuse.retrieval.scores import PART_EPSILON, PART_WEIGHT, exact_products

# Samples of a block: on a CPU its products with another (4 MiB) and their transpose stay near the caches.
_CPU_BLOCK, _GPU_BLOCK = 1024, 8192


def nearest_and_farthest(samples: Tensor, k: int, block: int | None = None) -> tuple[Tensor, Tensor]:
    """Each sample's k nearest by Euclidean distance, itself among them, and its largest squared distance.

    Decided by exact scores as in ``motarfuse.retrieval.tiles``. N^2 d FLOP: half of a search of all samples for all.

    Args:
        samples: (N, d) features.
        k: 1 to N.
        block: Samples at a time; None chooses.

    Returns:
        (N, k) int32, nearest first, ties by the lower index; and (N,) float64 in the scale of packed rows.
    """
    people = PersonFeatures(samples)
    side, other = pack_rows(people, people, "euclidean", "feature", None, None)
    rows, device, count = side.rows(), side.device, len(side)
    functions = ranking_functions(device)
    form = (side.form, side.widths, PART_WEIGHT, PART_EPSILON)
    nobody = torch.empty(0, dtype=torch.int64, device=device)
    free = PairRules().arguments(nobody, slice(0))
    nearest = _Lists(count, k, True, device)
    farthest = _Lists(count, 1, False, device)
    size = (_GPU_BLOCK if device.type == "cuda" else _CPU_BLOCK) if block is None else block
    filters = side.filter(rows)
    no_starts = torch.zeros(min(size, count) + 1, dtype=torch.int64, device=device)

    def collect(some: slice, first: int, entries: Tensor, scores: Tensor, slack: Tensor) -> None:
        starts = no_starts[: some.stop - some.start + 1]
        for lists in (farthest, nearest):
            # Whoever collects may write over the scores.
            given = scores.clone() if lists is farthest else scores
            functions.collect_top(
                given, slack, rows[some], entries, first, starts, nobody, *form, lists.largest, *free,
                lists.values[some], lists.indices[some], lists.filled[some],
            )  # fmt: skip

    # Each sample meets the blocks in their order: as a row those from its own on, before that as a column.
    for first in range(0, count, size):
        own = slice(first, min(first + size, count))
        entries = rows[own]
        columns = other.filter(entries)
        for start in range(0, first + 1, size):
            some = slice(start, min(start + size, count))
            out = torch.empty((some.stop - start, len(entries)), dtype=torch.float32, device=device)
            with exact_products(device):
                scores, slack = filters.select(some).scores(columns, out)
            if start < first:
                collect(own, start, rows[some], scores.T.contiguous(), _slack(filters, own, some))
            collect(some, first, entries, scores, slack)
    return nearest.indices.to(torch.int32), farthest.values[:, 0].neg()


class _Lists:
    """The best so far of every sample."""

    def __init__(self, count: int, k: int, largest: bool, device: torch.device) -> None:
        self.largest = largest
        worst = -torch.inf if largest else torch.inf
        self.values = torch.full((count, k), worst, dtype=torch.float64, device=device)
        self.indices = torch.full((count, k), -1, dtype=torch.int64, device=device)
        self.filled = torch.zeros(count, dtype=torch.int64, device=device)


def _slack(filters: Filter, rows: slice, columns: slice) -> Tensor:
    """The bound of the products of some rows with some columns, which is the same for both sides of a pair."""
    assert filters.reach is not None
    return (filters.reach[rows] + filters.reach[columns].max()).square_() * filters.bound
