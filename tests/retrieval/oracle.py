"""A slow evaluator written from the protocol's text: one query at a time, one stable argsort of its whole gallery."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Expected:
    """What the evaluator has to find; NaN average precision for a skipped query."""

    cmc: np.ndarray
    mAP: float  # noqa: N815
    mINP: float  # noqa: N815
    average_precision: np.ndarray


def pair_scores(query: np.ndarray, gallery: np.ndarray, metric: str) -> np.ndarray:
    """(Q, G) fp64 scores, larger is better, from differences or normalised products."""
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "euclidean":
        return -np.sqrt(((query[:, None] - gallery[None]) ** 2).sum(-1))
    norms = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(gallery, axis=1)
    return np.divide(query @ gallery.T, norms, out=np.zeros_like(norms), where=norms > 0)


def evaluate(
    scores: np.ndarray,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_camids: np.ndarray,
) -> Expected:
    """The Market-1501 protocol on given scores."""
    precisions, penalties, hits = np.full(len(scores), np.nan), [], []
    for i in range(len(scores)):
        order = [int(j) for j in np.argsort(-scores[i], kind="stable")]
        right = []
        for j in order:
            same_camera = gallery_camids[j] == query_camids[i] and query_camids[i] != -1
            if gallery_pids[j] == -1 or (gallery_pids[j] == query_pids[i] and same_camera):
                continue
            right.append(bool(gallery_pids[j] == query_pids[i]))
        if not any(right):
            continue
        ranks = [position + 1 for position, is_right in enumerate(right) if is_right]
        precisions[i] = sum((found + 1) / rank for found, rank in enumerate(ranks)) / len(ranks)
        penalties.append(len(ranks) / ranks[-1])
        hits.append([ranks[0] <= k for k in range(1, 51)])
    return Expected(np.mean(hits, axis=0), float(np.nanmean(precisions)), float(np.mean(penalties)), precisions)
