"""What the tests of part_pool share: backends, inputs, and the check by the one tolerance rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from motarfuse import _native
from motarfuse.ops import part_pool
from tests.ops.operator_cases import normal
from tests.tolerance import assert_close

NAMES = ("tokens", "part_logits")
RESULTS = ("pooled", "mass")
# Cells, parts, channels.
SHAPES = [
    (1, 3, 5),
    (1, 0, 8),
    (7, 2, 1),
    (8, 8, 63),
    (63, 3, 64),
    (64, 1, 65),
    (65, 4, 1),
    (128, 8, 384),
    (129, 10, 63),
    (138, 3, 768),
    (193, 8, 5),
    (197, 1, 1024),
    (211, 0, 65),
    (211, 3, 0),
    (516, 32, 64),
    (1032, 10, 65),
    (1104, 8, 5),
    (2048, 10, 64),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
Inputs = dict[str, torch.Tensor]
Incoming = Callable[[str, torch.Tensor], torch.Tensor]

needs_native = pytest.mark.skipif(
    not _native.load_operators(), reason=f"motarfuse._C is not loaded: {_native.status().operators_error}"
)
BACKENDS = [
    pytest.param(("reference", "cpu"), id="reference"),
    pytest.param(("cpu", "cpu"), id="cpu", marks=needs_native),
    pytest.param(("cuda", "cuda"), id="cuda", marks=[pytest.mark.gpu, needs_native]),
]
KERNEL_BACKENDS = BACKENDS[1:]


def case(
    cells: int,
    dtype: torch.dtype = torch.float32,
    *,
    batch: int = 2,
    parts: int = 3,
    channels: int = 5,
    spread: float = 3.0,
    seed: int = 0,
) -> Inputs:
    """Random tokens and part logits; a larger ``spread`` makes masks that are nearer to 0 and 1."""
    draw = normal(seed)
    inputs = {"tokens": draw(batch, cells, channels), "part_logits": spread * draw(batch, parts + 1, cells)}
    return {name: tensor.to(dtype) for name, tensor in inputs.items()}


def outputs_and_gradients(
    inputs: Mapping[str, torch.Tensor],
    impl: str,
    *,
    results: tuple[str, ...] = RESULTS,
    dtypes: Mapping[str, torch.dtype] | None = None,
    incoming: Incoming | None = None,
) -> dict[str, torch.Tensor]:
    """Results, and the gradients of ``results`` to both inputs; zeros where an input takes none.

    Args:
        inputs, impl: Of the call.
        results: Those that a loss depends on.
        dtypes: What the incoming gradients are rounded to; None is the results' own.
        incoming: Makes other incoming gradients of a result's name and the drawn ones.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    outputs = part_pool(**leaves, impl=impl)._asdict()
    draw = normal(1)
    drawn = {name: draw(*outputs[name].shape) for name in RESULTS}
    drawn = {name: tensor.to(outputs[name] if dtypes is None else dtypes[name]) for name, tensor in drawn.items()}
    drawn = {name: tensor.to(outputs[name]) for name, tensor in drawn.items()}
    if incoming is not None:
        drawn = {name: incoming(name, tensor) for name, tensor in drawn.items()}
    gradients = torch.autograd.grad(
        [outputs[name] for name in results],
        list(leaves.values()),
        [drawn[name] for name in results],
        allow_unused=True,
    )
    found = {
        f"grad_{name}": torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }
    return {**{name: output.detach() for name, output in outputs.items()}, **found}


def check(
    backend: tuple[str, str],
    inputs: Mapping[str, torch.Tensor],
    *,
    results: tuple[str, ...] = RESULTS,
    incoming: Incoming | None = None,
) -> None:
    """The rule of tests/tolerance.py for results and for the gradients of those named.

    Args:
        backend: An ``impl`` and the device it runs on.
        inputs: Of the call, on any device.
        results, incoming: As in `outputs_and_gradients`.
    """
    impl, device = backend
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    dtypes = {result: inputs[name].dtype for result, name in zip(RESULTS, NAMES, strict=True)}

    def run(impl: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return outputs_and_gradients(inputs, impl, results=results, dtypes=dtypes, incoming=incoming)

    exact = run("reference", {name: tensor.double() for name, tensor in inputs.items()})
    eager = run("reference", inputs)
    result = run(impl, inputs)
    assert list(result) == list(exact)
    for name, value in result.items():
        if value.dtype == torch.float64:  # the reference is no better than the kernel there
            scale = exact[name].abs().max().item() if exact[name].numel() else 0.0
            torch.testing.assert_close(value, exact[name], rtol=1e-11, atol=1e-12 * max(1.0, scale), msg=name)
        else:
            assert_close(name, value, eager[name], exact[name])


def as_a_feature_map(inputs: Mapping[str, torch.Tensor]) -> Inputs:
    """Tokens as a (B, C, N) feature map leaves them, part logits as a projection of tokens does."""
    return {name: tensor.transpose(1, 2).contiguous().transpose(1, 2) for name, tensor in inputs.items()}
