"""The fusion encoder: appearance, parts and motion meet in one hybrid class token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from motarfuse.nn.block import Mlp
from motarfuse.nn.fused_steps import PendingSum, add_norm
from motarfuse.nn.gated_fusion import GatedFusion
from motarfuse.nn.motion_attention import MotionAttention, MotionCrossAttention, TokenMotion
from motarfuse.nn.motion_scale import MOTION_CHANNELS
from motarfuse.nn.part_decoder import PartState

SCOPES = ("frame", "clip")
_TYPES = 4  # hybrid, class, parts, cells


class FusedTokens(NamedTuple):
    """Results of `FusionEncoder`: hybrid (B, T, D) and the gated tokens V' (B, T, N, D)."""

    hybrid: Tensor
    tokens: Tensor


class FusionEncoder(nn.Module):
    """Pre-LN blocks with motion attention over [hybrid class token; class token; parts; V'], V' the gated tokens.

    V' = `GatedFusion` of the tokens with their motion descriptor. Each kind of token has its type's embedding. Class
    and hybrid tokens have no motion and are never damped. The last block computes the hybrid tokens alone, for nothing
    else of it is used; in it the affinity of motions has no say, because they have none, but damping has.

    With ``scope="clip"`` all frames of a clip see each other, one hybrid token a frame; time enters as a bias of
    attention, -lambda_h s^2 (t_i - t_j)^2 / 2 for all tokens alike, so that a static clip gives what its image gives.

    Args:
        dim: Width D.
        heads: Attention heads; divides dim.
        depth: Blocks.
        scope: ``"frame"`` or ``"clip"``.
        motion: False leaves motion out of attention (an ablation), its damping too.
        gated: False leaves gated fusion out: V' = LN(V).
        mlp_ratio: Hidden width of the MLPs over D.
        eps: Epsilon of the layer norms.

    Shapes: tokens (B, T, N, D), class token (B, T, D), parts (B, T, L, D) -> hybrid token (B, T, D),
    fused tokens (B, T, N, D).

    Source: this project's reading of the fusion encoder of MOTAR-FUSE (Ling et al. 2025).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        depth: int = 2,
        scope: str = "frame",
        motion: bool = True,
        gated: bool = True,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if scope not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}, got {scope!r}")
        if depth < 1:
            raise ValueError(f"depth must be positive, got {depth}")
        self.scope = scope
        self.motion = motion
        self.gate = GatedFusion(dim, MOTION_CHANNELS, eps=eps) if gated else nn.LayerNorm(dim, eps=eps)
        self.hybrid = nn.Parameter(torch.randn(dim) * 0.02)
        self.types = nn.Parameter(torch.randn(_TYPES, dim) * 0.02)
        over_time = motion and scope == "clip"
        self.blocks = nn.ModuleList(
            _FusionBlock(dim, heads, motion, over_time, mlp_ratio, eps) for _ in range(depth - 1)
        )
        self.last = _LastBlock(dim, heads, motion, over_time, mlp_ratio, eps)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(
        self,
        tokens: Tensor,
        class_token: Tensor,
        parts: Tensor | None,
        state: PartState,
        frame_mask: Tensor | None = None,
        frame_index: Tensor | None = None,
    ) -> FusedTokens:
        """Fuses what is known of each frame.

        Args:
            tokens: (B, T, N, D) of the visual encoder.
            class_token: (B, T, D).
            parts: (B, T, L, D) of the part decoder; None leaves them out of the sequence.
            state: The decoder's last.
            frame_mask: (B, T) booleans, False for padding; None: all are there.
            frame_index: (B, T) integers; None: 0..T-1. Only ``scope="clip"`` reads it.
        """
        batch, frames, _, dim = tokens.shape
        if isinstance(self.gate, GatedFusion):
            gated = self.gate(tokens, state.descriptor.unflatten(0, (batch, frames)))
        else:
            gated = self.gate(tokens)
        hybrid = self.hybrid.expand(batch, frames, 1, dim)
        kinds = (hybrid, class_token[:, :, None], parts, gated)
        typed = [kind + embedding for kind, embedding in zip(kinds, self.types, strict=True) if kind is not None]
        sequence = torch.cat(typed, dim=2)
        length = sequence.shape[2]
        motion = self._motion(state, batch * frames, parts is not None) if self.motion else TokenMotion()
        if self.scope == "clip":
            sequence = sequence.flatten(1, 2)
            motion = self._over_clip(motion, batch, frames, length, frame_mask, frame_index, tokens.device)
        else:
            sequence = sequence.flatten(0, 1)
        for block in self.blocks:
            sequence = block(sequence, motion)  # the last addition is left to the layer norm that follows
        hybrid_tokens = self.last(sequence, motion, length)  # (B T, 1, D) or (B, T, D)
        return FusedTokens(add_norm(hybrid_tokens, self.norm, wide=True)[0].reshape(batch, frames, dim), gated)

    def extra_repr(self) -> str:
        return f"scope={self.scope}, motion={self.motion}"

    @staticmethod
    def _motion(state: PartState, frames: int, with_parts: bool) -> TokenMotion:
        """Of a frame's whole sequence; frames flattened."""
        descriptor, foreground = state.descriptor, state.foreground
        if with_parts:
            descriptor = torch.cat((state.part_descriptor, descriptor), dim=1)
            foreground = torch.cat((state.part_foreground, foreground), dim=1)
        still = descriptor.new_zeros(frames, 2, descriptor.shape[2])
        moving = torch.ones_like(foreground)
        return TokenMotion(
            torch.cat((still, descriptor), dim=1),
            torch.cat((moving.new_zeros(frames, 2), moving), dim=1),
            torch.cat((moving.new_ones(frames, 2), foreground), dim=1),
        )

    @staticmethod
    def _over_clip(
        motion: TokenMotion,
        batch: int,
        frames: int,
        length: int,
        frame_mask: Tensor | None,
        frame_index: Tensor | None,
        device: torch.device,
    ) -> TokenMotion:
        """The same of all frames of a clip, with times and what is padding."""
        visible = None if frame_mask is None else frame_mask.repeat_interleave(length, dim=1)
        if motion.descriptor is None:
            return TokenMotion(visible=visible)
        if frame_index is None:
            frame_index = torch.arange(frames, device=device).expand(batch, frames)
        there = torch.ones_like(frame_index, dtype=torch.bool) if frame_mask is None else frame_mask
        # From the clip's first frame on, as integers: float32 cannot tell the frames of a long recording apart.
        time = (frame_index - frame_index[:, :1]).to(motion.descriptor.dtype)
        mean = (time * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
        time = (time - mean).repeat_interleave(length, dim=1)
        joined = [
            value if value is None else value.reshape(batch, frames * length, *value.shape[2:]) for value in motion
        ]
        return TokenMotion(*joined)._replace(time=time, visible=visible)


class _FusionBlock(nn.Module):
    """A pre-LN transformer block whose attention takes motion."""

    def __init__(self, dim: int, heads: int, motion: bool, over_time: bool, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = MotionAttention(dim, heads, over_time=over_time, motion=motion)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tensor | PendingSum, motion: TokenMotion) -> PendingSum:
        normed, residual = add_norm(tokens, self.norm1)
        normed, residual = add_norm(PendingSum(residual, self.attn(normed, motion)), self.norm2)
        return PendingSum(residual, self.mlp(normed))


class _LastBlock(nn.Module):
    """The same block for the first token of every ``length`` alone, which still sees all."""

    def __init__(self, dim: int, heads: int, motion: bool, over_time: bool, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        # Its queries have no motion: without times, lambda would stand before nothing.
        self.attn = MotionCrossAttention(dim, heads, over_time=over_time, motion=motion, affinity=over_time)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.over_time = over_time

    def forward(self, tokens: Tensor | PendingSum, motion: TokenMotion, length: int) -> PendingSum:
        if self.over_time:
            first = TokenMotion(*(None if value is None else value[:, ::length] for value in motion))
        else:
            first, motion = TokenMotion(), motion._replace(descriptor=None, moving=None)
        normed, residual = add_norm(tokens, self.norm1)
        attended = self.attn(normed[:, ::length], normed, first, motion)
        normed, residual = add_norm(PendingSum(residual[:, ::length], attended), self.norm2)
        return PendingSum(residual, self.mlp(normed))
