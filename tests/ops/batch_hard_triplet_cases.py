"""What the tests of batch_hard_triplet's kernels share: inputs, and the check by the one tolerance rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from motarfuse.ops.batch_hard_triplet import CountedTriplet, counted_batch_hard_triplet
from motarfuse.reference.batch_hard_triplet import hardest
from motarfuse.reference.precision import compute_dtype
from tests.ops import kernel_cases
from tests.ops.kernel_cases import Inputs
from tests.ops.operator_cases import normal

METRICS = ("euclidean", "cosine")
Indices = tuple[list[int], list[int]]


def case(
    batch: int, dim: int, dtype: torch.dtype = torch.float32, *, people: int | None = None, seed: int = 0
) -> Inputs:
    """Random features, with a mean so that they are no sphere around zero, and random labels of some people.

    By default about three images a person, so that some have one alone.
    """
    generator = torch.Generator().manual_seed(seed)
    people = max(1, batch // 3) if people is None else people
    labels = torch.randint(-1, people - 1, (batch,), generator=generator)
    return {"features": (normal(seed)(batch, dim) + 0.5).to(dtype), "labels": labels}


def outputs_and_gradients(
    inputs: Mapping[str, torch.Tensor], impl: str, *, margin: float | None = None, metric: str = "euclidean",
    gradient_dtype: torch.dtype | None = None,
) -> Inputs:  # fmt: skip
    """`kernel_cases.outputs_and_gradients` of this operator, whose scalars become (1,)."""

    def call(features: torch.Tensor, labels: torch.Tensor) -> CountedTriplet:
        found = counted_batch_hard_triplet(features, labels, margin=margin, metric=metric, impl=impl)
        return CountedTriplet(found.loss[None], found.skipped[None])

    loss_dtype = compute_dtype(inputs["features"]) if gradient_dtype is None else gradient_dtype
    dtypes = {"loss": loss_dtype, "skipped": torch.int64}
    return kernel_cases.outputs_and_gradients(call, inputs, results=("loss",), dtypes=dtypes)


def check(
    backend: tuple[str, str], inputs: Mapping[str, torch.Tensor], *, margin: float | None = None,
    metric: str = "euclidean",
) -> None:  # fmt: skip
    """The rule of tests/tolerance.py for the loss and the gradient; the anchors skipped are those of the reference."""
    skipped: list[float] = []

    def run(impl: str, inputs: Inputs) -> Inputs:
        dtype = compute_dtype(given)
        found = outputs_and_gradients(inputs, impl, margin=margin, metric=metric, gradient_dtype=dtype)
        skipped.append(found.pop("skipped").item())
        return found

    given = inputs["features"]
    kernel_cases.check(run, backend, inputs)
    assert len(set(skipped)) == 1


def chosen(forward: Any, features: torch.Tensor, labels: torch.Tensor, metric: str) -> Indices:
    """Indices of positives and negatives by a registered forward, -1 for anchors without a pair."""
    positive, negative = forward(features, labels, None, metric, True)[2].tolist()
    return positive, negative


def expected(features: torch.Tensor, labels: torch.Tensor, metric: str) -> Indices:
    """The same by the reference."""
    rows = torch.nn.functional.normalize(features, dim=1) if metric == "cosine" else features
    positive, negative, valid = hardest(rows, labels, metric)
    return torch.where(valid, positive, -1).tolist(), torch.where(valid, negative, -1).tolist()


def assert_the_first_of_duplicates(found: Indices, which: torch.Tensor, anchors: Iterable[int] | None = None) -> None:
    """Anchors, all by default, chose the first of the features that are exact duplicates by ``which``."""
    anchors = range(len(which)) if anchors is None else anchors
    for anchor, *pair in zip(anchors, *found, strict=True):
        for index in pair:
            assert index == next(k for k in range(len(which)) if which[k] == which[index] and k != anchor)


def columns_apart(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, columns instead of rows one after the other."""
    return tensor.t().contiguous().t()


def overflowing() -> Inputs:
    """Two people between whom all distances overflow to infinity in float32, and whose pairs do not."""
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1e20, 0.0], [1e20, 1.0]])
    return {"features": features, "labels": torch.tensor([0, 0, 1, 1])}
