"""The real labels of public datasets with random features: published counts, and a brute-force evaluator."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from motarfuse.retrieval import EvaluationResult, evaluate
from motarfuse.retrieval.protocols import PROTOCOLS
from tests.retrieval import oracle

Labels = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def labels_of(real_data: Path, dataset: str) -> Path:
    folder = real_data / "protocols" / dataset
    if not folder.is_dir():
        pytest.skip(f"no labels of {dataset} at {folder}")
    return folder


def matrix(file: Path) -> dict[str, Any]:
    return {key: value for key, value in scipy.io.loadmat(str(file)).items() if not key.startswith("_")}


def column(file: Path) -> np.ndarray:
    (value,) = matrix(file).values()
    return np.asarray(value).ravel().astype(np.int64)


def features(ids: Labels, width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """float32 features that tell identities apart now and then."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(int(max(ids[0].max(), ids[1].max())) + 2, width))
    sides = [centres[pids] + rng.normal(size=(len(pids), width)) for pids in ids[:2]]
    query, gallery = (side.astype(np.float32) for side in sides)
    return query, gallery


def check(result: EvaluationResult, query: np.ndarray, gallery: np.ndarray, ids: Labels, **rules: Any) -> None:
    """Compares 40 queries, chosen at random, with the brute-force evaluator."""
    sample = np.random.default_rng(1).choice(len(query), 40, replace=False)
    scores = oracle.pair_scores(query[sample], gallery, "cosine")
    expected = oracle.evaluate(scores, ids[0][sample], ids[1], ids[2][sample], ids[3], **rules)
    np.testing.assert_allclose(result.average_precision[sample], expected.average_precision, rtol=1e-12)
    np.testing.assert_allclose(result.inp[sample], expected.inp, rtol=1e-12)
    np.testing.assert_array_equal(result.first_rank[sample], expected.first_rank)
    assert 0.02 < result.mAP < 0.9


def market(real_data: Path) -> Labels:
    folder = labels_of(real_data, "market1501")
    return (
        column(folder / "queryID.mat"),
        column(folder / "testID.mat"),
        column(folder / "queryCam.mat"),
        column(folder / "testCam.mat"),
    )


@pytest.mark.real_data
@pytest.mark.parametrize("average_precision", ["step", "trapezoid"])
def test_market1501(real_data: Path, average_precision: str) -> None:
    ids = market(real_data)
    query, gallery = features(ids)
    result = evaluate(query, gallery, *ids, protocol="market1501", average_precision=average_precision)
    assert result.num_valid == len(query) == 3_368
    assert (result.manifest["num_gallery"], result.manifest["num_gallery_ignored"]) == (15_913, 3_819)
    assert result.published_differences("Market-1501") == []
    check(result, query, gallery, ids, average_precision=average_precision)


@pytest.mark.real_data
@pytest.mark.parametrize("ties", ["stable", "pessimistic"])
def test_market1501_where_most_scores_are_shared(real_data: Path, ties: str) -> None:
    ids = market(real_data)
    rng = np.random.default_rng(2)
    sample = rng.choice(len(ids[0]), 40, replace=False)
    some = (ids[0][sample], ids[1], ids[2][sample], ids[3])
    # Of 16 signs each: cosines are multiples of 1/8, and equal ones are equal in the oracle's arithmetic as well.
    query, gallery = (rng.choice([-1.0, 1.0], size=(len(pids), 16)).astype(np.float32) for pids in some[:2])
    result = evaluate(query, gallery, *some, ties=ties)
    expected = oracle.evaluate(oracle.pair_scores(query, gallery, "cosine"), *some, ties=ties)
    np.testing.assert_allclose(result.average_precision, expected.average_precision, rtol=1e-12)
    np.testing.assert_array_equal(result.first_rank, expected.first_rank)


def mars(real_data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Identities and cameras of the test tracklets, and which are queries."""
    folder = labels_of(real_data, "mars")
    (rows,) = matrix(folder / "tracks_test_info.mat").values()
    return rows[:, 2].astype(np.int64), rows[:, 3].astype(np.int64), column(folder / "query_IDX.mat") - 1


@pytest.mark.real_data
def test_mars_with_the_queries_in_the_gallery(real_data: Path) -> None:
    pids, camids, queries = mars(real_data)
    ids = (pids[queries], pids, camids[queries], camids)
    _, gallery = features(ids)
    result = evaluate(gallery[queries], gallery, *ids, protocol="mars-official")
    assert (result.manifest["num_query"], result.num_valid) == (1_980, 1_980)
    assert (result.manifest["num_gallery"], result.manifest["num_gallery_ignored"]) == (11_310, 870)
    assert result.published_differences("MARS") == []
    check(result, gallery[queries], gallery, ids)


@pytest.mark.real_data
def test_mars_without_the_queries_in_the_gallery(real_data: Path) -> None:
    pids, camids, queries = mars(real_data)
    rest = np.setdiff1d(np.arange(len(pids)), queries)
    ids = (pids[queries], pids[rest], camids[queries], camids[rest])
    query, gallery = features(ids)
    result = evaluate(query, gallery, *ids, protocol="mars-torchreid")
    assert (result.manifest["num_query"], result.num_valid, result.manifest["num_skipped"]) == (1_980, 1_840, 140)
    assert result.manifest["num_gallery"] == 9_330
    assert result.published_differences("MARS (queries not in the gallery)") == []
    check(result, query, gallery, ids)
    with pytest.raises(ValueError, match=r"mars-official expects the queries in the gallery, but \d+ of 1980 queries"):
        evaluate(query, gallery, *ids, protocol="mars-official")


@pytest.mark.real_data
def test_occluded_duke(real_data: Path) -> None:
    folder = labels_of(real_data, "occluded-duke")

    def side(name: str) -> tuple[list[str], np.ndarray, np.ndarray]:
        names = (folder / f"{name}.list").read_text().split()
        found = [re.match(r"(\d+)_c(\d)", one) for one in names]
        pids, camids = np.array([[int(one.group(1)), int(one.group(2))] for one in found if one is not None]).T
        assert len(pids) == len(names)
        return names, pids, camids

    query_names, query_pids, query_camids = side("query")
    gallery_names, gallery_pids, gallery_camids = side("gallery")
    ids = (query_pids, gallery_pids, query_camids, gallery_camids)
    query, gallery = features(ids)
    place = {name: index for index, name in enumerate(gallery_names)}
    inside = [(i, place[name]) for i, name in enumerate(query_names) if name in place]
    assert len(inside) == 1_870
    # A query that lies in the gallery has the same feature there, which must not count as its answer.
    rows, columns = np.array(inside).T
    query[rows] = gallery[columns]
    result = evaluate(query, gallery, *ids, protocol="occluded-duke")
    assert (result.num_valid, result.manifest["num_gallery"]) == (2_210, 17_661)
    assert result.published_differences("Occluded-Duke") == []
    check(result, query, gallery, ids)


@pytest.mark.real_data
@pytest.mark.parametrize(("boxes", "size"), [("detected", 5_332), ("labeled", 5_328)])
def test_cuhk03_new_protocol(real_data: Path, boxes: str, size: int) -> None:
    config = matrix(labels_of(real_data, "cuhk03-np") / f"cuhk03_new_protocol_config_{boxes}.mat")
    query_rows, gallery_rows, pids, camids = (
        config[key].ravel().astype(np.int64) for key in ("query_idx", "gallery_idx", "labels", "camId")
    )
    ids = (pids[query_rows - 1], pids[gallery_rows - 1], camids[query_rows - 1], camids[gallery_rows - 1])
    query, gallery = features(ids)
    result = evaluate(query, gallery, *ids, protocol="cuhk03-np")
    assert (result.num_valid, result.manifest["num_gallery"]) == (1_400, size)
    assert result.published_differences(f"CUHK03-NP {boxes}") == []
    check(result, query, gallery, ids)


@pytest.mark.real_data
def test_a_gallery_of_another_size_is_not_the_published_one(real_data: Path) -> None:
    ids = market(real_data)
    query, gallery = features(ids)
    result = evaluate(query[1:], gallery, ids[0][1:], ids[1], ids[2][1:], ids[3])
    assert result.published_differences("Market-1501") == [
        "3,367 queries, Market-1501 was published with 3,368",
        "3,367 queries with a match, Market-1501 was published with 3,368",
    ]
    assert result.protocol == PROTOCOLS["market1501"]
