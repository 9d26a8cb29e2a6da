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
    monkeypatch.setattr(rows, "rounding_bound", lambda *_: 0.0)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-12, 1e12, 1e30, 1e37])
def test_distances_of_extreme_features_keep_their_order(scale: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query, gallery = (
        (torch.randn(count, 8, generator=generator, dtype=torch.float64) * scale).to(dtype) for count in (3, 50)
    )
    # Scaled back exactly: what rounding has left of tiny numbers is what is ranked.
    back = 2.0 ** -round(np.log2(scale))
    expected = torch.cdist(query.double() * back, gallery.double() * back)
    scores = ScoreTiles(query, gallery, metric="euclidean")
    values, found = top_k(scores, 50)[:2]
    assert torch.equal(expected.sort(dim=1, stable=True).indices, found)
    if scale > 1e-38:
        distances = scores.public(values).double() * back
        assert torch.allclose(distances, expected.gather(1, found), rtol=1e-6, atol=0)


def test_tiny_and_ordinary_features_beside_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    for tiny in (1e-15, 1e-19, 1e-21, 1e-23, 1e-30):
        query, gallery = (torch.randn(count, 32, generator=generator) * tiny for count in (5, 1500))
        gallery[0] = 1.0  # sets the scale; the second tile has tiny rows alone
        scores = ScoreTiles(query, gallery, metric="euclidean")
        exact = oracle.table(scores)
        for tile in scores.tiles():
            expected = exact[tile.queries, tile.first : tile.first + len(tile.gallery)]
            assert ((tile.scores.double() - expected).abs() <= tile.slack.double()[:, None]).all()
        order = exact.sort(dim=1, descending=True, stable=True).indices
        assert torch.equal(top_k(scores, 20)[1], order[:, :20])


def test_masks_whose_squares_leave_float32_are_ranked_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randn(count, 16, generator=generator) for count in (4, 300))
    mask = torch.rand(4, 16, generator=generator) * torch.tensor([[1.0], [1e-12], [1e-16], [1e-18]])
    scores = ScoreTiles(query, gallery, mask=mask)
    (tile,) = scores.tiles()
    known = ~tile.scores.isnan()
    assert known[0].all()
    assert not known[2:].any()
    assert ((tile.scores.double() - oracle.table(scores)).abs() <= tile.slack.double()[:, None])[known].all()
    order = oracle.table(scores).sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(top_k(scores, 300)[1], order)


@pytest.mark.parametrize("storage", [None, "float16"])
def test_a_part_that_is_hardly_seen_keeps_the_bound(storage: str | None) -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [
        PersonFeatures(
            torch.randn(count, 4, generator=generator),
            torch.rand(count, 2, 2048, generator=generator),
            torch.rand(count, 2, generator=generator) * 10.0 ** torch.randint(-7, 1, (count, 2), generator=generator),
        )
        for count in (20, 200)
    ]
    scores = ScoreTiles(*sides, score="parts", storage=storage)
    (tile,) = scores.tiles()
    exact = oracle.table(scores)
    assert ((tile.scores.double() - exact).abs() <= tile.slack.double()[:, None]).all()
    hardly = PersonFeatures(torch.ones(1, 4), torch.ones(1, 1, 4096), torch.full((1, 1), 1e-5))
    whole = PersonFeatures(torch.ones(1, 4), torch.ones(1, 1, 4096), torch.ones(1, 1))
    assert oracle.table(ScoreTiles(hardly, whole, score="parts", storage=storage)).item() <= 1e-5 / (1e-5 + 1e-6)


def test_scores_in_float64_are_closer_still() -> None:
    query, gallery = people(9, 1, torch.float32, 100.0), people(300, 2, torch.float32, 100.0)
    for arguments in kinds(torch.float32).values():
        scores = ScoreTiles(query, gallery, **arguments)
        exact = oracle.table(scores)
        (tile,) = scores.tiles(dtype=torch.float64)
        error = (tile.scores - exact).abs()
        known = ~error.isnan()
        assert (error <= tile.slack[:, None])[known].all()
        assert tile.slack.max() < 1e-8 * max(1.0, float(exact.abs().max()))


def test_tiles_shrink_with_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    side = torch.randn(3000, 2)
    monkeypatch.setattr(tiles, "available_bytes", lambda _: 8 * 4 * 100_000)
    shapes = {tuple(tile.scores.shape) for tile in ScoreTiles(side, side).tiles()}
    assert 50_000 < max(rows * columns for rows, columns in shapes) <= 100_000


def test_queries_are_packed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = people(70, 1, torch.float32), people(200, 2, torch.float32)
    expected = top_k(ScoreTiles(query, gallery), 9, torch.arange(5, 70))
    pairs = torch.arange(70), torch.arange(70) * 2
    exact = ScoreTiles(query, gallery).pair_scores(*pairs)
    monkeypatch.setattr(tiles, "_QUERY_BYTES", 16 * 4 * (70 + 5 * 33 + 5))
    for found, wanted in zip(top_k(ScoreTiles(query, gallery), 9, torch.arange(5, 70)), expected, strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(ScoreTiles(query, gallery).pair_scores(*pairs), exact)
    assert max(len(tile.query) for tile in ScoreTiles(query, gallery).tiles()) == 16


def test_free_memory_is_a_number_of_bytes() -> None:
    free = memory.available_bytes(torch.device("cpu"))
    assert 1 << 20 < free < 1 << 50
