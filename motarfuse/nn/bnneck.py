"""The batch-normalisation neck between the metric loss and the identity loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.module_tracker import ModuleTracker


class BNNeck(nn.BatchNorm1d):
    """Batch normalisation whose bias stays zero: out = weight * (x - mean) / sqrt(var + eps).

    The triplet loss acts on the input, the identity loss on the output; a bias would move the classifier's hyperplanes
    off the origin, where the cosine of retrieval has its centre. The bias is a parameter that takes no gradient, so
    that state dicts carry the names of ``BatchNorm1d``.

    Args:
        dim: Width D of the features.
        eps: Added to the variance.
        momentum: Share of the batch's statistics in the running ones.

    Shapes: (B, D) -> (B, D). A training batch needs at least two samples.

    Activation checkpointing (``torch.utils.checkpoint``) computes a forward again in the backward pass; the running
    statistics and the number of batches count it once, other than those of ``BatchNorm1d``. Twice it is counted where
    a compiled module is what the checkpoint calls; compile what calls the checkpoint.

    Source: Luo et al. 2019, "Bag of Tricks and a Strong Baseline for Deep Person Re-identification".
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(dim, eps=eps, momentum=momentum)
        self.bias.requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Args: features (B, D). Returns (B, D).

        Raises:
            ValueError: A training batch of one sample, whose variance is undefined.
        """
        if self.training and features.shape[0] == 1:
            raise ValueError("BNNeck needs at least 2 samples in a training batch, got 1; call .eval() for inference")
        if self.training and _is_recomputation():
            # Copies take the second count. No statistics at all would save other tensors than the first forward did.
            mean, var = (None if one is None else one.clone() for one in (self.running_mean, self.running_var))
            return F.batch_norm(features, mean, var, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(features)


def _is_recomputation() -> bool:
    """Whether a backward pass is under way: what computes forward in it is a checkpoint, whose first time counted."""
    return not torch.compiler.is_compiling() and bool(ModuleTracker().is_bw)
