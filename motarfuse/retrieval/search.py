"""Exact nearest-neighbour search, and the first results of evaluated queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from motarfuse.retrieval.labels import as_labels, as_tensor, match_pairs
from motarfuse.retrieval.protocols import Protocol, get_protocol
from motarfuse.retrieval.ranks import top_k
from motarfuse.retrieval.tiles import ScoreTiles
from motarfuse.retrieval.where import Labels, Where, resolve


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
    query: Any,
    gallery: Any,
    k: int,
    *,
    metric: str = "cosine",
    score: str = "auto",
    mask: Any = None,
    where: Where | None = None,
    query_labels: Labels | None = None,
    gallery_labels: Labels | None = None,
    storage: str | None = None,
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``k`` best gallery entries of each query, exactly: argtop_k q.g / (|q| |g|), or argmin_k |q - g|.

    With parts also the visibility-weighted part score, and its sum with the cosine (:func:`evaluate`, ``score``); with
    ``mask`` cos(q, m * g), each query's own weighting of the gallery's features.

    An order is decided by float64 sums over the features as float32, in a fixed order of additions: it is the same on
    every device, for every block size. Of equal scores the entry with the lower gallery index comes first, also where
    the k-th place falls among them. Scores of queries x gallery are never in memory: a tile at a time (8 MiB on a CPU),
    one packed copy of the features, or pieces of it where a quarter of the free memory does not hold it, and the
    results. 2 Q G d FLOP, 2 Q G L (d' + 1) for L parts of width d', 4 Q G d with a mask.

    Args:
        query: (Q, d) tensor or array of fp16, bf16, fp32 or fp64, on any device; or ``PersonFeatures``.
        gallery: (G, d), same dtype and device; or ``PersonFeatures``.
        k: Results a query, 1 to G.
        metric: ``cosine`` or ``euclidean``.
        score: ``feature``, ``parts``, ``sum`` or ``auto``, as in ``evaluate``.
        mask: (Q, d) values in [0, 1], of the query's dtype; cosine of features only.
        where: Which entries may be found, by camera, time and identity; they are not even compared where that is known
            beforehand, and take no place among the k otherwise.
        query_labels, gallery_labels: What ``where`` asks for.
        storage: ``float16`` or ``bfloat16`` keeps the packed features in that type, half the memory, and ranks exactly
            what is kept; :func:`storage_changes` measures what that changes.
        block: Queries at a time; None chooses. The results do not depend on it.

    Returns:
        scores (Q, k), fp32 (fp64 for fp64 features), best first: similarities, falling, or Euclidean distances, rising;
        and indices (Q, k), int64, into the gallery. Both on the features' device. Where fewer than k entries fulfil
        ``where``, the last places hold index -1 and -inf (inf for distances).

    Raises:
        TypeError: Features that are not floating point or of two dtypes; ``k`` that is not an integer.
        ValueError: Wrong or unequal shapes, an empty query or gallery, NaN or infinite features (the rows are named),
            visibilities or masks outside [0, 1], ``k`` outside 1..G, an unknown metric, score or storage, a score of
            parts without parts, labels that ``where`` needs and that are not given.

    Source of the mask: Tan et al. 2022, "Dynamic Prototype Mask for Occluded Person Re-Identification".
    """
    tiles = ScoreTiles(query, gallery, metric=metric, score=score, mask=mask, storage=storage, block=block)
    _check_integer(k)
    if not 1 <= k <= tiles.shape[1]:
        raise ValueError(f"k: got {k}, supported are 1 to {tiles.shape[1]}, the size of the gallery")
    if where is None:
        values, indices, _ = top_k(tiles, int(k))
        return tiles.public(values), indices
    kept, rules = resolve(where, query_labels, gallery_labels, tiles.shape, tiles.device)
    places = torch.from_numpy(np.flatnonzero(kept)).to(tiles.device)
    tiles.select_gallery(places)
    values, indices, _ = top_k(tiles, int(k), rules=rules)
    if len(places):
        indices = torch.where(indices >= 0, places[indices.clamp(min=0)], -1)
    return tiles.public(values), indices


def _check_integer(k: Any) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"k: got {type(k).__name__}, supported is an integer")


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
    mask: Any = None,
    storage: str | None = None,
    block: int | None = None,
) -> list[RankList]:
    """The first ``k`` results of some queries with the protocol's junk left out: what ``evaluate`` ranks, to look at.

    Args:
        query, gallery, query_pids, gallery_pids, query_camids, gallery_camids: As in ``evaluate``.
        k: Results a query; fewer where the gallery has fewer that count.
        queries: Query rows to list, in this order; None lists all.
        protocol, metric, score, mask, storage, block: As in ``evaluate``.

    Raises:
        TypeError, ValueError: As ``evaluate``; also a ``k`` below 1 or a query row that does not exist.
    """
    rules = get_protocol(protocol)
    tiles = ScoreTiles(query, gallery, metric=metric, score=score, mask=mask, storage=storage, block=block)
    num_query, num_gallery = tiles.shape
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
    _check_integer(k)
    if k < 1:
        raise ValueError(f"k: got {k}, supported is at least 1")
    if chosen.size == 0:
        return []
    chosen = chosen.astype(np.int64)
    tiles.select_gallery(torch.from_numpy(pairs.kept))
    starts, left_out = (as_tensor(array, tiles.device) for array in pairs.left_out(chosen))
    values, indices, filled = top_k(tiles, min(k, tiles.shape[1]), torch.from_numpy(chosen), starts, left_out)
    shown = tiles.public(values).cpu().numpy()
    lists = []
    for i, query_row in enumerate(chosen.tolist()):
        count = int(filled[i])
        kept = pairs.kept[indices[i, :count].cpu().numpy()]
        lists.append(RankList(query_row, kept, shown[i, :count], matched[kept] == pids[query_row]))
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
