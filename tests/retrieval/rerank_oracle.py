"""k-reciprocal re-ranking written from the formulas, dense and in double precision: everything N x N."""

from __future__ import annotations

import numpy as np

# Of each formula: unit features, what of the squared distances D is mixed in, what the weights' exponent is, neighbours
# in a list beyond k1, and rows averaged beyond k2.
RELATIVE = ("zhong2017", "torchreid", "transreid")


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows of length 1 in the type that features are compared in: float32 ones are rounded once."""
    wide = features.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)
    return unit if features.dtype == np.float64 else unit.astype(np.float32)


def reciprocal(order: np.ndarray, sample: int, count: int) -> set[int]:
    return {int(j) for j in order[sample, :count] if sample in order[j, :count]}


def final_distances(
    query: np.ndarray,
    gallery: np.ndarray,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    variant: str = "zhong2017",
    dtype: type = np.float64,
) -> np.ndarray:
    """(Q, G) final distances of a formula, computed in ``dtype``; D of float64 is a sum of squared differences."""
    samples = np.concatenate([query, gallery])
    if variant in ("fastreid", "boxmot", "transreid"):
        samples = unit_rows(samples)
    samples = samples.astype(dtype)
    if dtype is np.float64:
        squared = np.stack([((samples - row) ** 2).sum(axis=1) for row in samples])
    else:
        squares = (samples**2).sum(axis=1)
        squared = squares[:, None] + squares - 2 * samples @ samples.T
    mixed = squared / 2
    if variant in RELATIVE:
        powered = squared**2 if variant == "torchreid" else squared
        largest = powered.max(axis=0)
        mixed = (powered / np.where(largest > 0, largest, 1)).T
    exponent = squared if variant == "fastreid" else mixed
    order = np.argsort(mixed, axis=1, kind="stable")
    width = k1 if variant == "fastreid" else k1 + 1
    half = min(int(np.around(k1 / 2)) + 1, width)
    weights = np.zeros_like(mixed)
    for sample in range(len(samples)):
        own = reciprocal(order, sample, width)
        members = set(own)
        for candidate in own:
            theirs = reciprocal(order, candidate, half)
            if len(theirs & own) > 2.0 / 3 * len(theirs):
                members |= theirs
        chosen = sorted(members)
        row = np.exp(-exponent[sample, chosen])
        weights[sample, chosen] = row / row.sum()
    averaged = k2 + 1 if variant == "boxmot" else k2
    if averaged > 1:
        # By number, so that equal sets in another order have equal means.
        weights = np.stack([weights[np.sort(order[sample, :averaged])].mean(axis=0) for sample in range(len(samples))])
    count = len(query)
    shared = np.stack([np.minimum(weights[i], weights[count:]).sum(axis=1) for i in range(count)])
    jaccard = 1 - shared / (2 - shared)
    if variant == "fastreid":
        jaccard = np.maximum(jaccard, 0)
    found: np.ndarray = (1 - lambda_value) * jaccard + lambda_value * mixed[:count, count:]
    return found
