"""The pre-LN transformer block of a vision transformer, with the parameter names that timm's ViT uses."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motarfuse.nn.fused_steps import (
    PendingSum,
    add_norm,
    attention_to,
    is_plain,
    linear_activation,
    packed_self_attention,
)
from motarfuse.ops.bias_gelu import ACTIVATIONS

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


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

    def sample_scale(self, branch: Tensor) -> Tensor | None:
        """Draws (B,) factors, 0 or 1 / (1 - p), for `PendingSum`; None where nothing is dropped."""
        if self.probability == 0 or not self.training:
            return None
        keep = 1 - self.probability
        # Drawn in fp32 whatever the branch's type: the same samples survive with and without autocast.
        mask = torch.rand(branch.shape[0], device=branch.device, dtype=torch.float32) < keep
        return mask.to(torch.float64 if branch.dtype == torch.float64 else torch.float32) / keep

    def forward(self, branch: Tensor) -> Tensor:
        """Args: branch (B, ...), the first dimension being samples. Returns the same shape."""
        scale = self.sample_scale(branch)
        return branch if scale is None else branch * scale.to(branch.dtype).view((-1,) + (1,) * (branch.ndim - 1))

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}"


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch: out = gamma x; its parameter is named ``gamma`` as in timm.

    Args:
        dim: Width D.
        start: What all of gamma starts at.

    Shapes: (..., D) -> (..., D).

    Source: Touvron et al. 2021, "Going Deeper with Image Transformers".
    """

    def __init__(self, dim: int, start: float = 1e-5) -> None:
        super().__init__()
        self.start = start
        self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.start)

    def forward(self, branch: Tensor) -> Tensor:
        """Args: branch (..., D). Returns (..., D)."""
        return branch * self.gamma

    def extra_repr(self) -> str:
        return f"dim={len(self.gamma)}, start={self.start:g}"


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
            out = packed_self_attention(self.qkv(tokens).view(batch, length, 3, heads, width))
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            biases = (None, None) if bias is None else (bias[:dim], bias[dim:])
            query = F.linear(tokens[:, :num_outputs], weight[:dim], biases[0]).unflatten(-1, (heads, width))
            key, value = F.linear(tokens, weight[dim:], biases[1]).view(batch, length, 2, heads, width).unbind(2)
            out = attention_to(query, key, value)
        return self.proj(out.flatten(2))

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


class Mlp(nn.Module):
    """Two linear layers with an activation between them: out = fc2(act(fc1(x))).

    Args:
        dim: Width of input and output.
        hidden_dim: Width between the layers.
        activation: ``gelu`` (erf), ``gelu_tanh`` (its approximation by tanh), or ``quick_gelu``, x sigmoid(1.702 x):
            what OpenAI's CLIP was trained with.

    Where steps are operators (`motarfuse.ops.bias_gelu`), ``fc1`` is not called as a module, unless it has hooks.
    """

    def __init__(self, dim: int, hidden_dim: int, *, activation: Activation = "gelu") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation = activation
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Args: tokens (..., D). Returns (..., D)."""
        return self.fc2(linear_activation(tokens, self.fc1, self.activation))

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


class Block(nn.Module):
    """A pre-LN transformer block.

    y = x + drop(ls1 attn(norm1(x))),  out = y + drop(ls2 mlp(norm2(y)))

    On a GPU every step between two matrix products is one kernel of `motarfuse.ops`: attention reads the packed
    projection, ``bias_gelu`` adds the bias and activates, ``add_layer_norm`` adds a branch, scaled, to the residual
    stream and normalises the sum. In a chain of blocks that includes the step from one block to the next::

        for block in blocks:
            tokens = block(tokens, chained=True)  # a PendingSum: the last addition is left to the next norm1
        normed, tokens = add_norm(tokens, norm)

    On a CPU the steps are PyTorch's own functions. Where norm1, norm2 or fc1 have hooks, or other modules stand in
    their places, these are called on a GPU too.

    Parameters are named ``norm1``, ``attn.qkv``, ``attn.proj``, ``norm2``, ``mlp.fc1`` and ``mlp.fc2`` as in timm's
    ViT, so that its weights load as they are, with ``layer_scale`` also ``ls1.gamma`` and ``ls2.gamma``.

    Args:
        dim: Width D of the tokens.
        heads: Number of attention heads; divides dim.
        mlp_ratio: Hidden width of the MLP over D.
        qkv_bias: Whether the packed projection has a bias.
        drop_path: Probability of dropping a branch of a sample while training (stochastic depth), in [0, 1).
        eps: Epsilon of the layer norms; 1e-6 is what public ViT weights were trained with, 1e-5 CLIP's.
        activation: Of the MLP, ``gelu``, ``gelu_tanh`` or ``quick_gelu``.
        layer_scale: What the learned factors of the branches' channels start at; None: there are none.

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
        activation: Activation = "gelu",
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qkv_bias=qkv_bias)
        self.ls1 = None if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), activation=activation)
        self.ls2 = None if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, tokens: Tensor | PendingSum, num_outputs: int | None = None, *, chained: bool = False
    ) -> Tensor | PendingSum:
        """The whole sequence, or what becomes of its first tokens at a fraction of the cost.

        Args:
            tokens: (B, N, D), or what a block before this one leaves with ``chained``.
            num_outputs: Number n of leading tokens that are wanted; None: all N.
            chained: Whether to leave the last addition to whoever normalises the result.

        Returns:
            (B, N, D), or the first n of it, (B, n, D); with ``chained`` a `PendingSum` of that shape.
        """
        normed, residual = add_norm(tokens, self.norm1)
        attended = self.attn(normed, num_outputs)
        if num_outputs is not None:
            residual = residual[:, :num_outputs]
        normed, residual = add_norm(self._pending(residual, attended, self.ls1), self.norm2)
        out = self._pending(residual, self.mlp(normed), self.ls2)
        return out if chained else out.tokens()

    def extra_repr(self) -> str:
        return f"dim={self.attn.proj.out_features}, heads={self.attn.heads}"

    def _pending(self, residual: Tensor, branch: Tensor, scale: nn.Module | None) -> PendingSum:
        """Layer scale and stochastic depth as factors of the addition; called, where others stand in their places."""
        gamma = sample = None
        drop_path: nn.Module = self.drop_path
        open_drop = isinstance(drop_path, DropPath) and is_plain(drop_path, DropPath)
        if isinstance(scale, LayerScale) and open_drop and is_plain(scale, LayerScale):
            gamma = scale.gamma
        elif scale is not None:
            branch = scale(branch)
        if isinstance(drop_path, DropPath) and open_drop:
            sample = drop_path.sample_scale(branch)
        else:
            branch = drop_path(branch)
        return PendingSum(residual, branch, gamma, sample)
