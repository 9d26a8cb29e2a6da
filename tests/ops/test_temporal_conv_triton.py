"""The Triton kernels of temporal_conv by the tolerance rule: in Triton's interpreter, on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from motarfuse.kernels import temporal_conv as kernels

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
from tests.ops.temporal_conv_cases import case, check, outputs_and_gradients
from tests.ops.triton_cases import BACKEND, BFLOAT16, DEVICE, here

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BFLOAT16], ids=str)
missing = pytest.mark.parametrize("missing", ["hold", "zero"])
masks = pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])


triton: Callable[..., torch.Tensor] = partial(ops.temporal_conv, impl="triton")


def operators() -> tuple[Any, Any]:
    namespace = torch.ops.motarfuse
    return namespace.temporal_conv_forward_triton.default, namespace.temporal_conv_backward_triton.default


@here
@missing
@masks
@pytest.mark.parametrize(("frames", "width"), [(1, 1), (1, 3), (2, 5), (5, 3), (4, 9), (8, 7), (6, 1), (2, 13)])
def test_result_and_gradients_keep_the_rule(missing: str, masked: bool, frames: int, width: int) -> None:
    check(BACKEND, case(frames, width=width, masked=masked), missing=missing)


@here
@missing
@masks
@pytest.mark.parametrize(("frames", "width"), [(5, 3), (4, 5), (5, 9)])
def test_long_clips_are_cut_into_runs_that_see_their_neighbours(
    missing: str, masked: bool, frames: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "RUN", 2)
    check(BACKEND, case(frames, width=width, masked=masked), missing=missing)


@here
def test_a_clip_of_more_frames_than_a_run_is_cut() -> None:
    check(BACKEND, case(kernels.RUN + 1, 1, 3, batch=1))


@here
@dtypes
@pytest.mark.parametrize(
    ("tokens", "channels"), [(1, 1), (7, 63), (9, 64), (65, 8), (3, 129), (9, 192), (2, 384), (1, 1000)]
)
def test_any_number_of_tokens_and_channels(dtype: torch.dtype, tokens: int, channels: int) -> None:
    check(BACKEND, case(2, tokens, channels, masked=True, dtype=dtype))


@here
@pytest.mark.parametrize("pair", [(torch.float16, torch.float32), (torch.float32, torch.float16)], ids=str)
def test_weights_of_another_dtype_keep_the_rule(pair: tuple[torch.dtype, torch.dtype]) -> None:
    check(BACKEND, case(4, 9, 24, dtype=pair[0], weight_dtype=pair[1], masked=True, batch=3))


@here
def test_programs_may_take_several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one fewer."""
    monkeypatch.setattr(kernels, "multiprocessors_of", lambda _: 2)
    monkeypatch.setattr(kernels, "RUN", 2)
    inputs = case(3, 40, 65, dtype=torch.float16, batch=3, masked=True)
    p = kernels.Problem(**inputs, missing="hold", grad_out=inputs["x"])
    launch, _ = kernels.backward_launches(p, inputs["x"], inputs["weight"], inputs["bias"], 2)
    assert launch.arguments["num_tasks"] % launch.arguments["tasks_each"] > 0
    check(BACKEND, inputs)


@pytest.mark.gpu
@dtypes
@missing
@pytest.mark.parametrize(
    ("frames", "tokens", "channels", "width"),
    [(8, 129, 192, 3), (1, 129, 192, 3), (40, 129, 24, 5), (16, 211, 96, 9), (70, 1, 768, 15), (3, 64, 1000, 7)],
)
def test_large_inputs_keep_the_rule(
    dtype: torch.dtype, missing: str, frames: int, tokens: int, channels: int, width: int
) -> None:
    check(BACKEND, case(frames, tokens, channels, width=width, batch=8, masked=True, dtype=dtype), missing=missing)


# Layouts -------------------------------------------------------------------------------------------------------------


def _frames_of_a_batch(x: torch.Tensor) -> torch.Tensor:
    """As a (B*T, N, C) tensor seen as clips."""
    return x.flatten(0, 1).clone().view(x.shape)


def _without_class_tokens(x: torch.Tensor) -> torch.Tensor:
    return torch.cat((torch.full_like(x[:, :, :1], torch.nan), x), dim=2)[:, :, 1:]


def _one_frame_for_all(x: torch.Tensor) -> torch.Tensor:
    return x[:, :1].expand_as(x)


def _frames_outside(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _tokens_backwards_in_memory(x: torch.Tensor) -> torch.Tensor:
    return x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)


LAYOUTS = [
    every_second, transposed, expanded_over_the_batch, expanded_over_the_last, misaligned, _frames_of_a_batch,
    _without_class_tokens, _one_frame_for_all, _frames_outside, _tokens_backwards_in_memory,
]  # fmt: skip


@here
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
def test_views_are_taken_as_they_are(layout: Callable[[torch.Tensor], torch.Tensor]) -> None:
    inputs = case(3, 5, 24, dtype=torch.float16)
    check(BACKEND, {**inputs, "x": layout(inputs["x"])})
    check(BACKEND, inputs, incoming=lambda _, gradient: layout(gradient))


@here
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


@here
def test_a_static_clip_gives_in_each_frame_what_its_image_gives() -> None:
    """Bitwise: the same sums in the same order."""
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(1, width=5).items()}
    mask = torch.tensor([[True, True, False, True, True], [False, True, True, False, False]], device=DEVICE)
    single = triton(**inputs).expand(-1, 5, -1, -1)
    inputs["x"] = inputs["x"].expand(-1, 5, -1, -1)
    clip = triton(**inputs, frame_mask=mask)
    assert torch.equal(clip[mask], single[mask])
    assert torch.equal(clip[~mask], torch.zeros_like(clip[~mask]))


@here
@missing
def test_masked_frames_at_the_end_change_nothing(missing: str) -> None:
    inputs = case(3)
    padding = torch.full((2, 2, 3, 5), torch.nan)
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    padded = {**inputs, "x": torch.cat((inputs["x"], padding), 1), "frame_mask": mask}

    def gradients_of(inputs: Inputs) -> Inputs:
        leaves = {name: tensor.to(DEVICE) for name, tensor in inputs.items()}
        leaves = {n: one.requires_grad_() if one.is_floating_point() else one for n, one in leaves.items()}
        out = triton(**leaves, missing=missing)
        names = ["x", "weight", "bias"]
        found = torch.autograd.grad(out.square().sum(), [leaves[name] for name in names])
        return {"out": out, **dict(zip(names, found, strict=True))}

    short, long = gradients_of(inputs), gradients_of(padded)
    for name, expected in short.items():
        assert torch.equal(long[name][:, :3] if expected.dim() == 4 else long[name], expected), name
    assert torch.equal(long["x"][:, 3:], torch.zeros_like(long["x"][:, 3:]))


# Gradients -----------------------------------------------------------------------------------------------------------


@here
@missing
def test_a_gradient_alone_is_the_one_of_all(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "RUN", 3)
    _, backward = operators()
    x, weight, bias, mask = (tensor.to(DEVICE) for tensor in case(4, 1, 3, masked=True).values())
    arguments = (torch.ones_like(x), x, weight, bias, mask, missing)
    every = backward(*arguments, True, True, True)
    for needs in ((True, False, False), (False, True, False), (False, False, True), (True, False, True)):
        for found, expected, wanted in zip(backward(*arguments, *needs), every, needs, strict=True):
            assert torch.equal(found, expected) if wanted else found.numel() == 0


@here
def test_two_runs_are_bitwise_equal() -> None:
    for dtype in (torch.float32, torch.float16):
        inputs = {n: tensor.to(DEVICE) for n, tensor in case(3, 20, 5, dtype=dtype, masked=True).items()}
        first, second = (outputs_and_gradients(inputs, "triton") for _ in range(2))
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


@here
def test_nothing_but_the_arguments_is_kept_for_the_backward() -> None:
    kept: list[torch.Tensor] = []
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(4, masked=True).items()}
    inputs["x"].requires_grad_()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        triton(**inputs)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in inputs.values()}


@here
def test_no_bias_is_a_bias_of_zeros() -> None:
    inputs = case(4, masked=True)
    del inputs["bias"]
    check(BACKEND, inputs)


@pytest.mark.skipif(DEVICE == "cuda", reason="float64 is interpreted only")
@missing
def test_derivatives_are_those_of_finite_differences(missing: str) -> None:
    inputs = case(4, 1, 2, dtype=torch.float64, width=5)
    mask = torch.tensor([[True, False, True, True], [True, True, True, False]])
    leaves = [inputs[name].requires_grad_() for name in ("x", "weight", "bias")]
    assert torch.autograd.gradcheck(lambda *given: triton(*given, mask, missing=missing), leaves, fast_mode=True)


@here
def test_the_second_derivative_is_refused() -> None:
    inputs = {name: tensor.to(DEVICE).requires_grad_() for name, tensor in case(3).items()}
    out = triton(**inputs)
    (grad,) = torch.autograd.grad(out.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="temporal_conv: compiled kernels are differentiable once"):
        grad.sum().backward()


# Edges and the registered operators ----------------------------------------------------------------------------------


@here
@pytest.mark.parametrize(
    ("batch", "frames", "tokens", "channels"), [(0, 3, 3, 5), (2, 0, 3, 5), (2, 3, 0, 5), (2, 3, 3, 0)]
)
def test_empty_dimensions(batch: int, frames: int, tokens: int, channels: int) -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(frames, tokens, channels, batch=batch).items()}
    result = outputs_and_gradients(inputs, "triton")
    for name, expected in outputs_and_gradients(inputs, "reference").items():
        assert torch.equal(result[name], expected), name


@here
def test_what_the_kernels_do_not_take_is_said() -> None:
    with pytest.raises(RuntimeError, match="up to 15 taps, got 17"):
        triton(**{name: tensor.to(DEVICE) for name, tensor in case(3, width=17).items()})


@pytest.mark.skipif(DEVICE == "cuda", reason="nothing is interpreted on a GPU")
def test_the_interpreter_refuses_bfloat16_and_auto_never_takes_it() -> None:
    for inputs in (case(3, dtype=torch.bfloat16), case(3, weight_dtype=torch.bfloat16)):
        with pytest.raises(RuntimeError, match="interpreter cannot compute in bfloat16"):
            triton(**inputs)
    request = ops.Request(torch.device("cpu"), {**case(3), "frame_mask": None}, {"missing": "hold"})
    assert ops.operators()["temporal_conv"].select(request).name != "triton"


@here
@dtypes
def test_the_operators_pass_opcheck(dtype: torch.dtype) -> None:
    forward, backward = operators()
    x, weight, bias, mask = (tensor.to(DEVICE) for tensor in case(3, 2, 5, masked=True, dtype=dtype).values())
    x = transposed(torch.nan_to_num(x))  # NaN is not equal to itself
    for given in ((bias, mask), (None, None)):
        torch.library.opcheck(forward, (x, weight, *given, "hold"))
    for needs in ((True, True, True), (True, False, False), (False, False, True), (False, False, False)):
        torch.library.opcheck(backward, (torch.ones_like(x), x, weight, bias, mask, "zero", *needs))


@here
def test_a_call_compiles_into_one_graph_with_gradients() -> None:
    def call(*given: torch.Tensor) -> torch.Tensor:
        return triton(*given)

    mask = case(4, masked=True)["frame_mask"].to(DEVICE)
    found: list[Inputs] = []
    for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        leaves = {name: tensor.to(DEVICE).requires_grad_() for name, tensor in case(4).items()}
        out = function(*leaves.values(), mask)
        gradients = torch.autograd.grad(out.square().sum(), list(leaves.values()))
        found.append({"out": out, **dict(zip(leaves, gradients, strict=True))})
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected)


@here
def test_a_call_can_be_exported() -> None:
    class Module(torch.nn.Module):
        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            return triton(*given)

    inputs = tuple(torch.nan_to_num(tensor).to(DEVICE) for tensor in case(4).values())
    program = torch.export.export(Module(), inputs)
    assert any("temporal_conv_forward_triton" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(*inputs), triton(*inputs))
