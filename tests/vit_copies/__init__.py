"""Vision transformers with the structure of public ones: names of classes, modules and attributes, and how a forward
calls them. Small, written for the tests; what they do not need of a library is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tests.vit_copies import hugging_face, timm_like, torch_like

# Each takes images (B, 3, 32, 32) and returns a tensor.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "timm": timm_like.VisionTransformer,
    "transreid": timm_like.TransReID,
    "torchvision": torch_like.VisionTransformer,
    "openai_clip": torch_like.openai_tower,
    "open_clip": torch_like.open_clip_tower,
    "hf_clip": hugging_face.clip_tower,
    "hf_clip_v5": hugging_face.clip_tower_v5,
    "hf_vit": hugging_face.vit,
    "hf_vit_v5": hugging_face.vit_v5,
    "hf_dinov2": hugging_face.dinov2,
    "hf_dinov2_v5": hugging_face.dinov2_v5,
}


def build(name: str, **options: Any) -> nn.Module:
    """The model of a name."""
    return MODELS[name](**options)
