"""Tiles of scores: float32 scores within their bound, exact scores that nothing but the features decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from motarfuse.ops import use_backend
from motarfuse.retrieval import PersonFeatures, memory, rows, tiles
from motarfuse.retrieval.ranks import count_ranks, top_k
from motarfuse.retrieval.tiles import ScoreTiles
from tests.retrieval import oracle

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def people(rows: int, seed: int, dtype: torch.dtype, offset: float = 0.0) -> PersonFeatures:
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(rows, 70, generator=generator, dtype=torch.float64) + offset
    parts = torch.randn(rows, 5, 33, generator=generator, dtype=torch.float64)
    seen = torch.rand(rows, 5, generator=generator, dtype=torch.float64) * (torch.arange(5) != rows % 5)
    return PersonFeatures(feature.to(dtype), parts.to(dtype), seen.to(dtype))


def kinds(dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    mask = torch.rand(9, 70, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    mask[0] = 0  # a query that sees nothing
    mask[1, 1:] = 1e-20  # squares leave float32
    return {
        "cosine": {"score": "feature"},
        "euclidean": {"metric": "euclidean"},
        "parts": {"score": "parts"},
        "sum": {},
        "masked": {"mask": mask},
        "float16": {"score": "feature", "storage": "float16"},
        "bfloat16": {"storage": "bfloat16"},
    }


@pytest.mark.parametrize("kind", kinds(torch.float32))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_float32_scores_keep_their_bound(kind: str, dtype: torch.dtype, offset: float) -> None:
    scores = ScoreTiles(people(9, 1, dtype, offset), people(300, 2, dtype, offset), block=4, **kinds(dtype)[kind])
    exact = oracle.table(scores)
    seen = 0
    for tile in scores.tiles():
        expected = exact[tile.queries, tile.first : tile.first + len(tile.gallery)]
        known = ~tile.scores.isnan()
        error = (tile.scores.double() - expected).abs()
        assert (error <= tile.slack.double()[:, None])[known].all()
        seen += int(known.sum())
    # A bound that is met by saying nothing would be none.
    assert seen >= 0.7 * exact.numel()


@pytest.mark.parametrize("kind", kinds(torch.float32))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_scores_are_the_formula(kind: str, dtype: torch.dtype) -> None:
    query, gallery = people(9, 1, dtype), people(40, 2, dtype)
    arguments = kinds(dtype)[kind]
    exact = oracle.table(ScoreTiles(query, gallery, **arguments)).numpy()
    q, g = (side.feature.double().numpy() for side in (query, gallery))
    parts = [
        [array.double().numpy() for array in (side.require_parts())] for side in (query, gallery)
    ]  # fmt: skip
    if kind == "euclidean":
        expected = -(oracle.pair_scores(q, g, "euclidean") ** 2)
    elif kind == "masked":
        mask = arguments["mask"].double().numpy()
        expected = np.zeros((9, 40))
        for i, j in np.ndindex(9, 40):
            masked = mask[i] * g[j]
            lengths = np.linalg.norm(q[i]) * np.linalg.norm(masked)
            expected[i, j] = q[i] @ masked / lengths if lengths > 0 else 0.0
    else:
        expected = oracle.pair_scores(q, g, "cosine") if kind not in ("parts", "bfloat16") else np.zeros((9, 40))
        if kind in ("parts", "sum", "bfloat16"):
            weight = 1.0 if kind == "parts" else 3.0
            expected = expected + weight * oracle.part_scores((parts[0][0], parts[0][1]), (parts[1][0], parts[1][1]))
        if kind == "bfloat16":
            expected += oracle.pair_scores(q, g, "cosine")
    tolerance = {"float16": 1e-3, "bfloat16": 2e-2}.get(kind, 1e-6 if dtype == torch.float32 else 1e-13)
    scale = np.abs(expected).max()
    # float32 rows are rounded once: a part in 2^24 of each factor.
    assert np.abs(exact - expected).max() <= tolerance * scale


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["cosine", "euclidean", "sum", "masked", "float16"])
def test_neither_tiles_nor_pieces_nor_blocks_decide_anything(
    kind: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, gallery = people(9, 1, torch.float32), people(500, 2, torch.float32)
    arguments = kinds(torch.float32)[kind]
    with use_backend(backend):
        whole = ScoreTiles(query, gallery, **arguments)
        expected = top_k(whole, 20)
        pairs = torch.arange(9).repeat_interleave(3), torch.arange(27) * 18
        exact = whole.pair_scores(*pairs)
        monkeypatch.setattr(tiles, "CPU_TILE", (4, 64))
        monkeypatch.setattr(tiles, "available_bytes", lambda _: 0)
        monkeypatch.setattr(tiles, "_PIECE_BYTES", 1)
        small = ScoreTiles(query, gallery, block=2, **arguments)
        for found, wanted in zip(top_k(small, 20), expected, strict=True):
            assert torch.equal(found, wanted)
        assert torch.equal(small.pair_scores(*pairs), exact)
        assert {tile.gallery.shape[0] for tile in small.tiles()} == {64, 500 % 64}


def test_the_library_that_multiplies_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = people(9, 1, torch.float32).feature, people(40, 2, torch.float32).feature.repeat(3, 1)
    expected = top_k(ScoreTiles(query, gallery), 60)
    multiply, generator = rows._multiply, torch.Generator().manual_seed(0)

    def shaken(first: torch.Tensor, second: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(out.shape, generator=generator) * 2 - 1
        return multiply(first, second, out).add_(noise * 0.5 * rows.rounding_bound(first.shape[1]))

    monkeypatch.setattr(rows, "_multiply", shaken)
    for found, wanted in zip(top_k(ScoreTiles(query, gallery), 60), expected, strict=True):
        assert torch.equal(found, wanted)
    monkeypatch.setattr(rows, "rounding_bound", lambda _: 0.0)
    monkeypatch.setattr(rows, "_multiply", lambda *arguments: shaken(*arguments).add_(1e-3 * torch.arange(120.0)))
    assert not torch.equal(top_k(ScoreTiles(query, gallery), 60)[1], expected[1])


def test_ranks_of_entries_are_those_of_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randn(rows, 8, generator=generator).sign() for rows in (7, 400))  # nearly all tie
    scores = ScoreTiles(query, gallery)
    order = oracle.table(scores).sort(dim=1, descending=True, stable=True).indices
    place = torch.empty_like(order).scatter_(1, order, torch.arange(400).expand(7, -1))
    columns = torch.randint(0, 400, (7, 6), generator=generator)
    rows = torch.arange(7).repeat_interleave(6)
    thresholds = scores.pair_scores(rows, columns.flatten()).view(7, 6)
    thresholds, by_score = thresholds.sort(dim=1)
    columns = columns.gather(1, by_score)
    counts = count_ranks(scores, torch.arange(7), torch.arange(0, 43, 6), thresholds.flatten(), columns.flatten())
    assert torch.equal(counts.view(7, 6), place.gather(1, columns))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_distances_of_extreme_features_keep_their_order(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randn(rows, 8, generator=generator) for rows in (3, 50))
    expected, order = top_k(ScoreTiles(query, gallery, metric="euclidean"), 50)[:2]
    scores = ScoreTiles(query * scale, gallery * scale, metric="euclidean")
    values, found = top_k(scores, 50)[:2]
    assert (order == found).double().mean() > 0.99  # the features were rounded once more
    distances = scores.public(values).double() / scale
    assert torch.allclose(distances, expected.neg().sqrt(), rtol=1e-5, atol=0)


def test_free_memory_is_a_number_of_bytes() -> None:
    free = memory.available_bytes(torch.device("cpu"))
    assert 1 << 20 < free < 1 << 50
