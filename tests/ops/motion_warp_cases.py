"""What the tests of motion_warp share: inputs, and the check by the one tolerance rule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from motarfuse.ops import motion_warp
from tests.ops import kernel_cases
from tests.ops.kernel_cases import Incoming, Inputs
from tests.ops.operator_cases import normal

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
    incoming: Incoming | None = None,
) -> Inputs:
    """`kernel_cases.outputs_and_gradients` of a grid."""
    call = partial(motion_warp, grid=grid, impl=impl)
    return kernel_cases.outputs_and_gradients(call, inputs, results=results, dtypes=dtypes, incoming=incoming)


def check(
    backend: tuple[str, str],
    inputs: Mapping[str, torch.Tensor],
    grid: tuple[int, int],
    *,
    results: tuple[str, ...] = RESULTS,
    incoming: Incoming | None = None,
) -> None:
    """The rule of tests/tolerance.py for results and for the gradients of those named."""
    givers = ("source", "source_keypoints", "part_logits")
    dtypes = {result: inputs[name].dtype for result, name in zip(RESULTS, givers, strict=True)}

    def run(impl: str, inputs: Inputs) -> Inputs:
        return outputs_and_gradients(inputs, grid, impl, results=results, dtypes=dtypes, incoming=incoming)

    kernel_cases.check(run, backend, inputs)
