"""What the tests of linear_cross_entropy share: inputs, and the check by the one tolerance rule."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from motarfuse.ops import linear_cross_entropy
from tests.ops import kernel_cases
from tests.ops.kernel_cases import Inputs
from tests.ops.operator_cases import normal

IGNORED = -100


def case(
    rows: int,
    classes: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    *,
    weight_dtype: torch.dtype | None = None,
    spread: float = 2.0,
    sure: float = 0.0,
    seed: int = 0,
) -> Inputs:
    """Random features, weight and labels, the second one ignored.

    Args:
        rows, classes, width, dtype: Of the features; ``weight_dtype`` of the weight, None is the features'.
        spread: Standard deviation of the logits.
        sure: How much of its label's weight a row has in it: from about 2 on nearly all is sure.
        seed: Of all.
    """
    draw = normal(seed)
    features, weight = draw(rows, width), draw(classes, width)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    features = features + sure * weight[labels]
    labels[1:2] = IGNORED
    return {
        "features": features.to(dtype),
        "weight": (spread / max(width, 1) ** 0.5 * weight).to(weight_dtype or dtype),
        "labels": labels,
    }


def outputs_and_gradients(
    inputs: Mapping[str, torch.Tensor], impl: str, *, smoothing: float = 0.0, ignore_index: int = IGNORED
) -> Inputs:
    """`kernel_cases.outputs_and_gradients` of this operator, of a loss (1,); its gradient is a float32 number."""

    def call(**tensors: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(**tensors, label_smoothing=smoothing, ignore_index=ignore_index, impl=impl)[None]

    return kernel_cases.outputs_and_gradients(call, inputs, results=("out",), dtypes={"out": torch.float32})


def check(
    backend: tuple[str, str],
    inputs: Mapping[str, torch.Tensor],
    *,
    smoothing: float = 0.0,
    ignore_index: int = IGNORED,
) -> None:
    """The rule of tests/tolerance.py for the loss and both gradients."""

    def run(impl: str, inputs: Inputs) -> Inputs:
        return outputs_and_gradients(inputs, impl, smoothing=smoothing, ignore_index=ignore_index)

    kernel_cases.check(run, backend, inputs)
