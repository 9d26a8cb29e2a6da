"""Ranks of given entries in the order of re-ranked distances: those of squared distances, and what overlaps change.

As no key is above its squared distance D, an entry comes before a key t by its D or, where it overlaps, by its key
alone. The first are counted as in any ranking; the second among the overlaps, by the same tiles of scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from motarfuse.ops.k_reciprocal import k_reciprocal_functions
from motarfuse.retrieval.k_reciprocal import Shared, row_of, starts_of
from motarfuse.retrieval.rerank_order import RerankedOrder, joint_order


def ranks_of(
    order: RerankedOrder, queries: Tensor, starts: Tensor, columns: Tensor, left_out_starts: Tensor, left_out: Tensor
) -> Tensor:
    """Ranks (m,) of entries, rising within a query, among all that are not left out.

    Args:
        order: The order.
        queries: (n,) int64.
        starts, columns: (n + 1,), (m,) int64, the entries of each query.
        left_out_starts, left_out: (n + 1,), (e,) int64, rising within a query: entries that do not count; none of
            ``columns``.
    """
    ranks = torch.empty_like(columns)
    for some, shared in order.encoding.blocks(queries):
        ends = slice(some.start, some.stop + 1)
        own, out = (slice(int(of[some.start]), int(of[some.stop])) for of in (starts, left_out_starts))
        lists = starts[ends] - own.start, columns[own], left_out_starts[ends] - out.start, left_out[out]
        ranks[own] = _ranks(order, queries[some], shared, *lists)
    return ranks


def _ranks(
    order: RerankedOrder,
    queries: Tensor,
    shared: Shared,
    starts: Tensor,
    columns: Tensor,
    left_out_starts: Tensor,
    left_out: Tensor,
) -> Tensor:
    device, row = queries.device, row_of(starts)
    jaccard = shared.jaccard(shared.find(row, columns))
    keys = order.keys(queries[row], columns, jaccard)
    sorted_by = joint_order(row, keys, columns)
    keys, columns, jaccard = keys[sorted_by], columns[sorted_by], jaccard[sorted_by]
    power = order.variant.power if order.variant.relative else 0
    formula = order.gain, -1 if order.share == 0 else power, shared.clamped
    largest = order.encoding.largest[queries]
    steps = torch.zeros_like(columns)
    unsure = torch.zeros(len(shared.columns), dtype=torch.bool, device=device)

    def count_overlaps(some: slice, first: int, scores: Tensor, slack: Tensor) -> None:
        ends = slice(some.start, some.stop + 1)
        k_reciprocal_functions(device).count_earlier(
            scores, slack, first, shared.room[ends], shared.counts[some], shared.columns, shared.sums, largest[some],
            *formula, starts[ends], keys, left_out_starts[ends], left_out, steps, unsure,
        )  # fmt: skip

    if order.share == 0:
        nothing = torch.zeros(1, order.gallery, device=device)
        count_overlaps(
            slice(0, len(queries)), 0, nothing.expand(len(queries), -1), torch.zeros(len(queries)).to(device)
        )
        # Those without overlap are equal and behind all with overlap; of them the lower indices come first.
        others = _others_before(order, shared, row, columns, row_of(left_out_starts), left_out)
        ranks = torch.where(jaccard < 1, 0, others) + 1
    else:
        # Scores fall as keys rise.
        turned = starts[row] + starts[row + 1] - 1 - torch.arange(len(row), device=device)
        thresholds, entries, counts = -keys[turned], columns[turned], torch.zeros_like(columns)
        for tile in order.scored(queries):
            ends = slice(tile.queries.start, tile.queries.stop + 1)
            # First: counting may write over the scores.
            count_overlaps(tile.queries, tile.first, tile.scores, tile.slack)
            order.tiles.functions.count_before(
                tile.scores, tile.slack, tile.query, tile.gallery, tile.first, starts[ends], thresholds, entries,
                left_out_starts[ends], left_out, *order.tiles.form, counts,
            )  # fmt: skip
        ranks = counts[turned] + 1
    sums = starts_of(steps)
    ranks += sums[1:] - sums[starts[row]]

    # Overlaps whose place the scores leave open, among them the entries that are asked for.
    places = unsure.nonzero().flatten()
    rows = torch.searchsorted(shared.room, places, right=True) - 1
    others, jaccard = shared.columns[places].long(), shared.jaccard(shared.sums[places])
    if order.share == 0:
        return ranks + _before(starts, keys, columns, rows, jaccard, others)
    squared = order.squared(queries[rows], others)
    ranks += _before(starts, keys, columns, rows, order.moved(squared, queries[rows], jaccard), others)
    return ranks - _before(starts, keys, columns, rows, squared, others)


def _before(starts: Tensor, keys: Tensor, columns: Tensor, rows: Tensor, values: Tensor, others: Tensor) -> Tensor:
    """How many of the pairs of ``rows``, with their ``values`` and columns ``others``, come before each key (m,).

    Keys begin at ``starts`` (n + 1,) and are in the order of their query, as their ``columns``. None is before itself.
    """
    row = row_of(starts)
    together = joint_order(torch.cat([row, rows]), torch.cat([keys, values]), torch.cat([columns, others]))
    is_other = together >= len(row)
    before = starts_of(is_other.long())[(~is_other).nonzero().flatten()]
    return before - starts_of(torch.bincount(rows, minlength=len(starts) - 1))[row]


def _others_before(
    order: RerankedOrder, shared: Shared, row: Tensor, columns: Tensor, out_rows: Tensor, left_out: Tensor
) -> Tensor:
    """How many entries with lower indices than ``columns`` neither overlap with their query nor are left out."""
    overlaps = shared.overlaps(torch.zeros_like(shared.counts, dtype=torch.float64))
    overlapping = order.codes(overlaps.rows, overlaps.columns)
    out = order.codes(out_rows, left_out)
    both = out[torch.isin(out, overlapping)]

    def below(codes: Tensor) -> Tensor:
        first = torch.searchsorted(codes, order.codes(row, torch.zeros_like(row)))
        return torch.searchsorted(codes, order.codes(row, columns)) - first

    return columns - below(overlapping) - below(out) + below(both)
