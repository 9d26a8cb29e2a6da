"""part_moments beside plain PyTorch, eager and compiled, forward and with its backward.

Run: python -m benchmarks.bench_part_moments [--device cpu] [--threads 2 | --cpu-time] [--dtypes float32] [--csv FILE]
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.motion_field import FieldShape
from benchmarks.operator_bench import BenchedOperator, Function, Tensors, main
from motarfuse import reference
from motarfuse.ops import part_moments

SHAPES = (FieldShape(64, 8, (16, 8)), FieldShape(32, 10, (64, 32)))
GPU_SHAPES = (*SHAPES, FieldShape(512, 8, (16, 8)), FieldShape(512, 32, (64, 32)))
TEMPERATURE = 0.1


def inputs(shape: FieldShape, draw: Callable[..., torch.Tensor]) -> Tensors:
    return draw(shape.batch, shape.parts, shape.cells), draw(shape.batch, shape.parts, shape.cells, 2, 2)


def call(shape: FieldShape, impl: str) -> Function:
    return lambda *tensors: part_moments(*tensors, grid=shape.grid, temperature=TEMPERATURE, impl=impl)


def eager(shape: FieldShape, dtype: torch.dtype, device: torch.device) -> Function:
    """The formula as one would write it, in the inputs' dtype; no rule for hidden rows."""
    cells = reference.cell_centers(shape.grid, device=device, dtype=dtype)

    def function(logits: torch.Tensor, affine: torch.Tensor) -> Tensors:
        probability = torch.softmax(logits / TEMPERATURE, dim=-1)
        affines = torch.einsum("bkn,bknij->bkij", probability, affine)
        return probability @ cells, affines, probability.square().sum(dim=-1)

    return function


def read(shape: FieldShape, itemsize: int) -> int:
    return shape.batch * shape.parts * shape.cells * 5 * itemsize


def written(shape: FieldShape, itemsize: int) -> int:
    return shape.batch * shape.parts * 7 * itemsize


OPERATOR = BenchedOperator("part_moments", SHAPES, GPU_SHAPES, inputs, call, eager, read, written)

if __name__ == "__main__":
    raise SystemExit(main(OPERATOR))
