"""Builds the plain ViT that a checkpoint needs: a weight file in, a network out, nothing else to be known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from motarfuse.errors import CheckpointError
from motarfuse.models.pretrained import (
    BackboneFile,
    LoadReport,
    block_count,
    camera_embeddings,
    fill_backbone,
    read_backbone,
)
from motarfuse.models.vit_reid import SIZES, VitReID, VitReIDConfig

Encoder = Literal["vit", "clip", "clip_quickgelu"]
SizeName = Literal["nano", "tiny", "small", "base"]
# What only OpenAI's own files have beside the weights; these models were trained with QuickGELU.
_OPENAI = ("input_resolution", "context_length", "vocab_size")


def load_vit(
    path: str | Path,
    *,
    size: SizeName | None = None,
    image_size: tuple[int, int] | None = None,
    patch: int | None = None,
    stride: int | None = None,
    encoder: Encoder | None = None,
    num_cameras: int | None = None,
    source_grid: tuple[int, int] | None = None,
    drop_path: float = 0.0,
) -> tuple[VitReID, LoadReport]:
    """A `VitReID` with the weights of a file, whose width, depth, patch size and kind are read from its tensors.

    The file may be timm's, TransReID's, of a CLIP model (OpenAI's, open_clip's or Hugging Face's names) or this
    project's, as of `load_pretrained`. The position embedding is resized to the grid of ``image_size`` and ``stride``.
    The BNNeck is new, as such files have none for this network. Images must be normalised as those that the weights
    were trained with: CLIP's have mean (0.48145466, 0.4578275, 0.40821073) and standard deviation (0.26862954,
    0.26130258, 0.27577711).

    Args:
        path: ``.safetensors``, a pickled state dict (tensors only, no code is run), or a folder with
            ``model.safetensors``, whose ``config.json`` tells a CLIP model's activation.
        size: Which of this project's sizes; None: the one of the file's width and depth. Given, the last blocks of a
            deeper file are left out, and reported.
        image_size: (height, width) in pixels; None: the size's own, 256x128 for small and base.
        patch: None: the file's, which any other must equal.
        stride: Pixels between patches, smaller than the patch for overlapping ones (TransReID: 12 or 11); None: the
            patch, as no file tells it.
        encoder: None: ``vit``, or for a CLIP visual tower what the file or its ``config.json`` says of the activation.
        num_cameras: None: as many as the file has embeddings of cameras for.
        source_grid: (rows, columns) of the file's position embedding, where `load_pretrained` guesses it wrong (its
            report has the guess): 144 patches are taken for 12x12, though they may be 18x8.
        drop_path: As of `VitReIDConfig`.

    Returns:
        The network, in training mode on the CPU, and which tensors went where.

    Raises:
        CheckpointError: The file is absent, truncated, holds anything but tensors, is no such network or one of a size
            that this project has not; or it is a CLIP model that does not tell its activation and ``encoder`` is None.
        TypeError: ``image_size`` or ``source_grid`` is no pair of whole numbers.
        ValueError: ``image_size``, ``patch`` and ``stride`` contradict each other.
    """
    _check_pair("image_size", "(height, width) in pixels", image_size)
    _check_pair("source_grid", "(rows, columns)", source_grid)
    file = read_backbone(path)
    _check_kind(file)
    found_patch = _patch_of(file)
    if patch is not None and patch != found_patch:
        raise CheckpointError(f"{file.path} has patches of {found_patch} pixels, not {patch}; leave patch out")
    if num_cameras is None:
        num_cameras = _cameras_of(file)
    config = VitReIDConfig(
        size=_size_of(file) if size is None else size,
        image_size=image_size,
        patch=found_patch,
        stride=stride,
        drop_path=drop_path,
        num_cameras=num_cameras,
        encoder=_encoder_of(file) if encoder is None else encoder,
    )
    model = VitReID(config)
    return model, fill_backbone(model, file, source_grid, section="")


def _check_pair(name: str, meaning: str, pair: Any) -> None:
    is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(one, int) for one in pair)
    if pair is not None and not is_pair:
        raise TypeError(f"{name} must be {meaning}, got {pair!r}")


def _check_kind(file: BackboneFile) -> None:
    if any(name.startswith("adapters.") for name in file.tensors):
        raise CheckpointError(
            f"{file.path} is a MOTAR-FUSE network, whose blocks have adapters; build that and use load_pretrained, or "
            "load_packaged"
        )
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight"):
        if name not in file.tensors:
            shown = ", ".join(sorted(file.tensors)[:3]) or "none"
            raise CheckpointError(
                f"{file.path} has no {name}: it is no ViT with a class token under timm's, TransReID's, CLIP's or this "
                f"project's names; it holds {len(file.tensors)} tensors such as {shown}"
            )


def _size_of(file: BackboneFile) -> Any:
    """The name of the size with the file's width and depth."""
    width = file.tensors["cls_token"].shape[-1] if file.tensors["cls_token"].ndim else 0
    depth = block_count(file.tensors, file.path)
    for name, size in SIZES.items():
        if (size.dim, size.depth) == (width, depth):
            return name
    sizes = ", ".join(f"{name} ({size.dim} wide, {size.depth} blocks)" for name, size in SIZES.items())
    same_width = next((name for name, size in SIZES.items() if size.dim == width and size.depth < depth), None)
    hint = f"; size={same_width!r} takes its first {SIZES[same_width].depth} blocks" if same_width else ""
    raise CheckpointError(f"{file.path} is {width} wide and has {depth} blocks; supported: {sizes}{hint}")


def _cameras_of(file: BackboneFile) -> int:
    cameras = camera_embeddings(file.tensors)
    if cameras is None:
        return 0
    width = file.tensors["cls_token"].shape[-1]
    if cameras.ndim != 2 or cameras.shape[1] != width:
        raise CheckpointError(
            f"{file.path} has embeddings of cameras of shape {tuple(cameras.shape)}; (cameras, {width}) is needed"
        )
    return cameras.shape[0]


def _patch_of(file: BackboneFile) -> int:
    """The side of a patch in pixels, of a convolution's weight or one kept as a matrix."""
    weight: Tensor = file.tensors["patch_embed.proj.weight"]
    if weight.ndim == 4 and weight.numel() and weight.shape[1] == 3 and weight.shape[2] == weight.shape[3]:
        return weight.shape[3]
    side = math.isqrt(weight.shape[1] // 3) if weight.ndim == 2 else 0
    if side and 3 * side * side == weight.shape[1]:
        return side
    raise CheckpointError(
        f"{file.path}: patch_embed.proj.weight has shape {tuple(weight.shape)}; supported: square patches of RGB, "
        "(D, 3, p, p) or (D, 3 p p)"
    )


def _encoder_of(file: BackboneFile) -> Encoder:
    if "norm_pre.weight" not in file.tensors:
        return "vit"
    if any(name in file.tensors or name in file.outside for name in _OPENAI):
        return "clip_quickgelu"
    activation = _configured_activation(file.path if file.path.is_dir() else file.path.parent)
    if activation is not None:
        return "clip_quickgelu" if activation == "quick_gelu" else "clip"
    raise CheckpointError(
        f"{file.path} is a CLIP visual tower, and its tensors do not tell the activation it was trained with; give "
        "encoder='clip_quickgelu' for QuickGELU (OpenAI's weights) or encoder='clip' for GELU (most of open_clip's)"
    )


def _configured_activation(folder: Path) -> str | None:
    """What Hugging Face's ``config.json`` or open_clip's ``open_clip_config.json`` beside the file says."""
    config = _json(folder / "config.json")
    vision = config.get("vision_config")
    activation = (vision.get("hidden_act") if isinstance(vision, dict) else None) or config.get("hidden_act")
    if isinstance(activation, str):
        return activation
    settings = _json(folder / "open_clip_config.json").get("model_cfg")
    if isinstance(settings, dict):
        return "quick_gelu" if settings.get("quick_gelu") else "gelu"
    return None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is no JSON ({error}); it tells the activation of the weights beside it"
        ) from error
    return content if isinstance(content, dict) else {}
