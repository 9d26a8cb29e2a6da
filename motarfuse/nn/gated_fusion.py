"""Gated fusion of appearance and motion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from motarfuse.ops import gated_fusion


class GatedFusion(nn.Module):
    """V' = LN(V + sigmoid(W_g [V; E m]) * (W_m E m)): each channel decides how much motion enters it.

    E embeds the motion descriptor. W_m starts at zero, so that the layer starts as a layer norm of V.

    Args:
        dim: Width D of the tokens.
        motion_dim: Channels C of the motion descriptor.
        eps: Epsilon of the layer norm.

    Shapes: tokens (..., D), motion (..., C) -> (..., D).

    Source: this project's reading of the fusion of MOTAR-FUSE (Ling et al. 2025).
    """

    def __init__(self, dim: int, motion_dim: int = 8, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.embed = nn.Linear(motion_dim, dim)
        self.gate = nn.Linear(2 * dim, dim)
        self.motion = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        nn.init.zeros_(self.motion.weight)
        nn.init.zeros_(self.motion.bias)

    def forward(self, tokens: Tensor, motion: Tensor) -> Tensor:
        """Args: tokens (..., D); motion (..., C). Returns (..., D)."""
        embedded = self.embed(motion.to(tokens.dtype))
        gate = self.gate(torch.cat((tokens, embedded.to(tokens.dtype)), dim=-1))
        return gated_fusion(tokens, self.motion(embedded), gate, self.norm.weight, self.norm.bias, self.norm.eps)

    def extra_repr(self) -> str:
        return f"dim={self.embed.out_features}, motion_dim={self.embed.in_features}"
