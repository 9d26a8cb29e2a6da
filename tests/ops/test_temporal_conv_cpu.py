"""The C++ kernels of temporal_conv by the tolerance rule: around tiles, taps, masks, layouts, threads, processors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from motarfuse import ops
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
from tests.ops.temporal_conv_cases import case, check, outputs_and_gradients

pytestmark = needs_native
BACKEND = ("cpu", "cpu")
dtypes = pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
missing = pytest.mark.parametrize("missing", ["hold", "zero"])
masks = pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])

kernel: Callable[..., torch.Tensor] = partial(ops.temporal_conv, impl="cpu")


def operators() -> tuple[Any, Any]:
    namespace = torch.ops.motarfuse
    return namespace.temporal_conv_forward.default, namespace.temporal_conv_backward.default


@missing
@masks
@pytest.mark.parametrize(
    ("frames", "width"), [(1, 1), (1, 3), (1, 5), (2, 5), (5, 3), (4, 9), (8, 7), (6, 1), (2, 13), (20, 17), (40, 3)]
)
def test_result_and_gradients_keep_the_rule(missing: str, masked: bool, frames: int, width: int) -> None:
    check(BACKEND, case(frames, width=width, masked=masked), missing=missing)


@dtypes
@pytest.mark.parametrize(
    ("tokens", "channels"),
    [(1, 1), (7, 63), (9, 64), (65, 8), (3, 129), (9, 192), (2, 384), (1, 1000), (2, 2049), (700, 1), (129, 48)],
)
def test_any_number_of_tokens_and_channels(dtype: torch.dtype, tokens: int, channels: int) -> None:
    """Several tokens a tile, the last tile with fewer, one token a tile, more channels than a tile has numbers."""
    check(BACKEND, case(2, tokens, channels, masked=True, dtype=dtype))


@dtypes
@missing
@masks
def test_single_frames(dtype: torch.dtype, missing: str, masked: bool) -> None:
    for width in (3, 7):
        check(BACKEND, case(1, 150, 10, width=width, masked=masked, batch=4, dtype=dtype), missing=missing)


@pytest.mark.parametrize("pair", [(torch.float16, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
def test_weights_of_another_dtype_keep_the_rule(pair: tuple[torch.dtype, torch.dtype]) -> None:
    check(BACKEND, case(4, 9, 24, dtype=pair[0], weight_dtype=pair[1], masked=True, batch=3))


@pytest.mark.parametrize(("frames", "batch"), [(8, 20), (1, 300)])
def test_sums_over_many_tiles_keep_the_rule(frames: int, batch: int) -> None:
    """Of several blocks, each of several runs; of one sign, sums grow far beyond their terms."""
    inputs = case(frames, 65, 24, batch=batch)
    check(BACKEND, inputs)
    check(BACKEND, {**inputs, "x": inputs["x"].abs()}, incoming=lambda _, gradient: gradient.abs())


# Layouts -------------------------------------------------------------------------------------------------------------


def _without_class_tokens(x: torch.Tensor) -> torch.Tensor:
    return torch.cat((torch.full_like(x[:, :, :1], torch.nan), x), dim=2)[:, :, 1:]


def _one_frame_for_all(x: torch.Tensor) -> torch.Tensor:
    return x[:, :1].expand_as(x)


def _frames_outside(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _tokens_backwards_in_memory(x: torch.Tensor) -> torch.Tensor:
    return x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)


LAYOUTS = [
    every_second, transposed, expanded_over_the_batch, expanded_over_the_last, misaligned, _without_class_tokens,
    _one_frame_for_all, _frames_outside, _tokens_backwards_in_memory,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("channels", [1, 24, 2100])
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


def test_weight_bias_and_mask_may_be_views() -> None:
    inputs = case(4, 5, 24, masked=True)
    mask = inputs["frame_mask"]
    views = {"weight": transposed(inputs["weight"]), "bias": every_second(inputs["bias"])}
    views["frame_mask"] = mask.t().contiguous().t()
    check(BACKEND, {**inputs, **views})
    whole = case(4, 5, 24)
    check(BACKEND, {**whole, "weight": whole["weight"][:1].expand(24, 3), "bias": whole["bias"][:1].expand(24)})
    check(BACKEND, {**whole, "frame_mask": torch.tensor([[True, False, True, True]]).expand(2, 4)})


# Meaning -------------------------------------------------------------------------------------------------------------


def test_a_static_clip_gives_in_each_frame_what_its_image_gives() -> None:
    """Bitwise: the same sums in the same order."""
    inputs = case(1, width=5)
    mask = torch.tensor([[True, True, False, True, True], [False, True, True, False, False]])
    single = kernel(**inputs).expand(-1, 5, -1, -1)
    inputs["x"] = inputs["x"].expand(-1, 5, -1, -1)
    clip = kernel(**inputs, frame_mask=mask)
    assert torch.equal(clip[mask], single[mask])
    assert torch.equal(clip[~mask], torch.zeros_like(clip[~mask]))


@missing
@pytest.mark.parametrize("hidden", [torch.nan, torch.inf])
def test_what_a_masked_frame_holds_is_never_read(missing: str, hidden: float) -> None:
    inputs = case(6, masked=True)
    absent = ~inputs["frame_mask"][..., None, None]

    def with_hidden(value: float) -> Inputs:
        spoilt = {**inputs, "x": inputs["x"].masked_fill(absent, value)}
        return outputs_and_gradients(
            spoilt, "cpu", incoming=lambda _, gradient: gradient.masked_fill(absent, value), missing=missing
        )

    found = with_hidden(hidden)
    for name, clean in with_hidden(0.0).items():
        assert clean.isfinite().all()
        assert torch.equal(found[name], clean), name


# Gradients -----------------------------------------------------------------------------------------------------------


@missing
@pytest.mark.parametrize("frames", [1, 4])
def test_a_gradient_alone_is_the_one_of_all(missing: str, frames: int) -> None:
    _, backward = operators()
    for dtype in (torch.float32, torch.float16):
        x, weight, bias, mask = case(frames, 1, 3, masked=True, dtype=dtype).values()
        arguments = (torch.ones_like(x), x, weight, bias, mask, missing)
        every = backward(*arguments, True, True, True)
        for needs in ((True, False, False), (False, True, False), (False, False, True), (True, False, True)):
            for found, expected, wanted in zip(backward(*arguments, *needs), every, needs, strict=True):
                assert torch.equal(found, expected) if wanted else found.numel() == 0


def test_two_runs_with_any_number_of_threads_are_bitwise_equal() -> None:
    for frames, batch in ((8, 7), (1, 40)):
        inputs, results = case(frames, 65, 24, masked=True, batch=batch), []
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


def test_nothing_but_the_arguments_is_kept_for_the_backward() -> None:
    kept: list[torch.Tensor] = []
    inputs = case(4, masked=True)
    inputs["x"].requires_grad_()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kernel(**inputs)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in inputs.values()}


def test_no_bias_is_a_bias_of_zeros() -> None:
    inputs = case(4, masked=True)
    del inputs["bias"]
    check(BACKEND, inputs)


@missing
@pytest.mark.parametrize("frames", [1, 4])
def test_derivatives_are_those_of_finite_differences(missing: str, frames: int) -> None:
    inputs = case(frames, 1, 2, dtype=torch.float64, width=5)
    mask = torch.tensor([[True, False, True, True], [True, True, True, False]])[:, :frames]
    leaves = [inputs[name].requires_grad_() for name in ("x", "weight", "bias")]
    assert torch.autograd.gradcheck(lambda *given: kernel(*given, mask, missing=missing), leaves)


def test_the_second_derivative_is_refused() -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in case(3).items()}
    out = kernel(**inputs)
    (grad,) = torch.autograd.grad(out.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="temporal_conv: compiled kernels are differentiable once"):
        grad.sum().backward()


# Edges, choice, registration and processors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "frames", "tokens", "channels"), [(0, 3, 3, 5), (2, 0, 3, 5), (2, 3, 0, 5), (2, 3, 3, 0)]
)
def test_empty_dimensions(batch: int, frames: int, tokens: int, channels: int) -> None:
    inputs = case(frames, tokens, channels, batch=batch)
    result = outputs_and_gradients(inputs, "cpu")
    for name, expected in outputs_and_gradients(inputs, "reference").items():
        assert torch.equal(result[name], expected), name


@pytest.mark.parametrize(
    ("dtype", "chosen"), [(torch.float32, "cpu"), (torch.bfloat16, "cpu"), (torch.float64, "reference")]
)
def test_auto_takes_the_kernel_where_it_is_faster(dtype: torch.dtype, chosen: str) -> None:
    request = ops.Request(torch.device("cpu"), {**case(3, masked=True, dtype=dtype)}, {"missing": "hold"})
    assert ops.operators()["temporal_conv"].select(request).name == chosen


@dtypes
def test_the_operators_pass_opcheck(dtype: torch.dtype) -> None:
    forward, backward = operators()
    x, weight, bias, mask = case(3, 2, 5, masked=True, dtype=dtype).values()
    x = transposed(torch.nan_to_num(x))  # NaN is not equal to itself
    for given in ((bias, mask), (None, None)):
        torch.library.opcheck(forward, (x, weight, *given, "hold"))
    for needs in ((True, True, True), (True, False, False), (False, False, True), (False, False, False)):
        torch.library.opcheck(backward, (torch.ones_like(x), x, weight, bias, mask, "zero", *needs))


def test_direct_calls_are_checked_before_memory_is_read() -> None:
    forward, backward = operators()
    x, weight, bias = case(3).values()
    mask = torch.ones(2, 3, dtype=torch.bool)
    for wrong, message in (
        ((x[0], weight, bias, None, "hold"), "x must have 4 dimensions"),
        ((x, weight[:4], bias, None, "hold"), "an odd number of taps for each channel"),
        ((x, weight[:, :2], bias, None, "hold"), "an odd number of taps for each channel"),
        ((x, weight, bias[:4], None, "hold"), "bias must have one number for each channel"),
        ((x, weight.double(), bias, None, "hold"), "half types and float32, or all of float64"),
        ((x, weight, bias.double(), None, "hold"), "half types and float32, or all of float64"),
        ((x, weight, bias, mask[:, :2], "hold"), "a boolean for each frame"),
        ((x, weight, bias, mask.float(), "hold"), "a boolean for each frame"),
        ((x, weight, bias, mask, "repeat"), "missing is hold or zero"),
    ):
        with pytest.raises(RuntimeError, match=message):
            forward(*wrong)
    for grad in (x[:1], x.half()):
        with pytest.raises(RuntimeError, match="grad_out must have the shape and dtype of x"):
            backward(grad, x, weight, bias, mask, "hold", True, True, True)


def test_a_call_compiles_into_one_graph_with_gradients() -> None:
    def call(*given: torch.Tensor) -> torch.Tensor:
        return kernel(*given)

    mask = case(4, masked=True)["frame_mask"]
    found: list[Inputs] = []
    for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        leaves = {name: tensor.requires_grad_() for name, tensor in case(4).items()}
        out = function(*leaves.values(), mask)
        gradients = torch.autograd.grad(out.square().sum(), list(leaves.values()))
        found.append({"out": out, **dict(zip(leaves, gradients, strict=True))})
    for name, expected in found[0].items():
        assert torch.equal(found[1][name], expected), name


def test_a_call_can_be_exported() -> None:
    class Module(torch.nn.Module):
        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            return kernel(*given)

    inputs = tuple(torch.nan_to_num(tensor) for tensor in case(4).values())
    program = torch.export.export(Module(), inputs)
    assert any(node.target is operators()[0] for node in program.graph.nodes)
    assert torch.equal(program.module()(*inputs), kernel(*inputs))


@pytest.mark.parametrize("capability", ["avx2", "baseline"])
def test_the_variants_for_older_processors_are_as_accurate(capability: str) -> None:
    tests = ["keep_the_rule", "tokens_and_channels", "single", "static", "threads"]
    check_on_older_processors(__file__, capability, " or ".join(tests))
