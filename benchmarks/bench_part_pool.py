"""part_pool beside plain PyTorch, eager and compiled, forward and with its backward.

Run: python -m benchmarks.bench_part_pool [--device cpu] [--threads 2 | --cpu-time] [--dtypes float32] [--csv FILE]
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.motion_field import FieldShape
from benchmarks.operator_bench import BenchedOperator, Function, Tensors, main
from motarfuse.ops import part_pool

SHAPES = (FieldShape(64, 8, (16, 8), 384), FieldShape(32, 10, (64, 32), 64))
GPU_SHAPES = (
    *SHAPES,
    FieldShape(512, 8, (16, 8), 768),
    FieldShape(512, 32, (16, 8), 768),
    FieldShape(512, 8, (64, 32), 64),
)


def inputs(shape: FieldShape, draw: Callable[..., torch.Tensor]) -> Tensors:
    return draw(shape.batch, shape.cells, shape.channels), draw(shape.batch, shape.parts + 1, shape.cells)


def call(shape: FieldShape, impl: str) -> Function:
    return lambda *tensors: part_pool(*tensors, impl=impl)


def eager(shape: FieldShape, dtype: torch.dtype, device: torch.device) -> Function:
    """The formula as one would write it, in the inputs' dtype."""

    def function(tokens: torch.Tensor, part_logits: torch.Tensor) -> Tensors:
        masks = torch.softmax(part_logits, 1)[:, 1:]
        total = masks.sum(-1)
        return masks @ tokens / (total + 1e-6)[..., None], total / shape.cells

    return function


def read(shape: FieldShape, itemsize: int) -> int:
    return shape.batch * shape.cells * (shape.channels + shape.parts + 1) * itemsize


def written(shape: FieldShape, itemsize: int) -> int:
    return shape.batch * shape.parts * (shape.channels + 1) * itemsize


OPERATOR = BenchedOperator("part_pool", SHAPES, GPU_SHAPES, inputs, call, eager, read, written)

if __name__ == "__main__":
    raise SystemExit(main(OPERATOR))
