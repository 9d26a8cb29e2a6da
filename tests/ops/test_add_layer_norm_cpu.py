"""The C++ kernels of add_layer_norm by the tolerance rule: rows, dtypes, layouts, gradients, threads, variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from motarfuse import ops
from tests.ops.add_layer_norm_cases import LAYOUTS, SCALES, VIEWS, case, check, map_tokens, outputs_and_gradients
from tests.ops.kernel_cases import (
    Inputs,
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
# Of x, of the residual, of vectors.
USUAL = [(F32, F32, F32), (F64, F64, F64), (BF16, F32, F32), (F16, F16, F16)]
OTHERS = [(F32, F16, F32), (F16, F32, F32), (BF16, BF16, F32), (F16, F32, F16), (F32, BF16, F32), (F16, BF16, F32)]
dtypes = pytest.mark.parametrize("kinds", USUAL, ids=lambda kinds: "-".join(str(one)[6:] for one in kinds))
Kinds = tuple[torch.dtype, torch.dtype, torch.dtype]


def of_kinds(shape: tuple[int, ...], kinds: Kinds, **options: Any) -> Inputs:
    x, residual, vectors = kinds
    return case(*shape, x=x, residual=residual, vectors=vectors, **options)


def kernel(**inputs: Any) -> ops.AddLayerNorm:
    return ops.add_layer_norm(**inputs, impl="cpu")


def operators() -> tuple[Any, Any]:
    namespace = torch.ops.motarfuse
    return namespace.add_layer_norm_forward.default, namespace.add_layer_norm_backward.default


@dtypes
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1), (3, 7), (2, 3, 1), (2, 9, 63), (2, 4, 64), (1, 5, 65), (2, 3, 129), (2, 2, 2, 100), (7, 138),
        (1, 3, 768), (3, 1000), (2, 197, 384), (5, 211, 64), (2, 65, 1104), (1, 3, 4097), (40, 17, 300),
    ],
    ids=str,
)  # fmt: skip
def test_outputs_and_gradients_keep_the_rule(kinds: Kinds, shape: tuple[int, ...]) -> None:
    check(BACKEND, of_kinds(shape, kinds))


@pytest.mark.parametrize("kinds", USUAL + OTHERS, ids=str)
@pytest.mark.parametrize("scales", [(), ("layer_scale",), ("sample_scale",), SCALES], ids=str)
def test_any_scales_and_mixtures_of_dtypes_keep_the_rule(kinds: Kinds, scales: tuple[str, ...]) -> None:
    check(BACKEND, of_kinds((3, 5, 72), kinds, scales=scales))


# Statistics ----------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("channels", [100, 768])
def test_rows_with_a_large_common_offset_keep_the_rule(kinds: Kinds, channels: int) -> None:
    inputs = of_kinds((2, 3, channels), kinds, scales=())
    inputs["residual"] = torch.full_like(inputs["residual"], 9984.0)
    check(BACKEND, inputs)


def test_constant_rows_are_the_bias() -> None:
    """With a small eps, what rounding leaves of their mean would be large once it is normalised."""
    inputs: dict[str, Any] = dict(case(4, 6, 100, scales=()))
    inputs |= {"x": torch.zeros(4, 6, 100), "residual": 10 * inputs["residual"][..., :1].expand(4, 6, 100)}
    normed = kernel(**inputs, eps=1e-12).normed
    torch.testing.assert_close(normed, inputs["bias"].expand_as(normed), rtol=1e-5, atol=1e-5)


def test_eps_is_added_to_the_variance() -> None:
    inputs: dict[str, Any] = dict(case(2, 3, 72))
    for eps in (1e-12, 0.5):
        expected = ops.add_layer_norm(**inputs, eps=eps, impl="reference").normed
        torch.testing.assert_close(kernel(**inputs, eps=eps).normed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", [5, 71])
def test_a_nan_or_an_infinity_stays_in_its_row(place: int) -> None:
    for value in (torch.nan, torch.inf):
        inputs: dict[str, Any] = dict(case(2, 3, 72))
        inputs["x"][1, 2, place] = value
        result, expected = kernel(**inputs), ops.add_layer_norm(**inputs, impl="reference")
        assert torch.equal(result.normed.isnan(), expected.normed.isnan())
        torch.testing.assert_close(result.sum, expected.sum, equal_nan=True)


# Layouts -------------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
def test_views_with_other_strides_keep_the_rule(kinds: Kinds, layout: Layout) -> None:
    inputs = of_kinds((3, 11, 40), kinds)
    check(BACKEND, map_tokens(inputs, layout))
    check(BACKEND, {**inputs, "residual": layout(inputs["residual"])}, incoming=lambda _, tensor: layout(tensor))


def test_vectors_with_other_strides_keep_the_rule() -> None:
    inputs = case(3, 5, 40)
    for layout in (every_second, lambda tensor: tensor[:1].expand_as(tensor)):
        check(BACKEND, {name: layout(one) if one.ndim == 1 else one for name, one in inputs.items()})


@pytest.mark.parametrize("view", [view for view, _ in VIEWS.values()], ids=list(VIEWS))
def test_rows_of_any_leading_dimensions_are_reached(view: torch.Tensor) -> None:
    inputs = case(*view.shape)
    check(BACKEND, {**inputs, "x": view})
    contiguous = kernel(**{**inputs, "x": view.contiguous()})
    assert torch.equal(kernel(**{**inputs, "x": view}).sum, contiguous.sum)


# Gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("results", [("normed",), ("sum",)], ids=str)
@pytest.mark.parametrize("scales", [(), SCALES], ids=["plain", "scaled"])
@pytest.mark.parametrize("kinds", USUAL, ids=str)
def test_a_result_that_nothing_depends_on_has_no_gradient(
    results: tuple[str, ...], scales: tuple[str, ...], kinds: Kinds
) -> None:
    check(BACKEND, of_kinds((2, 5, 40), kinds, scales=scales), results=results)


def _backward_arguments(inputs: Mapping[str, torch.Tensor], residual: torch.dtype) -> tuple[Any, ...]:
    normed, total, mean, rstd = operators()[0](*inputs.values(), 1e-6, True)
    exact = (None, total) if residual == F32 else (inputs["residual"], None)
    vectors = (inputs["weight"], inputs["layer_scale"], inputs["sample_scale"])
    return (normed.sin(), total.cos(), inputs["x"], *exact, *vectors, mean, rstd, F16, inputs["bias"].dtype)


@pytest.mark.parametrize("residual", [F32, F16], ids=str)
def test_a_gradient_alone_is_the_one_of_all(residual: torch.dtype) -> None:
    backward = operators()[1]
    inputs = case(2, 5, 40, x=F16, residual=residual)
    arguments = _backward_arguments(inputs, residual)
    everything = backward(*arguments, 63)
    for index, (name, one) in enumerate(zip(inputs, everything, strict=True)):
        assert one.shape == inputs[name].shape
        assert one.dtype == inputs[name].dtype
        for place, gradient in enumerate(backward(*arguments, 1 << index)):
            if place == index:
                assert torch.equal(gradient, one), name
            else:
                assert gradient.numel() == 0
    assert all(gradient.numel() == 0 for gradient in backward(*arguments, 0))


@pytest.mark.parametrize("scales", [(), SCALES], ids=["plain", "scaled"])
def test_derivatives_are_those_of_finite_differences(scales: tuple[str, ...]) -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in case(2, 3, 9, x=F64, scales=scales).items()}

    def call(*tensors: torch.Tensor) -> ops.AddLayerNorm:
        return kernel(**dict(zip(inputs, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, tuple(inputs.values()))


@pytest.mark.parametrize("kinds", USUAL, ids=str)
def test_the_number_of_threads_does_not_change_a_bit(kinds: Kinds) -> None:
    before = torch.get_num_threads()
    inputs = of_kinds((40, 17, 300), kinds)
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


def test_a_call_without_gradients_gives_the_same_results() -> None:
    inputs = case(2, 5, 72, x=F16, residual=F32)
    trained = outputs_and_gradients(inputs, "cpu")
    for name, value in kernel(**inputs)._asdict().items():
        assert torch.equal(value, trained[name])


def test_the_second_derivative_is_refused() -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in case(2, 3, 8).items()}
    (grad,) = torch.autograd.grad(kernel(**inputs).normed.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="add_layer_norm: compiled kernels are differentiable once"):
        grad.sum().backward()


@pytest.mark.parametrize("shape", [(0, 4, 6), (2, 0, 6), (0, 6)], ids=str)
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
        (200, F32, True, "reference"), (400, F32, True, "cpu"), (400, F16, True, "reference"),
    ],
    ids=str,
)  # fmt: skip
def test_auto_takes_the_kernel_where_it_is_faster(rows: int, dtype: torch.dtype, learns: bool, backend: str) -> None:
    tensors: dict[str, torch.Tensor | None] = {**case(rows, 512, x=dtype)}
    tensors["bias"] = torch.zeros(512, dtype=dtype, requires_grad=learns)
    request = ops.Request(torch.device("cpu"), tensors, {"eps": 1e-6})
    assert ops.operators()["add_layer_norm"].select(request).name == backend
    with torch.no_grad():
        assert ops.operators()["add_layer_norm"].select(request).name == ("reference" if dtype == F16 else "cpu")


@pytest.mark.parametrize(("residual", "scales"), [(F32, ()), (F16, SCALES)], ids=["plain", "scaled"])
def test_the_operators_pass_opcheck(residual: torch.dtype, scales: tuple[str, ...]) -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares two runs, and NaN is not equal to NaN
    forward, backward = operators()
    inputs = map_tokens(case(2, 5, 17, x=F16, residual=residual, scales=scales), transposed)
    layer, sample = (inputs.get(name) for name in SCALES)
    x, residual_in, weight, bias = (inputs[name] for name in ("x", "residual", "weight", "bias"))
    for save_statistics in (False, True):
        torch.library.opcheck(forward, (x, residual_in, weight, bias, layer, sample, 1e-6, save_statistics))
    normed, total, mean, rstd = forward(x, residual_in, weight, bias, layer, sample, 1e-6, True)
    kept = (x if scales else None, None, total) if residual == F32 else (x, residual_in, None)
    rest = (*kept, weight, layer, sample, mean, rstd, x.dtype, bias.dtype)
    for given in ((normed, total), (normed, None), (None, total), (None, None)):
        torch.library.opcheck(backward, (*given, *rest, 63 if scales else 15))
    for needs in (0, 1, 2, 12):
        torch.library.opcheck(backward, (normed, total, *rest, needs))


def test_direct_calls_are_checked_before_memory_is_read() -> None:
    forward, backward = operators()
    inputs = case(2, 5, 40)
    x, residual, weight, bias, layer, sample = inputs.values()
    good: dict[str, Any] = {**inputs, "eps": 1e-6, "save_statistics": True}
    changes = (
        {"residual": residual[:1]}, {"weight": weight[1:]}, {"bias": bias.double()}, {"layer_scale": layer[None]},
        {"sample_scale": torch.ones(3)}, {"x": x[0, 0]}, {"x": x.long()},
    )  # fmt: skip
    for change in changes:
        with pytest.raises(RuntimeError, match="add_layer_norm"):
            forward(**(good | change))
    grad_normed, grad_sum, x, _, total, weight, layer, sample, mean, rstd, *types = _backward_arguments(inputs, F32)
    wrong = (
        (grad_normed[1:], grad_sum, x, None, total, weight, layer, sample, mean, rstd),
        (grad_normed, grad_sum, x, None, total[..., 1:], weight, layer, sample, mean, rstd),
        (grad_normed, grad_sum, x, None, None, weight, layer, sample, mean, rstd),
        (grad_normed, grad_sum, None, None, total, weight, layer, sample, mean, rstd),
        (grad_normed, grad_sum, x, None, total, weight[1:], layer, sample, mean, rstd),
        (grad_normed, grad_sum, x, None, total, weight, layer[1:], sample, mean, rstd),
        (grad_normed, grad_sum, x, None, total, weight, layer, sample[1:], mean, rstd),
        (grad_normed, grad_sum, x, None, total, weight, layer, sample, mean, rstd[1:]),
        (grad_normed, grad_sum, x, None, total, weight, layer, sample, mean.half(), rstd),
    )
    for arguments in wrong:
        with pytest.raises(RuntimeError, match="add_layer_norm"):
            backward(*arguments, *types, 63)


@pytest.mark.parametrize("scales", [(), SCALES], ids=["plain", "scaled"])
def test_a_call_compiles_into_one_graph_with_gradients(scales: tuple[str, ...]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(kernel, fullgraph=True, backend="aot_eager")
    inputs = case(3, 7, 24, x=F16, residual=F32, scales=scales)
    found = []
    for function in (compiled, kernel):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        normed, total = function(**leaves)
        loss = normed.square().sum() + total.sin().sum()
        found.append((normed, total, *torch.autograd.grad(loss, list(leaves.values()))))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("capability", ["avx2", "baseline"])
def test_the_variants_for_older_processors_are_as_accurate(capability: str) -> None:
    tests = ["keep_the_rule", "finite_differences", "constant", "infinity", "threads"]
    check_on_older_processors(__file__, capability, " or ".join(tests))
