"""The pre-LN transformer block of a vision transformer, with the parameter names that timm's ViT uses."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def checked_heads(dim: int, heads: int) -> int:
    """The number of heads; ValueError unless it divides dim."""
    if heads < 1 or dim % heads:
        raise ValueError(f"heads must divide dim, got dim {dim} and heads {heads}")
    return heads


class DropPath(nn.Module):
    """Stochastic depth: drops the whole branch of a sample with probability p while training.

    out_b = branch_b * keep_b / (1 - p), keep_b ~ Bernoulli(1 - p); the identity in evaluation mode or for p = 0.

    Args:
        probability: p in [0, 1).

    Source: Huang et al. 2016, "Deep Networks with Stochastic Depth".
    """

    def __init__(self, probability: float = 0.0) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"probability must lie in [0, 1), got {probability}")
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """Args: branch (B, ...), the first dimension being samples. Returns the same shape."""
        if self.probability == 0 or not self.training:
            return branch
        keep = 1 - self.probability
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        # Drawn in fp32 whatever the branch's type: the same samples survive with and without autocast.
        mask = torch.rand(shape, device=branch.device) < keep
        return branch * (mask.to(branch.dtype) / keep)

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}"


class Attention(nn.Module):
    """Multi-head self-attention: out = proj(softmax(q k^T / sqrt(d)) v), (q, k, v) = qkv(x), d = dim / heads.

    Args:
        dim: Width D of the tokens.
        heads: Number of heads; divides dim.
        qkv_bias: Whether the packed projection has a bias.

    Source: Vaswani et al. 2017; Dosovitskiy et al. 2021.
    """

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = checked_heads(dim, heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, num_outputs: int | None = None) -> Tensor:
        """Attends from all tokens, or from the first few, to all.

        Args:
            tokens: (B, N, D).
            num_outputs: Number n of leading tokens that are wanted; None: all N.

        Returns:
            (B, N, D), or the first n of it, (B, n, D).
        """
        batch, length, dim = tokens.shape
        heads, width = self.heads, dim // self.heads
        if num_outputs is None:
            query, key, value = self.qkv(tokens).view(batch, length, 3, heads, width).unbind(2)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            biases = (None, None) if bias is None else (bias[:dim], bias[dim:])
            query = F.linear(tokens[:, :num_outputs], weight[:dim], biases[0]).unflatten(-1, (heads, width))
            key, value = F.linear(tokens, weight[dim:], biases[1]).view(batch, length, 2, heads, width).unbind(2)
        # (B, H, N, d) each, views of what the projection wrote
        out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return self.proj(out.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


class Mlp(nn.Module):
    """Two linear layers with an activation between them: out = fc2(act(fc1(x))).

    Args:
        dim: Width of input and output.
        hidden_dim: Width between the layers.
        activation: ``gelu`` (erf), or ``quick_gelu``, x sigmoid(1.702 x): what OpenAI's CLIP was trained with.
    """

    def __init__(self, dim: int, hidden_dim: int, *, activation: Literal["gelu", "quick_gelu"] = "gelu") -> None:
        super().__init__()
        if activation not in ("gelu", "quick_gelu"):
            raise ValueError(f"activation must be gelu or quick_gelu, got {activation!r}")
        self.activation = activation
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Args: tokens (..., D). Returns (..., D)."""
        hidden = self.fc1(tokens)
        return self.fc2(F.gelu(hidden) if self.activation == "gelu" else hidden * torch.sigmoid(1.702 * hidden))

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


class Block(nn.Module):
    """A pre-LN transformer block.

    y = x + drop(attn(norm1(x))),  out = y + drop(mlp(norm2(y)))

    Parameters are named ``norm1``, ``attn.qkv``, ``attn.proj``, ``norm2``, ``mlp.fc1`` and ``mlp.fc2`` as in timm's
    ViT, so that its weights load as they are.

    Args:
        dim: Width D of the tokens.
        heads: Number of attention heads; divides dim.
        mlp_ratio: Hidden width of the MLP over D.
        qkv_bias: Whether the packed projection has a bias.
        drop_path: Probability of dropping a branch of a sample while training (stochastic depth), in [0, 1).
        eps: Epsilon of the layer norms; 1e-6 is what public ViT weights were trained with, 1e-5 CLIP's.
        activation: Of the MLP, ``gelu`` or ``quick_gelu``.

    Shapes: tokens (B, N, D) -> (B, N, D). About 24 N D^2 + 4 N^2 D FLOPs a sample forward at mlp_ratio 4.

    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words".
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        eps: float = 1e-6,
        activation: Literal["gelu", "quick_gelu"] = "gelu",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), activation=activation)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, num_outputs: int | None = None) -> Tensor:
        """The whole sequence, or what becomes of its first tokens at a fraction of the cost.

        Args:
            tokens: (B, N, D).
            num_outputs: Number n of leading tokens that are wanted; None: all N.

        Returns:
            (B, N, D), or the first n of it, (B, n, D).
        """
        attended = self.drop_path(self.attn(self.norm1(tokens), num_outputs))
        tokens = (tokens if num_outputs is None else tokens[:, :num_outputs]) + attended
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))
