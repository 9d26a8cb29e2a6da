"""Parts of one extraction, made by several processes or machines, and their union."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import torch

from motarfuse.engine.extractor import (
    FEATURES,
    MANIFEST,
    TABLE,
    ExtractResult,
    check_replaceable,
    parts_entry,
    table_bytes,
)
from motarfuse.engine.outputs import atomic_folder, tensor_bytes, write_json, write_synced
from motarfuse.errors import CheckpointError, DataError
from motarfuse.models.pretrained import read_tensors
from motarfuse.retrieval import PersonFeatures


def shard_folder(out: Path, index: int, count: int) -> Path:
    """Where a part of the extraction ``out`` lies: beside it, as ``<out>.shard-<index>-of-<count>``."""
    return out.with_name(f"{out.name}.shard-{index}-of-{count}")


def merge_shards(out: str | Path) -> ExtractResult:
    """Joins the parts of an extraction, in order, to what one process would have written.

    Args:
        out: The folder to write; its parts lie beside it (:func:`shard_folder`) and are left there.

    Returns:
        The whole extraction; ``skipped`` is empty, the manifest names the files.

    Raises:
        DataError: A part is missing, or two parts are of different checkpoints, sources or options.
        CheckpointError: A part's features are damaged.
        OutputError: The result cannot be written.
    """
    out = Path(out)
    pattern = re.compile(re.escape(out.name) + r"\.shard-(\d+)-of-(\d+)")
    found = {
        (int(match[1]), int(match[2])): path
        for path in (sorted(out.parent.iterdir()) if out.parent.is_dir() else [])
        if (match := pattern.fullmatch(path.name))
    }
    counts = {count for _, count in found}
    if len(counts) != 1:
        what = "no parts" if not counts else f"parts of {' and of '.join(str(count) for count in sorted(counts))}"
        raise DataError(f"{what} of {out} found beside it; extract --shard I/N writes {shard_folder(out, 0, 4).name}")
    count = counts.pop()
    missing = [index for index in range(count) if (index, count) not in found]
    if missing:
        raise DataError(
            f"{out}: part {missing[0]} of {count} is missing; run extract with --shard {missing[0]}/{count}"
        )
    manifests: list[dict[str, Any]] = []
    tables: list[dict[str, torch.Tensor]] = []
    lines: list[list[str]] = []
    for index in range(count):
        folder = found[index, count]
        manifest, rows = _read_part(folder)
        features = _read_features(folder, len(rows), manifest["parts"])
        if manifests and _essence(manifest) != _essence(manifests[0]):
            raise DataError(
                f"{folder} and {found[0, count]} differ in checkpoint, source or options; extract one again"
            )
        manifests.append(manifest)
        tables.append(features.tensors)
        lines.extend(rows)
    skipped = [item for manifest in manifests for item in manifest["skipped"]]
    frames = sum(manifest.get("num_frames", 0) for manifest in manifests)
    whole = {
        **manifests[0],
        "shard": {"index": 0, "count": 1},
        "num_images": len(lines),
        "num_skipped": len(skipped),
        "skipped": skipped,
        **({"num_frames": frames} if frames else {}),
    }
    check_replaceable(out)
    joined = {name: torch.cat([table[name] for table in tables]) for name in tables[0]}
    with atomic_folder(out) as partial:
        write_synced(partial / FEATURES, tensor_bytes(joined))
        write_synced(partial / TABLE, table_bytes(lines))
        write_json(partial / MANIFEST, whole)
    return ExtractResult(out, len(lines), [], 0.0, whole.get("num_frames", len(lines)), "clips" in whole)


def _read_part(folder: Path) -> tuple[dict[str, Any], list[list[str]]]:
    """A part's manifest and the lines of its table."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        with (folder / TABLE).open(newline="", encoding="utf-8") as file:
            _, *rows = csv.reader(file)
        _essence(manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is no complete extraction ({error}); extract it again") from error
    return manifest, rows


def _read_features(folder: Path, count: int, parts: dict[str, int] | None) -> PersonFeatures:
    """A part's features, of as many images as its table has lines and with the body parts that its manifest names."""
    tensors = read_tensors(folder / FEATURES)
    wrong = [f"{len(tensor)} rows of {name}" for name, tensor in tensors.items() if len(tensor) != count]
    if wrong or "feature" not in tensors:
        raise CheckpointError(f"{folder} has {', '.join(wrong) or 'no features'} for {count} lines; extract it again")
    try:
        features = PersonFeatures.from_tensors(tensors)
        found = parts_entry(features)
    except ValueError as error:
        raise CheckpointError(f"{folder / FEATURES}: {error}; extract it again") from error
    if found != parts:
        raise CheckpointError(f"{folder}: {MANIFEST} and {FEATURES} disagree about parts; extract it again")
    return features


def _essence(manifest: dict[str, Any]) -> tuple[Any, ...]:
    """What the parts of one extraction have in common."""
    keys = ("model", "image_size", "source", "split", "flip", "precision", "parts")
    return manifest["checkpoint"]["sha256"], manifest.get("clips"), *(manifest[key] for key in keys)
