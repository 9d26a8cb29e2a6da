"""The C++ kernels of gated_fusion by the tolerance rule; rows and their layouts are shared with add_layer_norm's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from motarfuse import ops
from tests.ops.add_layer_norm_cases import LAYOUTS, VIEWS
from tests.ops.gated_fusion_cases import TOKENS, case, check, map_tokens, outputs_and_gradients
from tests.ops.kernel_cases import (
    Layout,
    check_on_older_processors,
    every_second,
    layout_name,
    needs_native,
    transposed,
)

pytestmark = needs_native
BACKEND = ("cpu", "cpu")
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
dtypes = pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
MIXED = [{name: F32} for name in (*TOKENS, "weight")] + [{"weight": F32, "bias": F32}]


def kernel(**inputs: Any) -> torch.Tensor:
    return ops.gated_fusion(**inputs, impl="cpu")


def operators() -> tuple[Any, Any]:
    namespace = torch.ops.motarfuse
    return namespace.gated_fusion_forward.default, namespace.gated_fusion_backward.default


@dtypes
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1), (3, 7), (2, 3, 1), (2, 9, 63), (2, 4, 64), (1, 5, 65), (2, 3, 129), (2, 2, 2, 100), (7, 138),
        (1, 3, 768), (3, 1000), (2, 197, 384), (5, 211, 64), (2, 65, 1104), (1, 3, 4097), (40, 17, 300),
    ],
    ids=str,
)  # fmt: skip
def test_outputs_and_gradients_keep_the_rule(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check(BACKEND, case(*shape, dtype=dtype))


@pytest.mark.parametrize("half", [F16, BF16], ids=str)
@pytest.mark.parametrize("kinds", MIXED, ids=lambda kinds: "-".join(kinds))
def test_float32_beside_half_types_keeps_the_rule(half: torch.dtype, kinds: dict[str, torch.dtype]) -> None:
    check(BACKEND, case(2, 3, 72, dtype=half, kinds=kinds))


@dtypes
def test_rows_with_a_large_common_offset_keep_the_rule(dtype: torch.dtype) -> None:
    inputs = case(2, 3, 100, dtype=dtype)
    check(BACKEND, {**inputs, "x": torch.full_like(inputs["x"], 9984.0)})


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("size", [30.0, 700.0, 1e4])
@pytest.mark.parametrize("channels", [39, 64])
def test_saturated_gates_keep_the_rule(dtype: torch.dtype, size: float, channels: int) -> None:
    """exp of 1e4 is infinite; the gradient of a gate that is open or closed is zero, not NaN."""
    inputs = case(2, 3, channels, dtype=dtype)
    check(BACKEND, {**inputs, "gate_logits": size * inputs["gate_logits"].sign()})


@pytest.mark.parametrize("channels", [5, 64])
def test_gates_of_float64_are_exact_to_a_few_units(channels: int) -> None:
    """A motion of 1 alone in its row, so that the normalised row shows the gate."""
    logits = torch.linspace(-30.0, 30.0, 1201, dtype=F64)[:, None].repeat(1, channels)
    inputs = {"x": torch.zeros_like(logits), "motion": torch.eye(channels, dtype=F64)[:1].expand_as(logits)}
    ones = torch.ones(channels, dtype=F64)
    call: dict[str, Any] = {**inputs, "gate_logits": logits, "weight": ones, "bias": 0 * ones, "eps": 1e20}
    spread = kernel(**call)[:, 0] / (1 - 1 / channels) * 1e10
    torch.testing.assert_close(spread, torch.sigmoid(logits[:, 0]), rtol=2e-15, atol=0)


@pytest.mark.parametrize("place", [5, 71])
@pytest.mark.parametrize("name", TOKENS)
def test_a_nan_or_an_infinity_stays_in_its_row(place: int, name: str) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        inputs = case(2, 3, 72)
        inputs[name][1, 2, place] = value
        result, expected = (ops.gated_fusion(**dict[str, Any](inputs), impl=impl) for impl in ("cpu", "reference"))
        torch.testing.assert_close(result, expected, equal_nan=True)


def test_eps_is_added_to_the_variance() -> None:
    inputs: dict[str, Any] = dict(case(2, 3, 72))
    for eps in (1e-12, 0.5):
        expected = ops.gated_fusion(**inputs, eps=eps, impl="reference")
        torch.testing.assert_close(kernel(**inputs, eps=eps), expected, rtol=1e-5, atol=1e-5)


# Layouts -------------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
def test_views_with_other_strides_keep_the_rule(dtype: torch.dtype, layout: Layout) -> None:
    inputs = case(3, 11, 40, dtype=dtype)
    check(BACKEND, map_tokens(inputs, layout))
    for name in TOKENS:
        view = {**inputs, name: layout(inputs[name])}
        check(BACKEND, view, incoming=(lambda _, tensor: layout(tensor)) if name == "x" else None)


def test_vectors_with_other_strides_keep_the_rule() -> None:
    inputs = case(3, 5, 40)
    for layout in (every_second, lambda tensor: tensor[:1].expand_as(tensor)):
        check(BACKEND, {name: layout(one) if one.ndim == 1 else one for name, one in inputs.items()})


@pytest.mark.parametrize("view", [view for view, _ in VIEWS.values()], ids=list(VIEWS))
def test_rows_of_any_leading_dimensions_are_reached(view: torch.Tensor) -> None:
    check(BACKEND, {**case(*view.shape), "motion": view})


# Gradients -----------------------------------------------------------------------------------------------------------


def _backward_arguments(inputs: dict[str, torch.Tensor]) -> tuple[Any, ...]:
    out, mean, rstd = operators()[0](*inputs.values(), 1e-6, True)
    return (out.sin(), *[inputs[name] for name in (*TOKENS, "weight")], mean, rstd, inputs["bias"].dtype)


def test_a_gradient_alone_is_the_one_of_all() -> None:
    backward = operators()[1]
    inputs = case(2, 5, 40, dtype=F16, kinds={"bias": F32, "motion": F32})
    arguments = _backward_arguments(inputs)
    everything = backward(*arguments, 31)
    for index, (name, one) in enumerate(zip(inputs, everything, strict=True)):
        assert one.shape == inputs[name].shape
        assert one.dtype == inputs[name].dtype
        for place, gradient in enumerate(backward(*arguments, 1 << index)):
            if place == index:
                assert torch.equal(gradient, one), name
            else:
                assert gradient.numel() == 0
    assert all(gradient.numel() == 0 for gradient in backward(*arguments, 0))


def test_derivatives_are_those_of_finite_differences() -> None:
    leaves = tuple(tensor.requires_grad_() for tensor in case(2, 3, 9, dtype=F64).values())
    assert torch.autograd.gradcheck(lambda *tensors: ops.gated_fusion(*tensors, impl="cpu"), leaves)


@dtypes
def test_the_number_of_threads_does_not_change_a_bit(dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    inputs = case(40, 17, 300, dtype=dtype)
    found = []
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            found.append(outputs_and_gradients(inputs, "cpu"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name, value in other.items():
            assert torch.equal(value, found[0][name]), name
    assert torch.equal(kernel(**inputs), found[0]["out"])


def test_the_second_derivative_is_refused() -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in case(2, 3, 8).items()}
    (grad,) = torch.autograd.grad(kernel(**inputs).square().sum(), inputs["motion"], create_graph=True)
    with pytest.raises(RuntimeError, match="gated_fusion: compiled kernels are differentiable once"):
        grad.sum().backward()


@pytest.mark.parametrize("shape", [(0, 4, 6), (2, 0, 6)], ids=str)
def test_without_rows_results_are_empty_and_gradients_zero(shape: tuple[int, ...]) -> None:
    inputs = case(*shape)
    result = outputs_and_gradients(inputs, "cpu")
    for name, expected in outputs_and_gradients(inputs, "reference").items():
        assert torch.equal(result[name], expected), name


# Choice, registration and processors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "dtype", "learns", "backend"),
    [
        (2, F32, False, "cpu"), (2, BF16, False, "cpu"), (2, F64, False, "cpu"), (2, F16, False, "reference"),
        (20, F32, True, "reference"), (400, F32, True, "cpu"), (400, F16, True, "reference"),
    ],
    ids=str,
)  # fmt: skip
def test_auto_takes_the_kernel_where_it_is_faster(rows: int, dtype: torch.dtype, learns: bool, backend: str) -> None:
    tensors: dict[str, torch.Tensor | None] = {**case(rows, 512, dtype=dtype)}
    tensors["bias"] = torch.zeros(512, dtype=dtype, requires_grad=learns)
    request = ops.Request(torch.device("cpu"), tensors, {"eps": 1e-6})
    assert ops.operators()["gated_fusion"].select(request).name == backend
    with torch.no_grad():
        assert ops.operators()["gated_fusion"].select(request).name == ("reference" if dtype == F16 else "cpu")


def test_the_operators_pass_opcheck() -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares two runs, and NaN is not equal to NaN
    forward, backward = operators()
    inputs = map_tokens(case(2, 5, 17, dtype=F16, kinds={"bias": F32}), transposed)
    for save_statistics in (False, True):
        torch.library.opcheck(forward, (*inputs.values(), 1e-6, save_statistics))
    for needs in (31, 0, 4, 24):
        torch.library.opcheck(backward, (*_backward_arguments(inputs), needs))


def test_direct_calls_are_checked_before_memory_is_read() -> None:
    forward, backward = operators()
    inputs = case(2, 5, 40)
    for name, one in inputs.items():
        for wrong in (one[1:], one.double()):
            with pytest.raises(RuntimeError, match="gated_fusion"):
                forward(**(inputs | {name: wrong}), eps=1e-6, save_statistics=True)
    *arguments, bias_dtype = _backward_arguments(inputs)
    for place, one in enumerate(arguments):
        for wrong in (one[1:], one.double()):
            with pytest.raises(RuntimeError, match="gated_fusion"):
                backward(*arguments[:place], wrong, *arguments[place + 1 :], bias_dtype, 31)


def test_a_call_compiles_into_one_graph_with_gradients() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(kernel, fullgraph=True, backend="aot_eager")
    inputs = case(3, 7, 24)
    found = []
    for function in (compiled, kernel):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        out = function(**leaves)
        found.append((out, *torch.autograd.grad(out.square().sum(), list(leaves.values()))))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("capability", ["avx2", "baseline"])
def test_the_variants_for_older_processors_are_as_accurate(capability: str) -> None:
    tests = ["keep_the_rule", "few_units", "finite_differences", "infinity", "threads"]
    check_on_older_processors(__file__, capability, " or ".join(tests))
