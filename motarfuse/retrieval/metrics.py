"""mAP, CMC and mINP of a retrieval, exactly, from the ranks of the positives alone."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from motarfuse.retrieval.labels import Pairs, as_labels, as_tensor, match_pairs
from motarfuse.retrieval.protocols import Protocol, get_protocol
from motarfuse.retrieval.scores import ScoreBlocks
from motarfuse.retrieval.single_shot import SEED, first_ranks_of_draws, share_found

CMC_RANKS = 50
TIES = "stable: of equal scores, the entry with the lower gallery index ranks first"


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
        manifest: The protocol, the rules and the counts behind the numbers, with a ``sha256`` of all of it.
    """

    cmc: np.ndarray
    mAP: float  # noqa: N815 - the field's name everywhere
    mINP: float  # noqa: N815
    num_valid: int
    average_precision: np.ndarray
    inp: np.ndarray
    first_rank: np.ndarray
    manifest: dict[str, Any]

    def rank(self, k: int) -> float:
        """CMC at rank ``k``, 1 to 50."""
        if not 1 <= k <= CMC_RANKS:
            raise ValueError(f"k: got {k}, supported are ranks 1 to {CMC_RANKS}")
        return float(self.cmc[k - 1])

    @cached_property
    def metrics(self) -> dict[str, float | int]:
        """The headline numbers under the names that reports and logs use."""
        return {
            "mAP": self.mAP,
            "mINP": self.mINP,
            "rank1": self.rank(1),
            "rank5": self.rank(5),
            "rank10": self.rank(10),
            "num_valid": self.num_valid,
            "num_query": int(self.manifest["num_query"]),
            "num_gallery": int(self.manifest["num_gallery"]),
        }

    def to_dict(self) -> dict[str, Any]:
        """``metrics``, ``cmc`` and ``manifest`` as plain JSON values."""
        return {"metrics": dict(self.metrics), "cmc": [float(x) for x in self.cmc], "manifest": dict(self.manifest)}


def evaluate(
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
    block: int | None = None,
) -> EvaluationResult:
    """mAP, CMC and mINP of queries against a gallery.

    rank(p) = 1 + #{g : s_g > s_p} + #{g : s_g = s_p and g < p} over the gallery entries that count for the query;
    with its positives' ranks r_1 < ... < r_P: AP = mean_i i / r_i, INP = P / r_P, CMC(k) = [r_1 <= k]. Means are over
    the queries that have a positive.

    Each block's rows are sorted by value once and each positive is found by bisection, which counts the entries
    before it; only rows where a positive shares its score are ordered in full. Memory beyond one copy of the features:
    two blocks of ``block`` x gallery scores. Time: 2 Q G d FLOP + O(Q G log G) comparisons; L parts of width d' take
    2 Q G L (d' + 1) FLOP.

    Args:
        query: (Q, d) tensor or array of fp16, bf16, fp32 or fp64, on any device; or ``PersonFeatures``.
        gallery: (G, d), same dtype and device; or ``PersonFeatures``.
        query_pids: (Q,) integers; -1 is unknown: such a query is skipped.
        gallery_pids: (G,) integers; -1 is junk and dropped. 0 is an identity like any other: a distractor, as long as
            no query has it.
        query_camids: (Q,) integers; -1 is unknown and equals no camera.
        gallery_camids: (G,) integers, likewise.
        protocol: A name in ``PROTOCOLS``, or a ``Protocol``.
        metric: ``cosine`` or ``euclidean``.
        score: What is compared: ``feature``, ``parts`` (visibility-weighted, by cosine) or ``sum`` of both cosines;
            ``auto`` is the sum where both sides have parts and the metric is cosine, else the feature.
        block: Queries at a time; None takes about 32 MiB of scores. The result does not depend on it beyond the last
            bit of a score.

    Returns:
        :class:`EvaluationResult`.

    Raises:
        TypeError: Features that are not floating point or of two dtypes; labels that are not integers.
        ValueError: Wrong or unequal shapes, an empty query or gallery, NaN or infinite features (the rows are named),
            visibilities outside [0, 1], an unknown protocol, metric or score, a score of parts without parts on both
            sides, no query with a positive.
    """
    rules = get_protocol(protocol)
    blocks = ScoreBlocks(query, gallery, metric=metric, score=score, block=block)
    num_query, num_gallery = blocks.shape
    pids = as_labels(query_pids, "query_pids", num_query)
    all_pids = as_labels(gallery_pids, "gallery_pids", num_gallery)
    pairs = match_pairs(
        pids,
        all_pids,
        as_labels(query_camids, "query_camids", num_query),
        as_labels(gallery_camids, "gallery_camids", num_gallery),
        rules,
    )
    valid = np.flatnonzero(pairs.positives())
    if len(valid) == 0:
        raise ValueError(
            f"no query has a match in the gallery: {num_query} queries of {len(np.unique(pids))} identities, "
            f"{len(pairs.kept)} gallery entries, {len(pairs.columns)} pairs of equal identity, {int(pairs.junk.sum())} "
            f"of them from one camera, which protocol {rules.name} leaves out; check that pids of both sets share one "
            "numbering and that camids are right (-1 where unknown)"
        )
    blocks.select_gallery(torch.from_numpy(pairs.kept))
    kept_pids = all_pids[pairs.kept]

    average_precision = np.full(num_query, np.nan)
    inverse_penalty = np.full(num_query, np.nan)
    first_rank = np.zeros(num_query, dtype=np.int64)
    drawn: list[np.ndarray] = []
    for rows, scores in blocks.blocks(torch.from_numpy(valid)):
        queries = rows.numpy()
        ranks, mask = _positive_ranks(scores, pairs, queries)
        precision = np.where(mask, np.arange(1, ranks.shape[1] + 1) / ranks, 0.0)
        counts = mask.sum(axis=1)
        average_precision[queries] = precision.sum(axis=1) / counts
        inverse_penalty[queries] = counts / ranks[np.arange(len(ranks)), counts - 1]
        first_ranks = ranks[:, :1]
        if rules.gallery_draws:
            first_ranks = first_ranks_of_draws(scores, kept_pids, pids[queries], queries, rules.gallery_draws)
        drawn.append(first_ranks)
        first_rank[queries] = first_ranks[:, 0]
    return EvaluationResult(
        cmc=share_found(np.concatenate(drawn), CMC_RANKS),
        mAP=float(average_precision[valid].mean()),
        mINP=float(inverse_penalty[valid].mean()),
        num_valid=len(valid),
        average_precision=average_precision,
        inp=inverse_penalty,
        first_rank=first_rank,
        manifest=_manifest(rules, blocks, num_query, num_gallery, len(valid), int(pairs.junk.sum())),
    )


def _positive_ranks(scores: Tensor, pairs: Pairs, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Increasing ranks (n, P) of each query's positives and the mask of those that exist; P is the largest number."""
    row, column, junk = pairs.of(queries)
    scores[as_tensor(row[junk], scores.device), as_tensor(column[junk], scores.device)] = -torch.inf
    row, column = row[~junk], column[~junk]
    counts = np.bincount(row, minlength=len(queries))
    place = np.arange(len(row)) - np.repeat(counts.cumsum() - counts, counts)
    mask = np.arange(counts.max()) < counts[:, None]  # (n, P)
    padded = np.zeros(mask.shape, dtype=np.int64)
    padded[row, place] = column

    columns = as_tensor(padded, scores.device)
    thresholds = scores.gather(1, columns)  # (n, P)
    ordered = _sort_rows(scores)
    size = scores.shape[1]
    ranks = size + 1 - torch.searchsorted(ordered, thresholds, right=True)
    equals = size + 1 - torch.searchsorted(ordered, thresholds) - ranks
    tied = ((equals > 1) & as_tensor(mask, scores.device)).any(dim=1).nonzero().flatten()
    # A stable sort costs several times the plain one; few rows of real features need it.
    # In pieces, because its indices are 64-bit.
    for some in tied.split(64):
        order = torch.sort(scores[some], dim=1, descending=True, stable=True).indices
        position = torch.empty_like(order)
        position.scatter_(1, order, torch.arange(1, size + 1, device=scores.device).expand_as(order))
        ranks[some] = position.gather(1, columns[some])
    found = ranks.cpu().numpy()
    found[~mask] = size + 1
    found.sort(axis=1)
    return found, mask


def _sort_rows(scores: Tensor) -> Tensor:
    """Each row in increasing order; NumPy sorts floats with vector instructions, torch about ten times slower."""
    if scores.device.type != "cpu":
        return torch.sort(scores, dim=1).values
    ordered = scores.numpy().copy()
    threads = max(1, min(torch.get_num_threads(), len(ordered)))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda part: part.sort(axis=1), np.array_split(ordered, threads)):
            pass
    return torch.from_numpy(ordered)


def _manifest(
    rules: Protocol, blocks: ScoreBlocks, num_query: int, num_gallery: int, num_valid: int, num_junk_pairs: int
) -> dict[str, Any]:
    kept = blocks.shape[1]
    protocol = {**asdict(rules), "ignored_pids": list(rules.ignored_pids)}
    if rules.gallery_draws:
        protocol["seed"] = SEED
    else:
        del protocol[
            "gallery_draws"
        ]  # hashes of results that were made before there was such a rule stay what they are
    manifest: dict[str, Any] = {
        "protocol": protocol,
        "unknown_camera": "-1 equals no camera",
        "ties": TIES,
        **blocks.rules,
        "cmc_ranks": CMC_RANKS,
        "num_query": num_query,
        "num_valid": num_valid,
        "num_skipped": num_query - num_valid,
        "num_gallery": kept,
        "num_gallery_ignored": num_gallery - kept,
        "num_same_camera_pairs_left_out": num_junk_pairs,
    }
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {**manifest, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}
