"""The batch-normalisation neck between the metric loss and the identity loss."""

from __future__ import annotations

from torch import Tensor, nn


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
        return super().forward(features)
