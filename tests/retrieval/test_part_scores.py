"""Scores of people with parts against a loop over pairs and parts, and what makes them impossible."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from motarfuse.retrieval import SCORES, PersonFeatures, choose_score, evaluate, rank_lists, rows, search
from motarfuse.retrieval.tiles import CPU_TILE, ScoreTiles
from tests.retrieval import oracle
from tests.retrieval.test_evaluate import DEVICES, FLOAT_DTYPES, assert_equal, labels

PARTS = 5


def people(
    count: int, *, seed: int, width: int = 24, part_width: int = 9, dtype: torch.dtype = torch.float64
) -> PersonFeatures:
    """People of whom some parts, and of every seventh all parts, are hidden."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.rand(count, PARTS, generator=generator, dtype=torch.float64)
    seen[seen < 0.3] = 0
    seen[::7] = 0
    return PersonFeatures(
        torch.randn(count, width, generator=generator, dtype=torch.float64).to(dtype),
        (10 * torch.randn(count, PARTS, part_width, generator=generator, dtype=torch.float64)).to(dtype),
        seen.to(dtype),
    )


def like(centres: PersonFeatures, ids: np.ndarray, *, seed: int, dtype: torch.dtype) -> PersonFeatures:
    """People near the centre of their identity; identity i is row i + 1."""
    noise = people(len(ids), seed=seed)
    rows = torch.from_numpy(ids) + 1
    assert centres.part_features is not None
    assert noise.part_features is not None
    assert noise.part_visibility is not None
    return PersonFeatures(
        (centres.feature[rows] + 2 * noise.feature).to(dtype),
        (centres.part_features[rows] + 2 * noise.part_features).to(dtype),
        noise.part_visibility.to(dtype),
    )


def expected_scores(query: PersonFeatures, gallery: PersonFeatures, score: str) -> np.ndarray:
    sides = [
        {name: tensor.double().cpu().numpy() for name, tensor in side.tensors.items()} for side in (query, gallery)
    ]
    feature = oracle.pair_scores(sides[0]["feature"], sides[1]["feature"], "cosine")
    first, second = ((side["part_features"], side["part_visibility"]) for side in sides)
    parts = oracle.part_scores(first, second)
    return {"feature": feature, "parts": parts, "sum": feature + 3 * parts}[score]


def moved(side: PersonFeatures, device: str) -> PersonFeatures:
    return PersonFeatures.from_tensors({name: tensor.to(device) for name, tensor in side.tensors.items()})


@pytest.fixture
def small_pieces() -> Iterator[None]:
    """Rows are converted three at a time, so that copies of one person fall into different pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_PACKED_VALUES", 3 * (24 + PARTS * 9 + PARTS))
        yield


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("block", [None, 3])
def test_scores_are_those_of_a_loop_over_pairs_and_parts(
    score: str, dtype: torch.dtype, device: str, block: int | None, small_pieces: None
) -> None:
    query, gallery = (people(count, seed=count, dtype=dtype) for count in (11, 40))
    expected = expected_scores(query, gallery, score)
    found = ScoreTiles(moved(query, device), moved(gallery, device), score=score, block=block)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Rows are rounded to the scores' own precision once.
    tolerance = 45 * torch.finfo(found.dtype).eps
    np.testing.assert_allclose(oracle.table(found).cpu().numpy(), expected, rtol=0, atol=tolerance)
    result = torch.cat([tile.scores.clone() for tile in found.tiles()]).cpu().numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=45 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evaluation_and_search_follow_the_score(score: str, dtype: torch.dtype) -> None:
    ids = labels(np.random.default_rng(3), 30, 150, 8)
    centres = people(10, seed=1)
    query, gallery = like(centres, ids[0], seed=2, dtype=dtype), like(centres, ids[1], seed=3, dtype=dtype)
    expected = expected_scores(query, gallery, score)
    result = evaluate(query, gallery, *ids, score=score)
    if dtype == torch.float64:
        assert_equal(result, oracle.evaluate(expected, *ids))
    assert result.mAP == pytest.approx(oracle.evaluate(expected, *ids).mAP, abs=1e-4)
    assert 0.1 < result.mAP < 0.95
    values, indices = search(query, gallery, 150, score=score)
    order = np.argsort(-expected, axis=1, kind="stable")
    shown = np.take_along_axis(expected, indices.numpy(), axis=1)
    np.testing.assert_allclose(values.numpy(), shown, rtol=0, atol=1e-5)
    np.testing.assert_allclose(shown, np.take_along_axis(expected, order, axis=1), rtol=0, atol=1e-5)
    for found in rank_lists(query, gallery, *ids, k=5, score=score):
        np.testing.assert_allclose(found.scores, expected[found.query, found.indices], rtol=0, atol=1e-5)
    assert result.manifest["score"] == score
    assert result.manifest["feature_width"] == (None if score == "parts" else 24)
    assert result.manifest["parts"] == (
        None if score == "feature" else {"count": PARTS, "width": 9, "epsilon": 1e-6, "weight": 3.0}
    )


def test_a_score_worked_by_hand() -> None:
    query = PersonFeatures(torch.tensor([[2.0, 0.0]]), torch.tensor([[[3.0, 0], [0, 5]]]), torch.tensor([[1.0, 0.5]]))
    gallery = PersonFeatures(
        torch.tensor([[3.0, 4.0]]), torch.tensor([[[7.0, 0], [0, -2]]]), torch.tensor([[0.5, 0.5]])
    )
    # Parts agree (1) with weight 1 * 0.5 and contradict (-1) with weight 0.5 * 0.5; the features' cosine is 0.6.
    for score, expected in {"feature": 0.6, "parts": (0.5 - 0.25) / 0.75, "sum": 0.6 + 3 / 3}.items():
        assert search(query, gallery, 1, score=score)[0].item() == pytest.approx(expected, abs=3e-6)


def test_people_who_share_no_visible_part_score_zero_and_their_features_decide() -> None:
    query, gallery = people(4, seed=1), people(6, seed=2)
    upper, lower = torch.eye(PARTS)[0].double(), torch.eye(PARTS)[1].double()
    for seen in ((upper, lower), (0 * upper, upper), (upper, 0 * upper), (0 * upper, 0 * upper)):
        first, second = (
            PersonFeatures(side.feature, side.part_features, share.expand(len(side), -1))
            for side, share in zip((query, gallery), seen, strict=True)
        )
        assert search(first, second, 6, score="parts")[0].tolist() == [[0.0] * 6] * 4
        both = [search(query.feature, gallery.feature, 6), search(first, second, 6, score="sum")]
        assert torch.equal(both[0][0], both[1][0])
        assert torch.equal(both[0][1], both[1][1])


def test_hidden_parts_do_not_count() -> None:
    query, gallery = people(5, seed=1), people(9, seed=2)
    assert gallery.part_features is not None
    assert gallery.part_visibility is not None
    changed = gallery.part_features.clone()
    changed[gallery.part_visibility == 0] = 1e3
    other = PersonFeatures(gallery.feature, changed, gallery.part_visibility)
    for score in ("parts", "sum"):
        assert torch.equal(search(query, gallery, 9, score=score)[0], search(query, other, 9, score=score)[0])


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("count", [1, 9])
def test_copies_of_one_person_tie_wherever_they_stand(
    score: str, dtype: torch.dtype, count: int, small_pieces: None
) -> None:
    one = people(13, seed=4, dtype=dtype)
    gallery = one.select(torch.arange(13).repeat(5))
    values = oracle.table(ScoreTiles(people(count, seed=5, dtype=dtype), gallery, score=score))
    repeated = values.view(count, 5, 13)
    assert torch.equal(repeated, repeated[:, :1].expand_as(repeated))


class LargestTable(TorchDispatchMode):
    """The most values that any operation's result has."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, Tensor):
                self.values = max(self.values, item.numel())
        return result


@pytest.mark.parametrize("score", ["parts", "sum"])
def test_no_table_has_a_side_for_the_parts(score: str) -> None:
    query, gallery = people(64, seed=8, width=4, part_width=2), people(900, seed=9, width=4, part_width=2)
    tiles = ScoreTiles(query, gallery, score=score, block=32)
    with LargestTable() as largest:
        for _ in tiles.tiles():
            pass
    assert largest.values == 32 * 900


@pytest.mark.parametrize("score", SCORES)
def test_a_tile_is_bounded(score: str) -> None:
    side = PersonFeatures(torch.ones(5000, 1), torch.ones(5000, 1, 1), torch.ones(5000, 1))
    sizes = [tile.scores.shape for tile in ScoreTiles(side, side, score=score).tiles()]
    assert max(sizes) == CPU_TILE
    assert sum(rows * columns for rows, columns in sizes) == 5000**2


def test_auto_is_the_sum_where_there_are_parts() -> None:
    query, gallery = people(3, seed=1), people(4, seed=2)
    assert ScoreTiles(query, gallery).score == "sum"
    assert ScoreTiles(query, gallery, metric="euclidean").score == "feature"
    assert ScoreTiles(query.feature, gallery.feature).score == "feature"
    assert ScoreTiles(PersonFeatures(query.feature), gallery.feature).score == "feature"
    assert ScoreTiles(query, gallery.feature, score="feature").score == "feature"
    assert choose_score("parts", "cosine", query_parts=True, gallery_parts=True) == "parts"


def with_(side: PersonFeatures, **changes: Any) -> PersonFeatures:
    return PersonFeatures.from_tensors({**side.tensors, **changes})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"score": "limbs"}, ValueError, "score: got 'limbs', supported are auto, feature, parts, sum"),
        ({"score": "sum", "metric": "euclidean"}, ValueError, "score: got 'sum' with metric 'euclidean'"),
        ({"gallery": torch.ones(5, 24).double()}, ValueError, "score: got 'auto', but the gallery came without parts"),
        ({"query": torch.ones(2, 24).double(), "score": "parts"}, ValueError, "but the query came without parts"),
        ({"query": {"part_features": torch.ones(2, PARTS, 8).double()}}, ValueError, r"shape \(5, 8\) and \(5, 9\)"),
        (
            {"query": {"part_features": torch.ones(3, PARTS, 9).double()}},
            ValueError,
            r"query\.part_features: got shape",
        ),
        ({"query": {"part_features": torch.ones(2, PARTS).double()}}, ValueError, r"supported is \(n, parts, d\)"),
        ({"query": {"part_features": torch.ones(2, PARTS, 9)}}, TypeError, "the feature is torch.float64"),
        ({"query": {"part_visibility": torch.ones(2, 4).double()}}, ValueError, r"\(2, 5\) is needed: one value a"),
        ({"query": {"part_visibility": -torch.ones(2, PARTS).double()}}, ValueError, r"outside \[0, 1\] \(row 0, 1\)"),
        ({"query": {"part_visibility": torch.full((2, PARTS), 1.1).double()}}, ValueError, r"outside \[0, 1\]"),
        ({"query": {"part_visibility": torch.full((2, PARTS), torch.nan).double()}}, ValueError, r"outside \[0, 1\]"),
        (
            {"query": {"part_features": torch.full((2, PARTS, 9), torch.inf).double()}},
            ValueError,
            r"query\.part_features: 2 of 2 rows hold NaN or infinite",
        ),
    ],
)
def test_parts_that_cannot_be_compared_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"query": people(2, seed=1), "gallery": people(5, seed=2)}
    search(k=1, **arguments)
    if isinstance(change.get("query"), dict):
        change = {"query": with_(arguments["query"], **change["query"])}
    with pytest.raises(error, match=message):
        search(k=1, **{**arguments, **change})


def test_parts_come_with_their_visibility() -> None:
    with pytest.raises(ValueError, match="got part_features alone; give both or neither"):
        PersonFeatures(torch.ones(2, 3), torch.ones(2, 4, 3))
    with pytest.raises(ValueError, match="got part_visibility alone"):
        PersonFeatures(torch.ones(2, 3), None, torch.ones(2, 4))
