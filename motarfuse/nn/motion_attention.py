"""Attention in which tokens that move alike see each other and hidden ones are damped."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motarfuse.nn import attention_import
from motarfuse.nn.block import checked_heads
from motarfuse.ops import motion_attention, motion_attention_packed, without_autocast

# Added to the foreground before its logarithm: the background is damped by log(0.01) gamma, not hidden.
FOREGROUND_FLOOR = 0.01
_START = 0.1
# Of the raw strengths: at Adam's usual rates softplus(raw) near 0.1 moves by less than a tenth of itself in 300 steps.
_GAIN = 20.0


class TokenMotion(NamedTuple):
    """What attention knows of N tokens beside their content; what is None does not enter.

    Attributes:
        descriptor: (B, N, C) motion descriptor m, C <= 14, or 12 with times.
        moving: (B, N) g, 1 for tokens that have motion and 0 for those that have none, such as a class token; None: all
            have. What the descriptor of a token without motion holds does not matter, if it is finite.
        foreground: (B, N) in [0, 1], M_fg; 1 for tokens that are not to be damped.
        time: (B, N) frame times, centred per clip, for attention over a whole clip.
        visible: (B, N) booleans, False for tokens that nobody may attend to, such as those of a frame that is padding.
    """

    descriptor: Tensor | None = None
    moving: Tensor | None = None
    foreground: Tensor | None = None
    time: Tensor | None = None
    visible: Tensor | None = None


def motion_channels(
    descriptor: Tensor, moving: Tensor | None = None, time: Tensor | None = None, time_scale: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Channels whose products are the Gaussian affinity of motions, up to what softmax cancels.

    query_i = [g m, g, g |m|^2 / 2],  key_j = [g m, -g |m|^2 / 2, 1 - g]

    The product is -|m_i - m_j|^2 / 2 + |m_i|^2 / 2 between tokens with motion, |m_i|^2 / 2 from such a token to one
    without, and 0 from a token without: up to a constant of each row, the affinity between moving tokens and 0
    otherwise. With times, [s t, 1] and [s t, -s^2 t^2 / 2] add -s^2 (t_i - t_j)^2 / 2 in the same way, for all tokens.

    Args:
        descriptor: (B, N, C) m.
        moving: (B, N) g, or None for 1.
        time: (B, N) t, or None.
        time_scale: s, a number or a scalar tensor.

    Returns:
        Channels of queries and of keys, (B, N, C + 2), or (B, N, C + 4) with times; float32 (float64 for float64).
    """
    with without_autocast(descriptor.device):
        if descriptor.dtype != torch.float64:
            descriptor = descriptor.float()
        gate = torch.ones_like(descriptor[..., :1]) if moving is None else moving.to(descriptor)[..., None]
        gated = gate * descriptor
        half_square = 0.5 * (gated * descriptor).sum(dim=-1, keepdim=True)
        query, key = [gated, gate, half_square], [gated, -half_square, 1 - gate]
        if time is not None:
            scaled = time_scale * time.to(descriptor)[..., None]
            query += [scaled, torch.ones_like(scaled)]
            key += [scaled, -0.5 * scaled.square()]
        return torch.cat(query, dim=-1), torch.cat(key, dim=-1)


class _MotionBias(nn.Module):
    """The learned strengths of the bias: lambda_h, gamma_h and s, and the arguments of the operator made of them.

    Attributes:
        raw_affinity: (H,), lambda = softplus(20 raw); None where only damping is wanted.
        raw_damping: (H,), gamma = softplus(20 raw).
        raw_time: scalar, s = softplus(20 raw); None without times.
    """

    raw_affinity: nn.Parameter | None
    raw_time: nn.Parameter | None

    def __init__(self, heads: int, over_time: bool, affinity: bool = True) -> None:
        super().__init__()
        start = inverse_softplus(_START) / _GAIN
        self.raw_affinity = nn.Parameter(start.repeat(heads)) if affinity else None
        self.raw_damping = nn.Parameter(start.repeat(heads))
        self.raw_time = nn.Parameter(start.clone()) if over_time else None

    def forward(self, queries: TokenMotion, keys: TokenMotion) -> dict[str, Tensor | None]:
        """The keyword arguments of ``ops.motion_attention``."""
        if (queries.descriptor is None) != (keys.descriptor is None) or (queries.time is None) != (keys.time is None):
            raise ValueError("queries and keys must both have a descriptor or neither, and likewise times")
        motion_query = motion_key = motion_scale = None
        if queries.descriptor is not None and keys.descriptor is not None:
            if self.raw_affinity is None:
                raise ValueError("this attention was built with affinity=False; descriptors cannot be given")
            if self.raw_time is None and queries.time is not None:
                raise ValueError("times need over_time=True")
            time_scale = 1.0 if self.raw_time is None else _strength(self.raw_time)
            motion_query = motion_channels(queries.descriptor, queries.moving, queries.time, time_scale)[0][:, None]
            motion_key = motion_channels(keys.descriptor, keys.moving, keys.time, time_scale)[1][:, None]
            motion_scale = _strength(self.raw_affinity)
        elif queries.time is not None:
            raise ValueError("times need a descriptor beside them")
        return {
            "motion_query": motion_query,
            "motion_key": motion_key,
            "motion_scale": motion_scale,
            "key_bias": self._key_bias(keys),
        }

    def _key_bias(self, keys: TokenMotion) -> Tensor | None:
        bias = None
        if keys.foreground is not None:
            foreground = keys.foreground if keys.foreground.dtype == torch.float64 else keys.foreground.float()
            # 0 for M_fg = 1 exactly, so that class tokens and clear foreground are on a level.
            damping = torch.log((FOREGROUND_FLOOR + foreground) / (FOREGROUND_FLOOR + 1))
            bias = _strength(self.raw_damping)[:, None] * damping[:, None]
        if bias is None or keys.visible is None:
            return _hiding(keys.visible) if bias is None else bias
        return bias.masked_fill(~keys.visible[:, None], -torch.inf)

    def extra_repr(self) -> str:
        return f"heads={len(self.raw_damping)}"


def inverse_softplus(value: float) -> Tensor:
    """The scalar whose softplus a positive value is."""
    return torch.tensor(value).expm1().log()


def _strength(raw: Tensor) -> Tensor:
    return F.softplus(_GAIN * raw)


class MotionAttention(nn.Module):
    """Multi-head self-attention with a bias of motion: out = proj(softmax(q k^T / sqrt(d) + bias) v).

    bias_ij = -lambda_h |m_i - m_j|^2 / 2 between tokens that have motion (0 otherwise), + gamma_h log of the key's
    foreground, + -lambda_h s^2 (t_i - t_j)^2 / 2 with times; lambda, gamma and s are learned, softplus, 0.1 at start.
    Projections are named ``qkv`` and ``proj`` as in timm's ViT. Without any motion it is plain attention.

    Args:
        dim: Width D of the tokens.
        heads: Number of heads H; divides dim.
        qkv_bias: Whether the packed projection has a bias.
        over_time: Whether tokens may have times, whose scale s is then learned.
        motion: False for plain attention without the bias's parameters; all but hiding tokens is refused then.

    Shapes: (B, N, D) -> (B, N, D). The bias is built in fp32 outside of autocast.

    Source: the affinity of motions in attention is this project's reading of MOTAR-FUSE (Ling et al. 2025).
    """

    def __init__(
        self, dim: int, heads: int, *, qkv_bias: bool = True, over_time: bool = False, motion: bool = True
    ) -> None:
        super().__init__()
        self.heads = checked_heads(dim, heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.motion_bias = _MotionBias(heads, over_time) if motion else None

    @classmethod
    def from_timm(cls, attention: nn.Module, *, motion: bool = True, over_time: bool = False) -> MotionAttention:
        """The attention of one of timm's layers, to which motion can be given.

        Without motion its outputs are the given layer's. All parameters are copies, the two share no storage; dtype,
        device, ``requires_grad`` and whether it is training are kept. The strengths of the bias are new, 0.1, of the
        same dtype and device as the weights. No random numbers are drawn.

        Args:
            attention: timm's ``Attention`` or its like: ``qkv`` and ``proj`` are ``nn.Linear``, with or without a bias,
                beside ``num_heads``; ``scale`` and ``fused_attn`` may be there. It is left as it is.
            motion: As of the class.
            over_time: As of the class.

        Raises:
            ValueError: What this class cannot represent, by its name: ``q_norm``, ``k_norm`` and ``norm`` other than
                ``nn.Identity``, ``attn_drop`` and ``proj_drop`` above 0, a ``scale`` other than 1 / sqrt(d), widths of
                ``qkv`` and ``proj`` other than the tokens', any further parameter or buffer.
        """
        return cls._copied(attention_import.of_timm(attention), motion, over_time)

    @classmethod
    def from_torch(
        cls, attention: nn.MultiheadAttention, *, motion: bool = True, over_time: bool = False
    ) -> MotionAttention:
        """The self-attention of an ``nn.MultiheadAttention``, to which motion can be given.

        Called with tokens alone it returns ``attention(tokens, tokens, tokens)[0]``. Copies as `from_timm`.

        Args:
            attention: With ``batch_first=True``, with or without biases. It is left as it is.
            motion: As of the class.
            over_time: As of the class.

        Raises:
            TypeError: Not an ``nn.MultiheadAttention``.
            ValueError: What this class cannot represent, by its name: ``batch_first=False``, ``dropout`` above 0,
                ``bias_k``, ``add_zero_attn``, ``kdim`` or ``vdim`` other than ``embed_dim``.
        """
        given = attention_import.of_torch(attention)
        if (given.key_dim, given.value_dim) != (given.dim, given.dim):
            raise ValueError(
                f"kdim is {given.key_dim} and vdim {given.value_dim}; supported: embed_dim, {given.dim}, as tokens "
                "attend to themselves (MotionCrossAttention.from_torch takes a context of another width)"
            )
        return cls._copied(given, motion, over_time)

    @classmethod
    def _copied(cls, given: attention_import.GivenAttention, motion: bool, over_time: bool) -> MotionAttention:
        layer = attention_import.like(given, lambda: cls(given.dim, given.heads, over_time=over_time, motion=motion))
        attention_import.fill(layer.qkv, given.query, given.key, given.value)
        attention_import.fill(layer.proj, given.output)
        return layer

    def forward(self, tokens: Tensor, motion: TokenMotion | None = None) -> Tensor:
        """Args: tokens (B, N, D); motion, of the same tokens. Returns (B, N, D)."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))
        bias = {} if motion is None else _bias(self.motion_bias, motion, motion)
        return self.proj(motion_attention_packed(qkv, **bias).flatten(2))

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


class MotionCrossAttention(nn.Module):
    """Multi-head attention from tokens x to a context y: out = proj(softmax(q(x) k(y)^T / sqrt(d) + bias) v(y)).

    bias_ij = -lambda_h |m_i - m_j|^2 / 2 + gamma_h log of the key's foreground + ..., as in `MotionAttention`.

    Args:
        dim: Width D of the tokens.
        heads: Number of heads H; divides dim.
        context_dim: Width of the context; None: D.
        qkv_bias: Whether the projections ``q`` and ``kv`` have a bias.
        over_time: Whether tokens may have times, whose scale s is then learned.
        motion: False for plain attention without the bias's parameters; all but hiding tokens is refused then.
        affinity: False leaves lambda out, for queries that have no motion: keys are damped and hidden alone.

    Shapes: tokens (B, N, D), context (B, M, context_dim) -> (B, N, D).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        context_dim: int | None = None,
        qkv_bias: bool = True,
        over_time: bool = False,
        motion: bool = True,
        affinity: bool = True,
    ) -> None:
        super().__init__()
        self.heads = checked_heads(dim, heads)
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(context_dim or dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.motion_bias = _MotionBias(heads, over_time, affinity) if motion else None

    @classmethod
    def from_torch(
        cls,
        attention: nn.MultiheadAttention,
        *,
        motion: bool = True,
        over_time: bool = False,
        affinity: bool = True,
    ) -> MotionCrossAttention:
        """The attention to a context of an ``nn.MultiheadAttention``, to which motion can be given.

        Called with tokens and context alone it returns ``attention(tokens, context, context)[0]``. Copies as
        `MotionAttention.from_timm`.

        Args:
            attention: With ``batch_first=True`` and ``kdim == vdim``, with or without biases. It is left as it is.
            motion: As of the class.
            over_time: As of the class.
            affinity: As of the class.

        Raises:
            TypeError: Not an ``nn.MultiheadAttention``.
            ValueError: What this class cannot represent, by its name: ``batch_first=False``, ``dropout`` above 0,
                ``bias_k``, ``add_zero_attn``, a ``kdim`` that is not ``vdim``.
        """
        given = attention_import.of_torch(attention)
        if given.key_dim != given.value_dim:
            raise ValueError(
                f"kdim is {given.key_dim} and vdim {given.value_dim}; supported: one width, that of the context"
            )
        layer = attention_import.like(
            given,
            lambda: cls(
                given.dim,
                given.heads,
                context_dim=given.key_dim,
                over_time=over_time,
                motion=motion,
                affinity=affinity,
            ),
        )
        attention_import.fill(layer.q, given.query)
        attention_import.fill(layer.kv, given.key, given.value)
        attention_import.fill(layer.proj, given.output)
        return layer

    def forward(
        self,
        tokens: Tensor,
        context: Tensor,
        motion: TokenMotion | None = None,
        context_motion: TokenMotion | None = None,
    ) -> Tensor:
        """Args: tokens (B, N, D); context (B, M, context_dim); motion of either. Returns (B, N, D)."""
        query = self.q(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = {}
        if motion is not None or context_motion is not None:
            given = [TokenMotion() if one is None else one for one in (motion, context_motion)]
            bias = _bias(self.motion_bias, *given)
        return self.proj(motion_attention(query, key, value, **bias).transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


def _bias(layer: _MotionBias | None, queries: TokenMotion, keys: TokenMotion) -> dict[str, Any]:
    """The operator's keyword arguments; without a layer of strengths only tokens can be hidden."""
    for motion in (queries, keys):
        if not isinstance(motion, TokenMotion):
            raise TypeError(
                f"motion must be a TokenMotion, got {type(motion).__name__}; TokenMotion(descriptor) has a descriptor "
                "(B, N, C), TokenMotion(visible=mask) hides tokens"
            )
    if layer is not None:
        return layer(queries, keys)
    if any(value is not None for tokens in (queries, keys) for value in tokens[:4]):
        raise ValueError("this attention was built with motion=False; only visible may be given")
    return {"key_bias": _hiding(keys.visible)}


def _hiding(visible: Tensor | None) -> Tensor | None:
    """(B, M) bias of 0, -inf for tokens that are not visible."""
    if visible is None:
        return None
    return torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, -torch.inf)
