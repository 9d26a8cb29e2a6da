"""CUHK03's classic protocol: random galleries of one image a person, against a loop that does it literally."""

from __future__ import annotations

import numpy as np
import pytest

from motarfuse.retrieval import PROTOCOLS, evaluate, single_shot
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


def ranks_of(
    scores: list[list[float]], pids: np.ndarray, query_pids: list[int], queries: list[int], draws: int
) -> np.ndarray:
    """Ranks from a table of scores, in which entries of -inf do not count."""
    table = np.array(scores)
    gone = [np.flatnonzero(np.isneginf(row)) for row in table]
    left_out = (np.cumsum([0, *map(len, gone)]), np.concatenate(gone))

    def pair_scores(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        place = np.searchsorted(queries, rows)
        assert np.isfinite(table[place, columns]).all()  # nothing is asked for that was left out
        return table[place, columns]

    return first_ranks_of_draws(pair_scores, pids, np.array(query_pids), np.array(queries), left_out, draws)


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
    result = evaluate(values, values, pids, pids, cameras, cameras, protocol="cuhk03-classic")
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
    ranks = ranks_of([[9.0, -9.0, -np.inf, 1.0, 2.0, 3.0]], pids, [1], [0], 4_000)[0]
    assert set(ranks.tolist()) == {1, 3}
    share = (ranks == 1).mean()
    assert abs(share - 0.5) < 5 * np.sqrt(0.25 / 4_000)


def test_an_identity_without_an_entry_that_counts_is_not_drawn() -> None:
    pids = np.array([1, 2, 2])
    assert ranks_of([[0.0, -np.inf, -np.inf]], pids, [1], [3], 5).tolist() == [[1] * 5]
    # Nor does its absence move the place of the query's own.
    assert ranks_of([[-np.inf, 0.0, 1.0]], pids, [2], [3], 5).tolist() == [[1] * 5]


def test_equal_scores_are_ranked_by_their_place_in_the_gallery() -> None:
    pids = np.array([2, 3, 1, 4])  # nor by identity
    for pid, rank in ((2, 1), (3, 2), (1, 3), (4, 4)):
        assert ranks_of([[0.0] * 4], pids, [pid], [0], 3).tolist() == [[rank] * 3]


def test_ties_may_be_counted_for_or_against() -> None:
    values, pids, cameras = np.ones((24, 3)), np.repeat(np.arange(6), 4), np.tile([0, 0, 1, 1], 6)
    arguments = (values, values, pids, pids, cameras, cameras)
    for ties, rank in (("optimistic", 1), ("pessimistic", 6)):
        result = evaluate(*arguments, protocol="cuhk03-classic", ties=ties)
        assert (result.drawn_ranks == rank).all()


@pytest.mark.parametrize("block", [1, 7, None])
def test_draws_do_not_depend_on_blocks_and_differ_between_queries(block: int | None) -> None:
    values, pids, cameras = features(1)
    arguments = (values, values, pids, pids, cameras, cameras)
    result = evaluate(*arguments, protocol="cuhk03-classic", block=block)
    np.testing.assert_array_equal(result.first_rank, evaluate(*arguments, protocol="cuhk03-classic").first_rank)
    row = np.random.default_rng(0).random(len(pids)).tolist()
    ranks = ranks_of([row, row], pids, [pids[0]] * 2, [0, 1], 10)
    assert ranks[0].tolist() != ranks[1].tolist()


def test_a_few_pairs_at_a_time_or_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values, pids, cameras = features(2)
    arguments = (values, values, pids, pids, cameras, cameras)
    whole = evaluate(*arguments, protocol="cuhk03-classic").drawn_ranks
    monkeypatch.setattr(single_shot, "_PAIRS", 250)
    np.testing.assert_array_equal(evaluate(*arguments, protocol="cuhk03-classic").drawn_ranks, whole)


def test_the_manifest_tells_the_draws() -> None:
    values, pids, cameras = features()
    arguments = (values, values, pids, pids, cameras, cameras)
    protocol = evaluate(*arguments, protocol="cuhk03-classic").manifest["protocol"]
    assert (protocol["gallery_draws"], protocol["seed"]) == (PROTOCOLS["cuhk03-classic"].gallery_draws, SEED)
