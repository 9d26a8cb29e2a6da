"""Ranks in small random galleries of one entry an identity: CUHK03's classic protocol. Source: Li et al. 2014."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SEED = 0
"""Of the draws, with the query's index: the same for every block size, device and run."""
# Pairs whose scores are asked for at once: 24 bytes each.
_PAIRS = 1 << 20

PairScores = Callable[[np.ndarray, np.ndarray], np.ndarray]


def draw_galleries(
    gallery_pids: np.ndarray, query_pid: int, query: int, left_out: np.ndarray, draws: int
) -> tuple[np.ndarray, int]:
    """One random entry of each identity for a query, several times.

    Args:
        gallery_pids: (G,) identities.
        query_pid: The query's identity, which has an entry that counts.
        query: Its index, which seeds the draws.
        left_out: Gallery columns that do not count for it.
        draws: How many galleries.

    Returns:
        (draws, identities) gallery columns, by rising identity, those without an entry that counts absent; and the
        place of the query's own identity.
    """
    order = np.argsort(gallery_pids, kind="stable")
    lots = np.random.default_rng([SEED, query]).random((draws, len(order)))
    counts = np.ones(len(order), dtype=bool)
    counts[left_out] = False
    lots[:, ~counts[order]] = -1.0
    identities, starts, sizes = np.unique(gallery_pids[order], return_index=True, return_counts=True)
    best = np.maximum.reduceat(lots, starts, axis=1)  # (draws, identities)
    there = best[0] >= 0
    # The first of equal lots, so that an identity never gets two entries.
    place = np.where(lots == np.repeat(best, sizes, axis=1), np.arange(len(order)), len(order))
    drawn = order[np.minimum.reduceat(place, starts, axis=1)[:, there]]
    return drawn, int(np.searchsorted(identities[there], query_pid))


def first_ranks_of_draws(
    pair_scores: PairScores,
    gallery_pids: np.ndarray,
    query_pids: np.ndarray,
    queries: np.ndarray,
    left_out: tuple[np.ndarray, np.ndarray],
    draws: int,
    ties: str = "stable",
) -> np.ndarray:
    """Rank of a query's own identity among one random entry of each identity, for several draws.

    rank = 1 + #{drawn g : s_g > s_p} + #{drawn g : s_g = s_p and g < p}, p the entry drawn of the query's identity.
    Each query draws anew, before any score is looked at, and only pairs that were drawn are scored: O(draws G) time a
    query for the lots.

    Args:
        pair_scores: Scores (m,) of the pairs of query indices (m,) and gallery columns (m,), larger is better.
        gallery_pids: (G,) identities.
        query_pids: (n,) identities; each has an entry that counts.
        queries: (n,) indices of the queries, which seed the draws.
        left_out: (n + 1,) where each query's begin, and the gallery columns that do not count for it.
        draws: How many galleries.
        ties: ``stable``; ``pessimistic`` and ``optimistic`` put p behind or before all entries of its score.

    Returns:
        (n, draws) int64, ranks from 1.
    """
    starts, columns = left_out
    ranks = np.empty((len(queries), draws), dtype=np.int64)
    waiting: list[tuple[int, np.ndarray, int]] = []
    size = 0
    for place, query in enumerate(queries.tolist()):
        gone = columns[starts[place] : starts[place + 1]]
        waiting.append((place, *draw_galleries(gallery_pids, int(query_pids[place]), query, gone, draws)))
        size += waiting[-1][1].size
        if size < _PAIRS and place + 1 < len(queries):
            continue
        rows = np.repeat(queries[[one[0] for one in waiting]], [one[1].size for one in waiting])
        scores = pair_scores(rows, np.concatenate([one[1].ravel() for one in waiting]))
        for one, drawn, own in waiting:
            values, scores = scores[: drawn.size].reshape(drawn.shape), scores[drawn.size :]
            target, entry = values[:, own, None], drawn[:, own, None]
            before = values > target
            if ties != "optimistic":
                equal = values == target
                before |= equal & ((drawn < entry) if ties == "stable" else (drawn != entry))
            ranks[one] = 1 + before.sum(axis=1)
        waiting, size = [], 0
    return ranks
