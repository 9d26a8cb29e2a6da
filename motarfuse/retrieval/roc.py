"""Verification: is this pair one person? ROC, its area, the equal error rate, and thresholds for given false rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from motarfuse.retrieval.labels import PairLabels, Pairs, as_tensor
from motarfuse.retrieval.metrics import no_match, signed_manifest
from motarfuse.retrieval.protocols import Protocol, get_protocol
from motarfuse.retrieval.tiles import ScoreTiles

FALSE_RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold does whose false positive rate stays within a bound.

    Attributes:
        max_fpr: The bound.
        tpr: Share of positive pairs that are accepted; None where the bound cannot be measured.
        fpr: Share of negative pairs that are accepted, at most ``max_fpr``.
        threshold: Accept a pair when its similarity is at least this, or its distance at most; None also where not
            even the best positive pair is accepted.
        reason: Why something is None; "" otherwise.
    """

    max_fpr: float
    tpr: float | None
    fpr: float | None
    threshold: float | None
    reason: str = ""


@dataclass(frozen=True)
class VerificationResult:
    """Verification over all pairs that count.

    Attributes:
        points: Operating points in the order of the rates that were asked for.
        auc: Area under the ROC: the chance that a positive pair scores above a negative one, ties counting half.
        eer: Equal error rate, where as many negatives are accepted as positives refused, between the curve's corners.
        eer_threshold: The positive pairs' score nearest to it.
        num_positive_pairs, num_negative_pairs: Pairs that count.
        thresholds: (m,) the positive pairs' different scores, best first: similarities falling, or distances rising.
        fpr, tpr: (m,) float64 shares accepted at each threshold.
        manifest: The protocol, the rules and the counts behind the numbers, with a ``sha256`` of all of it.
    """

    points: tuple[OperatingPoint, ...]
    auc: float
    eer: float
    eer_threshold: float
    num_positive_pairs: int
    num_negative_pairs: int
    thresholds: np.ndarray
    fpr: np.ndarray
    tpr: np.ndarray
    manifest: dict[str, Any]

    def tpr_at(self, max_fpr: float) -> OperatingPoint:
        """The operating point for a false positive rate in (0, 1]."""
        if not 0 < max_fpr <= 1:
            raise ValueError(f"max_fpr: got {max_fpr}, supported are rates in (0, 1]")
        negatives = self.num_negative_pairs
        if max_fpr * negatives < 1:
            reason = f"below 1 in {negatives:,}, the negative pairs there are"
            return OperatingPoint(max_fpr, None, None, None, reason)
        place = int(np.searchsorted(self.fpr, max_fpr, side="right")) - 1
        if place < 0:
            return OperatingPoint(max_fpr, 0.0, 0.0, None, "more negatives than that score as the best positive pair")
        return OperatingPoint(max_fpr, float(self.tpr[place]), float(self.fpr[place]), float(self.thresholds[place]))

    def to_dict(self) -> dict[str, Any]:
        """All but the curve as plain JSON values."""
        return {
            "points": [asdict(point) for point in self.points],
            "auc": self.auc,
            "eer": self.eer,
            "eer_threshold": self.eer_threshold,
            "num_positive_pairs": self.num_positive_pairs,
            "num_negative_pairs": self.num_negative_pairs,
            "manifest": dict(self.manifest),
        }


def verify(
    query: Any,
    gallery: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    protocol: str | Protocol = "market1501",
    metric: str = "cosine",
    score: str = "auto",
    rates: Sequence[float] = FALSE_RATES,
    mask: Any = None,
    storage: str | None = None,
    block: int | None = None,
) -> VerificationResult:
    """ROC over all (query, gallery entry) pairs that count: positives of one identity, negatives of two.

    TPR(t) = #{positive pairs : s >= t} / #positives and FPR(t) likewise over negatives. With t at the positive pairs'
    scores this is the whole curve but for the negatives between two of them. A pair that the protocol leaves out is
    neither, nor is one of a query of an ignored identity. Distractors are negatives.

    Scores are the exact ones, so that ties are ties, and nothing depends on the device or on ``block``. One pass over
    the scores in float64, 2 Q G d FLOP at half of float32's rate, and two bisections of each among the positives';
    memory beyond one packed copy of the features: some tables of a tile's size, and 40 bytes a positive pair.

    Args:
        query, gallery, query_pids, gallery_pids, query_camids, gallery_camids: As in ``evaluate``.
        protocol, metric, score, mask, storage, block: As in ``evaluate``.
        rates: False positive rates in (0, 1] to give TPR and threshold for. One below 1 / negatives cannot be
            measured, and its point says so.

    Returns:
        :class:`VerificationResult`.

    Raises:
        TypeError, ValueError: As ``evaluate``; also a rate outside (0, 1], or no negative pair.
    """
    rules = get_protocol(protocol)
    tiles = ScoreTiles(query, gallery, metric=metric, score=score, mask=mask, storage=storage, block=block)
    labels = PairLabels.of(tiles.shape, query_pids, gallery_pids, query_camids, gallery_camids)
    pairs = labels.pairs(rules)
    positives = int((~pairs.junk).sum())
    if not positives:
        raise ValueError(no_match(pairs, labels, rules))
    known = np.flatnonzero(~np.isin(labels.query_pids, rules.ignored_pids))
    negatives = len(known) * len(pairs.kept) - len(pairs.of(known)[1])
    if not negatives:
        raise ValueError(f"no pair of two identities: all {positives} pairs that count are of one")
    tiles.select_gallery(torch.from_numpy(pairs.kept))
    scores = np.sort(_positive_scores(tiles, pairs, known))
    thresholds, counts = np.unique(scores, return_counts=True)
    at_least, above = _negatives_from(tiles, pairs, known, thresholds)

    below = np.concatenate([[0], counts.cumsum()])  # positives below each threshold, and all
    # Corners of the curve for a rising threshold: at each positive score, and just above it.
    fpr = np.concatenate([[1.0], np.stack([at_least, above], 1).ravel() / negatives, [0.0]])
    fnr = np.concatenate([[0.0], np.stack([below[:-1], below[1:]], 1).ravel() / positives, [1.0]])
    auc = float(((fpr[:-1] - fpr[1:]) * (2 - fnr[:-1] - fnr[1:]) / 2).sum())
    eer, corner = _crossing(fpr, fnr)
    public = tiles.public(torch.from_numpy(thresholds).to(tiles.device)).cpu().numpy()
    counted = {
        "num_query": len(known),
        "num_gallery": len(pairs.kept),
        "num_positive_pairs": positives,
        "num_negative_pairs": negatives,
        "num_pairs_left_out": int(pairs.junk.sum()),
    }
    result = VerificationResult(
        points=(),
        auc=auc,
        eer=eer,
        eer_threshold=float(public[min(max(corner - 1, 0) // 2, len(public) - 1)]),
        num_positive_pairs=positives,
        num_negative_pairs=negatives,
        thresholds=public[::-1].copy(),
        fpr=at_least[::-1] / negatives,
        tpr=1 - below[:-1][::-1] / positives,
        manifest=signed_manifest(rules, tiles, {"verification_scores": "exact"}, counted),
    )
    object.__setattr__(result, "points", tuple(result.tpr_at(rate) for rate in rates))
    return result


def _crossing(fpr: np.ndarray, fnr: np.ndarray) -> tuple[float, int]:
    """Where both rates are equal on the line through the corners, and the corner at or behind it."""
    gap = fpr - fnr  # from 1 to -1, never rising
    corner = int(np.argmax(gap <= 0))
    share = gap[corner - 1] / (gap[corner - 1] - gap[corner])
    return float(fpr[corner - 1] + share * (fpr[corner] - fpr[corner - 1])), corner


def _positive_scores(tiles: ScoreTiles, pairs: Pairs, queries: np.ndarray) -> np.ndarray:
    """Exact scores of all positive pairs, in no order."""
    row, column, junk = pairs.of(queries)
    places = (torch.from_numpy(np.ascontiguousarray(array)) for array in (queries[row[~junk]], column[~junk]))
    return tiles.pair_scores(*places).cpu().numpy()


def _negatives_from(
    tiles: ScoreTiles, pairs: Pairs, queries: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Negative pairs that score at least, and above, each threshold; (m,) rising float64.

    Scores of float64 products decide about all pairs that are not within their rounding error of a threshold; exact
    ones about the rest.
    """
    limits = as_tensor(thresholds, tiles.device)
    # Twice the thresholds' places: 2 i + 1 is at threshold i, even numbers lie between.
    bins = torch.zeros(2 * len(thresholds) + 1, dtype=torch.int64, device=tiles.device)
    for tile in tiles.tiles(torch.from_numpy(queries), torch.float64):
        # Every pair of one identity is a positive or does not count.
        row, column, _ = pairs.of(queries[tile.queries])
        here = (column >= tile.first) & (column < tile.first + tile.scores.shape[1])
        own = tuple(as_tensor(array[here], tiles.device) for array in (row, column - tile.first))
        counted = torch.ones_like(tile.scores, dtype=torch.bool)
        counted[own] = False
        slack = tile.slack[:, None]
        place = torch.searchsorted(limits, tile.scores - slack, right=True)
        near = (place != torch.searchsorted(limits, tile.scores + slack)) | tile.scores.isnan()
        rows, columns = (near & counted).nonzero().unbind(1)
        place.mul_(2)
        exact = tiles.functions.pair_scores(
            tile.query, tile.gallery, rows.contiguous(), columns.contiguous(), *tiles.form
        )
        below, within = torch.searchsorted(limits, exact), torch.searchsorted(limits, exact, right=True)
        place[rows, columns] = below + within
        bins += torch.bincount(place[counted], minlength=len(bins))
    counts = bins.cpu().numpy()
    from_here = counts[::-1].cumsum()[::-1]
    return from_here[1::2], from_here[2::2]
