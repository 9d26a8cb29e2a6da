"""Query expansion, and the same for galleries: features moved towards their nearest neighbours, before a search."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from motarfuse.ops.ranking import ranking_functions
from motarfuse.retrieval.features import PersonFeatures, as_people
from motarfuse.retrieval.ranks import top_k
from motarfuse.retrieval.scores import check_pair
from motarfuse.retrieval.tiles import ScoreTiles

# Values of neighbours that are looked at together.
_VALUES = 1 << 24


def expand_queries(query: Any, gallery: Any, *, k: int = 10, alpha: float = 3.0, block: int | None = None) -> Tensor:
    """Queries with their nearest gallery entries added, each by its similarity: alpha query expansion.

        q' = u / |u|, u = q + sum_{g in N(q, k)} max(0, q.g)^alpha g

    with all features of length 1 and N(q, k) the k entries of the largest cosine, ties by the lower index. With
    ``alpha`` 0 all neighbours count alike (average query expansion), also those that point the other way. Rank with the
    result by cosine. Neighbours are exact (:func:`search`); sums are float64.

    Args:
        query: (Q, d) tensor or array of fp16, bf16, fp32 or fp64, on any device; or ``PersonFeatures``, of which the
            feature alone is compared.
        gallery: (G, d), same dtype and device; or ``PersonFeatures``.
        k: Neighbours, 1 to G.
        alpha: Exponent of a neighbour's similarity, at least 0.
        block: Queries at a time; None chooses. The result does not depend on it.

    Returns:
        (Q, d) of length 1, in the query's dtype and on its device; a tensor also for arrays. A zero vector stays one
        unless ``alpha`` is 0.

    Raises:
        TypeError: Features that are not floating point or of two dtypes; ``k`` or ``alpha`` of another type.
        ValueError: Wrong or unequal shapes, an empty query or gallery, NaN or infinite features (the rows are named),
            ``k`` or ``alpha`` out of range.

    2 Q G d FLOP. Source: Chum et al. 2007, "Total Recall: Automatic Query Expansion with a Generative Feature Model for
    Object Retrieval"; Radenovic et al. 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation" (alpha).
    """
    sides = _sides(query, gallery)
    _check(k, alpha, len(sides[1]), "the size of the gallery")
    return _expanded(*sides, k, float(alpha), None, block)


def augment_gallery(gallery: Any, *, k: int = 10, alpha: float = 0.0, block: int | None = None) -> Tensor:
    """A gallery whose entries have their own nearest entries added: what ``expand_queries`` does, for the other side.

        g' = u / |u|, u = g + sum_{h in N(g, k)} max(0, g.h)^alpha h, g itself not among its neighbours

    It is done once, before any query. With ``alpha`` 0 all neighbours count alike.

    Args:
        gallery: (G, d) tensor or array of fp16, bf16, fp32 or fp64, on any device; or ``PersonFeatures``, of which the
            feature alone is compared.
        k: Neighbours besides the entry itself, 1 to G - 1.
        alpha: Exponent of a neighbour's similarity, at least 0.
        block: Entries at a time; None chooses. The result does not depend on it.

    Returns:
        (G, d) of length 1, in the gallery's dtype and on its device; a tensor also for an array. A zero vector stays
        one unless ``alpha`` is 0.

    Raises:
        TypeError, ValueError: As :func:`expand_queries`.

    2 G^2 d FLOP. Source: Turcot & Lowe 2009, "Better matching with fewer features: The selection of useful features in
    large database recognition problems".
    """
    side, other = _sides(gallery, gallery)
    _check(k, alpha, len(side) - 1, "the other entries of the gallery")
    entries = torch.arange(len(side), device=side.feature.device)
    return _expanded(side, other, k, float(alpha), entries, block)


def _sides(query: Any, gallery: Any) -> tuple[PersonFeatures, PersonFeatures]:
    sides = [PersonFeatures(as_people(side, name).feature) for side, name in ((query, "query"), (gallery, "gallery"))]
    check_pair(sides[0], sides[1], "feature")
    return sides[0], sides[1]


def _check(k: Any, alpha: Any, most: int, what: str) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"k: got {type(k).__name__}, supported is an integer")
    if not 1 <= k <= most:
        raise ValueError(f"k: got {k}, supported are 1 to {most}, {what}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | np.integer | np.floating):
        raise TypeError(f"alpha: got {type(alpha).__name__}, supported is a number")
    if not 0 <= alpha < np.inf:
        raise ValueError(f"alpha: got {alpha}, supported are finite numbers of at least 0")


@torch.no_grad()
def _expanded(
    query: PersonFeatures, gallery: PersonFeatures, k: int, alpha: float, itself: Tensor | None, block: int | None
) -> Tensor:
    """``itself`` (Q,): the gallery entry that is a query's own, and no neighbour."""
    tiles = ScoreTiles(query, gallery, metric="cosine", block=block)
    starts = None
    if itself is not None:
        itself = itself.to(tiles.device)
        starts = torch.arange(len(itself) + 1, device=tiles.device)
    similarities, entries, _ = top_k(tiles, int(k), left_out_starts=starts, left_out=itself)
    unit_rows = ranking_functions(tiles.device).unit_rows
    rows = unit_rows(query.feature.to(tiles.device))[0]
    others = unit_rows(gallery.feature.to(tiles.device))[0]
    weights = torch.ones_like(similarities) if alpha == 0 else similarities.clamp(min=0).pow(alpha)
    moved = torch.empty_like(rows)
    size = max(1, _VALUES // (rows.shape[1] * int(k)))
    for first in range(0, len(rows), size):
        some = slice(first, first + size)
        near = others[entries[some]].double()
        total = rows[some].double() + (weights[some, :, None] * near).sum(dim=1)
        moved[some] = unit_rows(total)[0].to(moved.dtype)
    return moved.to(query.feature)
