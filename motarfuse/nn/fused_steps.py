"""The memory-bound steps of a transformer block: operators where they have kernels, PyTorch's own functions elsewhere.

A block's last addition and the layer norm that reads it first, its own or that of the block behind it, are one step. So
what runs through a chain of blocks is a `PendingSum`: a residual stream and the branch that is still to be added to it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motarfuse.ops import add_layer_norm, bias_gelu, motion_attention, motion_attention_packed
from motarfuse.ops.backends import preference


class PendingSum(NamedTuple):
    """Tokens as an addition that has not been made: residual + sample_scale layer_scale branch.

    Attributes:
        residual: (B, N, D).
        branch: (B, N, D).
        layer_scale: (D,), or None for 1.
        sample_scale: (B,) of stochastic depth, or None for 1.
    """

    residual: Tensor
    branch: Tensor
    layer_scale: Tensor | None = None
    sample_scale: Tensor | None = None

    def tokens(self) -> Tensor:
        """(B, N, D) the sum."""
        branch = self.branch
        if self.layer_scale is not None:
            branch = branch * self.layer_scale
        if self.sample_scale is not None:
            shape = (-1,) + (1,) * (branch.ndim - 1)
            branch = branch * self.sample_scale.to(branch.dtype).view(shape)
        return self.residual + branch


def uses_operators(tensor: Tensor) -> bool:
    """Whether steps on a tensor are operators: on a GPU, or where a backend is preferred (`motarfuse.use_backend`).

    On a CPU a block of C++ kernels is no faster: 0.95 to 1.00 of eager, against 0.98 to 1.02 of PyTorch's functions
    (tiny and small, 8 images of 129 tokens, two threads). Products take nine tenths of its time, a bias costs nothing
    inside one, checks of arguments are a fifth of a narrow block of one image, and attention's definition keeps its
    weights.
    """
    return tensor.device.type == "cuda" or preference() is not None


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether what a module computes is what its kind computes, and nobody wants to see it called."""
    if type(module) is not kind or "forward" in vars(module):
        return False
    return not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _is_plain_with_bias(module: nn.LayerNorm | nn.Linear) -> bool:
    kind = nn.LayerNorm if isinstance(module, nn.LayerNorm) else nn.Linear
    return module.bias is not None and is_plain(module, kind)


def add_norm(tokens: Tensor | PendingSum, norm: nn.Module, *, wide: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens after a layer norm, and the tokens themselves.

    Args:
        tokens: (B, N, D), or a sum to be made on the way.
        norm: ``nn.LayerNorm``; another module in its place, and one with hooks, is called with the sum.
        wide: Whether normed has the residual's dtype, as what leaves a network should. Otherwise it has the branch's,
            a half type under autocast, which is what the next matrix product takes.

    Returns:
        normed, sum: (B, N, D).
    """
    if isinstance(tokens, Tensor):
        return norm(tokens), tokens
    if uses_operators(tokens.residual) and isinstance(norm, nn.LayerNorm) and _is_plain_with_bias(norm):
        branch = tokens.branch.to(tokens.residual.dtype) if wide else tokens.branch
        normed, total = add_layer_norm(
            branch,
            tokens.residual,
            norm.weight,
            norm.bias,
            norm.eps,
            layer_scale=tokens.layer_scale,
            sample_scale=tokens.sample_scale,
        )
        return normed, total
    total = tokens.tokens()
    return norm(total), total


def linear_activation(tokens: Tensor, linear: nn.Module, activation: str) -> Tensor:
    """activation(linear(x)); as an operator, one pass adds the bias and activates, and one backward sums its gradient.

    Args:
        tokens: (..., D).
        linear: ``nn.Linear``; another module in its place, such as an adapted one, and one with hooks, is called.
        activation: As of `motarfuse.ops.bias_gelu`.
    """
    if uses_operators(tokens) and isinstance(linear, nn.Linear) and _is_plain_with_bias(linear):
        return bias_gelu(F.linear(tokens, linear.weight), linear.bias, activation=activation)
    hidden = linear(tokens)
    if activation == "quick_gelu":
        return hidden * torch.sigmoid(1.702 * hidden)
    return F.gelu(hidden, approximate="tanh" if activation == "gelu_tanh" else "none")


def packed_self_attention(qkv: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v. Args: qkv (B, N, 3, H, d), as a projection leaves it. Returns (B, N, H, d)."""
    if uses_operators(qkv):
        return motion_attention_packed(qkv)
    # Not unbind of permuted dimensions: its gradient would be packed in another order and copied once more.
    return attention_to(*qkv.unbind(2))


def attention_to(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same of query (B, n, H, d), key and value (B, N, H, d). Returns (B, n, H, d)."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if uses_operators(query):
        return motion_attention(query, key, value).transpose(1, 2)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
