"""Filters of a search: by camera, time and identity, against a plain mask over all pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motarfuse.retrieval import Labels, Where, search

nan = float("nan")


def mask_of(where: Where, query: Labels, gallery: Labels) -> np.ndarray:
    """(Q, G) which pairs may be found, condition by condition."""
    shape = (len(query.pids), len(gallery.pids))
    passed = np.ones(shape, bool)
    for i, j in np.ndindex(shape):
        camid, pid, time = gallery.camids[j], gallery.pids[j], gallery.times[j]
        checks = []
        if where.camids is not None:
            checks.append(camid in where.camids and camid != -1)
        if where.not_camids is not None:
            checks.append(camid == -1 or camid not in where.not_camids)
        if where.pids is not None:
            checks.append(pid in where.pids and pid != -1)
        if where.not_pids is not None:
            checks.append(pid == -1 or pid not in where.not_pids)
        for ends, value in ((where.between, time), (where.after, time - query.times[i])):
            if ends is not None:
                low, high = (-np.inf if ends[0] is None else ends[0]), (np.inf if ends[1] is None else ends[1])
                checks.append(low <= value <= high)
        for relation, one, other in ((where.camera, query.camids[i], camid), (where.identity, query.pids[i], pid)):
            same = one == other and one != -1
            checks.append({"any": True, "same": same, "other": not same}[relation])
        passed[i, j] = all(checks)
    return passed


ends = st.sampled_from([None, (None, 4.0), (2.0, None), (-3.0, 3.0), (1.0, 1.0)])
some = st.sampled_from([None, (), (1,), {0, 2}, (-1, 1)])
relation = st.sampled_from(["any", "other", "same"])


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    where=st.builds(
        Where, camids=some, not_camids=some, pids=some, not_pids=some, between=ends, camera=relation,
        identity=relation, after=ends,
    ),
    metric=st.sampled_from(["cosine", "euclidean"]),
)  # fmt: skip
def test_finds_the_best_of_what_passes(seed: int, where: Where, metric: str) -> None:
    rng = np.random.default_rng(seed)
    query, gallery = (torch.from_numpy(rng.choice([-1.0, 1.0], size=(rows, 8))) for rows in (5, 60))
    labels = [
        Labels(
            rng.integers(-1, 3, rows), rng.integers(-1, 3, rows), np.where(rng.random(rows) < 0.1, nan,
            rng.integers(-2, 7, rows).astype(float)),
        )
        for rows in (5, 60)
    ]  # fmt: skip
    scores, indices = search(
        query, gallery, 7, metric=metric, where=where, query_labels=labels[0], gallery_labels=labels[1]
    )
    passed = mask_of(where, *labels)
    every, order = search(query, gallery, 60, metric=metric)
    worst = -np.inf if metric == "cosine" else np.inf
    for i in range(5):
        wanted = [(int(j), float(s)) for j, s in zip(order[i], every[i], strict=True) if passed[i, j]][:7]
        wanted += [(-1, worst)] * (7 - len(wanted))
        assert [(int(j), float(s)) for j, s in zip(indices[i], scores[i], strict=True)] == wanted


def test_a_filter_that_nothing_passes_finds_nothing() -> None:
    for metric, worst in (("cosine", -torch.inf), ("euclidean", torch.inf)):
        scores, indices = search(
            torch.randn(2, 4), torch.randn(5, 4), 3, metric=metric, where=Where(camids=[9]),
            gallery_labels=Labels(camids=[0, 1, 2, 3, 4]),
        )  # fmt: skip
        assert indices.tolist() == [[-1] * 3] * 2
        assert (scores == worst).all()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"camids": [1]}, "where.camids needs gallery_labels with camids"),
        ({"not_pids": [1]}, "where.not_pids needs gallery_labels with pids"),
        ({"between": (0, 1)}, "where.between needs gallery_labels with times"),
        ({"camera": "other"}, "where.camera needs query_labels with camids"),
        ({"identity": "same"}, "where.identity needs query_labels with pids"),
        ({"after": (0, None)}, "where.after needs query_labels with times"),
    ],
)
def test_missing_labels_are_named(where: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(torch.randn(2, 4), torch.randn(5, 4), 3, where=Where(**where))


@pytest.mark.parametrize(
    ("where", "kind", "message"),
    [
        ({"camera": "others"}, ValueError, "where.camera: got 'others', supported are any, other, same"),
        ({"between": (2, 1)}, ValueError, "the earliest comes after the latest"),
        ({"after": (nan, 1)}, ValueError, "the earliest comes after the latest"),
        ({"after": 3}, TypeError, "where.after: got 3, supported is a pair"),
        ({"camids": ["a"]}, TypeError, "where.camids: got .* a collection of integers"),
        ({"pids": "12"}, TypeError, "where.pids: got '12'"),
        ({"not_camids": 5}, TypeError, "where.not_camids: got 5, supported is a collection of integers"),
        ({"between": ("a", "b")}, TypeError, "where.between: got .* supported are numbers and None"),
    ],
)
def test_conditions_are_checked(where: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Where(**where)


def test_labels_are_checked() -> None:
    query, gallery = torch.randn(2, 4), torch.randn(5, 4)
    with pytest.raises(TypeError, match="where: got dict, supported is a Where"):
        search(query, gallery, 3, where={"camids": [1]})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="gallery_labels: got dict, supported is Labels"):
        search(query, gallery, 3, where=Where(camids=[1]), gallery_labels={})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gallery_labels.camids: got 3 values for 5 rows"):
        search(query, gallery, 3, where=Where(camids=[1]), gallery_labels=Labels(camids=[1, 2, 3]))
    with pytest.raises(TypeError, match=r"gallery_labels.times: got <U1 values, supported are numbers"):
        search(query, gallery, 3, where=Where(between=(0, 1)), gallery_labels=Labels(times=list("abcde")))
    with pytest.raises(ValueError, match=r"gallery_labels.times: got shape \(2,\)"):
        search(query, gallery, 3, where=Where(between=(0, 1)), gallery_labels=Labels(times=[0.0, 1.0]))
