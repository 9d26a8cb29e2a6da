"""The forwards that run operators; each becomes part of a module's class (``swap``) and knows its ``plan``.

Each falls back to the module's own forward for calls with masks or other arguments, while hooks or other modules stand
where a child is passed over, and where the operators have nothing to offer (``operators_serve``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motarfuse.nn.acceleration.plan import (
    Activation,
    Plan,
    activation_is_unchanged,
    children_are_plain,
    operators_serve,
    served_tokens,
)
from motarfuse.ops import add_layer_norm, bias_gelu, motion_attention, motion_attention_packed


class Accelerated:
    """What all new classes share; the long names leave a module's own attributes alone.

    Attributes:
        motarfuse_original: The class that the module had.
        motarfuse_plan: What its forward has to know.
    """

    __slots__ = ()
    motarfuse_original: type[nn.Module]
    motarfuse_plan: Plan


class PackedNames(NamedTuple):
    """Attributes of attention with ``qkv`` and ``proj``; "" where it has none."""

    heads: str
    scale: str
    drop: str
    out_drop: str


class PackedAttention(Accelerated):
    """Attention with ``qkv`` and ``proj`` (timm, TransReID, `motarfuse.nn.Attention`)."""

    __slots__ = ()

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan: Plan = self.motarfuse_plan
        names: PackedNames = plan.details
        tokens = served_tokens(plan, args, kwargs)
        if tokens is None or (self.training and _drops(self, names.drop)) or not children_are_plain(self, plan):
            return self.motarfuse_original.forward(self, *args, **kwargs)
        qkv = self.qkv(tokens)
        qkv = qkv.view(qkv.shape[0], qkv.shape[1], 3, getattr(self, names.heads), -1)
        out = motion_attention_packed(qkv, scale=getattr(self, names.scale) if names.scale else None)
        out = self.proj(out.flatten(2))
        return _as_returned(plan, getattr(self, names.out_drop)(out) if names.out_drop else out)


class SplitNames(NamedTuple):
    """Attributes of attention with three projections; "" where it has none."""

    query: str
    key: str
    value: str
    output: str
    heads: str
    scale: str
    drop: str


class SplitAttention(Accelerated):
    """Attention with three projections (Hugging Face), with or without the one behind it."""

    __slots__ = ()

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan: Plan = self.motarfuse_plan
        names: SplitNames = plan.details
        tokens = served_tokens(plan, args, kwargs)
        if tokens is None or (self.training and _drops(self, names.drop)) or not children_are_plain(self, plan):
            return self.motarfuse_original.forward(self, *args, **kwargs)
        # (B, H, N, d) each, views of what the projections wrote
        query, key, value = (
            getattr(self, name)(tokens).unflatten(-1, (getattr(self, names.heads), -1)).transpose(1, 2)
            for name in (names.query, names.key, names.value)
        )
        out = motion_attention(query, key, value, scale=getattr(self, names.scale) if names.scale else None)
        out = out.transpose(1, 2).flatten(2)
        return _as_returned(plan, getattr(self, names.output)(out) if names.output else out)


class TorchAttention(Accelerated):
    """``nn.MultiheadAttention`` as vision transformers call it: of one sequence with itself, without weights."""

    __slots__ = ()

    def forward(
        self: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Any:
        is_self = query is key and key is value and isinstance(query, Tensor) and query.dim() == 3
        is_masked = key_padding_mask is not None or attn_mask is not None or is_causal
        is_dropped = self.training and self.dropout > 0
        if not is_self or is_masked or need_weights or is_dropped or not operators_serve(self.motarfuse_plan, query):
            return self.motarfuse_original.forward(
                self, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.view(qkv.shape[0], qkv.shape[1], 3, self.num_heads, -1)
        out = motion_attention_packed(qkv if self.batch_first else qkv.transpose(0, 1))
        out = (out if self.batch_first else out.transpose(0, 1)).flatten(2)
        return F.linear(out, self.out_proj.weight, self.out_proj.bias), None


class MlpNames(NamedTuple):
    """The linear layer, its activation as ``bias_gelu`` names it and as it was found, and what follows.

    Attributes:
        linear: The child.
        activation: For ``bias_gelu``.
        found: What tells that it still is.
        rest: The children that follow, in order. Of an ``nn.Sequential``, which may be sliced and appended to, those
            are all from the third on: None.
    """

    linear: str
    activation: str
    found: Activation
    rest: tuple[str, ...] | None


class LinearGelu(Accelerated):
    """A linear layer, its activation, and whatever follows: the MLPs of all libraries."""

    __slots__ = ()

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan: Plan = self.motarfuse_plan
        names: MlpNames = plan.details
        tokens = args[0] if len(args) == 1 and not kwargs else None
        served = isinstance(tokens, Tensor) and operators_serve(plan, tokens) and children_are_plain(self, plan)
        if not served or getattr(self, names.linear).bias is None or not activation_is_unchanged(self, names.found):
            return self.motarfuse_original.forward(self, *args, **kwargs)
        linear = getattr(self, names.linear)
        hidden = bias_gelu(F.linear(tokens, linear.weight), linear.bias, activation=names.activation)  # type: ignore[arg-type]
        rest = list(self._modules)[2:] if names.rest is None else names.rest
        for name in rest:
            hidden = getattr(self, name)(hidden)
        return hidden


class BlockNames(NamedTuple):
    """Children of a pre-LN block, "" where it has none, and how it calls its attention and its MLP.

    Attributes:
        norm1, norm2: The layer norms.
        dropout: Of single elements, between attention and addition.
        scale1, gamma1: Layer scale of the attention and the name of its parameter.
        drop1: Stochastic depth of the attention's branch.
        attended: Of the block and normalised tokens: the attention's output.
        second: Of the block, normalised tokens, the residual and these names: the block's output.
        scale2, drop2: As the first ones, of the MLP's branch.
    """

    norm1: str
    norm2: str
    attended: Callable[[Any, Tensor], Tensor]
    second: Callable[[Any, Tensor, Tensor, Any], Tensor]
    dropout: str = ""
    scale1: str = ""
    gamma1: str = ""
    drop1: str = ""
    scale2: str = ""
    drop2: str = ""


class ResidualNorm(Accelerated):
    """A pre-LN block: its first residual addition and its second layer norm become one operator."""

    __slots__ = ()

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan: Plan = self.motarfuse_plan
        tokens = served_tokens(plan, args, kwargs)
        if tokens is None or not children_are_plain(self, plan):
            return self.motarfuse_original.forward(self, *args, **kwargs)
        names: BlockNames = plan.details
        branch = names.attended(self, getattr(self, names.norm1)(tokens))
        if names.dropout:
            branch = getattr(self, names.dropout)(branch)
        norm = getattr(self, names.norm2)
        gamma = getattr(getattr(self, names.scale1), names.gamma1) if names.scale1 else None
        dtype = branch.dtype if gamma is None else torch.promote_types(branch.dtype, gamma.dtype)
        if torch.promote_types(dtype, tokens.dtype) == tokens.dtype:
            factors = _sample_scale(getattr(self, names.drop1), branch, dtype) if names.drop1 else None
            normed, tokens = add_layer_norm(
                branch, tokens, norm.weight, norm.bias, norm.eps, layer_scale=gamma, sample_scale=factors
            )
        else:  # the sum has a wider type than the residual, as where autocast meets layer scale
            tokens = tokens + _scaled(self, branch, names.scale1, names.drop1)
            normed = norm(tokens)
        return _as_returned(plan, names.second(self, normed, tokens, names))


def attended_by_attn(block: Any, normed: Tensor) -> Tensor:
    """timm, TransReID, `motarfuse.nn.Block`."""
    return block.attn(normed)


def attended_by_self_attention(block: Any, normed: Tensor) -> Tensor:
    """torchvision, whose attention is an ``nn.MultiheadAttention``."""
    return block.self_attention(normed, normed, normed, need_weights=False)[0]


def attended_by_method(block: Any, normed: Tensor) -> Tensor:
    """OpenAI's CLIP and open_clip, whose blocks have a method that knows the mask."""
    return block.attention(normed)


def attended_by_self_attn(block: Any, normed: Tensor) -> Tensor:
    """Hugging Face's CLIP, whose attention returns a tuple."""
    return block.self_attn(hidden_states=normed)[0]


def attended_by_attention(block: Any, normed: Tensor) -> Tensor:
    """Hugging Face's ViT and DINOv2, whose attention returns a tuple or a tensor."""
    out = block.attention(normed)
    return out if isinstance(out, Tensor) else out[0]


def second_by_mlp(block: Any, normed: Tensor, tokens: Tensor, names: BlockNames) -> Tensor:
    """All but the next."""
    return tokens + _scaled(block, block.mlp(normed), names.scale2, names.drop2)


def second_by_output(block: Any, normed: Tensor, tokens: Tensor, names: BlockNames) -> Tensor:
    """Hugging Face's ViT, whose output layer adds the residual itself."""
    return block.output(block.intermediate(normed), tokens)


def _scaled(block: Any, branch: Tensor, scale: str, drop: str) -> Tensor:
    if scale:
        branch = getattr(block, scale)(branch)
    return getattr(block, drop)(branch) if drop else branch


def _sample_scale(drop: Any, branch: Tensor, dtype: torch.dtype) -> Tensor | None:
    """(B,) factors of stochastic depth, drawn by the block's own module as it would draw them for the branch."""
    if not drop.training:
        return None
    ones = branch.new_ones((branch.shape[0],) + (1,) * (branch.dim() - 1), dtype=dtype)
    return drop(ones).flatten()


def rate_of(drop: Any) -> float:
    """Probability of a dropout, given as a module or as a number."""
    if drop is None:
        return 0.0
    return float(drop) if isinstance(drop, (int, float)) else float(getattr(drop, "p", 0.0))


def _drops(module: Any, name: str) -> bool:
    """Whether the dropout of attention's weights, if it has one of this name, drops any."""
    return bool(name) and rate_of(getattr(module, name)) > 0


def _as_returned(plan: Plan, tensor: Tensor) -> Any:
    return tensor if plan.returns == 0 else (tensor, *(None,) * (plan.returns - 1))
