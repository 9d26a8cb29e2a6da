"""Paired bootstrap over identities: how sure a difference between two networks is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from motarfuse.retrieval.bootstrap import CONFIDENCE, RESAMPLES, check_resampling, identity_intervals

Verdict = Literal["better", "worse", "no difference shown", "no interval"]


@dataclass(frozen=True)
class PairedDifference:
    """Mean of A - B over queries, with its interval.

    Attributes:
        difference: The mean over queries of the mean over seeds; NaN without a query.
        low, high: Ends of the interval; None where there are too few identities for one.
        identities, queries: What it is computed from.
        per_seed: The difference of each seed, in the order given.
        reason: Why there is no interval; "" where there is one.
    """

    difference: float
    low: float | None
    high: float | None
    identities: int
    queries: int
    per_seed: tuple[float, ...]
    reason: str = ""

    @property
    def verdict(self) -> Verdict:
        """``better``: the whole interval lies above zero; ``worse``: below; otherwise nothing is shown."""
        if self.low is None or self.high is None:
            return "no interval"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no difference shown"


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    pids: np.ndarray | Sequence[int],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> PairedDifference:
    """Bootstrap interval of the mean of ``first - second`` over queries, resampled by identity.

    d_q = mean over seeds of (first - second) for query q; ``motarfuse.retrieval.bootstrap.identity_intervals`` of that.
    All queries of a person come together, and both sides and all seeds see the same people.

    Seeds are averaged first and not resampled: the interval speaks of other *people* seen by the networks that were
    trained, not of other trainings. ``per_seed`` shows what these differ by.

    Args:
        first, second: (S, Q) or (Q,) scores of the same queries, one row a seed, same shape; NaN for a query without a
            match, in both alike.
        pids: (Q,) identity of each query.
        resamples: Number of resamples; memory 2 bytes a resample and identity.
        confidence: Of the interval, in (0, 1).
        seed: Of the resampling; equal arguments give equal intervals.

    Returns:
        :class:`PairedDifference`; without an interval for fewer than six identities, since five that agree are no
        evidence at 95 %.

    Raises:
        ValueError: The shapes differ, a query has a score on one side only, or an argument is out of range.
    """
    first, second, pids = (np.asarray(values) for values in (first, second, pids))
    first, second = np.atleast_2d(first).astype(np.float64), np.atleast_2d(second).astype(np.float64)
    if first.shape != second.shape or pids.shape != first.shape[1:]:
        raise ValueError(
            f"first, second and pids must be (S, Q), (S, Q) and (Q,), got {first.shape}, {second.shape}, {pids.shape}"
        )
    check_resampling(resamples, confidence)
    missing = np.isnan(np.concatenate([first, second]))
    if (missing != missing[:1]).any():
        raise ValueError("a query has a score in some rows and none in others: they are not the same queries")
    kept = ~missing[0] if len(missing) else np.zeros(pids.shape, bool)
    differences = (first - second)[:, kept]
    per_seed = tuple(float(value) for value in differences.mean(1)) if kept.any() else ()
    values = differences.mean(0, keepdims=True)
    (found,) = identity_intervals(values, pids[kept], resamples=resamples, confidence=confidence, seed=seed)
    return PairedDifference(found.value, found.low, found.high, found.identities, found.queries, per_seed, found.reason)
