"""temporal_conv beside plain PyTorch, eager and compiled, forward and with its backward.

Run: python -m benchmarks.bench_temporal_conv [--device cpu] [--threads 2 | --cpu-time] [--dtypes float32] [--csv FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.operator_bench import BenchedOperator, Function, Tensors, main
from motarfuse.ops import temporal_conv


class Shape(NamedTuple):
    batch: int
    frames: int
    tokens: int
    channels: int
    width: int = 3

    def __str__(self) -> str:
        return f"{self.batch}x{self.frames}x{self.tokens}x{self.channels} k{self.width}"


SHAPES = (Shape(4, 8, 129, 48), Shape(16, 1, 129, 48))
# An image, clips of the adapter of `base`, longer ones, more taps, a wider network.
GPU_SHAPES = (
    Shape(64, 1, 129, 192), Shape(16, 8, 129, 192), Shape(64, 8, 129, 192), Shape(16, 32, 129, 192),
    Shape(64, 8, 129, 192, 5), Shape(64, 8, 129, 192, 9), Shape(16, 8, 129, 768),
)  # fmt: skip


def inputs(shape: Shape, draw: Callable[..., torch.Tensor]) -> Tensors:
    size = (shape.batch, shape.frames, shape.tokens, shape.channels)
    return draw(*size), draw(shape.channels, shape.width), draw(shape.channels)


def call(shape: Shape, impl: str) -> Function:
    return lambda *tensors: (temporal_conv(*tensors, impl=impl),)


def eager(shape: Shape, dtype: torch.dtype, device: torch.device) -> Function:
    """By conv1d, whose zeros beyond the ends are then replaced by the frame itself: taps outside go to the middle."""
    radius = shape.width // 2
    offsets = torch.arange(-radius, radius + 1, device=device)
    reached = torch.arange(shape.frames, device=device)[:, None] + offsets
    outside = ((reached < 0) | (reached >= shape.frames)).to(dtype)  # (T, k)

    def function(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Tensors:
        rows = x.permute(0, 2, 3, 1).flatten(0, 1)
        inside = F.conv1d(rows, weight[:, None], bias, padding=radius, groups=shape.channels)
        total = inside.view(shape.batch, shape.tokens, shape.channels, shape.frames).permute(0, 3, 1, 2)
        return (F.gelu(total + x * (outside @ weight.t())[:, None]),)

    return function


def read(shape: Shape, itemsize: int) -> int:
    return (shape.batch * shape.frames * shape.tokens + shape.width + 1) * shape.channels * itemsize


def written(shape: Shape, itemsize: int) -> int:
    return shape.batch * shape.frames * shape.tokens * shape.channels * itemsize


OPERATOR = BenchedOperator("temporal_conv", SHAPES, GPU_SHAPES, inputs, call, eager, read, written)

if __name__ == "__main__":
    raise SystemExit(main(OPERATOR))
