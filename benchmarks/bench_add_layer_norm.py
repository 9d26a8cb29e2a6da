"""add_layer_norm beside plain PyTorch, eager and compiled, and Liger-Kernel's layer norm where it is installed.

Run: python -m benchmarks.bench_add_layer_norm [--device cpu] [--threads 2 | --cpu-time] [--dtypes float32] [--csv FILE]
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.operator_bench import BenchedOperator, Function, Tensors, main
from motarfuse.ops import add_layer_norm


@dataclass(frozen=True)
class RowsShape:
    """One problem. Attributes: batch B, tokens N, channels C."""

    batch: int
    tokens: int
    channels: int

    @property
    def numbers(self) -> int:
        return self.batch * self.tokens * self.channels

    def __str__(self) -> str:
        return f"{self.batch}x{self.tokens}x{self.channels}"


SHAPES = (RowsShape(16, 129, 384), RowsShape(64, 129, 64))
GPU_SHAPES = (
    RowsShape(64, 129, 768),
    RowsShape(512, 129, 768),
    RowsShape(64, 1032, 384),
    RowsShape(512, 129, 64),
    RowsShape(64, 129, 4096),
)


def inputs(shape: RowsShape, draw: Callable[..., torch.Tensor]) -> Tensors:
    """x, residual, weight and bias, as every block of the network has them."""
    sizes = (shape.batch, shape.tokens, shape.channels)
    return draw(*sizes), draw(*sizes), draw(shape.channels), draw(shape.channels)


def call(shape: RowsShape, impl: str) -> Function:
    return lambda *tensors: add_layer_norm(*tensors, impl=impl)


def eager(shape: RowsShape, dtype: torch.dtype, device: torch.device) -> Function:
    """As one would write it, in the inputs' dtype."""

    def function(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Tensors:
        total = residual + x
        return F.layer_norm(total, weight.shape, weight, bias, 1e-6), total

    return function


def liger_layer_norm(device: torch.device) -> Callable[..., Any] | None:
    """Liger-Kernel's layer norm, on a GPU where it is installed."""
    if device.type != "cuda" or importlib.util.find_spec("liger_kernel") is None:
        return None
    module: Any = importlib.import_module("liger_kernel.ops.layer_norm")
    apply: Callable[..., Any] = module.LigerLayerNormFunction.apply
    return apply


def liger(shape: RowsShape, dtype: torch.dtype, device: torch.device) -> Function | None:
    """The addition by PyTorch, the norm by Liger-Kernel."""
    layer_norm = liger_layer_norm(device)
    if layer_norm is None:
        return None

    def function(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Tensors:
        total = residual + x
        return layer_norm(total, weight, bias, 1e-6), total

    return function


def moved(shape: RowsShape, itemsize: int) -> int:
    """Bytes that a forward reads of x and the residual, and as many that it writes."""
    return 2 * shape.numbers * itemsize


OPERATOR = BenchedOperator(
    "add_layer_norm", SHAPES, GPU_SHAPES, inputs, call, eager, moved, moved, peers={"liger": liger}
)

if __name__ == "__main__":
    raise SystemExit(main(OPERATOR))
