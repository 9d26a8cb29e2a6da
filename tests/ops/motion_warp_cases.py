"""What the tests of motion_warp share: backends, inputs, and the check by the one tolerance rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from motarfuse import _native
from motarfuse.ops import motion_warp
from tests.ops.operator_cases import normal
from tests.tolerance import assert_close

NAMES = (
    "source", "source_keypoints", "source_affines", "target_keypoints", "target_affines", "part_logits",
    "source_part_logits",
)  # fmt: skip
RESULTS = ("warped", "flow", "visibility")
# Grid, parts, channels.
SHAPES = [
    ((1, 1), 3, 5),
    ((1, 1), 0, 8),
    ((7, 1), 2, 1),
    ((4, 2), 8, 63),
    ((9, 7), 3, 64),
    ((5, 13), 4, 65),
    ((16, 8), 8, 129),
    ((3, 43), 10, 16),
    ((2, 69), 1, 7),
    ((1, 193), 2, 33),
    ((1, 197), 5, 12),
    ((1, 211), 3, 0),
    ((12, 43), 32, 20),
    ((24, 43), 10, 8),
    ((48, 23), 8, 4),
    ((64, 32), 10, 16),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
Inputs = dict[str, torch.Tensor]

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
    grid: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    *,
    batch: int = 2,
    parts: int = 3,
    channels: int = 5,
    spread: float = 0.3,
    seed: int = 0,
) -> Inputs:
    """Postures near each other; with ``spread`` 3 most flows lie beyond the border."""
    draw, cells = normal(seed), grid[0] * grid[1]
    identity = torch.eye(2).double()
    inputs = {
        "source": draw(batch, cells, channels),
        "source_keypoints": spread * draw(batch, parts, 2),
        "source_affines": identity + 0.3 * torch.tanh(draw(batch, parts, 2, 2)),
        "target_keypoints": spread * draw(batch, parts, 2),
        "target_affines": identity + 0.3 * torch.tanh(draw(batch, parts, 2, 2)),
        "part_logits": draw(batch, parts + 1, cells),
        "source_part_logits": draw(batch, parts + 1, cells),
    }
    return {name: tensor.to(dtype) for name, tensor in inputs.items()}


def outputs_and_gradients(
    inputs: Mapping[str, torch.Tensor],
    grid: tuple[int, int],
    impl: str,
    *,
    results: tuple[str, ...] = RESULTS,
    dtypes: Mapping[str, torch.dtype] | None = None,
    incoming: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Results, and the gradients of ``results`` to every input; zeros where an input takes none.

    Args:
        inputs, grid, impl: Of the call.
        results: Those that a loss depends on.
        dtypes: What the incoming gradients are rounded to; None is the results' own.
        incoming: Makes other incoming gradients of a result's name and the drawn ones.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    outputs = motion_warp(**leaves, grid=grid, impl=impl)._asdict()
    used = [name for name in results if outputs[name].requires_grad]
    draw = normal(1)
    drawn = {name: draw(*outputs[name].shape) for name in RESULTS}
    drawn = {name: tensor.to(outputs[name] if dtypes is None else dtypes[name]) for name, tensor in drawn.items()}
    drawn = {name: tensor.to(outputs[name]) for name, tensor in drawn.items()}
    if incoming is not None:
        drawn = {name: incoming(name, tensor) for name, tensor in drawn.items()}
    gradients = torch.autograd.grad(
        [outputs[name] for name in used],
        list(leaves.values()),
        [drawn[name] for name in used],
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
    grid: tuple[int, int],
    *,
    results: tuple[str, ...] = RESULTS,
    incoming: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """The rule of tests/tolerance.py for results and for the gradients of those named."""
    impl, device = backend
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    dtypes = {
        result: inputs[name].dtype
        for result, name in zip(RESULTS, ("source", "source_keypoints", "part_logits"), strict=True)
    }

    def run(impl: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return outputs_and_gradients(inputs, grid, impl, results=results, dtypes=dtypes, incoming=incoming)

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
