"""What the tests of part_moments share: backends, inputs, and the check by the one tolerance rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from motarfuse import _native
from motarfuse.ops import part_moments
from motarfuse.ops.part_moments import PartMoments
from tests.tolerance import assert_close

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
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

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
) -> dict[str, torch.Tensor]:
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
    impl, device = backend
    logits, affine = logits.to(device), None if affine is None else affine.to(device)

    def run(impl: str) -> Callable[..., PartMoments]:
        return lambda logits, affine: part_moments(logits, affine, grid=grid, temperature=0.3, impl=impl)

    exact = outputs_and_gradients(run("reference"), logits.double(), None if affine is None else affine.double())
    eager = outputs_and_gradients(run("reference"), logits, affine)
    result = outputs_and_gradients(run(impl), logits, affine)
    assert list(result) == list(exact)
    for name, value in result.items():
        if value.dtype == torch.float64:  # the reference is no better than the kernel there
            torch.testing.assert_close(value, exact[name], rtol=1e-12, atol=1e-13, msg=name)
        else:
            assert_close(name, value, eager[name], exact[name])


def as_a_projection_leaves_it(logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits.transpose(1, 2).contiguous().transpose(1, 2), affine.transpose(1, 2).contiguous().transpose(1, 2)
