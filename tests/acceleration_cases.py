"""Models of known structure with random numbers, and whether accelerating one changed anything."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import motarfuse
from motarfuse.nn.acceleration import forwards
from tests.tolerance import assert_close
from tests.vit_copies import build

OPERATORS = ("motion_attention", "motion_attention_packed", "add_layer_norm", "bias_gelu")
DEPTH = 2


def count_calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each operator was called by the new forwards."""
    counts = dict.fromkeys(OPERATORS, 0)

    def counted(name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return operator(*args, **kwargs)

        return call

    for name in OPERATORS:
        monkeypatch.setattr(forwards, name, counted(name, getattr(forwards, name)))
    return counts


def model_of(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = build(name, **options)
    with torch.no_grad():  # away from initialisations that hide a term: zero biases, a layer scale of 1e-5
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def results(model: Any, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Output and all gradients of a call, the dropout's numbers being a function of the seed."""
    torch.manual_seed(7)
    given = images(dtype).requires_grad_()
    out = model(given)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)
    leaves = {"images": given, **dict(model.named_parameters())}
    gradients = torch.autograd.grad((out * weights).sum(), list(leaves.values()))
    return {"output": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def check_same(model: nn.Module, calls: dict[str, int] | None = None) -> motarfuse.AccelerateReport:
    """Output and every gradient against float64, beside the model's own in float32; ``calls`` has those of one call."""
    expected = results(copy.deepcopy(model).double(), torch.float64)
    eager = results(model)
    report = motarfuse.accelerate(model)
    if calls is not None:
        calls.update(dict.fromkeys(OPERATORS, 0))  # without those of the comparison
    for name, found in results(model).items():
        assert_close(name, found, eager[name], expected[name], scale=scale_of(name, expected))
    return report


def scale_of(name: str, expected: dict[str, Tensor]) -> float:
    """What rounding is measured against: the largest number of the output, or of all gradients, which come from one
    another by sums that cancel."""
    alike = [value for key, value in expected.items() if (key == "output") == (name == "output")]
    return max(value.abs().max().item() for value in alike)
