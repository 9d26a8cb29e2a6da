"""linear_cross_entropy beside plain PyTorch, eager and compiled, and Liger-Kernel's where that is installed.

Run: python -m benchmarks.bench_linear_cross_entropy [--device cpu] [--threads 2 | --cpu-time] [--dtypes float32]
[--csv FILE]
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.operator_bench import BenchedOperator, Function, Tensors, main
from motarfuse.ops import linear_cross_entropy

SMOOTHING = 0.1


class ClassifierShape(NamedTuple):
    """Rows of features, classes, numbers of a feature; a weight that is float32 beside features of any type."""

    rows: int
    classes: int
    width: int
    float_weight: bool = False

    def __str__(self) -> str:
        return f"{self.rows}x{self.width} C{self.classes}{' float32 weight' if self.float_weight else ''}"


SHAPES = (ClassifierShape(64, 751, 768), ClassifierShape(256, 2000, 256))
GPU_SHAPES = (
    *(ClassifierShape(rows, classes, 768) for rows in (64, 256) for classes in (751, 10_000, 100_000)),
    *(ClassifierShape(rows, classes, 768, float_weight=True) for rows, classes in ((64, 751), (256, 100_000))),
)


def inputs(shape: ClassifierShape, draw: Callable[..., torch.Tensor]) -> Tensors:
    labels = (draw(shape.rows).float().abs() * 1e6).long() % shape.classes
    features, weight = draw(shape.rows, shape.width), 0.02 * draw(shape.classes, shape.width)
    return features, weight.float() if shape.float_weight else weight, labels


def call(shape: ClassifierShape, impl: str) -> Function:
    def function(features: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> Tensors:
        loss = linear_cross_entropy(features, weight, labels, label_smoothing=SMOOTHING, impl=impl)
        return (loss.to(features.dtype)[None],)  # a draw has at least one dimension, and the features' dtype

    return function


def eager(shape: ClassifierShape, dtype: torch.dtype, device: torch.device) -> Function:
    """Logits in the features' dtype and their cross entropy in float32, as autocast computes them.

    In float16 a sum over all classes and rows would overflow.
    """

    def function(features: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> Tensors:
        logits = features @ weight.to(features.dtype).T
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
        return (loss.to(features.dtype)[None],)

    return function


def liger(shape: ClassifierShape, dtype: torch.dtype, device: torch.device) -> Function | None:
    """Liger-Kernel's fused linear cross entropy, of one dtype."""
    if device.type != "cuda" or shape.float_weight or importlib.util.find_spec("liger_kernel") is None:
        return None
    transformers = importlib.import_module("liger_kernel.transformers")
    module = transformers.LigerFusedLinearCrossEntropyLoss(label_smoothing=SMOOTHING)
    return lambda features, weight, labels: (module(weight, features, labels).to(features.dtype)[None],)


def read(shape: ClassifierShape, itemsize: int) -> int:
    weight_size = torch.float32.itemsize if shape.float_weight else itemsize
    return (shape.rows * itemsize + shape.classes * weight_size) * shape.width + 8 * shape.rows


def written(shape: ClassifierShape, itemsize: int) -> int:
    return 4


OPERATOR = BenchedOperator(
    "linear_cross_entropy", SHAPES, GPU_SHAPES, inputs, call, eager, read, written, peers={"liger": liger}
)

if __name__ == "__main__":
    raise SystemExit(main(OPERATOR))
