"""A compiled call of a row-wise operator or a loss is compiled twice for all sizes: once as it is, once for any."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from motarfuse import ops
from tests.ops.operator_cases import normal

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
IMPLS = [
    "reference",
    # Of CPU tensors it is interpreted.
    pytest.param("triton", marks=[needs_triton, *([pytest.mark.gpu] if GPU else [])]),
]
C = 16


def draw(*sizes: int) -> torch.Tensor:
    return normal(0, torch.float32)(*sizes).to(DEVICE)


def labels(rows: int) -> torch.Tensor:
    return torch.arange(rows, device=DEVICE) % 2


# By name: inputs of a number of rows, and the call of them.
CALLS: dict[str, tuple[Callable[[int], tuple[torch.Tensor, ...]], Callable[..., torch.Tensor]]] = {
    "add_layer_norm": (
        lambda rows: (draw(rows, 3, C), draw(rows, 3, C), draw(C), draw(C)),
        lambda *given, impl: ops.add_layer_norm(*given, impl=impl).normed,
    ),
    "gated_fusion": (lambda rows: (*(draw(rows, 3, C) for _ in range(3)), draw(C), draw(C)), ops.gated_fusion),
    "bias_gelu": (lambda rows: (draw(rows, 3, C), draw(C)), ops.bias_gelu),
    "temporal_conv": (lambda rows: (draw(rows, 2, 3, C), draw(C, 3), draw(C)), ops.temporal_conv),
    "linear_cross_entropy": (lambda rows: (draw(rows, C), draw(5, C), labels(rows)), ops.linear_cross_entropy),
    "batch_hard_triplet": (lambda rows: (draw(rows, C), labels(rows)), ops.batch_hard_triplet),
}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_compiled_at_most_twice(name: str, impl: str) -> None:
    inputs, call = CALLS[name]
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *given: call(*given, impl=impl), fullgraph=True, backend=counter)
    for rows in (4, 6, 9, 14, 5):
        given = inputs(rows)
        leaves = [tensor.requires_grad_() for tensor in given if tensor.is_floating_point()]
        out = compiled(*given)
        gradients = torch.autograd.grad(out.square().sum(), leaves)
        expected = call(*given, impl=impl)
        torch.testing.assert_close(out, expected)
        for gradient, wanted in zip(gradients, torch.autograd.grad(expected.square().sum(), leaves), strict=True):
            torch.testing.assert_close(gradient, wanted)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("impl", ["auto", *IMPLS])
def test_a_tensor_given_twice_compiles_with_gradients(impl: str) -> None:
    """torch.compile traces no autograd.Function that has an input twice."""
    x, weight, bias = draw(64, 33, 64), draw(64), draw(64)

    def call(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        normed, total = ops.add_layer_norm(x, x, weight, weight, layer_scale=weight, impl=impl)
        return ops.gated_fusion(normed, total, total, weight, bias, impl=impl).square().sum()

    found = []
    for run in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        given = x.clone().requires_grad_(), weight.clone().requires_grad_()
        found.append(torch.autograd.grad(run(*given), given))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
