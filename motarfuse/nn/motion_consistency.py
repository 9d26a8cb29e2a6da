"""Motion consistency: what parts, postures and features owe to a change that is known."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motarfuse.nn.part_decoder import PartState
from motarfuse.nn.part_loss import PartLoss
from motarfuse.ops import cell_centers, inverse_2x2, motion_warp, sample_bilinear, without_autocast

_EPSILON = 1e-6
# A part whose uncovered share is below this has no equivariance to keep, only a place to guess.
_LEAST_SHARE = 0.5
FOREGROUND_RANGE = (0.25, 0.7)
# Of L_div's hinges: slope 1 loses to the covered cells' -log M_0; the mean foreground was 0.08 after six steps.
HINGE = 50.0
TERMS = ("flow", "occ", "eq", "inv", "rec", "part", "div")


class KnownWarp(Protocol):
    """W from the coordinates of a copy to those of its original, one for each of B images."""

    def __call__(self, points: Tensor) -> Tensor:
        """(B, P, 2) -> (B, P, 2)."""
        ...

    def jacobian(self, points: Tensor) -> Tensor:
        """(B, P, 2) -> (B, P, 2, 2), [..., i, j] = dW_i / du_j."""
        ...


class CopyPair(NamedTuple):
    """Images and their changed copies, x~ = paste(x o W): what the network says of both and what is known.

    Attributes:
        states: Of the originals, a `PartState` a decoder layer, B frames.
        copy_states: Of the copies, likewise.
        warp: W.
        covered: (B, N) shares in [0, 1] of each cell of the copy that an occluder hides.
        feature: (B, D) of the originals.
        copy_feature: (B, D).
    """

    states: tuple[PartState, ...]
    copy_states: tuple[PartState, ...]
    warp: KnownWarp
    covered: Tensor
    feature: Tensor
    copy_feature: Tensor


class FramePair(NamedTuple):
    """Two frames of one tracklet a row: RGB images (B, 3, H, W) and the last `PartState` of each, B frames."""

    source: Tensor
    target: Tensor
    source_state: PartState
    target_state: PartState


class MotionConsistencyLoss(nn.Module):
    """5 L_flow + 0.3 L_occ + L_eq + L_rec + L_part + 0.1 L_div; every weight is free, 0 computes nothing.

    x~ = paste(x o W) is a copy whose warp W and cover are known. Source x, target x~; a cell counts where W(u) lies
    inside the image, and is covered where an occluder hides more than half of it; share_k is the part's mass on
    uncovered cells over that on all. sg stops the gradient; terms of states are means over the decoder's layers.

    - L_flow = mean over uncovered cells of sg(M_fg) |T_fg(u) - W(u)|, T_fg the motion between the two postures.
    - L_occ = -log M_0 on covered cells + KL(sg M(x) o W || M(x~)) on the others + |v_k(x~) - sg(v_k(x) share_k)|
      + |W p~ - sg p| (amodal: also of covered parts).
    - L_eq, parts with share_k >= 0.5: |p - W p~| + |I - A^-1 J_W(p~) A~|.
    - L_inv = 1 - cos(f(x~), sg f(x)), weight 0 unless given.
    - L_rec, two frames of a tracklet: error of the warped source against the target, both RGB at twice the grid and
      normalised per image, weighted by sg[M_fg^t(u) M_fg^s(T(u))].
    - L_part: `PartLoss`.
    - L_div: mean cosine of two parts' masks + mean spread of a part's mask + 50 times hinges that keep the mean M_fg
      in [0.25, 0.7] and each part's mean mass above 0.25 / (L + 1).

    Args:
        dim: Width D of part features.
        num_parts: L.
        num_classes: Training identities, for L_part; None leaves L_part to its triplet.
        flow, occ, eq, inv, rec, part, div: Weights.

    Shapes: states of F frames, L parts and N = h w cells, B pairs, feature (B, D) -> scalar and scalars by name.

    Source: this project's reading of the motion consistency task of MOTAR-FUSE (Ling et al. 2025); the parts' affine
    motion and the equivariance follow Siarohin et al. 2020.
    """

    def __init__(
        self,
        dim: int,
        num_parts: int,
        num_classes: int | None = None,
        *,
        flow: float = 5.0,
        occ: float = 0.3,
        eq: float = 1.0,
        inv: float = 0.0,
        rec: float = 1.0,
        part: float = 1.0,
        div: float = 0.1,
    ) -> None:
        super().__init__()
        self.weights = dict(zip(TERMS, (flow, occ, eq, inv, rec, part, div), strict=True))
        negative = [name for name, weight in self.weights.items() if not weight >= 0]
        if negative:
            raise ValueError(f"weights must be 0 or more, got {negative[0]}={self.weights[negative[0]]}")
        self.part = PartLoss(dim, num_parts, num_classes) if part else None

    def forward(
        self,
        states: tuple[PartState, ...],
        grid: tuple[int, int],
        *,
        copies: CopyPair | None = None,
        frames: FramePair | None = None,
        part_embeddings: Tensor | None = None,
        part_features: Tensor | None = None,
        part_visibility: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and the unweighted terms that could be computed.

        Args:
            states: Of all images, a `PartState` a decoder layer; L_div reads them.
            grid: (h, w) of the cells.
            copies: For L_flow, L_occ, L_eq and L_inv.
            frames: For L_rec.
            part_embeddings, part_features, part_visibility, labels: (B, L, D) before and after a BNNeck, (B, L), (B,);
                for L_part.

        Returns:
            A scalar and the terms by name, scalars; fp32, or fp64 for fp64.
        """
        device = states[0].masks.device
        terms: dict[str, Tensor] = {}
        with without_autocast(device):
            if copies is not None and len(copies.covered):
                pairs = list(zip(copies.states, copies.copy_states, strict=True))
                views = [_View(source, target, copies.warp, copies.covered, grid) for source, target in pairs]
                if self.weights["flow"]:
                    terms["flow"] = _mean([view.flow() for view in views])
                if self.weights["occ"]:
                    terms["occ"] = _mean([view.occlusion() for view in views])
                if self.weights["eq"]:
                    terms["eq"] = _mean([view.equivariance() for view in views])
                if self.weights["inv"]:
                    similarity = F.cosine_similarity(copies.copy_feature, copies.feature.detach(), dim=1)
                    terms["inv"] = (1 - similarity).mean()
            if frames is not None and self.weights["rec"]:
                terms["rec"] = reconstruction(frames, grid)
            if self.part is not None and part_embeddings is not None:
                if part_features is None or part_visibility is None or labels is None:
                    raise ValueError("part_embeddings need part_features, part_visibility and labels beside them")
                terms["part"] = self.part(part_embeddings, part_features, part_visibility, labels)
            if self.weights["div"]:
                terms["div"] = _mean([diversity(state, grid) for state in states])
            total = torch.zeros((), device=device, dtype=states[0].masks.dtype)
            for name, term in terms.items():
                total = total + self.weights[name] * term
        return total, terms

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={weight:g}" for name, weight in self.weights.items())


class _View:
    """One decoder layer's states of originals and copies, and which cells of the copies count."""

    def __init__(
        self, source: PartState, target: PartState, warp: KnownWarp, covered: Tensor, grid: tuple[int, int]
    ) -> None:
        self.source, self.target, self.warp, self.grid = source, target, warp, grid
        self.cells = cell_centers(grid, device=covered.device, dtype=target.masks.dtype)
        self.goal = warp(self.cells.expand(len(covered), -1, -1)).detach()  # (B, N, 2) W(u)
        inside = (self.goal.abs() <= 1).all(-1)
        hidden = covered > 0.5
        self.hidden = hidden.to(self.cells.dtype)  # (B, N)
        self.seen = (inside & ~hidden).to(self.cells.dtype)
        with torch.no_grad():
            self.expected = sample_bilinear(source.masks.transpose(1, 2), self.goal, grid).transpose(1, 2)
            own = self.expected[:, 1:]
            seen = (own * self.seen[:, None]).sum(-1)
            self.share = seen / ((own * inside[:, None]).sum(-1) + _EPSILON)  # (B, L)
        self.placed = warp(target.keypoints)  # (B, L, 2) W p~

    def flow(self) -> Tensor:
        target, source = self.target, self.source
        nothing = target.keypoints.new_zeros(*self.goal.shape[:2], 0)  # only the flow is wanted
        flow = motion_warp(
            nothing,
            source.keypoints,
            source.affines,
            target.keypoints,
            target.affines,
            target.part_logits,
            grid=self.grid,
        ).flow
        foreground = target.foreground
        still = target.masks[:, 0, :, None] * self.cells
        moved = (flow - still) / foreground.clamp(min=_EPSILON)[..., None]
        error = _norm(moved - self.goal)
        return _weighted_mean(foreground.detach() * error, self.seen)

    def occlusion(self) -> Tensor:
        target, source = self.target, self.source
        logarithm = target.part_logits.log_softmax(dim=1)
        background = _weighted_mean(-logarithm[:, 0], self.hidden)
        divergence = (self.expected * (self.expected.clamp(min=_EPSILON).log() - logarithm)).sum(1)
        masks = _weighted_mean(divergence, self.seen)
        visibility = (target.visibility - (source.visibility * self.share).detach()).abs().mean()
        keypoints = _norm(self.placed - source.keypoints.detach()).mean()
        return background + masks + visibility + keypoints

    def equivariance(self) -> Tensor:
        counted = (self.share >= _LEAST_SHARE).to(self.cells.dtype)
        keypoints = _norm(self.source.keypoints - self.placed)
        # As a number: the gradient of a spline's Jacobian has poles at its control points.
        jacobian = self.warp.jacobian(self.target.keypoints.detach())
        product = inverse_2x2(self.source.affines) @ jacobian @ self.target.affines
        identity = torch.eye(2, dtype=product.dtype, device=product.device)
        affines = _norm((product - identity).flatten(-2))
        return _weighted_mean(keypoints + affines, counted)


def reconstruction(frames: FramePair, grid: tuple[int, int]) -> Tensor:
    """L_rec: sum w e / (sum w + 1e-6) over the cells of twice the grid, e the squared error of the warped source.

    Both images are pooled to (2h, 2w) and normalised per image, so that nothing learned can collapse the target; part
    logits are upsampled bilinearly; w = sg[M_fg^t(u) M_fg^s(T(u))].
    """
    fine = (2 * grid[0], 2 * grid[1])
    source, target = (_pooled(image, fine) for image in (frames.source, frames.target))
    source_logits = _upsampled(frames.source_state.part_logits, grid, fine)
    logits = _upsampled(frames.target_state.part_logits, grid, fine)
    source_foreground = 1 - source_logits.softmax(1)[:, 0]
    target_foreground = 1 - logits.softmax(1)[:, 0]
    warped = motion_warp(
        torch.cat((source, source_foreground[..., None]), -1),
        frames.source_state.keypoints,
        frames.source_state.affines,
        frames.target_state.keypoints,
        frames.target_state.affines,
        logits,
        grid=fine,
    ).warped
    error = (warped[..., :-1] - target).square().mean(-1)
    return _weighted_mean(error, (target_foreground * warped[..., -1]).detach())


def diversity(state: PartState, grid: tuple[int, int]) -> Tensor:
    """L_div: mean pairwise mask overlap + spread of each part + hinges on mean foreground and mass."""
    own = state.masks[:, 1:]
    num_parts = own.shape[1]
    cells = cell_centers(grid, device=own.device, dtype=own.dtype)
    mass = own.sum(-1) + _EPSILON
    centre = own @ cells / mass[..., None]
    # E|u|^2 - |E u|^2, which is the mean squared distance from the part's own centre.
    spread = own @ cells.square().sum(-1) / mass - centre.square().sum(-1)
    unit = F.normalize(own, dim=-1)
    gram = unit @ unit.transpose(1, 2)
    pairs = max(num_parts * (num_parts - 1), 1)
    overlap = (gram.sum((1, 2)) - gram.diagonal(dim1=1, dim2=2).sum(1)) / pairs
    foreground = state.foreground.mean()
    low, high = FOREGROUND_RANGE
    hinges = F.relu(low - foreground) + F.relu(foreground - high)
    least = F.relu(0.25 / (num_parts + 1) - own.mean((0, 2))) * (num_parts + 1)
    return overlap.mean() + spread.mean() + HINGE * (hinges + least.mean())


def _pooled(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) -> (B, h w, 3), each image with mean 0 and deviation 1."""
    cells = F.adaptive_avg_pool2d(images, size).flatten(2).transpose(1, 2)
    centred = cells - cells.mean((1, 2), keepdim=True)
    return centred / (centred.square().mean((1, 2), keepdim=True).sqrt() + _EPSILON)


def _upsampled(logits: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits.unflatten(2, grid), size=size, mode="bilinear", align_corners=False).flatten(2)


def _norm(vectors: Tensor) -> Tensor:
    """Euclidean length over the last dimension, with zero gradient at zero."""
    return vectors.square().sum(-1).clamp(min=_EPSILON**2).sqrt()


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """0 with zero gradients where nothing counts."""
    return (values * weights).sum() / (weights.sum() + _EPSILON)


def _mean(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).mean()
