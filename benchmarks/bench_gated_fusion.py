"""gated_fusion beside plain PyTorch, eager and compiled, and Liger-Kernel's layer norm where it is installed.

Run: python -m benchmarks.bench_gated_fusion [--device cpu] [--threads 2 | --cpu-time] [--dtypes float32] [--csv FILE]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.bench_add_layer_norm import RowsShape, liger_layer_norm
from benchmarks.operator_bench import BenchedOperator, Function, Tensors, main
from motarfuse.ops import gated_fusion

SHAPES = (RowsShape(16, 128, 384), RowsShape(64, 128, 64))
GPU_SHAPES = (
    RowsShape(64, 128, 768),
    RowsShape(512, 128, 768),
    RowsShape(64, 1024, 384),
    RowsShape(512, 128, 64),
)


def inputs(shape: RowsShape, draw: Callable[..., torch.Tensor]) -> Tensors:
    sizes = (shape.batch, shape.tokens, shape.channels)
    return draw(*sizes), draw(*sizes), draw(*sizes), draw(shape.channels), draw(shape.channels)


def call(shape: RowsShape, impl: str) -> Function:
    return lambda *tensors: (gated_fusion(*tensors, impl=impl),)


def eager(shape: RowsShape, dtype: torch.dtype, device: torch.device) -> Function:
    """As one would write it, in the inputs' dtype."""

    def function(
        x: torch.Tensor, motion: torch.Tensor, gate_logits: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> Tensors:
        return (F.layer_norm(x + torch.sigmoid(gate_logits) * motion, weight.shape, weight, bias, 1e-6),)

    return function


def liger(shape: RowsShape, dtype: torch.dtype, device: torch.device) -> Function | None:
    """The gate by PyTorch, the norm by Liger-Kernel."""
    layer_norm = liger_layer_norm(device)
    if layer_norm is None:
        return None

    def function(
        x: torch.Tensor, motion: torch.Tensor, gate_logits: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> Tensors:
        return (layer_norm(x + torch.sigmoid(gate_logits) * motion, weight, bias, 1e-6),)

    return function


def read(shape: RowsShape, itemsize: int) -> int:
    return 3 * shape.numbers * itemsize


def written(shape: RowsShape, itemsize: int) -> int:
    return shape.numbers * itemsize


OPERATOR = BenchedOperator(
    "gated_fusion", SHAPES, GPU_SHAPES, inputs, call, eager, read, written, peers={"liger": liger}
)

if __name__ == "__main__":
    raise SystemExit(main(OPERATOR))
