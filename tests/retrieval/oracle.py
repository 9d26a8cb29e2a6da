"""A slow evaluator written from the protocol's text: one query at a time, one stable argsort of its whole gallery."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from motarfuse.retrieval.tiles import ScoreTiles


@dataclass
class Expected:
    """What the evaluator has to find; NaN average precision and INP, and first rank 0, for a skipped query."""

    cmc: np.ndarray
    mAP: float  # noqa: N815
    mINP: float  # noqa: N815
    average_precision: np.ndarray
    inp: np.ndarray
    first_rank: np.ndarray


def pair_scores(query: np.ndarray, gallery: np.ndarray, metric: str) -> np.ndarray:
    """(Q, G) fp64 scores, larger is better, from differences or normalised products."""
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "euclidean":
        return -np.sqrt(((query[:, None] - gallery[None]) ** 2).sum(-1))
    norms = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(gallery, axis=1)
    return np.divide(query @ gallery.T, norms, out=np.zeros_like(norms), where=norms > 0)


def part_scores(
    query: tuple[np.ndarray, np.ndarray], gallery: tuple[np.ndarray, np.ndarray], epsilon: float = 1e-6
) -> np.ndarray:
    """(Q, G) fp64 part scores from part features (n, L, d) and visibilities (n, L), one pair and one part at a time."""
    (query_parts, query_seen), (gallery_parts, gallery_seen) = (
        [np.asarray(array, np.float64) for array in side] for side in (query, gallery)
    )
    scores = np.zeros((len(query_parts), len(gallery_parts)))
    for i, j in np.ndindex(scores.shape):
        total = weight = 0.0
        for part in range(query_parts.shape[1]):
            first, second = query_parts[i, part], gallery_parts[j, part]
            lengths = np.linalg.norm(first) * np.linalg.norm(second)
            shared = query_seen[i, part] * gallery_seen[j, part]
            total += shared * (first @ second / lengths if lengths > 0 else 0.0)
            weight += shared
        scores[i, j] = total / (weight + epsilon)
    return scores


def trapezoid(right: list[bool]) -> float:
    """Average precision as the MATLAB evaluators do it: one entry after the other, areas under precision by recall."""
    total, found, old_recall, old_precision, area = sum(right), 0, 0.0, 1.0, 0.0
    for place, is_right in enumerate(right):
        found += is_right
        recall, precision = found / total, found / (place + 1)
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


def evaluate(
    scores: np.ndarray,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_camids: np.ndarray,
    *,
    cameras: bool = True,
    itself: bool = False,
    average_precision: str = "step",
    ties: str = "stable",
) -> Expected:
    """A protocol on given scores: that of Market-1501, or all against all (no ``cameras``, without ``itself``)."""
    precisions, penalties = np.full(len(scores), np.nan), np.full(len(scores), np.nan)
    first, hits = np.zeros(len(scores), np.int64), []
    for i in range(len(scores)):
        same = gallery_pids == query_pids[i]
        later = {"stable": 0 * same, "pessimistic": same, "optimistic": ~same}[ties]
        order = [int(j) for j in np.lexsort((np.arange(len(same)), later, -scores[i]))]
        right = []
        for j in order:
            same_camera = cameras and gallery_camids[j] == query_camids[i] and query_camids[i] != -1
            if gallery_pids[j] == -1 or (same[j] and same_camera) or (itself and i == j):
                continue
            right.append(bool(same[j]))
        if not any(right):
            continue
        ranks = [position + 1 for position, is_right in enumerate(right) if is_right]
        step = sum((found + 1) / rank for found, rank in enumerate(ranks)) / len(ranks)
        precisions[i] = step if average_precision == "step" else trapezoid(right)
        penalties[i] = len(ranks) / ranks[-1]
        first[i] = ranks[0]
        hits.append([ranks[0] <= k for k in range(1, 51)])
    mean_precision, mean_penalty = float(np.nanmean(precisions)), float(np.nanmean(penalties))
    return Expected(np.mean(hits, axis=0), mean_precision, mean_penalty, precisions, penalties, first)


def table(scores: ScoreTiles) -> Tensor:
    """(Q, G) float64, the exact score of every pair."""
    rows, columns = torch.meshgrid(*(torch.arange(size, device=scores.device) for size in scores.shape), indexing="ij")
    return scores.pair_scores(rows.flatten(), columns.flatten()).view(scores.shape)
