"""What keeping features in half types changes of a ranking, measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from motarfuse.retrieval.features import PersonFeatures, as_people
from motarfuse.retrieval.search import search


@dataclass(frozen=True)
class StorageChanges:
    """How the first k results differ between features as given and features kept in a half type.

    Attributes:
        storage: ``float16`` or ``bfloat16``.
        k: Results that were compared.
        num_query: Queries.
        first_changed: Share of queries with another best entry.
        order_changed: Share of queries whose k results are not the same in the same order.
        set_changed: Share of queries whose k results are not the same, in any order.
        mean_overlap: Mean share of the k results that both have.
        largest_score_difference: Largest difference of scores at equal places.
        bytes_given, bytes_kept: Of the gallery's features.
    """

    storage: str
    k: int
    num_query: int
    first_changed: float
    order_changed: float
    set_changed: float
    mean_overlap: float
    largest_score_difference: float
    bytes_given: int
    bytes_kept: int

    def __str__(self) -> str:
        return (
            f"{self.storage} instead of the features as given, {self.num_query} queries: another first result for "
            f"{100 * self.first_changed:.2f} %, another order of the first {self.k} for {100 * self.order_changed:.2f} "
            f"%, {100 * self.mean_overlap:.3f} % of the results in common; "
            f"{self.bytes_kept / 1e6:.1f} MB instead of {self.bytes_given / 1e6:.1f}"
        )


def storage_changes(
    query: Any, gallery: Any, k: int = 10, *, storage: str = "float16", metric: str = "cosine", score: str = "auto"
) -> StorageChanges:
    """Searches twice, with the features as given and kept in ``storage``, and compares the first ``k`` results.

    Args:
        query, gallery, k, metric, score: As in ``search``.
        storage: ``float16`` or ``bfloat16``.

    Raises:
        TypeError, ValueError: As ``search``.
    """
    exact_scores, exact = search(query, gallery, k, metric=metric, score=score)
    kept_scores, kept = search(query, gallery, k, metric=metric, score=score, storage=storage)
    same_order = (exact == kept).all(dim=1)
    common = _common(exact, kept)
    people = as_people(gallery, "gallery")
    given = _bytes(people)
    return StorageChanges(
        storage=storage,
        k=k,
        num_query=len(exact),
        first_changed=float((exact[:, 0] != kept[:, 0]).double().mean()),
        order_changed=float((~same_order).double().mean()),
        set_changed=float((~common.all(dim=1)).double().mean()),
        mean_overlap=float(common.double().mean()),
        largest_score_difference=float((exact_scores - kept_scores).abs().max()),
        bytes_given=given,
        bytes_kept=given * 2 // people.feature.dtype.itemsize,
    )


def _common(exact: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """(Q, k) which of ``exact`` are among ``kept``, in no particular order."""
    ordered = kept.sort(dim=1).values
    place = torch.searchsorted(ordered, exact.contiguous()).clamp(max=ordered.shape[1] - 1)
    return ordered.gather(1, place) == exact


def _bytes(people: PersonFeatures) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in people.tensors.values())
