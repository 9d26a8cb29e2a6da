"""The plain baseline: a vision transformer with a BNNeck."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motarfuse.models.output import ReIDOutput
from motarfuse.models.registry import register_model
from motarfuse.nn import Block, BNNeck, PendingSum, VisualAdapter, add_norm


class Size(NamedTuple):
    """What a size's name stands for; image size is (height, width) in pixels."""

    dim: int
    depth: int
    heads: int
    image_size: tuple[int, int]
    patch: int


SIZES = {
    "nano": Size(96, 4, 3, (128, 64), 8),
    "tiny": Size(192, 6, 3, (128, 64), 8),
    "small": Size(384, 12, 6, (256, 128), 16),
    "base": Size(768, 12, 12, (256, 128), 16),
}


@dataclass
class VitReIDConfig:
    """Architecture of the plain ViT; none takes what the size stands for."""

    size: Literal["nano", "tiny", "small", "base"] = field(
        default="nano",
        metadata={"help": "nano (96 wide, 4 blocks), tiny (192, 6), small (384, 12) or base (768, 12)"},
    )
    image_size: tuple[int, int] | None = field(
        default=None, metadata={"help": "[height, width] in pixels; none: 128x64 for nano and tiny, 256x128 otherwise"}
    )
    patch: int | None = field(
        default=None, metadata={"help": "side of a square patch in pixels; none: 8 for nano and tiny, 16 otherwise"}
    )
    stride: int | None = field(
        default=None, metadata={"help": "pixels between patches, smaller than patch for overlapping ones; none: patch"}
    )
    drop_path: float = field(
        default=0.0, metadata={"help": "stochastic depth of the last block in [0, 1), growing linearly from 0"}
    )
    num_cameras: int = field(
        default=0,
        metadata={
            "help": "cameras with an embedding of their own; 0: none. "
            "Features then depend on the camera label, and an unknown camera is the zero vector"
        },
    )
    camera_scale: float = field(default=3.0, metadata={"help": "factor of the camera embedding (TransReID: 3)"})
    encoder: Literal["vit", "clip", "clip_quickgelu"] = field(
        default="vit",
        metadata={
            "help": "vit: as timm's and TransReID's weights need it; clip: as CLIP's visual towers, with a layer norm "
            "before the blocks, epsilon 1e-5 and no patch bias; clip_quickgelu: such a tower with QuickGELU (OpenAI's)"
        },
    )

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {self.size!r}")
        if self.encoder not in ("vit", "clip", "clip_quickgelu"):
            raise ValueError(f"encoder must be vit, clip or clip_quickgelu, got {self.encoder!r}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must lie in [0, 1), got {self.drop_path}")
        if self.num_cameras < 0:
            raise ValueError(f"num_cameras must be 0 or more, got {self.num_cameras}")
        image_size, patch, stride = self.resolved_image_size, self.resolved_patch, self.resolved_stride
        if patch < 1 or not 1 <= stride <= patch:
            raise ValueError(f"stride must lie in [1, patch], got stride {stride} and patch {patch}")
        if min(image_size) < patch:
            raise ValueError(f"image_size {list(image_size)} is smaller than a patch of {patch}")
        if stride == patch and any(length % patch for length in image_size):
            raise ValueError(
                f"image_size {list(image_size)} is not divisible by patch {patch}; "
                "overlapping patches (stride < patch) need no divisible size"
            )

    @property
    def resolved_image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return SIZES[self.size].image_size if self.image_size is None else self.image_size

    @property
    def resolved_patch(self) -> int:
        return SIZES[self.size].patch if self.patch is None else self.patch

    @property
    def resolved_stride(self) -> int:
        return self.resolved_patch if self.stride is None else self.stride

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns): floor((length - patch) / stride) + 1 along each side."""
        height, width = (
            (length - self.resolved_patch) // self.resolved_stride + 1 for length in self.resolved_image_size
        )
        return height, width


class PatchEmbed(nn.Module):
    """Cuts an image into square patches and projects each: (B, 3, H, W) -> (B, h w, D), row-major.

    The projection is a convolution's weight (``proj``), as in timm; patches that do not overlap take one product.
    """

    def __init__(self, dim: int, patch: int, stride: int, *, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        patch = self.proj.kernel_size[0]
        if self.proj.stride[0] != patch:
            return self.proj(images).flatten(2).transpose(1, 2)
        batch, channels, height, width = images.shape
        cells = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
        count = (height // patch) * (width // patch)  # not -1, which an empty batch leaves open
        cells = cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, count, channels * patch * patch)
        return F.linear(cells, self.proj.weight.flatten(1), self.proj.bias)


class VisionTransformer(nn.Module):
    """Patches -> tokens -> blocks -> class token; parameter names as in timm's ``VisionTransformer``.

    As a CLIP visual tower (``config.encoder``) it has a layer norm ``norm_pre`` before the blocks and no patch bias.

    Args:
        config: Size, patches and options.
        adapters: Whether a `motarfuse.nn.VisualAdapter` stands behind each block; they start as the identity.
    """

    def __init__(self, config: VitReIDConfig, *, adapters: bool = False) -> None:
        super().__init__()
        size = SIZES[config.size]
        rows, columns = config.grid
        self.image_size = config.resolved_image_size
        self.grid = config.grid
        self.camera_scale = config.camera_scale
        self.cls_token = nn.Parameter(torch.empty(1, 1, size.dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + rows * columns, size.dim))
        self.camera_embed = nn.Parameter(torch.empty(config.num_cameras, size.dim)) if config.num_cameras else None
        clip = config.encoder != "vit"
        eps = 1e-5 if clip else 1e-6
        self.patch_embed = PatchEmbed(size.dim, config.resolved_patch, config.resolved_stride, bias=not clip)
        self.norm_pre = nn.LayerNorm(size.dim, eps=eps) if clip else None
        rates = [config.drop_path * index / max(1, size.depth - 1) for index in range(size.depth)]
        activation: Literal["gelu", "quick_gelu"] = "quick_gelu" if config.encoder == "clip_quickgelu" else "gelu"
        self.blocks = nn.ModuleList(
            Block(size.dim, size.heads, drop_path=rate, eps=eps, activation=activation) for rate in rates
        )
        self.norm = nn.LayerNorm(size.dim, eps=eps)
        self.reset_parameters()
        # After the initialisation of the others, so that a seed gives them the same weights with and without adapters.
        self.adapters = nn.ModuleList(VisualAdapter(size.dim) for _ in rates) if adapters else None

    def reset_parameters(self) -> None:
        """Truncated normal of deviation 0.02 for weights and embeddings, zero biases (ViT's usual initialisation)."""
        for parameter in (self.cls_token, self.pos_embed, self.camera_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        images: Tensor,
        camids: Tensor | None = None,
        num_outputs: int | None = None,
        frame_mask: Tensor | None = None,
        *,
        patches: Tensor | None = None,
    ) -> Tensor:
        """Tokens after the last layer norm, the class token first.

        Args:
            images: (B, 3, H, W), normalised.
            camids: (B,) integers, or None.
            num_outputs: Number n of leading tokens that are wanted; None: all. Not with adapters.
            frame_mask: (b, T) booleans with b T = B, False for padding: the images are the frames of b clips, one clip
                after the other. Adapters read it; None: images by themselves.
            patches: ``patch_embed(images)``, where that is at hand already.

        Returns:
            (B, 1 + h w, D), or the first n of it. With n = 1 the last block costs a sixth.
        """
        if patches is None:
            patches = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1) + self.pos_embed
        if self.camera_embed is not None and camids is not None:
            known = (camids >= 0) & (camids < self.camera_embed.shape[0])
            side = self.camera_embed[torch.where(known, camids, 0)] * known[:, None].to(self.camera_embed.dtype)
            tokens = tokens + self.camera_scale * side[:, None]
        if self.norm_pre is not None:
            tokens = self.norm_pre(tokens)
        stream: Tensor | PendingSum = tokens
        if self.adapters is not None:
            for block, adapter in zip(self.blocks, self.adapters, strict=True):
                stream = adapter(block(stream, chained=True), frame_mask, chained=True)
        else:
            for block in self.blocks[:-1]:
                stream = block(stream, chained=True)
            stream = self.blocks[-1](stream, num_outputs, chained=True)
        return add_norm(stream, self.norm, wide=True)[0]


class BackboneNetwork(nn.Module):
    """What networks over a `VisionTransformer` share: the size of their images and the depth of their parameters."""

    backbone: VisionTransformer

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels that images must have."""
        return self.backbone.image_size

    @property
    def num_layers(self) -> int:
        """Number of layers that :meth:`layer_of` counts: embedding, blocks, everything after them."""
        return len(self.backbone.blocks) + 2

    def layer_of(self, parameter_name: str) -> int:
        """Depth of a parameter: 0 for patch, position and class embeddings, 1.. for blocks, then all that follows."""
        parts = parameter_name.split(".")
        if parts[0] != "backbone" or parts[1] == "norm":
            return self.num_layers - 1
        return 1 + int(parts[2]) if parts[1] in ("blocks", "adapters") else 0


@register_model("vit_reid", VitReIDConfig)
class VitReID(BackboneNetwork):
    """A plain ViT for ReID: embedding = class token of the last layer norm, feature = BNNeck(embedding).

    A clip's embedding is the mean over its valid frames, so that an image, the same image as a one-frame clip, a clip
    of equal frames and a padded clip give the same feature in evaluation mode.

    Args:
        config: Size, patches and options.

    Attributes:
        feature_dim: Width D of feature and embedding.

    Source: He et al. 2021, "TransReID" (overlapping patches, camera side information); Luo et al. 2019 (BNNeck).
    """

    def __init__(self, config: VitReIDConfig) -> None:
        super().__init__()
        self.config = config
        self.feature_dim = SIZES[config.size].dim
        self.backbone = VisionTransformer(config)
        self.neck = BNNeck(self.feature_dim)

    def forward(
        self,
        images: Tensor,
        camids: Tensor | None = None,
        frame_mask: Tensor | None = None,
        frame_index: Tensor | None = None,
    ) -> ReIDOutput:
        """Features of images or clips.

        Args:
            images: (B, 3, H, W) or (B, T, 3, H, W), floating, normalised as ``motarfuse.data.EvalTransform`` does.
            camids: (B,) integers, -1 or any camera without an embedding: unknown. Unused without camera embeddings.
            frame_mask: (B, T) bool, False for padding; each clip needs one valid frame. For clips only.
            frame_index: (B, T) integers, part of every network's signature; this one has no notion of time.

        Returns:
            ``feature`` and ``embedding``, (B, D) each.

        Raises:
            TypeError: Images that are not floating point.
            ValueError: A shape that does not fit.
        """
        check_images(images, self.image_size, camids, frame_mask)
        if images.ndim == 4:
            embedding = self.backbone(images, camids, 1)[:, 0]
            return ReIDOutput(self.neck(embedding), embedding)
        batch, frames = images.shape[:2]
        if camids is not None:
            camids = camids.repeat_interleave(frames)
        embedding = self.backbone(images.flatten(0, 1), camids, 1)[:, 0].unflatten(0, (batch, frames))
        if frame_mask is None:
            embedding = embedding.mean(1)
        else:
            # where, not a product: padding may hold anything, and 0 * NaN is NaN.
            total = torch.where(frame_mask[..., None], embedding, 0).sum(1)
            embedding = total / frame_mask.sum(1, keepdim=True)
        return ReIDOutput(self.neck(embedding), embedding)


def check_images(images: Tensor, image_size: tuple[int, int], camids: Tensor | None, frame_mask: Tensor | None) -> None:
    """Raises TypeError or ValueError unless images are (B, 3, H, W) or (B, T, 3, H, W) and the others fit them."""
    if not images.is_floating_point():
        raise TypeError(
            f"images must be normalised floating point, got {images.dtype}; see motarfuse.data.EvalTransform"
        )
    if images.ndim not in (4, 5) or images.shape[-3:] != (3, *image_size):
        height, width = image_size
        raise ValueError(
            f"images must be (B, 3, {height}, {width}) or (B, T, 3, {height}, {width}), got {tuple(images.shape)}"
        )
    if frame_mask is not None and (images.ndim == 4 or frame_mask.shape != images.shape[:2]):
        raise ValueError(
            "frame_mask must be (B, T) of a clip (B, T, 3, H, W), "
            f"got {tuple(frame_mask.shape)} for images {tuple(images.shape)}"
        )
    if frame_mask is not None and frame_mask.dtype != torch.bool:
        raise TypeError(f"frame_mask must be bool, True for frames that are there; got {frame_mask.dtype}")
    if camids is not None and (camids.shape != images.shape[:1] or camids.is_floating_point()):
        raise ValueError(
            f"camids must be ({images.shape[0]},) integers, one a person; got {camids.dtype} {tuple(camids.shape)}"
        )
