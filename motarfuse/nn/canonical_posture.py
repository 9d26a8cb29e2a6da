"""The canonical posture: what a single image is compared with, so that it has a motion."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from motarfuse.ops import cell_centers, motion_warp, without_autocast
from motarfuse.ops.snapshot import snapshot

_EPSILON = 1e-6
# Added to squared radii: a posture of one visible part has no size.
_RADIUS_FLOOR = 1e-4
_LEAST_SCALE, _LARGEST_SCALE = 0.5, 2.0
# Less visibility than this in a whole batch says nothing about a part.
_LEAST_WEIGHT = 1e-3


class AlignedPosture(NamedTuple):
    """A posture moved and scaled onto the canonical one.

    Attributes:
        keypoints: (B, L, 2).
        affines: (B, L, 2, 2).
        centre: (B, 2) p-, the centre of the posture as it was.
        target: (B, 2) q-, the canonical posture's centre, by the same visibility.
        scale: (B,) s.
    """

    keypoints: Tensor
    affines: Tensor
    centre: Tensor
    target: Tensor
    scale: Tensor

    @property
    def alignment(self) -> Tensor:
        """(B, 3) what was undone: the shift q- - p- and log s."""
        return torch.cat((self.target - self.centre, self.scale.log()[:, None]), dim=1)

    def move(self, points: Tensor) -> Tensor:
        """(B, N, 2) points u of the image in aligned coordinates, q- + s (u - p-)."""
        return self.target[:, None] + self.scale[:, None, None] * (points - self.centre[:, None])


class CanonicalPosture(nn.Module):
    """A running mean of body parts' keypoints and affines, and the motion that leads to it.

    Starts at the given keypoints and identity affines. In training each batch moves it by 1 - momentum towards the
    batch's mean, weighted by visibility and taken over all processes; it takes no gradient, is saved with the weights
    and fixed in evaluation.

    Before a posture is compared it is aligned, because crops are jittered and cut: with v the visibility,
    p- = sum v p / (sum v + 1e-6) and r^2 = sum v |p - p-|^2 / (sum v + 1e-6), likewise q-, r_c of the canonical
    posture with the same v, s = clamp(sqrt((r_c^2 + 1e-4) / (r^2 + 1e-4)), 0.5, 2):
    u -> q- + s (u - p-), p likewise, A -> s A.

    Args:
        keypoints: (L, 2) where the parts start, in [-1, 1]^2, x first.
        momentum: Share of the old posture that a batch keeps, in [0, 1].

    Attributes:
        keypoints: (L, 2) buffer.
        affines: (L, 2, 2) buffer.

    Shapes: :meth:`align` keypoints (F, L, 2), affines (F, L, 2, 2), visibility (F, L) -> `AlignedPosture`;
    :meth:`displacement` part logits (F, L + 1, N), keypoints, affines and the aligned posture -> (F, N, 2).

    Source: this project's reading of MOTAR-FUSE (Ling et al. 2025); the affine motion of parts is that of Siarohin et
    al. 2019 with the canonical posture for their reference frame.
    """

    keypoints: Tensor
    affines: Tensor

    def __init__(self, keypoints: Tensor, *, momentum: float = 0.99) -> None:
        super().__init__()
        if keypoints.ndim != 2 or keypoints.shape[1] != 2:
            raise ValueError(f"keypoints must be (L, 2), got shape {tuple(keypoints.shape)}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
        self.momentum = momentum
        self.register_buffer("keypoints", keypoints.detach().clone().float())
        self.register_buffer("affines", torch.eye(2).repeat(len(keypoints), 1, 1))

    @torch.no_grad()
    def update(self, keypoints: Tensor, affines: Tensor, visibility: Tensor) -> None:
        """Moves the canonical posture towards a batch; does nothing in evaluation mode.

        A part that nobody in the batch shows stays as it is, and so does one whose mean is not finite.

        Args:
            keypoints: (B, L, 2).
            affines: (B, L, 2, 2).
            visibility: (B, L) weights in [0, 1]; 0 for images that are not to count.
        """
        if not self.training:
            return
        weight = visibility.detach().to(self.keypoints)
        values = torch.cat((keypoints.detach(), affines.detach().flatten(2)), dim=2).to(self.keypoints)
        # Weighted sums and, in the last column, the weights, so that one reduction is enough.
        sums = torch.cat(((weight[..., None] * values).sum(0), weight.sum(0)[:, None]), dim=1)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        total = sums[:, -1:]
        mean = sums[:, :-1] / total.clamp(min=_LEAST_WEIGHT)
        rate = (1 - self.momentum) * ((total >= _LEAST_WEIGHT) & mean.isfinite().all(1, keepdim=True))
        self.keypoints.add_(rate * (mean[:, :2].nan_to_num() - self.keypoints))
        self.affines.add_(rate[..., None] * (mean[:, 2:].nan_to_num().unflatten(1, (2, 2)) - self.affines))

    def align(self, keypoints: Tensor, affines: Tensor, visibility: Tensor) -> AlignedPosture:
        """Moves and scales postures onto the canonical one.

        Args:
            keypoints: (B, L, 2).
            affines: (B, L, 2, 2).
            visibility: (B, L) weights in [0, 1].
        """
        with without_autocast(keypoints.device):
            weight = visibility.to(keypoints.dtype)
            canonical = self._now(self.keypoints, keypoints)
            centre, radius = _centre_and_radius(keypoints, weight)
            target, target_radius = _centre_and_radius(canonical.expand_as(keypoints), weight)
            ratio = (target_radius + _RADIUS_FLOOR) / (radius + _RADIUS_FLOOR)
            scale = ratio.sqrt().clamp(_LEAST_SCALE, _LARGEST_SCALE)
            moved = target[:, None] + scale[:, None, None] * (keypoints - centre[:, None])
            return AlignedPosture(moved, scale[:, None, None, None] * affines, centre, target, scale)

    def displacement(
        self,
        part_logits: Tensor,
        keypoints: Tensor,
        affines: Tensor,
        posture: AlignedPosture,
        *,
        grid: tuple[int, int],
        foreground: Tensor | None = None,
    ) -> Tensor:
        """How far the canonical posture is from each cell: sum_k M_k (p_k^c + A_k^c A_k^-1 (u - p_k) - u).

        u, p and A are those of aligned coordinates there, u' = q- + s (u - p-). Shift and scale cancel in the goals,
        p_k^c + A_k^c A_k^-1 (u - p_k), so that `motarfuse.ops.motion_warp` with the canonical posture as its source
        computes them as they are: with its flow, the displacement is flow - u + M_fg (u - u').

        Args:
            part_logits: (B, L + 1, N), channel 0 the background; M is their softmax over channels.
            keypoints: (B, L, 2), not aligned.
            affines: (B, L, 2, 2), not aligned.
            posture: What `align` made of them.
            grid: (h, w) of the N cells.
            foreground: (B, N) M_fg = 1 - M_0, where the caller has it; None takes it from the part logits.

        Returns:
            (B, N, 2) in aligned coordinates; zero where no part is.
        """
        with without_autocast(part_logits.device):
            cells = cell_centers(grid, device=keypoints.device, dtype=keypoints.dtype)
            # Not len(keypoints), which an exported graph would hold fixed.
            batch = keypoints.shape[0]
            flow = motion_warp(
                keypoints.new_zeros(batch, cells.shape[0], 0),  # only the flow is wanted
                self._now(self.keypoints, keypoints).expand(batch, -1, -1),
                self._now(self.affines, affines).expand(batch, -1, -1, -1),
                keypoints,
                affines,
                part_logits,
                grid=grid,
            ).flow
            if foreground is None:
                foreground = 1 - part_logits.softmax(dim=1)[:, 0]
            return flow - cells + foreground[..., None] * (cells - posture.move(cells))

    def log_determinants(self, posture: AlignedPosture) -> Tensor:
        """(B, L) log |det(A_k^c A_k^-1)|, by how much each part has to grow."""
        with without_autocast(posture.affines.device):
            canonical = _determinant(self._now(self.affines, posture.affines))
            return (canonical / _determinant(posture.affines)).abs().clamp(min=_EPSILON).log()

    def _now(self, buffer: Tensor, like: Tensor) -> Tensor:
        """As it is now: in training `update` changes it in place, perhaps before the backward pass reads it."""
        return (snapshot(buffer) if self.training else buffer).to(like.dtype)

    def extra_repr(self) -> str:
        return f"parts={len(self.keypoints)}, momentum={self.momentum:g}"


def _centre_and_radius(keypoints: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean (B, 2) of (B, L, 2), and the mean squared distance (B,) from it."""
    total = weight.sum(dim=1) + _EPSILON
    centre = (weight[..., None] * keypoints).sum(dim=1) / total[:, None]
    squared = (keypoints - centre[:, None]).square().sum(dim=-1)
    return centre, (weight * squared).sum(dim=1) / total


def _determinant(matrices: Tensor) -> Tensor:
    (a, b), (c, d) = (row.unbind(-1) for row in matrices.unbind(-2))
    return a * d - b * c
