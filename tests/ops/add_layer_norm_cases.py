"""What the tests of add_layer_norm's kernels share: inputs, and the check by the one tolerance rule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from motarfuse.ops import add_layer_norm
from tests.ops import kernel_cases
from tests.ops.kernel_cases import Incoming, Inputs
from tests.ops.operator_cases import normal
from tests.tolerance import assert_close

RESULTS = ("normed", "sum")
SCALES = ("layer_scale", "sample_scale")
FOUR = torch.arange(2 * 3 * 4 * 16.0).view(2, 3, 4, 16)
# Of four dimensions and fewer, and whether two strides reach all rows.
VIEWS = {
    "contiguous": (FOUR, True), "cut tokens": (FOUR[:, 1:], True), "cut channels": (FOUR[..., :8], True),
    "one of a row": (FOUR[:, :, :1], True), "broadcast batch": (FOUR[:1].expand(5, 3, 4, 16), True),
    "broadcast last": (FOUR[..., :1].expand(2, 3, 4, 16), True), "two cut": (FOUR[:, 1:, 1:], False),
    "in another order": (FOUR.permute(1, 2, 0, 3), True), "reversed": (FOUR.permute(2, 1, 0, 3), False),
    "broadcast middle": (FOUR[:, :1].expand(2, 3, 4, 16), False), "one channel": (FOUR[..., 3:4], True),
    "two dimensions": (FOUR[0, 0].t(), True),
}  # fmt: skip


def without_the_first_token(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat((tensor[:, :1], tensor), 1)[:, 1:]


def batch_after_tokens(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


LAYOUTS = (
    without_the_first_token, batch_after_tokens, kernel_cases.transposed, kernel_cases.every_second,
    kernel_cases.misaligned, kernel_cases.expanded_over_the_batch, kernel_cases.expanded_over_the_last,
)  # fmt: skip


def case(
    *shape: int,
    x: torch.dtype = torch.float32,
    residual: torch.dtype | None = None,
    vectors: torch.dtype | None = None,
    scales: tuple[str, ...] = SCALES,
    seed: int = 0,
) -> Inputs:
    """Random inputs of a shape (B, ..., C); the residual is of x's dtype unless given, vectors of the residual's."""
    draw = normal(seed)
    residual = x if residual is None else residual
    vectors = residual if vectors is None else vectors
    inputs = {"x": draw(*shape).to(x), "residual": draw(*shape).to(residual)}
    sizes = {"weight": shape[-1], "bias": shape[-1], "layer_scale": shape[-1], "sample_scale": shape[0]}
    drawn = {name: draw(size).to(vectors) for name, size in sizes.items()}
    return inputs | {name: tensor for name, tensor in drawn.items() if name in scales or name not in SCALES}


def outputs_and_gradients(
    inputs: Mapping[str, torch.Tensor],
    impl: str,
    *,
    results: tuple[str, ...] = RESULTS,
    dtypes: Mapping[str, torch.dtype] | None = None,
    incoming: Incoming | None = None,
) -> Inputs:
    """`kernel_cases.outputs_and_gradients` of this operator."""
    call = partial(add_layer_norm, impl=impl)
    return kernel_cases.outputs_and_gradients(call, inputs, results=results, dtypes=dtypes, incoming=incoming)


def check(
    backend: tuple[str, str],
    inputs: Mapping[str, torch.Tensor],
    *,
    results: tuple[str, ...] = RESULTS,
    incoming: Incoming | None = None,
) -> None:
    """The rule of tests/tolerance.py for results and for the gradients of those named."""
    impl, device = backend
    dtypes = {"normed": inputs["x"].dtype, "sum": inputs["residual"].dtype}
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}

    def run(impl: str, inputs: Mapping[str, torch.Tensor]) -> Inputs:
        return outputs_and_gradients(inputs, impl, results=results, dtypes=dtypes, incoming=incoming)

    double = {name: tensor.double() for name, tensor in inputs.items()}
    exact, eager, result = run("reference", double), run("reference", inputs), run(impl, inputs)
    assert list(result) == list(exact)
    for name, value in result.items():
        if value.dtype == torch.float64:  # the reference is no better than the kernel there
            largest = exact[name].abs().max().item() if exact[name].numel() else 0.0
            torch.testing.assert_close(value, exact[name], rtol=1e-11, atol=1e-12 * max(1.0, largest), msg=name)
            continue
        # One number a sample, a sum over all of its tokens and channels that cancel.
        scale = _sum_of_sizes(double, exact) if name == "grad_sample_scale" else None
        assert_close(name, value, eager[name], exact[name], scale=scale)


def _sum_of_sizes(inputs: Mapping[str, torch.Tensor], exact: Inputs) -> float:
    terms = exact["grad_residual"] * inputs["x"] * inputs.get("layer_scale", 1.0)
    return terms.abs().flatten(1).sum(1).max().item()


def map_tokens(inputs: Mapping[str, torch.Tensor], layout: kernel_cases.Layout) -> Inputs:
    """Another layout of x and the residual."""
    return {name: layout(tensor) if name in ("x", "residual") else tensor for name, tensor in inputs.items()}
