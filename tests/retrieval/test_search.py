"""``search``, ``rank_lists`` and ``select_queries``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motarfuse.retrieval import evaluate, rank_lists, search, select_queries
from motarfuse.retrieval.scores import METRICS
from tests.retrieval import oracle
from tests.retrieval.test_evaluate import DEVICES, FLOAT_DTYPES, labels, signs


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 12),
    gallery=st.integers(1, 80),
    metric=st.sampled_from(METRICS),
    dtype=st.sampled_from(FLOAT_DTYPES),
    block=st.sampled_from([None, 1, 5]),
    data=st.data(),
)
def test_equals_a_stable_argsort_also_where_ties_straddle_the_last_place(
    seed: int, queries: int, gallery: int, metric: str, dtype: torch.dtype, block: int | None, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    query, entries = signs(rng, queries), signs(rng, gallery)
    k = data.draw(st.integers(1, gallery))
    expected = oracle.pair_scores(query, entries, metric)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :k]
    scores, indices = search(
        torch.tensor(query, dtype=dtype), torch.tensor(entries, dtype=dtype), k, metric=metric, block=block
    )
    np.testing.assert_array_equal(indices.numpy(), order)
    shown = np.take_along_axis(expected if metric == "cosine" else -expected, order, axis=1)
    np.testing.assert_allclose(scores.numpy(), shown, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_scores_are_single_precision_and_best_first(metric: str, dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(20, 33, generator=generator).to(device, dtype)
    gallery = torch.randn(200, 33, generator=generator).to(device, dtype)
    scores, indices = search(query, gallery, 7, metric=metric)
    expected = oracle.pair_scores(query.double().cpu().numpy(), gallery.double().cpu().numpy(), metric)
    np.testing.assert_array_equal(indices.cpu().numpy(), np.argsort(-expected, axis=1, kind="stable")[:, :7])
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert indices.dtype == torch.int64
    step = scores.diff(dim=1)
    assert bool((step <= 0).all() if metric == "cosine" else (step >= 0).all())
    assert scores.device == query.device


@pytest.mark.parametrize("metric", METRICS)
def test_an_entry_finds_itself(metric: str) -> None:
    features = torch.randn(50, 64, generator=torch.Generator().manual_seed(2)) + 100
    scores, indices = search(features, features, 1, metric=metric)
    assert indices.flatten().tolist() == list(range(50))
    best = 1.0 if metric == "cosine" else 0.0
    np.testing.assert_allclose(scores.numpy(), best, atol=1e-4)


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, ValueError, "k: got 0, supported are 1 to 3"),
        (4, ValueError, "k: got 4, supported are 1 to 3, the size of the gallery"),
        (1.0, TypeError, "k: got float"),
        (True, TypeError, "k: got bool"),
    ],
)
def test_a_k_that_cannot_be_is_an_error(k: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        search(np.ones((1, 2)), np.ones((3, 2)), k)  # type: ignore[arg-type]


def test_search_names_bad_features() -> None:
    with pytest.raises(ValueError, match=r"gallery: 1 of 2 rows .*\(row 1\)"):
        search(np.ones((1, 2)), np.array([[1.0, 1.0], [np.inf, 1.0]]), 1)


@pytest.mark.parametrize("metric", METRICS)
def test_rank_lists_show_what_the_evaluator_ranked(metric: str) -> None:
    rng = np.random.default_rng(4)
    query, gallery = signs(rng, 30), signs(rng, 90)
    ids = labels(rng, 30, 90, 6)
    result = evaluate(query, gallery, *ids, metric=metric)
    lists = rank_lists(query, gallery, *ids, k=90, metric=metric)
    assert [found.query for found in lists] == list(range(30))
    for found in lists:
        assert -1 not in ids[1][found.indices]
        cameras = ids[3][found.indices][found.matches]
        assert ids[2][found.query] == -1 or ids[2][found.query] not in cameras
        ranks = np.flatnonzero(found.matches) + 1
        if len(ranks):
            precision = np.mean(np.arange(1, len(ranks) + 1) / ranks)
            assert precision == pytest.approx(result.average_precision[found.query])
        else:
            assert np.isnan(result.average_precision[found.query])


def test_rank_lists_of_chosen_queries_are_cut_at_k_and_at_the_end_of_the_gallery() -> None:
    arguments = (np.eye(3), np.eye(3), [1, 2, 3], [1, 2, -1], [0, 0, 0], [0, 1, 1])
    first, second = rank_lists(*arguments, k=2, queries=[1, 0])
    assert (first.query, first.indices.tolist(), first.matches.tolist()) == (1, [1, 0], [True, False])
    assert (second.query, second.indices.tolist(), second.matches.tolist()) == (0, [1], [False])
    assert rank_lists(*arguments, queries=[]) == []
    with pytest.raises(ValueError, match="rows 0 to 3, supported are 0 to 2"):
        rank_lists(*arguments, queries=[0, 3])
    with pytest.raises(TypeError, match="queries: got float64"):
        rank_lists(*arguments, queries=[0.5])
    with pytest.raises(ValueError, match="k: got 0"):
        rank_lists(*arguments, k=0)


def test_the_worst_middle_and_best_queries_are_chosen_once_each() -> None:
    precision = np.array([0.5, np.nan, 0.1, 0.9, 0.3, 0.7, 0.2, 0.8])
    assert select_queries(precision, each=1).tolist() == [2, 0, 3]
    assert select_queries(precision, each=2).tolist() == [2, 6, 4, 0, 7, 3]
    assert select_queries(precision, each=8).tolist() == [2, 6, 4, 0, 5, 7, 3]
    for count in range(40):
        chosen = select_queries(np.linspace(0, 1, count), each=4)
        assert len(set(chosen.tolist())) == len(chosen) == min(count, 12)
