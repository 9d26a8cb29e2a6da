"""What an evaluation can tell beside its headline: breakdowns, intervals and the ROC, as parts of its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from motarfuse.data import ImageRecord, Tracklet
from motarfuse.data.any_dataset import AnyDataset
from motarfuse.engine.occlusion import hidden_shares
from motarfuse.errors import ConfigError, DataError
from motarfuse.retrieval import EvaluationResult, rerank
from motarfuse.retrieval.breakdowns import camera_pairs, occlusion_bands
from motarfuse.retrieval.protocols import get_protocol
from motarfuse.retrieval.rerank_variants import VARIANTS
from motarfuse.retrieval.roc import verify

BREAKDOWNS = ("camera-pairs", "occlusion")
# k1 of re-ranking, everybody's default.
_NEIGHBORS = 20


@dataclass(frozen=True)
class Details:
    """What is wanted of an evaluation beside its headline.

    Attributes:
        by: Breakdowns, names of ``BREAKDOWNS``.
        roc: Whether all pairs are verified: TPR at false positive rates, with the thresholds.
        confidence: Level of bootstrap intervals over identities; None makes none.
        average_precision: ``step`` or ``trapezoid`` in place of the protocol's own.
        rerank: A formula of ``motarfuse.retrieval.rerank`` by which the features are ranked once more.
    """

    by: tuple[str, ...] = ()
    roc: bool = False
    confidence: float | None = None
    average_precision: str | None = None
    rerank: str | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.by if name not in BREAKDOWNS]
        if unknown:
            raise ConfigError(f"breakdown {unknown[0]!r} is unknown; supported are {', '.join(BREAKDOWNS)}")
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise ConfigError(f"confidence must lie in (0, 1), e.g. 0.95, got {self.confidence}")
        if self.average_precision not in (None, "step", "trapezoid"):
            raise ConfigError(f"average precision must be step or trapezoid, got {self.average_precision!r}")
        if self.rerank is not None and self.rerank not in VARIANTS:
            raise ConfigError(f"re-ranking must be one of {', '.join(VARIANTS)}, got {self.rerank!r}")


def describe(
    details: Details,
    result: EvaluationResult,
    sides: Sequence[Any],
    options: dict[str, Any],
    dataset: AnyDataset,
    query_records: Sequence[ImageRecord | Tracklet],
) -> dict[str, Any]:
    """The wanted parts of a record, plain JSON values by name: ``by``, ``verification``, ``confidence``,
    ``rerank``.

    Args:
        details: What is wanted.
        result: Of the headline's score.
        sides: Query, gallery and their labels, as ``evaluate`` takes them.
        options: Protocol, metric and score, likewise.
        dataset: Where the records are from.
        query_records: One a query.

    Raises:
        DataError: The dataset does not tell what a breakdown asks for, or is too small to be re-ranked.
    """
    record: dict[str, Any] = {}
    by: dict[str, Any] = {}
    if "camera-pairs" in details.by:
        pairs = camera_pairs(*sides, average_precision=details.average_precision, **options)
        by["camera-pairs"] = [pair.to_dict() for pair in pairs]
    if "occlusion" in details.by:
        groups = np.array(occlusion_bands(hidden_shares(dataset, query_records)), dtype=object)
        by["occlusion"] = [
            {"hidden": name, **{key: _plain(value) for key, value in numbers.metrics.items()}}
            for name, numbers in result.breakdown(groups).items()
        ]
    if by:
        record["by"] = by
    if details.roc:
        record["verification"] = verify(*sides, **options).to_dict()
    if details.confidence is not None:
        intervals = result.confidence(details.confidence)
        record["confidence"] = {
            "level": details.confidence,
            "over": "identities of the queries",
            "intervals": {name: asdict(interval) for name, interval in intervals.items()},
        }
    if details.rerank is not None:
        record["rerank"] = _reranked(details, sides, options)
    return record


def _reranked(details: Details, sides: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
    """The formula and its numbers: those of the feature, whichever score the headline is of."""
    query, gallery, *labels = sides
    if len(query) + len(gallery) <= _NEIGHBORS:
        raise DataError(
            f"re-ranking compares {_NEIGHBORS} neighbours of each image, and query and gallery are "
            f"{len(query) + len(gallery)} images together"
        )
    rules = get_protocol(options["protocol"], details.average_precision)
    result = rerank(query, gallery, k1=_NEIGHBORS, variant=str(details.rerank)).evaluate(*labels, protocol=rules)
    found = result.to_dict()
    return {**result.manifest["rerank"], "metrics": found["metrics"], "cmc": found["cmc"]}


def _plain(value: float) -> float | None:
    return None if value != value else value
