"""CUHK03's classic protocol: random galleries of one image a person, against a loop that does it literally."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from motarfuse.retrieval import PROTOCOLS, evaluate
from motarfuse.retrieval.single_shot import SEED, first_ranks_of_draws

PEOPLE, IMAGES = 12, 4


def features(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every image is query and gallery, as in the classic splits: features, identities, cameras."""
    random = np.random.default_rng(seed)
    pids = np.repeat(np.arange(5, 5 + PEOPLE), IMAGES)
    order = random.permutation(len(pids))
    centres = random.normal(size=(PEOPLE, 6))
    values = centres[pids - 5] + 0.9 * random.normal(size=(len(pids), 6))
    cameras = np.tile([0, 0, 1, 1], PEOPLE)
    return values[order], pids[order], cameras[order]


def literal_cmc(values: np.ndarray, pids: np.ndarray, cameras: np.ndarray, draws: int) -> tuple[np.ndarray, float]:
    """Rank curve and its standard error at rank 1, with draws of its own."""
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    scores = unit @ unit.T
    random = np.random.default_rng(99)
    ranks = []
    for query in range(len(pids)):
        counts = ~((pids == pids[query]) & (cameras == cameras[query]))
        for _ in range(draws):
            gallery = [random.choice(np.flatnonzero(counts & (pids == pid))) for pid in np.unique(pids[counts])]
            ordered = sorted(gallery, key=lambda entry: -scores[query, entry])
            ranks.append(1 + [pids[entry] for entry in ordered].index(pids[query]))
    found = np.array(ranks)
    curve = np.array([(found <= k).mean() for k in range(1, PEOPLE + 1)])
    return curve, float(np.sqrt(curve[0] * (1 - curve[0]) / len(found)))


def test_the_curve_is_that_of_literal_draws() -> None:
    values, pids, cameras = features()
    result = evaluate(values, values, pids, pids, cameras, cameras, protocol="cuhk03_classic")
    expected, error = literal_cmc(values, pids, cameras, 40)
    # Four standard errors of the difference: the ten draws here are four times fewer than the literal ones.
    error *= 4 * (1 + 4) ** 0.5
    np.testing.assert_array_less(np.abs(result.cmc[:PEOPLE] - expected), error)
    whole = evaluate(values, values, pids, pids, cameras, cameras)
    # Which the curve of the whole gallery is not: it has several chances to be right, and many more to be wrong.
    assert abs(whole.rank(1) - expected[0]) > error
    assert result.cmc[PEOPLE - 1] == 1.0  # one entry of each of the identities, never more
    assert (result.mAP, result.mINP) == (whole.mAP, whole.mINP)


def test_one_entry_an_identity_is_drawn_evenly_and_only_from_those_that_count() -> None:
    # The query's person has two entries that count, one far better and one far worse than everyone else's.
    pids = np.array([1, 1, 1, 2, 2, 3])
    scores = torch.tensor([[9.0, -9.0, -torch.inf, 1.0, 2.0, 3.0]])
    ranks = first_ranks_of_draws(scores, pids, np.array([1]), np.array([0]), 4_000)[0]
    assert set(ranks.tolist()) == {1, 3}
    share = (ranks == 1).mean()
    assert abs(share - 0.5) < 5 * np.sqrt(0.25 / 4_000)


def test_an_identity_without_an_entry_that_counts_is_not_drawn() -> None:
    pids = np.array([1, 2, 2])
    scores = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert first_ranks_of_draws(scores, pids, np.array([1]), np.array([3]), 5).tolist() == [[1] * 5]


def test_equal_scores_are_ranked_by_their_place_in_the_gallery() -> None:
    pids = np.array([2, 3, 1, 4])  # nor by identity
    for pid, rank in ((2, 1), (3, 2), (1, 3), (4, 4)):
        ranks = first_ranks_of_draws(torch.zeros(1, 4), pids, np.array([pid]), np.array([0]), 3)
        assert ranks.tolist() == [[rank] * 3]


@pytest.mark.parametrize("block", [1, 7, None])
def test_draws_do_not_depend_on_blocks_and_differ_between_queries(block: int | None) -> None:
    values, pids, cameras = features(1)
    arguments = (values, values, pids, pids, cameras, cameras)
    result = evaluate(*arguments, protocol="cuhk03_classic", block=block)
    np.testing.assert_array_equal(result.first_rank, evaluate(*arguments, protocol="cuhk03_classic").first_rank)
    scores = torch.rand(2, len(pids), generator=torch.Generator().manual_seed(0))
    scores[1] = scores[0]
    ranks = first_ranks_of_draws(scores, pids, pids[:1].repeat(2), np.array([0, 1]), 10)
    assert ranks[0].tolist() != ranks[1].tolist()


def test_the_manifest_tells_the_draws_and_that_of_market_is_unchanged() -> None:
    values, pids, cameras = features()
    arguments = (values, values, pids, pids, cameras, cameras)
    protocol = evaluate(*arguments, protocol="cuhk03_classic").manifest["protocol"]
    assert (protocol["gallery_draws"], protocol["seed"]) == (PROTOCOLS["cuhk03_classic"].gallery_draws, SEED)
    assert set(evaluate(*arguments).manifest["protocol"]) == {
        "name",
        "description",
        "remove_same_camera",
        "ignored_pids",
        "average_precision",
        "source",
    }
