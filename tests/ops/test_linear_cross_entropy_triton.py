"""The Triton kernels of linear_cross_entropy by the tolerance rule: in the interpreter, on a GPU where there is one.

The interpreter shows indices, masks, formulas and what float16 rounds; precision of float32's products, bfloat16 and
speed it cannot show.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import triton.language as tl
from motarfuse.kernels import linear_cross_entropy as kernels
from torch.utils._python_dispatch import TorchDispatchMode

from motarfuse import ops
from tests.ops.kernel_cases import (
    Inputs,
    every_second,
    expanded_over_the_batch,
    expanded_over_the_last,
    layout_name,
    misaligned,
    transposed,
)
from tests.ops.linear_cross_entropy_cases import IGNORED, case, check, outputs_and_gradients
from tests.ops.triton_cases import DEVICE, GPU, INTERPRETER, Backend, backends, here


def of_dtypes(*pairs: tuple[torch.dtype, torch.dtype]) -> Any:
    """Of features and of weight. The interpreter's bf16 arithmetic is wrong."""
    return pytest.mark.parametrize(
        ("backend", "dtype", "weight_dtype"),
        [
            pytest.param(*backend.values, *pair, id=f"{backend.id}-{pair[0]}-{pair[1]}", marks=backend.marks)
            for backend in (INTERPRETER, GPU)
            for pair in pairs
            if backend is GPU or torch.bfloat16 not in pair
        ],
    )


same = of_dtypes(*((dtype, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)))
mixed = of_dtypes(
    (torch.float16, torch.float32), (torch.float32, torch.float16), (torch.bfloat16, torch.float32),
    (torch.float16, torch.bfloat16),
)  # fmt: skip


def triton(features: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
    return ops.linear_cross_entropy(features, weight, labels, impl="triton", **options)


def _forward_and_backward() -> tuple[Any, Any]:
    namespace = torch.ops.motarfuse
    return namespace.linear_cross_entropy_forward_triton.default, namespace.linear_cross_entropy_backward_triton.default


def _on_device(inputs: Inputs) -> Inputs:
    return {name: tensor.to(DEVICE) for name, tensor in inputs.items()}


# Rows, classes, width.
@same
@pytest.mark.parametrize(
    ("rows", "classes", "width"),
    [(1, 1, 1), (1, 7, 3), (7, 63, 5), (63, 64, 65), (64, 65, 16), (65, 129, 33), (3, 300, 48), (129, 7, 130)],
)
def test_loss_and_gradients_keep_the_rule(
    backend: Backend, dtype: torch.dtype, weight_dtype: torch.dtype, rows: int, classes: int, width: int
) -> None:
    check(backend, case(rows, classes, width, dtype, weight_dtype=weight_dtype), smoothing=0.1 * (rows % 2))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rows", "classes", "width"),
    [(64, 751, 768), (256, 10_000, 768), (1000, 3000, 384), (1, 1_000_000, 32), (16_384, 129, 63), (200, 5000, 4096)],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_large_inputs_keep_the_rule_on_a_gpu(
    dtype: torch.dtype, rows: int, classes: int, width: int, smoothing: float
) -> None:
    check(("triton", "cuda"), case(rows, classes, width, dtype), smoothing=smoothing)


@mixed
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_features_and_weight_may_have_two_dtypes(
    backend: Backend, dtype: torch.dtype, weight_dtype: torch.dtype, smoothing: float
) -> None:
    check(backend, case(65, 40, 33, dtype, weight_dtype=weight_dtype), smoothing=smoothing)


@same
@pytest.mark.parametrize("busy", [1, 3])
@pytest.mark.parametrize(("rows", "classes"), [(200, 100), (70, 300)])
def test_a_program_may_go_through_many_tiles(
    backend: Backend,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    rows: int,
    classes: int,
    busy: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of inputs that are large enough to keep a GPU busy; sums of gradients wait in memory between tiles."""
    monkeypatch.setattr(kernels, "BUSY", busy)
    check(backend, case(rows, classes, 70, dtype, weight_dtype=weight_dtype), smoothing=0.1)


@backends
def test_tiles_of_every_gpu_keep_the_rule(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    for architecture in (80, 90, 100):
        monkeypatch.setattr(kernels, "architecture_of", lambda _, architecture=architecture: architecture)
        check(backend, case(100, 140, 64, torch.float16), smoothing=0.1)


@backends
def test_rows_that_are_sure_of_their_label_keep_their_digits(backend: Backend) -> None:
    """1 - p of the label is all there is: beside logarithms of sums as large as logits nothing of it would be left."""
    inputs = {name: tensor.to(backend[1]) for name, tensor in case(40, 50, 128, sure=1.0).items()}
    exact = outputs_and_gradients({n: t.double() if t.dtype.is_floating_point else t for n, t in inputs.items()},
                                  "reference")  # fmt: skip
    assert exact["out"] < 1e-5
    for name, value in outputs_and_gradients(inputs, "triton").items():
        torch.testing.assert_close(value.double(), exact[name], rtol=0, atol=0.02 * exact[name].abs().max().item())


@same
def test_large_logits_are_stable(backend: Backend, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    check(backend, case(9, 130, 20, dtype, weight_dtype=weight_dtype, spread=300.0), smoothing=0.1)


@of_dtypes((torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16))
def test_a_small_share_of_many_classes_does_not_vanish_in_half_types(
    backend: Backend, dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    """e / C is 3e-6, at the lower end of float16, and weights have a mean that all classes' shares add up to."""
    inputs = case(4, 3000, 16, dtype, spread=0.0)
    draw = torch.randn(3000, 16, generator=torch.Generator().manual_seed(2))
    inputs["weight"] = (1 + 0.1 * draw).to(weight_dtype)
    sure = torch.arange(4)
    inputs["labels"] = sure
    inputs["features"] = torch.eye(16)[:4].to(dtype) * 8
    inputs["weight"][:4] = torch.eye(16)[:4].to(weight_dtype) * 6
    check(backend, inputs, smoothing=0.01)


# Labels --------------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("ignore_index", [-100, 3, 2**40])
def test_ignored_labels_are_left_out(backend: Backend, ignore_index: int) -> None:
    inputs = case(20, 6, 8)
    inputs["labels"] = torch.arange(20) % 6
    inputs["labels"][5] = ignore_index
    for smoothing in (0.0, 0.1):
        check(backend, inputs, smoothing=smoothing, ignore_index=ignore_index)


@here
@pytest.mark.parametrize("rows", [0, 5, 70])
def test_nothing_to_count_is_zero_with_zero_gradients(rows: int) -> None:
    inputs = _on_device(case(rows, 7, 40, torch.float16))
    inputs["labels"].fill_(IGNORED)
    for name, value in outputs_and_gradients(inputs, "triton", smoothing=0.1).items():
        assert torch.equal(value, torch.zeros_like(value)), name


@here
@pytest.mark.parametrize("label", [-1, 7, 2**32, 2**32 + 2, -(2**63)])
def test_a_label_that_is_no_class_gives_nan(label: int) -> None:
    inputs = _on_device(case(5, 7, 8))
    inputs["labels"] = torch.tensor([0, label, 3, IGNORED, 6], device=DEVICE)
    found = outputs_and_gradients(inputs, "triton")
    assert found["out"].isnan()
    assert found["grad_features"].isnan().all(1).tolist() == [False, True, False, False, False]
    assert found["grad_weight"].isnan().all()


@here
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_labels_of_any_integer_type_and_stride(dtype: torch.dtype) -> None:
    inputs = _on_device(case(9, 200, 8))
    labels = torch.arange(18, device=DEVICE) * 7
    inputs["labels"] = labels[::2]
    expected = outputs_and_gradients(inputs, "triton")
    found = outputs_and_gradients({**inputs, "labels": labels.to(dtype)[::2]}, "triton")
    for name, value in found.items():
        assert torch.equal(value, expected[name])


@here
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_byte_is_never_an_ignored_label_below_zero(impl: str) -> None:
    """156 is -100 in eight bits."""
    inputs = _on_device(case(3, 200, 8))
    inputs["labels"] = torch.tensor([156, 3, 5], device=DEVICE)
    expected = outputs_and_gradients(inputs, "reference")["out"]
    inputs["labels"] = inputs["labels"].to(torch.uint8)
    torch.testing.assert_close(outputs_and_gradients(inputs, impl)["out"], expected)


# Layouts -------------------------------------------------------------------------------------------------------------


def _as_a_column(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of a wider tensor."""
    return torch.cat((tensor, tensor), 1)[:, : tensor.shape[1]]


@same
@pytest.mark.parametrize("width", [5, 64])
@pytest.mark.parametrize(
    "layout",
    [transposed, every_second, misaligned, _as_a_column, expanded_over_the_batch, expanded_over_the_last],
    ids=layout_name,
)
def test_views_with_other_strides_are_taken_as_they_are(
    backend: Backend,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    width: int,
    layout: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    inputs = case(70, 66, width, dtype, weight_dtype=weight_dtype)
    # Gradients of features are rounding errors alone where all rows of the weight are one.
    of_weight = expanded_over_the_last if layout is expanded_over_the_batch else layout
    for name, own in (("features", layout), ("weight", of_weight)):
        inputs[name] = own(inputs[name].to(backend[1]))
    inputs["labels"] = inputs["labels"].to(backend[1])
    strides = {name: tensor.stride() for name, tensor in inputs.items()}
    check(backend, inputs, smoothing=0.1)
    result = outputs_and_gradients(inputs, backend[0])
    for name in ("features", "weight"):
        assert inputs[name].stride() == strides[name]
        assert result[f"grad_{name}"].stride() == torch.empty_like(inputs[name]).stride()


@backends
def test_places_far_apart_are_counted_in_64_bits(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.empty(3, dtype=torch.int64, device="meta")
    for strides, index in (((8, 1), tl.int32), ((2**23, 1), tl.int64), ((1, 2**23), tl.int64)):
        features = torch.empty_strided((3, 4), strides, device="meta")
        assert kernels.Problem(features, torch.empty(5, 4, device="meta"), labels, 0.0).index == index
        assert kernels.Problem(torch.empty(5, 4, device="meta"), features, labels, 0.0).index == index
    monkeypatch.setattr(kernels, "FAR", 0)
    check(backend, case(70, 66, 40), smoothing=0.1)


# Gradients -----------------------------------------------------------------------------------------------------------


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("busy", [1, 264])
def test_a_gradient_alone_is_the_one_of_both(dtype: torch.dtype, busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BUSY", busy)
    forward, backward = _forward_and_backward()
    features, weight, labels = _on_device(case(70, 140, 40, dtype)).values()
    loss, count, statistics = forward(features, weight, labels, 0.1, IGNORED)
    arguments = (torch.ones_like(loss), features, weight, labels, count, statistics, 0.1)
    both = backward(*arguments, True, True)
    for index, needs in enumerate([(True, False), (False, True)]):
        alone = backward(*arguments, *needs)
        assert torch.equal(alone[index], both[index])
        assert alone[1 - index].numel() == 0


@here
@pytest.mark.parametrize("name", ["features", "weight"])
def test_only_gradients_that_are_asked_for_are_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    launches = kernels.backward_launches

    def counting(*arguments: Any) -> Any:
        made.append(arguments[-1])
        return launches(*arguments)

    monkeypatch.setattr(kernels, "backward_launches", counting)
    inputs = _on_device(case(5, 6, 7))
    inputs[name].requires_grad_()
    triton(**inputs).backward()
    assert made == [name == "weight"]
    assert [tensor.grad is not None for tensor in inputs.values()] == [name == "features", name == "weight", False]


@backends
def test_two_runs_are_bitwise_equal(backend: Backend) -> None:
    for dtype in (torch.float32, torch.float16):
        inputs = {name: tensor.to(backend[1]) for name, tensor in case(65, 70, 40, dtype).items()}
        first, second = (outputs_and_gradients(inputs, "triton", smoothing=0.1) for _ in range(2))
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


@here
def test_the_loss_is_that_of_a_call_without_gradients() -> None:
    inputs = _on_device(case(65, 70, 40, torch.float16))
    assert torch.equal(triton(**inputs)[None], outputs_and_gradients(inputs, "triton")["out"])


@pytest.mark.skipif(DEVICE == "cuda", reason="float64 is interpreted only")
@pytest.mark.parametrize("smoothing", [0.0, 0.125])
def test_derivatives_are_those_of_finite_differences(smoothing: float) -> None:
    inputs = case(5, 9, 3, torch.float64)
    leaves = [inputs[name].requires_grad_() for name in ("features", "weight")]
    call = partial(triton, labels=inputs["labels"], label_smoothing=smoothing)
    assert torch.autograd.gradcheck(lambda *tensors: call(*tensors), leaves, fast_mode=True)


@pytest.mark.skipif(DEVICE == "cuda", reason="float64 is interpreted only")
def test_float64_is_exact_in_the_interpreter() -> None:
    check(("triton", "cpu"), case(70, 66, 40, torch.float64), smoothing=0.125)


@here
def test_the_second_derivative_is_refused() -> None:
    inputs = _on_device(case(5, 6, 7))
    inputs["features"].requires_grad_()
    (grad,) = torch.autograd.grad(triton(**inputs), inputs["features"], create_graph=True)
    with pytest.raises(RuntimeError, match="linear_cross_entropy: compiled kernels are differentiable once"):
        grad.sum().backward()


# Edges ---------------------------------------------------------------------------------------------------------------


@here
def test_no_columns_are_logits_of_zero() -> None:
    inputs = _on_device(case(5, 6, 0))
    for name, expected in outputs_and_gradients(inputs, "reference", smoothing=0.1).items():
        torch.testing.assert_close(outputs_and_gradients(inputs, "triton", smoothing=0.1)[name], expected)


class _Largest(TorchDispatchMode):
    """The most numbers in a tensor that a call allocates."""

    size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.size = max(self.size, result.numel())
        return result


@here
def test_logits_are_never_stored() -> None:
    inputs = _on_device(case(64, 2000, 2, torch.float16))
    for name in ("features", "weight"):
        inputs[name].requires_grad_()
    with _Largest() as largest:
        triton(**inputs).backward()
    assert 2000 * 2 <= largest.size <= 2000 * 2 * 2


@pytest.mark.skipif(DEVICE == "cuda", reason="nothing is interpreted on a GPU")
def test_the_interpreter_refuses_bfloat16() -> None:
    for inputs in (case(5, 6, 7, torch.bfloat16), case(5, 6, 7, weight_dtype=torch.bfloat16)):
        with pytest.raises(RuntimeError, match="interpreter cannot compute in bfloat16"):
            triton(**inputs)


@pytest.mark.parametrize(("device", "takes"), [("cuda", True), ("cpu", False)])
def test_auto_takes_the_kernels_on_a_gpu_and_never_the_interpreter(device: str, takes: bool) -> None:
    inputs: dict[str, torch.Tensor | None] = {n: tensor.to("meta") for n, tensor in case(5, 6, 7).items()}
    request = ops.Request(torch.device(device), inputs, {"label_smoothing": 0.0, "ignore_index": IGNORED})
    operator = ops.operators()["linear_cross_entropy"]
    assert next(iter(operator.backends)) == "triton"
    assert (not operator.backends["triton"].auto_reasons(request)) == takes
    if not takes:
        assert operator.select(request).name == "cpu"


# The registered operators --------------------------------------------------------------------------------------------


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_operators_pass_opcheck(dtype: torch.dtype) -> None:
    forward, backward = _forward_and_backward()
    inputs = _on_device(case(5, 6, 7, dtype))
    tensors = (transposed(inputs["features"]), transposed(inputs["weight"]), inputs["labels"])
    torch.library.opcheck(forward, (*tensors, 0.1, IGNORED))
    loss, count, statistics = forward(*tensors, 0.1, IGNORED)
    for needs in ((True, True), (True, False), (False, True), (False, False)):
        torch.library.opcheck(backward, (torch.ones_like(loss), *tensors, count, statistics, 0.1, *needs))


@here
def test_a_call_compiles_into_one_graph_with_gradients() -> None:
    inputs = _on_device(case(9, 12, 7))
    compiled = torch.compile(triton, fullgraph=True, backend="aot_eager")
    found = []
    for function in (triton, compiled):
        leaves = {name: inputs[name].clone().requires_grad_() for name in ("features", "weight")}
        loss = function(**leaves, labels=inputs["labels"], label_smoothing=0.1)
        found.append((loss, *torch.autograd.grad(loss.square(), list(leaves.values()))))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted)


class _Module(torch.nn.Module):
    def forward(self, features: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return triton(features, weight, labels)


@here
def test_export_keeps_it_as_one_operator() -> None:
    rows = torch.export.Dim("rows", min=2, max=64)
    inputs = tuple(_on_device(case(9, 12, 7)).values())
    program = torch.export.export(_Module(), inputs, dynamic_shapes=({0: rows}, None, {0: rows}))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert _forward_and_backward()[0] in targets
    others = tuple(_on_device(case(20, 12, 7, seed=1)).values())
    assert torch.equal(program.module()(*others), triton(*others))


@here
def test_torch_func_transforms_are_refused() -> None:
    inputs = _on_device(case(5, 6, 7))
    with pytest.raises(RuntimeError, match=r"torch\.func transforms"):
        torch.func.grad(lambda features: triton(features, inputs["weight"], inputs["labels"]))(inputs["features"])


@pytest.mark.gpu
def test_a_cuda_graph_captures_forward_and_backward() -> None:
    """Nothing waits for the device."""
    inputs = {name: tensor.cuda() for name, tensor in case(64, 751, 768, torch.bfloat16).items()}
    leaves = [inputs[name].requires_grad_() for name in ("features", "weight")]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = torch.autograd.grad(triton(**inputs), leaves)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = torch.autograd.grad(triton(**inputs), leaves)
    graph.replay()
    torch.cuda.synchronize()
    for got, wanted in zip(captured, expected, strict=True):
        assert torch.equal(got, wanted)
