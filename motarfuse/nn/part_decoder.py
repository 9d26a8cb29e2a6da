"""The motion-aware transformer: learnable queries find body parts, their posture and their motion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motarfuse.nn.block import Mlp
from motarfuse.nn.canonical_posture import AlignedPosture, CanonicalPosture
from motarfuse.nn.motion_attention import MotionAttention, MotionCrossAttention, TokenMotion, inverse_softplus
from motarfuse.nn.motion_scale import MotionScale
from motarfuse.ops import cell_centers, inverse_2x2, motion_warp, part_moments, sample_bilinear, without_autocast

_EPSILON = 1e-6


class PartState(NamedTuple):
    """What the heads read from the parts after one decoder layer; F frames, L parts, N = h w cells.

    Attributes:
        keypoints: (F, L, 2) in [-1, 1]^2, x first.
        affines: (F, L, 2, 2), det >= 0.2.
        confidence: (F, L) sum of squared heat maps, 1 for a single peak.
        part_logits: (F, L + 1, N), channel 0 the background.
        masks: (F, L + 1, N) their softmax.
        visibility: (F, L) in [0, 1], how clearly a part owns its cells.
        posture: Keypoints and affines aligned to the canonical posture.
        displacement: (F, N, 2) canonical displacement, in aligned coordinates.
        descriptor: (F, N, 8) scaled motion descriptor.
        part_descriptor: (F, L, 8) its values at the keypoints.
        part_foreground: (F, L) the foreground at the keypoints.
    """

    keypoints: Tensor
    affines: Tensor
    confidence: Tensor
    part_logits: Tensor
    masks: Tensor
    visibility: Tensor
    posture: AlignedPosture
    displacement: Tensor
    descriptor: Tensor
    part_descriptor: Tensor
    part_foreground: Tensor

    @property
    def foreground(self) -> Tensor:
        """(F, N) M_fg = 1 - M_0."""
        return 1 - self.masks[:, 0]

    def motion(self) -> TokenMotion:
        """Of the cells, for attention."""
        return TokenMotion(self.descriptor, foreground=self.foreground)

    def part_motion(self) -> TokenMotion:
        """Of the parts, for attention."""
        return TokenMotion(self.part_descriptor, foreground=self.part_foreground)

    def take(self, frames: Tensor) -> PartState:
        """The states of some frames. Args: frames, (n,) integers."""
        taken = {name: value[frames] for name, value in self._asdict().items() if isinstance(value, Tensor)}
        return self._replace(**taken, posture=AlignedPosture(*(value[frames] for value in self.posture)))

    @classmethod
    def cat(cls, states: Sequence[PartState]) -> PartState:
        """The states of several batches of frames as one, in order."""
        names = [name for name, value in states[0]._asdict().items() if isinstance(value, Tensor)]
        joined = {name: torch.cat([getattr(state, name) for state in states]) for name in names}
        postures = zip(*(state.posture for state in states), strict=True)
        return states[0]._replace(**joined, posture=AlignedPosture(*(torch.cat(values) for values in postures)))


class PartHeads(nn.Module):
    """Heat maps, affines, masks and visibilities of parts.

    With v the tokens less their mean over the image, which would leave every cosine alike:
    l_k(u) = cos(W_p z_k, W_v v_u) - beta_k |u - c_k|^2 / 2, c_k learned and spread over the body at start, beta_k =
    softplus, 2 at start; keypoints, affines and confidence are the moments of softmax(l / 0.1) with the affines
    a_k(u) = I + 0.4 tanh(conv(v_u)), the convolution zero at start, so that every mixture keeps det >= 0.2.
    s_k(u) = 10 cos(W_s z_k, W_m v_u) - eta_k |A_k^-1 (u - p_k)|^2, eta_k = softplus, 8 at start; s_0 by a learned
    query of the background; M = softmax over the L + 1 channels; v_k = sum M_k^2 / (sum M_k + 1e-6).

    Args:
        dim: Width D of tokens and parts.
        grid: (h, w) of the tokens.
        num_parts: L.
        temperature: Of the heat maps.
    """

    cells: Tensor

    def __init__(self, dim: int, grid: tuple[int, int], num_parts: int, *, temperature: float = 0.1) -> None:
        super().__init__()
        self.grid = grid
        self.temperature = temperature
        self.part_of_keypoint = nn.Linear(dim, dim, bias=False)
        self.token_of_keypoint = nn.Linear(dim, dim, bias=False)
        self.part_of_mask = nn.Linear(dim, dim, bias=False)
        self.token_of_mask = nn.Linear(dim, dim, bias=False)
        self.background = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.anchors = nn.Parameter(spread_over_body(num_parts))
        self.raw_beta = nn.Parameter(inverse_softplus(2.0).repeat(num_parts))
        self.raw_eta = nn.Parameter(inverse_softplus(8.0).repeat(num_parts))
        self.affine = nn.Conv2d(dim, 4 * num_parts, 3, padding=1)
        nn.init.zeros_(self.affine.weight)
        assert self.affine.bias is not None
        nn.init.zeros_(self.affine.bias)
        self.register_buffer("cells", cell_centers(grid, dtype=torch.float32), persistent=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Own parameters and centres of cells as at the start, such as after ``to_empty``, which leaves them open."""
        nn.init.normal_(self.background, std=self.background.shape[0] ** -0.5)
        self.anchors.copy_(spread_over_body(len(self.anchors)))
        self.raw_beta.fill_(inverse_softplus(2.0).item())
        self.raw_eta.fill_(inverse_softplus(8.0).item())
        for parameter in self.affine.parameters():
            nn.init.zeros_(parameter)
        self.cells.copy_(cell_centers(self.grid, dtype=torch.float32))

    def extra_repr(self) -> str:
        return f"grid={self.grid}, num_parts={len(self.anchors)}, temperature={self.temperature:g}"

    def cells_as(self, tensor: Tensor) -> Tensor:
        """(N, 2) centres of the cells in float32, in float64 beside such a tensor."""
        if tensor.dtype == torch.float64:
            return cell_centers(self.grid, device=tensor.device, dtype=torch.float64)
        return self.cells.float()

    def forward(self, parts: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Reads the posture of the parts.

        Args:
            parts: (F, L, D) z.
            tokens: (F, N, D) v.

        Returns:
            keypoints (F, L, 2), affines (F, L, 2, 2), confidence (F, L), part_logits (F, L + 1, N), masks (F, L + 1,
            N), visibility (F, L); fp32 (fp64 for fp64).
        """
        frames, num_parts, _ = parts.shape
        # What all cells of an image share is most of a token: it would leave every cosine alike.
        tokens = tokens - tokens.mean(1, keepdim=True)
        affine = self.affine(tokens.transpose(1, 2).unflatten(2, self.grid)).flatten(2)
        keypoint_parts, keypoint_tokens = self.part_of_keypoint(parts), self.token_of_keypoint(tokens)
        mask_parts, mask_tokens = self.part_of_mask(parts), self.token_of_mask(tokens)
        with without_autocast(tokens.device):
            double = tokens.dtype == torch.float64
            compute = torch.float64 if double else torch.float32
            cells = self.cells_as(tokens)
            squared = (cells - self.anchors.to(compute)[:, None]).square().sum(-1)  # (L, N)
            heat = _cosine(keypoint_parts.to(compute), keypoint_tokens.to(compute))
            heat = heat - 0.5 * F.softplus(self.raw_beta)[:, None] * squared
            matrices = 0.4 * torch.tanh(affine.to(compute)).unflatten(1, (num_parts, 2, 2)).permute(0, 1, 4, 2, 3)
            matrices = matrices + torch.eye(2, dtype=compute, device=tokens.device)
            moments = part_moments(heat, matrices, grid=self.grid, temperature=self.temperature)
            offsets = cells - moments.keypoints[:, :, None]
            local = offsets @ inverse_2x2(moments.affines).transpose(-1, -2)  # (F, L, N, 2)
            distance = F.softplus(self.raw_eta)[:, None] * local.square().sum(-1)
            foreground = 10 * _cosine(mask_parts.to(compute), mask_tokens.to(compute)) - distance
            background = 10 * _cosine(self.background.to(compute).expand(frames, 1, -1), mask_tokens.to(compute))
            part_logits = torch.cat((background, foreground), dim=1)
            masks = part_logits.softmax(dim=1)
            own = masks[:, 1:]
            visibility = own.square().sum(-1) / (own.sum(-1) + _EPSILON)
            return *moments, part_logits, masks, visibility


class PartDecoder(nn.Module):
    """Decodes each frame's tokens into L parts with posture, masks, visibility and a motion field.

    Two pre-LN layers (self-attention of the parts, cross-attention to the tokens, MLP). The heads, with shared weights,
    run after each; the motion that the first run finds steers the attention of the second layer. A single image has a
    motion as well: towards the canonical posture.

    Args:
        dim: Width D.
        heads: Attention heads; divides dim.
        grid: (h, w) of the tokens.
        num_parts: L, the query length.
        num_layers: Decoder layers, at least 1.
        motion: False leaves motion out of the second layer's attention (an ablation).
        mlp_ratio: Hidden width of the MLPs over D.
        eps: Epsilon of the layer norms.

    Shapes: tokens (B, T, N, D) -> parts (B, T, L, D) and the states of all layers, frames flattened, F = B T.

    Source: this project's reading of the motion-aware transformer of MOTAR-FUSE (Ling et al. 2025).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        grid: tuple[int, int],
        num_parts: int = 8,
        *,
        num_layers: int = 2,
        motion: bool = True,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if num_parts < 1 or num_layers < 1:
            raise ValueError(f"num_parts and num_layers must be positive, got {num_parts} and {num_layers}")
        self.queries = nn.Parameter(torch.randn(num_parts, dim) * 0.02)
        self.layers = nn.ModuleList(
            _DecoderLayer(dim, heads, motion and k > 0, mlp_ratio, eps) for k in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.token_norm = nn.LayerNorm(dim, eps=eps)
        self.heads = PartHeads(dim, grid, num_parts)
        self.canonical = CanonicalPosture(self.heads.anchors)
        self.scale = MotionScale()

    def forward(
        self,
        tokens: Tensor,
        frame_mask: Tensor | None = None,
        frame_index: Tensor | None = None,
        *,
        appearance: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> tuple[Tensor, list[PartState]]:
        """Finds the parts.

        Args:
            tokens: (B, T, N, D).
            frame_mask: (B, T) booleans, False for frames that are padding; None: all are there.
            frame_index: (B, T) integers, when each frame was taken; None: 0..T-1.
            appearance: (B, T, N, D) of the cells, such as `LocalAppearance` gives, added to what the heads read.
            counted: (B,) booleans, False for samples that leave canonical posture and statistics alone in training,
                such as changed copies; None: all count.

        Returns:
            parts (B, T, L, D) and a `PartState` a layer, the last one last.
        """
        batch, frames, cells, _ = tokens.shape
        if cells != len(self.heads.cells):
            raise ValueError(f"tokens must have {len(self.heads.cells)} cells, grid {self.heads.grid}; got {cells}")
        if frame_mask is None:
            frame_mask = torch.ones(batch, frames, dtype=torch.bool, device=tokens.device)
        if frame_index is None:
            frame_index = torch.arange(frames, device=tokens.device).expand(batch, frames)
        statistics_mask = frame_mask if counted is None else frame_mask & counted[:, None]
        if appearance is not None and appearance.shape != tokens.shape:
            raise ValueError(f"appearance must be {tuple(tokens.shape)} as tokens, got {tuple(appearance.shape)}")
        flat = self.token_norm(tokens.flatten(0, 1))
        seen = flat if appearance is None else flat + appearance.flatten(0, 1)
        parts = self.queries.expand(batch * frames, -1, -1)
        states: list[PartState] = []
        for layer in self.layers:
            motions = (states[-1].part_motion(), states[-1].motion()) if states else (None, None)
            parts = layer(parts, flat, *motions)
            last = len(states) == len(self.layers) - 1
            states.append(
                self._read(self.norm(parts), seen, frame_mask, frame_index, statistics_mask if last else None)
            )
        return self.norm(parts).unflatten(0, (batch, frames)), states

    def extra_repr(self) -> str:
        return f"num_parts={len(self.queries)}, grid={self.heads.grid}"

    def _read(
        self,
        parts: Tensor,
        tokens: Tensor,
        frame_mask: Tensor,
        frame_index: Tensor,
        statistics_mask: Tensor | None,
    ) -> PartState:
        """The heads' state; the frames of ``statistics_mask`` (B, T) move the running statistics, if it is given."""
        keypoints, affines, confidence, part_logits, masks, visibility = self.heads(parts, tokens)
        with without_autocast(tokens.device):
            posture = self.canonical.align(keypoints, affines, visibility)
            own, foreground = masks[:, 1:], 1 - masks[:, 0]
            displacement = self.canonical.displacement(
                part_logits, keypoints, affines, posture, grid=self.heads.grid, foreground=foreground
            )
            growth = (own * self.canonical.log_determinants(posture)[..., None]).sum(1)
            previous, has_previous = self._towards(-1, keypoints, affines, part_logits, frame_mask, frame_index)
            following, has_following = self._towards(1, keypoints, affines, part_logits, frame_mask, frame_index)
            raw = torch.cat((displacement, previous, following, foreground[..., None], growth[..., None]), dim=-1)
            if statistics_mask is not None:
                there = statistics_mask.flatten()
                before, after = has_previous & there, has_following & there
                self.scale.update(raw, torch.stack([there] * 2 + [before] * 2 + [after] * 2 + [there] * 2, dim=1))
                self.canonical.update(keypoints, affines, visibility * there[:, None])
            descriptor = self.scale(raw)
            sampled = sample_bilinear(torch.cat((descriptor, foreground[..., None]), -1), keypoints, self.heads.grid)
        return PartState(
            keypoints, affines, confidence, part_logits, masks, visibility, posture, displacement, descriptor,
            sampled[..., :-1], sampled[..., -1],
        )  # fmt: skip

    def _towards(
        self,
        step: int,
        keypoints: Tensor,
        affines: Tensor,
        part_logits: Tensor,
        frame_mask: Tensor,
        frame_index: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Displacement (F, N, 2) to the neighbouring frame a frame of time, zero without one, and who has one (F,)."""
        batch, frames = frame_mask.shape
        cells = len(self.heads.cells)
        if frames == 1:
            zero = keypoints.new_zeros(batch, cells, 2)
            return zero, torch.zeros(batch, dtype=torch.bool, device=keypoints.device)
        other = torch.roll(torch.arange(frames, device=keypoints.device), -step)
        inside = torch.ones(frames, dtype=torch.bool, device=keypoints.device)
        inside[-1 if step > 0 else 0] = False
        present = (inside & frame_mask & frame_mask[:, other]).flatten()
        gap = (frame_index[:, other] - frame_index).flatten().to(keypoints.dtype)
        from_keypoints, from_affines = (
            tensor.unflatten(0, (batch, frames))[:, other].flatten(0, 1) for tensor in (keypoints, affines)
        )
        nothing = keypoints.new_zeros(batch * frames, cells, 0)  # only the flow is wanted
        flow = motion_warp(
            nothing, from_keypoints, from_affines, keypoints, affines, part_logits, grid=self.heads.grid
        ).flow
        moved = (flow - self.heads.cells_as(flow)) / torch.where(present, gap.abs().clamp(min=1), 1)[:, None, None]
        return torch.where(present[:, None, None], moved, 0.0), present


class _DecoderLayer(nn.Module):
    """Self-attention of the parts, cross-attention to the tokens, MLP, each with a layer norm in front."""

    def __init__(self, dim: int, heads: int, motion: bool, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim, eps=eps) for _ in range(3))
        self.self_attention = MotionAttention(dim, heads, motion=motion)
        self.cross_attention = MotionCrossAttention(dim, heads, motion=motion)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.motion = motion

    def forward(
        self, parts: Tensor, tokens: Tensor, part_motion: TokenMotion | None, motion: TokenMotion | None
    ) -> Tensor:
        if not self.motion:
            part_motion = motion = None
        parts = parts + self.self_attention(self.norm1(parts), part_motion)
        parts = parts + self.cross_attention(self.norm2(parts), tokens, part_motion, motion)
        return parts + self.mlp(self.norm3(parts))


def spread_over_body(num_parts: int) -> Tensor:
    """(L, 2) places in [-1, 1]^2 where parts start: one at the head, then rows of two (three beyond ten parts)."""
    width = 2 if num_parts <= 10 else 3
    below = num_parts - 1
    counts = [1] + [width] * (below // width) + ([below % width] if below % width else [])
    places = []
    for row, count in enumerate(counts):
        y = -0.8 + 1.6 * row / (len(counts) - 1) if len(counts) > 1 else 0.0
        places += [((2 * column + 1) / count - 1, y) for column in range(count)]
    return torch.tensor(places) * torch.tensor([0.5, 1.0])


def _cosine(parts: Tensor, tokens: Tensor) -> Tensor:
    """(F, L, N) cosines of (F, L, D) and (F, N, D)."""
    return F.normalize(parts, dim=-1) @ F.normalize(tokens, dim=-1).transpose(1, 2)
