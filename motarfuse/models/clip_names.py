"""The visual tower of a CLIP model under timm's parameter names.

OpenAI and open_clip pack query, key and value like timm; Hugging Face keeps three projections, which are stacked here.
Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from motarfuse.errors import CheckpointError


class _Layout(NamedTuple):
    """How a format names the tower beside its blocks: two names that tell it, and beginnings with timm's for each."""

    class_embedding: str
    pre_norm: str
    names: dict[str, str]


# The first one's class embedding ends with the second one's.
_LAYOUTS = (
    _Layout(
        "embeddings.class_embedding",
        "pre_layrnorm.weight",  # the format's own spelling
        {
            "embeddings.patch_embedding.": "patch_embed.proj.",
            "embeddings.class_embedding": "cls_token",
            "embeddings.position_embedding.weight": "pos_embed",
            "pre_layrnorm.": "norm_pre.",
            "post_layernorm.": "norm.",
        },
    ),
    _Layout(
        "class_embedding",
        "ln_pre.weight",
        {
            "conv1.": "patch_embed.proj.",
            "class_embedding": "cls_token",
            "positional_embedding": "pos_embed",
            "ln_pre.": "norm_pre.",
            "ln_post.": "norm.",
        },
    ),
)
_BLOCK = re.compile(r"(?:transformer\.resblocks|encoder\.layers)\.(\d+)\.(.+)")
_IN_BLOCK = {
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj.": "attn.proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
    "layer_norm1.": "norm1.",
    "layer_norm2.": "norm2.",
    "self_attn.out_proj.": "attn.proj.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}
_SPLIT = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)")


def from_clip(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor] | None:
    """Tensors of a CLIP file with the visual tower's under timm's names and all others under their own.

    Args:
        tensors: By name, without wrappers' prefixes; the tower may be the whole file (``conv1.weight``) or a part of it
            (``visual.conv1.weight``, ``image_encoder.conv1.weight``, ``vision_model.embeddings...``).
        path: The file, for errors.

    Returns:
        None if the file holds no CLIP visual tower.

    Raises:
        CheckpointError: A block has some of query, key and value, but not all.
    """
    found = _find_tower(tensors)
    if found is None:
        return None
    prefix, names = found
    renamed: dict[str, Tensor] = {}
    split: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix):
            renamed[name] = tensor
        elif (block := _BLOCK.fullmatch(inner)) is None:
            renamed[_replaced(inner, names) or name] = tensor
        elif part := _SPLIT.fullmatch(block[2]):
            split.setdefault(f"blocks.{block[1]}.attn.qkv.{part[2]}", {})[part[1]] = tensor
        else:
            renamed[f"blocks.{block[1]}.{_replaced(block[2], _IN_BLOCK) or block[2]}"] = tensor
    for name, parts in split.items():
        if len(parts) < 3 or len({part.shape for part in parts.values()}) > 1:
            shapes = ", ".join(f"{key} {tuple(part.shape)}" for key, part in sorted(parts.items()))
            raise CheckpointError(f"{path}: {name} needs q, k and v of one shape, the file has {shapes}")
        renamed[name] = torch.cat([parts[key] for key in "qkv"])
    return renamed


def _find_tower(tensors: dict[str, Tensor]) -> tuple[str, dict[str, str]] | None:
    """What stands before the tower's names, and how they go on."""
    for layout in _LAYOUTS:
        for name in tensors:
            prefix = name.removesuffix(layout.class_embedding)
            if prefix != name and prefix + layout.pre_norm in tensors:
                return prefix, layout.names
    return None


def _replaced(name: str, table: dict[str, str]) -> str | None:
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return None
