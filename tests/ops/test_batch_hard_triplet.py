"""batch_hard_triplet: the definition against a brute-force miner, ties, anchors without a pair, its errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from motarfuse import ops
from motarfuse.reference.batch_hard_triplet import hardest
from tests.ops.operator_cases import check_gradients, check_strides, normal

LABELS = torch.tensor([4, 7, 4, 1, 7, 4])


def distance(a: torch.Tensor, b: torch.Tensor, metric: str) -> torch.Tensor:
    if metric == "cosine":
        return 1 - torch.dot(a, b) / (a.norm() * b.norm()).clamp(min=1e-12)
    return (a - b).square().sum().clamp(min=1e-12).sqrt()


def by_brute_force(features: torch.Tensor, labels: torch.Tensor, margin: float | None, metric: str) -> torch.Tensor:
    terms = []
    for i in range(len(labels)):
        positives = [j for j in range(len(labels)) if j != i and labels[j] == labels[i]]
        negatives = [j for j in range(len(labels)) if labels[j] != labels[i]]
        if not positives or not negatives:
            continue
        # max and min take the first of equals
        p = max(positives, key=lambda j: distance(features[i], features[j], metric).item())
        n = min(negatives, key=lambda j: distance(features[i], features[j], metric).item())
        gap = distance(features[i], features[p], metric) - distance(features[i], features[n], metric)
        terms.append(torch.log1p(gap.exp()) if margin is None else (gap + margin).clamp(min=0))
    return torch.stack(terms).mean() if terms else features.sum() * 0


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("margin", [None, 0.0, 0.3])
def test_it_is_what_a_brute_force_miner_finds(margin: float | None, metric: str) -> None:
    for seed in range(5):
        features = normal(seed)(6, 4).requires_grad_()
        got = ops.batch_hard_triplet(features, LABELS, margin=margin, metric=metric)
        wanted = by_brute_force(features, LABELS, margin, metric)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(
            torch.autograd.grad(got, features)[0], torch.autograd.grad(wanted, features)[0], rtol=1e-11, atol=1e-12
        )


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_gradients(metric: str) -> None:
    check_gradients(lambda features: ops.batch_hard_triplet(features, LABELS, metric=metric), normal(0)(6, 4))


def test_an_anchor_is_never_its_own_positive() -> None:
    features = normal(0)(3, 4)
    assert ops.batch_hard_triplet(features, torch.tensor([0, 1, 2])).item() == 0


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], []], ids=["no negative", "no positive", "empty"])
def test_nothing_to_count_is_zero_with_zero_gradients(labels: list[int]) -> None:
    features = normal(0)(len(labels), 4).requires_grad_()
    loss = ops.batch_hard_triplet(features, torch.tensor(labels, dtype=torch.int64))
    assert loss.item() == 0
    loss.backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_ties_take_the_lowest_index() -> None:
    # 0 is as far from 1 as from 2 (same person) and as near to 3 as to 4 (others).
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]).double().requires_grad_()
    labels = torch.tensor([0, 0, 0, 1, 2])
    (gradient,) = torch.autograd.grad(ops.batch_hard_triplet(features, labels, margin=10.0), features)
    wanted = by_brute_force(features, labels, 10.0, "euclidean")
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, features)[0])


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_of_exact_duplicates_the_first_is_taken(metric: str) -> None:
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        count, dim = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((5, 12), (100, 200)))
        people = torch.nn.functional.normalize(torch.randn(4, dim, generator=generator), dim=1)
        chosen = torch.randint(0, 4, (count,), generator=generator)  # rows of people: many are exact duplicates
        positive, negative, valid = hardest(people[chosen], chosen // 2, metric)
        for anchor in valid.nonzero()[:, 0].tolist():
            for index in (int(positive[anchor]), int(negative[anchor])):
                equal = [k for k in range(count) if chosen[k] == chosen[index] and k != anchor]
                assert index == equal[0], (seed, anchor)


def test_zero_vectors_have_cosine_zero_with_all() -> None:
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.3, 1.0], [0.0, -1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1])
    got = ops.batch_hard_triplet(features, labels, metric="cosine", margin=0.5)
    torch.testing.assert_close(got, by_brute_force(features, labels, 0.5, "cosine"))


def test_equal_features_have_zero_gradients_not_infinite_ones() -> None:
    features = torch.ones(4, 3, requires_grad=True)
    loss = ops.batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]))
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros(4, 3))


def test_half_features_do_not_overflow_and_autocast_changes_nothing() -> None:
    features = (1000 * normal(0)(6, 64)).half()
    loss = ops.batch_hard_triplet(features, LABELS)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, ops.batch_hard_triplet(features.float(), LABELS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.batch_hard_triplet(features.float(), LABELS), loss)


def test_other_strides() -> None:
    check_strides(lambda features: ops.batch_hard_triplet(features, LABELS), normal(0)(6, 4))


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"features": torch.zeros(6)}, ValueError, r"features must be \(B, D\)"),
    ({"features": torch.zeros(6, 4).long()}, TypeError, "features has dtype int64"),
    ({"labels": LABELS[:5]}, ValueError, r"labels must be \(B,\) = \(6,\)"),
    ({"labels": LABELS.float()}, TypeError, "labels has dtype float32"),
    ({"labels": LABELS.to("meta")}, ValueError, "labels is on meta"),
    ({"margin": -0.1}, ValueError, "margin must be None"),
    ({"margin": "soft"}, TypeError, "margin must be a Python number"),
    ({"metric": "l1"}, ValueError, "metric must be one of euclidean, cosine, got 'l1'"),
    ({"impl": "x"}, ValueError, "no impl 'x'"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_call_says_what_was_got_and_what_is_supported(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"features": torch.zeros(6, 4), "labels": LABELS}
    with pytest.raises(error, match=message):
        ops.batch_hard_triplet(**(arguments | change))
