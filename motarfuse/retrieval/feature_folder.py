"""Reading what ``motarfuse extract`` writes: features, the images they belong to, the model they come from."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from motarfuse.errors import CheckpointError, DataError

FEATURES, TABLE, MANIFEST = "features.safetensors", "table.csv", "manifest.json"


@dataclass(frozen=True)
class FeatureFolder:
    """Features of many images.

    Attributes:
        path: The folder.
        features: (n, D) float32.
        paths: Place of each image; it need not exist any more.
        pids: Identities, -1 where unknown.
        camids: Cameras, -1 where unknown.
        manifest: ``manifest.json``.
    """

    path: Path
    features: Tensor
    paths: list[Path]
    pids: list[int]
    camids: list[int]
    manifest: dict[str, Any]

    @property
    def checkpoint_path(self) -> str:
        """Where the model was when it made these features."""
        return str(self.manifest["checkpoint"]["path"])

    @property
    def checkpoint_sha256(self) -> str:
        """SHA-256 of that model's weights."""
        return str(self.manifest["checkpoint"]["sha256"])


def read_features(folder: str | Path) -> FeatureFolder:
    """Reads a folder of features and checks that its three files belong together.

    Raises:
        DataError: Not such a folder, or an empty one.
        CheckpointError: One of its files is damaged, or they do not fit each other.
    """
    folder = Path(folder)
    missing = [name for name in (FEATURES, TABLE, MANIFEST) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} holds no features ({', '.join(missing)} not found); `motarfuse extract` writes such a folder"
        )
    manifest = _read_manifest(folder / MANIFEST)
    features = _read_tensor(folder / FEATURES)
    base = Path(str(manifest.get("source", "")))
    paths, pids, camids = _read_table(folder / TABLE, base)
    if len(features) != len(paths):
        raise CheckpointError(f"{folder}: {len(features)} features but {len(paths)} images in {TABLE}; extract again")
    if len(features) == 0:
        raise DataError(f"{folder} holds no features of any image")
    return FeatureFolder(folder, features, paths, pids, camids, manifest)


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        names_model = {"path", "sha256"} <= manifest["checkpoint"].keys()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); extract again") from error
    if not names_model:
        raise CheckpointError(f"{file} does not name its checkpoint's path and sha256; extract again")
    result: dict[str, Any] = manifest
    return result


def _read_tensor(file: Path) -> Tensor:
    try:
        tensors = safetensors.torch.load_file(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{file} is truncated or damaged ({error}); extract again") from error
    feature = tensors.get("feature")
    if feature is None or feature.dim() != 2 or feature.dtype != torch.float32:
        found = ", ".join(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in tensors.items()) or "nothing"
        raise CheckpointError(f"{file} holds {found}; a table `feature` (n, D) of float32 is needed")
    return feature


def _read_table(file: Path, base: Path) -> tuple[list[Path], list[int], list[int]]:
    paths: list[Path] = []
    pids: list[int] = []
    camids: list[int] = []
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                path, pid, camid = base / row["path"], int(row["pid"]), int(row["camid"])
                paths.append(path)
                pids.append(pid)
                camids.append(camid)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged at image {len(paths) + 1} ({error}); extract again") from error
    return paths, pids, camids
