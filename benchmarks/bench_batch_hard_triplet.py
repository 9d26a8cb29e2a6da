"""batch_hard_triplet beside plain PyTorch, eager and compiled, forward and with its backward.

Run: python -m benchmarks.bench_batch_hard_triplet [--device cpu] [--threads 2 | --cpu-time] [--dtypes float32]
[--csv FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.operator_bench import BenchedOperator, Function, Tensors, main
from motarfuse.ops import batch_hard_triplet

IMAGES_OF_A_PERSON = 4


class Shape(NamedTuple):
    """A batch of features of people with four images each."""

    batch: int
    dim: int
    metric: str = "euclidean"

    def __str__(self) -> str:
        return f"{self.batch}x{self.dim} {self.metric}"


SHAPES = tuple(
    Shape(*size, metric) for size in ((64, 768), (256, 768), (256, 2048)) for metric in ("euclidean", "cosine")
)
GPU_SHAPES = (Shape(64, 768), Shape(256, 768, "cosine"), Shape(512, 768), Shape(2048, 768), Shape(4096, 2048, "cosine"))


def inputs(shape: Shape, draw: Callable[..., torch.Tensor]) -> Tensors:
    features = draw(shape.batch, shape.dim)
    return features, torch.arange(shape.batch, device=features.device) // IMAGES_OF_A_PERSON


def call(shape: Shape, impl: str) -> Function:
    return lambda features, labels: (batch_hard_triplet(features, labels, metric=shape.metric, impl=impl)[None],)


def eager(shape: Shape, dtype: torch.dtype, device: torch.device) -> Function:
    """As ReID code bases write it: the matrix of distances from a product of matrices, in float32."""

    def function(features: torch.Tensor, labels: torch.Tensor) -> Tensors:
        features = features.float()
        if shape.metric == "cosine":
            features = F.normalize(features, dim=1)
            distance = 1 - features @ features.t()
        else:
            squares = features.square().sum(1)
            distance = (squares[:, None] + squares - 2 * features @ features.t()).clamp(min=1e-12).sqrt()
        same = labels[:, None] == labels
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        positive = distance.masked_fill(~same | itself, -torch.inf).amax(1)
        negative = distance.masked_fill(same, torch.inf).amin(1)
        return (F.softplus(positive - negative).mean()[None],)

    return function


def read(shape: Shape, itemsize: int) -> int:
    return shape.batch * (shape.dim * itemsize + 8)


def written(shape: Shape, itemsize: int) -> int:
    return 4


# The eager peer's products of matrices round elsewhere: where distances nearly tie it chooses other pairs.
OPERATOR = BenchedOperator("batch_hard_triplet", SHAPES, GPU_SHAPES, inputs, call, eager, read, written, jumps=0.1)

if __name__ == "__main__":
    raise SystemExit(main(OPERATOR))
