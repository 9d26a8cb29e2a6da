"""The C++ kernels of bias_gelu by the tolerance rule: around tiles, layouts, threads, processors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from motarfuse import ops
from tests.ops.bias_gelu_cases import ACTIVATIONS, case, check, outputs_and_gradients
from tests.ops.kernel_cases import (
    DTYPES,
    Inputs,
    check_on_older_processors,
    every_second,
    expanded_over_the_batch,
    expanded_over_the_last,
    layout_name,
    misaligned,
    needs_native,
    transposed,
)

pytestmark = needs_native
BACKEND = ("cpu", "cpu")
dtypes = pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
activations = pytest.mark.parametrize("activation", ACTIVATIONS)

kernel: Callable[..., torch.Tensor] = partial(ops.bias_gelu, impl="cpu")


def operators() -> tuple[Any, Any]:
    namespace = torch.ops.motarfuse
    return namespace.bias_gelu_forward.default, namespace.bias_gelu_backward.default


@dtypes
@activations
@pytest.mark.parametrize(
    "shape",
    [(1,), (7,), (1, 1), (3, 7), (65, 63), (2, 9, 64), (2, 2, 3, 129), (3, 384), (9, 1000), (5, 2049), (700, 3)],
    ids=str,
)
def test_result_and_gradients_keep_the_rule(dtype: torch.dtype, activation: str, shape: tuple[int, ...]) -> None:
    """Several rows a tile, the last tile with fewer, one row a tile, rows longer than a tile."""
    check(BACKEND, case(*shape, dtype=dtype), activation=activation)


@activations
@pytest.mark.parametrize(
    ("low", "high"), [(-40, 40), (-6, -3), (-9, -5), (-1, -0.5), (-0.01, 0.01), (0.5, 1), (-40, -20)]
)
def test_numbers_of_every_size_keep_the_rule(activation: str, low: float, high: float) -> None:
    """Each range by itself: what is large in one would hide errors of what is small in another."""
    for dtype in (torch.float32, torch.float16):
        x = torch.linspace(low, high, 1000, dtype=torch.float64).view(10, 100).to(dtype)
        check(BACKEND, {"x": x}, activation=activation)


@activations
def test_tiny_numbers_keep_their_digits(activation: str) -> None:
    exponents = torch.arange(-36, 0).double()
    x = torch.cat((10**exponents, -(10**exponents))).float()[None]
    half = kernel(x, None, activation=activation) / x
    expected = ops.bias_gelu(x.double(), None, activation=activation, impl="reference") / x.double()
    torch.testing.assert_close(half.double(), expected, rtol=5e-7, atol=0.0)


@activations
def test_the_negative_tail_keeps_its_digits(activation: str) -> None:
    """PyTorch's own loses them in 1 + erf and 1 + tanh, in float64 as well."""
    u = torch.linspace(-5, -1, 500, dtype=torch.float64)[None].float().double()
    share = {
        "gelu": 0.5 * torch.special.erfc(-u / 2**0.5),
        "gelu_tanh": torch.sigmoid((8 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)),
        "quick_gelu": torch.sigmoid(1.702 * u),
    }[activation]
    out = kernel(u.float(), None, activation=activation)
    torch.testing.assert_close(out.double(), u * share, rtol=5e-6, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_infinity_and_nan_pass_through(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.inf, torch.nan, 3e38, -3e38, -torch.inf], dtype=dtype).requires_grad_()
    out = kernel(x, None)
    wanted = torch.tensor([torch.inf, torch.nan, 3e38, 0, 0], dtype=dtype)
    torch.testing.assert_close(out, wanted, equal_nan=True)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad, torch.tensor([1.0, torch.nan, 1, 0, 0], dtype=dtype), equal_nan=True)


@pytest.mark.parametrize("activation", ["gelu_tanh", "quick_gelu"])
def test_large_numbers_and_nan_are_not_mixed_up_by_sigmoids(activation: str) -> None:
    x = torch.tensor([torch.inf, torch.nan, 3e38, -1e5])
    wanted = torch.tensor([torch.inf, torch.nan, 3e38, 0])
    torch.testing.assert_close(kernel(x, None, activation=activation), wanted, equal_nan=True)


@pytest.mark.parametrize("pair", [(torch.float16, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
def test_a_bias_of_another_dtype_keeps_the_rule(pair: tuple[torch.dtype, torch.dtype]) -> None:
    check(BACKEND, case(70, 72, dtype=pair[0], bias_dtype=pair[1]))


@pytest.mark.parametrize("shape", [(9000, 24), (300, 700)], ids=str)
def test_sums_over_many_rows_keep_the_rule(shape: tuple[int, ...]) -> None:
    """Of several blocks, each of several runs of tiles."""
    check(BACKEND, case(*shape))
    # Numbers of one sign: the sum grows far beyond its terms.
    check(BACKEND, case(*shape), incoming=lambda _, gradient: gradient.abs())


# Layouts -------------------------------------------------------------------------------------------------------------


def _without_the_first_token(x: torch.Tensor) -> torch.Tensor:
    return torch.cat((torch.full_like(x[:, :1], torch.nan), x), dim=1)[:, 1:]


def _one_row_for_all(x: torch.Tensor) -> torch.Tensor:
    return x[:, :1].expand_as(x)


LAYOUTS = [
    every_second, transposed, expanded_over_the_batch, expanded_over_the_last, misaligned, _without_the_first_token,
    _one_row_for_all,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("channels", [1, 33, 2100])
def test_views_are_taken_as_they_are(
    layout: Callable[[torch.Tensor], torch.Tensor], channels: int, dtype: torch.dtype
) -> None:
    inputs = case(3, 5, channels, dtype=dtype)
    views = {**inputs, "x": layout(inputs["x"])}
    found = outputs_and_gradients(views, "cpu")
    for name, wanted in outputs_and_gradients({**inputs, "x": views["x"].contiguous()}, "cpu").items():
        assert torch.equal(found[name], wanted), name
    assert kernel(**views).is_contiguous()
    check(BACKEND, inputs, incoming=lambda _, gradient: layout(gradient))


def test_a_bias_may_be_a_view_and_x_may_have_any_order_of_four_dimensions() -> None:
    inputs = case(2, 3, 4, 24)
    check(BACKEND, {"x": inputs["x"].permute(2, 0, 1, 3), "bias": every_second(inputs["bias"])})
    check(BACKEND, {**inputs, "bias": inputs["bias"][:1].expand(24)})


# Gradients -----------------------------------------------------------------------------------------------------------


def test_a_gradient_alone_is_the_one_of_both() -> None:
    _, backward = operators()
    for dtype in (torch.float32, torch.float16):
        x, bias = case(300, 24, dtype=dtype).values()
        grad = torch.ones_like(x)
        both = backward(grad, x, bias, "gelu", True, True)
        for index, needs in enumerate([(True, False), (False, True)]):
            alone = backward(grad, x, bias, "gelu", *needs)
            assert torch.equal(alone[index], both[index])
            assert alone[1 - index].numel() == 0


@pytest.mark.parametrize("shape", [(1030, 72), (3, 70000)], ids=str)
def test_two_runs_with_any_number_of_threads_are_bitwise_equal(shape: tuple[int, ...]) -> None:
    inputs, results = case(*shape), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(outputs_and_gradients(inputs, "cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


def test_only_x_and_bias_are_kept_for_the_backward() -> None:
    kept: list[torch.Tensor] = []
    inputs = {name: tensor.requires_grad_() for name, tensor in case(5, 24).items()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kernel(**inputs)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in inputs.values()}


@activations
def test_derivatives_are_those_of_finite_differences(activation: str) -> None:
    leaves = [tensor.requires_grad_() for tensor in case(5, 3, dtype=torch.float64).values()]
    assert torch.autograd.gradcheck(lambda x, bias: kernel(x, bias, activation=activation), leaves)


def test_the_second_derivative_is_refused() -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in case(7, 5).items()}
    out = kernel(**inputs)
    (grad,) = torch.autograd.grad(out.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="bias_gelu: compiled kernels are differentiable once"):
        grad.sum().backward()


# Edges, choice, registration and processors --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (3, 0), (0,)], ids=str)
def test_empty_dimensions(shape: tuple[int, ...]) -> None:
    inputs = case(*shape)
    result = outputs_and_gradients(inputs, "cpu")
    for name, expected in outputs_and_gradients(inputs, "reference").items():
        assert torch.equal(result[name], expected), name


@pytest.mark.parametrize(
    ("dtype", "chosen"), [(torch.float32, "cpu"), (torch.bfloat16, "cpu"), (torch.float64, "reference")]
)
def test_auto_takes_the_kernel_where_it_is_faster(dtype: torch.dtype, chosen: str) -> None:
    request = ops.Request(torch.device("cpu"), {**case(3, 5, dtype=dtype)}, {"activation": "gelu"})
    assert ops.operators()["bias_gelu"].select(request).name == chosen


@dtypes
def test_the_operators_pass_opcheck(dtype: torch.dtype) -> None:
    forward, backward = operators()
    x, bias = case(2, 3, 5, dtype=dtype).values()
    x = transposed(x)
    for given in (bias, None):
        torch.library.opcheck(forward, (x, given, "gelu"))
    for needs in ((True, True), (True, False), (False, True), (False, False)):
        torch.library.opcheck(backward, (torch.ones_like(x), x, bias, "quick_gelu", *needs))


def test_direct_calls_are_checked_before_memory_is_read() -> None:
    forward, backward = operators()
    x, bias = case(4, 5).values()
    with pytest.raises(RuntimeError, match="bias must have one number for each channel"):
        forward(x, bias[:4], "gelu")
    with pytest.raises(RuntimeError, match="must be of half types and float32, or both of float64"):
        forward(x, bias.double(), "gelu")
    with pytest.raises(RuntimeError, match="activation is gelu, gelu_tanh or quick_gelu"):
        forward(x, bias, "relu")
    with pytest.raises(RuntimeError, match="x must have a dimension"):
        forward(x[0, 0], None, "gelu")
    for wrong in (x[:3], x.half(), x[0]):
        with pytest.raises(RuntimeError, match="grad_out must have the shape and dtype of x"):
            backward(wrong, x, bias, "gelu", True, True)


@activations
def test_a_call_compiles_into_one_graph_with_gradients(activation: str) -> None:
    def call(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return kernel(x, bias, activation=activation)

    found: list[Inputs] = []
    for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        leaves = {name: tensor.requires_grad_() for name, tensor in case(3, 33).items()}
        out = function(**leaves)
        gradients = torch.autograd.grad(out.square().sum(), list(leaves.values()))
        found.append({"out": out, **dict(zip(leaves, gradients, strict=True))})
    for name, expected in found[0].items():
        assert torch.equal(found[1][name], expected), name


def test_a_call_can_be_exported() -> None:
    class Module(torch.nn.Module):
        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            return kernel(*given)

    inputs = tuple(case(4, 9, 24).values())
    program = torch.export.export(Module(), inputs)
    assert any(node.target is operators()[0] for node in program.graph.nodes)
    assert torch.equal(program.module()(*inputs), kernel(*inputs))


@pytest.mark.parametrize("capability", ["avx2", "baseline"])
def test_the_variants_for_older_processors_are_as_accurate(capability: str) -> None:
    tests = ["keep_the_rule", "digits", "nan", "views", "threads"]
    check_on_older_processors(__file__, capability, " or ".join(tests))
