"""Re-ranking by k-reciprocal encoding, exact and sparse: nothing of the samples' or the pairs' number squared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from motarfuse.ops.ranking import ranking_functions
from motarfuse.retrieval.features import PersonFeatures, as_people
from motarfuse.retrieval.k_reciprocal import Encoding, encode
from motarfuse.retrieval.labels import PairLabels, as_tensor
from motarfuse.retrieval.measures import CMC_RANKS, average_precisions, inverse_penalties, share_found
from motarfuse.retrieval.metrics import TIES, no_match, signed_manifest
from motarfuse.retrieval.protocols import Protocol, get_protocol
from motarfuse.retrieval.rerank_best import best_entries
from motarfuse.retrieval.rerank_order import RerankedOrder
from motarfuse.retrieval.rerank_ranks import ranks_of
from motarfuse.retrieval.rerank_variants import RerankVariant, get_variant
from motarfuse.retrieval.result import EvaluationResult
from motarfuse.retrieval.scores import check_pair
from motarfuse.retrieval.single_shot import first_ranks_of_draws

# Pairs of `dense`.
MOST_PAIRS = 1 << 24


class Reranking:
    """Queries against a gallery by re-ranked distances; :func:`rerank` makes it.

    The final distance d* = (1 - lambda) J + lambda d decides; of equal ones the lower gallery index. What is kept of
    the encoding is sparse; ``evaluate`` makes one pass over tiles of scores, ``topk`` one for queries that need it.

    Attributes:
        variant: The formula.
        k1, k2, lambda_value: Its parameters.
        encoding: The sparse rows that Jaccard distances come from.
    """

    def __init__(
        self,
        query: Tensor,
        gallery: Tensor,
        encoding: Encoding,
        variant: RerankVariant,
        k1: int,
        k2: int,
        lambda_value: float,
        block: int | None,
    ) -> None:
        self.variant = variant
        self.k1 = k1
        self.k2 = k2
        self.lambda_value = lambda_value
        self.encoding = encoding
        self._query = query
        self._gallery = gallery
        self._block = block

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, gallery entries)."""
        return len(self._query), len(self._gallery)

    def topk(self, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` nearest gallery entries of each query by d*.

        Args:
            k: 1 to the size of the gallery.

        Returns:
            distances (Q, k), float32 (float64 for float64 features), rising; indices (Q, k) int64.

        Raises:
            TypeError: ``k`` is no integer.
            ValueError: ``k`` is out of range.
        """
        _check_integer("k", k)
        queries, gallery = self.shape
        if not 1 <= k <= gallery:
            raise ValueError(f"k: got {k}, supported are 1 to {gallery}, the size of the gallery")
        order = self._order()
        own = torch.arange(queries, device=order.tiles.device)
        columns, jaccard = best_entries(order, own, int(k))
        squared = order.squared(own.repeat_interleave(k), columns.flatten()).view(queries, k)
        # The order is decided before the last rounding, which must not show.
        distances = order.final(squared, jaccard, self.encoding.largest[:, None]).cummax(dim=1).values
        return distances.to(order.tiles.dtype), columns

    def dense(self) -> Tensor:
        """All final distances (Q, G), float32 (float64 for float64 features), of at most 2^24 pairs.

        Raises:
            ValueError: There are more pairs: ``topk`` and ``evaluate`` need no such table.
        """
        queries, gallery = self.shape
        if queries * gallery > MOST_PAIRS:
            raise ValueError(
                f"dense: got {queries} x {gallery} pairs, supported are up to {MOST_PAIRS:,}; "
                "topk and evaluate work at any size"
            )
        order = self._order()
        own = torch.arange(queries, device=order.tiles.device)
        column = torch.arange(gallery, device=own.device).repeat(queries)
        squared = order.squared(own.repeat_interleave(gallery), column).view(queries, gallery)
        jaccard = torch.ones_like(squared)
        for some, shared in order.encoding.blocks(own):
            overlaps = shared.overlaps(torch.zeros_like(shared.counts, dtype=torch.float64))
            jaccard[some][overlaps.rows, overlaps.columns] = overlaps.jaccard
        return order.final(squared, jaccard, self.encoding.largest[:, None]).to(order.tiles.dtype)

    def evaluate(
        self,
        query_pids: Any,
        gallery_pids: Any,
        query_camids: Any,
        gallery_camids: Any,
        *,
        protocol: str | Protocol = "market1501",
    ) -> EvaluationResult:
        """mAP, CMC and mINP of the re-ranked order, as :func:`motarfuse.retrieval.evaluate` counts them.

        All gallery entries took part in the encoding, those that the protocol ignores too: leave junk detections out of
        the gallery before re-ranking, as toolkits do.

        Args:
            query_pids, gallery_pids, query_camids, gallery_camids, protocol: As of ``evaluate``.

        Raises:
            TypeError, ValueError: As of ``evaluate``.
        """
        rules = get_protocol(protocol)
        labels = PairLabels.of(self.shape, query_pids, gallery_pids, query_camids, gallery_camids)
        pairs = labels.pairs(rules)
        valid = np.flatnonzero(pairs.positives())
        if len(valid) == 0:
            raise ValueError(no_match(pairs, labels, rules))
        order = self._order(pairs.kept)
        row, column, junk = pairs.of(valid)
        starts = np.concatenate([[0], np.bincount(row[~junk], minlength=len(valid)).cumsum()])
        lists = (valid, starts, column[~junk], *pairs.left_out(valid))
        ranks = ranks_of(order, *(as_tensor(array, order.tiles.device) for array in lists)).cpu().numpy()
        first_ranks = ranks[starts[:-1], None]
        if rules.gallery_draws:
            first_ranks = first_ranks_of_draws(
                lambda rows, columns: _scores_of_pairs(order, rows, columns),
                labels.gallery_pids[pairs.kept],
                labels.query_pids[valid],
                valid,
                pairs.left_out(valid),
                rules.gallery_draws,
            )
        queries, gallery = self.shape
        precision = np.full(queries, np.nan)
        precision[valid] = average_precisions(ranks, starts, rules.average_precision)
        inp = np.full(queries, np.nan)
        inp[valid] = inverse_penalties(ranks, starts)
        drawn = np.zeros((queries, first_ranks.shape[1]), dtype=np.int64)
        drawn[valid] = first_ranks
        counts = {
            "num_query": queries,
            "num_valid": len(valid),
            "num_skipped": queries - len(valid),
            "num_gallery": len(pairs.kept),
            "num_gallery_ignored": gallery - len(pairs.kept),
            "num_same_camera_pairs_left_out": int(pairs.junk.sum()),
        }
        if rules.gallery_is_query:
            counts["num_pairs_with_itself_left_out"] = counts.pop("num_same_camera_pairs_left_out")
        how = {"ties": TIES["stable"], "rerank": self.rules}
        return EvaluationResult(
            cmc=share_found(first_ranks),
            mAP=float(precision[valid].mean()),
            mINP=float(inp[valid].mean()),
            num_valid=len(valid),
            average_precision=precision,
            inp=inp,
            first_rank=drawn[:, 0].copy(),
            drawn_ranks=drawn,
            query_pids=labels.query_pids,
            protocol=rules,
            manifest=signed_manifest(rules, order.tiles, how, {"cmc_ranks": CMC_RANKS, **counts}),
        )

    @property
    def rules(self) -> dict[str, Any]:
        """The formula and its parameters as plain JSON values."""
        return {
            "variant": self.variant.name,
            "k1": self.k1,
            "k2": self.k2,
            "lambda": self.lambda_value,
            "unit_features": self.variant.unit,
        }

    def _order(self, kept: np.ndarray | None = None) -> RerankedOrder:
        """The order of the gallery, or of these entries of it."""
        entries = None if kept is None else as_tensor(kept, self._gallery.device)
        return RerankedOrder(
            self._query, self._gallery, self.encoding, self.variant, self.lambda_value, self._block, entries
        )


def _scores_of_pairs(order: RerankedOrder, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Larger is better: what decides between pairs of one query; float64."""
    queries, places = as_tensor(rows, order.tiles.device), as_tensor(columns, order.tiles.device)
    jaccard = torch.ones(len(queries), dtype=torch.float64, device=queries.device)
    asked = queries.unique()
    for some, shared in order.encoding.blocks(asked):
        chosen = ((queries >= asked[some][0]) & (queries <= asked[some][-1])).nonzero().flatten()
        jaccard[chosen] = shared.jaccard(shared.find(torch.searchsorted(asked[some], queries[chosen]), places[chosen]))
    return order.keys(queries, places, jaccard).neg_().cpu().numpy()


def rerank(
    query: Any,
    gallery: Any,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    variant: str = "zhong2017",
    block: int | None = None,
) -> Reranking:
    """Re-ranks a gallery by k-reciprocal encoding (Zhong et al. 2017), exactly, in memory of the samples' number.

    With D_ij = |x_i - x_j|^2 over all N = Q + G samples, d_ij = D_ij / max_j D_ij, and N(i, k) the k nearest of i
    (itself among them, ties by the lower index):

        R(i, k) = {j in N(i, k) : i in N(j, k)}
        R*(i) = R(i, k1 + 1), with R(c, h) of every c in R(i, k1 + 1) that shares more than 2/3 of its R(c, h) with it,
            h = round(k1 / 2) + 1, halves rounded to even
        V_ij = exp(-d_ij) for j in R*(i), else 0, divided by the row's sum; then V_i = mean of V_j over j in N(i, k2)
        J_qg = 1 - m / (2 - m), m = sum_j min(V_qj, V_gj)
        d*_qg = (1 - lambda) J_qg + lambda d_qg

    Neighbours come from tiles of exact scores, V is sparse (about k1 k2 values a row at most), and overlaps are found
    through an index by columns, for as many queries at a time as memory wants. The final order needs no queries x
    gallery table: pairs without overlap are ordered by d. Where d* of two entries is equal, the lower gallery index
    comes first. Results do not depend on ``block``, threads or the device.

    Cost: N^2 d FLOP, and 2 Q G d in ``evaluate``. Memory beside two copies of the features:
    16 (k1 + 1) bytes a sample for neighbours, 24 bytes a value of V, and about 40 MB for the queries at hand
    (300 MB where lambda is 0, and in ``dense``).

    Args:
        query: (Q, d) tensor or array of fp16, bf16, fp32 or fp64, on any device; or ``PersonFeatures``, of which the
            feature alone is compared.
        gallery: (G, d), same dtype and device; or ``PersonFeatures``.
        k1: Neighbours besides the sample itself (``fastreid`` counts it among them); 1 to Q + G - 1.
        k2: Rows of V that are averaged, 1 (none but its own) to k1 + 1 (k1 for ``fastreid`` and ``boxmot``).
        lambda_value: Share of the original distance, 0 to 1.
        variant: ``zhong2017``; or a formula that goes by the same name elsewhere: ``torchreid``, ``fastreid``,
            ``boxmot``, ``transreid`` (``motarfuse.retrieval.rerank_variants``).
        block: Samples at a time; None chooses. The result does not depend on it.

    Returns:
        :class:`Reranking`, with ``topk(k)``, ``evaluate(...)`` and, for small sizes, ``dense()``; smaller is better.

    Raises:
        TypeError: Features that are not floating point or of two dtypes; parameters of another type.
        ValueError: Wrong or unequal shapes, an empty query or gallery, NaN or infinite features (the rows are named),
            different devices, parameters out of range, an unknown variant, a zero vector where ``fastreid`` or
            ``boxmot`` compare directions.
    """
    formula = get_variant(variant)
    people = [as_people(side, name) for side, name in ((query, "query"), (gallery, "gallery"))]
    sides = [PersonFeatures(side.feature) for side in people]
    check_pair(sides[0], sides[1], "feature")
    share = _check_parameters(k1, k2, lambda_value, formula, sum(map(len, sides)))
    with torch.no_grad():
        features = [side.to("cpu") if side.feature.device.type == "mps" else side for side in sides]
        rows = [side.feature for side in features]
        if formula.unit:
            rows = [_unit_rows(row, name, formula) for row, name in zip(rows, ("query", "gallery"), strict=True)]
        encoding = encode(torch.cat(rows), len(rows[0]), int(k1), int(k2), formula, block)
    return Reranking(rows[0], rows[1], encoding, formula, int(k1), int(k2), share, block)


def _unit_rows(features: Tensor, name: str, formula: RerankVariant) -> Tensor:
    rows, norms = ranking_functions(features.device).unit_rows(features)
    zero = (norms == 0).nonzero().flatten().tolist()
    if zero and not formula.relative:
        raise ValueError(f"{name}: row {zero[0]} is zero, and variant {formula.name} compares directions")
    return rows


def _check_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: got {type(value).__name__}, supported is an integer")


def _check_parameters(k1: Any, k2: Any, lambda_value: Any, formula: RerankVariant, samples: int) -> float:
    """Raises for parameters that the formula does not have; gives back lambda as a plain number."""
    _check_integer("k1", k1)
    _check_integer("k2", k2)
    if not 1 <= k1 <= samples - 1:
        raise ValueError(
            f"k1: got {k1}, supported are 1 to {samples - 1}: a sample has no more neighbours among the "
            f"{samples} of query and gallery"
        )
    most = k1 + formula.more_k1 - formula.more_k2
    if not 1 <= k2 <= most:
        raise ValueError(f"k2: got {k2}, supported are 1 to {most} with k1 = {k1} and variant {formula.name}")
    if isinstance(lambda_value, bool) or not isinstance(lambda_value, int | float | np.floating | np.integer):
        raise TypeError(f"lambda_value: got {type(lambda_value).__name__}, supported is a number")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value: got {lambda_value}, supported are 0 (Jaccard alone) to 1 (distance alone)")
    return float(lambda_value)
