"""The C++ kernels of batch_hard_triplet by the tolerance rule: around tiles, pairs, layouts, threads, variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from motarfuse import ops
from motarfuse.ops.batch_hard_triplet import counted_batch_hard_triplet
from tests.ops import batch_hard_triplet_cases as cases
from tests.ops.batch_hard_triplet_cases import (
    METRICS,
    assert_the_first_of_duplicates,
    case,
    check,
    columns_apart,
    expected,
    outputs_and_gradients,
    overflowing,
)
from tests.ops.kernel_cases import (
    DTYPES,
    check_on_older_processors,
    every_second,
    expanded_over_the_batch,
    expanded_over_the_last,
    layout_name,
    misaligned,
    needs_native,
)

pytestmark = needs_native
BACKEND = ("cpu", "cpu")
metrics = pytest.mark.parametrize("metric", METRICS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def kernel(features: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
    return ops.batch_hard_triplet(features, labels, impl="cpu", **options)


def operators() -> tuple[Any, Any]:
    namespace = torch.ops.motarfuse
    return namespace.batch_hard_triplet_forward.default, namespace.batch_hard_triplet_backward.default


def chosen(features: torch.Tensor, labels: torch.Tensor, metric: str) -> cases.Indices:
    return cases.chosen(operators()[0], features, labels, metric)


@dtypes
@metrics
@pytest.mark.parametrize(
    ("batch", "dim"),
    [(1, 3), (2, 5), (7, 1), (31, 127), (32, 128), (33, 129), (63, 384), (65, 768), (129, 1000), (100, 2049)],
)
def test_losses_and_gradients_keep_the_rule(dtype: torch.dtype, metric: str, batch: int, dim: int) -> None:
    check(BACKEND, case(batch, dim, dtype), metric=metric)


@metrics
@pytest.mark.parametrize("margin", [0.0, 0.3, 40.0])
def test_margins(metric: str, margin: float) -> None:
    """With the first two some anchors keep it, with the last none does."""
    inputs = case(14, 20)
    inputs["features"][:] = (
        torch.linspace(0.02, 0.6, 14)[:, None] * inputs["features"] + torch.eye(20)[inputs["labels"]]
    )
    check(BACKEND, inputs, margin=margin, metric=metric)


@pytest.mark.parametrize("spread", [0.5, 8.0])
def test_anchors_far_on_the_right_side_keep_their_small_terms(spread: float) -> None:
    inputs = case(8, 30, people=2)
    inputs["features"] += 10 * spread * inputs["labels"][:, None]
    check(BACKEND, inputs)


# Which pairs ---------------------------------------------------------------------------------------------------------


@metrics
@pytest.mark.parametrize(("batch", "dim"), [(33, 40), (130, 300)])
def test_pairs_are_those_of_the_exact_distances(metric: str, batch: int, dim: int) -> None:
    # Far from zero: a product of matrices in float32 would lose these distances.
    inputs = case(batch, dim, seed=3)
    inputs["features"] = inputs["features"] * 1e-3 + 1
    inputs["labels"][4] = 99
    wanted = expected(inputs["features"].double(), inputs["labels"], metric)
    assert chosen(**inputs, metric=metric) == wanted
    assert wanted[0][4] == wanted[1][4] == -1
    doubles = {**inputs, "features": inputs["features"].double()}
    assert chosen(**doubles, metric=metric) == wanted


@metrics
@pytest.mark.parametrize(("batch", "dim"), [(30, 70), (32, 1), (150, 131)])
def test_of_exact_duplicates_the_first_is_taken(metric: str, batch: int, dim: int) -> None:
    """They lie in one tile and in several, left and right of an anchor."""
    generator = torch.Generator().manual_seed(5)
    people = torch.randn(4, dim, generator=generator)
    which = torch.randint(0, 4, (batch,), generator=generator)
    found = chosen(people[which], which // 2, metric)
    assert min(*found[0], *found[1]) >= 0
    assert_the_first_of_duplicates(found, which)
    if dim > 1:  # two signs alone are all that a cosine of one column has
        assert found == expected(people[which].double(), which // 2, metric)


def test_equal_features_have_zero_gradients_not_infinite_ones() -> None:
    inputs = {"features": torch.ones(9, 3), "labels": torch.arange(9) // 3}
    found = outputs_and_gradients(inputs, "cpu")
    assert torch.equal(found["grad_features"], torch.zeros_like(found["grad_features"]))
    check(BACKEND, inputs)
    # Distances below 1e-6 have none either, though features differ.
    check(BACKEND, {**inputs, "features": 1e-8 * case(9, 3)["features"]})


@metrics
def test_what_nearly_all_anchors_choose_collects_their_gradients(metric: str) -> None:
    """One feature of another person amid those of one, and a far one of theirs: both are chosen by all others."""
    inputs = case(70, 6, people=1)
    inputs["features"][37] = inputs["features"].mean(0)
    inputs["labels"][37] = 5
    inputs["features"][3] = -4 * inputs["features"][3]
    inputs["labels"][0] = 5
    check(BACKEND, inputs, metric=metric)


def test_zero_and_tiny_vectors_under_the_cosine() -> None:
    """Zero vectors have cosine 0 with all; vectors below 1e-12 are divided by 1e-12, and so are their gradients."""
    for scale in (0.0, 1e-13, 0.9e-12):
        inputs = case(40, 6, people=3)
        inputs["features"][[2, 5, 36]] *= scale / inputs["features"][[2, 5, 36]].norm(dim=1, keepdim=True)
        check(BACKEND, inputs, metric="cosine")
        assert chosen(**inputs, metric="cosine") == expected(inputs["features"], inputs["labels"], "cosine")


@metrics
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("row", [0, 10, 39])
def test_a_nan_reaches_the_loss_and_so_does_an_infinity(metric: str, row: int, value: float) -> None:
    inputs = case(40, 6, people=3)
    inputs["features"][row, 2] = value
    assert outputs_and_gradients(inputs, "cpu", metric=metric)["loss"].isnan()
    positive, negative = chosen(**inputs, metric=metric)
    labels = inputs["labels"].tolist()
    assert all(positive[k] == row for k in range(40) if k != row and labels[k] == labels[row])
    if metric == "cosine" or value != value:
        assert all(negative[k] == row for k in range(40) if labels[k] != labels[row])


def test_a_nan_is_farther_than_infinity_and_the_first_of_them_is_taken() -> None:
    features = torch.zeros(5, 1)
    features[[1, 3, 4], 0] = torch.tensor([1e30, torch.nan, torch.nan])
    labels = torch.tensor([0, 0, 1, 0, 0])
    assert chosen(features, labels, "euclidean")[0][:2] == [3, 3]
    assert chosen(features, labels, "euclidean") == expected(features, labels, "euclidean")


def test_negatives_at_infinity_are_negatives() -> None:
    assert chosen(**overflowing(), metric="euclidean") == ([1, 0, 3, 2], [2, 2, 0, 0])


@metrics
def test_distances_beyond_float16_do_not_overflow(metric: str) -> None:
    inputs = case(8, 64, torch.float16)
    inputs["features"] *= 1000
    check(BACKEND, inputs, metric=metric)


# Layouts -------------------------------------------------------------------------------------------------------------


@dtypes
@metrics
@pytest.mark.parametrize(
    "layout",
    [every_second, columns_apart, expanded_over_the_batch, expanded_over_the_last, misaligned],
    ids=layout_name,
)
def test_views_with_other_strides_are_taken_as_they_are(
    dtype: torch.dtype, metric: str, layout: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    inputs = case(39, 24, dtype)
    inputs["features"] = layout(inputs["features"])
    result = outputs_and_gradients(inputs, "cpu", metric=metric)
    wanted = outputs_and_gradients({**inputs, "features": inputs["features"].contiguous()}, "cpu", metric=metric)
    for name, value in result.items():
        assert torch.equal(value, wanted[name]), name
    assert result["grad_features"].stride() == torch.empty_like(inputs["features"]).stride()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_labels_of_any_integers_and_strides(dtype: torch.dtype) -> None:
    inputs = case(9, 4)
    labels = (inputs["labels"] + 1).to(dtype).repeat_interleave(3)[::3]
    check(BACKEND, {**inputs, "labels": labels})


def test_labels_are_compared_in_full_width() -> None:
    labels = torch.tensor([0, 2**32, 0, 2**32, 2**40, 2**40])
    features = case(6, 4)["features"]
    assert chosen(features, labels, "euclidean") == expected(features, labels, "euclidean")


@metrics
@pytest.mark.parametrize("labels", [[], [3], [0, 0, 0], [0, 1, 2], [0, 0, 1]], ids=str)
def test_anchors_without_a_pair(metric: str, labels: list[int]) -> None:
    inputs = {"features": case(len(labels), 5)["features"], "labels": torch.tensor(labels, dtype=torch.int64)}
    check(BACKEND, inputs, metric=metric)
    found = counted_batch_hard_triplet(inputs["features"], inputs["labels"], metric=metric, impl="cpu")
    assert found.skipped.dtype == torch.int64
    assert found.skipped.item() == {0: 0, 1: 1, 3: 1 if labels == [0, 0, 1] else 3}[len(labels)]


@metrics
def test_features_of_no_columns(metric: str) -> None:
    check(BACKEND, {"features": torch.zeros(4, 0), "labels": torch.tensor([0, 0, 1, 1])}, metric=metric)


# Gradients -----------------------------------------------------------------------------------------------------------


@metrics
@pytest.mark.parametrize("margin", [None, 0.25])
def test_derivatives_are_those_of_finite_differences(metric: str, margin: float | None) -> None:
    inputs = case(9, 5, torch.float64, people=3)
    leaf = inputs["features"].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda features: kernel(features, inputs["labels"], margin=margin, metric=metric), leaf
    )


@metrics
def test_the_number_of_threads_does_not_change_a_bit(metric: str) -> None:
    before = torch.get_num_threads()
    inputs = case(200, 300)
    inputs["features"][100:150] = inputs["features"][:50]  # ties between tiles of several threads
    found = []
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            found.append(outputs_and_gradients(inputs, "cpu", metric=metric) | {"chosen": _indices(inputs, metric)})
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name, value in other.items():
            assert torch.equal(value, found[0][name]), name


def _indices(inputs: dict[str, torch.Tensor], metric: str) -> torch.Tensor:
    return torch.tensor(chosen(**inputs, metric=metric))


@metrics
def test_a_call_without_gradients_gives_the_same_loss(metric: str) -> None:
    inputs = case(11, 33)
    plain = counted_batch_hard_triplet(inputs["features"], inputs["labels"], metric=metric, impl="cpu")
    assert torch.equal(plain.loss, outputs_and_gradients(inputs, "cpu", metric=metric)["loss"][0])
    assert not plain.loss.requires_grad


def test_the_second_derivative_is_refused() -> None:
    inputs = case(6, 4)
    leaf = inputs["features"].requires_grad_()
    (grad,) = torch.autograd.grad(kernel(leaf, inputs["labels"]).square(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="batch_hard_triplet: compiled kernels are differentiable once"):
        grad.sum().backward()


# Choice, registration and processors ---------------------------------------------------------------------------------


def test_auto_takes_the_kernel_on_a_cpu() -> None:
    tensors: dict[str, torch.Tensor | None] = {**case(5, 3)}
    request = ops.Request(torch.device("cpu"), tensors, {"margin": None, "metric": "cosine"})
    assert ops.operators()["batch_hard_triplet"].select(request).name == "cpu"


@metrics
def test_the_operators_pass_opcheck(metric: str) -> None:
    forward, backward = operators()
    inputs = case(5, 3, torch.float16, people=2)
    features, labels = columns_apart(inputs["features"]), inputs["labels"]
    for margin, save_statistics in ((None, False), (0.3, True)):
        torch.library.opcheck(forward, (features, labels, margin, metric, save_statistics))
    loss, skipped, *statistics = forward(features, labels, None, metric, True)
    torch.library.opcheck(backward, (torch.ones_like(loss), features, skipped, *statistics, metric))


def test_direct_calls_are_checked_before_memory_is_read() -> None:
    forward, backward = operators()
    features, labels = case(5, 3, people=2).values()
    for wrong in (
        (features[0], labels),
        (features, labels[:4]),
        (features, labels.float()),
        (labels[None], labels[:1]),
    ):
        with pytest.raises(RuntimeError, match="batch_hard_triplet"):
            forward(*wrong, None, "euclidean", True)
    with pytest.raises(RuntimeError, match="metric is cosine or euclidean"):
        forward(features, labels, None, "l1", True)
    loss, skipped, indices, *statistics = forward(features, labels, None, "euclidean", True)
    for wrong_indices, message in ((indices[:, :4], "not what a forward"), (indices + 6, "out of range")):
        with pytest.raises(RuntimeError, match=message):
            backward(loss, features, skipped, wrong_indices, *statistics, "euclidean")


@metrics
def test_a_call_compiles_into_one_graph_with_gradients(metric: str) -> None:
    inputs = case(5, 3, people=2)
    compiled = torch.compile(counted_batch_hard_triplet, fullgraph=True, backend="aot_eager")
    found = []
    for function in (counted_batch_hard_triplet, compiled):
        leaf = inputs["features"].clone().requires_grad_()
        loss, skipped = function(leaf, inputs["labels"], metric=metric, impl="cpu")
        found.append((loss, skipped, torch.autograd.grad(loss * 3, leaf)[0]))
    for got, wanted in zip(*found, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("capability", ["avx2", "baseline"])
def test_the_variants_for_older_processors_are_as_accurate(capability: str) -> None:
    tests = ["keep_the_rule", "exact", "finite_differences", "tiny", "infinity", "strides", "threads"]
    check_on_older_processors(__file__, capability, " or ".join(tests))
