"""k-reciprocal encoding of all samples in sparse rows, and the Jaccard distances of those pairs that share anything."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from motarfuse.ops.k_reciprocal import k_reciprocal_functions
from motarfuse.retrieval.all_pairs import nearest_and_farthest
from motarfuse.retrieval.rerank_variants import RerankVariant
from motarfuse.retrieval.tiles import ScoreTiles

# Pairs that share something, of the queries that are looked at together: 100 bytes each.
OVERLAPS = 3 << 19
# ln 2 in two parts, the first with so few digits that its products with small whole numbers are exact.
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
_TERMS = 14


def row_of(starts: Tensor) -> Tensor:
    """Row of each entry of lists that begin at ``starts`` (n + 1,): 0, 0, 1, 1, 1, ..."""
    return torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())


def starts_of(counts: Tensor) -> Tensor:
    """(n + 1,) where lists of these lengths begin, one after the other."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


@dataclass(frozen=True)
class Overlaps:
    """Pairs of some queries with what their encodings share anything with; all others have a Jaccard distance of 1.

    Attributes:
        starts: (n + 1,) int64, where each query's entries begin.
        rows: (m,) int64, which of the queries.
        columns: (m,) int64 gallery indices, ascending within a query.
        jaccard: (m,) float64 distances below 1.
    """

    starts: Tensor
    rows: Tensor
    columns: Tensor
    jaccard: Tensor

    def select(self, chosen: Tensor) -> Overlaps:
        """Those where the mask (m,) is True."""
        rows = self.rows[chosen]
        starts = starts_of(torch.bincount(rows, minlength=len(self.starts) - 1))
        return Overlaps(starts, rows, self.columns[chosen], self.jaccard[chosen])


@dataclass(frozen=True)
class Encoding:
    """The queries' sparse rows of V, and the gallery's by column.

    Attributes:
        starts, columns, values: (Q + 1,) int64, (m,) int32 sample numbers and (m,) float64.
        inverse_starts, inverse_rows, inverse_values: (N + 1,) int64, where each sample's column begins; (m',) int32
            gallery indices and (m',) float64.
        gallery: Number of gallery entries.
        largest: (Q,) float64, each query's largest squared distance to any sample.
        clamped: Whether a Jaccard distance that rounding makes negative is 0.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    inverse_starts: Tensor
    inverse_rows: Tensor
    inverse_values: Tensor
    gallery: int
    largest: Tensor
    clamped: bool

    @cached_property
    def room(self) -> Tensor:
        """(Q,) int64, how many entries may overlap with a query at most."""
        met = starts_of(self.inverse_starts.diff()[self.columns.long()])[self.starts].diff()
        return met.clamp(max=self.gallery)

    def blocks(self, queries: Tensor) -> Iterator[slice]:
        """Stretches of these queries that have room for ``OVERLAPS`` pairs each, or are one query."""
        ends = self.room[queries].cumsum(0).tolist()
        first = 0
        while first < len(ends):
            before = ends[first - 1] if first else 0
            last = max(first + 1, bisect.bisect_right(ends, before + OVERLAPS))
            yield slice(first, last)
            first = last

    def overlaps(self, queries: Tensor) -> Overlaps:
        """What these queries (n,) share anything with. With m = sum_j min(V_qj, V_gj), J = 1 - m / (2 - m)."""
        room = starts_of(self.room[queries])
        counts = torch.empty_like(queries)
        found = torch.empty(int(room[-1]), dtype=torch.int32, device=queries.device)
        shared = torch.empty(len(found), dtype=torch.float64, device=queries.device)
        k_reciprocal_functions(queries.device).overlap(
            self.starts, self.columns, self.values, queries, self.inverse_starts, self.inverse_rows,
            self.inverse_values, self.gallery, room, counts, found, shared,
        )  # fmt: skip
        rows = row_of(starts_of(counts))
        places = torch.arange(len(rows), device=rows.device) + (room[:-1] - starts_of(counts)[:-1])[rows]
        shared = shared[places]
        jaccard = 1 - shared / (2 - shared)
        if self.clamped:
            jaccard.clamp_(min=0)
        overlaps = Overlaps(starts_of(counts), rows, found[places].long(), jaccard)
        less = jaccard < 1  # rounding leaves some at 1, where those without overlap are
        return overlaps if bool(less.all()) else overlaps.select(less)


def exp_negative(values: Tensor) -> Tensor:
    """exp(-x) of float64 x from 0 to 700 to about 1 ulp, of sums and products alone: the same bits on every device."""
    whole = (values / _LN2_HIGH).round()
    rest = (whole * _LN2_HIGH - values) + whole * _LN2_LOW  # -x + n ln 2, within ln 2 / 2 of 0
    result = torch.ones_like(rest)
    for term in range(_TERMS, 0, -1):
        result = rest / term * result + 1
    powers = torch.tensor([2.0**-n for n in range(1022)], dtype=torch.float64, device=values.device)
    return result * powers[whole.long()]


def encode(
    samples: Tensor, queries: int, k1: int, k2: int, variant: RerankVariant, block: int | None = None
) -> Encoding:
    """Encodes all samples.

    N(i, k) are the k nearest samples, ties by the lower index; R(i, k) = {j in N(i, k) : i in N(j, k)}; R*(i) adds
    R(c, h) of every c in R(i, k) that shares more than 2/3 of it, h = round(k1 / 2) + 1 (halves to even).
    V_ij = exp(-d_ij) on R*(i), divided by the row's sum, and averaged over the first neighbours of i.

    Args:
        samples: (N, d) features, the queries' rows first; validated.
        queries: How many rows are queries.
        k1, k2: Of the variant.
        variant: The formula.
        block: Samples at a time.
    """
    tiles = ScoreTiles(samples, samples, metric="euclidean", block=block)
    width = k1 + variant.more_k1
    neighbors, largest = nearest_and_farthest(samples, width, block)
    device = neighbors.device
    functions = k_reciprocal_functions(device)
    wide = functions.neighbors(neighbors, width)
    narrow = functions.neighbors(neighbors, min(round(k1 / 2) + 1, width))
    counts = torch.empty(len(samples), dtype=torch.int64, device=device)
    functions.expand(wide, narrow, None, counts)
    starts = starts_of(counts)
    columns = torch.empty(int(starts[-1]), dtype=torch.int32, device=device)
    functions.expand(wide, narrow, starts, columns)
    del wide, narrow

    rows = row_of(starts)
    squared = tiles.pair_scores(rows, columns.long()).neg_()
    values = exp_negative(variant.distance(squared, largest[rows]) * variant.weight)
    del rows, squared
    functions.normalize(starts, values)
    averaged = k2 + variant.more_k2
    if averaged > 1:
        # Added by sample number: equal sets of neighbours, in whatever order, have equal means.
        neighbors = neighbors[:, :averaged].sort(dim=1).values
        functions.average(starts, columns, values, neighbors, averaged, None, counts, None)
        new_starts = starts_of(counts)
        new_columns = torch.empty(int(new_starts[-1]), dtype=torch.int32, device=device)
        new_values = torch.empty(len(new_columns), dtype=torch.float64, device=device)
        functions.average(starts, columns, values, neighbors, averaged, new_starts, new_columns, new_values)
        starts, columns, values = new_starts, new_columns, new_values
    del neighbors

    # The gallery's entries by column: where an overlap can be.
    first = int(starts[queries])
    by_column = columns[first:].sort(stable=True).indices
    return Encoding(
        starts[: queries + 1].clone(),
        columns[:first].clone(),
        values[:first].clone(),
        starts_of(torch.bincount(columns[first:], minlength=len(samples))),
        row_of(starts[queries:]).to(torch.int32)[by_column],
        values[first:][by_column],
        len(samples) - queries,
        largest[:queries].clone(),
        variant.clamped,
    )
