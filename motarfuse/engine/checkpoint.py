"""Checkpoints: a folder of safetensors and JSON, written atomically, checked by hash, loaded without running code.

``checkpoints/step-00000300/`` holds ``model.safetensors`` (the weights to use), ``training.safetensors`` (what only
resuming needs) and ``checkpoint.json`` (step, network, config, sizes and hashes of the two). Wherever a checkpoint is
only read, the name of a packaged network does as well.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from motarfuse import __version__
from motarfuse.engine.outputs import atomic_folder, output_errors, tensor_bytes, write_synced
from motarfuse.engine.settings import from_mapping
from motarfuse.errors import CheckpointError, ConfigError
from motarfuse.models import build_model, config_class
from motarfuse.models.packaged import known_packaged, load_packaged, packaged_card, packaged_name, packaged_path

FORMAT = 1
MODEL = "model.safetensors"
TRAINING = "training.safetensors"
INDEX = "checkpoint.json"

_STEP = re.compile(r"step-(\d{8,})")


@dataclass
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        path: Its folder.
        metadata: The content of ``checkpoint.json``: ``step``, ``model`` (name and config), ``config``, ``state``, ...
        model: Weights of the network by name.
        training: Tensors that only resuming needs (optimizer, classifier, ...).
    """

    path: Path
    metadata: dict[str, Any]
    model: dict[str, Tensor]
    training: dict[str, Tensor]


def checkpoint_name(step: int) -> str:
    """Name of a step's folder."""
    return f"step-{step:08d}"


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    model: Mapping[str, Tensor],
    model_name: str,
    model_config: Mapping[str, Any],
    training: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
    state: Mapping[str, Any] | None = None,
    keep: int | None = None,
) -> Path:
    """Writes ``folder/step-<step>`` atomically, and then deletes older checkpoints beyond ``keep``.

    Args:
        folder: Folder of a run's checkpoints.
        step: Optimizer steps done.
        model: Weights by name.
        model_name, model_config: What :func:`motarfuse.models.build_model` needs.
        training: Tensors that resuming needs.
        config: The run's whole config in plain values.
        state: Small values that resuming needs.
        keep: Number of latest checkpoints to keep; None keeps all.

    Returns:
        The checkpoint's folder.

    Raises:
        OutputError: It cannot be written; earlier checkpoints are untouched.
    """
    path = folder / checkpoint_name(step)
    with atomic_folder(path) as partial:
        files = {}
        for name, tensors in ((MODEL, model), (TRAINING, training or {})):
            content = tensor_bytes(tensors)
            write_synced(partial / name, content)
            files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        metadata = {
            "format": FORMAT,
            "motarfuse": __version__,
            "torch": torch.__version__,
            "step": step,
            "model": {"name": model_name, "config": dict(model_config)},
            "files": files,
            "state": dict(state or {}),
            "config": dict(config) if config is not None else None,
        }
        write_synced(partial / INDEX, (json.dumps(metadata, indent=2, allow_nan=False) + "\n").encode())
    if keep is not None:
        for old in list_checkpoints(folder)[:-keep]:
            with output_errors(old):
                shutil.rmtree(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders by rising step; incomplete ones never have such a name."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a path means: a checkpoint's folder, the latest one of a run's folder, or a packaged network.

    Args:
        path: A folder, or the name of a packaged network; a folder or file of that name comes first.

    Returns:
        The checkpoint's folder, or a packaged network's weight file. It means itself.

    Raises:
        CheckpointError: There is none.
    """
    path = Path(path)
    packaged = packaged_name(path)
    if packaged is not None:
        return packaged_path(packaged)
    if (path / INDEX).is_file() or (_STEP.fullmatch(path.name) and path.is_dir()):
        return path
    if path.name in (MODEL, INDEX) and path.is_file():
        return path.parent
    for folder in (path / "checkpoints", path):
        found = list_checkpoints(folder)
        if found:
            return found[-1]
    what = "is a file" if path.is_file() else "holds no checkpoint" if path.is_dir() else "does not exist"
    raise CheckpointError(
        f"{path} {what}; give the folder of a run, or one of its checkpoints/step-... folders with {INDEX} and "
        f"{MODEL}, or the name of a packaged network where no file or folder has it ({known_packaged()})"
    )


def describe_checkpoint(path: str | Path, step: int) -> dict[str, Any]:
    """What a manifest notes about the checkpoint that features come from, for :func:`locate_checkpoint`.

    Args:
        path: As :func:`find_checkpoint`.
        step: Its training step.

    Returns:
        ``path`` (absolute), ``sha256`` of the weights, ``step``, and ``packaged``: the name of a packaged network.

    Raises:
        CheckpointError: It is absent or cannot be read.
    """
    found = find_checkpoint(path)
    name = packaged_name(found)
    file = found if name is not None else found / MODEL
    try:
        sha256 = file_sha256(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    entry = {"path": str(found.resolve()), "sha256": sha256, "step": step}
    return entry if name is None else {**entry, "packaged": name}


def locate_checkpoint(entry: Mapping[str, Any]) -> Path:
    """The checkpoint that a manifest's entry means; a packaged network is found where this installation has it.

    Raises:
        CheckpointError: It is not there any more.
    """
    name = entry.get("packaged")
    return find_checkpoint(str(entry["path"])) if name is None else packaged_path(str(name))


def read_metadata(path: Path) -> dict[str, Any]:
    """Content of a checkpoint's ``checkpoint.json``.

    Raises:
        CheckpointError: It is absent, damaged or of a newer format.
    """
    index = path / INDEX
    try:
        metadata = json.loads(index.read_text(encoding="utf-8"))
        version = metadata["format"]
        complete = {"step", "model", "files", "state", "config"} <= metadata.keys()
    except OSError as error:
        raise CheckpointError(f"cannot read {index}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is truncated or damaged ({error})") from error
    if version != FORMAT:
        raise CheckpointError(f"{index} has format {version}, this version reads format {FORMAT}; update motarfuse")
    if not complete:
        raise CheckpointError(f"{index} lacks some of its entries")
    result: dict[str, Any] = metadata
    return result


def load_checkpoint(path: str | Path, *, training: bool = True) -> Checkpoint:
    """Loads a checkpoint and checks its files against the sizes and hashes that it names.

    Args:
        path: A checkpoint's folder, a run's for its latest, or the name of a packaged network.
        training: Whether to load what only resuming needs.

    Raises:
        CheckpointError: It is absent, truncated or damaged; the file is named, and which older checkpoint is intact. Or
            it is a packaged network, and ``training`` was asked for.
    """
    folder = find_checkpoint(path)
    packaged = packaged_name(folder)
    if packaged is not None and training:
        raise CheckpointError(
            f"{packaged} is a packaged network, which holds no state of its training to go on from; "
            f"train.initial={packaged} starts from its weights"
        )
    if packaged is not None:
        return Checkpoint(folder, packaged_card(packaged), load_packaged(packaged).state_dict(), {})
    try:
        metadata = read_metadata(folder)
        model = _read_tensors(folder / MODEL, metadata)
        rest = _read_tensors(folder / TRAINING, metadata) if training else {}
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {_advice(folder)}") from error
    return Checkpoint(folder, metadata, model, rest)


def load_model(
    path: str | Path, *, device: str | torch.device = "cpu", announce: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a checkpoint in evaluation mode, and the checkpoint's metadata.

    Args:
        path: A checkpoint's folder, a run's for its latest, or the name of a packaged network.
        device: Where to put the network.
        announce: Whether to print, once a process, what a packaged network was trained on.

    Returns:
        The network, and ``step``, ``model`` (name and config) and more: ``checkpoint.json``, or the network's card.

    Raises:
        CheckpointError: The checkpoint is absent or damaged, or its weights do not fit the network that it names.
    """
    packaged = packaged_name(find_checkpoint(path))
    if packaged is not None:
        return load_packaged(packaged, device=device, announce=announce), packaged_card(packaged)
    checkpoint = load_checkpoint(path, training=False)
    name, values = checkpoint.metadata["model"]["name"], checkpoint.metadata["model"]["config"]
    try:
        model = build_model(name, from_mapping(config_class(name), values, "model"))
    except (ConfigError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.path / INDEX}: {error}; update motarfuse") from error
    load_weights(model, checkpoint.model, checkpoint.path / MODEL)
    return model.to(device).eval(), checkpoint.metadata


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Loads a state dict whose names and shapes all have to fit.

    Raises:
        CheckpointError: Names the first tensor that does not.
    """
    target = module.state_dict()
    for name, tensor in target.items():
        if name not in tensors:
            raise CheckpointError(f"{path} lacks the tensor {name}")
        if tensors[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, {tuple(tensor.shape)} is needed"
            )
    extra = sorted(tensors.keys() - target.keys())
    if extra:
        raise CheckpointError(f"{path} holds {len(extra)} tensors that the network does not have, such as {extra[0]}")
    module.load_state_dict(dict(tensors))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read_tensors(path: Path, metadata: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    expected = metadata["files"].get(path.name, {})
    if len(content) != expected.get("bytes"):
        raise CheckpointError(f"{path} is truncated: {len(content)} bytes instead of {expected.get('bytes')}")
    if hashlib.sha256(content).hexdigest() != expected.get("sha256"):
        raise CheckpointError(f"{path} is damaged: its SHA-256 differs from the one noted when it was written")
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file ({error})") from error


def _advice(broken: Path) -> str:
    """Which other checkpoint of the same run can be used instead."""
    for other in reversed(list_checkpoints(broken.parent)):
        if other == broken:
            continue
        try:
            metadata = read_metadata(other)
            for name in (MODEL, TRAINING):
                _read_tensors(other / name, metadata)
        except CheckpointError:
            continue
        return f"{other.name} beside it is intact: delete {broken} to go on from there"
    return "There is no intact checkpoint beside it"
