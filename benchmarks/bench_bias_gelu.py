"""bias_gelu beside plain PyTorch, eager and compiled, forward and with its backward.

Run: python -m benchmarks.bench_bias_gelu [--device cpu] [--threads 2 | --cpu-time] [--dtypes float32] [--csv FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.operator_bench import BenchedOperator, Function, Tensors, main
from motarfuse.ops import bias_gelu


class Shape(NamedTuple):
    batch: int
    tokens: int
    channels: int
    activation: str = "gelu"

    def __str__(self) -> str:
        return f"{self.batch}x{self.tokens}x{self.channels} {self.activation}"


SHAPES = (Shape(8, 129, 768), Shape(8, 129, 768, "quick_gelu"))
GPU_SHAPES = (
    Shape(1, 129, 3072), Shape(64, 129, 768), Shape(64, 129, 3072), Shape(64, 129, 3072, "gelu_tanh"),
    Shape(64, 129, 3072, "quick_gelu"), Shape(64, 211, 3072),
)  # fmt: skip


def inputs(shape: Shape, draw: Callable[..., torch.Tensor]) -> Tensors:
    return draw(shape.batch, shape.tokens, shape.channels), draw(shape.channels)


def call(shape: Shape, impl: str) -> Function:
    return lambda *tensors: (bias_gelu(*tensors, activation=shape.activation, impl=impl),)


def eager(shape: Shape, dtype: torch.dtype, device: torch.device) -> Function:
    """The formula as one would write it, in the inputs' dtype."""

    def function(x: torch.Tensor, bias: torch.Tensor) -> Tensors:
        total = x + bias
        if shape.activation == "quick_gelu":
            return (total * torch.sigmoid(1.702 * total),)
        return (F.gelu(total, approximate="tanh" if shape.activation == "gelu_tanh" else "none"),)

    return function


def read(shape: Shape, itemsize: int) -> int:
    return (shape.batch * shape.tokens + 1) * shape.channels * itemsize


def written(shape: Shape, itemsize: int) -> int:
    return shape.batch * shape.tokens * shape.channels * itemsize


OPERATOR = BenchedOperator("bias_gelu", SHAPES, GPU_SHAPES, inputs, call, eager, read, written)

if __name__ == "__main__":
    raise SystemExit(main(OPERATOR))
