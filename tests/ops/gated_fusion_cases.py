"""What the tests of gated_fusion's kernels share: inputs, and the check by the one tolerance rule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from motarfuse.ops import gated_fusion
from tests.ops import kernel_cases
from tests.ops.kernel_cases import Incoming, Inputs
from tests.ops.operator_cases import normal

TOKENS = ("x", "motion", "gate_logits")


def case(
    *shape: int, dtype: torch.dtype = torch.float32, kinds: Mapping[str, torch.dtype] | None = None, seed: int = 0
) -> Inputs:
    """Random inputs of a shape (..., C), of one dtype but for those in ``kinds``."""
    draw = normal(seed)
    inputs = {"x": draw(*shape), "motion": draw(*shape), "gate_logits": 3 * draw(*shape)}
    inputs |= {"weight": draw(shape[-1]), "bias": draw(shape[-1])}
    return {name: tensor.to((kinds or {}).get(name, dtype)) for name, tensor in inputs.items()}


def outputs_and_gradients(
    inputs: Mapping[str, torch.Tensor],
    impl: str,
    *,
    dtypes: Mapping[str, torch.dtype] | None = None,
    incoming: Incoming | None = None,
) -> Inputs:
    """`kernel_cases.outputs_and_gradients` of this operator."""
    call = partial(gated_fusion, impl=impl)
    return kernel_cases.outputs_and_gradients(call, inputs, results=("out",), dtypes=dtypes, incoming=incoming)


def check(backend: tuple[str, str], inputs: Mapping[str, torch.Tensor], *, incoming: Incoming | None = None) -> None:
    """The rule of tests/tolerance.py for the result and all gradients."""
    dtypes = {"out": inputs["x"].dtype}

    def run(impl: str, inputs: Inputs) -> Inputs:
        return outputs_and_gradients(inputs, impl, dtypes=dtypes, incoming=incoming)

    kernel_cases.check(run, backend, inputs)


def map_tokens(inputs: Mapping[str, torch.Tensor], layout: kernel_cases.Layout) -> Inputs:
    """Another layout of x, motion and the gate logits."""
    return {name: layout(tensor) if name in TOKENS else tensor for name, tensor in inputs.items()}
