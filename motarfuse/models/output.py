"""What every network returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from motarfuse.nn import PartState


@dataclass
class ReIDOutput:
    """Features of a batch of people.

    Attributes:
        feature: (B, D), after the BNNeck: what retrieval compares and the identity loss sees.
        embedding: (B, D), before the BNNeck: what the triplet loss sees.
    """

    feature: Tensor
    embedding: Tensor


@dataclass
class MotarFuseOutput(ReIDOutput):
    """Features of people with their parts and motion; T is 1 for images, coordinates are in [-1, 1]^2, x first.

    Attributes:
        part_features: (B, L, D) a feature a part, after a BNNeck, over the frames weighted by visibility; none,
            (B, 0, D), where the network was built without part features.
        part_embeddings: (B, L, D) the same before the BNNeck: what the part triplet sees.
        part_visibility: (B, L) in [0, 1], how clearly each part is seen, mean over the valid frames.
        keypoints: (B, T, L, 2).
        affines: (B, T, L, 2, 2).
        part_masks: (B, T, L + 1, h, w), softmax over the channels, channel 0 the background.
        motion: (B, T, h, w, 2) canonical displacement: where each cell's parts would have to go.
        alignment: (B, T, 3) shift and log scale that were undone before the displacement was taken.
        class_feature: (B, D) the class token alone, after a BNNeck of its own: a second identity loss sees it.
        states: What the part heads read after each decoder layer, frames flattened, in training mode; empty otherwise.
    """

    part_features: Tensor
    part_embeddings: Tensor
    part_visibility: Tensor
    keypoints: Tensor
    affines: Tensor
    part_masks: Tensor
    motion: Tensor
    alignment: Tensor
    class_feature: Tensor
    states: tuple[PartState, ...] = ()


torch.export.register_dataclass(ReIDOutput, serialized_type_name="motarfuse.ReIDOutput")
torch.export.register_dataclass(MotarFuseOutput, serialized_type_name="motarfuse.MotarFuseOutput")
