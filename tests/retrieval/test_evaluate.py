"""``motarfuse.retrieval.evaluate`` against a brute-force evaluator, and what it says about bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motarfuse.retrieval import EvaluationResult, evaluate
from motarfuse.retrieval.scores import METRICS
from motarfuse.retrieval.tiles import ScoreTiles
from tests.retrieval import oracle

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def signs(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Vectors of 16 signs: every score is exact in every dtype, and most of them are shared by several entries."""
    return rng.choice([-1.0, 1.0], size=(rows, 16))


def labels(rng: np.random.Generator, queries: int, gallery: int, identities: int) -> tuple[np.ndarray, ...]:
    """Identities with junk (-1) and distractors (0) in the gallery, cameras with unknown ones (-1)."""
    return (
        rng.integers(-1, identities, queries),
        rng.integers(-1, identities, gallery),
        rng.integers(-1, 3, queries),
        rng.integers(-1, 3, gallery),
    )


def assert_equal(result: EvaluationResult, expected: oracle.Expected) -> None:
    np.testing.assert_allclose(result.average_precision, expected.average_precision, rtol=1e-13, equal_nan=True)
    np.testing.assert_allclose(result.inp, expected.inp, rtol=1e-13, equal_nan=True)
    np.testing.assert_array_equal(result.first_rank, expected.first_rank)
    np.testing.assert_allclose(result.cmc, expected.cmc, rtol=1e-13)
    assert result.mAP == pytest.approx(expected.mAP, rel=1e-13)
    assert result.mINP == pytest.approx(expected.mINP, rel=1e-13)
    assert result.num_valid == np.isfinite(expected.average_precision).sum()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 20),
    gallery=st.integers(1, 70),
    identities=st.integers(1, 6),
    metric=st.sampled_from(METRICS),
    dtype=st.sampled_from(FLOAT_DTYPES),
    block=st.sampled_from([None, 1, 3]),
    average_precision=st.sampled_from(["step", "trapezoid"]),
    ties=st.sampled_from(["stable", "pessimistic", "optimistic"]),
)
def test_equals_brute_force_with_ties_junk_and_distractors(
    seed: int,
    queries: int,
    gallery: int,
    identities: int,
    metric: str,
    dtype: torch.dtype,
    block: int | None,
    average_precision: str,
    ties: str,
) -> None:
    rng = np.random.default_rng(seed)
    query, entries = signs(rng, queries), signs(rng, gallery)
    ids = labels(rng, queries, gallery, identities)
    matches = (ids[0][:, None] == ids[1]) & (ids[1] != -1) & ((ids[2][:, None] != ids[3]) | (ids[3] == -1))
    arguments = (torch.tensor(query, dtype=dtype), torch.tensor(entries, dtype=dtype), *ids)
    if not matches.any():
        with pytest.raises(ValueError, match=r"no query has a match|nothing left"):
            evaluate(*arguments, metric=metric, block=block)
        return
    rules = {"average_precision": average_precision, "ties": ties}
    expected = oracle.evaluate(oracle.pair_scores(query, entries, metric), *ids, **rules)  # type: ignore[arg-type]
    assert_equal(evaluate(*arguments, metric=metric, block=block, **rules), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_equals_brute_force_on_continuous_features(metric: str, dtype: torch.dtype, device: str) -> None:
    rng = np.random.default_rng(7)
    ids = labels(rng, 40, 300, 12)
    centres = rng.normal(size=(14, 24))
    # Rounded to the dtype first: the evaluator and the oracle see the same numbers.
    query = torch.from_numpy(centres[ids[0]] + 2 * rng.normal(size=(40, 24))).to(dtype)
    entries = torch.from_numpy(centres[ids[1]] + 2 * rng.normal(size=(300, 24))).to(dtype)
    expected = oracle.evaluate(oracle.pair_scores(query.double().numpy(), entries.double().numpy(), metric), *ids)
    assert 0.15 < expected.mAP < 0.9
    assert_equal(evaluate(query.to(device), entries.to(device), *ids, metric=metric), expected)


def test_a_ranking_worked_by_hand() -> None:
    gallery = np.array([[0.9], [0.8], [0.7], [0.6], [0.5], [0.4]]) * [[1.0, 0.0]] + [[0.0, 1.0]]
    # Order by cosine with (1, 0): rows 0, 1, 2, ...; row 1 is the query's own camera and does not count.
    result = evaluate(
        np.array([[1.0, 0.0]]), gallery, [5], [7, 5, 5, 0, 5, 8], query_camids=[0], gallery_camids=[1, 0, 1, 1, 2, 1]
    )
    assert result.mAP == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert result.mINP == pytest.approx(2 / 4)
    assert result.cmc.tolist() == [0.0] + [1.0] * 49
    assert (result.rank(1), result.rank(5)) == (0.0, 1.0)


def test_of_equal_scores_the_lower_gallery_index_comes_first() -> None:
    query, gallery = np.ones((1, 4)), np.ones((3, 4))
    before = evaluate(query, gallery, [1], [1, 2, 3], [0], [1, 1, 1])
    behind = evaluate(query, gallery, [1], [2, 3, 1], [0], [1, 1, 1])
    assert (before.mAP, behind.mAP) == (1.0, pytest.approx(1 / 3))
    assert "lower gallery index ranks first" in before.manifest["ties"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize(("rows", "copies", "width"), [(1, 3, 7), (2, 5, 100), (9, 17, 768), (31, 63, 96)])
def test_copies_of_one_feature_tie_wherever_they_stand(
    rows: int, copies: int, width: int, dtype: torch.dtype, metric: str, device: str
) -> None:
    generator = torch.Generator().manual_seed(rows)
    one = torch.randn(13, width, generator=generator)
    gallery = one.repeat(copies, 1).to(dtype=dtype, device=device)
    query = torch.randn(rows, width, generator=generator).to(dtype=dtype, device=device)
    repeated = oracle.table(ScoreTiles(query, gallery, metric=metric)).view(rows, copies, 13)
    assert torch.equal(repeated, repeated[:, :1].expand_as(repeated))


def test_a_collapsed_model_is_ranked_by_index_alone() -> None:
    rng = np.random.default_rng(3)
    ids = labels(rng, 150, 400, 5)
    expected = oracle.evaluate(np.zeros((150, 400)), *ids)
    assert_equal(evaluate(np.full((150, 8), 0.3), np.full((400, 8), 0.3), *ids), expected)
    assert_equal(evaluate(np.zeros((150, 8)), np.zeros((400, 8)), *ids), expected)


def test_an_unknown_camera_equals_no_camera() -> None:
    query, gallery = np.ones((1, 2)), np.ones((1, 2))
    for query_camera, gallery_camera in ((-1, -1), (0, -1), (-1, 0)):
        assert evaluate(query, gallery, [1], [1], [query_camera], [gallery_camera]).num_valid == 1
    with pytest.raises(ValueError, match="1 of them from one camera"):
        evaluate(query, gallery, [1], [1], [0], [0])


def test_queries_without_a_match_are_skipped_and_counted() -> None:
    result = evaluate(np.eye(3), np.eye(3), [1, 2, -1], [1, 3, -1], [0, 0, 0], [1, 1, 1])
    assert np.isnan(result.average_precision).tolist() == [False, True, True]
    assert (result.num_valid, result.manifest["num_skipped"], result.manifest["num_query"]) == (1, 2, 3)
    assert (result.manifest["num_gallery"], result.manifest["num_gallery_ignored"]) == (2, 1)


def test_identities_above_the_range_of_half_floats_stay_apart() -> None:
    result = evaluate(np.eye(2), np.eye(2)[::-1].copy(), [2049, 2048], [2048, 2049], [0, 0], [1, 1])
    assert result.mAP == 1.0


@pytest.mark.parametrize("metric", METRICS)
def test_reduced_precision_settings_of_the_caller_do_not_reach_the_scores(metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(40, 512, generator=generator), torch.randn(300, 512, generator=generator)
    plain = next(ScoreTiles(query, gallery, metric=metric).tiles()).scores.clone()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under = next(ScoreTiles(query, gallery, metric=metric).tiles()).scores.clone()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(plain, under)


def test_distances_far_from_the_origin_keep_their_order() -> None:
    rng = np.random.default_rng(5)
    offset = np.float32(4096)
    query = (offset + rng.integers(-8, 9, (5, 16)) / 8).astype(np.float32)
    gallery = (offset + rng.integers(-8, 9, (60, 16)) / 8).astype(np.float32)
    ids = labels(rng, 5, 60, 3)
    ids[0][:] = 1
    expected = oracle.evaluate(oracle.pair_scores(query, gallery, "euclidean"), *ids)
    assert_equal(evaluate(query, gallery, *ids, metric="euclidean"), expected)


def test_very_large_and_very_small_features_have_a_cosine() -> None:
    rng = np.random.default_rng(6)
    query, gallery = rng.normal(size=(10, 8)), rng.normal(size=(50, 8))
    ids = labels(rng, 10, 50, 4)
    plain = evaluate(query.astype(np.float32), gallery.astype(np.float32), *ids)
    for scale in (1e30, 1e-30):
        scaled = evaluate((query * scale).astype(np.float32), (gallery * scale).astype(np.float32), *ids)
        np.testing.assert_array_equal(scaled.average_precision, plain.average_precision)


def test_arrays_lists_views_and_gradients_are_accepted() -> None:
    rng = np.random.default_rng(8)
    query, gallery = rng.normal(size=(6, 10)), rng.normal(size=(30, 10))
    ids = [rng.integers(0, 3, 6), rng.integers(0, 3, 30), rng.integers(0, 2, 6), rng.integers(0, 2, 30)]
    expected = evaluate(query, gallery, *ids).to_dict()
    wide = torch.from_numpy(np.repeat(gallery, 2, axis=1))[:, ::2].requires_grad_()
    assert evaluate(torch.from_numpy(query.T.copy()).T, wide, *[i.tolist() for i in ids]).to_dict() == expected
    read_only = query.copy()
    read_only.flags.writeable = False
    assert (
        evaluate(read_only, gallery[::-1][::-1], *[torch.from_numpy(i.astype(np.uint8)) for i in ids]).to_dict()
        == expected
    )


def test_the_manifest_tells_the_rules_and_its_hash_follows_them() -> None:
    arguments = (np.eye(3), np.eye(3), [1, 2, 3], [1, 2, 3], [0, 0, 0], [1, 1, 1])
    result = evaluate(*arguments)
    manifest = result.manifest
    assert manifest["protocol"]["name"] == "market1501"
    assert manifest["protocol"]["average_precision"] == "step"
    assert (manifest["metric"], manifest["score_dtype"], manifest["num_valid"]) == (
        "cosine",
        "float64 sums of float64",
        3,
    )
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    assert evaluate(*arguments).manifest["sha256"] == manifest["sha256"]
    assert evaluate(*arguments, metric="euclidean").manifest["sha256"] != manifest["sha256"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": np.ones((2, 3))}, ValueError, "got 3 and 4 columns"),
        ({"query": np.ones(4)}, ValueError, r"query: got shape \(4,\), supported is \(n, d\)"),
        ({"query": np.ones((0, 4))}, ValueError, r"query: got shape \(0, 4\), which is empty"),
        ({"gallery": np.ones((0, 4))}, ValueError, "gallery: .*empty"),
        ({"query": np.ones((2, 4), np.int64)}, TypeError, "query: got an array of int64"),
        ({"query": torch.ones(2, 4, dtype=torch.int32)}, TypeError, "query: got int32"),
        ({"query": [[1.0] * 4] * 2}, TypeError, "query: got list"),
        ({"query": np.ones((2, 4), np.float32)}, TypeError, r"got torch.float32 and torch.float64"),
        ({"query": torch.ones(2, 4, dtype=torch.float64, device="meta")}, ValueError, "devices meta and cpu"),
        ({"query": np.array([[1.0] * 4, [1, np.nan, 1, 1]])}, ValueError, r"query: 1 of 2 rows .*\(row 1\)"),
        ({"gallery": np.full((5, 4), np.inf)}, ValueError, r"gallery: 5 of 5 rows .*\(row 0, 1, 2, 3, 4\)"),
        ({"query_pids": [1]}, ValueError, "query_pids: got 1 values for 2 rows"),
        ({"gallery_camids": [[0]] * 5}, ValueError, r"gallery_camids: got shape \(5, 1\)"),
        ({"gallery_pids": np.ones(5, np.float16)}, TypeError, "gallery_pids: got float16 values"),
        ({"gallery_pids": [True] * 5}, TypeError, "gallery_pids: got bool values"),
        ({"gallery_pids": [1, 2, -2, 3, 4]}, ValueError, "gallery_pids: got -2 at row 2"),
        ({"gallery_pids": np.full(5, 2**64 - 1, np.uint64)}, ValueError, "gallery_pids: got 18446744073709551615"),
        ({"gallery_pids": [-1] * 5}, ValueError, "nothing left"),
        ({"gallery_pids": [9] * 5}, ValueError, "no query has a match"),
        ({"protocol": "market"}, ValueError, "got 'market', known are all-vs-all, cuhk03-classic, cuhk03-np, "),
        ({"metric": "dot"}, ValueError, "metric: got 'dot', supported are cosine, euclidean"),
        ({"average_precision": "area"}, ValueError, "average_precision: got 'area', supported are step, trapezoid"),
        ({"ties": "random"}, ValueError, "ties: got 'random', supported are stable, pessimistic, optimistic"),
        ({"block": 0}, ValueError, "block: got 0"),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {
        "query": np.ones((2, 4)),
        "gallery": np.ones((5, 4)),
        "query_pids": [1, 2],
        "gallery_pids": [1, 2, 3, 0, -1],
        "query_camids": [0, 0],
        "gallery_camids": [1, 1, 1, 1, 1],
    }
    evaluate(**arguments)
    with pytest.raises(error, match=message):
        evaluate(**{**arguments, **change})


def test_queries_by_gallery_is_never_in_memory() -> None:
    program = """
import resource, numpy as np
from motarfuse.retrieval import evaluate
rng = np.random.default_rng(0)
arguments = [rng.normal(size=(n, 8)).astype(np.float32) for n in (9000, 16000)]
arguments += [rng.integers(0, 900, n) for n in (9000, 16000)] + [rng.integers(0, 6, n) for n in (9000, 16000)]
few = [a[:64] if i % 2 == 0 else a for i, a in enumerate(arguments)]
evaluate(*few)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
evaluate(*arguments)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(output) * unit < 200 << 20, "the whole matrix would be 576 MB"
