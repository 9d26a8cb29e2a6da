"""Paired bootstrap over identities: coverage, a known case, pairing, and what cannot be said."""

from __future__ import annotations

import time

import numpy as np
import pytest

from motarfuse.engine.bootstrap import paired_bootstrap
from motarfuse.retrieval.bootstrap import MIN_IDENTITIES, student_quantile


def people(identities: int, queries: int = 8) -> np.ndarray:
    return np.repeat(np.arange(identities), queries)


@pytest.mark.parametrize("identities", [12, 50])
def test_the_interval_covers_the_truth_as_often_as_it_says(identities: int) -> None:
    random = np.random.default_rng(0)
    pids = people(identities, 4)
    trials, covered, naive = 400, 0, 0
    for _ in range(trials):
        # Half of the spread is an identity's own, so that queries of one person agree.
        values = 0.3 + random.normal(0, 1, identities)[pids] + random.normal(0, 1, len(pids))
        found = paired_bootstrap(values, np.zeros_like(values), pids, resamples=1000)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.3 <= found.high
        half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
        naive += abs(values.mean() - 0.3) <= half
    # Three standard errors of 400 trials at 95 % are 3.3 points.
    assert 0.917 <= covered / trials <= 0.983
    # Queries that are taken for independent would claim far too much: the test can tell.
    assert naive / trials < 0.85


def test_many_identities_give_the_normal_interval() -> None:
    random = np.random.default_rng(1)
    values = random.normal(0.1, 1, 400)
    found = paired_bootstrap(values, np.zeros(400), np.arange(400), resamples=40_000)
    half = student_quantile(0.975, 399) * values.std(ddof=1) / 20
    assert found.difference == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.04 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.04 * half)


def test_the_quantile_is_students() -> None:
    for freedom, expected in ((1, 12.7062), (5, 2.5706), (11, 2.2010), (49, 2.0096), (10**6, 1.95997)):
        assert student_quantile(0.975, freedom) == pytest.approx(expected, abs=2e-4)
    assert student_quantile(0.025, 11) == pytest.approx(-student_quantile(0.975, 11))


def test_a_small_difference_on_the_same_queries_is_seen_below_a_large_spread_between_them() -> None:
    random = np.random.default_rng(2)
    pids = people(20)
    difficulty = random.uniform(0, 1, 20)[pids]
    first = difficulty + 0.03 + random.normal(0, 0.02, len(pids))
    second = difficulty + random.normal(0, 0.02, len(pids))
    paired = paired_bootstrap(first, second, pids)
    assert paired.verdict == "better"
    # The same two sets of scores with the second's people in another order: nothing can be said any more.
    shuffled = second.reshape(20, -1)[random.permutation(20)].ravel()
    assert paired_bootstrap(first, shuffled, pids).verdict == "no difference shown"
    assert paired_bootstrap(second, first, pids).verdict == "worse"


def test_swapping_the_sides_mirrors_the_interval_and_equal_arguments_give_equal_intervals() -> None:
    random = np.random.default_rng(3)
    first, second = random.uniform(size=(2, 3, 80))
    forward = paired_bootstrap(first, second, people(10))
    backward = paired_bootstrap(second, first, people(10))
    assert forward == paired_bootstrap(first, second, people(10))
    assert forward.low == pytest.approx(-backward.high)  # type: ignore[operator]
    assert forward.high == pytest.approx(-backward.low)  # type: ignore[operator]


def test_seeds_are_averaged_before_people_are_drawn() -> None:
    random = np.random.default_rng(4)
    first, second = random.uniform(size=(2, 3, 80))
    together = paired_bootstrap(first, second, people(10))
    averaged = paired_bootstrap(first.mean(0), second.mean(0), people(10))
    assert (together.low, together.high) == pytest.approx((averaged.low, averaged.high))
    assert together.per_seed == pytest.approx((first - second).mean(1))
    assert together.difference == pytest.approx(np.mean(together.per_seed))


def test_an_identity_weighs_as_many_queries_as_it_has() -> None:
    # One person with 90 queries at 1, nine with one query each at 0: the mean is over queries.
    pids = np.concatenate([np.zeros(90, int), np.arange(1, 10)])
    values = (pids == 0).astype(float)
    found = paired_bootstrap(values, np.zeros(99), pids)
    assert found.difference == pytest.approx(90 / 99)
    # Without that person, (9/10)^10 = 35 % of the resamples, the mean is 0: the interval must reach it.
    assert found.low == 0
    assert found.high == pytest.approx(1, abs=0.03)


def test_too_few_identities_give_no_interval_and_say_so() -> None:
    for identities in (1, MIN_IDENTITIES - 1):
        found = paired_bootstrap(np.ones(4 * identities), np.zeros(4 * identities), people(identities, 4))
        assert (found.difference, found.low, found.high) == (1, None, None)
        assert found.verdict == "no interval"
        assert f"{identities} identities are too few" in found.reason
    assert paired_bootstrap(np.ones(24), np.zeros(24), people(MIN_IDENTITIES, 4)).verdict == "better"


def test_queries_without_a_match_are_left_out_of_both_sides() -> None:
    first = np.array([1.0, np.nan, 1.0] * 6)
    second = np.array([0.0, np.nan, 1.0] * 6)
    found = paired_bootstrap(first, second, people(6, 3))
    assert (found.queries, found.difference) == (12, 0.5)
    empty = paired_bootstrap(np.full(3, np.nan), np.full(3, np.nan), people(1, 3))
    assert (empty.queries, empty.verdict) == (0, "no interval")
    with pytest.raises(ValueError, match="not the same queries"):
        paired_bootstrap(first, np.zeros(18), people(6, 3))


def test_two_equal_rows_differ_in_nothing() -> None:
    scores = np.random.default_rng(5).uniform(size=80)
    found = paired_bootstrap(scores + 1e-16, scores, people(10))
    assert (found.low, found.high) == (0, 0)
    assert found.verdict == "no difference shown"


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(S, Q\)"):
        paired_bootstrap(np.zeros(3), np.zeros(4), np.arange(3))
    with pytest.raises(ValueError, match="confidence"):
        paired_bootstrap(np.zeros(3), np.zeros(3), np.arange(3), confidence=95)


def test_ten_thousand_resamples_take_no_time() -> None:
    random = np.random.default_rng(6)
    first, second = random.uniform(size=(2, 3, 2000))
    start = time.perf_counter()
    for _ in range(20):
        paired_bootstrap(first, second, people(50, 40))
    assert time.perf_counter() - start < 2
