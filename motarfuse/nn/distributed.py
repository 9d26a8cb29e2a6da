"""Features of all processes of a distributed training, for losses that compare the people of a batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def gather_features(features: Tensor, labels: Tensor, group: Any = None) -> tuple[Tensor, Tensor]:
    """The rows of all processes in the order of their ranks, so that a loss sees the joined batch.

    Gradients: a row's gradient is the sum over processes of what each one's loss sends it. With parameter gradients
    averaged over the processes, as ``DistributedDataParallel`` does, what is learned from is the mean of the processes'
    losses: where each computes the same loss of the joined batch, exactly the gradient that one process with the
    joined batch has. The sum is taken in the order of the ranks, so that it is the same in every run.

    Every process of the group must call it, and go backward through it where any of them does. Without a process
    group, or with one process in it, the arguments come back as they are, with labels as int64.

    Args:
        features: (b, D) floating; b may differ between processes and be 0, D and dtype may not.
        labels: (b,) integers, on the features' device.
        group: A process group of ``torch.distributed``; None is the default one.

    Returns:
        features (sum b, D) and labels (sum b,) int64, on every process.

    Raises:
        ValueError: Wrong shapes here, or widths or dtypes that differ between processes; then on all of them.

    Cost: three collectives forward, the first of which tells the sizes and makes the host wait for the device; rows are
    padded to the longest batch. One backward, an all-to-all that sends each process what belongs to it.
    """
    if features.dim() != 2 or labels.shape != features.shape[:1] or not features.is_floating_point():
        raise ValueError(
            f"features must be floating (b, D) and labels (b,), got {features.dtype} {tuple(features.shape)} and "
            f"{tuple(labels.shape)}"
        )
    labels = labels.to(torch.int64)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return features, labels
    sizes = _sizes(features, group)
    return _GatherRows.apply(features, sizes, group), _gather(labels, sizes, group)


def _sizes(features: Tensor, group: Any) -> list[int]:
    """The processes' batch sizes; raises where rows do not fit one another."""
    rows, dim = features.shape
    own = torch.tensor([rows, dim, _DTYPES.index(features.dtype)], device=features.device)
    gathered = own.new_empty((dist.get_world_size(group), 3))
    dist.all_gather(list(gathered), own, group=group)
    found = gathered.tolist()
    if len({(width, dtype) for _, width, dtype in found}) > 1:
        listed = ", ".join(f"{width} of {_DTYPES[dtype]}" for _, width, dtype in found)
        raise ValueError(f"features must have one width and dtype on all processes; got, by rank, {listed}")
    return [size for size, _, _ in found]


def _gather(rows: Tensor, sizes: list[int], group: Any) -> Tensor:
    """(b, ...) of all processes, one after the other."""
    longest = max(sizes)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = padded.new_empty((len(sizes), *padded.shape))
    if gathered.numel():
        # As bytes: not every backend knows every dtype.
        parts = list(gathered.flatten(1).view(torch.uint8))
        dist.all_gather(parts, padded.flatten().view(torch.uint8), group=group)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], group: Any) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        return _gather(rows, sizes, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sizes, group = ctx.sizes, ctx.group
        width, own = grad.shape[1], sizes[dist.get_rank(group)]
        received = grad.new_empty((len(sizes) * own, width))
        if width and max(sizes):
            row = width * grad.element_size()
            dist.all_to_all_single(
                received.flatten().view(torch.uint8),
                grad.flatten().view(torch.uint8),
                [own * row] * len(sizes),
                [size * row for size in sizes],
                group=group,
            )
        # Half gradients are summed in float32, and in the order of the ranks.
        parts = received.view(len(sizes), own, width)
        exact = torch.float64 if grad.dtype == torch.float64 else torch.float32
        total = torch.zeros((own, width), dtype=exact, device=grad.device)
        for part in parts:
            total += part
        return total.to(grad.dtype), None, None
