"""mAP, CMC and mINP of a retrieval, exactly, from the ranks of the positives alone."""

from __future__ import annotations

import hashlib
import json
from typing import Any, get_args

import numpy as np
import torch

from motarfuse.retrieval.labels import PairLabels, Pairs, as_tensor
from motarfuse.retrieval.measures import CMC_RANKS, average_precisions, inverse_penalties, share_found
from motarfuse.retrieval.protocols import Protocol, Ties, get_protocol
from motarfuse.retrieval.ranks import count_ranks
from motarfuse.retrieval.result import EvaluationResult
from motarfuse.retrieval.single_shot import SEED, first_ranks_of_draws
from motarfuse.retrieval.tiles import ScoreTiles

TIES = {
    "stable": "stable: of equal scores, the entry with the lower gallery index ranks first",
    "pessimistic": "pessimistic: of equal scores, wrong answers rank first",
    "optimistic": "optimistic: of equal scores, right answers rank first",
}


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
    average_precision: str | None = None,
    ties: str = "stable",
    mask: Any = None,
    storage: str | None = None,
    block: int | None = None,
) -> EvaluationResult:
    """mAP, CMC and mINP of queries against a gallery.

    rank(p) = 1 + #{g : s_g > s_p} + #{g : s_g = s_p and g < p} over the gallery entries that count for the query;
    with its positives' ranks r_1 < ... < r_P: AP = mean_i i / r_i, INP = P / r_P, CMC(k) = [r_1 <= k]. Means are over
    the queries that have a positive.

    Ranks are counted, not sorted: one pass over tiles of scores counts the entries before each positive
    (``motarfuse.retrieval.ranks``), deciding by exact float64 scores where the float32 ones are too close. Memory
    beyond one packed copy of the features: one tile, and 48 bytes a positive. 2 Q G d FLOP; L parts of width d' take
    2 Q G L (d' + 1). The result is the same on every device and for every block size.

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
        average_precision: ``step`` or ``trapezoid`` in place of the protocol's own.
        ties: ``stable``; ``pessimistic`` ranks a positive behind, ``optimistic`` before, all negatives of its score.
        mask: (Q, d) values in [0, 1], each query's own weighting of the gallery's features, as in ``search``.
        storage: ``float16`` or ``bfloat16`` ranks features as they are kept in that type, as in ``search``.
        block: Queries at a time; None chooses. The result does not depend on it.

    Returns:
        :class:`EvaluationResult`.

    Raises:
        TypeError: Features that are not floating point or of two dtypes; labels that are not integers.
        ValueError: Wrong or unequal shapes, an empty query or gallery, NaN or infinite features (the rows are named),
            visibilities outside [0, 1], an unknown protocol, metric, score, average precision or way of ties, a score
            of parts without parts on both sides, no query with a positive, a gallery that is not what the protocol
            expects.
    """
    rules = get_protocol(protocol, average_precision)
    check_ties(ties)
    tiles = ScoreTiles(query, gallery, metric=metric, score=score, mask=mask, storage=storage, block=block)
    labels = PairLabels.of(tiles.shape, query_pids, gallery_pids, query_camids, gallery_camids)
    pairs = labels.pairs(rules)
    num_query, num_gallery = tiles.shape
    valid = np.flatnonzero(pairs.positives())
    if len(valid) == 0:
        raise ValueError(no_match(pairs, labels, rules))
    tiles.select_gallery(torch.from_numpy(pairs.kept))

    ranks, starts = ranks_of_positives(tiles, pairs, valid, ties)
    first_ranks = ranks[starts[:-1], None]
    if rules.gallery_draws:
        first_ranks = first_ranks_of_draws(
            lambda rows, columns: _scores_of_pairs(tiles, rows, columns),
            labels.gallery_pids[pairs.kept],
            labels.query_pids[valid],
            valid,
            pairs.left_out(valid),
            rules.gallery_draws,
            ties,
        )
    precision = np.full(num_query, np.nan)
    precision[valid] = average_precisions(ranks, starts, rules.average_precision)
    inp = np.full(num_query, np.nan)
    inp[valid] = inverse_penalties(ranks, starts)
    drawn = np.zeros((num_query, first_ranks.shape[1]), dtype=np.int64)
    drawn[valid] = first_ranks
    counts = {
        "num_query": num_query,
        "num_valid": len(valid),
        "num_skipped": num_query - len(valid),
        "num_gallery": len(pairs.kept),
        "num_gallery_ignored": num_gallery - len(pairs.kept),
        "num_same_camera_pairs_left_out": int(pairs.junk.sum()),
    }
    if rules.gallery_is_query:
        counts["num_pairs_with_itself_left_out"] = counts.pop("num_same_camera_pairs_left_out")
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
        manifest=signed_manifest(rules, tiles, {"ties": TIES[ties]}, {"cmc_ranks": CMC_RANKS, **counts}),
    )


def ranks_of_positives(
    tiles: ScoreTiles, pairs: Pairs, queries: np.ndarray, ties: str = "stable"
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (m,) of each query's positives, rising within a query, and (n + 1,) where each query's begin."""
    row, column, junk = pairs.of(queries)
    row, column = row[~junk], column[~junk]
    counts = np.bincount(row, minlength=len(queries))
    starts = np.concatenate([[0], counts.cumsum()])
    scores = _scores_of_pairs(tiles, queries[row], column)
    # Thresholds rise within a query, so that ranks fall; of equal ones the higher index, which ranks later, is first.
    order = np.lexsort((-column, scores, row))
    scores, column = scores[order], column[order]
    entries = {"stable": column, "pessimistic": np.full_like(column, tiles.shape[1]), "optimistic": column * 0}[ties]
    before = count_ranks(
        tiles,
        *(as_tensor(array, tiles.device) for array in (queries, starts, scores, entries, *pairs.left_out(queries))),
    )
    # Turned around within each query: ranks rise.
    turned = np.repeat(starts[:-1] + starts[1:], counts) - 1 - np.arange(len(row))
    ranks = before.cpu().numpy()[turned] + 1
    return (ranks if ties == "stable" else _among_equals(ranks, scores[turned], row, ties)), starts


def _among_equals(ranks: np.ndarray, scores: np.ndarray, row: np.ndarray, ties: str) -> np.ndarray:
    """Ranks where right answers of one score follow each other; counted were entries better than it, or not worse."""
    new = np.concatenate([[True], (scores[1:] != scores[:-1]) | (row[1:] != row[:-1])])
    run = new.cumsum() - 1
    sizes = np.bincount(run)
    place = np.arange(len(ranks)) - np.flatnonzero(new)[run]
    # Not worse counts the whole run, and the entry itself.
    return ranks + place - (sizes[run] if ties == "pessimistic" else 0)


def _scores_of_pairs(tiles: ScoreTiles, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Exact scores (m,) float64 of pairs of query rows and gallery columns."""
    return tiles.pair_scores(torch.from_numpy(rows), torch.from_numpy(columns)).cpu().numpy()


def check_ties(ties: str) -> None:
    """Raises ``ValueError`` for an unknown way of ranking ties."""
    if ties not in TIES:
        raise ValueError(f"ties: got {ties!r}, supported are {', '.join(get_args(Ties))}")


def no_match(pairs: Pairs, labels: PairLabels, rules: Protocol) -> str:
    """Why there is nothing to evaluate."""
    return (
        f"no query has a match in the gallery: {len(labels.query_pids)} queries of {len(np.unique(labels.query_pids))} "
        f"identities, {len(pairs.kept)} gallery entries, {len(pairs.columns)} pairs of equal identity, "
        f"{int(pairs.junk.sum())} of them {'a sample with itself' if rules.gallery_is_query else 'from one camera'}, "
        f"which protocol {rules.name} leaves out; check that pids of both sets share one numbering and that camids are "
        "right (-1 where unknown)"
    )


def signed_manifest(rules: Protocol, tiles: ScoreTiles, how: dict[str, Any], counts: dict[str, Any]) -> dict[str, Any]:
    """Rules and counts with the SHA-256 of their canonical JSON."""
    protocol = rules.rules
    if rules.gallery_draws:
        protocol["seed"] = SEED
    manifest: dict[str, Any] = {
        "protocol": protocol,
        "unknown_camera": "-1 equals no camera",
        **how,
        **tiles.rules,
        **counts,
    }
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {**manifest, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}
