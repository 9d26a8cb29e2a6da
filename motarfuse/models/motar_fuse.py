"""MOTAR-FUSE: a vision transformer whose class token is joined by what parts and motion say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from motarfuse.errors import CheckpointError
from motarfuse.models.output import MotarFuseOutput
from motarfuse.models.packaged import load_packaged
from motarfuse.models.registry import register_model
from motarfuse.models.vit_reid import SIZES, BackboneNetwork, VisionTransformer, VitReIDConfig, check_images
from motarfuse.nn import BNNeck, FusionEncoder, LocalAppearance, PartDecoder, PartPool

_ALPHA = 0.1
_EPSILON = 1e-6


@dataclass
class MotarFuseConfig(VitReIDConfig):
    """Architecture of MOTAR-FUSE: the visual encoder's, and what stands on it; the switches are the ablations."""

    num_parts: int = field(default=8, metadata={"help": "body parts that are looked for, the query length"})
    decoder_layers: int = field(default=2, metadata={"help": "layers of the motion-aware transformer"})
    fusion_layers: int = field(default=2, metadata={"help": "blocks of the fusion encoder"})
    scope: Literal["frame", "clip"] = field(
        default="frame", metadata={"help": "whether the fusion encoder sees one frame or the whole clip at a time"}
    )
    adapter: bool = field(default=True, metadata={"help": "the visual adapter behind each block"})
    local_appearance: bool = field(
        default=True,
        metadata={"help": "heads see cells without their places; no: they read the encoder's tokens alone"},
    )
    motion_attention: bool = field(
        default=True, metadata={"help": "motion in the attention of decoder and fusion encoder; no: plain attention"}
    )
    gated_fusion: bool = field(
        default=True, metadata={"help": "motion enters the tokens through a gate before the fusion encoder"}
    )
    fusion_encoder: bool = field(
        default=True, metadata={"help": "the fusion encoder; no: the class token alone is the feature"}
    )
    parts: bool = field(
        default=True,
        metadata={"help": "part tokens in the fusion encoder, and part features; no: parts give motion alone"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_parts", "decoder_layers", "fusion_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.scope not in ("frame", "clip"):
            raise ValueError(f"scope must be frame or clip, got {self.scope!r}")


@register_model("motar_fuse", MotarFuseConfig)
class MotarFuse(BackboneNetwork):
    """Person re-identification that reads motion from images and clips.

    A visual encoder (ViT with temporal adapters) gives tokens V and a class token c; learnable queries decode L parts
    with keypoints, affines, masks, visibility and a motion field (`motarfuse.nn.PartDecoder`), whose heads also see
    patches without their places (`motarfuse.nn.LocalAppearance`); the fusion encoder joins
    class token, parts and tokens in a hybrid token h, by attention that knows motion. With
    w_t = softmax_t(w . h_t + log mean_k v_kt) over the frames,

    embedding = sum_t w_t (LN(c_t) + alpha h_t), alpha learned, 0.1 at start,   feature = BNNeck(embedding)

    so that the network starts close to the plain ViT. Part features are the masks' mean of the fused tokens, over
    frames weighted by visibility, after a BNNeck: before it all are alike, and their cosines close to 1. An image, the
    same image as a one-frame clip, a clip of equal frames and a clip padded by ``frame_mask`` give the same result in
    evaluation mode.

    Args:
        config: Size, options and ablation switches.

    Attributes:
        feature_dim: Width D of feature, embedding and part features.

    Source: this project's reading of MOTAR-FUSE (Ling et al. 2025).
    """

    def __init__(self, config: MotarFuseConfig) -> None:
        super().__init__()
        self.config = config
        size = SIZES[config.size]
        self.feature_dim = size.dim
        self.backbone = VisionTransformer(config, adapters=config.adapter)
        self.appearance = LocalAppearance(size.dim, config.grid) if config.local_appearance else None
        self.decoder = PartDecoder(
            size.dim,
            size.heads,
            config.grid,
            config.num_parts,
            num_layers=config.decoder_layers,
            motion=config.motion_attention,
        )
        self.fusion = (
            FusionEncoder(
                size.dim,
                size.heads,
                depth=config.fusion_layers,
                scope=config.scope,
                motion=config.motion_attention,
                gated=config.gated_fusion,
            )
            if config.fusion_encoder
            else None
        )
        self.alpha = nn.Parameter(torch.tensor(_ALPHA)) if config.fusion_encoder else None
        self.frame_weight = nn.Parameter(torch.zeros(size.dim))
        self.pool = PartPool()
        self.neck = BNNeck(size.dim)
        self.class_neck = BNNeck(size.dim)
        self.part_neck = BNNeck(config.num_parts * size.dim) if config.parts else None

    @classmethod
    def from_pretrained(cls, name: str, *, device: str | torch.device = "cpu") -> MotarFuse:
        """A packaged network in evaluation mode; says once what it was trained on.

        Args:
            name: One of :func:`motarfuse.models.packaged_names`, such as "nano-synthped".
            device: Where to put it.

        Raises:
            CheckpointError: No network of this name is packaged, it is no MOTAR-FUSE, or its files are damaged.
        """
        model = load_packaged(name, device=device)
        if not isinstance(model, cls):
            raise CheckpointError(f"{name} is a {type(model).__name__}; motarfuse.models.load_packaged gives it")
        return model

    def forward(
        self,
        images: Tensor,
        camids: Tensor | None = None,
        frame_mask: Tensor | None = None,
        frame_index: Tensor | None = None,
        *,
        counted: Tensor | None = None,
    ) -> MotarFuseOutput:
        """Features, parts and motion of images or clips.

        Args:
            images: (B, 3, H, W) or (B, T, 3, H, W), floating, normalised as ``motarfuse.data.EvalTransform`` does.
            camids: (B,) integers, -1 or any camera without an embedding: unknown. Unused without camera embeddings.
            frame_mask: (B, T) bool, False for padding; each clip needs one valid frame. For clips only.
            frame_index: (B, T) integers, when each frame was taken; None: 0..T-1. For clips only.
            counted: (B,) bool, False for samples that leave the canonical posture and the motion's statistics alone in
                training, such as changed copies; None: all count.

        Raises:
            TypeError: Images that are not floating point.
            ValueError: A shape that does not fit.
        """
        check_images(images, self.image_size, camids, frame_mask)
        clips = images if images.ndim == 5 else images[:, None]
        batch, frames = clips.shape[:2]
        if frame_index is not None and frame_index.shape != (batch, frames):
            raise ValueError(f"frame_index must be ({batch}, {frames}), got {tuple(frame_index.shape)}")
        if counted is not None and (counted.shape != (batch,) or counted.dtype != torch.bool):
            raise ValueError(f"counted must be ({batch},) bool, got {counted.dtype} {tuple(counted.shape)}")
        there = frame_mask
        if there is None:
            there = torch.ones(batch, frames, dtype=torch.bool, device=images.device)
        else:
            # Padding may hold anything, and 0 * NaN is NaN.
            clips = torch.where(there[:, :, None, None, None], clips, 0)
        if camids is not None:
            camids = camids.repeat_interleave(frames)
        images = clips.flatten(0, 1)
        patches = self.backbone.patch_embed(images)
        encoded = self.backbone(images, camids, frame_mask=there if frames > 1 else None, patches=patches)
        encoded = encoded.unflatten(0, (batch, frames))
        class_token, tokens = encoded[:, :, 0], encoded[:, :, 1:]
        appearance = None if self.appearance is None else self.appearance(patches).unflatten(0, (batch, frames))
        parts, states = self.decoder(tokens, there, frame_index, appearance=appearance, counted=counted)
        state = states[-1]
        visibility = state.visibility.unflatten(0, (batch, frames))
        if self.fusion is None or self.alpha is None:
            summary = joined = class_token
        else:
            with_parts = parts if self.config.parts else None
            summary, tokens = self.fusion(tokens, class_token, with_parts, state, there, frame_index)
            joined = class_token + self.alpha * summary
        weight = self._frame_weights(summary, visibility, there)
        embedding = (weight * joined).sum(1)
        part_features, part_embeddings, part_visibility = self._parts(tokens, state.part_logits, visibility, there)
        grid = self.backbone.grid
        return MotarFuseOutput(
            feature=self.neck(embedding),
            embedding=embedding,
            part_features=part_features,
            part_embeddings=part_embeddings,
            part_visibility=part_visibility,
            keypoints=state.keypoints.unflatten(0, (batch, frames)),
            affines=state.affines.unflatten(0, (batch, frames)),
            part_masks=state.masks.unflatten(2, grid).unflatten(0, (batch, frames)),
            motion=state.displacement.unflatten(1, grid).unflatten(0, (batch, frames)),
            alignment=state.posture.alignment.unflatten(0, (batch, frames)),
            class_feature=self.class_neck((weight * class_token).sum(1)),
            states=tuple(states) if self.training else (),
        )

    def _frame_weights(self, summary: Tensor, visibility: Tensor, there: Tensor) -> Tensor:
        """(B, T, 1) shares of the frames: softmax_t(w . h_t + log mean_k v_kt), 0 for padding."""
        score = summary.to(visibility.dtype) @ self.frame_weight.to(visibility.dtype)
        score = score + (visibility.mean(-1) + _EPSILON).log()
        return score.masked_fill(~there, -torch.inf).softmax(1)[..., None].to(summary.dtype)

    def _parts(
        self, tokens: Tensor, part_logits: Tensor, visibility: Tensor, there: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features and embeddings (B, L, D) and visibility (B, L) of the parts over a clip's valid frames."""
        seen = visibility * there[..., None]
        if self.part_neck is None:
            none = tokens.new_zeros(tokens.shape[0], 0, self.feature_dim)
            return none, none.clone(), seen.new_zeros(tokens.shape[0], 0)
        pooled = self.pool(tokens.flatten(0, 1), part_logits).pooled.unflatten(0, there.shape)
        # Clamped, not increased: adding to the sum would make a static clip differ from its image.
        share = (seen / seen.sum(1, keepdim=True).clamp(min=_EPSILON))[..., None].to(pooled.dtype)
        embeddings = (share * pooled).sum(1)
        features = self.part_neck(embeddings.flatten(1)).view_as(embeddings)
        return features, embeddings, seen.sum(1) / there.sum(1, keepdim=True)
