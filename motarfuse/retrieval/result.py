"""What an evaluation found: its numbers, query by query, and what can be asked of them afterwards."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from motarfuse.retrieval.bootstrap import CONFIDENCE, RESAMPLES, Interval, identity_intervals
from motarfuse.retrieval.measures import CMC_RANKS, headline, share_found
from motarfuse.retrieval.protocols import Protocol


@dataclass(frozen=True)
class GroupNumbers:
    """The numbers of some of the queries, against the gallery that all had; fractions, NaN without a valid query.

    Attributes:
        mAP, mINP, cmc: Over the group's valid queries; cmc has 50 values.
        num_query: Queries in the group.
        num_valid: Those with a match.
    """

    mAP: float  # noqa: N815 - the field's name everywhere
    mINP: float  # noqa: N815
    cmc: np.ndarray
    num_query: int
    num_valid: int

    @property
    def metrics(self) -> dict[str, float | int]:
        """mAP, mINP, rank1, rank5, rank10, num_valid and num_query."""
        return headline(self.mAP, self.mINP, self.cmc, num_valid=self.num_valid, num_query=self.num_query)


@dataclass(frozen=True)
class EvaluationResult:
    """The numbers of one evaluation, fractions from 0 to 1.

    Attributes:
        cmc: (50,) float64, share of valid queries whose first positive is at rank 1, 2, ... 50 or better.
        mAP: Mean average precision over valid queries.
        mINP: Mean of (positives / rank of the last positive) over valid queries (Ye et al. 2021).
        num_valid: Queries that have a positive.
        average_precision: (Q,) float64, NaN for the queries that were skipped.
        inp: (Q,) float64, positives / rank of the last positive, NaN likewise.
        first_rank: (Q,) int64, rank of the first positive, from 1; 0 for the queries that were skipped. Under a
            protocol that draws galleries, of the first draw.
        drawn_ranks: (Q, draws) int64, the same in each draw; one column, ``first_rank``, where nothing is drawn.
        query_pids: (Q,) int64, identities of the queries.
        protocol: What was counted.
        manifest: The protocol, the rules and the counts behind the numbers, with a ``sha256`` of all of it.
    """

    cmc: np.ndarray
    mAP: float  # noqa: N815 - the field's name everywhere
    mINP: float  # noqa: N815
    num_valid: int
    average_precision: np.ndarray
    inp: np.ndarray
    first_rank: np.ndarray
    drawn_ranks: np.ndarray
    query_pids: np.ndarray
    protocol: Protocol
    manifest: dict[str, Any]

    def rank(self, k: int) -> float:
        """CMC at rank ``k``, 1 to 50."""
        return float(self.cmc[_check_rank(k) - 1])

    @cached_property
    def metrics(self) -> dict[str, float | int]:
        """The headline numbers under the names that reports and logs use."""
        counts = {name: self.manifest[name] for name in ("num_query", "num_gallery")}
        return headline(self.mAP, self.mINP, self.cmc, num_valid=self.num_valid, **counts)

    def to_dict(self) -> dict[str, Any]:
        """``metrics``, ``cmc`` and ``manifest`` as plain JSON values."""
        return {"metrics": dict(self.metrics), "cmc": [float(x) for x in self.cmc], "manifest": dict(self.manifest)}

    def breakdown(self, groups: Sequence[Hashable] | np.ndarray) -> dict[Any, GroupNumbers]:
        """The numbers of each group of queries: by occlusion, by camera, by anything.

        Each query keeps the ranks it has in the whole gallery, so that means over the groups, weighted by their valid
        queries, are the result's own numbers. (A gallery restricted by camera is ``camera_pairs``.)

        Args:
            groups: (Q,) name of each query's group; None leaves a query out of all groups.

        Returns:
            Numbers by group, in sorted order where names can be compared, else as they first appear.

        Raises:
            ValueError: Another number of queries.
        """
        names = groups.tolist() if isinstance(groups, np.ndarray) else list(groups)
        if len(names) != len(self.first_rank):
            raise ValueError(f"groups: got {len(names)} names for {len(self.first_rank)} queries")
        found: dict[Any, list[int]] = {}
        for query, name in enumerate(names):
            if name is not None:
                found.setdefault(name, []).append(query)
        try:
            order = sorted(found)
        except TypeError:
            order = list(found)
        return {name: self._numbers(np.array(found[name])) for name in order}

    def _numbers(self, queries: np.ndarray) -> GroupNumbers:
        """The numbers of these queries."""
        valid = queries[self.first_rank[queries] > 0]
        if len(valid) == 0:
            return GroupNumbers(np.nan, np.nan, np.full(CMC_RANKS, np.nan), len(queries), 0)
        return GroupNumbers(
            float(self.average_precision[valid].mean()),
            float(self.inp[valid].mean()),
            share_found(self.drawn_ranks[valid]),
            len(queries),
            len(valid),
        )

    def confidence(
        self,
        level: float = CONFIDENCE,
        *,
        ranks: Sequence[int] = (1, 5, 10),
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> dict[str, Interval]:
        """Bootstrap intervals of mAP, mINP and CMC, resampled by identity: what other people would have given.

        Queries of one person are alike, so that drawing single queries would claim too much; whole identities are drawn
        (``motarfuse.retrieval.bootstrap``, with the widened levels for few of them). The gallery stays as it is: the
        interval does not speak of other galleries, nor of other trainings. Two networks on the same queries are
        compared by the interval of their difference (``motarfuse compare``), not by whether two of these overlap.

        Args:
            level: Of the intervals, in (0, 1).
            ranks: Places of the CMC curve, 1 to 50.
            resamples: Number of resamples.
            seed: Of the resampling; equal arguments give equal intervals.

        Returns:
            :class:`Interval` by name: ``mAP``, ``mINP``, ``rank1``, ...; without ends below six identities.

        Raises:
            ValueError: A level, rank or number of resamples out of range.
        """
        valid = self.first_rank > 0
        drawn = self.drawn_ranks[valid]
        values = {"mAP": self.average_precision[valid], "mINP": self.inp[valid]}
        values |= {f"rank{k}": (drawn <= _check_rank(k)).mean(axis=1) for k in ranks}
        intervals = identity_intervals(
            np.stack(list(values.values())),
            self.query_pids[valid],
            resamples=resamples,
            confidence=level,
            seed=seed,
        )
        return dict(zip(values, intervals, strict=True))

    def published_differences(self, name: str) -> list[str]:
        """One sentence for each count that differs from those published for a dataset; none where all agree.

        Args:
            name: The dataset, as in ``protocol.published``.

        Raises:
            ValueError: The protocol states no counts for that dataset.
        """
        known = {sizes.name: sizes for sizes in self.protocol.published}
        if name not in known:
            raise ValueError(
                f"name: got {name!r}, protocol {self.protocol.name} has the counts of {', '.join(known) or 'none'}"
            )
        found = self.metrics
        expected = {
            "num_query": known[name].num_query,
            "num_gallery": known[name].num_gallery,
            "num_valid": known[name].num_valid,
        }
        words = {"num_query": "queries", "num_gallery": "gallery entries", "num_valid": "queries with a match"}
        return [
            f"{found[key]:,} {words[key]}, {name} was published with {count:,}"
            for key, count in expected.items()
            if count is not None and found[key] != count
        ]


def _check_rank(k: int) -> int:
    if not 1 <= k <= CMC_RANKS:
        raise ValueError(f"k: got {k}, supported are ranks 1 to {CMC_RANKS}")
    return k
