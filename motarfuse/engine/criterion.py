"""The loss that a run minimises, term by term."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from motarfuse.engine.config import LossConfig
from motarfuse.models import MotarFuse, MotarFuseOutput, ReIDOutput
from motarfuse.nn import CopyPair, IdLoss, MotionConsistencyLoss, PartState, TripletLoss
from motarfuse.nn.motion_consistency import FramePair, KnownWarp


class Copies(NamedTuple):
    """What is known of the changed copies, which are the last of a batch.

    Attributes:
        originals: (C,) places in the batch of the images or clips that were copied.
        frames: (C,) places of the copied frames among the states' frames; of images, the same.
        warp: W, from coordinates of the copies to those of their originals.
        covered: (C, N) share of each cell of the copies that an occluder hides.
    """

    originals: Tensor
    frames: Tensor
    warp: KnownWarp
    covered: Tensor


class ClipFrames(NamedTuple):
    """Which of the states' frames, the clips' row after row and the copies' behind them, the loss reads.

    Attributes:
        there: (F,) places of frames that are no padding.
        source, target: (P,) places of two different frames of one clip.
        source_images, target_images: (P, 3, H, W) their pixels.
    """

    there: Tensor
    source: Tensor
    target: Tensor
    source_images: Tensor
    target_images: Tensor


class ReIDCriterion(nn.Module):
    """id_weight L_ID(feature) + class_weight L_ID(class feature) + triplet_weight L_tri(embedding) + lambda_mc L_mc.

    The class token's own L_ID and the motion consistency L_mc are of networks with parts alone. Copies enter L_ID and
    L_tri as the images that they are.

    Args:
        model: The network, which says what there is to learn.
        num_classes: Number of training identities.
        config: Weights and options.
    """

    def __init__(self, model: nn.Module, num_classes: int, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        dim: int = model.feature_dim  # type: ignore[assignment]
        self.identity = IdLoss(dim, num_classes, config.label_smoothing)
        self.triplet = TripletLoss(config.margin, config.metric)
        self.class_identity: IdLoss | None = None
        self.motion: MotionConsistencyLoss | None = None
        if isinstance(model, MotarFuse):
            self.grid = model.backbone.grid
            self.with_parts = model.config.parts
            if config.class_weight and model.fusion is not None:
                self.class_identity = IdLoss(dim, num_classes, config.label_smoothing)
            if config.motion_weight:
                self.motion = MotionConsistencyLoss(
                    dim,
                    model.config.num_parts,
                    num_classes,
                    flow=config.flow_weight,
                    occ=config.occ_weight,
                    eq=config.eq_weight,
                    inv=config.inv_weight,
                    rec=config.rec_weight,
                    part=config.part_weight if self.with_parts else 0.0,
                    div=config.div_weight,
                )

    def forward(
        self,
        output: ReIDOutput,
        labels: Tensor,
        copies: Copies | None = None,
        progress: float = 1.0,
        frames: ClipFrames | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its unweighted terms, scalars; a term of weight 0 is not computed.

        Args:
            output: Of the network.
            labels: (B,) in [0, C), those of copies too.
            copies: What is known of the last images, if they are copies.
            progress: Share of the training that is done, which lambda_mc's ramp reads.
            frames: Which frames of clips are there; None for images.
        """
        config = self.config
        terms: dict[str, Tensor] = {}
        loss = torch.zeros((), device=labels.device)
        if config.id_weight:
            terms["loss_id"] = self.identity(output.feature, labels)
            loss = loss + config.id_weight * terms["loss_id"]
        if config.triplet_weight:
            terms["loss_triplet"] = self.triplet(output.embedding, labels)
            loss = loss + config.triplet_weight * terms["loss_triplet"]
        if isinstance(output, MotarFuseOutput):
            if self.class_identity is not None:
                terms["loss_class"] = self.class_identity(output.class_feature, labels)
                loss = loss + config.class_weight * terms["loss_class"]
            if self.motion is not None:
                value, parts = self._motion(self.motion, output, labels, copies, frames)
                ramp = min(progress / config.motion_ramp, 1.0) if config.motion_ramp else 1.0
                loss = loss + config.motion_weight * ramp * value
                terms["loss_motion"] = value
                terms |= {f"loss_{name}": term for name, term in parts.items()}
            state = output.states[-1]
            terms |= part_health(state if frames is None else state.take(frames.there))
        return loss, terms

    def _motion(
        self,
        motion: MotionConsistencyLoss,
        output: MotarFuseOutput,
        labels: Tensor,
        copies: Copies | None,
        frames: ClipFrames | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        states, pair, frame_pair = output.states, None, None
        if copies is not None:
            count, total = len(copies.originals), len(states[0].masks)
            last = torch.arange(total - count, total, device=labels.device)
            pair = CopyPair(
                tuple(state.take(copies.frames) for state in states),
                tuple(state.take(last) for state in states),
                copies.warp,
                copies.covered,
                output.feature[copies.originals],
                output.feature[len(labels) - count :],
            )
        if frames is not None:
            if len(frames.source):
                source, target = states[-1].take(frames.source), states[-1].take(frames.target)
                frame_pair = FramePair(frames.source_images, frames.target_images, source, target)
            states = tuple(state.take(frames.there) for state in states)
        return motion(
            states,
            self.grid,
            copies=pair,
            frames=frame_pair,
            part_embeddings=output.part_embeddings if self.with_parts else None,
            part_features=output.part_features,
            part_visibility=output.part_visibility,
            labels=labels,
        )


@torch.no_grad()
def part_health(state: PartState) -> dict[str, Tensor]:
    """Whether the parts are alive, as scalars of a batch.

    ``health/confidence``: mean heat-map confidence, 1 / N for flat maps; ``health/foreground``: mean M_fg;
    ``health/mass_k`` and their least and largest: mean mask mass of each part; ``health/visibility``: mean v;
    ``health/det_min`` and ``health/det_max``: range of the affines' determinants.
    """
    mass = state.masks[:, 1:].mean((0, 2))
    determinants = torch.linalg.det(state.affines.float())
    health = {
        "confidence": state.confidence.mean(),
        "foreground": state.foreground.mean(),
        "visibility": state.visibility.mean(),
        "mass_min": mass.min(),
        "mass_max": mass.max(),
        "det_min": determinants.min(),
        "det_max": determinants.max(),
    }
    health |= {f"mass_{part}": value for part, value in enumerate(mass)}
    return {f"health/{name}": value for name, value in health.items()}
