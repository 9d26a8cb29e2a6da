"""batch_hard_triplet: the definition against a brute-force miner, ties, anchors without a pair, its errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from motarfuse import ops
from motarfuse.reference.batch_hard_triplet import hardest
from tests.ops.batch_hard_triplet_cases import assert_the_first_of_duplicates, overflowing
from tests.ops.kernel_cases import needs_native
from tests.ops.operator_cases import check_gradients, check_strides, normal

LABELS = torch.tensor([4, 7, 4, 1, 7, 4])
on_the_cpu = pytest.mark.parametrize("impl", ["reference", pytest.param("cpu", marks=needs_native)])


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


@on_the_cpu
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("margin", [None, 0.0, 0.3])
def test_it_is_what_a_brute_force_miner_finds(margin: float | None, metric: str, impl: str) -> None:
    for seed in range(5):
        features = normal(seed)(6, 4).requires_grad_()
        got = ops.batch_hard_triplet(features, LABELS, margin=margin, metric=metric, impl=impl)
        wanted = by_brute_force(features, LABELS, margin, metric)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(
            torch.autograd.grad(got, features)[0], torch.autograd.grad(wanted, features)[0], rtol=1e-11, atol=1e-12
        )


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_gradients(metric: str) -> None:
    def loss(features: torch.Tensor) -> torch.Tensor:
        return ops.batch_hard_triplet(features, LABELS, metric=metric, impl="reference")

    check_gradients(loss, normal(0)(6, 4))


@on_the_cpu
def test_an_anchor_is_never_its_own_positive(impl: str) -> None:
    features = normal(0)(3, 4)
    assert ops.batch_hard_triplet(features, torch.tensor([0, 1, 2]), impl=impl).item() == 0


@on_the_cpu
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], []], ids=["no negative", "no positive", "empty"])
def test_nothing_to_count_is_zero_with_zero_gradients(labels: list[int], impl: str) -> None:
    features = normal(0)(len(labels), 4).requires_grad_()
    loss = ops.batch_hard_triplet(features, torch.tensor(labels, dtype=torch.int64), impl=impl)
    assert loss.item() == 0
    loss.backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros_like(features))


@on_the_cpu
def test_ties_take_the_lowest_index(impl: str) -> None:
    # 0 is as far from 1 as from 2 (same person) and as near to 3 as to 4 (others).
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]).double().requires_grad_()
    labels = torch.tensor([0, 0, 0, 1, 2])
    (gradient,) = torch.autograd.grad(ops.batch_hard_triplet(features, labels, margin=10.0, impl=impl), features)
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
        kept = [anchor for anchor in range(count) if valid[anchor]]
        assert_the_first_of_duplicates(
            ([int(positive[k]) for k in kept], [int(negative[k]) for k in kept]), chosen, kept
        )


@on_the_cpu
@pytest.mark.parametrize("margin", [None, 0.3])
def test_negatives_at_infinity_are_negatives(margin: float | None, impl: str) -> None:
    """None of them is in the loss, which is zero and has zero gradients; an anchor's own identity is no negative."""
    inputs = overflowing()
    leaf = inputs["features"].requires_grad_()
    loss = ops.batch_hard_triplet(leaf, inputs["labels"], margin=margin, impl=impl)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, leaf)[0], torch.zeros_like(leaf))
    positive, negative, _ = hardest(leaf.detach(), inputs["labels"], "euclidean")
    assert (positive.tolist(), negative.tolist()) == ([1, 0, 3, 2], [2, 2, 0, 0])


@on_the_cpu
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_reaches_the_loss(value: float, metric: str, impl: str) -> None:
    for row in range(6):
        features = normal(0)(6, 4)
        features[row, 1] = value
        loss = ops.batch_hard_triplet(features, LABELS, metric=metric, impl=impl)
        # The only image of its person is nobody's positive and, infinitely far, nobody's nearest negative.
        alone = row == 3 and metric == "euclidean" and not math.isnan(value)
        assert loss.isfinite() if alone else not loss.isfinite(), row


@on_the_cpu
def test_zero_vectors_have_cosine_zero_with_all(impl: str) -> None:
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.3, 1.0], [0.0, -1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1])
    got = ops.batch_hard_triplet(features, labels, metric="cosine", margin=0.5, impl=impl)
    torch.testing.assert_close(got, by_brute_force(features, labels, 0.5, "cosine"))


@on_the_cpu
def test_equal_features_have_zero_gradients_not_infinite_ones(impl: str) -> None:
    features = torch.ones(4, 3, requires_grad=True)
    loss = ops.batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]), impl=impl)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros(4, 3))


@on_the_cpu
def test_half_features_do_not_overflow_and_autocast_changes_nothing(impl: str) -> None:
    features = (1000 * normal(0)(6, 64)).half()
    loss = ops.batch_hard_triplet(features, LABELS, impl=impl)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, ops.batch_hard_triplet(features.float(), LABELS, impl=impl))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.batch_hard_triplet(features.float(), LABELS, impl=impl), loss)


@on_the_cpu
def test_other_strides(impl: str) -> None:
    check_strides(lambda features: ops.batch_hard_triplet(features, LABELS, impl=impl), normal(0)(6, 4))


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
