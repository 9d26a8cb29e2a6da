"""Means and deviations over the splits of a dataset."""

from __future__ import annotations

import json

import numpy as np
import pytest

from motarfuse.retrieval import EvaluationResult, evaluate
from motarfuse.retrieval.splits import mean_of_splits


def split(seed: int, **options: str) -> EvaluationResult:
    """Twelve of twenty people, one image each under two cameras."""
    rng = np.random.default_rng(seed)
    people = np.random.default_rng(0).normal(size=(20, 6))
    pids = rng.permutation(20)[:12]
    query, gallery = (people[pids] + rng.normal(size=(12, 6)) for _ in range(2))
    options = {"protocol": "prid2011", **options}
    return evaluate(query, gallery, pids, pids, np.zeros(12, int), np.ones(12, int), **options)  # type: ignore[arg-type]


def test_mean_and_deviation_of_every_number() -> None:
    results = [split(seed) for seed in range(5)]
    found = mean_of_splits(results)
    assert found.num_splits == 5
    values = [result.mAP for result in results]
    assert found.mean["mAP"] == pytest.approx(np.mean(values))
    assert found.deviation["mAP"] == pytest.approx(np.std(values, ddof=1))
    assert found.deviation["mAP"] > 0
    assert found.mean["num_valid"] == 12
    np.testing.assert_allclose(found.cmc, np.mean([result.cmc for result in results], axis=0))
    np.testing.assert_allclose(found.cmc_deviation, np.std([result.cmc for result in results], axis=0, ddof=1))
    assert found.mean["rank5"] == pytest.approx(found.cmc[4])
    assert found.hashes == tuple(result.manifest["sha256"] for result in results)
    stored = mean_of_splits([json.loads(json.dumps(result.to_dict())) for result in results])
    assert stored.to_dict() == found.to_dict()


def test_one_split_has_no_deviation() -> None:
    found = json.loads(json.dumps(mean_of_splits([split(0)]).to_dict(), allow_nan=False))
    assert found["deviation"]["mAP"] is None
    assert found["mean"]["mAP"] == split(0).mAP


def test_splits_that_were_counted_in_other_ways_have_no_mean() -> None:
    with pytest.raises(ValueError, match="give the result of each split"):
        mean_of_splits([])
    with pytest.raises(ValueError, match="number 1 differs from the first in metric"):
        mean_of_splits([split(0), split(1, metric="euclidean")])
    with pytest.raises(ValueError, match="number 1 differs from the first in storage"):
        mean_of_splits([split(0), split(1, storage="float16")])
    with pytest.raises(ValueError, match="number 1 differs from the first in protocol"):
        mean_of_splits([split(0), split(1, average_precision="trapezoid")])
    with pytest.raises(ValueError, match="number 1 differs from the first in ties"):
        mean_of_splits([split(0), split(1, ties="pessimistic")])
