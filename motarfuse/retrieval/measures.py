"""From the ranks of each query's positives to its average precision, INP and place on the CMC curve."""

from __future__ import annotations

from typing import Any

import numpy as np

CMC_RANKS = 50


def average_precisions(ranks: np.ndarray, starts: np.ndarray, kind: str) -> np.ndarray:
    """Average precision of each query.

    With a query's ranks r_1 < ... < r_P:

        step       1/P sum_i i / r_i
        trapezoid  1/P sum_i ((i - 1) / (r_i - 1) + i / r_i) / 2, the first term 1 where r_i = 1

    The trapezoid has the precision just before a positive and at it as its sides, from a precision of 1 before the
    first entry: it is lower, most of all for queries whose first positive is not first.

    Args:
        ranks: (m,) int64, all queries' ranks one after the other, rising within a query.
        starts: (n + 1,) int64 where each query's begin; each has at least one.
        kind: ``step`` or ``trapezoid``.

    Returns:
        (n,) float64.

    Source: Philbin et al. 2007, "Object Retrieval with Large Vocabularies and Fast Spatial Matching" (compute_ap of
    their evaluation, which those of Market-1501 and MARS follow).
    """
    counts = np.diff(starts)
    place = np.arange(1, len(ranks) + 1) - np.repeat(starts[:-1], counts)  # i, from 1 in each query
    precision = place / ranks
    if kind == "trapezoid":
        before = np.divide(place - 1, ranks - 1, out=np.ones(len(ranks)), where=ranks > 1)
        precision = (precision + before) / 2
    total: np.ndarray = np.add.reduceat(precision, starts[:-1])
    return total / counts


def inverse_penalties(ranks: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """INP of each query, (n,): P / r_P. Arguments as in :func:`average_precisions`. Source: Ye et al. 2021."""
    inp: np.ndarray = np.diff(starts) / ranks[starts[1:] - 1]
    return inp


def share_found(ranks: np.ndarray, longest: int = CMC_RANKS) -> np.ndarray:
    """CMC over queries and draws: (longest,) shares of (n, draws) ranks that are k or better, k = 1, 2, ..."""
    hits = np.bincount(np.minimum(ranks.ravel(), longest + 1), minlength=longest + 2)[1 : longest + 1]
    return hits.cumsum() / ranks.size


def headline(m_ap: float, m_inp: float, cmc: np.ndarray, **counts: Any) -> dict[str, float | int]:
    """The numbers under the names that reports and logs use."""
    return {
        "mAP": m_ap,
        "mINP": m_inp,
        "rank1": float(cmc[0]),
        "rank5": float(cmc[4]),
        "rank10": float(cmc[9]),
        **{name: int(count) for name, count in counts.items()},
    }
