"""The Triton kernels of add_layer_norm by the tolerance rule: in Triton's interpreter, on a GPU where there is one.

The interpreter shows indices, masks, formulas and what float16 rounds; bfloat16 and speed it cannot show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from motarfuse.kernels import add_layer_norm as kernels
from motarfuse.kernels import row_norm

from motarfuse import ops
from tests.ops.add_layer_norm_cases import (
    LAYOUTS,
    RESULTS,
    SCALES,
    VIEWS,
    case,
    check,
    map_tokens,
    outputs_and_gradients,
)
from tests.ops.kernel_cases import Inputs, Layout, every_second, layout_name, transposed
from tests.ops.operator_cases import normal
from tests.ops.triton_cases import DEVICE, GPU, INTERPRETER, Backend, backends, here

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
# Of x, of the residual, of vectors. The interpreter's bf16 arithmetic is wrong.
USUAL = [(F32, F32, F32), (F16, F32, F32), (F16, F16, F16), (BF16, F32, F32), (BF16, BF16, BF16)]
OTHERS = [(F32, F16, F32), (F16, F16, F32), (F16, F32, F16), (BF16, BF16, F32), (F32, BF16, F32), (F16, BF16, F32)]
dtypes = {
    name: pytest.mark.parametrize(
        ("backend", "kinds"),
        [
            pytest.param(*backend.values, kinds, id=f"{backend.id}-{kinds}".replace("torch.", ""), marks=backend.marks)
            for backend in (INTERPRETER, GPU)
            for kinds in chosen
            if backend is GPU or BF16 not in kinds
        ],
    )
    for name, chosen in (("usual", USUAL), ("others", OTHERS))
}
Kinds = tuple[torch.dtype, torch.dtype, torch.dtype]
SHAPES = [
    (1, 1), (3, 7), (2, 3, 1), (2, 1, 63), (2, 4, 64), (1, 5, 65), (2, 3, 129), (2, 2, 2, 100), (1, 384), (1, 3, 768),
    (2, 1000),
]  # fmt: skip
LARGE = [(4, 129, 768), (1, 211, 64), (3, 197, 384), (2, 65, 1024), (7, 63, 2048), (2, 129, 4096), (2, 5, 3, 4001)]


def of_kinds(shape: tuple[int, ...], kinds: Kinds, **options: Any) -> Inputs:
    x, residual, vectors = kinds
    return case(*shape, x=x, residual=residual, vectors=vectors, **options)


def triton(**inputs: Any) -> ops.AddLayerNorm:
    return ops.add_layer_norm(**inputs, impl="triton")


def _forward_and_backward() -> tuple[Any, Any]:
    namespace = torch.ops.motarfuse
    return namespace.add_layer_norm_forward_triton.default, namespace.add_layer_norm_backward_triton.default


@dtypes["usual"]
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_keep_the_rule(backend: Backend, kinds: Kinds, shape: tuple[int, ...]) -> None:
    check(backend, of_kinds(shape, kinds))


@dtypes["others"]
@pytest.mark.parametrize("scales", [(), SCALES], ids=["plain", "scaled"])
def test_other_mixtures_of_dtypes_keep_the_rule(backend: Backend, kinds: Kinds, scales: tuple[str, ...]) -> None:
    check(backend, of_kinds((2, 3, 72), kinds, scales=scales))


@dtypes["usual"]
@pytest.mark.parametrize("scales", [(), ("layer_scale",), ("sample_scale",)], ids=str)
def test_without_one_or_both_scales(backend: Backend, kinds: Kinds, scales: tuple[str, ...]) -> None:
    check(backend, of_kinds((3, 5, 72), kinds, scales=scales))


@backends
@pytest.mark.parametrize("channels", [2048, 4096])
def test_rows_that_take_more_than_a_warp(backend: Backend, channels: int) -> None:
    check(backend, case(1, 3, channels, x=F16, residual=F32))


@pytest.mark.gpu
@pytest.mark.parametrize("kinds", USUAL, ids=str)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_inputs_keep_the_rule_on_a_gpu(kinds: Kinds, shape: tuple[int, ...]) -> None:
    check(("triton", "cuda"), of_kinds(shape, kinds))


@pytest.mark.gpu
def test_a_million_rows_keep_the_rule_on_a_gpu() -> None:
    check(("triton", "cuda"), case(1024, 1024, 64, x=BF16, residual=F32))


# Statistics ----------------------------------------------------------------------------------------------------------


@dtypes["usual"]
@pytest.mark.parametrize("channels", [100, 768])
def test_rows_with_a_large_common_offset_keep_the_rule(backend: Backend, kinds: Kinds, channels: int) -> None:
    """Beside 1e4, float16's sum has lost most of the deviations, which the gradients need."""
    inputs = of_kinds((2, 3, channels), kinds, scales=())
    inputs["residual"] = torch.full_like(inputs["residual"], 9984.0)
    check(backend, inputs)


@backends
def test_constant_rows_are_the_bias(backend: Backend) -> None:
    """With a small eps, what rounding leaves of their mean would be large once it is normalised."""
    inputs = case(4, 6, 100, scales=())
    inputs |= {"x": torch.zeros(4, 6, 100), "residual": 10 * inputs["residual"][..., :1].expand(4, 6, 100)}
    inputs = {name: tensor.to(backend[1]) for name, tensor in inputs.items()}
    normed = ops.add_layer_norm(**dict[str, Any](inputs), eps=1e-12, impl="triton").normed
    torch.testing.assert_close(normed, inputs["bias"].expand_as(normed), rtol=1e-5, atol=1e-5)


@backends
def test_eps_is_added_to_the_variance(backend: Backend) -> None:
    inputs = {name: tensor.to(backend[1]) for name, tensor in case(2, 3, 72).items()}
    for eps in (1e-12, 0.5):
        expected = ops.add_layer_norm(**inputs, eps=eps, impl="reference").normed
        torch.testing.assert_close(triton(**inputs, eps=eps).normed, expected, rtol=1e-5, atol=1e-5)


@backends
def test_a_nan_or_an_infinity_stays_in_its_row(backend: Backend) -> None:
    for value in (torch.nan, torch.inf):
        inputs = {name: tensor.to(backend[1]) for name, tensor in case(2, 3, 72).items()}
        inputs["x"][1, 2, 5] = value
        result = triton(**inputs)
        expected = ops.add_layer_norm(**dict[str, Any](inputs), impl="reference")
        assert torch.equal(result.normed.isnan(), expected.normed.isnan())
        torch.testing.assert_close(result.sum, expected.sum, equal_nan=True)


# Programs ------------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("chain", [2, 128])
@pytest.mark.parametrize("shape", [(3, 50, 40), (2, 11, 300)], ids=str)
def test_a_program_may_take_many_rows(
    backend: Backend, chain: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a batch that is large enough to keep a GPU busy, and in one of which sums would get long."""
    monkeypatch.setattr(row_norm, "MAX_CHAIN", chain)
    monkeypatch.setattr(kernels, "multiprocessors_of", lambda _: 1)
    check(backend, case(*shape, x=F16, residual=F32))


def test_rows_are_cut_by_sizes_alone_and_no_sum_gets_long() -> None:
    for rows in (1, 7, 8256, 66048, 10**6, 10**7):
        for block_m in (1, 2, 32):
            cut = row_norm.cut_rows(rows, block_m, 132, sums=True)
            assert cut.rows_each % block_m == 0
            assert (cut.programs - 1) * cut.rows_each < rows <= cut.programs * cut.rows_each
            assert cut.rows_each <= row_norm.MAX_CHAIN * block_m
            assert cut.programs <= max(264, rows // (row_norm.MAX_CHAIN * block_m) + 1)
    assert row_norm.cut_rows(100, 8, 132, sums=False) == row_norm.Cut(13, 8)


@backends
def test_rows_beyond_32_bits_are_counted_in_64(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_norm, "WIDE_ROWS", 1)
    check(backend, map_tokens(case(2, 5, 33), lambda tensor: torch.cat((tensor, tensor), 1)[:, 3:8]))


# Layouts -------------------------------------------------------------------------------------------------------------


@dtypes["usual"]
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
def test_views_with_other_strides_keep_the_rule(backend: Backend, kinds: Kinds, layout: Layout) -> None:
    inputs = of_kinds((3, 5, 40), kinds)
    check(backend, map_tokens(inputs, layout))
    check(backend, {**inputs, "residual": layout(inputs["residual"])}, incoming=lambda _, tensor: layout(tensor))


@backends
def test_vectors_with_other_strides_keep_the_rule(backend: Backend) -> None:
    inputs = case(3, 5, 40)
    check(backend, {name: every_second(tensor) if tensor.ndim == 1 else tensor for name, tensor in inputs.items()})
    check(
        backend, {name: tensor[:1].expand_as(tensor) if tensor.ndim == 1 else tensor for name, tensor in inputs.items()}
    )


@pytest.mark.parametrize(("tensor", "stays"), VIEWS.values(), ids=list(VIEWS))
def test_rows_are_reached_by_two_strides_without_a_copy(tensor: torch.Tensor, stays: bool) -> None:
    """Read element by element as the kernels do, beside a contiguous tensor of the same shape."""
    rows = row_norm.as_rows({"x": tensor, "none": None, "residual": tensor.contiguous()})
    known = rows.arguments()
    found = known["p_x"]
    assert (found.data_ptr() == tensor.data_ptr()) == stays
    assert known["p_none"] is None
    *leading, channels = tensor.shape
    count = torch.Size(leading).numel()
    inner = rows.inner or count
    for name in ("x", "residual"):
        memory, start = known[f"p_{name}"].untyped_storage(), known[f"p_{name}"].storage_offset()
        flat = torch.empty(0).set_(memory)
        strides = [known[f"{name}_{axis}"] for axis in ("outer", "inner", "channel")]
        place = [
            start + (row // inner * strides[0] + row % inner * strides[1]) * rows.unit + channel * strides[2]
            for row in range(count)
            for channel in range(channels)
        ]
        assert torch.equal(flat[place], tensor.reshape(-1)), name


@backends
@pytest.mark.parametrize("name", ["two cut", "reversed", "in another order", "broadcast middle"])
def test_tensors_of_four_dimensions_keep_the_rule(backend: Backend, name: str) -> None:
    view = VIEWS[name][0]
    inputs = case(*view.shape)
    check(backend, {**inputs, "x": view})


# Gradients -----------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("results", [("normed",), ("sum",)], ids=str)
@pytest.mark.parametrize("scales", [(), SCALES], ids=["plain", "scaled"])
def test_a_result_that_nothing_depends_on_has_no_gradient(
    backend: Backend, results: tuple[str, ...], scales: tuple[str, ...]
) -> None:
    for residual in (F32, F16):
        check(backend, case(2, 5, 40, x=F16, residual=residual, scales=scales), results=results)


@here
@pytest.mark.parametrize("residual_dtype", [F32, F16], ids=str)
def test_a_gradient_alone_is_the_one_of_all(residual_dtype: torch.dtype) -> None:
    forward, backward = _forward_and_backward()
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(2, 5, 40, x=F16, residual=residual_dtype).items()}
    normed, total, mean, rstd = forward(*inputs.values(), 1e-6, True)
    exact = (None, total) if residual_dtype == F32 else (inputs["residual"], None)
    vectors = (inputs["weight"], inputs["layer_scale"], inputs["sample_scale"])
    arguments = (normed.sin(), total.cos(), inputs["x"], *exact, *vectors, mean, rstd, F16, inputs["bias"].dtype)
    everything = backward(*arguments, 63)
    for index, (name, one) in enumerate(zip(inputs, everything, strict=True)):
        assert one.shape == inputs[name].shape
        assert one.dtype == inputs[name].dtype
        alone = backward(*arguments, 1 << index)
        for place, gradient in enumerate(alone):
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
@pytest.mark.parametrize(
    ("residual", "learning", "kept"),
    [
        (F32, (), {"sum"}), (F32, ("sample_scale",), {"sum", "x"}), (F32, ("layer_scale",), {"sum", "x"}),
        (F16, (), {"x", "residual"}), (F16, SCALES, {"x", "residual"}),
    ],
)  # fmt: skip
def test_no_more_is_kept_than_the_backward_needs(
    residual: torch.dtype, learning: tuple[str, ...], kept: set[str]
) -> None:
    """Scales may be there and not learn: x is not needed then."""
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(2, 5, 40, x=F16, residual=residual).items()}
    for name, tensor in inputs.items():
        tensor.requires_grad_(name not in SCALES or name in learning)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(_keep(saved), lambda one: one):
        result = triton(**inputs)
    large = {**inputs, "sum": result.sum, "normed": result.normed}
    places = {tensor.data_ptr(): name for name, tensor in large.items() if tensor.ndim > 1}
    assert {places.get(one.data_ptr(), "another") for one in saved if one.shape == inputs["x"].shape} == kept


@here
def test_x_and_residual_share_a_gradient_where_nothing_scales_it() -> None:
    inputs = {name: tensor.to(DEVICE).requires_grad_() for name, tensor in case(2, 5, 40, scales=()).items()}
    grad_x, grad_residual = torch.autograd.grad(triton(**inputs).normed.sin().sum(), (inputs["x"], inputs["residual"]))
    assert grad_x.data_ptr() == grad_residual.data_ptr()
    alone = torch.autograd.grad(triton(**inputs).normed.sin().sum(), inputs["x"])[0]
    assert torch.equal(alone, grad_x)


@backends
def test_two_runs_are_bitwise_equal(backend: Backend) -> None:
    for residual in (F32, F16):
        inputs = {name: tensor.to(backend[1]) for name, tensor in case(3, 11, 130, x=F16, residual=residual).items()}
        first, second = (outputs_and_gradients(inputs, "triton") for _ in range(2))
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


@here
def test_results_are_those_of_a_call_without_gradients() -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(2, 5, 72, x=F16, residual=F32).items()}
    trained = outputs_and_gradients(inputs, "triton")
    for name, value in triton(**inputs)._asdict().items():
        assert torch.equal(value, trained[name])


@pytest.mark.skipif(DEVICE == "cuda", reason="float64 is interpreted only")
@pytest.mark.parametrize("scales", [(), SCALES], ids=["plain", "scaled"])
def test_derivatives_are_those_of_finite_differences(scales: tuple[str, ...]) -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in case(2, 2, 3, x=torch.float64, scales=scales).items()}

    def call(*tensors: torch.Tensor) -> ops.AddLayerNorm:
        return triton(**dict(zip(inputs, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=True)


@here
def test_the_second_derivative_is_refused() -> None:
    inputs = {name: tensor.to(DEVICE).requires_grad_() for name, tensor in case(2, 3, 8).items()}
    (grad,) = torch.autograd.grad(triton(**inputs).normed.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="add_layer_norm: compiled kernels are differentiable once"):
        grad.sum().backward()


# Edges and choice ----------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("shape", [(0, 4, 6), (2, 0, 6), (0, 6)], ids=str)
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
@pytest.mark.parametrize("kinds", [(BF16, F32, F32), (F32, BF16, F32), (F32, F32, BF16)], ids=str)
def test_the_interpreter_refuses_bfloat16_and_auto_never_takes_it(kinds: Kinds) -> None:
    inputs = of_kinds((2, 8), kinds)
    with pytest.raises(RuntimeError, match="interpreter cannot compute in bfloat16"):
        triton(**inputs)
    request = ops.Request(torch.device("cpu"), {**case(2, 8)}, {"eps": 1e-6})
    assert ops.operators()["add_layer_norm"].select(request).name != "triton"


# The registered operators --------------------------------------------------------------------------------------------


@here
@pytest.mark.parametrize(("residual", "scales"), [(F32, ()), (F16, SCALES)], ids=["plain", "scaled"])
def test_the_operators_pass_opcheck(residual: torch.dtype, scales: tuple[str, ...]) -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares two runs, and NaN is not equal to NaN
    forward, backward = _forward_and_backward()
    inputs = map_tokens(case(2, 5, 17, x=F16, residual=residual, scales=scales), transposed)
    inputs = {name: tensor.to(DEVICE) for name, tensor in inputs.items()}
    layer, sample = (inputs.get(name) for name in SCALES)
    x, residual_in, weight, bias = (inputs[name] for name in ("x", "residual", "weight", "bias"))
    for save_statistics in (False, True):
        torch.library.opcheck(forward, (x, residual_in, weight, bias, layer, sample, 1e-6, save_statistics))
    normed, total, mean, rstd = forward(x, residual_in, weight, bias, layer, sample, 1e-6, True)
    kept = (x if scales else None, None, total) if residual == F32 else (x, residual_in, None)
    rest = (*kept, weight, layer, sample, mean, rstd, x.dtype, bias.dtype)
    everything = 63 if scales else 15
    for given in ((normed, total), (normed, None), (None, total), (None, None)):
        torch.library.opcheck(backward, (*given, *rest, everything))
    for needs in (0, 1, 2, 12):
        torch.library.opcheck(backward, (normed, total, *rest, needs))


def _trained(function: Callable[..., Any], inputs: Inputs) -> tuple[torch.Tensor, ...]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    normed, total = function(**leaves)
    gradients = torch.autograd.grad(normed.square().sum() + total.sin().sum(), list(leaves.values()))
    return (normed, total, *gradients)


@here
@pytest.mark.parametrize("scales", [(), SCALES], ids=["plain", "scaled"])
def test_a_call_compiles_into_one_graph_with_gradients(scales: tuple[str, ...]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(triton, fullgraph=True, backend="aot_eager")
    for shape, residual in (((2, 5, 24), F32), ((3, 7, 24), F16)):
        drawn = case(*shape, x=F16, residual=residual, scales=scales)
        inputs = {name: tensor.to(DEVICE) for name, tensor in drawn.items()}
        for got, wanted in zip(_trained(compiled, inputs), _trained(triton, inputs), strict=True):
            torch.testing.assert_close(got, wanted)


class _Module(torch.nn.Module):
    def forward(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
        return tuple(triton(x=x, residual=residual, weight=weight, bias=bias))


@here
def test_export_keeps_it_as_one_operator_with_dynamic_sizes() -> None:
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=4096)
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(2, 5, 24, scales=()).items()}
    sizes = {"x": {0: batch, 1: length}, "residual": {0: batch, 1: length}, "weight": None, "bias": None}
    program = torch.export.export(_Module(), (), inputs, dynamic_shapes=sizes)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.motarfuse.add_layer_norm_forward_triton.default in targets
    others = {name: tensor.to(DEVICE) for name, tensor in case(3, 9, 24, scales=()).items()}
    for result, wanted in zip(program.module()(**others), triton(**others), strict=True):
        assert torch.equal(result, wanted)


@pytest.mark.gpu
def test_a_cuda_graph_captures_forward_and_backward() -> None:
    inputs = {n: t.cuda().requires_grad_() for n, t in case(8, 129, 768, x=BF16, residual=F32).items()}
    incoming = normal(2)(8, 129, 768).cuda().bfloat16()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = torch.autograd.grad(triton(**inputs).normed, list(inputs.values()), incoming)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = torch.autograd.grad(triton(**inputs).normed, list(inputs.values()), incoming)
    graph.replay()
    torch.cuda.synchronize()
    for got, wanted in zip(captured, expected, strict=True):
        assert torch.equal(got, wanted)


def test_the_results_that_are_checked_are_all_of_them() -> None:
    assert ops.AddLayerNorm._fields == RESULTS
