"""Which cameras are hard for which: the numbers of each query camera within each gallery camera."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from motarfuse.retrieval.labels import PairLabels
from motarfuse.retrieval.measures import average_precisions, inverse_penalties
from motarfuse.retrieval.metrics import check_ties, no_match, ranks_of_positives
from motarfuse.retrieval.protocols import Protocol, get_protocol
from motarfuse.retrieval.tiles import ScoreTiles

# Bands of the share of a person that is hidden: upper ends, which belong to their band.
OCCLUSION_BANDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6)


@dataclass(frozen=True)
class CameraPair:
    """Queries of one camera against the gallery entries of one camera; fractions, NaN without a valid query.

    Attributes:
        query_camera, gallery_camera: The cameras; -1 is unknown.
        mAP, mINP, rank1: Over the valid queries.
        num_query: Queries of the camera.
        num_valid: Those with a match that counts under the gallery's camera.
        num_gallery: Gallery entries of the camera.
    """

    query_camera: int
    gallery_camera: int
    mAP: float  # noqa: N815 - the field's name everywhere
    mINP: float  # noqa: N815
    rank1: float
    num_query: int
    num_valid: int
    num_gallery: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None where there is no valid query."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


def camera_pairs(
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
) -> list[CameraPair]:
    """mAP, mINP and rank-1 of every pair of a query camera and a gallery camera, the gallery restricted to the latter.

    The gallery falls apart by camera, so that all pairs together cost one pass over the scores. A camera with itself
    has no valid query under a protocol that leaves out entries of the query's camera. Where the protocol draws
    galleries, these numbers are of all entries of the camera all the same.

    Args:
        query, gallery, query_pids, gallery_pids, query_camids, gallery_camids: As in ``evaluate``.
        protocol, metric, score, average_precision, ties, mask, storage, block: As in ``evaluate``.

    Returns:
        Every pair of cameras, by query camera, then by gallery camera.

    Raises:
        TypeError, ValueError: As ``evaluate``.
    """
    rules = get_protocol(protocol, average_precision)
    check_ties(ties)
    tiles = ScoreTiles(query, gallery, metric=metric, score=score, mask=mask, storage=storage, block=block)
    labels = PairLabels.of(tiles.shape, query_pids, gallery_pids, query_camids, gallery_camids)
    pairs = labels.pairs(rules)
    if not pairs.positives().any():
        raise ValueError(no_match(pairs, labels, rules))
    cameras = labels.gallery_camids[pairs.kept]
    found = []
    for camera in np.unique(cameras).tolist():
        part = pairs.restrict(np.flatnonzero(cameras == camera))
        queries = np.flatnonzero(part.positives())
        values = np.full((3, len(labels.query_pids)), np.nan)
        if len(queries):
            entries = copy.copy(tiles)  # selecting leaves the whole gallery to the next camera
            entries.select_gallery(torch.from_numpy(part.kept))
            ranks, starts = ranks_of_positives(entries, part, queries, ties)
            values[:, queries] = (
                average_precisions(ranks, starts, rules.average_precision),
                inverse_penalties(ranks, starts),
                ranks[starts[:-1]] == 1,
            )
        for query_camera in np.unique(labels.query_camids).tolist():
            own = values[:, labels.query_camids == query_camera]
            valid = own[:, ~np.isnan(own[0])]
            m_ap, m_inp, rank1 = valid.mean(axis=1).tolist() if valid.shape[1] else (np.nan,) * 3
            counts = (own.shape[1], valid.shape[1], len(part.kept))
            found.append(CameraPair(query_camera, camera, m_ap, m_inp, rank1, *counts))
    return sorted(found, key=lambda pair: (pair.query_camera, pair.gallery_camera))


def occlusion_bands(hidden: Sequence[float | None] | np.ndarray) -> list[str | None]:
    """Names of groups for ``EvaluationResult.breakdown``: by the share of the person that is hidden.

    Args:
        hidden: Shares in [0, 1], None where unknown.

    Returns:
        "0 %", "0-10 %", ... "60-100 %": names in the order of the shares when sorted; None where unknown.

    Raises:
        ValueError: A value outside [0, 1].
    """
    names: list[str | None] = []
    for share in hidden:
        if share is None:
            names.append(None)
            continue
        if not 0 <= share <= 1:
            raise ValueError(f"hidden: got {share}, supported are shares in [0, 1] and None")
        place = int(np.searchsorted(OCCLUSION_BANDS, share, side="left"))
        low, high = (0.0, *OCCLUSION_BANDS, 1.0)[place : place + 2]
        names.append("0 %" if high == 0 else f"{100 * low:.0f}-{100 * high:.0f} %")
    return names
