"""Means over the random splits of a dataset: what papers print of iLIDS-VID, PRID2011 and CUHK03's classic protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from motarfuse.retrieval.result import EvaluationResult


@dataclass(frozen=True)
class SplitsResult:
    """Numbers over several splits.

    Attributes:
        mean: Of each metric (mAP, mINP, rank1, rank5, rank10, counts).
        deviation: Standard deviation of each over the splits (with n - 1); NaN of one split.
        cmc: (50,) mean curve.
        cmc_deviation: (50,) standard deviations of its places.
        metrics: Each split's metrics, in the order given.
        hashes: ``sha256`` of each split's manifest.
    """

    mean: dict[str, float]
    deviation: dict[str, float]
    cmc: np.ndarray
    cmc_deviation: np.ndarray
    metrics: tuple[dict[str, float | int], ...]
    hashes: tuple[str, ...]

    @property
    def num_splits(self) -> int:
        """How many splits these are."""
        return len(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for the deviations of one split."""
        return {
            "mean": self.mean,
            "deviation": {name: _plain(value) for name, value in self.deviation.items()},
            "cmc": self.cmc.tolist(),
            "cmc_deviation": [_plain(value) for value in self.cmc_deviation.tolist()],
            "splits": [dict(one) for one in self.metrics],
            "sha256": list(self.hashes),
        }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value


def mean_of_splits(results: Sequence[EvaluationResult | Mapping[str, Any]]) -> SplitsResult:
    """Mean and standard deviation over the evaluations of a dataset's splits.

    Every split has the same weight, however many queries it has, as the published means have.

    Args:
        results: One result a split, or its :meth:`EvaluationResult.to_dict`.

    Raises:
        ValueError: No result, or results that were counted by different rules.
    """
    if not results:
        raise ValueError("results: got none; give the result of each split")
    found = [one.to_dict() if isinstance(one, EvaluationResult) else one for one in results]
    first = _rules(found[0]["manifest"])
    for place, one in enumerate(found):
        different = [key for key, value in _rules(one["manifest"]).items() if value != first.get(key)]
        if different:
            raise ValueError(f"results: number {place} differs from the first in {', '.join(different)}")
    metrics = tuple(dict(one["metrics"]) for one in found)
    names = list(metrics[0])
    table = np.array([[one[name] for name in names] for one in metrics], dtype=np.float64)
    curves = np.array([one["cmc"] for one in found], dtype=np.float64)
    deviation = _deviation(table)
    return SplitsResult(
        mean=dict(zip(names, table.mean(axis=0).tolist(), strict=True)),
        deviation=dict(zip(names, deviation.tolist(), strict=True)),
        cmc=curves.mean(axis=0),
        cmc_deviation=_deviation(curves),
        metrics=metrics,
        hashes=tuple(str(one["manifest"]["sha256"]) for one in found),
    )


def _deviation(table: np.ndarray) -> np.ndarray:
    """Standard deviation of each column, NaN of a single row."""
    return table.std(axis=0, ddof=1) if len(table) > 1 else np.full(table.shape[1], np.nan)


def _rules(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be equal: all but sizes and their hash."""
    keys = ("protocol", "ties", "metric", "score", "score_dtype", "feature_width", "parts", "storage", "mask")
    return {key: manifest.get(key) for key in keys}
