"""Nearest and farthest samples of a set among itself: each pair of blocks is multiplied once, for both its sides."""

from __future__ import annotations

import torch
from torch import Tensor

from motarfuse.ops.ranking import ranking_functions
from motarfuse.retrieval.features import PersonFeatures
from motarfuse.retrieval.ranks import PairRules
from motarfuse.retrieval.rows import pack_rows
from motarfuse.retrieval.scores import PART_EPSILON, PART_WEIGHT, exact_products

# Samples of a block: on a CPU its products with another (4 MB) and their transpose stay near the caches. No power of
# two, whose columns would share few places of a cache.
_CPU_BLOCK, _GPU_BLOCK = 1000, 8192


def nearest_and_farthest(samples: Tensor, k: int, block: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Each sample's k nearest by Euclidean distance, itself among them, and its largest squared distance.

    Decided by exact scores as in ``motarfuse.retrieval.tiles``. N^2 d FLOP: half of a search of all samples for all.

    Args:
        samples: (N, d) features.
        k: 1 to N.
        block: Samples at a time; None chooses.

    Returns:
        (N, k) int32, nearest first, ties by the lower index; their squared distances (N, k) float64, and the largest
        (N,), in the scale of packed rows.
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
    # Block by block: a filter of all rows at once would take several copies of them on its way.
    filters = [side.filter(some) for some in rows.split(size)]
    # Kept: memory that is given back and asked for again for each pair of blocks falls to pieces.
    buffers = torch.empty((2, min(size, count) ** 2), dtype=torch.float32, device=device)
    no_starts = torch.zeros(min(size, count) + 1, dtype=torch.int64, device=device)

    def collect(some: slice, first: int, entries: Tensor, scores: Tensor, slack: Tensor) -> None:
        starts = no_starts[: some.stop - some.start + 1]
        # Collecting the smallest turns the scores around; the largest, with nobody left out, leaves them as they are.
        for lists in (nearest, farthest):
            functions.collect_top(
                scores, slack, rows[some], entries, first, starts, nobody, *form, lists.largest, *free,
                lists.values[some], lists.indices[some], lists.filled[some],
            )  # fmt: skip

    # Each sample meets the blocks in their order: as a row those from its own on, before that as a column.
    for first in range(0, count, size):
        own = slice(first, min(first + size, count))
        entries = rows[own]
        columns = other.filter(entries)
        for start in range(0, first + 1, size):
            some = slice(start, min(start + size, count))
            shape = some.stop - start, len(entries)
            out = buffers[0, : shape[0] * shape[1]].view(shape)
            with exact_products(device):
                scores, slack = filters[start // size].scores(columns, out)
            turned = buffers[1, : shape[0] * shape[1]].view(shape[1], shape[0])
            torch.mul(scores.T, 1.0, out=turned)  # a copy, and unlike copy_ of a transpose one by all threads
            collect(some, first, entries, scores, slack)
            if start < first:
                # The largest bound of the rows holds for each of their pairs, whichever side is asked.
                collect(own, start, rows[some], turned, slack.max().expand(len(entries)).contiguous())
    return nearest.indices.to(torch.int32), nearest.values.neg_(), farthest.values[:, 0].neg()


class _Lists:
    """The best so far of every sample."""

    def __init__(self, count: int, k: int, largest: bool, device: torch.device) -> None:
        self.largest = largest
        worst = -torch.inf if largest else torch.inf
        self.values = torch.full((count, k), worst, dtype=torch.float64, device=device)
        self.indices = torch.full((count, k), -1, dtype=torch.int64, device=device)
        self.filled = torch.zeros(count, dtype=torch.int64, device=device)
