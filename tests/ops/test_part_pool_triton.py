"""The Triton kernels of part_pool by the tolerance rule: in Triton's interpreter, on a GPU where there is one.

The interpreter shows indices, masks, formulas and what float16 rounds; precision of float32's products, bfloat16 and
speed it cannot show.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from motarfuse.kernels import part_pool as kernels

from motarfuse import ops
from tests.ops.kernel_cases import Inputs
from tests.ops.part_pool_cases import RESULTS, SHAPES, as_a_feature_map, case, check, outputs_and_gradients
from tests.ops.triton_cases import DEVICE, GPU, INTERPRETER, Backend, backends, here

# Of tokens and of part logits. The interpreter's bf16 arithmetic is wrong.
SAME = [(torch.float32, torch.float32), (torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16)]
MIXED = [
    (torch.float16, torch.float32), (torch.float32, torch.float16), (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.float16),
]  # fmt: skip
dtypes = {
    name: pytest.mark.parametrize(
        ("backend", "dtype", "logits_dtype"),
        [
            pytest.param(*backend.values, *pair, id=f"{backend.id}-{pair[0]}-{pair[1]}", marks=backend.marks)
            for backend in (INTERPRETER, GPU)
            for pair in pairs
            if backend is GPU or torch.bfloat16 not in pair
        ],
    )
    for name, pairs in (("same", SAME), ("mixed", MIXED), ("all", SAME + MIXED))
}
# Cells, parts, channels: what makes a difference to tiles, the rest on a GPU alone.
CORE = [
    (1, 3, 5), (1, 0, 8), (7, 2, 1), (8, 8, 63), (63, 3, 64), (64, 1, 65), (65, 4, 1), (128, 8, 384), (129, 10, 63),
    (193, 8, 5), (211, 3, 0), (300, 3, 130), (516, 32, 64),
]  # fmt: skip
LARGE = [shape for shape in SHAPES if shape not in CORE]


def mixed(inputs: Inputs, logits_dtype: torch.dtype) -> Inputs:
    return {**inputs, "part_logits": inputs["part_logits"].to(logits_dtype)}


def triton(tokens: torch.Tensor, part_logits: torch.Tensor) -> ops.PartPool:
    return ops.part_pool(tokens, part_logits, impl="triton")


def _forward_and_backward() -> tuple[Any, Any]:
    namespace = torch.ops.motarfuse
    return namespace.part_pool_forward_triton.default, namespace.part_pool_backward_triton.default


@dtypes["same"]
@pytest.mark.parametrize(("cells", "parts", "channels"), CORE)
def test_outputs_and_gradients_keep_the_rule(
    backend: Backend, dtype: torch.dtype, logits_dtype: torch.dtype, cells: int, parts: int, channels: int
) -> None:
    check(backend, case(cells, dtype, parts=parts, channels=channels))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [pair[0] for pair in SAME], ids=str)
@pytest.mark.parametrize(("cells", "parts", "channels"), [*LARGE, (128, 32, 768), (2048, 128, 96), (4096, 8, 2048)])
def test_large_inputs_keep_the_rule_on_a_gpu(dtype: torch.dtype, cells: int, parts: int, channels: int) -> None:
    check(("triton", "cuda"), case(cells, dtype, parts=parts, channels=channels, batch=3))


@dtypes["mixed"]
@pytest.mark.parametrize(("cells", "parts", "channels"), [(1, 3, 5), (65, 8, 33), (129, 10, 63), (300, 3, 130)])
@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_logits_of_another_dtype_have_gradients_as_accurate_as_theirs(
    backend: Backend,
    dtype: torch.dtype,
    logits_dtype: torch.dtype,
    cells: int,
    parts: int,
    channels: int,
    spread: float,
) -> None:
    inputs = mixed(case(cells, dtype, parts=parts, channels=channels, spread=spread), logits_dtype)
    # Tokens with a mean: <g, x> and <g, pooled> cancel.
    check(backend, {**inputs, "tokens": inputs["tokens"] + 2})


@dtypes["same"]
@pytest.mark.parametrize("parts", [16, 17, 33, 100])
def test_more_parts_than_persons_have(
    backend: Backend, dtype: torch.dtype, logits_dtype: torch.dtype, parts: int
) -> None:
    check(backend, case(70, dtype, parts=parts, channels=72))


@dtypes["same"]
@pytest.mark.parametrize(("cells", "parts"), [(128, 8), (128, 20), (211, 3)])
def test_a_program_may_take_all_channels_or_all_cells_of_an_item(
    backend: Backend,
    dtype: torch.dtype,
    logits_dtype: torch.dtype,
    cells: int,
    parts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a batch that is large enough to keep a GPU busy."""
    monkeypatch.setattr(kernels, "BUSY", 1)
    check(backend, case(cells, dtype, parts=parts, channels=200, batch=1))


@dtypes["all"]
def test_parts_with_little_mass_keep_the_rule(backend: Backend, dtype: torch.dtype, logits_dtype: torch.dtype) -> None:
    """Their masks are below float16's normal numbers, and then below its smallest."""
    for shift in (12.0, 17.0):
        inputs = case(150, dtype, parts=2, channels=33)
        inputs["part_logits"][:, 1:] -= shift
        check(backend, mixed(inputs, logits_dtype))


# Layouts -------------------------------------------------------------------------------------------------------------


def _every_second(inputs: Inputs) -> Inputs:
    return {name: tensor.repeat_interleave(2, dim=-1)[..., ::2] for name, tensor in inputs.items()}


def _misaligned(inputs: Inputs) -> Inputs:
    def shifted(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view(tensor.shape)

    return {name: shifted(tensor) for name, tensor in inputs.items()}


def _one_item_for_all(inputs: Inputs) -> Inputs:
    return {name: tensor[:1].expand(tensor.shape) for name, tensor in inputs.items()}


def _one_cell_for_all(inputs: Inputs) -> Inputs:
    tokens, part_logits = inputs["tokens"], inputs["part_logits"]
    return {"tokens": tokens[:, :1].expand(tokens.shape), "part_logits": part_logits}


def _batch_last(inputs: Inputs) -> Inputs:
    return {name: tensor.transpose(0, 2).contiguous().transpose(0, 2) for name, tensor in inputs.items()}


@dtypes["same"]
@pytest.mark.parametrize("cells", [48, 300])
@pytest.mark.parametrize(
    "layout",
    [as_a_feature_map, _every_second, _misaligned, _one_item_for_all, _one_cell_for_all, _batch_last],
    ids=lambda layout: layout.__name__.strip("_"),
)
def test_views_with_other_strides_are_taken_as_they_are(
    backend: Backend,
    dtype: torch.dtype,
    logits_dtype: torch.dtype,
    cells: int,
    layout: Callable[[Inputs], Inputs],
) -> None:
    inputs = layout(case(cells, dtype, channels=72))
    check(backend, inputs)
    result = outputs_and_gradients({name: tensor.to(backend[1]) for name, tensor in inputs.items()}, backend[0])
    for name, tensor in inputs.items():
        assert result[f"grad_{name}"].stride() == torch.empty_like(tensor).stride()


# Gradients -----------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("results", [("pooled",), ("mass",)], ids=str)
@pytest.mark.parametrize("cells", [48, 300])
def test_a_result_that_nothing_depends_on_has_no_gradient(
    backend: Backend, results: tuple[str, ...], cells: int
) -> None:
    for dtype in (torch.float32, torch.float16):
        check(backend, case(cells, dtype, channels=72), results=results)


@here
@pytest.mark.parametrize("cells", [48, 300])
def test_a_gradient_alone_is_the_one_of_both(cells: int) -> None:
    forward, backward = _forward_and_backward()
    tokens, logits = (tensor.to(DEVICE) for tensor in case(cells, torch.float16, channels=72).values())
    pooled, mass, total, exact = forward(tokens, logits, True)
    arguments = (torch.ones_like(pooled), torch.ones_like(mass), tokens, logits, exact, total)
    both = backward(*arguments, True, True)
    for index, needs in enumerate([(True, False), (False, True)]):
        alone = backward(*arguments, *needs)
        assert torch.equal(alone[index], both[index])
        assert alone[1 - index].numel() == 0


@backends
def test_two_runs_are_bitwise_equal(backend: Backend) -> None:
    for dtype in (torch.float32, torch.float16):
        inputs = {name: tensor.to(backend[1]) for name, tensor in case(129, dtype, channels=130).items()}
        first, second = (outputs_and_gradients(inputs, "triton") for _ in range(2))
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


@here
@pytest.mark.parametrize("cells", [48, 300])
def test_results_are_those_of_a_call_without_gradients(cells: int) -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(cells, torch.float16, channels=72).items()}
    trained = outputs_and_gradients(inputs, "triton")
    for name, value in triton(**inputs)._asdict().items():
        assert torch.equal(value, trained[name])


@pytest.mark.skipif(DEVICE == "cuda", reason="float64 is interpreted only")
@pytest.mark.parametrize("cells", [5, 40])
def test_derivatives_are_those_of_finite_differences(cells: int) -> None:
    leaves = [tensor.requires_grad_() for tensor in case(cells, torch.float64, batch=1, channels=3).values()]
    assert torch.autograd.gradcheck(triton, leaves, fast_mode=True)


@here
def test_the_second_derivative_is_refused() -> None:
    inputs = {name: tensor.to(DEVICE).requires_grad_() for name, tensor in case(7).items()}
    (grad,) = torch.autograd.grad(triton(**inputs).pooled.square().sum(), inputs["tokens"], create_graph=True)
    with pytest.raises(RuntimeError, match="part_pool: compiled kernels are differentiable once"):
        grad.sum().backward()


# Edges ---------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # inf - inf, interpreted
@backends
@pytest.mark.parametrize("cells", [48, 300])
@pytest.mark.parametrize(
    ("channel", "cell", "value"),
    [
        (2, slice(None), -torch.inf),
        (0, slice(None), -torch.inf),
        (slice(1, None), 5, -torch.inf),
        (slice(None), 5, -torch.inf),
        (1, 5, torch.inf),
        (0, 5, torch.inf),
        (1, 5, torch.nan),
        (0, 5, torch.nan),
    ],
    ids=["a part", "the background", "all parts of a cell", "a cell", "inf", "inf behind", "NaN", "NaN behind"],
)
def test_hidden_and_undefined_logits_are_those_of_the_reference(
    backend: Backend, cells: int, channel: int | slice, cell: int | slice, value: float
) -> None:
    for dtype in (torch.float32, torch.float16):
        inputs = {name: tensor.to(backend[1]) for name, tensor in case(cells, dtype, channels=20).items()}
        inputs["part_logits"][0, channel, cell] = value
        result = outputs_and_gradients(inputs, "triton")
        for name, expected in outputs_and_gradients(inputs, "reference").items():
            tolerance = 20 * torch.finfo(dtype).eps
            torch.testing.assert_close(
                result[name], expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=f"{name} {dtype}"
            )
            if not isinstance(channel, slice) and value == -torch.inf and channel > 0 and name in RESULTS:
                assert torch.equal(result[name][0, channel - 1], torch.zeros_like(result[name][0, channel - 1]))


@backends
@pytest.mark.parametrize(
    ("batch", "cells", "parts", "channels"), [(0, 7, 3, 5), (2, 0, 3, 5), (2, 7, 0, 5), (2, 7, 3, 0)]
)
def test_empty_dimensions(backend: Backend, batch: int, cells: int, parts: int, channels: int) -> None:
    for dtype in (torch.float32, torch.float16):
        inputs = case(cells, dtype, batch=batch, parts=parts, channels=channels)
        inputs = {name: tensor.to(backend[1]) for name, tensor in inputs.items()}
        result = outputs_and_gradients(inputs, "triton")
        for name, expected in outputs_and_gradients(inputs, "reference").items():
            torch.testing.assert_close(result[name], expected, rtol=2e-3, atol=1e-3, msg=name)


@here
def test_what_the_kernels_do_not_take_is_said() -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(5, parts=129).items()}
    with pytest.raises(RuntimeError, match="up to 128 parts, got 129"):
        triton(**inputs)


@pytest.mark.skipif(DEVICE == "cuda", reason="nothing is interpreted on a GPU")
def test_the_interpreter_refuses_bfloat16() -> None:
    for inputs in (case(5, torch.bfloat16), mixed(case(5), torch.bfloat16)):
        with pytest.raises(RuntimeError, match="interpreter cannot compute in bfloat16"):
            triton(**inputs)


# Choice --------------------------------------------------------------------------------------------------------------


def _request(dtype: torch.dtype, parts: int, device: str) -> ops.Request:
    inputs = {name: tensor.to("meta") for name, tensor in case(5, dtype, parts=parts).items()}
    return ops.Request(torch.device(device), inputs, {})


@pytest.mark.skipif(DEVICE == "cuda", reason="nothing is interpreted on a GPU")
def test_auto_never_takes_the_interpreter() -> None:
    assert ops.operators()["part_pool"].select(_request(torch.float16, 8, "cpu")).name != "triton"


@pytest.mark.parametrize(
    ("dtype", "parts", "name"),
    [
        (torch.bfloat16, 8, "triton"), (torch.float16, 32, "triton"), (torch.bfloat16, 7, "cuda"),
        (torch.float32, 17, "triton"), (torch.float32, 16, "cuda"), (torch.float16, 129, "cuda"),
        (torch.float64, 32, "cuda"),
    ],
)  # fmt: skip
def test_auto_takes_matrix_units_where_there_are_many_parts(
    dtype: torch.dtype, parts: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def takes(request: ops.Request) -> list[str]:
        logits = request.tensors["part_logits"]
        assert logits is not None
        return [] if logits.dtype != torch.float64 and logits.shape[1] <= 129 else ["no"]

    module = importlib.import_module("motarfuse.ops.part_pool")  # the package has the function of this name
    monkeypatch.setattr(module, "_TRITON_BACKEND", ops.Backend("triton", triton, takes))
    reasons = ops.operators()["part_pool"].backends["cuda"].auto_reasons(_request(dtype, parts, "cuda"))
    assert ("triton" if reasons else "cuda") == name


# The registered operators --------------------------------------------------------------------------------------------


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_operators_pass_opcheck(dtype: torch.dtype) -> None:
    forward, backward = _forward_and_backward()
    tensors = [tensor.to(DEVICE) for tensor in as_a_feature_map(case(17, dtype)).values()]
    for save_statistics in (False, True):
        torch.library.opcheck(forward, (*tensors, save_statistics))
    pooled, mass, total, exact = forward(*tensors, True)
    assert exact.numel() == (pooled.numel() if dtype == torch.float16 else 0)
    saved = (exact if dtype == torch.float16 else pooled, total)
    gradients = (torch.ones_like(pooled), torch.ones_like(mass))
    for given in (gradients, (gradients[0], None), (None, gradients[1]), (None, None)):
        torch.library.opcheck(backward, (*given, *tensors, *saved, True, True))
    for needs in ((True, False), (False, True), (False, False)):
        torch.library.opcheck(backward, (*gradients, *tensors, *saved, *needs))


@here
@pytest.mark.parametrize("cells", [48, 300])
def test_a_gradient_of_another_dtype_is_not_rounded(cells: int) -> None:
    forward, backward = _forward_and_backward()
    tokens, logits = (tensor.to(DEVICE) for tensor in mixed(case(cells, torch.float16), torch.float32).values())
    pooled, _, total, exact = forward(tokens, logits, True)
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    _, found = backward(grad, None, tokens, logits, exact, total, True, True)
    leaf = logits.clone().requires_grad_()
    expected = torch.autograd.grad(ops.part_pool(tokens.float(), leaf, impl="reference").pooled, leaf, grad)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@here
def test_a_call_compiles_into_one_graph_with_gradients() -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(33).items()}
    compiled = torch.compile(triton, fullgraph=True, backend="aot_eager")
    for function in (triton, compiled):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        pooled, mass = function(**leaves)
        gradients = torch.autograd.grad(pooled.square().sum() + mass.square().sum(), list(leaves.values()))
        found = (pooled, mass, *gradients)
        if function is triton:
            expected = found
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.gpu
def test_a_cuda_graph_captures_forward_and_backward() -> None:
    inputs = {n: t.cuda().requires_grad_() for n, t in case(128, torch.bfloat16, parts=8, channels=768).items()}
    incoming = torch.randn(2, 8, 768, device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = torch.autograd.grad(triton(**inputs).pooled, list(inputs.values()), incoming)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = torch.autograd.grad(triton(**inputs).pooled, list(inputs.values()), incoming)
    graph.replay()
    torch.cuda.synchronize()
    for got, wanted in zip(captured, expected, strict=True):
        assert torch.equal(got, wanted)
