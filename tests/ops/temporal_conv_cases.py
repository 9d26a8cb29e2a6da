"""What the tests of temporal_conv share: inputs, and the check by the one tolerance rule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from motarfuse.ops import temporal_conv
from tests.ops import kernel_cases
from tests.ops.kernel_cases import Incoming, Inputs
from tests.ops.operator_cases import normal


def case(
    frames: int,
    tokens: int = 3,
    channels: int = 5,
    *,
    width: int = 3,
    batch: int = 2,
    masked: bool = False,
    dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype | None = None,
) -> Inputs:
    """Random tensors; masked clips have holes, and one has no frame at all. What a masked frame holds is NaN."""
    draw = normal(0)
    weight_dtype = dtype if weight_dtype is None else weight_dtype
    x = draw(batch, frames, tokens, channels)
    inputs = {"weight": draw(channels, width).to(weight_dtype), "bias": draw(channels).to(weight_dtype)}
    if masked:
        mask = draw(batch, frames) > -0.4
        mask[-1] = False
        inputs["frame_mask"] = mask
        x = x.masked_fill(~mask[..., None, None], torch.nan)
    return {"x": x.to(dtype), **inputs}


def outputs_and_gradients(
    inputs: Mapping[str, torch.Tensor], impl: str, *, incoming: Incoming | None = None, missing: str = "hold"
) -> Inputs:
    """`kernel_cases.outputs_and_gradients` of this operator."""
    options: dict[str, Any] = {"missing": missing, "impl": impl}
    call = partial(temporal_conv, **options)
    dtypes = {"out": inputs["x"].dtype}
    return kernel_cases.outputs_and_gradients(call, inputs, results=("out",), dtypes=dtypes, incoming=incoming)


def check(
    backend: tuple[str, str],
    inputs: Mapping[str, torch.Tensor],
    *,
    incoming: Incoming | None = None,
    missing: str = "hold",
) -> None:
    """The rule of tests/tolerance.py for the result and all gradients, of incoming ones that both see rounded.

    The incoming gradient of a masked frame is NaN: nothing may come of it.
    """

    def spoilt(name: str, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.to(inputs["x"].dtype).to(gradient.dtype)
        if (mask := inputs.get("frame_mask")) is not None:
            gradient = gradient.masked_fill(~mask.to(gradient.device)[..., None, None], torch.nan)
        return gradient if incoming is None else incoming(name, gradient)

    def run(impl: str, inputs: Inputs) -> Inputs:
        return outputs_and_gradients(inputs, impl, incoming=spoilt, missing=missing)

    kernel_cases.check(run, backend, inputs)
