"""What every network returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ReIDOutput:
    """Features of a batch of people.

    Attributes:
        feature: (B, D), after the BNNeck: what retrieval compares and the identity loss sees.
        embedding: (B, D), before the BNNeck: what the triplet loss sees.
    """

    feature: Tensor
    embedding: Tensor


torch.export.register_dataclass(ReIDOutput)
