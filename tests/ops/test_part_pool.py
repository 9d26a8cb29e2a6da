"""part_pool: the definition against loops, its edges, its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from motarfuse import ops
from tests.ops.operator_cases import check_gradients, check_half_types, check_strides, normal


def case(batch: int = 2, cells: int = 7, parts: int = 3, channels: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    draw = normal(0)
    return draw(batch, cells, channels), 3 * draw(batch, parts + 1, cells)


def test_it_is_what_loops_over_cells_compute() -> None:
    tokens, logits = case()
    pooled, mass = ops.part_pool(tokens, logits)
    for b in range(2):
        for k in range(3):
            weights = [torch.softmax(logits[b, :, n], 0)[k + 1] for n in range(7)]
            total = sum(weights)
            expected = sum(weight * tokens[b, n] for n, weight in enumerate(weights)) / (total + 1e-6)
            torch.testing.assert_close(pooled[b, k], expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(mass[b, k], total / 7)


def test_masses_and_the_background_sum_to_one() -> None:
    tokens, logits = case()
    background = torch.softmax(logits, 1)[:, 0].mean(1)
    torch.testing.assert_close(ops.part_pool(tokens, logits).mass.sum(1) + background, torch.ones(2).double())


def test_gradients() -> None:
    check_gradients(ops.part_pool, *case())


def test_a_part_without_mass_is_zero_and_finite() -> None:
    tokens, logits = (tensor.float().requires_grad_() for tensor in case())
    hidden = torch.zeros(2, 4, 7, dtype=torch.bool)
    hidden[:, 2] = True
    pooled, mass = ops.part_pool(tokens, logits.masked_fill(hidden, -torch.inf))
    assert torch.equal(pooled[:, 1], torch.zeros(2, 5))
    assert torch.equal(mass[:, 1], torch.zeros(2))
    (pooled.sum() + mass.sum()).backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("batch", "cells", "parts"), [(0, 7, 3), (2, 0, 3), (2, 7, 0)])
def test_empty_dimensions(batch: int, cells: int, parts: int) -> None:
    tokens, logits = (tensor.requires_grad_() for tensor in case(batch, cells, parts))
    pooled, mass = ops.part_pool(tokens, logits)
    assert (pooled.shape, mass.shape) == ((batch, parts, 5), (batch, parts))
    assert torch.equal(pooled, torch.zeros_like(pooled)) or cells
    (pooled.sum() + mass.sum()).backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()


def test_other_strides_and_half_types() -> None:
    check_strides(ops.part_pool, *case())
    check_half_types(ops.part_pool, *case())
    tokens, logits = case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled, mass = ops.part_pool(tokens.bfloat16(), logits.float())
    assert (pooled.dtype, mass.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(mass, ops.part_pool(tokens, logits).mass.float(), rtol=1e-6, atol=1e-7)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"tokens": None}, TypeError, "tokens must be a torch.Tensor"),
    ({"tokens": torch.zeros(2, 7)}, ValueError, r"tokens must be \(B, N, C\)"),
    ({"part_logits": torch.zeros(2, 7)}, ValueError, r"part_logits must be \(B, K \+ 1, N\), 3 dimensions"),
    ({"part_logits": torch.zeros(2, 0, 7)}, ValueError, "background included"),
    ({"part_logits": torch.zeros(2, 4, 8)}, ValueError, r"= \(2, 4, 7\) to fit tokens"),
    ({"part_logits": torch.zeros(2, 4, 7).double()}, TypeError, "float64 cannot be mixed"),
    ({"part_logits": torch.zeros(2, 4, 7).bool()}, TypeError, "part_logits has dtype bool"),
    ({"part_logits": torch.zeros(2, 4, 7, device="meta")}, ValueError, "part_logits is on meta"),
    ({"impl": "x"}, ValueError, "no impl 'x'"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_call_says_what_was_got_and_what_is_supported(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    tokens, logits = case()
    with pytest.raises(error, match=message):
        ops.part_pool(**({"tokens": tokens.float(), "part_logits": logits.float()} | change))
