"""The order of a gallery by re-ranked distances, without a queries x gallery table.

The final distance of a pair is d* = (1 - lambda) J + lambda d, with d a rising function of the squared Euclidean
distance D. Where two encodings share nothing, J = 1 and D alone decides. An entry with overlap takes its place among
those by its *key*: the squared distance, negative ones exist, at which a pair with J = 1 has the same d*. Keys cost an
exact D each; the tile of float32 scores that ranks the others bounds them, and most bounds decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from motarfuse.retrieval.features import PersonFeatures
from motarfuse.retrieval.k_reciprocal import Encoding, Overlaps, row_of, starts_of
from motarfuse.retrieval.ranks import PairRules
from motarfuse.retrieval.rerank_variants import RerankVariant
from motarfuse.retrieval.rows import Filter, pack_rows
from motarfuse.retrieval.scores import exact_products
from motarfuse.retrieval.tiles import CPU_TILE, GPU_TILE, ScoreTiles, Tile

# A lambda below this is far below what float64 resolves beside 1; its inverse must not overflow.
_LEAST_LAMBDA = 1e-200
# Cells of a table with one line a query.
_CELLS = 1 << 20


@dataclass(frozen=True)
class Bounded:
    """Entries that overlap with some queries, and float64 bounds of their keys: low <= key <= high, each (m,)."""

    overlaps: Overlaps
    codes: Tensor
    low: Tensor
    high: Tensor


class RerankedOrder:
    """What comes before what, for a gallery or some of its entries.

    With lambda = 0 keys are Jaccard distances, and all pairs without overlap have 1.

    Args:
        query, gallery: (Q, d), (G, d) features as the formula compares them.
        encoding: Of both.
        variant: The formula.
        share: Lambda.
        block: Queries a tile; None chooses.
        kept: Gallery entries that count, ascending; None takes all. Columns are places among them.
    """

    def __init__(
        self,
        query: Tensor,
        gallery: Tensor,
        encoding: Encoding,
        variant: RerankVariant,
        share: float,
        block: int | None,
        kept: Tensor | None = None,
    ) -> None:
        self.tiles = ScoreTiles(query, gallery, metric="euclidean", block=block)
        sides = PersonFeatures(query), PersonFeatures(gallery if kept is None else gallery[kept])
        self._packed, self._other = pack_rows(*sides, "euclidean", "feature", None, None)
        self._tile = GPU_TILE if self.tiles.device.type == "cuda" else CPU_TILE
        if block is not None:
            self._tile = (int(block), self._tile[1])
        self._stretches: list[tuple[Tensor, Filter]] | None = None
        self.encoding = encoding
        self.variant = variant
        self.share = share
        self._place: Tensor | None = None
        if kept is not None and len(kept) < len(gallery):
            self.tiles.select_gallery(kept)
            self._place = torch.full((len(gallery),), -1, device=self.tiles.device)
            self._place[kept] = torch.arange(len(kept), device=self.tiles.device)
        self.gallery = self.tiles.shape[1]

    def blocks(self, queries: Tensor) -> Iterator[tuple[slice, Overlaps]]:
        """Stretches of these queries with what overlaps, in as many pieces as memory wants."""
        for some in self.encoding.blocks(queries):
            overlaps = self.encoding.overlaps(queries[some])
            if self._place is not None:
                place = self._place[overlaps.columns]
                inside = place >= 0
                chosen = overlaps.select(inside)
                overlaps = Overlaps(chosen.starts, chosen.rows, place[inside], chosen.jaccard)
            yield some, overlaps

    def codes(self, rows: Tensor, columns: Tensor) -> Tensor:
        """One number a pair, in the order of the pairs."""
        return rows * self.gallery + columns

    def jaccard(self, overlaps: Overlaps, rows: Tensor, columns: Tensor) -> Tensor:
        """Jaccard distances (m,) of pairs, whose rows are those of ``overlaps``."""
        place, there = _find(self.codes(overlaps.rows, overlaps.columns), self.codes(rows, columns))
        found = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
        found[there] = overlaps.jaccard[place[there]]
        return found

    def keys(self, queries: Tensor, columns: Tensor, jaccard: Tensor) -> Tensor:
        """Keys (m,) of pairs of queries (m,) and columns (m,) whose Jaccard distances are known."""
        if self.share == 0:
            return jaccard
        squared = self.tiles.pair_scores(queries, columns).neg_()
        return self._moved(squared, queries, jaccard)

    def _moved(self, squared: Tensor, queries: Tensor, jaccard: Tensor) -> Tensor:
        gain = (1 - self.share) / max(self.share, _LEAST_LAMBDA) * (1 - jaccard)
        return torch.where(jaccard < 1, self.variant.earlier(squared, self.encoding.largest[queries], gain), squared)

    def final(self, squared: Tensor, jaccard: Tensor, largest: Tensor) -> Tensor:
        """d* of squared distances."""
        return (1 - self.share) * jaccard + self.share * self.variant.distance(squared, largest)

    def _scored(self, queries: Tensor) -> Iterator[Tile]:
        """``ScoreTiles.tiles`` of a few queries at a time: what it makes of the gallery is kept for the next ones."""
        if self._stretches is None:
            self._stretches = [(some, self._other.filter(some)) for some in self._other.rows().split(self._tile[1])]
        source = self._packed.select(queries)
        buffer = torch.empty(
            min(self._tile[0], len(source)) * self._tile[1], dtype=torch.float32, device=queries.device
        )
        for start in range(0, len(source), self._tile[0]):
            query = source.rows(slice(start, start + self._tile[0]))
            filters, first = source.filter(query), 0
            for gallery, others in self._stretches:
                out = buffer[: len(query) * len(gallery)].view(len(query), len(gallery))
                with torch.no_grad(), exact_products(query.device):
                    scores, slack = filters.scores(others, out)
                yield Tile(slice(start, start + len(query)), first, scores, slack, query, gallery)
                first += len(gallery)

    def scan(self, queries: Tensor, overlaps: Overlaps, visit: Callable[[Tile], None]) -> Bounded:
        """Shows the tiles of these queries to ``visit``, and bounds the keys of the overlapping entries by them."""
        codes = self.codes(overlaps.rows, overlaps.columns)
        if self.share == 0:
            return Bounded(overlaps, codes, overlaps.jaccard, overlaps.jaccard)
        low, high = torch.empty_like(overlaps.jaccard), torch.empty_like(overlaps.jaccard)
        for tile in self._scored(queries):
            own = torch.arange(tile.queries.start, tile.queries.stop, device=codes.device)
            ends = self.codes(
                own[:, None], torch.tensor([tile.first, tile.first + len(tile.gallery)], device=own.device)
            )
            begin, end = torch.searchsorted(codes, ends).unbind(1)
            lengths = starts_of(end - begin)
            which = row_of(lengths)
            places = torch.arange(len(which), device=which.device) + (begin - lengths[:-1])[which]
            about = tile.scores[which, overlaps.columns[places] - tile.first].double()
            slack = tile.slack.double()[which]
            # NaN: a score that is unknown, or infinite beside an infinite slack.
            least = (-slack - about).nan_to_num_(nan=0.0).clamp_(min=0)
            most = (slack - about).nan_to_num_(nan=torch.inf)
            of, jaccard = queries[tile.queries][which], overlaps.jaccard[places]
            low[places], high[places] = self._moved(least, of, jaccard), self._moved(most, of, jaccard)
            visit(tile)
        return Bounded(overlaps, codes, low, high)

    # Best entries ----------------------------------------------------------------------------------------------------

    def best(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best entries of each query and their Jaccard distances, (n, k) each, k at most the gallery's size."""
        columns = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
        jaccard = torch.empty((len(queries), k), dtype=torch.float64, device=queries.device)
        rest = []
        for some, overlaps in self.blocks(queries):
            decided = self._best_of_overlaps(queries[some], overlaps, k, columns[some], jaccard[some])
            rest.append(some.start + (~decided).nonzero().flatten())
        others = torch.cat(rest)
        for some, overlaps in self.blocks(queries[others]):
            places = others[some]
            columns[places], jaccard[places] = self._best(queries[places], overlaps, k)
        return columns, jaccard

    def _best_of_overlaps(
        self, queries: Tensor, overlaps: Overlaps, k: int, columns: Tensor, jaccard: Tensor
    ) -> Tensor:
        """``best`` of the queries that need no tile, written into (n, k) tables; gives back which they are, (n,) bool.

        The key of a pair without overlap is its squared distance. Where k entries with overlap have negative keys,
        nothing else is among the best.
        """
        if self.share == 0:
            return torch.zeros(len(queries), dtype=torch.bool, device=queries.device)
        # The entries of the k least Jaccard distances bound the k-th key; where there are fewer, nothing does.
        last = _kth_smallest(overlaps.starts, overlaps.jaccard, k)
        last = torch.where(torch.isinf(last), -torch.inf, last)
        first = (overlaps.jaccard <= last[overlaps.rows]).nonzero().flatten()
        rows, shared = overlaps.rows[first], overlaps.jaccard[first]
        keys = self.keys(queries[rows], overlaps.columns[first], shared)
        limit = _kth_smallest(starts_of(torch.bincount(rows, minlength=len(queries))), keys, k)
        decided = limit < 0
        # Of the overlaps, those whose key at a distance of 0 is not beyond that.
        near = decided[overlaps.rows].nonzero().flatten()
        rows, shared = overlaps.rows[near], overlaps.jaccard[near]
        chosen = self._moved(torch.zeros_like(shared), queries[rows], shared) <= limit[rows]
        near, rows, shared = near[chosen], rows[chosen], shared[chosen]
        keys = self.keys(queries[rows], overlaps.columns[near], shared)
        columns[decided], jaccard[decided] = _first(k, rows, keys, overlaps.columns[near], shared)
        return decided

    def _best(self, queries: Tensor, overlaps: Overlaps, k: int) -> tuple[Tensor, Tensor]:
        count, device = len(queries), queries.device
        values = torch.full((count, k), -torch.inf, dtype=torch.float64, device=device)
        others = torch.full((count, k), -1, dtype=torch.int64, device=device)
        filled = torch.zeros(count, dtype=torch.int64, device=device)

        def visit(tile: Tile) -> None:
            some = tile.queries
            self.tiles.functions.collect_top(
                tile.scores, tile.slack, tile.query, tile.gallery, tile.first,
                overlaps.starts[some.start : some.stop + 1], overlaps.columns, *self.tiles.form, True,
                *PairRules().arguments(queries, slice(0)), values[some], others[some], filled[some],
            )  # fmt: skip

        bounded = self.scan(queries, overlaps, visit)
        if self.share == 0:
            others, filled = _first_others(overlaps, self.gallery, k)
            values = torch.full_like(values, -1.0)
        there = torch.arange(k, device=device) < filled[:, None]
        # Neither the k-th of the others nor the k-th of the upper bounds can be beaten by what is not below them.
        last = torch.where(filled == k, -values[:, -1], torch.inf)
        last = torch.minimum(last, _kth_smallest(overlaps.starts, bounded.high, k))
        chosen = bounded.low <= last[overlaps.rows]
        rows, columns, shared = overlaps.rows[chosen], overlaps.columns[chosen], overlaps.jaccard[chosen]
        keys = torch.cat([self.keys(queries[rows], columns, shared), -values[there]])
        rows = torch.cat([rows, torch.arange(count, device=device)[:, None].expand(-1, k)[there]])
        columns = torch.cat([columns, others[there]])
        shared = torch.cat([shared, torch.ones(int(filled.sum()), dtype=torch.float64, device=device)])
        return _first(k, rows, keys, columns, shared)

    # Ranks -----------------------------------------------------------------------------------------------------------

    def ranks(
        self, queries: Tensor, starts: Tensor, columns: Tensor, left_out_starts: Tensor, left_out: Tensor
    ) -> Tensor:
        """Ranks (m,) of entries, rising within a query, among all that are not left out.

        Args:
            queries: (n,) int64.
            starts, columns: (n + 1,), (m,) int64, the entries of each query.
            left_out_starts, left_out: (n + 1,), (e,) int64: entries that do not count; none of ``columns``.
        """
        ranks = torch.empty_like(columns)
        for some, overlaps in self.blocks(queries):
            ends = slice(some.start, some.stop + 1)
            own, out = (slice(int(of[some.start]), int(of[some.stop])) for of in (starts, left_out_starts))
            first, out_first = starts[ends] - own.start, left_out_starts[ends] - out.start
            ranks[own] = self._ranks(
                queries[some], overlaps, first, columns[own], self.codes(row_of(out_first), left_out[out])
            )
        return ranks

    def _ranks(self, queries: Tensor, overlaps: Overlaps, starts: Tensor, columns: Tensor, left_out: Tensor) -> Tensor:
        """``left_out`` holds codes of pairs here, ascending."""
        codes = self.codes(overlaps.rows, overlaps.columns)
        row = row_of(starts)
        jaccard = self.jaccard(overlaps, row, columns)
        keys = self.keys(queries[row], columns, jaccard)
        order = joint_order(row, keys, columns)
        keys, columns, overlap = keys[order], columns[order], jaccard[order] < 1

        place, inside = _find(codes, left_out)
        counted = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
        counted[place[inside]] = False
        hidden = _merged(codes, left_out[~inside], place[~inside])
        hidden_starts = torch.searchsorted(hidden, torch.arange(len(queries) + 1, device=row.device) * self.gallery)
        hidden_columns = hidden % self.gallery
        # Scores fall as keys rise.
        turned = starts[row] + starts[row + 1] - 1 - torch.arange(len(row), device=row.device)
        thresholds, entries, counts = -keys[turned], columns[turned], torch.zeros_like(columns)

        def visit(tile: Tile) -> None:
            ends = slice(tile.queries.start, tile.queries.stop + 1)
            self.tiles.functions.count_before(
                tile.scores, tile.slack, tile.query, tile.gallery, tile.first, starts[ends], thresholds, entries,
                hidden_starts[ends], hidden_columns, *self.tiles.form, counts,
            )  # fmt: skip

        bounded = self.scan(queries, overlaps, visit)
        ranks = counts[turned] + 1
        if self.share == 0:
            # Those without overlap are equal and behind all with overlap; of them the lower indices come first.
            before = columns - (torch.searchsorted(hidden, self.codes(row, columns)) - hidden_starts[row])
            ranks += torch.where(overlap, 0, before)
        surely, unsure = _count_bounded(bounded, counted, starts, keys)
        ranks += surely

        rows = overlaps.rows[unsure]
        exact = self.keys(queries[rows], overlaps.columns[unsure], overlaps.jaccard[unsure])
        # Both in one order, an entry of which the rank is asked before itself.
        together = joint_order(
            torch.cat([row, rows]), torch.cat([keys, exact]), torch.cat([columns, overlaps.columns[unsure]])
        )
        is_entry = together >= len(row)
        before = starts_of(is_entry.long())
        asked = (~is_entry).nonzero().flatten()
        before_row = starts_of(torch.bincount(rows, minlength=len(queries)))
        return ranks + before[asked] - before_row[row]


def joint_order(rows: Tensor, keys: Tensor, columns: Tensor) -> Tensor:
    """The stable order by row, then key, then column."""
    order = columns.argsort(stable=True)
    order = order[keys[order].argsort(stable=True)]
    return order[rows[order].argsort(stable=True)]


def _first(k: int, rows: Tensor, keys: Tensor, columns: Tensor, jaccard: Tensor) -> tuple[Tensor, Tensor]:
    """Columns and Jaccard distances of each row's k first entries, (n, k) of the n rows that have any."""
    order = joint_order(rows, keys, columns)
    counts = torch.bincount(rows)
    starts = (counts.cumsum(0) - counts)[counts > 0]
    first = order[starts[:, None] + torch.arange(k, device=rows.device)]
    return columns[first], jaccard[first]


def _find(codes: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where each of ``wanted`` is in an ascending list or would be, and whether it is there."""
    place = torch.searchsorted(codes, wanted)
    there = torch.zeros_like(wanted, dtype=torch.bool)
    inside = place < len(codes)
    there[inside] = codes[place[inside]] == wanted[inside]
    return place, there


def _merged(codes: Tensor, more: Tensor, places: Tensor) -> Tensor:
    """Two ascending lists as one; ``places`` says where the second's belong in the first."""
    if not len(more):
        return codes
    target = places + torch.arange(len(more), device=more.device)
    result = codes.new_empty(len(codes) + len(more))
    old = torch.ones(len(result), dtype=torch.bool, device=codes.device)
    old[target] = False
    result[target], result[old] = more, codes
    return result


def _tables(starts: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Lists side by side, in pieces: (rows, entries, each entry's line and place in the piece's table)."""
    counts = starts.diff()
    ends, most, first = starts.tolist(), 0, 0
    lengths = counts.tolist()
    for row, length in enumerate(lengths):
        most = max(most, length)
        after = row + 1
        grown = max(most, lengths[after]) if after < len(lengths) else most
        if after < len(lengths) and (after + 1 - first) * grown <= _CELLS:
            continue
        some, entries = slice(first, after), slice(ends[first], ends[after])
        line = row_of(starts[first : after + 1])
        place = torch.arange(entries.start, entries.stop, device=starts.device) - starts[:-1][some][line]
        yield some, entries, line, place
        first, most = after, 0


def _kth_smallest(starts: Tensor, values: Tensor, k: int) -> Tensor:
    """(n,) the k-th smallest value of each list, inf where there are fewer."""
    found = torch.full((len(starts) - 1,), torch.inf, dtype=torch.float64, device=values.device)
    for some, entries, line, place in _tables(starts):
        width = int(place.max()) + 1 if len(place) else 0
        if width < k:
            continue
        table = torch.full((some.stop - some.start, width), torch.inf, dtype=torch.float64, device=values.device)
        table[line, place] = values[entries]
        found[some] = table.topk(k, dim=1, largest=False, sorted=False).values.amax(dim=1)
    return found


def _count_bounded(bounded: Bounded, counted: Tensor, starts: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """How many bounded entries surely come before each key, and the places of those that must be looked at exactly.

    Args:
        bounded: The entries; those where ``counted`` (m,) is False do not count.
        starts, keys: (n + 1,) int64, (p,) float64 rising within a query.
    """
    count, device = len(starts) - 1, keys.device
    row = row_of(starts)
    width = int(starts.diff().max()) if count else 0
    limits = torch.full((count, width), torch.inf, dtype=torch.float64, device=device)
    limits[row, torch.arange(len(row), device=device) - starts[row]] = keys
    before = torch.zeros((count, width + 1), dtype=torch.int64, device=device)
    unsure = torch.zeros(len(counted), dtype=torch.bool, device=device)
    for some, entries, line, place in _tables(bounded.overlaps.starts):
        if not len(place):
            continue
        table = torch.full(
            (some.stop - some.start, int(place.max()) + 1), torch.inf, dtype=torch.float64, device=device
        )
        table[line, place] = bounded.high[entries]
        after = torch.searchsorted(limits[some], table, right=True)[line, place]
        table[line, place] = bounded.low[entries]
        same = torch.searchsorted(limits[some], table)[line, place] == after
        inside = counted[entries]
        sure = same & inside
        unsure[entries] = ~same & inside
        codes = line[sure] * (width + 1) + after[sure]
        table_size = (some.stop - some.start) * (width + 1)
        before[some] = torch.bincount(codes, minlength=table_size).view(-1, width + 1)
    sums = before.cumsum(dim=1)
    return sums[row, torch.arange(len(row), device=device) - starts[row]], unsure.nonzero().flatten()


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
