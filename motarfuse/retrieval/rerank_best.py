"""The best entries of each query by re-ranked distances: mostly from what overlaps and the nearest neighbours alone.

An entry without overlap has its squared distance D as key, and no key is above its D. So what is before k entries of a
query is among its k nearest, or overlaps with it. The entries that share most, and the k-th nearest, bound the k-th key
from above; as keys fall with what is shared, that is a bound of what an entry must share at least to be among the best.
The nearest are known from the encoding; a query needs tiles of scores only where too few of those are in the gallery
and the bound is not below the D of all others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from motarfuse.retrieval.k_reciprocal import Overlaps, Shared
from motarfuse.retrieval.ranks import PairRules
from motarfuse.retrieval.rerank_order import RerankedOrder, joint_order

# Halvings of the bound of what must be shared: what they leave open is less than any query has many entries in.
_HALVINGS = 32


class Nearest:
    """The first entries of some queries by squared distance, ties by index.

    Attributes:
        columns, squared: (n, w) int64 and float64, -1 where a place has no entry.
        least: (n,) float64: no entry of the gallery is nearer.
        beyond: (n,) float64: no entry that is not listed is nearer; inf where the k nearest are.
        kth: (n,) float64 squared distance of the k-th, inf where fewer are listed.
    """

    def __init__(self, columns: Tensor, squared: Tensor, gallery: int, k: int) -> None:
        self.columns, self.squared = columns, squared
        there = columns >= 0
        listed = there.cumsum(dim=1)
        self.least = torch.minimum(squared.masked_fill(~there, torch.inf).amin(dim=1), squared[:, -1])
        self.kth = squared.masked_fill(~(there & (listed == k)), torch.inf).amin(dim=1)
        self.beyond = squared[:, -1].masked_fill(listed[:, -1] >= min(k, gallery), torch.inf)


def best_entries(order: RerankedOrder, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best entries of each query (n,) and their Jaccard distances, (n, k) each, k at most the gallery's size."""
    columns = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
    jaccard = torch.empty((len(queries), k), dtype=torch.float64, device=queries.device)
    rest = []
    for some, shared in order.encoding.blocks(queries):
        own = queries[some]
        if order.share == 0:
            columns[some], jaccard[some] = _best_by_jaccard(order, own, shared, k)
            continue
        nearest = Nearest(order.encoding.nearest[own], order.encoding.squared[own], order.gallery, k)
        decided = _best(order, own, shared, nearest, k, columns[some], jaccard[some])
        rest.append(some.start + (~decided).nonzero().flatten())
    if rest and len(others := torch.cat(rest)):
        for some, shared in order.encoding.blocks(queries[others]):
            places = others[some]
            own, found = queries[places], (columns[places], jaccard[places])
            _best(order, own, shared, Nearest(*_nearest(order, own, k), order.gallery, k), k, *found)
            columns[places], jaccard[places] = found
    return columns, jaccard


def _best(
    order: RerankedOrder, queries: Tensor, shared: Shared, nearest: Nearest, k: int, columns: Tensor, jaccard: Tensor
) -> Tensor:
    """Writes the best of those queries that need no more than is given into (n, k) tables; says which, (n,) bool."""
    tops = shared.overlaps(shared.kth(k))
    limit = torch.minimum(nearest.kth, _kth_key(tops, order.keys(queries[tops.rows], tops.columns, tops.jaccard), k))
    decided = torch.isinf(nearest.beyond) | (limit < nearest.beyond)
    least = _least_shared(order, queries, shared, nearest.least, limit).masked_fill(~decided, torch.inf)
    found = shared.overlaps(least)
    keys = order.keys(queries[found.rows], found.columns, found.jaccard)

    # The nearest as if they had no overlap. Those that have enough are among the found ones; of others the key is
    # beyond the limit, and so is what stands in its place here.
    alone = ((nearest.columns >= 0) & decided[:, None]).nonzero()
    rows, places = alone.unbind(1)
    near, squared = nearest.columns[rows, places], nearest.squared[rows, places]
    codes, known = order.codes(rows, near), order.codes(found.rows, found.columns)
    place = torch.searchsorted(known, codes)
    new = torch.cat([known, known.new_full((1,), -1)])[place] != codes
    near_rows, near, squared = rows[new], near[new], squared[new]
    rows, keys = torch.cat([found.rows, near_rows]), torch.cat([keys, squared])
    both = torch.cat([found.columns, near]), torch.cat([found.jaccard, torch.ones_like(squared)])
    inside = keys <= limit[rows]
    columns[decided], jaccard[decided] = _first(k, rows[inside], keys[inside], both[0][inside], both[1][inside])
    return decided


def _best_by_jaccard(order: RerankedOrder, queries: Tensor, shared: Shared, k: int) -> tuple[Tensor, Tensor]:
    """lambda = 0: what shares most, then, all equal, what shares nothing."""
    limit = shared.jaccard(shared.kth(k))
    found = shared.overlaps(_least_shared(order, queries, shared, limit, limit))
    others, filled = _first_others(found, order.gallery, k)
    there = torch.arange(k, device=queries.device) < filled[:, None]
    rows = torch.cat([found.rows, there.nonzero()[:, 0]])
    columns = torch.cat([found.columns, others[there]])
    jaccard = torch.cat([found.jaccard, torch.ones(len(rows) - len(found.rows)).to(found.jaccard)])
    return _first(k, rows, jaccard, columns, jaccard)


def _least_shared(order: RerankedOrder, queries: Tensor, shared: Shared, squared: Tensor, limit: Tensor) -> Tensor:
    """(n,) what a pair shares at least whose key is at most ``limit``, if none is nearer than ``squared``.

    Found by halving: the key of that distance falls with what is shared, in floating point too, so that a sum for which
    it is above the limit rules out all that are smaller.
    """
    low, high = torch.zeros_like(limit), torch.ones_like(limit)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        beyond = order.moved(squared, queries, shared.jaccard(middle)) > limit
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    return low


def _nearest(order: RerankedOrder, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest entries of each query and their squared distances, (n, k), by tiles of scores."""
    device = queries.device
    values = torch.full((len(queries), k), -torch.inf, dtype=torch.float64, device=device)
    columns = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    filled = torch.zeros(len(queries), dtype=torch.int64, device=device)
    starts, nobody = torch.zeros(len(queries) + 1, dtype=torch.int64, device=device), filled[:0]
    for tile in order.scored(queries):
        some = tile.queries
        order.tiles.functions.collect_top(
            tile.scores, tile.slack, tile.query, tile.gallery, tile.first, starts[some.start : some.stop + 1], nobody,
            *order.tiles.form, True, *PairRules().arguments(nobody, slice(0)), values[some], columns[some],
            filled[some],
        )  # fmt: skip
    return columns, values.neg_()


def _kth_key(overlaps: Overlaps, keys: Tensor, k: int) -> Tensor:
    """(n,) the k-th smallest key of each query's entries, inf where there are fewer."""
    starts = overlaps.starts
    found = torch.full((len(starts) - 1,), torch.inf, dtype=torch.float64, device=keys.device)
    order = keys.argsort()
    order = order[overlaps.rows[order].argsort(stable=True)]
    has = starts.diff() >= k
    found[has] = keys[order[starts[:-1][has] + k - 1]]
    return found


def _first(k: int, rows: Tensor, keys: Tensor, columns: Tensor, jaccard: Tensor) -> tuple[Tensor, Tensor]:
    """Columns and Jaccard distances of each row's k first entries, (n, k) of the n rows that have any."""
    order = joint_order(rows, keys, columns)
    counts = torch.bincount(rows)
    starts = (counts.cumsum(0) - counts)[counts > 0]
    first = order[starts[:, None] + torch.arange(k, device=rows.device)]
    return columns[first], jaccard[first]


def _first_others(entries: Overlaps, gallery: int, k: int) -> tuple[Tensor, Tensor]:
    """The first k gallery indices (n, k) of each query that are not among its entries, and how many there are (n,)."""
    starts, counts = entries.starts, entries.starts.diff()
    # The i-th entry has columns - i others before it: those below the j-th other are the ones with at most j of them.
    others = entries.columns - (torch.arange(len(entries.columns), device=starts.device) - starts[entries.rows])
    codes = entries.rows * (gallery + 1) + others
    places = torch.arange(k, device=starts.device)
    wanted = torch.arange(len(counts), device=starts.device)[:, None] * (gallery + 1) + places
    below = torch.searchsorted(codes, wanted.flatten(), right=True).view_as(wanted) - starts[:-1, None]
    return places + below, (gallery - counts).clamp(max=k)
