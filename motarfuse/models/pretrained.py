"""Loads public vision-transformer weights into a network's backbone, by name, without running any code of the file."""

from __future__ import annotations

import math
import pickle
import re
import struct
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from motarfuse.errors import CheckpointError
from motarfuse.models.clip_names import from_clip
from motarfuse.models.packaged import announce_packaged, packaged_name, packaged_path, packaged_tensors

# Keys under which training scripts nest the weights, and prefixes that wrappers put before the backbone's names.
_NESTS = ("state_dict", "model", "teacher", "net")
_PREFIXES = re.compile(r"(?:(?:module|model|base|backbone)\.)*")
_BACKBONES = ("base.", "backbone.")
# Tensors of the backbone that no public file has: they start as the zero vector of an unknown camera or the identity.
_OPTIONAL = ("camera_embed", "adapters.")
# Tensors that formats keep with fewer or more dimensions; any other of a wrong shape could be a transposed one.
_RESHAPED = ("patch_embed.proj.weight", "cls_token", "pos_embed")
# What torch raises where a file ends early or was overwritten; a cut pickle of the old format runs off its own end.
_BROKEN = (
    RuntimeError, EOFError, ValueError, LookupError, OSError, TypeError, AttributeError, AssertionError, struct.error
)  # fmt: skip
# TransReID's name of camera embeddings. Those of other cameras than the network's are left out, and reported.
_CAMERAS = "sie_embed"
# What a file may have beside the backbone's tensors only if the network computes with it.
_ESSENTIAL = re.compile(r"blocks\.\d+\.|norm_pre\.|patch_embed\.|reg_token|register_tokens|dist_token")
_BLOCK = re.compile(r"blocks\.(\d+)\.")
# TransReID's JPM runs all blocks but the last, then a block and a norm of each branch; the first is the global one.
_GLOBAL_BLOCK, _GLOBAL_NORM = "b1.0.", "b1.1."
_WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class LoadReport:
    """Which tensors of a file went where; names are the backbone's, ``unexpected`` the file's.

    Attributes:
        matched: Loaded as they are.
        resized: Loaded after a change of grid, as "name: 14x14 -> 16x8".
        missing: In the network and not in the file; they keep their initialisation.
        unexpected: In the file and not in the network.
        moved: Parts that the file has under another name than the network, as "b1.0 -> blocks.11": those of TransReID's
            global branch, in whose way the block and the norm of these names in the file do not lie.
    """

    matched: list[str]
    resized: list[str]
    missing: list[str]
    unexpected: list[str]
    moved: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} tensors matched"]
        for title in ("moved", "resized", "missing", "unexpected"):
            names = getattr(self, title)
            if names:
                shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
                parts.append(f"{len(names)} {title} ({shown})")
        return "; ".join(parts)


def load_pretrained(model: nn.Module, path: str | Path, *, source_grid: tuple[int, int] | None = None) -> LoadReport:
    """Loads a timm ViT, a TransReID-style, a CLIP or this project's own weight file into ``model.backbone``.

    Prefixes of wrappers are stripped, the position embedding is resized bilinearly to the network's grid, a head is
    left out. Of CLIP models the visual tower is taken, under OpenAI's, open_clip's or Hugging Face's names; the network
    needs ``encoder="clip_quickgelu"`` or ``"clip"`` then. Of TransReID with JPM the global branch is taken, whose last
    block and norm are ``b1``. The model is changed only when every tensor fits.

    Args:
        model: A network whose ``backbone`` has timm's parameter names and a ``grid``.
        path: ``.safetensors``, a pickled state dict (read with ``weights_only=True``: tensors only, no code), a
            checkpoint folder with ``model.safetensors``, or the name of a packaged network.
        source_grid: (rows, columns) of the file's position embedding; None: a square where that is possible with the
            class token's position or without (timm's ``no_embed_class``; it is zero then), else the factors of its
            number of patches that are nearest to the network's grid in aspect.

    Raises:
        CheckpointError: The file is absent, truncated, of another architecture, or holds anything but tensors.
    """
    return fill_backbone(model, read_backbone(path), source_grid)


class BackboneFile(NamedTuple):
    """A file's tensors under the backbone's names.

    Attributes:
        path: The file that was read.
        tensors: By name; those of a CLIP model's text side and of heads among them, under the file's names.
        outside: Names of tensors that the file itself tells apart from the backbone.
        moved: As of `LoadReport`.
    """

    path: Path
    tensors: dict[str, Tensor]
    outside: list[str]
    moved: list[str]


def read_backbone(path: str | Path) -> BackboneFile:
    """Reads a weight file as `load_pretrained` does, without a network.

    Raises:
        CheckpointError: The file is absent, truncated, or holds anything but tensors.
    """
    path, tensors = _read(Path(path))
    source, others = _strip(tensors)
    moved = _take_global_branch(source, others, path)
    source = from_clip(source, path) or source
    return BackboneFile(path, source, list(others), moved)


def camera_embeddings(tensors: dict[str, Tensor]) -> Tensor | None:
    """A file's embeddings (cameras, D): this project's, or those of TransReID, which keeps them as (cameras, 1, D)."""
    if "camera_embed" in tensors:
        return tensors["camera_embed"]
    given = tensors.get(_CAMERAS)
    return given[:, 0] if given is not None and given.ndim == 3 and given.shape[1] == 1 else None


def fill_backbone(
    model: nn.Module, file: BackboneFile, source_grid: tuple[int, int] | None = None, *, section: str = "model."
) -> LoadReport:
    """Puts a file's tensors into ``model.backbone``, all that it needs or none; arguments as of `load_pretrained`.

    Args:
        model: The network.
        file: What it is to be filled with.
        source_grid: As of `load_pretrained`.
        section: What stands before the names of settings in errors.

    Raises:
        CheckpointError: The file is of another architecture.
    """
    path, source, outside, moved = file
    backbone = model.backbone
    assert isinstance(backbone, nn.Module)
    target = backbone.state_dict()
    cameras = camera_embeddings(source)
    if cameras is not None and "camera_embed" in target and cameras.shape == target["camera_embed"].shape:
        source = {name: tensor for name, tensor in source.items() if name != _CAMERAS} | {"camera_embed": cameras}
    _check_architecture(source, target, path, section)
    loaded: dict[str, Tensor] = {}
    resized = []
    for name in target:  # in the network's order, so that of several misfits the same one is always named
        if name not in source:
            continue
        tensor = source[name]
        if name == "pos_embed":
            tensor, change = _resize_positions(tensor, target[name], backbone.grid, source_grid, path)  # type: ignore[arg-type]
            if change:
                resized.append(f"{name}: {change}")
        elif name in _RESHAPED and tensor.numel() == target[name].numel():
            tensor = tensor.reshape(target[name].shape)  # a patch projection kept as a matrix, a token as a vector
        if tensor.shape != target[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, this network needs {tuple(target[name].shape)}; "
                f"choose the {section}size and {section}patch that the file was trained with"
            )
        if tensor.dtype not in _WEIGHT_TYPES:
            raise CheckpointError(
                f"{path}: {name} has numbers of type {tensor.dtype}, as of a quantised network; floating-point weights "
                "of 16 bits or more are supported"
            )
        loaded[name] = tensor
    missing = sorted(target.keys() - loaded.keys())
    needed = [name for name in missing if not name.startswith(_OPTIONAL)]
    if needed:
        raise CheckpointError(
            f"{path} lacks {len(needed)} of the backbone's {len(target)} tensors, the first of them {needed[0]}; "
            f"it holds {len(source)} tensors such as {', '.join(sorted(source)[:3]) or 'none'}: "
            "timm's ViT, TransReID's, CLIP's and this project's names are understood"
        )
    backbone.load_state_dict(loaded, strict=False)
    changed = {entry.split(":")[0] for entry in resized}
    unexpected = [*(name for name in source if name not in target), *outside]
    return LoadReport(sorted(loaded.keys() - changed), resized, missing, sorted(unexpected), moved)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a pickled state dict, on the CPU.

    Raises:
        CheckpointError: The file is absent, truncated or holds anything but dense tensors of real numbers.
    """
    if not path.is_file():
        raise CheckpointError(f"no weight file at {path}")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
            _check_dense(content, path)
            return content
        with warnings.catch_warnings():  # a TorchScript archive is met by an error below, not by advice to run it
            warnings.filterwarnings("ignore", message=".*TorchScript", category=UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file ({error}); copy or download it again"
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, which could run code when loaded, or is no PyTorch file; "
            "convert it to safetensors where it comes from"
        ) from error
    except _BROKEN as error:
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript archive, a program that would run when loaded; where you trust it, save "
                "torch.jit.load(path).state_dict() as safetensors, or take the weights in another format"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is truncated or no weight file ({reason}); copy or download it again") from error
    for nest in _NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
            break
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path} holds no named tensors (found {type(content).__name__}); a state dict is needed")
    _check_dense(tensors, path)
    return tensors


def _check_dense(tensors: dict[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        kind = ""
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_nested:
            kind = f"is a {type(tensor).__name__} of another layout than a plain tensor's"
        elif tensor.layout != torch.strided:
            kind = f"is sparse ({tensor.layout})"
        elif tensor.is_quantized or tensor.is_complex():
            kind = f"has numbers of type {tensor.dtype}"
        elif tensor.device.type != "cpu":
            kind = f"has no numbers, being on the device {tensor.device}"
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            # A few bytes would become any amount of memory with the first operation.
            kind = f"has shape {tuple(tensor.shape)} and far fewer numbers in the file, as an expanded tensor"
        if kind:
            raise CheckpointError(f"{path}: {name[:100]} {kind}; dense tensors of real numbers are needed")


def _read(path: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file that a path or a packaged network's name means, and its tensors."""
    name = packaged_name(path)
    if name is not None:
        tensors = packaged_tensors(name)
        announce_packaged(name)
        return packaged_path(name), tensors
    return path, read_tensors(path / "model.safetensors" if path.is_dir() else path)


def _strip(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Removes wrappers' prefixes; returns the backbone's tensors and, where they are told apart, the others.

    A head beside the backbone may have names that the backbone has too (``norm.weight``), so that where any tensor is
    marked as the backbone's, only these are.
    """
    inside: dict[str, Tensor] = {}
    outside: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = _PREFIXES.match(name)
        prefix = found[0] if found else ""
        marked = any(backbone in prefix for backbone in _BACKBONES)
        (inside if marked else outside)[name[len(prefix) :]] = tensor
    return (inside, outside) if inside else (outside, {})


def _take_global_branch(source: dict[str, Tensor], others: dict[str, Tensor], path: Path) -> list[str]:
    """Puts the block and the norm of TransReID's global branch into the backbone, and those in their place aside.

    Returns:
        What was moved; nothing for a file without such branches.
    """
    if f"{_GLOBAL_BLOCK}attn.qkv.weight" not in others:
        return []
    last = f"blocks.{block_count(source, path) - 1}."
    moves = {_GLOBAL_BLOCK: last, _GLOBAL_NORM: "norm."}
    for branch, place in moves.items():
        given = {name.removeprefix(branch) for name in others if name.startswith(branch)}
        replaced = {name.removeprefix(place) for name in source if name.startswith(place)}
        if given != replaced:
            raise CheckpointError(
                f"{path} has branches (TransReID's JPM), but {branch}* and {place}* of the backbone differ by "
                f"{', '.join(sorted(given ^ replaced)[:3])}"
            )
        for name in sorted(given):
            others[f"base.{place}{name}"] = source[place + name]
            source[place + name] = others.pop(branch + name)
    return [f"{branch[:-1]} -> {place[:-1]}" for branch, place in moves.items()]


def block_count(tensors: dict[str, Tensor], path: Path) -> int:
    """1 + the largest number of a block; 0 without any.

    Raises:
        CheckpointError: A number is absurd.
    """
    numbers = {found[1] for name in tensors if (found := _BLOCK.match(name))}
    for number in numbers:
        if len(number) > 4:
            raise CheckpointError(f"{path} holds a block of number {number[:8]}...: it is no vision transformer")
    return 1 + max(map(int, numbers), default=-1)


def _check_architecture(source: dict[str, Tensor], target: dict[str, Tensor], path: Path, section: str) -> None:
    """Refuses a file whose network computes otherwise than this one, although all that this one has may be in it."""
    norms_first = "norm_pre.weight" in source
    if norms_first and "norm_pre.weight" not in target:
        raise CheckpointError(
            f"{path} is a CLIP visual tower (a layer norm before the blocks), which this network is not; set "
            f"{section}encoder=clip_quickgelu for weights trained with QuickGELU (OpenAI's), {section}encoder=clip for "
            "those trained with GELU (most of open_clip's); the file does not tell which"
        )
    if not norms_first and "norm_pre.weight" in target and "blocks.0.norm1.weight" in source:
        raise CheckpointError(
            f"{path} is a plain ViT without the layer norm before the blocks that CLIP's have; set {section}encoder=vit"
        )
    block_count(source, path)
    depth = block_count(target, path)
    for name in source:
        if name in target or not _ESSENTIAL.match(name):
            continue
        if name.startswith("blocks.") and int(name.split(".")[1]) >= depth:
            continue  # a deeper network's last blocks are left out, and reported
        raise CheckpointError(
            f"{path} holds {name}, with which this network cannot compute; plain pre-LN ViTs are supported "
            "(timm's, TransReID's, CLIP's), without layer scale, register tokens or relative positions"
        )


def _resize_positions(
    tensor: Tensor, target: Tensor, grid: tuple[int, int], source_grid: tuple[int, int] | None, path: Path
) -> tuple[Tensor, str]:
    """Position embedding ((1,) 1 + N, D) resized to the grid; returns it and what was done ("" for nothing)."""
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim != 3 or tensor.shape[2] != target.shape[2] or tensor.shape[1] < 2:
        return tensor, ""  # the caller's shape check names it
    count = tensor.shape[1]
    if tensor.shape == target.shape and (source_grid is None or tuple(source_grid) == grid):
        return tensor, ""
    rows, columns = _grid_of(count, grid, path) if source_grid is None else source_grid
    if count - rows * columns not in (0, 1):
        raise CheckpointError(f"{path}: pos_embed has {count - 1} patches, which are no grid of {(rows, columns)}")
    slots = count - rows * columns
    cells = tensor[:, slots:].float().reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, size=grid, mode="bilinear", align_corners=False)
    token = tensor[:, :1].float() if slots else cells.new_zeros(1, 1, cells.shape[1])
    resized = torch.cat([token, cells.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    without = "" if slots else " without a class token's position"
    return resized.to(target.dtype), f"{rows}x{columns}{without} -> {grid[0]}x{grid[1]}"


def _grid_of(count: int, grid: tuple[int, int], path: Path) -> tuple[int, int]:
    """The source's grid of ``count`` positions: a square where possible (public ViTs), else the factors of one less
    that are nearest to ``grid`` in aspect."""
    tokens = count - 1
    aspect = math.log(grid[0] / grid[1])
    lower = [rows for rows in range(1, math.isqrt(tokens) + 1) if tokens % rows == 0]
    pairs = [pair for rows in lower for pair in ((rows, tokens // rows), (tokens // rows, rows))]
    nearest = min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1]) - aspect))
    if _is_square(tokens):
        return lower[-1], lower[-1]
    if not _is_square(count):
        return nearest
    side = math.isqrt(count)
    if nearest[0] * grid[1] == nearest[1] * grid[0]:
        raise CheckpointError(
            f"{path}: pos_embed has {count} positions, which are {side}x{side} without a class token's or "
            f"{nearest[0]}x{nearest[1]} with one; give source_grid"
        )
    return side, side


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number
