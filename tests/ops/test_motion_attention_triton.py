"""The Triton kernels of motion_attention by the tolerance rule: in Triton's interpreter, on a GPU where there is one.

The interpreter shows indices, masks and formulas; precision of products, bf16 and speed it cannot show.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from motarfuse import ops, reference
from motarfuse.nn import motion_attention as layers
from tests.ops.motion_attention_cases import (
    ATTENDED,
    NAMES,
    Inputs,
    Shape,
    check,
    incoming_gradient,
    inputs_of,
    outputs_and_gradients,
    square,
)

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from motarfuse.kernels import motion_attention as kernels
from motarfuse.kernels import motion_attention_table as table
from motarfuse.kernels._launch import architecture_of
from motarfuse.kernels._runtime import reasons_against_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if reasons := reasons_against_triton(DEVICE):
    pytest.skip("; ".join(reasons), allow_module_level=True)
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

# The interpreter's bf16 arithmetic is wrong.
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
HALF = DTYPES[1:]


# On a GPU every specialisation is compiled first, which takes seconds: a run in a hurry leaves out what is slow there.
thorough = pytest.mark.slow if DEVICE == "cuda" else pytest.mark.filterwarnings()


def reference_of(inputs: dict[str, Any]) -> torch.Tensor:
    return reference.motion_attention(**inputs)


def triton(**arguments: Any) -> torch.Tensor:
    return ops.motion_attention(**arguments, impl="triton")


# Half types take the short forward up to 256 keys, tiles of keys beyond; float32 always tiles.
LENGTHS = [1, 7, 63, 64, 128, 129, 138, 193, 197, 211]
SHAPES = [
    *(square(length) for length in LENGTHS),
    square(65, heads=3),
    Shape(8, 128, hidden=True),
    Shape(128, 8),
    Shape(1, 129, bias="batch"),
    Shape(70, 256, heads=1),
    Shape(150, 17, width=32),
    square(138, batch=2, bias="batch", hidden=True),
    square(138, bias="none"),
    square(129, channels=0),
    square(129, channels=0, bias="none"),
    square(129, channels=0, bias="batch", hidden=True, batch=2),
    square(70, width=16, channels=1, shared=False, hidden=True),
    square(70, width=24, channels=8),
    square(70, width=32, channels=13, shared=False, bias="batch"),
    square(70, width=72, channels=14),
    square(70, width=80, channels=16, shared=False, hidden=True),
    square(70, width=128, channels=12),
    square(65, heads=3, hidden=True),
    square(65, heads=1, hidden=True),
]
CORE = {Shape(8, 128, hidden=True), square(129), square(211), square(138, batch=2, bias="batch", hidden=True)}
LONG = [square(516, heads=1, channels=12), Shape(40, 1104, heads=1), Shape(1032, 33, heads=1)]
GPU_ONLY = [square(1032), square(1104, batch=2, heads=3), square(4096, heads=1), Shape(5, 32768), Shape(32768, 5)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [
    *(pytest.param(shape, marks=() if shape in CORE else thorough) for shape in SHAPES),
    *LONG,
    *(GPU_ONLY if DEVICE == "cuda" else []),
], ids=str)  # fmt: skip
def test_outputs_and_all_gradients_keep_the_rule(shape: Shape, dtype: torch.dtype) -> None:
    check(triton, inputs_of(shape, dtype, DEVICE))


@thorough
@pytest.mark.parametrize("length", [16, 32, 60, 80, 96, 144, 160, 192, 208, 224, 243, 256])
def test_every_cut_of_the_short_forward_keeps_the_rule(length: int) -> None:
    plan = table.short_plan(90, True, 32, 1, length, length)
    assert plan is not None
    assert sum(plan.keys) >= length
    for dtype in HALF:
        check(triton, inputs_of(square(length, width=32, heads=1), dtype, DEVICE), wanted=())


def test_motion_in_the_query_dtype_is_taken_as_it_is() -> None:
    for dtype in HALF:
        result = check(triton, inputs_of(square(65, motion_dtype=dtype), dtype, DEVICE))
        assert result["motion_key"].dtype == dtype


# Layouts -------------------------------------------------------------------------------------------------------------


def _every_second_channel(inputs: Inputs) -> Inputs:
    return {name: t.repeat_interleave(2, dim=-1)[..., ::2] if name in ATTENDED else t for name, t in inputs.items()}


def _misaligned(inputs: Inputs) -> Inputs:
    def shifted(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view(tensor.shape)

    return {name: shifted(tensor.contiguous()) for name, tensor in inputs.items()}


def _broadcast_over_batch_and_heads(inputs: Inputs) -> Inputs:
    return {name: t[:1].expand_as(t) if name != "query" else t[:, :1].expand_as(t) for name, t in inputs.items()}


def _channels_before_tokens(inputs: Inputs) -> Inputs:
    return {name: t.mT.contiguous().mT if t.dim() == 4 else t for name, t in inputs.items()}


def _one_row_for_all(inputs: Inputs) -> Inputs:
    return {name: t[:, :, :1].expand_as(t) if name in ("query", "motion_query") else t for name, t in inputs.items()}


LAYOUTS = [
    _every_second_channel,
    _misaligned,
    _broadcast_over_batch_and_heads,
    _channels_before_tokens,
    _one_row_for_all,
]


@thorough
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__.strip("_"))
def test_views_with_other_strides_are_taken_as_they_are(layout: Any, dtype: torch.dtype) -> None:
    check(triton, layout(inputs_of(square(70, batch=2, width=32, shared=False), dtype, DEVICE)))


def test_an_incoming_gradient_of_any_strides_is_taken() -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in inputs_of(square(66), torch.float16, DEVICE).items()}
    expected = torch.autograd.grad(triton(**inputs), inputs["key"], torch.ones(1, 2, 66, 64, device=DEVICE).half())[0]
    assert torch.equal(torch.autograd.grad(triton(**inputs).sum(), inputs["key"])[0], expected)


def test_the_result_is_what_the_next_projection_reads_without_a_copy() -> None:
    out = triton(**inputs_of(square(65), torch.float16, DEVICE))
    assert out.transpose(1, 2).is_contiguous()


# Gradients -----------------------------------------------------------------------------------------------------------


@thorough
@pytest.mark.parametrize(
    "wanted", [(name,) for name in NAMES] + [("value", "key_bias"), ("motion_key", "query")], ids=str
)
def test_a_gradient_alone_is_the_one_of_all_together(wanted: tuple[str, ...]) -> None:
    for dtype in DTYPES[:2]:
        for shape in (square(66, width=32), square(66, width=32, shared=False, bias="batch")):
            inputs = inputs_of(shape, dtype, DEVICE)
            together = outputs_and_gradients(triton, inputs)
            alone = outputs_and_gradients(triton, inputs, wanted)
            for name in wanted:
                assert torch.equal(alone[name], together[name]), name


def test_two_runs_are_bitwise_equal() -> None:
    for dtype in DTYPES:
        inputs = inputs_of(square(129, heads=3, batch=2), dtype, DEVICE)
        first, second = (outputs_and_gradients(triton, inputs) for _ in range(2))
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


@pytest.mark.skipif(DEVICE == "cuda", reason="float64 is interpreted only")
def test_derivatives_are_those_of_finite_differences() -> None:
    inputs = inputs_of(Shape(5, 18, width=16, channels=3, batch=1, hidden=True), torch.float64)
    hidden = inputs["key_bias"] == -torch.inf
    inputs["key_bias"] = inputs["key_bias"].masked_fill(hidden, 0.0)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        named = dict(zip(NAMES, tensors, strict=True))
        return triton(**{**named, "key_bias": named["key_bias"].masked_fill(hidden, -torch.inf)})

    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True, atol=1e-6, rtol=1e-4)


@thorough
def test_hidden_rows_are_zero_and_have_no_gradient() -> None:
    for dtype in DTYPES:
        for length in (66, 300):
            result = outputs_and_gradients(triton, inputs_of(square(length, hidden=True, heads=2), dtype, DEVICE))
            assert torch.equal(result["out"][0, 1], torch.zeros_like(result["out"][0, 1]))
            for name in ATTENDED:
                assert torch.equal(result[name][0, 1], torch.zeros_like(result[name][0, 1])), name
            assert all(value.isfinite().all() for value in result.values())


@thorough
def test_large_scores_and_biases_are_stable() -> None:
    for dtype in DTYPES:
        for length in (66, 300):
            inputs = inputs_of(square(length), dtype, DEVICE)
            inputs["motion_scale"] = inputs["motion_scale"] * 16
            inputs["key_bias"] = inputs["key_bias"] * 50 - 100
            check(triton, inputs, wanted=())
            for offset in (
                100.0,
                1e4 if dtype == torch.float32 else 4e3,
            ):  # rows beyond the queries, whose scores are the bias alone, must weigh nothing
                inputs["key_bias"] = torch.zeros_like(inputs["key_bias"])
                inputs["key_bias"][..., 3::7] = offset
                result = outputs_and_gradients(triton, inputs)
                expected = outputs_and_gradients(reference.motion_attention, inputs)
                for name, value in result.items():
                    torch.testing.assert_close(value, expected[name], rtol=0.02, atol=0.3, msg=name)


def test_the_second_derivative_is_refused() -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in inputs_of(square(16), torch.float32, DEVICE).items()}
    (grad,) = torch.autograd.grad(triton(**inputs).square().sum(), inputs["query"], create_graph=True)
    with pytest.raises(RuntimeError, match="motion_attention: compiled kernels are differentiable once"):
        grad.sum().backward()


# The packed entry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_the_packed_entry_writes_one_gradient_that_is_the_three(dtype: torch.dtype) -> None:
    inputs = inputs_of(square(129, batch=2), dtype, DEVICE)
    single = outputs_and_gradients(triton, inputs)
    qkv = torch.stack([inputs[name].transpose(1, 2) for name in ATTENDED], dim=2).requires_grad_()
    bias: dict[str, Any] = {name: tensor.requires_grad_() for name, tensor in inputs.items() if name not in ATTENDED}
    out = ops.motion_attention_packed(qkv, **bias, impl="triton")
    assert out.is_contiguous()
    assert torch.equal(out.transpose(1, 2), single["out"])
    incoming = incoming_gradient(out.transpose(1, 2)).transpose(1, 2)
    grad, *others = torch.autograd.grad(out, [qkv, *bias.values()], incoming)
    assert grad.is_contiguous()
    for index, name in enumerate(ATTENDED):
        assert torch.equal(grad[:, :, index].transpose(1, 2), single[name]), name
    for name, other in zip(bias, others, strict=True):
        assert torch.equal(other, single[name]), name


def test_the_packed_entry_leaves_a_frozen_projection_without_a_gradient() -> None:
    inputs = inputs_of(square(65), torch.float16, DEVICE)
    qkv = torch.stack([inputs[name].transpose(1, 2) for name in ATTENDED], dim=2)
    bias: dict[str, Any] = {name: tensor.requires_grad_() for name, tensor in inputs.items() if name not in ATTENDED}
    out = ops.motion_attention_packed(qkv, **bias, impl="triton")
    (grad,) = torch.autograd.grad(out.float().square().sum(), bias["motion_scale"])
    assert grad.isfinite().all()


# Edges ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "heads", "queries", "keys", "channels"),
    [(0, 2, 5, 5, 3), (2, 2, 0, 5, 3), (2, 2, 5, 0, 3), (2, 0, 5, 5, 3), (2, 2, 5, 7, 0)],
)
def test_empty_dimensions(batch: int, heads: int, queries: int, keys: int, channels: int) -> None:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, device=DEVICE).requires_grad_()

    inputs = {
        "query": zeros(batch, heads, queries, 16), "key": zeros(batch, heads, keys, 16),
        "value": zeros(batch, heads, keys, 16), "motion_query": zeros(batch, 1, queries, channels),
        "motion_key": zeros(batch, 1, keys, channels), "motion_scale": zeros(heads), "key_bias": zeros(batch, keys),
    }  # fmt: skip
    result = outputs_and_gradients(triton, inputs)
    for name, expected in outputs_and_gradients(reference.motion_attention, inputs).items():
        torch.testing.assert_close(result[name], expected, msg=name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 20}, "head dims that are multiples of 8 from 16 to 128, got 20"),
        ({"width": 136}, "head dims that are multiples of 8 from 16 to 128, got 136"),
        ({"scale": -0.5}, "scales from 1/1024 to 1024, got -0.5"),
        ({"scale": 1e-8}, "scales from 1/1024 to 1024, got 1e-08"),
        ({"queries": 32769}, "up to 32768 queries and keys, got 32769 and 5"),
    ],
)
def test_what_the_kernels_do_not_take_is_said(change: dict[str, Any], reason: str) -> None:
    sizes = {"width": 16, "queries": 5} | change
    query, key = (torch.zeros(1, 1, n, sizes["width"], device=DEVICE) for n in (sizes["queries"], 5))
    with pytest.raises(RuntimeError, match=reason):
        ops.motion_attention(query, key, key, scale=sizes.get("scale"), impl="triton")


def test_the_interpreter_refuses_bfloat16() -> None:
    if DEVICE == "cuda":
        pytest.skip("nothing is interpreted on a GPU")
    with pytest.raises(RuntimeError, match="interpreter cannot compute in bfloat16"):
        triton(**inputs_of(square(5), torch.bfloat16))


def test_auto_never_takes_the_interpreter() -> None:
    if DEVICE == "cuda":
        pytest.skip("nothing is interpreted on a GPU")
    tensors = inputs_of(square(5), torch.float32)
    request = ops.Request(torch.device("cpu"), {**dict.fromkeys(NAMES), **tensors}, {"scale": 1.0})
    assert ops.operators()["motion_attention"].select(request).name != "triton"


# The registered operators --------------------------------------------------------------------------------------------


def test_the_operators_pass_opcheck() -> None:
    inputs = inputs_of(square(17, width=16, channels=3), torch.float32, DEVICE)
    tensors = [inputs[name] for name in NAMES]
    forward, backward = (
        getattr(torch.ops.motarfuse, f"motion_attention_{direction}_triton").default
        for direction in ("forward", "backward")
    )
    torch.library.opcheck(forward, (*tensors, 0.25))
    out, lse = forward(*tensors, 0.25)
    for packed, needs in ((False, 127), (True, 127), (False, 0b0100100)):
        torch.library.opcheck(backward, (torch.ones_like(out), *tensors, out, lse, 0.25, packed, needs))
    plain = [*tensors[:3], None, None, None, None]
    out, lse = forward(*plain, 0.25)
    torch.library.opcheck(backward, (torch.ones_like(out), *plain, out, lse, 0.25, False, 127))


def test_a_call_compiles_into_one_graph_with_gradients() -> None:
    inputs = inputs_of(square(33, width=16, channels=3), torch.float32, DEVICE)
    expected = outputs_and_gradients(triton, inputs)
    compiled = torch.compile(triton, fullgraph=True, backend="aot_eager")
    result = outputs_and_gradients(compiled, inputs)
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value)


@thorough
def test_other_batches_and_lengths_are_compiled_once_more_at_most() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(triton, fullgraph=True, backend=counter)
    for batch, length in ((2, 17), (3, 18), (4, 33), (5, 34), (2, 21)):
        inputs = inputs_of(square(length, batch=batch, width=16, channels=3), torch.float32, DEVICE)
        torch.testing.assert_close(compiled(**inputs), reference_of(inputs), rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 2


# The table -----------------------------------------------------------------------------------------------------------


def test_every_architecture_has_tiles_for_every_kernel() -> None:
    for architecture in table.ARCHITECTURES:
        for half in (True, False):
            for block_d in (16, 32, 64, 128):
                for kernel in ("forward", "backward_query", "backward_key"):
                    found = table.tiles(architecture, kernel, half, block_d)
                    assert kernels.PADDING % found.block_m == 0
                    assert kernels.PADDING % found.block_n == 0


@thorough
def test_tiles_can_be_replaced_for_a_while() -> None:
    entry = table.Entry(architecture_of(torch.device(DEVICE)), "forward", False, 32)
    inputs = inputs_of(square(66, width=32), torch.float32, DEVICE)
    expected = triton(**inputs)
    with table.override({entry: table.Tiles(16, 16, 4, 1)}):
        assert table.tiles(*entry).block_m == 16
        torch.testing.assert_close(triton(**inputs), expected)
    assert table.tiles(*entry).block_m != 16


# The layer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.1, 1.0, 4.0, 16.0])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_under_autocast_the_affinity_of_the_layer_is_accurate_to_float32(
    dtype: torch.dtype, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The softmax weights of motion alone, in the kernel for half types, of what the layer hands its operator."""
    torch.manual_seed(0)
    length = 128  # values are one-hot, so that outputs are the weights
    layer = layers.MotionAttention(2 * length, 2).to(DEVICE)
    assert layer.motion_bias is not None
    assert layer.motion_bias.raw_affinity is not None
    with torch.no_grad():
        layer.motion_bias.raw_affinity.copy_(torch.tensor(strength, dtype=torch.float64).expm1().log() / 20)
    # Groups that move alike, around what the camera does; the first token has no motion.
    motion = 1 + torch.randn(1, 8, 8).repeat_interleave(16, 1) + 0.3 * torch.randn(1, length, 8)
    moving = torch.ones(1, length)
    moving[:, 0] = 0
    handed: dict[str, Any] = {}

    def listen(qkv: torch.Tensor, **bias: Any) -> torch.Tensor:
        handed.update(bias, dtype=qkv.dtype)
        return ops.motion_attention_packed(qkv, **bias)

    monkeypatch.setattr(layers, "motion_attention_packed", listen)
    with torch.autocast(DEVICE, dtype=dtype), ops.use_backend("triton"):
        tokens = torch.randn(1, length, 2 * length, device=DEVICE)
        out = layer(tokens, layers.TokenMotion(motion.to(DEVICE), moving.to(DEVICE)))
    assert out.dtype == handed.pop("dtype") == dtype
    rounded = motion.double()
    affinity = -0.5 * (rounded[:, :, None] - rounded[:, None]).square().sum(-1) * (moving[:, :, None] * moving[:, None])
    exact = (strength * affinity).softmax(-1)[:, None].to(DEVICE)
    silent = torch.zeros(1, 2, length, length, dtype=dtype, device=DEVICE)
    identity = torch.eye(length, dtype=dtype, device=DEVICE).expand_as(silent)
    weights = triton(query=silent, key=silent, value=identity, **handed).double()
    product = handed["motion_query"].to(dtype).double() @ handed["motion_key"].to(dtype).double().mT
    plain = (strength * product).softmax(-1)
    # Weights are rounded once for their product with the values and once as the output; beside that, what three
    # products of hi + lo leave of the largest term, strength |m|^2 / 2.
    eps = torch.finfo(dtype).eps
    bound = eps * exact + 4 * eps**2 * (1 + strength * 0.5 * motion.square().sum(-1).max().item())
    assert ((weights - exact).abs() <= bound).all()
    if strength >= 1:
        assert not ((plain - exact).abs() <= bound).all()


# What only a GPU shows -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device, and torch sees none here")
@pytest.mark.parametrize("length", [129, 516])
def test_a_cuda_graph_captures_forward_and_backward_without_a_synchronisation(length: int) -> None:
    inputs = {n: t.requires_grad_() for n, t in inputs_of(square(length, batch=4), torch.bfloat16, DEVICE).items()}
    incoming = torch.randn(4, 2, length, 64, device=DEVICE, dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = torch.autograd.grad(triton(**inputs), list(inputs.values()), incoming)
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.autograd.grad(triton(**inputs), list(inputs.values()), incoming)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = torch.autograd.grad(triton(**inputs), list(inputs.values()), incoming)
    graph.replay()
    torch.cuda.synchronize()
    for got, wanted in zip(captured, expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device, and torch sees none here")
def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    peaks = []
    for length in (1024, 2048, 4096):
        inputs = {n: t.requires_grad_() for n, t in inputs_of(square(length), torch.bfloat16, DEVICE).items()}
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        triton(**inputs).float().sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[2] < 2.2 * peaks[1]
    assert peaks[1] < 2.2 * peaks[0]
