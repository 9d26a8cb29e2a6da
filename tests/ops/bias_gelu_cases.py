"""What the tests of bias_gelu share: inputs, and the check by the one tolerance rule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from motarfuse.ops import bias_gelu
from tests.ops import kernel_cases
from tests.ops.kernel_cases import Incoming, Inputs
from tests.ops.operator_cases import normal

ACTIVATIONS = ["gelu", "gelu_tanh", "quick_gelu"]


def case(*shape: int, dtype: torch.dtype = torch.float32, bias_dtype: torch.dtype | None = None) -> Inputs:
    draw = normal(0)
    x, bias = 2 * draw(*shape), draw(shape[-1])
    return {"x": x.to(dtype), "bias": bias.to(dtype if bias_dtype is None else bias_dtype)}


def outputs_and_gradients(
    inputs: Mapping[str, torch.Tensor], impl: str, *, incoming: Incoming | None = None, activation: str = "gelu"
) -> Inputs:
    """`kernel_cases.outputs_and_gradients` of this operator; no bias where the inputs have none."""
    options: dict[str, Any] = {"activation": activation, "impl": impl, **({} if "bias" in inputs else {"bias": None})}
    call = partial(bias_gelu, **options)
    dtypes = {"out": inputs["x"].dtype}
    return kernel_cases.outputs_and_gradients(call, inputs, results=("out",), dtypes=dtypes, incoming=incoming)


def check(
    backend: tuple[str, str],
    inputs: Mapping[str, torch.Tensor],
    *,
    incoming: Incoming | None = None,
    activation: str = "gelu",
) -> None:
    """The rule of tests/tolerance.py for the result and all gradients, of incoming ones that both see rounded."""

    def rounded(name: str, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.to(inputs["x"].dtype).to(gradient.dtype)
        return gradient if incoming is None else incoming(name, gradient)

    def run(impl: str, inputs: Inputs) -> Inputs:
        return outputs_and_gradients(inputs, impl, incoming=rounded, activation=activation)

    kernel_cases.check(run, backend, inputs)
