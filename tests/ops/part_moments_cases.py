"""What the tests of part_moments share: inputs, and the check by the one tolerance rule."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from motarfuse.ops import part_moments
from motarfuse.ops.part_moments import PartMoments
from tests.ops import kernel_cases
from tests.ops.kernel_cases import Inputs, transposed

NAMES = ("keypoints", "affines", "confidence", "grad_logits", "grad_affine")
GRIDS = [
    (1, 1),
    (7, 1),
    (9, 7),
    (16, 4),
    (5, 13),
    (16, 8),
    (3, 43),
    (2, 69),
    (1, 193),
    (1, 197),
    (1, 211),
    (12, 43),
    (24, 43),
    (48, 23),
    (64, 32),
]


def case(
    grid: tuple[int, int], dtype: torch.dtype = torch.float32, *, batch: int = 2, parts: int = 3, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]
    logits = torch.randn(batch, parts, cells, generator=generator)
    affine = torch.eye(2) + 0.4 * torch.tanh(torch.randn(batch, parts, cells, 2, 2, generator=generator))
    return logits.to(dtype), affine.to(dtype)


def gradients_of_results(batch: int, parts: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, parts, *rest, generator=generator) for rest in ((2,), (2, 2), ())]


def outputs_and_gradients(
    function: Callable[..., PartMoments], logits: torch.Tensor, affine: torch.Tensor | None
) -> Inputs:
    logits = logits.detach().requires_grad_()
    affine = None if affine is None else affine.detach().requires_grad_()
    results = function(logits, affine)
    wanted = [logits] if affine is None else [logits, affine]
    incoming = [
        gradient.to(result) for gradient, result in zip(gradients_of_results(*logits.shape[:2]), results, strict=True)
    ]
    gradients = torch.autograd.grad(results, wanted, incoming)
    return dict(zip(NAMES, [*results, *gradients], strict=False))


def check(backend: tuple[str, str], logits: torch.Tensor, affine: torch.Tensor | None, grid: tuple[int, int]) -> None:
    """The rule of tests/tolerance.py for outputs and gradients, with and without affines that require gradients."""

    def run(impl: str, inputs: Inputs) -> Inputs:
        call = partial(part_moments, grid=grid, temperature=0.3, impl=impl)
        return outputs_and_gradients(call, inputs["logits"], inputs.get("affine"))

    inputs = {"logits": logits} if affine is None else {"logits": logits, "affine": affine}
    kernel_cases.check(run, backend, inputs)


def as_a_projection_leaves_it(logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return transposed(logits), affine.transpose(1, 2).contiguous().transpose(1, 2)
