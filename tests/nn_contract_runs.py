"""Layers of the table (tests/nn_contract_cases.py) made, called and compared, for tests/test_nn_contract*.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_leaves, tree_map, tree_unflatten

from tests.nn_contract_cases import LAYERS, PROCESS, Arguments, Layer

NAMES = sorted(LAYERS)


class Called(nn.Module):
    """A layer with how it is used for its forward."""

    def __init__(self, layer: Layer, module: nn.Module) -> None:
        super().__init__()
        self.layer, self.module = layer, module

    def forward(self, *arguments: Any) -> Any:
        return self.layer.call(self.module, *arguments)


class OfTensors(nn.Module):
    """A layer whose arguments and results are tensors alone: torch writes no graph with named tuples."""

    def __init__(self, called: Called, spec: TreeSpec) -> None:
        super().__init__()
        self.called, self.spec = called, spec

    def forward(self, *leaves: Any) -> tuple[Tensor, ...]:
        return tuple(outputs(self.called(*tree_unflatten(leaves, self.spec))))


def made(name: str, *, double: bool = True) -> Called:
    """With weights from a seed, none of them zero: what starts as the identity would hide most of the layer."""
    torch.manual_seed(0)
    module = LAYERS[name].make()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return Called(LAYERS[name], module.double() if double else module)


def arguments(name: str, *, double: bool = True, process: int = 0) -> Arguments:
    """What the layer is called with, other numbers for each process; numbers get gradients."""

    def prepared(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return leaf.detach().to(torch.float64 if double else torch.float32).requires_grad_()

    token = PROCESS.set(process)
    try:
        return tuple(tree_map(prepared, one) for one in LAYERS[name].arguments())
    finally:
        PROCESS.reset(token)


def outputs(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def run(function: Any, module: nn.Module, inputs: Arguments) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs and the gradients of numbers and weights; what is random is drawn alike."""
    torch.manual_seed(1)
    found = outputs(function(*inputs))
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    leaves += [parameter for parameter in module.parameters() if parameter.requires_grad]
    used = [output for output in found if output.requires_grad]
    generator = torch.Generator().manual_seed(2)
    incoming = [torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one.dtype) for one in used]
    return found, list(torch.autograd.grad(used, leaves, incoming, allow_unused=True))


def assert_same(got: Any, wanted: Any, *, exactly: bool = False) -> None:
    """Bitwise, or to 1e-9 of the largest number of each tensor (in float64)."""
    for one, other in zip(tree_leaves(got), tree_leaves(wanted), strict=True):
        if one is None or other is None:
            # A compiled graph may give zeros for what takes no part.
            assert all(tensor is None or not tensor.any() for tensor in (one, other))
            continue
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if exactly:
            assert torch.equal(one, other)
        elif other.numel():
            size = other.detach().abs().max() if other.is_floating_point() else 0
            assert (one - other).detach().abs().max() <= 1e-9 * size
