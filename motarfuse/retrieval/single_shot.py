"""Ranks in small random galleries of one entry an identity: CUHK03's classic protocol. Source: Li et al. 2014."""

from __future__ import annotations

import numpy as np
from torch import Tensor

SEED = 0
"""Of the draws, with the query's index: the same for every block size, device and run."""


def first_ranks_of_draws(
    scores: Tensor, gallery_pids: np.ndarray, query_pids: np.ndarray, queries: np.ndarray, draws: int
) -> np.ndarray:
    """Rank of a query's own identity among one random entry of each identity, for several draws.

    rank = 1 + #{drawn g : s_g > s_p} + #{drawn g : s_g = s_p and g < p}, p the entry drawn of the query's identity.
    Each query draws anew. O(draws G) time a query and as much memory.

    Args:
        scores: (n, G) similarities; -inf for entries that do not count for the query and are never drawn.
        gallery_pids: (G,) identities.
        query_pids: (n,) identities; each has an entry that counts.
        queries: (n,) indices of the queries, which seed the draws.
        draws: How many galleries.

    Returns:
        (n, draws) int64, ranks from 1.
    """
    rows = scores.cpu().numpy()
    order = np.argsort(gallery_pids, kind="stable")
    identities, starts, sizes = np.unique(gallery_pids[order], return_index=True, return_counts=True)
    own = np.searchsorted(identities, query_pids)
    ranks = np.empty((len(queries), draws), dtype=np.int64)
    for place, query in enumerate(queries.tolist()):
        row = rows[place][order]  # (G,) by identity
        lots = np.random.default_rng([SEED, query]).random((draws, len(row)))
        lots[:, ~np.isfinite(row)] = -1.0
        best = np.maximum.reduceat(lots, starts, axis=1)  # (draws, identities)
        # The first of equal lots, so that an identity never gets two entries.
        drawn = np.stack(
            [starts + _first_equal(lots[draw], np.repeat(best[draw], sizes), starts) for draw in range(draws)]
        )
        values = row[drawn]  # -inf where none of the identity's entries counts
        target, entry = values[:, own[place], None], order[drawn[:, own[place], None]]
        before = (values > target) | ((values == target) & (order[drawn] < entry))
        ranks[place] = 1 + before.sum(axis=1)
    return ranks


def _first_equal(lots: np.ndarray, best: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Offset within each group of its first entry that has the group's best lot."""
    position = np.where(lots == best, np.arange(len(lots)), len(lots))
    first: np.ndarray = np.minimum.reduceat(position, starts) - starts
    return first


def share_found(ranks: np.ndarray, longest: int) -> np.ndarray:
    """CMC over queries and draws: (longest,) shares of (n, draws) ranks that are k or better, k = 1, 2, ..."""
    hits = np.bincount(np.minimum(ranks.ravel(), longest + 1), minlength=longest + 2)[1 : longest + 1]
    return hits.cumsum() / ranks.size
