"""k-reciprocal encoding in plain PyTorch: sets of neighbours, averages of sparse rows, and what two of them share.

A set of rows is sparse: ``starts`` (n + 1,) int64, ``columns`` (m,) int32 ascending within a row, ``values`` (m,)
float64. Sums have one order: columns ascending, rows in the order in which they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from motarfuse.reference.ranking import row_of

# Cells of a temporary table.
_CELLS = 1 << 22


def k_reciprocal_neighbors(neighbors: Tensor, k: int) -> Tensor:
    """Of each sample's k nearest those that have it among their own k: R(i, k) = {j in N(i, k) : i in N(j, k)}.

    Args:
        neighbors: (N, K) int32, nearest first, K >= k.
        k: How many of them are looked at.

    Returns:
        (N, k) int32 ascending, filled up with N.
    """
    nearest = neighbors[:, :k].long()
    samples = len(nearest)
    own = torch.arange(samples, device=nearest.device)
    pieces = []
    for some in own.split(max(1, _CELLS // (k * k))):
        mutual = (nearest[nearest[some]] == some[:, None, None]).any(dim=2)
        pieces.append(torch.where(mutual, nearest[some], samples).sort(dim=1).values)
    return torch.cat(pieces).to(torch.int32)


def k_reciprocal_expand(wide: Tensor, narrow: Tensor, starts: Tensor | None, out: Tensor) -> None:
    """R(i) and the narrower R'(c) of those c in R(i) that share more than 2/3 of it: 3 |R(i) & R'(c)| > 2 |R'(c)|.

    Args:
        wide, narrow: (N, k), (N, h) int32 of :func:`k_reciprocal_neighbors`.
        starts: (N + 1,) int64; None asks for the sizes.
        out: (N,) int64 sizes, or (m,) int32 members, ascending within a sample.
    """
    samples, width = wide.shape
    # One more row for the samples that are none.
    none = narrow.new_full((1, narrow.shape[1]), samples)
    theirs_of = torch.cat([narrow, none])
    size = max(1, _CELLS // (width * narrow.shape[1] * max(1, width)))
    for first in range(0, samples, size):
        own = wide[first : first + size]
        theirs = theirs_of[own.long()]  # (n, width, narrow)
        exists = theirs < samples
        shared = ((theirs[..., None] == own[:, None, None, :]) & exists[..., None]).any(dim=3).sum(dim=2)
        taken = 3 * shared > 2 * exists.sum(dim=2)
        found = torch.where(taken[..., None], theirs, samples).flatten(1)
        members = torch.cat([own, found], dim=1).sort(dim=1).values
        new = members < samples
        new[:, 1:] &= members[:, 1:] != members[:, :-1]
        if starts is None:
            out[first : first + size] = new.sum(dim=1)
        else:
            out[starts[first] : starts[first + len(own)]] = members[new]


def k_reciprocal_normalize(starts: Tensor, values: Tensor) -> None:
    """Divides the values (m,) of each row by their sum, in place."""
    values /= _sums(starts, values)[row_of(starts)]


def _sums(starts: Tensor, values: Tensor) -> Tensor:
    """(n,) sums of consecutive values, from the first on."""
    counts = starts.diff()
    sums = values.new_zeros(len(counts))
    for place in range(int(counts.max()) if len(counts) else 0):
        rows = (counts > place).nonzero().flatten()
        sums[rows] += values[starts[rows] + place]
    return sums


def _places(starts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the entries of some sparse rows, one after the other, and for each which of ``rows`` it is of."""
    counts = (starts[1:] - starts[:-1])[rows]
    which = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
    ends = counts.cumsum(0)
    inside = torch.arange(len(which), device=rows.device) - (ends - counts)[which]
    return starts[rows][which] + inside, which


def _grouped(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending distinct keys and the sums of their values, in the order of the values."""
    keys, order = keys.sort(stable=True)
    keys, counts = keys.unique_consecutive(return_counts=True)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return keys, _sums(starts, values[order])


def k_reciprocal_average(
    starts: Tensor,
    columns: Tensor,
    values: Tensor,
    neighbors: Tensor,
    k: int,
    out_starts: Tensor | None,
    out: Tensor,
    out_values: Tensor | None,
) -> None:
    """Mean of the rows of each sample's k nearest: V'_i = 1/k sum_{j in N(i, k)} V_j.

    Args:
        starts, columns, values: V, one row a sample.
        neighbors: (N, K) int32, nearest first.
        k: How many rows are averaged.
        out_starts: (N + 1,) int64; None asks for the sizes.
        out: (N,) int64 sizes, or (m,) int32 columns.
        out_values: (m,) float64 where the rows are asked for.
    """
    samples = len(neighbors)
    # Entries of a mean are at most k times the largest row's.
    size = max(1, _CELLS // (k * max(1, int(starts.diff().max()) if samples else 1)))
    for first in range(0, samples, size):
        nearest = neighbors[first : first + size, :k].long()
        places, which = _places(starts, nearest.flatten())
        row = torch.div(which, k, rounding_mode="floor")
        keys, sums = _grouped(row * samples + columns[places], values[places])
        if out_starts is None or out_values is None:
            found = torch.div(keys, samples, rounding_mode="floor")
            out[first : first + size] = torch.bincount(found, minlength=len(nearest))
        else:
            some = slice(int(out_starts[first]), int(out_starts[first + len(nearest)]))
            out[some] = (keys % samples).to(torch.int32)
            out_values[some] = sums / k


def k_reciprocal_overlap(
    starts: Tensor,
    columns: Tensor,
    values: Tensor,
    queries: Tensor,
    inverse_starts: Tensor,
    inverse_rows: Tensor,
    inverse_values: Tensor,
    gallery: int,
    room: Tensor,
    counts: Tensor,
    out: Tensor,
    out_sums: Tensor,
) -> None:
    """What queries' rows share with those of the gallery: m_qg = sum_j min(V_qj, V_gj), where it is not 0.

    Args:
        starts, columns, values: V of all queries, positive.
        queries: (n,) int64, which of them.
        inverse_starts, inverse_rows, inverse_values: V of the gallery by columns: (N + 1,) int64 where each column
            begins, (m',) int32 gallery indices, ascending within a column, and (m',) float64.
        gallery: How many entries it has.
        room: (n + 1,) int64, where the room of each of the queries begins.
        counts: (n,) int64, how much of it is filled: written.
        out: int32 gallery indices, ascending within a query: written.
        out_sums: float64, m of each: written.
    """
    lengths = inverse_starts.diff()
    own, which = _places(starts, queries)
    met = torch.cat([lengths.new_zeros(1), lengths[columns[own].long()].cumsum(0)])
    ends = torch.cat([which.new_zeros(1), torch.bincount(which, minlength=len(queries)).cumsum(0)])
    met = met[ends]
    first = 0
    while first < len(queries):
        # As many queries as meet about _CELLS entries.
        last = int(torch.searchsorted(met, met[first] + _CELLS, right=True)) - 1
        last = min(max(first + 1, last), len(queries))
        some = slice(int(ends[first]), int(ends[last]))
        others, place = _places(inverse_starts, columns[own[some]].long())
        least = torch.minimum(values[own[some]][place], inverse_values[others])
        keys, sums = _grouped((which[some][place] - first) * gallery + inverse_rows[others], least)
        there = sums != 0
        keys, sums = keys[there], sums[there]
        row = torch.div(keys, max(gallery, 1), rounding_mode="floor")
        counts[first:last] = torch.bincount(row, minlength=last - first)
        found = counts[first:last]
        target = room[first:last][row] + torch.arange(len(row), device=row.device) - (found.cumsum(0) - found)[row]
        out[target] = (keys - row * gallery).to(torch.int32)
        out_sums[target] = sums
        first = last
