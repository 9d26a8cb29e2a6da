"""Reading what ``motarfuse extract`` writes: features, the images they belong to, the model they come from."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from motarfuse.errors import CheckpointError, DataError
from motarfuse.retrieval.features import PersonFeatures

FEATURES, TABLE, MANIFEST = "features.safetensors", "table.csv", "manifest.json"


@dataclass(frozen=True)
class FeatureFolder:
    """Features of many images.

    Attributes:
        path: The folder.
        features: ``feature`` (n, D), and where the network has parts ``part_features`` (n, L, D) and
            ``part_visibility`` (n, L); float32.
        paths: Place of each image; it need not exist any more.
        pids: Identities, -1 where unknown.
        camids: Cameras, -1 where unknown.
        manifest: ``manifest.json``.
    """

    path: Path
    features: PersonFeatures
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
    features = _read_tensors(folder / FEATURES)
    if features.has_parts != (manifest.get("parts") is not None):
        said = "names" if manifest.get("parts") is not None else "names no"
        raise CheckpointError(f"{folder}: {MANIFEST} {said} parts, {FEATURES} says otherwise; extract again")
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


def _read_tensors(file: Path) -> PersonFeatures:
    try:
        tensors = safetensors.torch.load_file(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{file} is truncated or damaged ({error}); extract again") from error
    sides = {name: tensor.dim() for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    if sides not in ({"feature": 2}, {"feature": 2, "part_features": 3, "part_visibility": 2}) or not _fit(tensors):
        found = ", ".join(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in tensors.items()) or "nothing"
        raise CheckpointError(
            f"{file} holds {found}; a table `feature` (n, D) of float32 is needed, alone or with `part_features` "
            "(n, L, D) and `part_visibility` (n, L)"
        )
    return PersonFeatures.from_tensors(tensors)


def _fit(tensors: Mapping[str, Tensor]) -> bool:
    """Whether features and parts are of equally many images, and parts have one visibility each."""
    if "part_features" not in tensors:
        return True
    people, parts, _ = tensors["part_features"].shape
    return len(tensors["feature"]) == people and tensors["part_visibility"].shape == (people, parts)


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
