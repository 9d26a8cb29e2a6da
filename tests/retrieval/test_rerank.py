"""``rerank`` against the published formula and its variants, written densely in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import motarfuse
from motarfuse.retrieval import PersonFeatures, evaluate, rerank, rerank_best
from motarfuse.retrieval import k_reciprocal as encoding
from motarfuse.retrieval.k_reciprocal import exp_negative
from motarfuse.retrieval.rerank_variants import VARIANTS
from motarfuse.retrieval.rows import Filter
from tests.retrieval import oracle
from tests.retrieval.rerank_oracle import final_distances
from tests.retrieval.test_evaluate import DEVICES, assert_equal, labels

NAMES = sorted(VARIANTS)
SHARES = [0.0, 0.01, 0.3, 1.0]


def people(seed: int, queries: int, gallery: int, dtype: type = np.float32, width: int = 24) -> list[np.ndarray]:
    """Features of identities that overlap, so that sets of neighbours differ from sample to sample."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(2, gallery // 6), width)) * 0.7
    return [
        (centres[rng.integers(0, len(centres), size)] + rng.normal(size=(size, width))).astype(dtype)
        for size in (queries, gallery)
    ]


def order_of(distances: np.ndarray) -> np.ndarray:
    return np.argsort(distances, axis=1, kind="stable")


def assert_same_order(query: np.ndarray, gallery: np.ndarray, wanted: np.ndarray, **how: Any) -> None:
    """The whole order, and the distances to what their type shows."""
    found = rerank(query, gallery, **how)
    distances, indices = found.topk(wanted.shape[1])
    if how.get("lambda_value") == 0:
        # Shares of sets are often equal, and the rounding of their sums tells them apart here or there.
        assert (indices.sort(dim=1).values == torch.arange(len(gallery))).all()
        assert (np.diff(np.take_along_axis(wanted, indices.numpy(), 1), axis=1) > -1e-14).all()
    else:
        np.testing.assert_array_equal(indices.numpy(), order_of(wanted))
    wide = query.dtype == np.float64
    tolerance: dict[str, Any] = {"rtol": 1e-12 if wide else 2e-7, "atol": 2e-15 if wide else 1e-15}
    np.testing.assert_allclose(distances.numpy(), np.take_along_axis(wanted, indices.numpy(), 1), **tolerance)
    np.testing.assert_allclose(found.dense().numpy(), wanted, **tolerance)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("variant", NAMES)
def test_every_formula_gives_the_dense_ones_order(variant: str, share: float, dtype: type, backend: str) -> None:
    query, gallery = people(3, 40, 160, dtype)
    wanted = final_distances(query, gallery, variant=variant, lambda_value=share)
    with motarfuse.ops.use_backend(backend):
        assert_same_order(query, gallery, wanted, variant=variant, lambda_value=share)


def test_the_formulas_differ() -> None:
    """Otherwise the names would say nothing, and the test above could not tell them apart."""
    query, gallery = people(3, 40, 160)
    found = [rerank(query, gallery, variant=name).dense() for name in NAMES]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (2, 2), (5, 1), (5, 4), (7, 3), (9, 10), (20, 1), (60, 6), (99, 50)])
def test_sets_of_every_size(k1: int, k2: int) -> None:
    """Halves of 5, 7 and 9 are rounded to even: 2, 4 and 4; k2 = 1 averages nothing."""
    query, gallery = people(k1, 20, 80, np.float64)
    wanted = final_distances(query, gallery, k1=k1, k2=k2)
    assert_same_order(query, gallery, wanted, k1=k1, k2=k2)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 12),
    gallery=st.integers(6, 60),
    share=st.sampled_from(SHARES),
    copies=st.integers(0, 20),
)
def test_copies_in_the_gallery_come_in_their_order(
    seed: int, queries: int, gallery: int, share: float, copies: int
) -> None:
    query, entries = people(seed, queries, gallery, np.float64)
    rng = np.random.default_rng(seed)
    entries[rng.integers(0, gallery, copies)] = entries[rng.integers(0, gallery, copies)]
    query[rng.integers(0, queries, copies)] = entries[rng.integers(0, gallery, copies)]
    wanted = final_distances(query, entries, k1=4, k2=3, lambda_value=share)
    found = rerank(query, entries, k1=4, k2=3, lambda_value=share).topk(gallery)[1].numpy()
    # Sums of the same numbers in two orders: what is equal up to those may be told apart by either side.
    sorted_by_us = np.take_along_axis(wanted, found, 1)
    assert (np.diff(sorted_by_us, axis=1) >= -1e-12).all()
    for line in found:
        place = np.argsort(line)
        for first, second in zip(*np.nonzero((entries[:, None] == entries[None]).all(-1)), strict=True):
            same = wanted[:, first] == wanted[:, second]
            assert place[first] <= place[second] or first >= second or not same.all()


def tight_people(dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Tight people, some of them copies, and strangers."""
    rng = np.random.default_rng(5)
    centres = 2 * rng.normal(size=(20, 16))
    query: np.ndarray = (centres[np.arange(60) % 20] + rng.normal(size=(60, 16))).astype(dtype)
    gallery: np.ndarray = (centres[np.arange(240) % 20] + rng.normal(size=(240, 16))).astype(dtype)
    gallery[40:60] = gallery[:20]
    query[::7] = 9 * rng.normal(size=query[::7].shape)
    return query, gallery


def watch(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """The tensors that a function of ``rerank_best`` gives back, call by call, with its arguments."""
    seen: list[Any] = []
    known = getattr(rerank_best, name)

    def watched(*arguments: Any) -> Any:
        seen.append((arguments, known(*arguments)))
        return seen[-1][1]

    monkeypatch.setattr(rerank_best, name, watched)
    return seen


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6])
@pytest.mark.parametrize("variant", NAMES)
def test_what_overlaps_and_the_nearest_decide(
    variant: str, share: float, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles are made for queries only whose best need an entry that is neither an overlap nor among the nearest."""
    query, gallery = tight_people(dtype)
    wanted = final_distances(query, gallery, variant=variant, lambda_value=share)
    for k in (1, 6, 30, 240):
        seen = watch(monkeypatch, "_nearest")
        found = rerank(query, gallery, variant=variant, lambda_value=share).topk(k)[1].numpy()
        values = np.take_along_axis(wanted, found, 1)
        np.testing.assert_allclose(values, np.sort(wanted, axis=1)[:, :k], rtol=1e-12)
        assert ((np.diff(values, axis=1) > 0) | (np.diff(found, axis=1) > 0)).all()  # copies in their order
        scanned = sum(len(arguments[1]) for arguments, _ in seen)
        assert scanned <= (0 if k <= 6 else 60)
        assert k < 240 or scanned == 60
        monkeypatch.undo()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6])
@pytest.mark.parametrize("variant", NAMES)
def test_little_more_than_the_best_is_looked_at(variant: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """What must be shared at least rules out what cannot be among the best, and nothing that is."""
    query, gallery = tight_people(np.float64)
    seen = watch(monkeypatch, "_least_shared")
    result = rerank(query, gallery, variant=variant, lambda_value=share)
    result.topk(5)
    order, tops = result._order(), 0
    for (_, queries, shared, squared, limit), least in seen:
        overlaps = shared.overlaps(torch.zeros_like(limit))
        keys = order.keys(queries[overlaps.rows], overlaps.columns, overlaps.jaccard)
        sums = shared.find(overlaps.rows, overlaps.columns)
        inside = keys <= limit[overlaps.rows]
        assert (sums[inside] >= least[overlaps.rows][inside]).all()
        exact = order.squared(queries[overlaps.rows], overlaps.columns)
        assert (exact >= squared[overlaps.rows]).all()
        possible = order.moved(squared[overlaps.rows], queries[overlaps.rows], overlaps.jaccard)
        near = sums >= least[overlaps.rows] + 1e-9
        assert (possible[near] <= limit[overlaps.rows][near]).all()
        tops += int(inside.sum())
    assert tops >= 60


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_of_equal_distances_the_lower_index_wins(share: float) -> None:
    """Copies of entries far and near, among them those that the neighbours of the encoding just leave out."""
    query, gallery = tight_people(np.float64)
    gallery = np.concatenate([gallery, gallery[::-1], gallery])
    for k1 in (3, 5, 20):
        found = rerank(query, gallery, k1=k1, k2=2, lambda_value=share)
        wanted = found.dense().sort(dim=1, stable=True).indices
        for k in (1, 2, 3, 4, 7, 30, 719):
            assert torch.equal(found.topk(k)[1], wanted[:, :k])


def check_evaluation(seed: int, **how: Any) -> None:
    rng = np.random.default_rng(seed)
    ids = labels(rng, 40, 200, 9)
    centres = rng.normal(size=(11, 16))
    query, gallery = (centres[one] + 1.3 * rng.normal(size=(len(one), 16)) for one in ids[:2])
    wanted = final_distances(query, gallery, k1=8, k2=3, **how)
    found = rerank(query, gallery, k1=8, k2=3, **how)
    if how.get("lambda_value") == 0:  # ties as above: those of the same sums
        np.testing.assert_allclose(found.dense().numpy(), wanted, rtol=1e-13, atol=2e-15)
        wanted = found.dense().numpy()
    expected = oracle.evaluate(-wanted, *ids)
    assert 0.2 < expected.mAP < 0.95
    assert_equal(found.evaluate(*ids), expected)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("variant", NAMES)
def test_ranks_are_those_of_the_dense_table(variant: str, share: float) -> None:
    check_evaluation(5, variant=variant, lambda_value=share)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_memory_limits_change_nothing(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query at a time."""
    monkeypatch.setattr(encoding, "OVERLAPS", 300)
    check_evaluation(6, lambda_value=share)
    query, gallery = people(4, 30, 120)
    wanted = final_distances(query, gallery, lambda_value=share)
    assert_same_order(query, gallery, wanted, lambda_value=share)


@pytest.mark.parametrize("unknown", [0.3, 1.0])
def test_scores_that_nobody_knows_change_nothing(unknown: float, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Filter.scores

    def some(self: Filter, gallery: Filter, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, slack = known(self, gallery, out)
        hidden = torch.rand(scores.shape, generator=torch.Generator().manual_seed(len(scores))) < unknown
        return scores.masked_fill_(hidden, torch.nan), slack

    monkeypatch.setattr(Filter, "scores", some)
    check_evaluation(7)
    query, gallery = people(4, 30, 120)
    assert_same_order(query, gallery, final_distances(query, gallery))


def test_an_error_as_large_as_the_bound_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Filter.scores

    def wrong(self: Filter, gallery: Filter, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, slack = known(self, gallery, out)
        error = torch.rand(scores.shape, generator=torch.Generator().manual_seed(len(scores))) * 2 - 1
        return scores.add_(error * 3), slack + 3.001

    monkeypatch.setattr(Filter, "scores", wrong)
    check_evaluation(8)
    query, gallery = people(4, 30, 120)
    assert_same_order(query, gallery, final_distances(query, gallery))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_blocks_and_threads_change_nothing(share: float) -> None:
    query, gallery = people(1, 50, 150)
    rng = np.random.default_rng(0)
    ids = labels(rng, 50, 150, 9)
    wanted = rerank(query, gallery, lambda_value=share)
    before = torch.get_num_threads()
    try:
        for threads, block in ((1, 1), (1, 37), (3, 64), (2, 199)):
            torch.set_num_threads(threads)
            found = rerank(query, gallery, lambda_value=share, block=block)
            for one, other in zip(found.topk(20), wanted.topk(20), strict=True):
                assert torch.equal(one, other)
            assert torch.equal(found.dense(), wanted.dense())
            assert found.evaluate(*ids).manifest == wanted.evaluate(*ids).manifest
            assert np.array_equal(found.evaluate(*ids).first_rank, wanted.evaluate(*ids).first_rank)
    finally:
        torch.set_num_threads(before)


def test_a_set_against_itself_and_drawn_galleries() -> None:
    rng = np.random.default_rng(2)
    pids, camids = rng.integers(0, 12, 90), rng.integers(0, 2, 90)
    features = rng.normal(size=(12, 16))[pids] + rng.normal(size=(90, 16))
    found = rerank(features, features, k1=6, k2=2)
    wanted = final_distances(features, features, k1=6, k2=2)
    expected = oracle.evaluate(-wanted, pids, pids, camids, camids, cameras=False, itself=True)
    assert_equal(found.evaluate(pids, pids, camids, camids, protocol="all-vs-all"), expected)

    drawn = found.evaluate(pids, pids, camids, camids, protocol="cuhk03-classic")
    ones = np.eye(90)
    # The order of a query's own row, as features whose products are that order.
    scores = -np.argsort(np.argsort(wanted, axis=1, kind="stable"), axis=1).astype(float)
    same_draws = evaluate(scores - scores.min(), ones, pids, pids, camids, camids, protocol="cuhk03-classic")
    np.testing.assert_array_equal(drawn.drawn_ranks, same_draws.drawn_ranks)


def test_lambda_1_is_the_euclidean_order() -> None:
    query, gallery = people(9, 30, 90)
    ids = labels(np.random.default_rng(1), 30, 90, 6)
    plain = evaluate(query, gallery, *ids, metric="euclidean")
    found = rerank(query, gallery, lambda_value=1).evaluate(*ids)
    np.testing.assert_array_equal(found.average_precision, plain.average_precision)


@pytest.mark.parametrize("variant", ["zhong2017", "torchreid", "transreid"])
def test_equal_samples_are_at_distance_zero(variant: str) -> None:
    query, gallery = np.ones((3, 8), np.float32), np.ones((5, 8), np.float32)
    found = rerank(query, gallery, k1=7, k2=1, variant=variant)
    assert found.dense().abs().max() < 1e-7
    assert found.topk(5)[1].tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("factor", [2.0**60, 2.0**-60])
def test_the_features_scale_does_not_matter(factor: float) -> None:
    query, gallery = people(2, 20, 80)
    wanted, found = rerank(query, gallery), rerank(query * factor, gallery * factor)
    assert torch.equal(found.dense(), wanted.dense())
    assert torch.equal(found.topk(80)[1], wanted.topk(80)[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_every_type_and_people(dtype: torch.dtype, device: str) -> None:
    query, gallery = (torch.from_numpy(side).to(dtype).to(device) for side in people(8, 20, 70, np.float64))
    wide = [side.double().cpu().numpy() for side in (query, gallery)]
    distances, indices = rerank(query, gallery).topk(70)
    assert distances.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert indices.device.type == distances.device.type == device
    np.testing.assert_array_equal(indices.cpu().numpy(), order_of(final_distances(wide[0], wide[1])))
    parts = {"part_features": torch.ones(70, 2, 4, dtype=dtype), "part_visibility": torch.ones(70, 2, dtype=dtype)}
    sides = PersonFeatures(query), PersonFeatures(gallery, **{name: one.to(device) for name, one in parts.items()})
    assert torch.equal(rerank(*sides).topk(70)[1], indices)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", NAMES)
def test_a_gpu_gives_the_cpus_order(variant: str) -> None:
    query, gallery = (torch.from_numpy(side) for side in people(1, 500, 5000, width=64))
    ids = labels(np.random.default_rng(1), 500, 5000, 300)
    here, there = rerank(query, gallery, variant=variant), rerank(query.cuda(), gallery.cuda(), variant=variant)
    assert torch.equal(here.topk(30)[1], there.topk(30)[1].cpu())
    assert torch.equal(here.dense(), there.dense().cpu())
    np.testing.assert_array_equal(here.evaluate(*ids).average_precision, there.evaluate(*ids).average_precision)


def test_exponentials_are_those_of_the_library() -> None:
    values = np.concatenate([np.linspace(0, 4, 4001), np.linspace(4, 700, 999), [0.0, 1e-300, np.log(2) / 2]])
    found = exp_negative(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(found, np.exp(-values), rtol=5e-16)


# Beside J, distances of 1e-20 are nothing to the dense float64 table.
@pytest.mark.parametrize(("share", "factor"), [(1.0, 1.0), (1.0, 1e-20), (1.0, 1e15), (0.3, 1e-20), (0.3, 1e15)])
def test_an_ignored_entry_of_another_magnitude_sets_the_scale_for_all(share: float, factor: float) -> None:
    """It took part in the encoding: distances of those that count are measured in its scale."""
    rng = np.random.default_rng(0)
    ids = labels(rng, 10, 50, 5)
    query, gallery = (rng.normal(size=(len(one), 4)) for one in ids[:2])
    gallery[-1] *= 1e10 if factor == 1 else 100
    ids[1][-1] = -1  # a distractor of MARS's kind: ignored
    query, gallery = query * factor, gallery * factor
    wanted = -final_distances(query, gallery, k1=5, k2=2, lambda_value=share)
    found = rerank(query, gallery, k1=5, k2=2, lambda_value=share).evaluate(*ids)
    assert found.manifest["num_gallery_ignored"] >= 1
    assert_equal(found, oracle.evaluate(wanted, *ids))


def test_roots_of_keys_are_rounded_as_the_processor_rounds_them() -> None:
    """Where lambda is tiny, nearly equal keys are told apart by their last bit, on every backend alike."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(40, 4, dtype=torch.float64, generator=generator)
    pids, cameras = torch.arange(40) % 5, torch.arange(40) % 2
    how: dict[str, Any] = {"k1": 12, "lambda_value": 1e-12, "variant": "torchreid"}
    sides = pids[:10], pids[10:], cameras[:10], cameras[10:]
    here = rerank(x[:10], x[10:], **how).evaluate(*sides)
    with motarfuse.ops.use_backend("reference"):
        assert rerank(x[:10], x[10:], **how).evaluate(*sides).mAP == here.mAP


def test_the_manifest_names_the_formula() -> None:
    query, gallery = people(0, 20, 60)
    ids = labels(np.random.default_rng(0), 20, 60, 4)
    one = rerank(query, gallery, k1=6, k2=3, lambda_value=0.25, variant="fastreid").evaluate(*ids)
    assert one.manifest["rerank"] == {
        "variant": "fastreid", "k1": 6, "k2": 3, "lambda": 0.25, "unit_features": True,
    }  # fmt: skip
    other = rerank(query, gallery, k1=6, k2=3, lambda_value=0.3, variant="fastreid").evaluate(*ids)
    assert one.manifest["sha256"] != other.manifest["sha256"]


def test_bad_input_is_named() -> None:
    query, gallery = people(0, 20, 60)
    broken = gallery.copy()
    broken[17, 3] = np.nan
    zero = gallery.copy()
    zero[5] = 0
    for call, kind, message in (
        ({"variant": ["zhong2017"]}, TypeError, "variant: got list"),
        ({"variant": "zhong"}, ValueError, "variant: got 'zhong', known are zhong2017, torchreid"),
        ({"k1": 0}, ValueError, "k1: got 0, supported are 1 to 79"),
        ({"k1": 80}, ValueError, "k1: got 80, supported are 1 to 79"),
        ({"k1": 5.0}, TypeError, "k1: got float"),
        ({"k1": True}, TypeError, "k1: got bool"),
        ({"k2": 0}, ValueError, "k2: got 0, supported are 1 to 21"),
        ({"k2": 22}, ValueError, "k2: got 22, supported are 1 to 21"),
        ({"k2": 21, "variant": "fastreid"}, ValueError, "1 to 20 with k1 = 20 and variant fastreid"),
        ({"k2": 21, "variant": "boxmot"}, ValueError, "1 to 20 with k1 = 20 and variant boxmot"),
        ({"lambda_value": -0.1}, ValueError, "lambda_value: got -0.1"),
        ({"lambda_value": np.nan}, ValueError, "lambda_value: got nan"),
        ({"lambda_value": "0.3"}, TypeError, "lambda_value: got str"),
        ({"block": 0}, ValueError, "block: got 0"),
        ({"gallery": gallery[:, :-1]}, ValueError, "24 and 23 columns"),
        ({"gallery": gallery[:0]}, ValueError, "gallery"),
        ({"gallery": gallery.astype(np.float64)}, TypeError, "float32 and torch.float64"),
        ({"gallery": broken}, ValueError, "gallery.*17"),
        ({"gallery": zero, "variant": "boxmot"}, ValueError, "gallery: row 5 is zero"),
        ({"gallery": gallery.astype(int)}, TypeError, "gallery"),
    ):
        arguments: dict[str, Any] = {"query": query, "gallery": gallery, **call}
        with pytest.raises(kind, match=message):
            rerank(arguments.pop("query"), arguments.pop("gallery"), **arguments)
    found = rerank(query, gallery)
    for k, kind, message in (
        (0, ValueError, "k: got 0"),
        (61, ValueError, "1 to 60"),
        (1.0, TypeError, "k: got float"),
    ):
        with pytest.raises(kind, match=message):
            found.topk(k)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no query has a match"):
        found.evaluate(np.zeros(20, int), np.ones(60, int), np.zeros(20, int), np.zeros(60, int))
    with pytest.raises(ValueError, match="gallery_pids"):
        found.evaluate(np.zeros(20, int), np.ones(59, int), np.zeros(20, int), np.zeros(60, int))


def test_the_whole_table_is_for_small_sizes() -> None:
    query, gallery = (torch.arange(4200.0)[:, None] % 97 for _ in range(2))
    found = rerank(query, gallery, k1=3, k2=1)
    with pytest.raises(ValueError, match=r"4200 x 4200 pairs, supported are up to 16,777,216; topk"):
        found.dense()
