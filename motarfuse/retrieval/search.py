"""Exact nearest-neighbour search, and the first results of evaluated queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from motarfuse.retrieval.labels import as_labels, as_tensor, match_pairs
from motarfuse.retrieval.protocols import Protocol, get_protocol
from motarfuse.retrieval.scores import ScoreBlocks


@dataclass(frozen=True)
class RankList:
    """The first results of one query, best first.

    Attributes:
        query: Row of the query.
        indices: (n,) int64 rows of the gallery, n <= k.
        scores: (n,) similarities, or Euclidean distances.
        matches: (n,) bool, True where the identity is the query's.
    """

    query: int
    indices: np.ndarray
    scores: np.ndarray
    matches: np.ndarray


def search(
    query: Any, gallery: Any, k: int, *, metric: str = "cosine", score: str = "auto", block: int | None = None
) -> tuple[Tensor, Tensor]:
    """The ``k`` best gallery entries of each query, exactly: argtop_k q.g / (|q| |g|), or argmin_k |q - g|.

    With parts also the visibility-weighted part score, and its sum with the cosine (:func:`evaluate`, ``score``).

    Of equal scores the entry with the lower gallery index comes first, also where the k-th place falls among them.
    Memory beyond one copy of the features: one block of ``block`` x gallery scores. 2 Q G d FLOP, and
    2 Q G L (d' + 1) for L parts of width d'.

    Args:
        query: (Q, d) tensor or array of fp16, bf16, fp32 or fp64, on any device; or ``PersonFeatures``.
        gallery: (G, d), same dtype and device; or ``PersonFeatures``.
        k: Results a query, 1 to G.
        metric: ``cosine`` or ``euclidean``.
        score: ``feature``, ``parts``, ``sum`` or ``auto``, as in ``evaluate``.
        block: Queries at a time; None takes about 32 MiB of scores.

    Returns:
        scores (Q, k), fp32 (fp64 for fp64 features), best first: similarities, falling, or Euclidean distances, rising;
        and indices (Q, k), int64, into the gallery. Both on the features' device.

    Raises:
        TypeError: Features that are not floating point or of two dtypes; ``k`` that is not an integer.
        ValueError: Wrong or unequal shapes, an empty query or gallery, NaN or infinite features (the rows are named),
            visibilities outside [0, 1], ``k`` outside 1..G, an unknown metric or score, a score of parts without parts.
    """
    blocks = ScoreBlocks(query, gallery, metric=metric, score=score, block=block)
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"k: got {type(k).__name__}, supported is an integer")
    if not 1 <= k <= blocks.shape[1]:
        raise ValueError(f"k: got {k}, supported are 1 to {blocks.shape[1]}, the size of the gallery")
    results = [_top_k(scores, int(k)) for _, scores in blocks.blocks()]
    scores = torch.cat([values for values, _ in results])
    return blocks.public(scores), torch.cat([indices for _, indices in results])


def _top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row in order, ties by lowest index, which ``torch.topk`` leaves open."""
    # One more than asked for shows whether equal scores straddle the last place, where topk may take any of them.
    values, indices = torch.topk(scores, min(k + 1, scores.shape[1]), dim=1)
    split = (values[:, k - 1] == values[:, -1]).nonzero().flatten() if values.shape[1] > k else indices.new_empty(0)
    values, indices = values[:, :k], indices[:, :k]
    for some in split.split(64):
        ordered, order = torch.sort(scores[some], dim=1, descending=True, stable=True)
        values[some], indices[some] = ordered[:, :k], order[:, :k]
    indices, by_index = indices.sort(dim=1)
    values, by_value = values.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, by_value)


def rank_lists(
    query: Any,
    gallery: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    k: int = 10,
    queries: Any | None = None,
    protocol: str | Protocol = "market1501",
    metric: str = "cosine",
    score: str = "auto",
    block: int | None = None,
) -> list[RankList]:
    """The first ``k`` results of some queries with the protocol's junk left out: what ``evaluate`` ranks, to look at.

    Args:
        query, gallery, query_pids, gallery_pids, query_camids, gallery_camids: As in ``evaluate``.
        k: Results a query; fewer where the gallery has fewer that count.
        queries: Query rows to list, in this order; None lists all.
        protocol, metric, score, block: As in ``evaluate``.

    Raises:
        TypeError, ValueError: As ``evaluate``; also a ``k`` below 1 or a query row that does not exist.
    """
    rules = get_protocol(protocol)
    blocks = ScoreBlocks(query, gallery, metric=metric, score=score, block=block)
    num_query, num_gallery = blocks.shape
    pids = as_labels(query_pids, "query_pids", num_query)
    matched = as_labels(gallery_pids, "gallery_pids", num_gallery)
    pairs = match_pairs(
        pids,
        matched,
        as_labels(query_camids, "query_camids", num_query),
        as_labels(gallery_camids, "gallery_camids", num_gallery),
        rules,
    )
    chosen = np.arange(num_query) if queries is None else np.asarray(queries)
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise TypeError(f"queries: got {chosen.dtype} of shape {chosen.shape}, supported is a list of row numbers")
    if chosen.size and (chosen.min() < 0 or chosen.max() >= num_query):
        raise ValueError(f"queries: got rows {chosen.min()} to {chosen.max()}, supported are 0 to {num_query - 1}")
    if k < 1:
        raise ValueError(f"k: got {k}, supported is at least 1")
    blocks.select_gallery(torch.from_numpy(pairs.kept))
    lists: list[RankList] = []
    if chosen.size == 0:
        return lists
    for rows, scores in blocks.blocks(torch.from_numpy(chosen.astype(np.int64))):
        row, column, junk = pairs.of(rows.numpy())
        scores[as_tensor(row[junk], scores.device), as_tensor(column[junk], scores.device)] = -torch.inf
        values, indices = _top_k(scores, min(k, scores.shape[1]))
        counted = values > -torch.inf
        for i, query_row in enumerate(rows.tolist()):
            kept = pairs.kept[indices[i][counted[i]].cpu().numpy()]
            shown = blocks.public(values[i][counted[i]]).cpu().numpy()
            lists.append(RankList(query_row, kept, shown, matched[kept] == pids[query_row]))
    return lists


def select_queries(average_precision: np.ndarray, *, each: int = 8) -> np.ndarray:
    """Rows of the worst, the middle and the best queries, ``each`` of a kind, by rising average precision.

    Args:
        average_precision: (Q,), NaN for skipped queries, as ``evaluate`` gives it.
        each: Queries of a kind; all valid queries when there are no more than three times as many.
    """
    valid = np.flatnonzero(~np.isnan(average_precision))
    order = valid[np.argsort(average_precision[valid], kind="stable")]
    if len(order) <= 3 * each:
        return order
    middle = min(max(len(order) // 2 - each // 2, each), len(order) - 2 * each)
    return np.concatenate([order[:each], order[middle : middle + each], order[len(order) - each :]])
