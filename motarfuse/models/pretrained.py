"""Loads public vision-transformer weights into a network's backbone, by name, without running any code of the file."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from motarfuse.errors import CheckpointError

# Keys under which training scripts nest the weights, and prefixes that wrappers put before the backbone's names.
_NESTS = ("state_dict", "model", "teacher", "net")
_PREFIXES = ("module.", "model.", "base.", "backbone.")
# Parts of a file that belong to another task or head: they are listed as unexpected and never loaded.
_OPTIONAL = ("camera_embed",)


@dataclass(frozen=True)
class LoadReport:
    """Which tensors of a file went where; names are the backbone's, ``unexpected`` the file's.

    Attributes:
        matched: Loaded as they are.
        resized: Loaded after a change of grid, as "name: 14x14 -> 16x8".
        missing: In the network and not in the file; they keep their initialisation.
        unexpected: In the file and not in the network.
    """

    matched: list[str]
    resized: list[str]
    missing: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} tensors matched"]
        for title, names in (("resized", self.resized), ("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
                parts.append(f"{len(names)} {title} ({shown})")
        return "; ".join(parts)


def load_pretrained(model: nn.Module, path: str | Path) -> LoadReport:
    """Loads a timm ViT, a TransReID-style or this project's own weight file into ``model.backbone``.

    Prefixes of wrappers are stripped, the position embedding is resized bilinearly to the network's grid, a head is
    left out. The model is changed only when every tensor fits.

    Args:
        model: A network whose ``backbone`` has timm's parameter names and a ``grid``.
        path: ``.safetensors``, a pickled state dict (read with ``weights_only=True``: tensors only, no code), or a
            checkpoint folder with ``model.safetensors``.

    Raises:
        CheckpointError: The file is absent, truncated, of another architecture, or holds anything but tensors.
    """
    path = Path(path)
    backbone = model.backbone
    assert isinstance(backbone, nn.Module)
    source = _strip(read_tensors(path / "model.safetensors" if path.is_dir() else path))
    target = backbone.state_dict()
    loaded: dict[str, Tensor] = {}
    resized = []
    for name in target:  # in the network's order, so that of several misfits the same one is always named
        if name not in source:
            continue
        tensor = source[name]
        if name == "pos_embed":
            tensor, change = _resize_positions(tensor, target[name], backbone.grid, path)  # type: ignore[arg-type]
            if change:
                resized.append(f"{name}: {change}")
        elif tensor.shape != target[name].shape and tensor.numel() == target[name].numel():
            tensor = tensor.reshape(target[name].shape)  # a patch projection kept as a matrix
        if tensor.shape != target[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, this network needs {tuple(target[name].shape)}; "
                "choose the model.size and model.patch that the file was trained with"
            )
        loaded[name] = tensor
    missing = sorted(target.keys() - loaded.keys())
    needed = [name for name in missing if name not in _OPTIONAL]
    if needed:
        raise CheckpointError(
            f"{path} lacks {len(needed)} of the backbone's {len(target)} tensors, the first of them {needed[0]}; "
            f"it holds {len(source)} tensors such as {', '.join(sorted(source)[:3]) or 'none'}: "
            "timm's ViT, TransReID's and this project's names are understood"
        )
    backbone.load_state_dict(loaded, strict=False)
    names = {entry.split(":")[0] for entry in resized}
    return LoadReport(
        sorted(loaded.keys() - names), resized, missing, sorted(name for name in source if name not in target)
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a pickled state dict, on the CPU.

    Raises:
        CheckpointError: The file is absent, truncated or holds anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"no weight file at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file ({error}); copy or download it again"
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, which could run code when loaded, or is no PyTorch file; "
            "convert it to safetensors where it comes from"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is truncated or no weight file ({reason}); copy or download it again") from error
    for nest in _NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
            break
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path} holds no named tensors (found {type(content).__name__}); a state dict is needed")
    return tensors


def _strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes wrappers' prefixes, which cover the backbone's names but not always those of a head beside it."""
    stripped = {}
    for name, tensor in tensors.items():
        short = name
        while short.startswith(_PREFIXES):
            short = short.split(".", 1)[1]
        stripped[short] = tensor
    return stripped


def _resize_positions(tensor: Tensor, target: Tensor, grid: tuple[int, int], path: Path) -> tuple[Tensor, str]:
    """Position embedding (1, 1 + N, D) resized to the grid; returns it and what was done ("" for nothing)."""
    if tensor.ndim != 3 or tensor.shape[2] != target.shape[2] or tensor.shape[1] < 2:
        return tensor, ""  # the caller's shape check names it
    if tensor.shape == target.shape:
        return tensor, ""
    rows, columns = _grid_of(tensor.shape[1] - 1, grid)
    cells = tensor[:, 1:].float().reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, size=grid, mode="bilinear", align_corners=False)
    resized = torch.cat([tensor[:, :1].float(), cells.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    return resized.to(target.dtype), f"{rows}x{columns} -> {grid[0]}x{grid[1]}"


def _grid_of(tokens: int, grid: tuple[int, int]) -> tuple[int, int]:
    """The source's grid: a square where possible (public ViTs), else the factors nearest to ``grid`` in aspect."""
    side = math.isqrt(tokens)
    if side * side == tokens:
        return side, side
    aspect = math.log(grid[0] / grid[1])
    pairs = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    return min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1]) - aspect))
