"""What the attention layers of timm and torch hold, for the ``from_timm`` and ``from_torch`` of the layers here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from motarfuse.nn.block import checked_heads

Layer = TypeVar("Layer", bound=nn.Module)


class Affine(NamedTuple):
    """Weight and bias of a projection, or of rows of one, and whether each is learned."""

    weight: Tensor
    bias: Tensor | None
    weight_learns: bool
    bias_learns: bool


class GivenAttention(NamedTuple):
    """Another library's attention: softmax(q k^T / sqrt(d)) v between projections.

    Attributes:
        dim: Width of the tokens and of the output.
        heads: Number of heads.
        key_dim: Width of what keys are made of.
        value_dim: Width of what values are made of.
        query, key, value, output: The projections.
        training: Whether the layer is.
    """

    dim: int
    heads: int
    key_dim: int
    value_dim: int
    query: Affine
    key: Affine
    value: Affine
    output: Affine
    training: bool


def of_timm(attention: nn.Module) -> GivenAttention:
    """Reads a layer like timm's ``Attention``; ValueError, naming it, for anything else than plain attention."""
    qkv, proj = _linear(attention, "qkv"), _linear(attention, "proj")
    heads, dim = getattr(attention, "num_heads", None), qkv.in_features
    if not isinstance(heads, int):
        raise ValueError(f"num_heads must be an integer, got {heads!r}; is this an attention layer of timm?")
    for name, linear, width in (("qkv", qkv, 3 * dim), ("proj", proj, dim)):
        if (linear.in_features, linear.out_features) != (dim, width):
            raise ValueError(
                f"{name} maps {linear.in_features} to {linear.out_features}; supported: {dim} to {width}, all widths "
                f"being the tokens' {dim}"
            )
    for name in ("q_norm", "k_norm", "norm"):
        norm = getattr(attention, name, None)
        if norm is not None and not isinstance(norm, nn.Identity):
            raise ValueError(f"{name} is {type(norm).__name__}; supported: attention without norms")
    for name in ("attn_drop", "proj_drop"):
        drop = getattr(attention, name, None)
        _check_dropout(name, drop if isinstance(drop, (int, float)) else getattr(drop, "p", 0.0))
    scale, standard = getattr(attention, "scale", None), (dim // checked_heads(dim, heads)) ** -0.5
    if scale is not None and not (isinstance(scale, (int, float)) and math.isclose(scale, standard, rel_tol=1e-6)):
        raise ValueError(f"scale is {scale}; supported: 1 / sqrt(d) = {standard:g}")
    _check_nothing_else(attention, {f"{layer}.{part}" for layer in ("qkv", "proj") for part in ("weight", "bias")})
    query, key, value = _rows(_affine(qkv.weight, qkv.bias))
    output = _affine(proj.weight, proj.bias)
    return GivenAttention(dim, heads, dim, dim, query, key, value, output, attention.training)


def of_torch(attention: nn.MultiheadAttention) -> GivenAttention:
    """Reads an ``nn.MultiheadAttention``; ValueError, naming it, for what is not plain attention of batches."""
    if not isinstance(attention, nn.MultiheadAttention):
        raise TypeError(f"attention must be a torch.nn.MultiheadAttention, got {type(attention).__name__}")
    if not attention.batch_first:
        raise ValueError("batch_first is False; supported: True, as tokens are (B, N, D) here")
    _check_dropout("dropout", attention.dropout)
    if attention.bias_k is not None or attention.bias_v is not None:
        raise ValueError("bias_k and bias_v are given; supported: attention without a learned key (add_bias_kv=False)")
    if attention.add_zero_attn:
        raise ValueError("add_zero_attn is True; supported: False")
    if attention.in_proj_weight is not None:
        query, key, value = _rows(_affine(attention.in_proj_weight, attention.in_proj_bias))
    else:
        biases = [None] * 3 if attention.in_proj_bias is None else list(attention.in_proj_bias.chunk(3))
        learns = attention.in_proj_bias is not None and attention.in_proj_bias.requires_grad
        weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        query, key, value = (
            Affine(weight, bias, weight.requires_grad, learns) for weight, bias in zip(weights, biases, strict=True)
        )
    output = _affine(attention.out_proj.weight, attention.out_proj.bias)
    widths = (attention.embed_dim, attention.num_heads, attention.kdim, attention.vdim)
    return GivenAttention(*widths, query, key, value, output, attention.training)


def like(given: GivenAttention, build: Callable[[], Layer]) -> Layer:
    """A new layer on the device and of the dtype of a given one, in training if that is; draws no random numbers."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        layer = build()
    return layer.to(given.query.weight.device, given.query.weight.dtype).train(given.training)


def fill(linear: nn.Linear, *parts: Affine) -> None:
    """Gives a projection copies of the parts' rows, one below the other, and no bias where they have none."""
    biases = [part.bias.detach() for part in parts if part.bias is not None]
    linear.weight = nn.Parameter(
        torch.cat([part.weight.detach() for part in parts]), requires_grad=any(part.weight_learns for part in parts)
    )
    linear.bias = None  # type: ignore[assignment]
    if biases:
        linear.bias = nn.Parameter(torch.cat(biases), requires_grad=any(part.bias_learns for part in parts))


def _affine(weight: Tensor, bias: Tensor | None) -> Affine:
    return Affine(weight, bias, weight.requires_grad, bias is not None and bias.requires_grad)


def _rows(packed: Affine) -> tuple[Affine, Affine, Affine]:
    """Query, key and value of a packed projection."""
    biases = (None,) * 3 if packed.bias is None else packed.bias.chunk(3)
    parts = [
        Affine(weight, bias, packed.weight_learns, packed.bias_learns)
        for weight, bias in zip(packed.weight.chunk(3), biases, strict=True)
    ]
    return parts[0], parts[1], parts[2]


def _linear(attention: nn.Module, name: str) -> nn.Linear:
    linear = getattr(attention, name, None)
    if not isinstance(linear, nn.Linear):
        got = "missing" if linear is None else type(linear).__name__
        raise ValueError(f"{name} is {got}; supported: attention whose qkv and proj are nn.Linear")
    return linear


def _check_dropout(name: str, probability: Any) -> None:
    if probability:
        raise ValueError(f"{name} is a dropout of {probability:g}; supported: none, so set it to 0 first")


def _check_nothing_else(attention: nn.Module, known: set[str]) -> None:
    held = [name for name, _ in (*attention.named_parameters(), *attention.named_buffers())]
    others = [name for name in held if name not in known]
    if others:
        raise ValueError(f"{', '.join(others)}: parameters that plain attention has not; supported: qkv and proj alone")
