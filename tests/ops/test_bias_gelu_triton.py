"""The Triton kernels of bias_gelu by the tolerance rule: in Triton's interpreter, on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from motarfuse.kernels import bias_gelu as kernels

from motarfuse import ops
from tests.ops.bias_gelu_cases import ACTIVATIONS, case, check, outputs_and_gradients
from tests.ops.kernel_cases import (
    Inputs,
    every_second,
    expanded_over_the_batch,
    expanded_over_the_last,
    layout_name,
    misaligned,
    transposed,
)
from tests.ops.triton_cases import BACKEND, BFLOAT16, DEVICE, here

DTYPES = [torch.float32, torch.float16, BFLOAT16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
activations = pytest.mark.parametrize("activation", ACTIVATIONS)
on_a_gpu = pytest.mark.gpu


triton: Callable[..., torch.Tensor] = partial(ops.bias_gelu, impl="triton")


def operators() -> tuple[Any, Any]:
    namespace = torch.ops.motarfuse
    return namespace.bias_gelu_forward_triton.default, namespace.bias_gelu_backward_triton.default


@here
@dtypes
@pytest.mark.parametrize(
    "shape",
    [(1,), (7,), (1, 1), (3, 7), (65, 63), (2, 9, 64), (5, 65), (2, 2, 3, 129), (3, 384), (2, 768), (9, 1000), (1, 2)],
    ids=str,
)
def test_result_and_gradients_keep_the_rule(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check(BACKEND, case(*shape, dtype=dtype))


@here
@dtypes
@activations
def test_each_activation_keeps_the_rule(dtype: torch.dtype, activation: str) -> None:
    check(BACKEND, case(33, 40, dtype=dtype), activation=activation)


@here
@activations
@pytest.mark.parametrize(("low", "high"), [(-40, 40), (-6, -3), (-1, -0.5), (-0.01, 0.01), (0.5, 1), (-40, -20)])
def test_numbers_of_every_size_keep_the_rule(activation: str, low: float, high: float) -> None:
    """Each range by itself: what is large in one would hide errors of what is small in another."""
    for dtype in (torch.float32, torch.float16):
        x = torch.linspace(low, high, 1000, dtype=torch.float64).view(10, 100).to(dtype)
        check(BACKEND, {"x": x}, activation=activation)


@here
@activations
def test_tiny_numbers_keep_their_digits(activation: str) -> None:
    exponents = torch.arange(-36, 0).double()
    x = torch.cat((10**exponents, -(10**exponents))).float()[None].to(DEVICE)
    half = triton(x, None, activation=activation) / x
    expected = ops.bias_gelu(x.double(), None, activation=activation, impl="reference") / x.double()
    torch.testing.assert_close(half.double(), expected, rtol=5e-7, atol=0.0)


@here
@activations
def test_the_negative_tail_keeps_its_digits(activation: str) -> None:
    """PyTorch's own loses them in 1 + erf and 1 + tanh, in float64 as well."""
    u = torch.linspace(-5, -1, 500, dtype=torch.float64)[None].to(DEVICE).float().double()
    share = {
        "gelu": 0.5 * torch.special.erfc(-u / 2**0.5),
        "gelu_tanh": torch.sigmoid((8 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)),
        "quick_gelu": torch.sigmoid(1.702 * u),
    }[activation]
    out = triton(u.float(), None, activation=activation)
    torch.testing.assert_close(out.double(), u * share, rtol=5e-6, atol=0.0)


@here
def test_infinity_and_nan_pass_through() -> None:
    x = torch.tensor([torch.inf, torch.nan, 3e38, -3e38, -torch.inf], device=DEVICE).requires_grad_()
    out = triton(x, None)
    torch.testing.assert_close(out, torch.tensor([torch.inf, torch.nan, 3e38, 0, 0], device=DEVICE), equal_nan=True)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad, torch.tensor([1.0, torch.nan, 1, 0, 0], device=DEVICE), equal_nan=True)


@here
@pytest.mark.parametrize("pair", [(torch.float16, torch.float32), (torch.float32, torch.float16)], ids=str)
def test_a_bias_of_another_dtype_keeps_the_rule(pair: tuple[torch.dtype, torch.dtype]) -> None:
    check(BACKEND, case(70, 72, dtype=pair[0], bias_dtype=pair[1]))


@here
@dtypes
def test_sums_over_many_rows_of_several_programs_keep_the_rule(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs that take several tiles each, the last one fewer, beside programs of one."""
    inputs = case(300, 24, dtype=dtype)
    check(BACKEND, inputs)
    monkeypatch.setattr(kernels, "multiprocessors_of", lambda _: 1)
    check(BACKEND, inputs)


@here
def test_large_tiles_are_those_of_large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = case(9, 520, dtype=torch.float16)
    check(BACKEND, inputs)
    monkeypatch.setattr(kernels, "BUSY", 1)
    check(BACKEND, inputs)


@on_a_gpu
@dtypes
@activations
@pytest.mark.parametrize("shape", [(64, 129, 3072), (3, 211, 1536), (1, 1000, 1000), (70000, 3)], ids=str)
def test_large_inputs_keep_the_rule(dtype: torch.dtype, activation: str, shape: tuple[int, ...]) -> None:
    check(BACKEND, case(*shape, dtype=dtype), activation=activation)


# Layouts -------------------------------------------------------------------------------------------------------------


def _without_the_first_token(x: torch.Tensor) -> torch.Tensor:
    return torch.cat((torch.full_like(x[:, :1], torch.nan), x), dim=1)[:, 1:]


def _one_row_for_all(x: torch.Tensor) -> torch.Tensor:
    return x[:, :1].expand_as(x)


LAYOUTS = [
    every_second, transposed, expanded_over_the_batch, expanded_over_the_last, misaligned, _without_the_first_token,
    _one_row_for_all,
]  # fmt: skip


@here
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("channels", [24, 33])
def test_views_are_taken_as_they_are(layout: Callable[[torch.Tensor], torch.Tensor], channels: int) -> None:
    inputs = case(3, 5, channels, dtype=torch.float16)
    check(BACKEND, {**inputs, "x": layout(inputs["x"])})
    check(BACKEND, inputs, incoming=lambda _, gradient: layout(gradient))


@here
def test_a_bias_may_be_a_view_and_x_may_have_any_order_of_four_dimensions() -> None:
    inputs = case(2, 3, 4, 24, dtype=torch.float16)
    check(BACKEND, {"x": inputs["x"].permute(2, 0, 1, 3), "bias": every_second(inputs["bias"])})
    check(BACKEND, {**inputs, "bias": inputs["bias"][:1].expand(24)})


# Gradients -----------------------------------------------------------------------------------------------------------


@here
def test_a_gradient_alone_is_the_one_of_both() -> None:
    _, backward = operators()
    x, bias = (tensor.to(DEVICE) for tensor in case(300, 24, dtype=torch.float16).values())
    grad = torch.ones_like(x)
    both = backward(grad, x, bias, "gelu", True, True)
    for index, needs in enumerate([(True, False), (False, True)]):
        alone = backward(grad, x, bias, "gelu", *needs)
        assert torch.equal(alone[index], both[index])
        assert alone[1 - index].numel() == 0


@here
def test_two_runs_are_bitwise_equal() -> None:
    for dtype in (torch.float32, torch.float16):
        inputs = {name: tensor.to(DEVICE) for name, tensor in case(130, 24, dtype=dtype).items()}
        first, second = (outputs_and_gradients(inputs, "triton") for _ in range(2))
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


@here
def test_only_x_and_bias_are_kept_for_the_backward() -> None:
    kept: list[torch.Tensor] = []
    inputs = {name: tensor.to(DEVICE).requires_grad_() for name, tensor in case(5, 24).items()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        triton(**inputs)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in inputs.values()}


@pytest.mark.skipif(DEVICE == "cuda", reason="float64 is interpreted only")
@activations
def test_derivatives_are_those_of_finite_differences(activation: str) -> None:
    leaves = [tensor.requires_grad_() for tensor in case(5, 3, dtype=torch.float64).values()]
    assert torch.autograd.gradcheck(lambda x, bias: triton(x, bias, activation=activation), leaves, fast_mode=True)


@here
def test_the_second_derivative_is_refused() -> None:
    inputs = {name: tensor.to(DEVICE).requires_grad_() for name, tensor in case(7, 5).items()}
    out = triton(**inputs)
    (grad,) = torch.autograd.grad(out.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="bias_gelu: compiled kernels are differentiable once"):
        grad.sum().backward()


# Edges and the registered operators ----------------------------------------------------------------------------------


@here
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (3, 0), (0,)], ids=str)
def test_empty_dimensions(shape: tuple[int, ...]) -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(*shape).items()}
    result = outputs_and_gradients(inputs, "triton")
    for name, expected in outputs_and_gradients(inputs, "reference").items():
        assert torch.equal(result[name], expected), name


@pytest.mark.skipif(DEVICE == "cuda", reason="nothing is interpreted on a GPU")
def test_the_interpreter_refuses_bfloat16_and_auto_never_takes_it() -> None:
    for inputs in (case(3, 5, dtype=torch.bfloat16), case(3, 5, bias_dtype=torch.bfloat16)):
        with pytest.raises(RuntimeError, match="interpreter cannot compute in bfloat16"):
            triton(**inputs)
    request = ops.Request(torch.device("cpu"), {**case(3, 5)}, {"activation": "gelu"})
    assert ops.operators()["bias_gelu"].select(request).name != "triton"


@here
@dtypes
def test_the_operators_pass_opcheck(dtype: torch.dtype) -> None:
    forward, backward = operators()
    x, bias = (tensor.to(DEVICE) for tensor in case(2, 3, 5, dtype=dtype).values())
    x = transposed(x)
    for given in (bias, None):
        torch.library.opcheck(forward, (x, given, "gelu"))
    for needs in ((True, True), (True, False), (False, True), (False, False)):
        torch.library.opcheck(backward, (torch.ones_like(x), x, bias, "quick_gelu", *needs))


@here
@activations
def test_a_call_compiles_into_one_graph_with_gradients(activation: str) -> None:
    def call(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return triton(x, bias, activation=activation)

    found: list[Inputs] = []
    for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        leaves = {name: tensor.to(DEVICE).requires_grad_() for name, tensor in case(3, 33).items()}
        out = function(**leaves)
        gradients = torch.autograd.grad(out.square().sum(), list(leaves.values()))
        found.append({"out": out, **dict(zip(leaves, gradients, strict=True))})
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected)


@here
def test_a_call_can_be_exported() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            return triton(x, bias)

    inputs = tuple(tensor.to(DEVICE) for tensor in case(4, 9, 24).values())
    program = torch.export.export(Module(), inputs)
    assert any("bias_gelu_forward_triton" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(*inputs), triton(*inputs))
