"""motion_warp beside plain PyTorch (``F.grid_sample`` among it), eager and compiled, forward and with its backward.

Run: python -m benchmarks.bench_motion_warp [--device cpu] [--threads 2 | --cpu-time] [--dtypes float32] [--csv FILE]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.motion_field import FieldShape
from benchmarks.operator_bench import BenchedOperator, Function, Tensors, main
from motarfuse import reference
from motarfuse.ops import motion_warp

SHAPES = (FieldShape(64, 8, (16, 8), 384), FieldShape(32, 10, (64, 32), 64), FieldShape(64, 8, (16, 8)))
GPU_SHAPES = (*SHAPES, FieldShape(512, 8, (16, 8), 768), FieldShape(512, 32, (64, 32), 64))


def inputs(shape: FieldShape, draw: Callable[..., torch.Tensor]) -> Tensors:
    """Postures near each other, so that most of the source is looked at."""
    batch, parts, cells = shape.batch, shape.parts, shape.cells

    def posture() -> Tensors:
        affines = 0.3 * torch.tanh(draw(batch, parts, 2, 2))
        return 0.3 * draw(batch, parts, 2), affines + torch.eye(2).to(affines)

    logits = (draw(batch, parts + 1, cells) for _ in range(2))
    return tuple(tensor.detach() for tensor in (draw(batch, cells, shape.channels), *posture(), *posture(), *logits))


def call(shape: FieldShape, impl: str) -> Function:
    return lambda *tensors: motion_warp(*tensors, grid=shape.grid, impl=impl)


def eager(shape: FieldShape, dtype: torch.dtype, device: torch.device) -> Function:
    """The formula as one would write it, in the inputs' dtype."""
    cells = reference.cell_centers(shape.grid, device=device, dtype=dtype)

    def function(
        source: torch.Tensor,
        source_keypoints: torch.Tensor,
        source_affines: torch.Tensor,
        target_keypoints: torch.Tensor,
        target_affines: torch.Tensor,
        part_logits: torch.Tensor,
        source_part_logits: torch.Tensor,
    ) -> Tensors:
        masks = torch.softmax(part_logits, 1)
        jacobians = source_affines @ reference.inverse_2x2(target_affines)
        moved = source_keypoints[:, :, None] + (cells - target_keypoints[:, :, None]) @ jacobians.mT
        flow = masks[:, 0, :, None] * cells + torch.einsum("bkn,bkni->bni", masks[:, 1:], moved)
        image, field = source.mT.unflatten(2, shape.grid), flow.unflatten(1, shape.grid)
        if shape.channels:
            warped = F.grid_sample(image, field, padding_mode="border", align_corners=False).flatten(2).mT
        else:
            warped = source * flow.sum()  # of no element; a result must depend on its inputs
        seen = 1 - (1 - torch.softmax(source_part_logits, 1)[:, 0]) * masks[:, 0].detach()
        return warped, flow, seen

    return function


def read(shape: FieldShape, itemsize: int) -> int:
    posture = 12 * shape.parts
    return shape.batch * itemsize * (shape.cells * (shape.channels + 2 * (shape.parts + 1)) + posture)


def written(shape: FieldShape, itemsize: int) -> int:
    return shape.batch * itemsize * shape.cells * (shape.channels + 3)


# A bilinear sample's derivative jumps where the flow meets a cell's centre.
OPERATOR = BenchedOperator("motion_warp", SHAPES, GPU_SHAPES, inputs, call, eager, read, written, jumps=5e-3)

if __name__ == "__main__":
    raise SystemExit(main(OPERATOR))
