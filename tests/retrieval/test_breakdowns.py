"""Breakdowns by group and by camera, and intervals over identities."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from motarfuse.retrieval import evaluate
from motarfuse.retrieval.breakdowns import CameraPair, camera_pairs, occlusion_bands
from tests.retrieval import oracle


def people(seed: int = 0, queries: int = 80, gallery: int = 300) -> tuple[np.ndarray, ...]:
    """Features, identities (junk and distractors in the gallery), cameras, as `evaluate` takes them."""
    rng = np.random.default_rng(seed)
    pids = (rng.integers(1, 15, queries), rng.integers(-1, 15, gallery))
    camids = (rng.integers(-1, 3, queries), rng.integers(-1, 4, gallery))
    centres = rng.normal(size=(16, 8))
    values = [centres[ids] + 1.2 * rng.normal(size=(len(ids), 8)) for ids in pids]
    return (*values, *pids, *camids)


def test_groups_are_evaluations_of_their_queries_alone() -> None:
    arguments = people()
    result = evaluate(*arguments)
    groups = np.array(["b", "a", "c"])[np.arange(80) % 3]
    found = result.breakdown(groups)
    assert list(found) == ["a", "b", "c"]
    for name, numbers in found.items():
        query, gallery, pids, gallery_pids, camids, gallery_camids = arguments
        own = groups == name
        alone = evaluate(query[own], gallery, pids[own], gallery_pids, camids[own], gallery_camids)
        assert (numbers.mAP, numbers.mINP) == pytest.approx((alone.mAP, alone.mINP), rel=1e-13)
        np.testing.assert_array_equal(numbers.cmc, alone.cmc)
        assert (numbers.num_query, numbers.num_valid) == (own.sum(), alone.num_valid)
        assert numbers.metrics["rank5"] == alone.rank(5)


def test_a_query_may_be_in_no_group_and_a_group_without_a_match() -> None:
    result = evaluate(np.eye(3), np.eye(3), [1, 2, 3], [1, 9, 3], [0, 0, 0], [1, 1, 1])
    found = result.breakdown([None, "alone", 7])
    assert list(found) == ["alone", 7]  # names that cannot be compared keep their order
    assert math.isnan(found["alone"].mAP)
    assert np.isnan(found["alone"].cmc).all()
    assert (found["alone"].num_query, found["alone"].num_valid) == (1, 0)
    assert found[7].mAP == 1.0
    with pytest.raises(ValueError, match="got 2 names for 3 queries"):
        result.breakdown(["a", "b"])


def test_groups_under_a_protocol_that_draws_galleries_use_every_draw() -> None:
    query, gallery, pids, gallery_pids, camids, gallery_camids = people(3)
    result = evaluate(query, gallery, pids, gallery_pids, camids, gallery_camids, protocol="cuhk03-classic")
    (whole,) = result.breakdown(["all"] * 80).values()
    np.testing.assert_array_equal(whole.cmc, result.cmc)
    assert result.cmc[0] != (result.first_rank[result.first_rank > 0] == 1).mean()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_each_pair_of_cameras_is_an_evaluation_of_that_gallery(metric: str) -> None:
    arguments = people(1)
    query, gallery, pids, gallery_pids, camids, gallery_camids = arguments
    found = camera_pairs(*arguments, metric=metric)
    assert [(one.query_camera, one.gallery_camera) for one in found] == [
        (q, g) for q in range(-1, 3) for g in range(-1, 4)
    ]
    scores = oracle.pair_scores(query, gallery, metric)
    for one in found:
        own, entries = camids == one.query_camera, gallery_camids == one.gallery_camera
        assert (one.num_query, one.num_gallery) == (own.sum(), (entries & (gallery_pids != -1)).sum())
        if one.query_camera == one.gallery_camera != -1:
            assert (one.num_valid, math.isnan(one.mAP)) == (0, True)
            continue
        expected = oracle.evaluate(
            scores[own][:, entries], pids[own], gallery_pids[entries], camids[own], gallery_camids[entries]
        )
        assert (one.mAP, one.mINP) == pytest.approx((expected.mAP, expected.mINP), rel=1e-12)
        assert one.rank1 == pytest.approx(expected.cmc[0])
        assert one.num_valid == (expected.first_rank > 0).sum()


def test_camera_pairs_follow_the_rules_that_they_are_given() -> None:
    arguments = people(2)
    step, trapezoid = (camera_pairs(*arguments, average_precision=kind) for kind in ("step", "trapezoid"))
    lower = [a.mAP - b.mAP for a, b in zip(step, trapezoid, strict=True) if a.num_valid]
    assert min(lower) >= 0 < max(lower)
    values, _, pids, _, camids, _ = arguments
    itself = camera_pairs(values, values, pids, pids, camids, camids, protocol="all-vs-all")
    assert all(one.num_valid > 0 for one in itself if one.query_camera == one.gallery_camera)
    with pytest.raises(ValueError, match="no query has a match"):
        camera_pairs(np.eye(2), np.eye(2), [1, 2], [1, 2], [0, 0], [0, 0])


def test_a_pair_without_a_match_is_null_in_json() -> None:
    pair = CameraPair(0, 0, math.nan, math.nan, math.nan, 3, 0, 9)
    assert json.loads(json.dumps(pair.to_dict(), allow_nan=False))["mAP"] is None


def test_bands_of_hidden_shares_hold_their_upper_ends_and_sort_by_share() -> None:
    shares = [0.0, 0.001, 0.1, 0.11, 0.4, 0.41, 0.6, 0.61, 1.0, None]
    names = occlusion_bands(shares)
    assert names == [
        "0 %", "0-10 %", "0-10 %", "10-20 %", "30-40 %", "40-60 %", "40-60 %", "60-100 %", "60-100 %", None,
    ]  # fmt: skip
    assert names[:-1] == sorted(str(name) for name in names[:-1])
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="supported are shares"):
            occlusion_bands([wrong])


def test_intervals_are_of_the_result_s_own_numbers() -> None:
    arguments = people(4)
    result = evaluate(*arguments)
    found = result.confidence(ranks=(1, 20))
    assert list(found) == ["mAP", "mINP", "rank1", "rank20"]
    for name, value in (
        ("mAP", result.mAP),
        ("mINP", result.mINP),
        ("rank1", result.rank(1)),
        ("rank20", result.rank(20)),
    ):
        one = found[name]
        assert one.value == pytest.approx(value, rel=1e-12)
        assert one.low is not None
        assert one.high is not None
        assert one.low <= value <= one.high
        assert (one.queries, one.identities) == (result.num_valid, len(np.unique(result.query_pids)))
    assert found == result.confidence(ranks=(1, 20))
    wide, narrow = result.confidence(0.99)["mAP"], result.confidence(0.8)["mAP"]
    assert wide.low < narrow.low < narrow.high < wide.high  # type: ignore[operator]
    for wrong in ({"level": 95}, {"resamples": 0}, {"ranks": (51,)}):
        with pytest.raises(ValueError, match="got"):
            result.confidence(**wrong)


def test_the_interval_covers_the_truth_over_other_people() -> None:
    """People differ in how well they are found: 30 of them at a time, 4 queries each, as an endless crowd has them."""
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(30), 4)
    arguments = people(5, queries=len(pids))
    query, gallery, _, *others = arguments
    result = evaluate(query, gallery, pids % 14 + 1, *others)
    covered = naive = 0
    trials = 300
    for _ in range(trials):
        chance = rng.beta(2, 2, 30)[pids]  # 0.5 over all people
        found = (rng.random(len(pids)) < chance).astype(float)
        result.average_precision[:] = found
        result.first_rank[:] = 1
        result.query_pids[:] = pids
        one = result.confidence(resamples=500)["mAP"]
        covered += one.low <= 0.5 <= one.high  # type: ignore[operator]
        naive += abs(found.mean() - 0.5) <= 1.96 * found.std(ddof=1) / np.sqrt(len(pids))
    # Three standard errors of 300 trials at 95 % are 3.8 points.
    assert 0.912 <= covered / trials <= 0.988
    assert naive / trials < 0.91  # queries taken for independent claim too much
