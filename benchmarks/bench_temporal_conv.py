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
    masked: bool = False

    def __str__(self) -> str:
        masked = " masked" if self.masked else ""
        return f"{self.batch}x{self.frames}x{self.tokens}x{self.channels} k{self.width}{masked}"


SHAPES = (
    Shape(4, 8, 129, 48), Shape(16, 1, 129, 48), Shape(64, 1, 128, 48), Shape(64, 1, 128, 48, masked=True),
    Shape(8, 8, 129, 192), Shape(8, 8, 129, 192, masked=True), Shape(8, 8, 129, 192, 5), Shape(16, 8, 129, 192),
    Shape(16, 8, 129, 192, masked=True),
)  # fmt: skip
# An image, clips of the adapter of `base`, longer ones, more taps, a wider network.
GPU_SHAPES = (
    Shape(64, 1, 129, 192), Shape(16, 8, 129, 192), Shape(64, 8, 129, 192), Shape(16, 32, 129, 192),
    Shape(64, 8, 129, 192, 5), Shape(64, 8, 129, 192, 9), Shape(16, 8, 129, 768),
)  # fmt: skip


def inputs(shape: Shape, draw: Callable[..., torch.Tensor]) -> Tensors:
    size = (shape.batch, shape.frames, shape.tokens, shape.channels)
    drawn = draw(*size), draw(shape.channels, shape.width), draw(shape.channels)
    return (*drawn, draw(*size[:2]) > -0.8) if shape.masked else drawn


def call(shape: Shape, impl: str) -> Function:
    return lambda *tensors: (temporal_conv(*tensors, impl=impl),)


def eager(shape: Shape, dtype: torch.dtype, device: torch.device) -> Function:
    """By conv1d, or a product for a single frame."""
    return plain(shape, by_conv1d)


def conv2d(shape: Shape, dtype: torch.dtype, device: torch.device) -> Function | None:
    """Where PyTorch is fastest on a CPU; a GPU may round it to TF32."""
    return plain(shape, by_conv2d) if device.type == "cpu" and shape.frames > 1 else None


def plain(shape: Shape, convolve: Function) -> Function:
    """A convolution sees zeros where there is no frame; taps that lie there are given to the frame itself."""
    radius = shape.width // 2

    def function(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None = None
    ) -> Tensors:
        absent = None if mask is None else ~mask[..., None, None]
        if absent is not None:
            x = x.masked_fill(absent, 0)
        if shape.frames == 1:
            total = x * weight.sum(1) + bias
        else:
            there = mask if mask is not None else x.new_ones(1, shape.frames, dtype=torch.bool)
            outside = ~F.pad(there, (radius, radius)).unfold(1, shape.width, 1)  # (B, T, k)
            (convolved,) = convolve(x, weight, bias)
            total = convolved + x * (outside.to(x.dtype) @ weight.t())[:, :, None]
        out = F.gelu(total)
        return (out if absent is None else out.masked_fill(absent, 0),)

    return function


def by_conv1d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Tensors:
    channels, width = weight.shape
    rows = x.permute(0, 2, 3, 1).flatten(0, 1)
    convolved = F.conv1d(rows, weight[:, None], bias, padding=width // 2, groups=channels)
    return (convolved.unflatten(0, (x.shape[0], x.shape[2])).permute(0, 3, 1, 2),)


def by_conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Tensors:
    """Of T x N pixels, channels last as they lie."""
    channels, width = weight.shape
    pictures, taps = x.permute(0, 3, 1, 2), weight[:, None, :, None]
    return (F.conv2d(pictures, taps, bias, padding=(width // 2, 0), groups=channels).permute(0, 2, 3, 1),)


def read(shape: Shape, itemsize: int) -> int:
    return (shape.batch * shape.frames * shape.tokens + shape.width + 1) * shape.channels * itemsize


def written(shape: Shape, itemsize: int) -> int:
    return shape.batch * shape.frames * shape.tokens * shape.channels * itemsize


OPERATOR = BenchedOperator("temporal_conv", SHAPES, GPU_SHAPES, inputs, call, eager, read, written,
                          peers={"conv2d": conv2d})  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(OPERATOR))
