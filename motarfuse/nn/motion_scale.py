"""The motion descriptor's channels on one scale, by running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from motarfuse.ops.snapshot import snapshot

# Channels of the motion descriptor: canonical displacement, displacement to the previous and to the next frame (two
# each), foreground, log of the determinant.
MOTION_CHANNELS = 8
_CENTRED = slice(6, 8)
_LEAST_DEVIATION = 0.05


class MotionScale(nn.Module):
    """Scales the channels of the motion descriptor by running statistics over the cells where they are valid.

    Displacements are divided by their root mean square, so that zero stays zero; foreground and determinant are centred
    and divided by their deviation. Deviations are floored at 0.05. Statistics start at mean 0 and deviation 1, which
    the first batch replaces; the n-th moves them by max(1 - momentum, 1 / n), so that a short training has them too.
    They take no gradient, are saved and fixed in evaluation.

    Args:
        momentum: Share of the old statistics that a batch keeps.
    """

    mean: Tensor
    square: Tensor
    batches: Tensor

    def __init__(self, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("batches", torch.zeros(MOTION_CHANNELS))  # that had something valid
        self.register_buffer("mean", torch.zeros(MOTION_CHANNELS))
        self.register_buffer("square", torch.ones(MOTION_CHANNELS))

    @torch.no_grad()
    def update(self, descriptor: Tensor, valid: Tensor) -> None:
        """Args: descriptor (F, N, 8), unscaled; valid (F, 8) booleans, which channels of which frames count."""
        if not self.training:
            return
        weight = valid[:, None].to(self.mean).expand(descriptor.shape)
        values = descriptor.detach().to(self.mean)
        sums = torch.stack((weight.sum((0, 1)), (weight * values).sum((0, 1)), (weight * values.square()).sum((0, 1))))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        count, total, squares = sums
        counts = (count > 0) & squares.isfinite()
        self.batches.add_(counts)
        rate = (1 / self.batches.clamp(min=1)).clamp(min=1 - self.momentum) * counts
        count = count.clamp(min=1)
        self.mean.add_(rate * ((total / count).nan_to_num() - self.mean))
        self.square.add_(rate * ((squares / count).nan_to_num() - self.square))

    def forward(self, descriptor: Tensor) -> Tensor:
        """Args: descriptor (..., 8). Returns the scaled one."""
        # `update` changes the buffers before the backward pass.
        of_now, square = (snapshot(one) if self.training else one for one in (self.mean, self.square))
        mean = torch.zeros_like(of_now)
        mean[_CENTRED] = of_now[_CENTRED]
        deviation = (square - mean.square()).clamp(min=0).sqrt().clamp(min=_LEAST_DEVIATION)
        return (descriptor - mean.to(descriptor)) / deviation.to(descriptor)

    def extra_repr(self) -> str:
        return f"momentum={self.momentum:g}"
