"""A running average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average: a <- d a + (1 - d) w with d = min(decay, (1 + t) / (10 + t)) after t updates.

    Floating-point buffers (the BNNeck's statistics) are averaged likewise, counters copied.

    Args:
        model: The network; the average starts as a copy of it.
        decay: In [0, 1).

    Source: Polyak and Juditsky 1992; the growing decay keeps the random start out of short trainings.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Takes in the weights of ``model``; ``updates`` is the number of earlier updates."""
        share = 1 - min(self.decay, (1 + updates) / (10 + updates))
        averages, currents = [], []
        for average, current in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                currents.append(current)
            else:
                average.copy_(current)
        torch._foreach_lerp_(averages, currents, share)
