"""linear_cross_entropy: the definition against F.cross_entropy on full logits, its edges, its errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from motarfuse import ops
from tests.ops.operator_cases import check_gradients, check_half_types, check_strides, normal

LABELS = torch.tensor([0, 6, -100, 3, 3])


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def preferred(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every claim holds for both; calls that name a backend get that one."""
    with ops.use_backend(request.param):
        yield request.param


def case(batch: int = 5, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    draw = normal(0)
    return draw(batch, 4), 2 * draw(classes, 4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_it_is_cross_entropy_on_full_logits(smoothing: float, ignore_index: int) -> None:
    features, weight = (tensor.requires_grad_() for tensor in case())
    labels = LABELS if ignore_index == -100 else LABELS.clamp_min(0)
    options: dict[str, Any] = {"label_smoothing": smoothing, "ignore_index": ignore_index}
    got = ops.linear_cross_entropy(features, weight, labels, **options)
    wanted = F.cross_entropy(features @ weight.T, labels, **options)
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)
    for one, other in zip(
        torch.autograd.grad(got, (features, weight)), torch.autograd.grad(wanted, (features, weight)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_it_is_the_formula_row_by_row(smoothing: float) -> None:
    features, weight = case()
    terms = []
    for feature, label in zip(features, LABELS.tolist(), strict=True):
        logits = weight @ feature
        if label != -100:
            log_sum = logits.exp().sum().log()
            terms.append(log_sum - (1 - smoothing) * logits[label] - smoothing * logits.sum() / 7)
    got = ops.linear_cross_entropy(features, weight, LABELS, label_smoothing=smoothing)
    torch.testing.assert_close(got, sum(terms, torch.zeros(()).double()) / 4, rtol=1e-12, atol=1e-12)


def test_gradients() -> None:
    check_gradients(
        lambda features, weight: ops.linear_cross_entropy(features, weight, LABELS, label_smoothing=0.1), *case()
    )


@pytest.mark.parametrize("batch", [0, 3])
def test_nothing_to_count_is_zero_with_zero_gradients(batch: int) -> None:
    features, weight = (tensor.requires_grad_() for tensor in case(batch))
    loss = ops.linear_cross_entropy(features, weight, torch.full((batch,), -100))
    assert loss.item() == 0
    loss.backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros_like(features))
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_large_logits_are_stable() -> None:
    features, weight = (tensor.float() for tensor in case())
    loss = ops.linear_cross_entropy(1e4 * features, weight, LABELS)
    torch.testing.assert_close(loss, F.cross_entropy(1e4 * features @ weight.T, LABELS))


def test_one_class_costs_nothing() -> None:
    features, weight = case(classes=1)
    assert ops.linear_cross_entropy(features, weight, torch.zeros(5, dtype=torch.int64)).abs() < 1e-15


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    features, weight = case()
    labels = LABELS.clamp_min(0)
    expected = ops.linear_cross_entropy(features, weight, labels)
    assert torch.equal(ops.linear_cross_entropy(features, weight, labels.to(dtype)), expected)


def test_other_strides_and_half_types() -> None:
    call = lambda features, weight: ops.linear_cross_entropy(features, weight, LABELS)  # noqa: E731
    check_strides(call, *case())
    check_half_types(call, *case())
    features, weight = case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ops.linear_cross_entropy(features.bfloat16(), weight.float(), LABELS)
    assert torch.equal(inside, ops.linear_cross_entropy(features.bfloat16().float(), weight.float(), LABELS))


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"features": torch.zeros(4)}, ValueError, r"features must be \(B, D\)"),
    ({"weight": torch.zeros(7, 3)}, ValueError, r"weight must be \(C, D\) = \(7, 4\)"),
    ({"weight": torch.zeros(0, 4)}, ValueError, "at least one row"),
    ({"weight": torch.zeros(7, 4).double()}, TypeError, "float64 cannot be mixed"),
    ({"labels": LABELS[:4]}, ValueError, r"labels must be \(B,\) = \(5,\)"),
    ({"labels": LABELS.float()}, TypeError, "labels has dtype float32"),
    ({"labels": [1, 2, 3, 4, 5]}, TypeError, "labels must be a torch.Tensor, got list"),
    ({"labels": LABELS.to("meta")}, ValueError, "labels is on meta"),
    ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must lie in \[0, 1\], got 1.5"),
    ({"label_smoothing": None}, TypeError, "label_smoothing must be a Python number"),
    ({"impl": "x"}, ValueError, "no impl 'x'"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_call_says_what_was_got_and_what_is_supported(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    features, weight = case()
    arguments: dict[str, Any] = {"features": features.float(), "weight": weight.float(), "labels": LABELS}
    with pytest.raises(error, match=message):
        ops.linear_cross_entropy(**(arguments | change))


def test_a_loss_that_is_not_a_number_is_not_taken_for_nothing_to_count() -> None:
    features, weight = case()
    features[1, 0] = torch.nan
    assert ops.linear_cross_entropy(features, weight, LABELS).isnan()
    assert ops.linear_cross_entropy(features[2:3], weight, LABELS[2:3]).item() == 0


def test_the_short_way_on_a_cpu_says_what_it_does_not_take() -> None:
    features, weight = (tensor.float() for tensor in case())
    run = partial(ops.linear_cross_entropy, impl="cpu")
    assert torch.equal(run(features, weight, LABELS), F.cross_entropy(F.linear(features, weight), LABELS))
    with pytest.raises(RuntimeError, match="computes in the dtype of features and weight, and takes int64 labels"):
        run(features.half(), weight.half(), LABELS)
    with pytest.raises(RuntimeError, match="takes int64 labels"):
        run(features, weight, LABELS.int())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="autocast would round"):
        run(features, weight, LABELS)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (features, weight, LABELS)]
        assert ops.linear_cross_entropy(*fakes).shape == ()


def test_where_a_value_cannot_be_asked_for_auto_takes_the_definition() -> None:
    features, weight = (tensor.float() for tensor in case())
    nothing = torch.full_like(LABELS, -100)
    compiled = torch.compile(ops.linear_cross_entropy, fullgraph=True, backend="eager")
    assert compiled(features, weight, nothing).item() == 0
    rows = torch.func.vmap(lambda row: ops.linear_cross_entropy(row[None], weight, LABELS[:1]))(features)
    wanted = torch.stack([F.cross_entropy(row[None] @ weight.T, LABELS[:1]) for row in features])
    torch.testing.assert_close(rows, wanted)


def test_a_traced_graph_holds_for_other_labels() -> None:
    features, weight = (tensor.float() for tensor in case())
    nothing = torch.full_like(LABELS, -100)

    def call(features: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return ops.linear_cross_entropy(features, weight, labels)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(call, (features, weight, LABELS))
    assert traced(features, weight, nothing).item() == 0
    graph = make_fx(call, tracing_mode="real")(features, weight, LABELS)
    assert graph(features, weight, nothing).item() == 0
