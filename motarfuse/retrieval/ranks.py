"""Places in a ranking, and its best entries: streams of tiles with exact decisions, in memory of the results' size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from motarfuse.retrieval.tiles import ScoreTiles, Tile


@dataclass(frozen=True)
class PairRules:
    """Which gallery entries a query may be answered with, pair by pair.

    Attributes:
        query_camids, gallery_camids, camera_rule: (Q,), (G,) int64; 0 none, 1 must differ, 2 must be equal. -1 is
            unknown: it differs from everything.
        query_pids, gallery_pids, pid_rule: The same of identities.
        query_times, gallery_times, earliest, latest: (Q,), (G,) float64: earliest <= t_g - t_q <= latest.
    """

    query_camids: Tensor | None = None
    gallery_camids: Tensor | None = None
    camera_rule: int = 0
    query_pids: Tensor | None = None
    gallery_pids: Tensor | None = None
    pid_rule: int = 0
    query_times: Tensor | None = None
    gallery_times: Tensor | None = None
    earliest: float = -torch.inf
    latest: float = torch.inf

    def arguments(self, queries: Tensor, columns: slice) -> tuple[Any, ...]:
        """The arguments of ``collect_top`` for some queries and a stretch of the gallery."""

        def pair(of_query: Tensor | None, of_gallery: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
            if of_query is None or of_gallery is None:
                return None, None
            return of_query[queries], of_gallery[columns]

        return (
            *pair(self.query_camids, self.gallery_camids),
            self.camera_rule,
            *pair(self.query_pids, self.gallery_pids),
            self.pid_rule,
            *pair(self.query_times, self.gallery_times),
            self.earliest,
            self.latest,
        )


def _nothing(tiles: ScoreTiles, count: int) -> tuple[Tensor, Tensor]:
    """Lists of entries to leave out, all empty."""
    return (
        torch.zeros(count + 1, dtype=torch.int64, device=tiles.device),
        torch.empty(0, dtype=torch.int64, device=tiles.device),
    )


def count_ranks(
    tiles: ScoreTiles,
    queries: Tensor,
    starts: Tensor,
    thresholds: Tensor,
    entries: Tensor,
    left_out_starts: Tensor | None = None,
    left_out: Tensor | None = None,
) -> Tensor:
    """How many gallery entries come before each threshold: rank - 1 where it is an entry's own score.

    Args:
        tiles: The scores.
        queries: (n,) int64 query indices.
        starts: (n + 1,) int64, where each query's thresholds begin.
        thresholds: (m,) float64 exact scores, rising within a query.
        entries: (m,) int64: entry g with an equal score comes before where g < entries[i].
        left_out_starts, left_out: (n + 1,), (e,) int64: gallery entries of each query that do not count, rising.

    Returns:
        (m,) int64.
    """
    if left_out_starts is None or left_out is None:
        left_out_starts, left_out = _nothing(tiles, len(queries))
    counts = torch.zeros(len(thresholds), dtype=torch.int64, device=tiles.device)
    for tile in tiles.tiles(queries):
        ends = slice(tile.queries.start, tile.queries.stop + 1)
        tiles.functions.count_before(
            tile.scores, tile.slack, tile.query, tile.gallery, tile.first, starts[ends], thresholds, entries,
            left_out_starts[ends], left_out, *tiles.form, counts,
        )  # fmt: skip
    return counts


def top_k(
    tiles: ScoreTiles,
    k: int,
    queries: Tensor | None = None,
    left_out_starts: Tensor | None = None,
    left_out: Tensor | None = None,
    rules: PairRules | None = None,
    largest: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k best entries of each query by exact scores, ties by the lower index.

    Args:
        tiles: The scores.
        k: How many; beyond the gallery's size places stay empty.
        queries: (n,) int64 query indices; None takes all.
        left_out_starts, left_out: As in :func:`count_ranks`.
        rules: Which pairs may be found.
        largest: False finds the k smallest scores.

    Returns:
        values (n, k) float64 exact scores, indices (n, k) int64 and filled (n,) int64: how many there are. Places
        beyond hold -inf (inf for the smallest) and -1.
    """
    chosen = torch.arange(tiles.shape[0], device=tiles.device) if queries is None else queries.to(tiles.device)
    count = len(chosen)
    if left_out_starts is None or left_out is None:
        left_out_starts, left_out = _nothing(tiles, count)
    rules = PairRules() if rules is None else rules
    values = torch.full((count, k), -torch.inf if largest else torch.inf, dtype=torch.float64, device=tiles.device)
    indices = torch.full((count, k), -1, dtype=torch.int64, device=tiles.device)
    filled = torch.zeros(count, dtype=torch.int64, device=tiles.device)
    for tile in tiles.tiles(queries):
        ends = slice(tile.queries.start, tile.queries.stop + 1)
        tiles.functions.collect_top(
            tile.scores, tile.slack, tile.query, tile.gallery, tile.first, left_out_starts[ends], left_out, *tiles.form,
            largest, *rules.arguments(chosen[tile.queries], _columns(tile)),
            values[tile.queries], indices[tile.queries], filled[tile.queries],
        )  # fmt: skip
    return values, indices, filled


def _columns(tile: Tile) -> slice:
    return slice(tile.first, tile.first + len(tile.gallery))
