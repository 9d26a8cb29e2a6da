"""The Triton kernels of batch_hard_triplet by the tolerance rule: in the interpreter, on a GPU where there is one.

The interpreter shows indices, masks and formulas; bfloat16 and speed it cannot show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from motarfuse.kernels import batch_hard_triplet as kernels

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
    Inputs,
    every_second,
    expanded_over_the_batch,
    expanded_over_the_last,
    layout_name,
    misaligned,
)
from tests.ops.triton_cases import DEVICE, GPU, INTERPRETER, Backend, backends, here

metrics = pytest.mark.parametrize("metric", METRICS)
# The interpreter's bf16 arithmetic is wrong.
dtypes = pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        pytest.param(*backend.values, dtype, id=f"{backend.id}-{dtype}", marks=backend.marks)
        for backend in (INTERPRETER, GPU)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        if backend is GPU or dtype != torch.bfloat16
    ],
)
SMALL_TILES = kernels.MiningTiles(8, 8, 64)


def triton(features: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
    return ops.batch_hard_triplet(features, labels, impl="triton", **options)


def operators() -> tuple[Any, Any]:
    namespace = torch.ops.motarfuse
    return namespace.batch_hard_triplet_forward_triton.default, namespace.batch_hard_triplet_backward_triton.default


def chosen(features: torch.Tensor, labels: torch.Tensor, metric: str) -> cases.Indices:
    return cases.chosen(operators()[0], features.to(DEVICE), labels.to(DEVICE), metric)


@dtypes
@metrics
@pytest.mark.parametrize(("batch", "dim"), [(2, 5), (7, 1), (9, 65), (17, 130), (8, 384)])
def test_losses_and_gradients_keep_the_rule(
    backend: Backend, dtype: torch.dtype, metric: str, batch: int, dim: int
) -> None:
    check(backend, case(batch, dim, dtype), metric=metric)


@backends
@metrics
@pytest.mark.parametrize("margin", [0.0, 0.3, 40.0])
def test_margins(backend: Backend, metric: str, margin: float) -> None:
    """With the first two some anchors keep it, with the last none does."""
    inputs = case(14, 20)
    inputs["features"][:] = (
        torch.linspace(0.02, 0.6, 14)[:, None] * inputs["features"] + torch.eye(20)[inputs["labels"]]
    )
    check(backend, inputs, margin=margin, metric=metric)


@backends
@pytest.mark.parametrize("spread", [0.5, 8.0])
def test_anchors_far_on_the_right_side_keep_their_small_terms(backend: Backend, spread: float) -> None:
    inputs = case(8, 30, people=2)
    inputs["features"] += 10 * spread * inputs["labels"][:, None]
    check(backend, inputs)


@backends
@metrics
def test_tiles_of_large_batches(backend: Backend, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of anchors, shares and tiles in one; blocks of the loss; chunks and windows of the backward."""
    monkeypatch.setattr(kernels, "BUSY", 1)
    monkeypatch.setattr(kernels, "MAX_SPLITS", 2)
    monkeypatch.setattr(kernels, "LOSS_TILE", 32)
    monkeypatch.setattr(kernels, "backward_tiles", lambda dim: kernels.BackwardTiles(64, 16, 2, 1))
    check(backend, case(35, 70, people=5), metric=metric)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@metrics
@pytest.mark.parametrize(
    ("batch", "dim"), [(1, 3), (63, 384), (65, 768), (129, 1000), (256, 768), (600, 1001), (1032, 2048), (2048, 4096)]
)
def test_large_inputs_keep_the_rule_on_a_gpu(dtype: torch.dtype, metric: str, batch: int, dim: int) -> None:
    check(("triton", "cuda"), case(batch, dim, dtype), metric=metric)


@pytest.mark.gpu
def test_the_largest_inputs_run_on_a_gpu() -> None:
    """Features of more than 2^31 elements in memory, of which every second column is taken."""
    features = torch.randn(16384, 2**18, device="cuda", dtype=torch.float16)[:, : 2**13 : 2].requires_grad_()
    labels = torch.arange(16384, device="cuda") // 4
    triton(features, labels).backward()
    assert features.grad is not None
    positive, _ = chosen(features.detach(), labels, "euclidean")
    for row in (0, 16383):
        friends = features.detach()[row // 4 * 4 : row // 4 * 4 + 4].double()
        assert positive[row] % 4 == (friends - friends[row % 4]).norm(dim=1).argmax().item()


# Which pairs ---------------------------------------------------------------------------------------------------------


@here
@metrics
def test_pairs_are_those_of_the_exact_distances(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for tiles in (SMALL_TILES, kernels.MiningTiles(16, 16, 32)):
        monkeypatch.setattr(kernels, "mining_tiles", lambda batch, tiles=tiles: tiles)
        # Far from zero: a product of matrices in float32 would lose these distances.
        inputs = case(33, 40, seed=3)
        inputs["features"] = inputs["features"] * 1e-3 + 1
        inputs["labels"][4] = 99
        wanted = expected(inputs["features"].double(), inputs["labels"], metric)
        assert chosen(**inputs, metric=metric) == wanted
        assert wanted[0][4] == wanted[1][4] == -1


@here
@metrics
@pytest.mark.parametrize("max_splits", [1, 32])
def test_of_exact_duplicates_the_first_is_taken(metric: str, max_splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie in one tile, in tiles of one share, and in several shares."""
    monkeypatch.setattr(kernels, "MAX_SPLITS", max_splits)
    monkeypatch.setattr(kernels, "mining_tiles", lambda batch: SMALL_TILES)
    generator = torch.Generator().manual_seed(5)
    people = torch.randn(4, 70, generator=generator)
    which = torch.randint(0, 4, (30,), generator=generator)
    found = chosen(people[which], which // 2, metric)
    assert_the_first_of_duplicates(found, which)
    assert found == expected(people[which].double(), which // 2, metric)


@backends
def test_equal_features_have_zero_gradients_not_infinite_ones(backend: Backend) -> None:
    inputs = {"features": torch.ones(9, 3), "labels": torch.arange(9) // 3}
    found = outputs_and_gradients({name: one.to(backend[1]) for name, one in inputs.items()}, backend[0])
    assert torch.equal(found["grad_features"], torch.zeros_like(found["grad_features"]))
    check(backend, inputs)
    # Distances below 1e-6 have none either, though features differ.
    check(backend, {**inputs, "features": 1e-8 * case(9, 3)["features"]})


@backends
@metrics
def test_what_nearly_all_anchors_choose_collects_their_gradients(backend: Backend, metric: str) -> None:
    """One feature of another person amid those of one, and a far one of theirs: both are chosen by all others."""
    inputs = case(12, 6, people=1)
    inputs["features"][7] = inputs["features"].mean(0)
    inputs["labels"][7] = 5
    inputs["features"][3] = -4 * inputs["features"][3]
    inputs["labels"][0] = 5
    check(backend, inputs, metric=metric)


@backends
def test_zero_and_tiny_vectors_under_the_cosine(backend: Backend) -> None:
    """Zero vectors have cosine 0 with all; vectors below 1e-12 are divided by 1e-12, and so are their gradients."""
    for scale in (0.0, 1e-13, 0.9e-12):
        inputs = case(11, 6, people=3)
        inputs["features"][[2, 5, 6]] *= scale / inputs["features"][[2, 5, 6]].norm(dim=1, keepdim=True)
        check(backend, inputs, metric="cosine")
        assert chosen(**inputs, metric="cosine") == expected(inputs["features"], inputs["labels"], "cosine")


@here
@metrics
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("row", [0, 10])
def test_a_nan_reaches_the_loss_and_so_does_an_infinity(metric: str, row: int, value: float) -> None:
    inputs = case(11, 6, people=3)
    inputs["features"][row, 2] = value
    found = outputs_and_gradients({name: one.to(DEVICE) for name, one in inputs.items()}, "triton", metric=metric)
    assert found["loss"].isnan()
    labels = inputs["labels"].tolist()
    positive = chosen(**inputs, metric=metric)[0]
    assert all(positive[k] == row for k in range(11) if k != row and labels[k] == labels[row])


@here
@pytest.mark.parametrize("margin", [None, 0.3])
def test_negatives_at_infinity_are_negatives(margin: float | None) -> None:
    assert chosen(**overflowing(), metric="euclidean") == ([1, 0, 3, 2], [2, 2, 0, 0])
    inputs = {name: tensor.to(DEVICE) for name, tensor in overflowing().items()}
    found = outputs_and_gradients(inputs, "triton", margin=margin)
    for name in ("loss", "grad_features"):
        assert torch.equal(found[name], torch.zeros_like(found[name])), name


@here
@metrics
def test_distances_beyond_float16_do_not_overflow(metric: str) -> None:
    inputs = case(8, 64, torch.float16)
    inputs["features"] *= 1000
    check(("triton", DEVICE), inputs, metric=metric)


# Layouts -------------------------------------------------------------------------------------------------------------


@dtypes
@metrics
@pytest.mark.parametrize(
    "layout",
    [every_second, columns_apart, expanded_over_the_batch, expanded_over_the_last, misaligned],
    ids=layout_name,
)
def test_views_with_other_strides_are_taken_as_they_are(
    backend: Backend, dtype: torch.dtype, metric: str, layout: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    inputs = case(9, 24, dtype)
    inputs["features"] = layout(inputs["features"])
    check(backend, inputs, metric=metric)
    result = outputs_and_gradients({n: t.to(backend[1]) for n, t in inputs.items()}, backend[0], metric=metric)
    assert result["grad_features"].stride() == torch.empty_like(inputs["features"]).stride()


@backends
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_labels_of_any_integers_and_strides(backend: Backend, dtype: torch.dtype) -> None:
    inputs = case(9, 4)
    labels = (inputs["labels"] + 1).to(dtype).repeat_interleave(3)[::3]
    check(backend, {**inputs, "labels": labels})


@here
def test_labels_are_compared_in_full_width() -> None:
    labels = torch.tensor([0, 2**32, 0, 2**32, 2**40, 2**40])
    features = case(6, 4)["features"]
    assert chosen(features, labels, "euclidean") == expected(features, labels, "euclidean")


@backends
@metrics
@pytest.mark.parametrize("labels", [[], [3], [0, 0, 0], [0, 1, 2], [0, 0, 1]], ids=str)
def test_anchors_without_a_pair(backend: Backend, metric: str, labels: list[int]) -> None:
    inputs = {"features": case(len(labels), 5)["features"], "labels": torch.tensor(labels, dtype=torch.int64)}
    check(backend, inputs, metric=metric)
    moved = {name: tensor.to(backend[1]) for name, tensor in inputs.items()}
    found = counted_batch_hard_triplet(moved["features"], moved["labels"], metric=metric, impl=backend[0])
    assert found.skipped.dtype == torch.int64
    assert found.skipped.item() == {0: 0, 1: 1, 3: 1 if labels == [0, 0, 1] else 3}[len(labels)]


@backends
@metrics
def test_features_of_no_columns(backend: Backend, metric: str) -> None:
    check(backend, {"features": torch.zeros(4, 0), "labels": torch.tensor([0, 0, 1, 1])}, metric=metric)


# Gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(DEVICE == "cuda", reason="float64 is interpreted only")
@metrics
@pytest.mark.parametrize("margin", [None, 0.25])
def test_derivatives_are_those_of_finite_differences(metric: str, margin: float | None) -> None:
    inputs = case(7, 3, torch.float64, people=2)
    leaf = inputs["features"].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda features: triton(features, inputs["labels"], margin=margin, metric=metric), leaf, fast_mode=True
    )


@here
@metrics
def test_two_runs_are_bitwise_equal_and_a_call_without_gradients_is_too(metric: str) -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(11, 33).items()}
    first, second = (outputs_and_gradients(inputs, "triton", metric=metric) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    plain = counted_batch_hard_triplet(inputs["features"], inputs["labels"], metric=metric, impl="triton")
    assert torch.equal(plain.loss, first["loss"][0])
    assert not plain.loss.requires_grad


@here
def test_the_second_derivative_is_refused() -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(6, 4).items()}
    leaf = inputs["features"].requires_grad_()
    (grad,) = torch.autograd.grad(triton(leaf, inputs["labels"]).square(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="batch_hard_triplet: compiled kernels are differentiable once"):
        grad.sum().backward()


# Choice and registration ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(DEVICE == "cuda", reason="nothing is interpreted on a GPU")
def test_the_interpreter_refuses_bfloat16_and_auto_never_takes_it() -> None:
    with pytest.raises(RuntimeError, match="interpreter cannot compute in bfloat16"):
        triton(**case(5, 3, torch.bfloat16))
    tensors: dict[str, torch.Tensor | None] = {**case(5, 3)}
    request = ops.Request(torch.device("cpu"), tensors, {"margin": None, "metric": "cosine"})
    assert ops.operators()["batch_hard_triplet"].select(request).name != "triton"


@here
@metrics
def test_the_operators_pass_opcheck(metric: str) -> None:
    forward, backward = operators()
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(5, 3, torch.float16, people=2).items()}
    features, labels = columns_apart(inputs["features"]), inputs["labels"]
    for margin, save_statistics in ((None, False), (0.3, True)):
        torch.library.opcheck(forward, (features, labels, margin, metric, save_statistics))
    loss, skipped, *statistics = forward(features, labels, None, metric, True)
    torch.library.opcheck(backward, (torch.ones_like(loss), features, skipped, *statistics, metric))


@here
@metrics
def test_a_call_compiles_into_one_graph_with_gradients(metric: str) -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(5, 3, people=2).items()}
    compiled = torch.compile(counted_batch_hard_triplet, fullgraph=True, backend="aot_eager")
    found = []
    for function in (counted_batch_hard_triplet, compiled):
        leaf = inputs["features"].clone().requires_grad_()
        loss, skipped = function(leaf, inputs["labels"], metric=metric, impl="triton")
        found.append((loss, skipped, torch.autograd.grad(loss * 3, leaf)[0]))
    for got, wanted in zip(*found, strict=True):
        assert torch.equal(got, wanted)


@here
def test_an_exported_program_calls_one_operator() -> None:
    class Loss(torch.nn.Module):
        def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return triton(features, labels, metric="cosine")

    inputs = tuple(tensor.to(DEVICE) for tensor in case(5, 3).values())
    program = torch.export.export(Loss(), inputs)
    assert "batch_hard_triplet_forward_triton" in str(program.graph)
    assert torch.equal(program.module()(*inputs), Loss()(*inputs))


@pytest.mark.gpu
@metrics
def test_a_cuda_graph_captures_forward_and_backward(metric: str) -> None:
    inputs: Inputs = {name: tensor.cuda() for name, tensor in case(128, 768, torch.bfloat16).items()}
    leaf = inputs["features"].requires_grad_()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        (wanted,) = torch.autograd.grad(triton(leaf, inputs["labels"], metric=metric), leaf)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            (captured,) = torch.autograd.grad(triton(leaf, inputs["labels"], metric=metric), leaf)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, wanted)
