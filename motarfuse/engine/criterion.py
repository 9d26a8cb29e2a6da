"""The loss that a run minimises, term by term."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from motarfuse.engine.config import LossConfig
from motarfuse.models import ReIDOutput
from motarfuse.nn import IdLoss, TripletLoss


class ReIDCriterion(nn.Module):
    """id_weight * L_ID(feature) + triplet_weight * L_tri(embedding).

    Args:
        dim: Width of feature and embedding.
        num_classes: Number of training identities.
        config: Weights and options.
    """

    def __init__(self, dim: int, num_classes: int, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.identity = IdLoss(dim, num_classes, config.label_smoothing)
        self.triplet = TripletLoss(config.margin, config.metric)

    def forward(self, output: ReIDOutput, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Args: a network's output; labels (B,) in [0, C). Returns the loss and its unweighted terms, scalars.

        A term of weight 0 is not computed.
        """
        terms: dict[str, Tensor] = {}
        loss = torch.zeros((), device=labels.device)
        if self.config.id_weight:
            terms["loss_id"] = self.identity(output.feature, labels)
            loss = loss + self.config.id_weight * terms["loss_id"]
        if self.config.triplet_weight:
            terms["loss_triplet"] = self.triplet(output.embedding, labels)
            loss = loss + self.config.triplet_weight * terms["loss_triplet"]
        return loss, terms
