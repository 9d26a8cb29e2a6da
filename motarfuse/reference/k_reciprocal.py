"""k-reciprocal encoding in plain PyTorch: sets of neighbours, averages of sparse rows, and what two of them share.

A set of rows is sparse: ``starts`` (n + 1,) int64, ``columns`` (m,) int32 ascending within a row, ``values`` (m,)
float64. Sums have one order: columns ascending, rows in the order in which they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from motarfuse.reference.ranking import rounded_sqrt, row_of

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


def _shared(room: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Places of what each row shares, and for each which row it is of."""
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return room[row] + torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row], row


def k_reciprocal_kth(room: Tensor, counts: Tensor, sums: Tensor, k: int, out: Tensor) -> None:
    """The k-th largest of the positive sums of each row.

    Args:
        room, counts, sums: (n + 1,) int64, (n,) int64 and (m,) float64 as of :func:`k_reciprocal_overlap`.
        k: At least 1.
        out: (n,) float64, 0 where a row has fewer: written.
    """
    places, row = _shared(room, counts)
    found = sums[places]
    order = found.argsort(descending=True)
    order = order[row[order].argsort(stable=True)]
    has = counts >= k
    out.zero_()
    out[has] = found[order[(counts.cumsum(0) - counts + k - 1)[has]]]


def k_reciprocal_select(
    room: Tensor,
    counts: Tensor,
    columns: Tensor,
    sums: Tensor,
    least: Tensor,
    starts: Tensor | None,
    out: Tensor,
    out_sums: Tensor | None,
) -> None:
    """What each row shares with a sum of at least ``least``.

    Args:
        room, counts, columns, sums: As of :func:`k_reciprocal_overlap`.
        least: (n,) float64.
        starts: (n + 1,) int64; None asks for the sizes.
        out: (n,) int64 sizes, or (m,) int32 columns, ascending within a row.
        out_sums: (m,) float64 where the columns are asked for.
    """
    places, row = _shared(room, counts)
    chosen = sums[places] >= least[row]
    if starts is None or out_sums is None:
        out.copy_(torch.bincount(row[chosen], minlength=len(counts)))
    else:
        some = slice(int(starts[0]), int(starts[-1]))
        out[some], out_sums[some] = columns[places[chosen]], sums[places[chosen]]


def _key(squared: Tensor, largest: Tensor, by: Tensor, power: int) -> Tensor:
    """``RerankVariant.earlier``."""
    if power == 0:
        return squared - 2 * by
    if power == 1:
        return squared - largest * by
    moved = squared.square() - largest.square() * by
    return torch.minimum(rounded_sqrt(moved.abs()).copysign(moved), squared)


def k_reciprocal_count_earlier(
    scores: Tensor,
    slack: Tensor,
    first: int,
    room: Tensor,
    counts: Tensor,
    columns: Tensor,
    sums: Tensor,
    largest: Tensor,
    gain: float,
    power: int,
    clamped: bool,
    starts: Tensor,
    thresholds: Tensor,
    left_out_starts: Tensor,
    left_out: Tensor,
    steps: Tensor,
    unsure: Tensor,
) -> None:
    """How many overlapping pairs come before a threshold by their key and not by their squared distance D.

    With J = 1 - m / (2 - m) and by = gain (1 - J), the key is D - 2 by (``power`` 0), D - largest by (1), or the root,
    with its sign, of D^2 - largest^2 by (2). Pairs whose float32 scores leave open which thresholds they come before
    are marked; so are, with ``power`` -1, those whose J is a threshold.

    Args:
        scores, slack: (n, T), (n,) float32: -D of the pair is within the slack; NaN is unknown.
        first: Gallery index of the first score's column.
        room, counts, columns, sums: As of :func:`k_reciprocal_overlap`, m in ``sums``.
        largest: (n,) float64, the largest D of each row.
        gain, power: Of the formula; ``power`` -1 has keys J, and no distance comes before a threshold.
        clamped: Whether a J below 0 is 0.
        starts, thresholds: (n + 1,) int64 and (p,) float64, rising within a row.
        left_out_starts, left_out: (n + 1,), (e,) int64: gallery indices that do not count, rising within a row.
        steps: (p,) int64: their sums from a row's first threshold up to one are added to what comes before it.
        unsure: (m,) bool, set where a pair's place is open; nothing is counted of it.
    """
    places, row = _shared(room, counts)
    column = columns[places].long()
    inside = (column >= first) & (column < first + scores.shape[1]) & (starts.diff() > 0)[row]
    places, row, column = places[inside], row[inside], column[inside]
    size = int(column.max()) + 1 if len(column) else 1
    out_row = row_of(left_out_starts - left_out_starts[0])
    listed = left_out[int(left_out_starts[0]) : int(left_out_starts[-1])]
    counted = ~torch.isin(row * size + column, (out_row * size + listed)[listed < size])
    jaccard = 1 - sums[places] / (2 - sums[places])
    if clamped:
        jaccard = jaccard.clamp(min=0)
    counted &= jaccard < 1
    places, row, column, jaccard = places[counted], row[counted], column[counted], jaccard[counted]

    asked = starts.diff()
    own = row_of(starts - starts[0])
    table = thresholds.new_full((len(asked), int(asked.max()) if len(asked) else 0), torch.inf)
    table[own, torch.arange(len(own), device=own.device) - (starts[:-1] - starts[0])[own]] = thresholds[
        int(starts[0]) : int(starts[-1])
    ]

    def place_of(values: Tensor, right: bool) -> Tensor:
        pieces = zip(values.split(_CELLS // 16), row.split(_CELLS // 16), strict=True)
        found = [torch.searchsorted(table[of], some[:, None], right=right).flatten() for some, of in pieces]
        # Lines are filled up with infinity, which is a bound too.
        return torch.minimum(torch.cat(found), asked[row]) if found else row.new_zeros(0)

    if power < 0:
        bounds, last = (jaccard, jaccard), asked[row]
        same = torch.ones_like(row, dtype=torch.bool)
    else:
        about, wide = scores[row, column - first].double(), slack[row].double()
        least = (-wide - about).nan_to_num(nan=0.0, posinf=torch.inf).clamp(min=0)
        most = (wide - about).nan_to_num(nan=torch.inf, posinf=torch.inf)
        by = gain * (1 - jaccard)
        bounds = _key(least, largest[row], by, power), _key(most, largest[row], by, power)
        last = place_of(most, True)
        same = place_of(least, False) == last
    step = place_of(bounds[0], False)
    # No threshold between the least key and the largest distance: nothing to count, however wide the bounds.
    reached = step < last
    same &= step == place_of(bounds[1], True)
    unsure[places[reached & ~same]] = True
    for place, sign in ((step, 1), (last, -1)):
        there = reached & same & (place < asked[row])
        target = starts[row[there]] + place[there]
        steps.index_add_(0, target, torch.full_like(target, sign))
