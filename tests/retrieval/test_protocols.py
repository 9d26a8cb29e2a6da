"""Protocols by name: their rules are data, stored and hashed with every result, and what they expect is checked."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from motarfuse.retrieval import PROTOCOLS, Protocol, evaluate
from motarfuse.retrieval.measures import average_precisions
from motarfuse.retrieval.protocols import get_protocol
from tests.retrieval import oracle


def everyone(seed: int = 0, count: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, identities with junk, cameras with unknown ones."""
    rng = np.random.default_rng(seed)
    pids = rng.integers(-1, 9, count)
    return rng.normal(size=(10, 6))[pids] + rng.normal(size=(count, 6)), pids, rng.integers(-1, 3, count)


def test_the_protocols_have_names_and_sources() -> None:
    assert list(PROTOCOLS) == [
        "market1501",
        "cuhk03-np",
        "cuhk03-classic",
        "msmt17",
        "occluded-duke",
        "occluded-reid",
        "partial-reid",
        "mars-official",
        "mars-torchreid",
        "ilids-vid",
        "prid2011",
        "all-vs-all",
    ]
    for name, protocol in PROTOCOLS.items():
        assert (protocol.name, protocol.average_precision, protocol.ignored_pids) == (name, "step", (-1,))
        assert protocol.source
        assert protocol.remove_same_camera == (name != "all-vs-all")
    assert {name: one.splits for name, one in PROTOCOLS.items() if one.splits > 1} == {
        "cuhk03-classic": 20,
        "ilids-vid": 10,
        "prid2011": 10,
    }


def test_hyphens_underscores_and_capitals_are_one() -> None:
    for name in ("cuhk03_classic", "CUHK03-classic", "cuhk03-classic"):
        assert get_protocol(name) is PROTOCOLS["cuhk03-classic"]
    values, pids, camids = everyone()
    arguments = (values, values, pids, pids, camids, camids)
    assert evaluate(*arguments, protocol="mars_torchreid").manifest["protocol"]["name"] == "mars-torchreid"


def test_a_protocol_is_data() -> None:
    everything = Protocol("all", "nothing is left out", False, (), "step", "this test")
    arguments = (np.ones((1, 2)), np.ones((2, 2)), [-1], [-1, -1], [0], [0, 1])
    assert evaluate(*arguments, protocol=everything).mAP == 1.0


def test_every_rule_is_in_the_manifest_and_its_hash_and_published_counts_are_not() -> None:
    values, pids, camids = everyone()
    arguments = (values, values, pids, pids, camids, camids)
    plain = PROTOCOLS["market1501"]
    hashes = {evaluate(*arguments, protocol=plain).manifest["sha256"]}
    changes: list[dict[str, Any]] = [
        {"remove_same_camera": False},
        {"ignored_pids": (-1, 0)},
        {"average_precision": "trapezoid"},
        {"gallery_draws": 3},
        {"gallery_is_query": True},
        {"splits": 10},
        {"name": "mine"},
    ]
    for change in changes:
        manifest = evaluate(*arguments, protocol=dataclasses.replace(plain, **change)).manifest
        ((key, value),) = change.items()
        assert manifest["protocol"][key] == json.loads(json.dumps(value))
        hashes.add(manifest["sha256"])
    assert len(hashes) == len(changes) + 1
    bare = dataclasses.replace(plain, published=())
    assert evaluate(*arguments, protocol=bare).manifest == evaluate(*arguments, protocol=plain).manifest


def test_the_rules_of_market_are_named_as_ever() -> None:
    assert set(PROTOCOLS["market1501"].rules) == {
        "name",
        "description",
        "remove_same_camera",
        "ignored_pids",
        "average_precision",
        "source",
    }


def test_all_against_all_leaves_each_sample_out_of_its_own_ranking_and_nothing_else() -> None:
    values, pids, camids = everyone(1)
    result = evaluate(values, values, pids, pids, camids, camids, protocol="all-vs-all")
    scores = oracle.pair_scores(values, values, "cosine")
    expected = oracle.evaluate(scores, pids, pids, camids, camids, cameras=False, itself=True)
    np.testing.assert_allclose(result.average_precision, expected.average_precision, rtol=1e-13)
    np.testing.assert_array_equal(result.first_rank, expected.first_rank)
    assert 0.2 < result.mAP < 0.9
    counted = [int(((pids == pid) & (pids != -1)).sum()) for pid in pids]
    assert result.manifest["num_pairs_with_itself_left_out"] == sum(count > 0 for count in counted)


@pytest.mark.parametrize("change", [{"gallery_pids": 1}, {"gallery_camids": 1}, {"rows": 1}])
def test_all_against_all_needs_the_same_rows_on_both_sides(change: dict[str, int]) -> None:
    values, pids, camids = everyone(1)
    gallery, gallery_pids, gallery_camids = values.copy(), pids.copy(), camids.copy()
    if "rows" in change:
        gallery, gallery_pids, gallery_camids = gallery[1:], gallery_pids[1:], gallery_camids[1:]
    elif "gallery_pids" in change:
        gallery_pids[0] += 1
    else:
        gallery_camids[0] += 1
    with pytest.raises(ValueError, match="all-vs-all compares a set with itself"):
        evaluate(values, gallery, pids, gallery_pids, camids, gallery_camids, protocol="all-vs-all")


def test_mars_official_needs_an_entry_of_each_query_s_own_camera() -> None:
    gallery_pids, gallery_camids = [1, 1, 2, 2, 0], [0, 1, 0, 1, 2]
    values = np.random.default_rng(0).normal(size=(5, 4))
    rows = [0, 2]
    good = evaluate(values[rows], values, [1, 2], gallery_pids, [0, 0], gallery_camids, protocol="mars-official")
    assert good.num_valid == 2
    for wrong in ([2, 0], [-1, 0]):  # another camera, an unknown one: the query would be its own answer
        with pytest.raises(ValueError, match=r"but 1 of 2 queries \(the first is row 0\)"):
            evaluate(values[rows], values, [1, 2], gallery_pids, wrong, gallery_camids, protocol="mars-official")
    # A query of an unknown identity is skipped, as everywhere.
    skipped = evaluate(values[rows], values, [1, -1], gallery_pids, [0, 9], gallery_camids, protocol="mars-official")
    assert skipped.num_valid == 1


def test_the_trapezoid_by_hand() -> None:
    # Ranks 1, 3: 1/2 ((1 + 1) / 2 + (1/2 + 2/3) / 2). Rank 2: ((0/1) + (1/2)) / 2.
    ranks, starts = np.array([1, 3, 2]), np.array([0, 2, 3])
    expected = [(1 + (1 / 2 + 2 / 3) / 2) / 2, 1 / 4]
    np.testing.assert_allclose(average_precisions(ranks, starts, "trapezoid"), expected)
    np.testing.assert_allclose(average_precisions(ranks, starts, "step"), [(1 + 2 / 3) / 2, 1 / 2])


def test_published_counts_are_asked_for_by_the_dataset_s_name() -> None:
    values, pids, camids = everyone()
    result = evaluate(values, values, pids, pids, camids, camids, protocol="mars-torchreid")
    differences = result.published_differences("MARS (queries not in the gallery)")
    assert differences[0] == "60 queries, MARS (queries not in the gallery) was published with 1,980"
    with pytest.raises(ValueError, match="got 'Market-1501', protocol mars-torchreid has the counts of MARS"):
        result.published_differences("Market-1501")
