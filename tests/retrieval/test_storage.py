"""Features kept in half types: ranked exactly as they are kept, and what that changes is measured."""

from __future__ import annotations

import pytest
import torch

from motarfuse.retrieval import evaluate, search, storage_changes


def clouds(width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(200, width, generator=generator), torch.randn(2000, width, generator=generator)


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_ranks_what_is_kept(storage: str, metric: str) -> None:
    query, gallery = clouds()
    kept = getattr(torch, storage)
    if metric == "cosine":
        rounded = [torch.nn.functional.normalize(side.double()).float().to(kept).double() for side in (query, gallery)]
        expected = (rounded[0] @ rounded[1].T).sort(dim=1, descending=True, stable=True).indices[:, :10]
    else:
        rounded = [side.to(kept).double() for side in (query, gallery)]
        expected = torch.cdist(rounded[0], rounded[1]).sort(dim=1, stable=True).indices[:, :10]
    _, indices = search(query, gallery, 10, metric=metric, storage=storage)
    assert (indices == expected).double().mean() > 0.999  # the oracle's own unit vectors are rounded otherwise


def test_changes_are_counted() -> None:
    query, gallery = clouds()
    changes = storage_changes(query, gallery, 10, storage="bfloat16")
    exact, kept = (search(query, gallery, 10, storage=storage)[1] for storage in (None, "bfloat16"))
    sets = [set(a) != set(b) for a, b in zip(exact.tolist(), kept.tolist(), strict=True)]
    assert changes.set_changed == sum(sets) / 200 > 0
    assert changes.order_changed == (exact != kept).any(dim=1).double().mean().item() > changes.set_changed
    assert changes.first_changed == (exact[:, 0] != kept[:, 0]).double().mean().item()
    overlap = [len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), kept.tolist(), strict=True)]
    assert changes.mean_overlap == pytest.approx(sum(overlap) / 200)
    assert 0 < changes.largest_score_difference < 0.02
    assert (changes.bytes_given, changes.bytes_kept) == (2000 * 64 * 4, 2000 * 64 * 2)
    assert "bfloat16 instead of the features as given, 200 queries" in str(changes)


def test_float16_changes_less_than_bfloat16() -> None:
    fine, coarse = (storage_changes(*clouds(), storage=storage) for storage in ("float16", "bfloat16"))
    assert fine.order_changed < coarse.order_changed / 3


def test_half_features_of_integers_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randint(-8, 8, (rows, 16), generator=generator).float() for rows in (20, 300))
    changes = storage_changes(query, gallery, 300, metric="euclidean")
    assert (changes.order_changed, changes.mean_overlap, changes.largest_score_difference) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("scale", [1e-8, 1e-5, 1e5])
def test_small_and_large_features_lose_no_more_than_others(scale: float) -> None:
    query, gallery = clouds()
    ordinary = storage_changes(query, gallery, metric="euclidean")
    scaled = storage_changes(query * scale, gallery * scale, metric="euclidean")
    assert scaled.order_changed == pytest.approx(ordinary.order_changed, abs=0.05)


def test_unknown_storage_is_named() -> None:
    with pytest.raises(ValueError, match="storage: got 'int8', supported are None, float16, bfloat16"):
        search(*clouds(), 3, storage="int8")
    with pytest.raises(ValueError, match="storage: got 'float16' with a mask"):
        search(*clouds(), 3, storage="float16", mask=torch.ones(200, 64))


def test_an_evaluation_ranks_what_is_kept_and_says_so() -> None:
    generator = torch.Generator().manual_seed(0)
    people = torch.randn(30, 32, generator=generator)
    query, gallery = (people[rows % 30] + torch.randn(len(rows), 32, generator=generator) for rows in map(
        torch.arange, (60, 600)
    ))  # fmt: skip
    labels = (torch.arange(60) % 30, torch.arange(600) % 30, torch.zeros(60, dtype=torch.int64), torch.ones(600).long())
    exact, kept = (evaluate(query, gallery, *labels, storage=storage) for storage in (None, "bfloat16"))
    rounded = [torch.nn.functional.normalize(side.double()).bfloat16().double() for side in (query, gallery)]
    order = (rounded[0] @ rounded[1].T).sort(dim=1, descending=True, stable=True).indices
    first = (labels[1][order] == labels[0][:, None]).int().argmax(dim=1) + 1
    assert (torch.from_numpy(kept.first_rank) == first).double().mean() > 0.9
    assert exact.mAP != kept.mAP == pytest.approx(exact.mAP, abs=0.01)
    assert kept.manifest["storage"] == "bfloat16"
    assert exact.manifest["sha256"] != kept.manifest["sha256"]


def test_a_mask_of_ones_is_the_cosine_and_another_is_not() -> None:
    query, gallery = clouds()
    labels = (torch.arange(200) % 50, torch.arange(2000) % 50, torch.zeros(200).long(), torch.ones(2000).long())
    plain = evaluate(query, gallery, *labels)
    assert evaluate(query, gallery, *labels, mask=torch.ones_like(query)).mAP == pytest.approx(plain.mAP, rel=1e-4)
    half = torch.ones_like(query)
    half[:, 32:] = 0
    masked = evaluate(query, gallery, *labels, mask=half)
    assert masked.mAP == pytest.approx(evaluate(query[:, :32], gallery[:, :32], *labels).mAP, rel=1e-4)
