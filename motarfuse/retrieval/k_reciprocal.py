"""k-reciprocal encoding of all samples in sparse rows, and the Jaccard distances of those pairs that share anything."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from motarfuse.ops.k_reciprocal import k_reciprocal_functions
from motarfuse.retrieval.all_pairs import nearest_and_farthest
from motarfuse.retrieval.rerank_variants import RerankVariant
from motarfuse.retrieval.tiles import ScoreTiles

# Pairs that may share something, of the queries that are looked at together: 13 bytes each.
OVERLAPS = 3 << 20
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
class Shared:
    """What some queries share with gallery entries, m = sum_j min(V_qj, V_gj), as it is found: with room between them.

    Attributes:
        room: (n + 1,) int64, where each query's room begins.
        counts: (n,) int64, how much of it is filled.
        columns: int32 gallery indices, ascending within a query.
        sums: float64, m of each, positive.
        clamped: Whether a Jaccard distance that rounding makes negative is 0.
    """

    room: Tensor
    counts: Tensor
    columns: Tensor
    sums: Tensor
    clamped: bool

    def jaccard(self, sums: Tensor) -> Tensor:
        """J = 1 - m / (2 - m). It falls with m, rounding included."""
        distance = 1 - sums / (2 - sums)
        return distance.clamp_(min=0) if self.clamped else distance

    def kth(self, k: int) -> Tensor:
        """(n,) the k-th largest m of each query, 0 where there are fewer."""
        out = torch.empty(len(self.counts), dtype=torch.float64, device=self.sums.device)
        k_reciprocal_functions(out.device).kth(self.room, self.counts, self.sums, k, out)
        return out

    def overlaps(self, least: Tensor) -> Overlaps:
        """Those of m not below ``least`` (n,)."""
        select = k_reciprocal_functions(least.device).select
        lists = self.room, self.counts, self.columns, self.sums
        counts = torch.empty_like(self.counts)
        select(*lists, least, None, counts, None)
        starts = starts_of(counts)
        columns = torch.empty(int(starts[-1]), dtype=torch.int32, device=least.device)
        sums = torch.empty(len(columns), dtype=torch.float64, device=least.device)
        select(*lists, least, starts, columns, sums)
        overlaps = Overlaps(starts, row_of(starts), columns.long(), self.jaccard(sums))
        less = overlaps.jaccard < 1  # rounding leaves some at 1, where those without overlap are
        return overlaps if bool(less.all()) else overlaps.select(less)

    def find(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(p,) float64, m of pairs of these queries (p,) and columns (p,); 0 where they share nothing."""
        first, last = self.room[rows], self.room[rows] + self.counts[rows]
        end = last
        for _ in range(int(self.counts.max()).bit_length() if len(self.counts) else 0):
            middle = (first + last) // 2
            below = (first < last) & (self.columns[middle.clamp(max=max(len(self.columns) - 1, 0))] < columns)
            first, last = torch.where(below, middle + 1, first), torch.where(below, last, middle)
        found = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        inside = first < end
        there = inside.nonzero().flatten()
        there = there[self.columns[first[there]] == columns[there]]
        found[there] = self.sums[first[there]]
        return found


@dataclass(frozen=True)
class Encoding:
    """The queries' sparse rows of V, and the gallery's by column.

    Attributes:
        starts, columns, values: (Q + 1,) int64, (m,) int32 sample numbers and (m,) float64.
        inverse_starts, inverse_rows, inverse_values: (N + 1,) int64, where each sample's column begins; (m',) int32
            gallery indices and (m',) float64.
        gallery: Number of gallery entries.
        largest: (Q,) float64, each query's largest squared distance to any sample.
        nearest, squared: (Q, k) int64 and float64, each query's nearest samples: their gallery indices, -1 of samples
            that are none, and squared distances.
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
    nearest: Tensor
    squared: Tensor
    clamped: bool

    @cached_property
    def room(self) -> Tensor:
        """(Q,) int64, how many entries may overlap with a query at most."""
        met = starts_of(self.inverse_starts.diff()[self.columns.long()])[self.starts].diff()
        return met.clamp(max=self.gallery)

    def select_gallery(self, kept: Tensor) -> Encoding:
        """The encoding with these gallery entries (n,), ascending; indices are then places among them."""
        place = torch.full((self.gallery,), -1, device=kept.device)
        place[kept] = torch.arange(len(kept), device=kept.device)
        rows = place[self.inverse_rows.long()]
        inside = rows >= 0
        return replace(
            self,
            inverse_starts=starts_of(inside.long())[self.inverse_starts],
            inverse_rows=rows[inside].to(torch.int32),
            inverse_values=self.inverse_values[inside],
            gallery=len(kept),
            nearest=torch.where(self.nearest < 0, -1, place[self.nearest]),
        )

    def blocks(self, queries: Tensor) -> Iterator[tuple[slice, Shared]]:
        """What these queries (n,) share, in stretches that have room for ``OVERLAPS`` pairs, or are one query.

        The next stretch is written over the one before.
        """
        room = starts_of(self.room[queries])
        ends, most = room.tolist(), 0
        stretches: list[slice] = []
        while not stretches or stretches[-1].stop < len(queries):
            first = stretches[-1].stop if stretches else 0
            last = max(first + 1, bisect.bisect_right(ends, ends[first] + OVERLAPS) - 1)
            stretches.append(slice(first, min(last, len(queries))))
            most = max(most, ends[stretches[-1].stop] - ends[first])
        # Kept: the system hands out large pieces of memory page by page, each time that they are asked for.
        found = torch.empty(most, dtype=torch.int32, device=queries.device)
        sums = torch.empty(most, dtype=torch.float64, device=queries.device)
        overlap = k_reciprocal_functions(queries.device).overlap
        for some in stretches:
            own = room[some.start : some.stop + 1] - room[some.start]
            size = ends[some.stop] - ends[some.start]
            shared = Shared(own, torch.empty_like(queries[some]), found[:size], sums[:size], self.clamped)
            overlap(
                self.starts, self.columns, self.values, queries[some], self.inverse_starts, self.inverse_rows,
                self.inverse_values, self.gallery, own, shared.counts, shared.columns, shared.sums,
            )  # fmt: skip
            yield some, shared


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
    neighbors, distances, largest = nearest_and_farthest(samples, width, block)
    nearest, nearest_squared = neighbors[:queries].long() - queries, distances[:queries].clone()
    nearest.clamp_(min=-1)
    del distances
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
        nearest,
        nearest_squared,
        variant.clamped,
    )
