"""Verification over all pairs against a loop over thresholds, known areas, and what cannot be measured."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from motarfuse.retrieval.roc import FALSE_RATES, verify
from tests.retrieval import oracle


def pairs_of(arguments: tuple[Any, ...], metric: str, cameras: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Scores of positive and of negative pairs, one pair at a time."""
    query, gallery, pids, gallery_pids, camids, gallery_camids = arguments
    scores = oracle.pair_scores(query, gallery, metric)
    positives, negatives = [], []
    for i, j in np.ndindex(scores.shape):
        if -1 in (pids[i], gallery_pids[j]):
            continue
        if pids[i] != gallery_pids[j]:
            negatives.append(scores[i, j])
        elif not cameras or camids[i] == -1 or camids[i] != gallery_camids[j]:
            positives.append(scores[i, j])
    return np.array(positives), np.array(negatives)


def people(seed: int, queries: int = 30, gallery: int = 150, signs: bool = False) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    pids = (rng.integers(-1, 12, queries), rng.integers(-1, 12, gallery))
    camids = (rng.integers(-1, 3, queries), rng.integers(-1, 3, gallery))
    centres = rng.normal(size=(13, 16))
    values = [
        rng.choice([-1.0, 1.0], size=(len(ids), 16)) if signs else centres[ids] + rng.normal(size=(len(ids), 16))
        for ids in pids
    ]
    return (*(value.astype(np.float32) for value in values), *pids, *camids)


# Most scores of sign vectors are shared.
@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("block", [None, 7])
def test_equals_a_loop_over_all_pairs(metric: str, signs: bool, block: int | None) -> None:
    arguments = people(0, signs=signs)
    positives, negatives = pairs_of(arguments, metric)
    result = verify(*arguments, metric=metric, block=block, rates=(1.0, 0.3, 0.1, 0.01))
    assert (result.num_positive_pairs, result.num_negative_pairs) == (len(positives), len(negatives))
    below = (negatives[:, None] < positives).sum() + 0.5 * (negatives[:, None] == positives).sum()
    assert result.auc == pytest.approx(below / len(positives) / len(negatives), abs=1e-12)
    sign = -1 if metric == "euclidean" else 1
    for point in result.points:
        allowed = [t for t in np.unique(positives) if (negatives >= t).mean() <= point.max_fpr]
        assert point.threshold == pytest.approx(sign * min(allowed), abs=2e-6)
        assert point.tpr == pytest.approx((positives >= min(allowed)).mean())
        assert point.fpr == pytest.approx((negatives >= min(allowed)).mean())
        assert point.fpr is not None
        assert point.fpr <= point.max_fpr


def test_clusters_far_from_one_another_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    pids = np.arange(60) % 20
    centres = rng.normal(size=(20, 8)) + 1e4 * (np.arange(20) % 2)[:, None]
    query, gallery = (
        (centres[pids] + 0.01 * rng.normal(size=(60, 8))).astype(np.float32) for _ in range(2)
    )  # fmt: skip
    arguments = (query, gallery, pids, pids, pids * 0, pids * 0 + 1)
    positives, negatives = pairs_of(arguments, "euclidean")
    assert positives.min() > negatives.max()
    result = verify(*arguments, metric="euclidean")
    assert (result.auc, result.eer, result.tpr_at(0.01).tpr) == (1.0, 0.0, 1.0)
    assert verify(*arguments, metric="euclidean", block=1).thresholds.tolist() == result.thresholds.tolist()


def test_the_curve_is_that_of_its_thresholds() -> None:
    arguments = people(1)
    positives, negatives = pairs_of(arguments, "cosine")
    result = verify(*arguments)
    assert (np.diff(result.thresholds) < 0).all()
    for place in (0, 17, len(result.thresholds) - 1):
        threshold = float(result.thresholds[place]) - 1e-6
        assert result.tpr[place] == pytest.approx((positives >= threshold).mean())
        assert result.fpr[place] == pytest.approx((negatives >= threshold).mean(), abs=2 / len(negatives))
    assert result.tpr[-1] == 1


def test_the_equal_error_rate_balances_both_errors() -> None:
    arguments = people(2)
    positives, negatives = pairs_of(arguments, "cosine")
    result = verify(*arguments)
    assert 0.05 < result.eer < 0.5
    refused = (positives < result.eer_threshold - 1e-6).mean()
    accepted = (negatives >= result.eer_threshold - 1e-6).mean()
    assert refused == pytest.approx(result.eer, abs=1.5 / len(positives))
    assert accepted == pytest.approx(result.eer, abs=0.02)


def test_perfect_reversed_and_meaningless_scores() -> None:
    labels = ([1, 2], [1, 2], [0, 0], [1, 1])
    perfect = verify(np.eye(2), np.eye(2), *labels, rates=(0.5,))
    assert (perfect.auc, perfect.eer, perfect.points[0].tpr, perfect.points[0].threshold) == (1.0, 0.0, 1.0, 1.0)
    wrong = verify(np.eye(2), np.eye(2)[::-1].copy(), *labels, rates=(0.5,))
    assert (wrong.auc, wrong.eer) == (0.0, 1.0)
    assert (wrong.points[0].tpr, wrong.points[0].fpr, wrong.points[0].threshold) == (0.0, 0.0, None)
    assert "best positive pair" in wrong.points[0].reason
    same = verify(np.ones((2, 3)), np.ones((2, 3)), *labels, rates=(0.5,))
    assert (same.auc, same.eer) == (0.5, 0.5)


def test_rates_that_too_few_negatives_cannot_show_have_none_and_a_reason() -> None:
    arguments = people(3)
    result = verify(*arguments)
    assert tuple(point.max_fpr for point in result.points) == FALSE_RATES
    negatives = result.num_negative_pairs
    assert 1e3 < negatives < 1e4
    for point in result.points:
        measurable = point.max_fpr * negatives >= 1
        assert (point.tpr is not None) == measurable
        assert ("negative pairs there are" in point.reason) == (not measurable)
    for wrong in (0, -1, 1.5):
        with pytest.raises(ValueError, match="max_fpr: got"):
            result.tpr_at(wrong)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["points"][0]["max_fpr"] == 0.1


def test_what_the_protocol_leaves_out_is_neither() -> None:
    arguments = people(4)
    values, _, pids, _, camids, _ = arguments
    result = verify(values, values, pids, pids, camids, camids, protocol="all-vs-all")
    positives, negatives = pairs_of((values, values, pids, pids, camids, camids), "cosine", cameras=False)
    itself = int((pids != -1).sum())
    assert (result.num_positive_pairs, result.num_negative_pairs) == (len(positives) - itself, len(negatives))
    assert result.manifest["num_pairs_left_out"] == itself
    assert result.thresholds[0] < 0.9999  # no sample with itself
    assert verify(*arguments).manifest["sha256"] != verify(*arguments, metric="euclidean").manifest["sha256"]


def test_pairs_of_one_kind_only_are_an_error() -> None:
    with pytest.raises(ValueError, match="no pair of two identities"):
        verify(np.eye(2), np.eye(2), [1, 1], [1, 1], [0, 0], [1, 1])
    with pytest.raises(ValueError, match="no query has a match"):
        verify(np.eye(2), np.eye(2), [1, 2], [3, 4], [0, 0], [1, 1])
