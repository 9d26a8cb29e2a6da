"""The Triton kernels of gated_fusion by the tolerance rule: in Triton's interpreter, on a GPU where there is one.

How rows are reached and cut into programs is add_layer_norm's (tests/ops/test_add_layer_norm_triton.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from motarfuse.kernels import gated_fusion as kernels

from motarfuse import ops
from tests.ops.add_layer_norm_cases import LAYOUTS
from tests.ops.gated_fusion_cases import TOKENS, case, check, map_tokens, outputs_and_gradients
from tests.ops.kernel_cases import Inputs, Layout, every_second, layout_name, transposed
from tests.ops.operator_cases import normal
from tests.ops.triton_cases import DEVICE, GPU, INTERPRETER, Backend, backends, here

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
dtypes = pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        pytest.param(*backend.values, dtype, id=f"{backend.id}-{dtype}", marks=backend.marks)
        for backend in (INTERPRETER, GPU)
        for dtype in (F32, F16, BF16)
        if backend is GPU or dtype != BF16  # the interpreter's bf16 arithmetic is wrong
    ],
)
SHAPES = [
    (1, 1),
    (3, 7),
    (2, 3, 1),
    (2, 1, 63),
    (2, 4, 64),
    (1, 5, 65),
    (2, 2, 2, 100),
    (1, 384),
    (1, 2, 768),
    (2, 1000),
]
LARGE = [(4, 128, 768), (1, 211, 64), (3, 197, 384), (2, 65, 1024), (7, 63, 2048), (2, 129, 4096), (3, 5, 4001)]
MIXED = [{name: F32} for name in (*TOKENS, "weight")] + [{"weight": F32, "bias": F32}]


def triton(**inputs: Any) -> torch.Tensor:
    return ops.gated_fusion(**inputs, impl="triton")


def _forward_and_backward() -> tuple[Any, Any]:
    namespace = torch.ops.motarfuse
    return namespace.gated_fusion_forward_triton.default, namespace.gated_fusion_backward_triton.default


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_keep_the_rule(backend: Backend, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check(backend, case(*shape, dtype=dtype))


@pytest.mark.parametrize("backend", [INTERPRETER, GPU])
@pytest.mark.parametrize("kinds", MIXED, ids=lambda kinds: "-".join(kinds))
def test_float32_beside_half_types_keeps_the_rule(backend: Backend, kinds: Mapping[str, torch.dtype]) -> None:
    check(backend, case(2, 3, 72, dtype=F16, kinds=kinds))
    if backend[1] == "cuda":
        check(backend, case(2, 3, 72, dtype=BF16, kinds=kinds))


@backends
def test_rows_that_take_more_than_a_warp(backend: Backend) -> None:
    check(backend, case(1, 2, 4096, dtype=F16))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_inputs_keep_the_rule_on_a_gpu(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check(("triton", "cuda"), case(*shape, dtype=dtype))


@dtypes
def test_rows_with_a_large_common_offset_keep_the_rule(backend: Backend, dtype: torch.dtype) -> None:
    inputs = case(2, 3, 100, dtype=dtype)
    check(backend, {**inputs, "x": torch.full_like(inputs["x"], 9984.0)})


@backends
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_saturated_gates_keep_the_rule(backend: Backend, size: float) -> None:
    """exp of 1e4 is infinite; the gradient of a gate that is open or closed is zero, not NaN."""
    inputs = case(2, 3, 40)
    check(backend, {**inputs, "gate_logits": size * inputs["gate_logits"].sign()})


@backends
def test_eps_is_added_to_the_variance(backend: Backend) -> None:
    inputs = {name: tensor.to(backend[1]) for name, tensor in case(2, 3, 72).items()}
    for eps in (1e-12, 0.5):
        expected = ops.gated_fusion(**inputs, eps=eps, impl="reference")
        torch.testing.assert_close(triton(**inputs, eps=eps), expected, rtol=1e-5, atol=1e-5)


@backends
@pytest.mark.parametrize("shape", [(3, 50, 40), (2, 11, 300)], ids=str)
def test_a_program_may_take_many_rows(
    backend: Backend, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "multiprocessors_of", lambda _: 1)
    check(backend, case(*shape, dtype=F16))


# Layouts -------------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
def test_views_with_other_strides_keep_the_rule(backend: Backend, dtype: torch.dtype, layout: Layout) -> None:
    inputs = case(3, 5, 40, dtype=dtype)
    check(backend, map_tokens(inputs, layout))
    for name in TOKENS:
        view = {**inputs, name: layout(inputs[name])}
        check(backend, view, incoming=(lambda _, tensor: layout(tensor)) if name == "x" else None)


@backends
def test_vectors_with_other_strides_keep_the_rule(backend: Backend) -> None:
    inputs = case(3, 5, 40)
    for layout in (every_second, lambda tensor: tensor[:1].expand_as(tensor)):
        check(backend, {name: layout(one) if one.ndim == 1 else one for name, one in inputs.items()})


# Gradients -----------------------------------------------------------------------------------------------------------


@here
def test_a_gradient_alone_is_the_one_of_all() -> None:
    forward, backward = _forward_and_backward()
    drawn = case(2, 5, 40, dtype=F16, kinds={"bias": F32, "motion": F32})
    inputs = {name: tensor.to(DEVICE) for name, tensor in drawn.items()}
    out, mean, rstd = forward(*inputs.values(), 1e-6, True)
    arguments = (out.sin(), *[inputs[name] for name in (*TOKENS, "weight")], mean, rstd, F32)
    everything = backward(*arguments, 31)
    for index, (name, one) in enumerate(zip(inputs, everything, strict=True)):
        assert one.shape == inputs[name].shape
        assert one.dtype == inputs[name].dtype
        for place, gradient in enumerate(backward(*arguments, 1 << index)):
            if place == index:
                torch.testing.assert_close(gradient, one)
            else:
                assert gradient.numel() == 0
    assert all(gradient.numel() == 0 for gradient in backward(*arguments, 0))


def _keep(saved: list[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Lists what a backward is given."""

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    return pack


@here
def test_inputs_and_two_numbers_a_row_are_all_that_is_kept() -> None:
    inputs = {name: tensor.to(DEVICE).requires_grad_() for name, tensor in case(2, 5, 40).items()}
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(_keep(saved), lambda one: one):
        triton(**inputs)
    places = {tensor.data_ptr() for tensor in inputs.values()}
    assert [one.shape for one in saved if one.data_ptr() not in places] == [(2, 5), (2, 5)]


@backends
def test_two_runs_are_bitwise_equal_and_results_those_without_gradients(backend: Backend) -> None:
    inputs = {name: tensor.to(backend[1]) for name, tensor in case(3, 11, 130, dtype=F16).items()}
    first, second = (outputs_and_gradients(inputs, "triton") for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert torch.equal(triton(**inputs), first["out"])


@pytest.mark.skipif(DEVICE == "cuda", reason="float64 is interpreted only")
def test_derivatives_are_those_of_finite_differences() -> None:
    leaves = tuple(tensor.requires_grad_() for tensor in case(2, 2, 3, dtype=torch.float64).values())
    assert torch.autograd.gradcheck(lambda *tensors: ops.gated_fusion(*tensors, impl="triton"), leaves, fast_mode=True)


@here
def test_the_second_derivative_is_refused() -> None:
    inputs = {name: tensor.to(DEVICE).requires_grad_() for name, tensor in case(2, 3, 8).items()}
    (grad,) = torch.autograd.grad(triton(**inputs).square().sum(), inputs["motion"], create_graph=True)
    with pytest.raises(RuntimeError, match="gated_fusion: compiled kernels are differentiable once"):
        grad.sum().backward()


# Edges and choice ----------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("shape", [(0, 4, 6), (2, 0, 6)], ids=str)
def test_without_rows_results_are_empty_and_gradients_zero(backend: Backend, shape: tuple[int, ...]) -> None:
    inputs = {name: tensor.to(backend[1]) for name, tensor in case(*shape).items()}
    result = outputs_and_gradients(inputs, "triton")
    for name, expected in outputs_and_gradients(inputs, "reference").items():
        assert torch.equal(result[name], expected), name


@here
def test_what_the_kernels_do_not_take_is_said() -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(1, 4097).items()}
    with pytest.raises(RuntimeError, match="up to 4096 channels, got 4097"):
        triton(**inputs)


@pytest.mark.skipif(DEVICE == "cuda", reason="nothing is interpreted on a GPU")
def test_the_interpreter_refuses_bfloat16_and_auto_never_takes_it() -> None:
    for name in ("x", "gate_logits", "bias"):
        with pytest.raises(RuntimeError, match="interpreter cannot compute in bfloat16"):
            triton(**case(2, 8, kinds={name: BF16}))
    request = ops.Request(torch.device("cpu"), {**case(2, 8)}, {"eps": 1e-6})
    assert ops.operators()["gated_fusion"].select(request).name != "triton"


# The registered operators --------------------------------------------------------------------------------------------


@here
def test_the_operators_pass_opcheck() -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares two runs, and NaN is not equal to NaN
    forward, backward = _forward_and_backward()
    drawn = map_tokens(case(2, 5, 17, dtype=F16, kinds={"bias": F32}), transposed)
    inputs = [tensor.to(DEVICE) for tensor in drawn.values()]
    for save_statistics in (False, True):
        torch.library.opcheck(forward, (*inputs, 1e-6, save_statistics))
    out, mean, rstd = forward(*inputs, 1e-6, True)
    for needs in (31, 0, 4, 24):
        torch.library.opcheck(backward, (out, *inputs[:4], mean, rstd, F32, needs))


def _trained(function: Callable[..., torch.Tensor], inputs: Inputs) -> tuple[torch.Tensor, ...]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    out = function(**leaves)
    return (out, *torch.autograd.grad(out.square().sum(), list(leaves.values())))


@here
def test_a_call_compiles_into_one_graph_with_gradients() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(triton, fullgraph=True, backend="aot_eager")
    for shape in ((2, 5, 24), (3, 7, 24)):
        inputs = {name: tensor.to(DEVICE) for name, tensor in case(*shape).items()}
        for got, wanted in zip(_trained(compiled, inputs), _trained(triton, inputs), strict=True):
            torch.testing.assert_close(got, wanted)


class _Module(torch.nn.Module):
    def forward(
        self, x: torch.Tensor, motion: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        return ops.gated_fusion(x, motion, gate, weight, bias, impl="triton")


@here
def test_export_keeps_it_as_one_operator_with_dynamic_sizes() -> None:
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=4096)
    inputs = tuple(tensor.to(DEVICE) for tensor in case(2, 5, 24).values())
    sizes = (*[{0: batch, 1: length} for _ in TOKENS], None, None)
    program = torch.export.export(_Module(), inputs, dynamic_shapes=sizes)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.motarfuse.gated_fusion_forward_triton.default in targets
    others = {name: tensor.to(DEVICE) for name, tensor in case(3, 9, 24).items()}
    assert torch.equal(program.module()(*others.values()), triton(**others))


@pytest.mark.gpu
def test_a_cuda_graph_captures_forward_and_backward() -> None:
    inputs = {n: t.cuda().requires_grad_() for n, t in case(8, 128, 768, dtype=BF16).items()}
    incoming = normal(2)(8, 128, 768).cuda().bfloat16()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = torch.autograd.grad(triton(**inputs), list(inputs.values()), incoming)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = torch.autograd.grad(triton(**inputs), list(inputs.values()), incoming)
    graph.replay()
    torch.cuda.synchronize()
    for got, wanted in zip(captured, expected, strict=True):
        assert torch.equal(got, wanted)
