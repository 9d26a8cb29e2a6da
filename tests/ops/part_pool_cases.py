"""What the tests of part_pool share: inputs, and the check by the one tolerance rule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from motarfuse.ops import part_pool
from tests.ops import kernel_cases
from tests.ops.kernel_cases import Incoming, Inputs, transposed
from tests.ops.operator_cases import normal

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
) -> Inputs:
    """`kernel_cases.outputs_and_gradients` of this operator."""
    call = partial(part_pool, impl=impl)
    return kernel_cases.outputs_and_gradients(call, inputs, results=results, dtypes=dtypes, incoming=incoming)


def check(
    backend: tuple[str, str],
    inputs: Mapping[str, torch.Tensor],
    *,
    results: tuple[str, ...] = RESULTS,
    incoming: Incoming | None = None,
) -> None:
    """The rule of tests/tolerance.py for results and for the gradients of those named."""
    dtypes = {result: inputs[name].dtype for result, name in zip(RESULTS, NAMES, strict=True)}

    def run(impl: str, inputs: Inputs) -> Inputs:
        return outputs_and_gradients(inputs, impl, results=results, dtypes=dtypes, incoming=incoming)

    kernel_cases.check(run, backend, inputs)


def as_a_feature_map(inputs: Mapping[str, torch.Tensor]) -> Inputs:
    """Tokens as a (B, C, N) feature map leaves them, part logits as a projection of tokens does."""
    return {name: transposed(tensor) for name, tensor in inputs.items()}
