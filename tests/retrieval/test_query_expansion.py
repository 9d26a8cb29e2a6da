"""``expand_queries`` and ``augment_gallery`` against their formulas, one row at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from motarfuse.retrieval import PersonFeatures, augment_gallery, evaluate, expand_queries, query_expansion
from tests.retrieval.test_evaluate import DEVICES, FLOAT_DTYPES
from tests.retrieval.test_rerank import people


def expanded(query: np.ndarray, gallery: np.ndarray, k: int, alpha: float, own: bool = False) -> np.ndarray:
    unit, entries = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (query, gallery))
    rows = []
    for i, row in enumerate(unit):
        similarity = entries @ row
        order = [j for j in np.argsort(-similarity, kind="stable") if not own or i != j][:k]
        total = row.copy()
        for j in order:
            total += (max(0.0, similarity[j]) ** alpha if alpha else 1.0) * entries[j]
        rows.append(total / np.linalg.norm(total))
    return np.stack(rows)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("alpha", [0, 1.0, 3])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_equals_the_formula(k: int, alpha: float, dtype: torch.dtype, device: str) -> None:
    query, gallery = (torch.from_numpy(side).to(dtype) for side in people(1, 15, 60, np.float64))
    found = expand_queries(query.to(device), gallery.to(device), k=k, alpha=alpha)
    assert (found.dtype, found.device.type) == (dtype, device)
    wanted = expanded(query.double().numpy(), gallery.double().numpy(), k, alpha)
    tolerance = {torch.float64: 1e-14, torch.float32: 3e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    np.testing.assert_allclose(found.double().cpu().numpy(), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("alpha", [0, 3.0])
@pytest.mark.parametrize("k", [1, 7, 59])
def test_a_gallery_is_moved_by_its_other_entries(k: int, alpha: float) -> None:
    gallery = people(1, 15, 60, np.float64)[1]
    gallery[30] = gallery[4]  # an equal entry is a neighbour, the entry itself is none
    found = augment_gallery(gallery, k=k, alpha=alpha).numpy()
    np.testing.assert_allclose(found, expanded(gallery, gallery, k, alpha, own=True), rtol=0, atol=1e-14)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = people(1, 15, 60)
    wanted = expand_queries(query, gallery, k=5), augment_gallery(gallery, k=5)
    monkeypatch.setattr(query_expansion, "_VALUES", 24 * 5 * 2)
    assert torch.equal(expand_queries(query, gallery, k=5, block=4), wanted[0])
    assert torch.equal(augment_gallery(gallery, k=5, block=4), wanted[1])


def test_neighbours_of_the_same_people_help() -> None:
    rng = np.random.default_rng(0)
    pids = rng.integers(0, 30, 600)
    features = rng.normal(size=(30, 64))[pids] + 1.7 * rng.normal(size=(600, 64))
    cameras = np.arange(600) % 6
    query, gallery = features[:100], features[100:]
    ids = pids[:100], pids[100:], cameras[:100], cameras[100:]
    plain = evaluate(query, gallery, *ids).mAP
    moved = augment_gallery(gallery, k=5)
    assert evaluate(expand_queries(query, gallery, k=5), gallery, *ids).mAP > plain + 0.05
    assert evaluate(torch.from_numpy(query), moved, *ids).mAP > plain + 0.05


def test_inputs_are_left_alone_and_zeros_stay_zeros() -> None:
    query, gallery = (torch.from_numpy(side) for side in people(2, 5, 20))
    query[2], gallery[:] = 0, gallery * 3
    before = query.clone(), gallery.clone()
    found = expand_queries(PersonFeatures(query), PersonFeatures(gallery), k=4)
    assert torch.equal(found[2], torch.zeros(24))
    assert torch.equal(query, before[0])
    assert torch.equal(gallery, before[1])
    assert torch.equal(found, expand_queries(query * 4, gallery * 0.25, k=4))


def test_bad_input_is_named() -> None:
    query, gallery = people(0, 5, 20)
    broken = gallery.copy()
    broken[3, 1] = np.inf
    for call, kind, message in (
        ({"k": 0}, ValueError, "k: got 0, supported are 1 to 20"),
        ({"k": 21}, ValueError, "k: got 21, supported are 1 to 20"),
        ({"k": 2.0}, TypeError, "k: got float"),
        ({"alpha": -1}, ValueError, "alpha: got -1"),
        ({"alpha": np.nan}, ValueError, "alpha: got nan"),
        ({"alpha": np.inf}, ValueError, "alpha: got inf"),
        ({"alpha": "3"}, TypeError, "alpha: got str"),
        ({"block": 0}, ValueError, "block: got 0"),
        ({"gallery": gallery[:, 1:]}, ValueError, "24 and 23 columns"),
        ({"gallery": broken}, ValueError, "gallery.*3"),
        ({"gallery": gallery.astype(np.float64)}, TypeError, "float32 and torch.float64"),
    ):
        arguments: dict[str, Any] = {"gallery": gallery, **call}
        with pytest.raises(kind, match=message):
            expand_queries(query, arguments.pop("gallery"), **arguments)
    with pytest.raises(ValueError, match="k: got 20, supported are 1 to 19, the other entries"):
        augment_gallery(gallery, k=20)
    with pytest.raises(ValueError, match="supported are 1 to 0"):
        augment_gallery(gallery[:1], k=1)
