"""Features of many images: a model over an image store, and ``extract``, which writes them to a folder."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from motarfuse import __version__, console
from motarfuse.data import (
    KINDS,
    VIDEO_KINDS,
    Clip,
    ClipSampling,
    ClipStore,
    EvalTransform,
    ImageRecord,
    ImageStore,
    Skipped,
    Tracklet,
)
from motarfuse.data.any_dataset import load_any_dataset
from motarfuse.data.files import scan_images
from motarfuse.engine.checkpoint import describe_checkpoint, find_checkpoint, load_model
from motarfuse.engine.config import DataConfig
from motarfuse.engine.device import autocast, choose_device
from motarfuse.engine.outputs import atomic_folder, tensor_bytes, write_json, write_synced
from motarfuse.engine.settings import require_positive
from motarfuse.engine.sources import Records, open_store
from motarfuse.errors import CheckpointError, DataError
from motarfuse.retrieval import PersonFeatures

FEATURES = "features.safetensors"
TABLE = "table.csv"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ExtractResult:
    """What ``extract`` wrote.

    Attributes:
        out: The folder.
        count: Images or tracklets with features.
        skipped: Files that could not be read, with the reasons.
        seconds: Wall time of reading and encoding.
        num_images: Images seen; frames, of tracklets.
        has_tracklets: Whether the features are of tracklets.
    """

    out: Path
    count: int
    skipped: list[Skipped]
    seconds: float
    num_images: int = 0
    has_tracklets: bool = False


@torch.no_grad()
def encode(
    model: nn.Module,
    images: ImageStore | Sequence[str | Path],
    *,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    flip: bool = False,
    workers: int = 2,
    description: str = "encoding",
) -> tuple[PersonFeatures, list[int]]:
    """Features of images in their order, with body parts where the network has them.

    Args:
        model: A network, in whatever mode; it is evaluated in evaluation mode and given back as it was.
        images: A store of the network's image size, or paths.
        batch_size: Images a forward pass; the features do not depend on it beyond rounding.
        device: Where to compute; the model is moved there.
        precision: "fp32", "bf16" or "fp16" (autocast).
        flip: Whether to average ``feature`` over each image and its mirror image. Parts are those of the image as it
            is: a mirror image swaps left and right, so that its part k may be another limb with another visibility.
        workers: Decoding threads, for paths.
        description: Text of the progress bar.

    Returns:
        Features in float32 on the CPU, D values an image and L (D + 1) more for L parts; and the n indices into
        ``images.records`` (or into the paths) that could be read.

    Raises:
        DataError: No image can be read.
    """
    device = torch.device(device)
    if not isinstance(images, ImageStore):
        records = [ImageRecord(Path(path), -1, -1) for path in images]
        with ImageStore(records, model.image_size, cache="disk", workers=workers, verify=False) as store:  # type: ignore[arg-type]
            return encode(
                model,
                store,
                batch_size=batch_size,
                device=device,
                precision=precision,
                flip=flip,
                description=description,
            )
    transform = EvalTransform()
    camids = torch.tensor(images.camids)
    table: dict[str, Tensor] = {}
    kept: list[int] = []
    was_training = model.training
    model.to(device).eval()
    try:
        with console.progress(description, len(images)) as bar:
            for indices, pixels in images.stream(batch_size):
                batch = transform(pixels.to(device, non_blocking=True))
                cameras = camids[indices].to(device)
                with autocast(device, precision):
                    found = {
                        name: tensor.float()
                        for name, tensor in PersonFeatures.of(model(batch, cameras)).tensors.items()
                    }
                    if flip:
                        found["feature"] = (found["feature"] + model(batch.flip(-1), cameras).feature.float()) / 2
                for name, tensor in found.items():
                    # Made once at full size: joining batches in the end would take all of it twice.
                    if name not in table:
                        table[name] = torch.empty(len(images), *tensor.shape[1:], dtype=torch.float32)
                    table[name][len(kept) : len(kept) + len(indices)] = tensor
                kept.extend(indices)
                bar.advance(bar.task_ids[0], len(indices))
    finally:
        model.train(was_training)
    if not kept:
        raise DataError(f"none of the {len(images)} images can be read")
    return PersonFeatures.from_tensors(table).select(slice(len(kept))), kept


@torch.no_grad()
def encode_tracklets(
    model: nn.Module,
    store: ClipStore,
    sampling: ClipSampling,
    *,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    flip: bool = False,
    description: str = "encoding",
) -> tuple[PersonFeatures, list[int]]:
    """Features of tracklets in their order, each from the clips that a policy cuts.

    With n_c the frames of clip c: feature = sum_c n_c feature_c / sum_c n_c; part features likewise with the weights
    n_c visibility_ck, and visibility is the frames' mean. Clips of similar length share a batch.

    Args:
        model: A network, in whatever mode; it is evaluated in evaluation mode and given back as it was.
        store: Tracklets of the network's image size.
        sampling: Which frames are seen; nothing is drawn at random.
        batch_size: Frames a forward pass, padding included; one clip at least.
        device, precision, flip, description: As of :func:`encode`.

    Returns:
        Features in float32 on the CPU, a row a tracklet that could be read; and the indices of these into
        ``store.records``. Others are named by the store.

    Raises:
        DataError: No tracklet can be read.
    """
    device = torch.device(device)
    transform = EvalTransform()
    camids = torch.tensor(store.camids)
    # A stable order by length: little padding, and the same batches each time.
    clips = [Clip(number, part) for number, record in enumerate(store.records) for part in sampling.clips(len(record))]
    clips.sort(key=lambda clip: len(clip.frames))
    sums: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    was_training = model.training
    model.to(device).eval()
    try:
        with console.progress(description, len(clips)) as bar:
            for batch in store.prefetch(_groups(clips, batch_size), leave_out=True):
                bar.advance(bar.task_ids[0], len(batch.clips))
                if not batch.clips:
                    continue
                images = transform(batch.images.to(device, non_blocking=True))
                rows = torch.tensor([clip.tracklet for clip in batch.clips])
                cameras = camids[rows].to(device)
                mask, index = batch.frame_mask.to(device), batch.frame_index.to(device)
                with autocast(device, precision):
                    found = PersonFeatures.of(model(images, cameras, mask, index)).tensors
                    if flip:
                        found["feature"] = (found["feature"] + model(images.flip(-1), cameras, mask, index).feature) / 2
                share = {"feature": batch.frame_mask.sum(1, keepdim=True).float()}
                if "part_visibility" in found:
                    share["part_visibility"] = share["feature"]
                    share["part_features"] = (share["feature"] * found["part_visibility"].float().cpu())[..., None]
                for name, tensor in found.items():
                    if name not in sums:
                        sums[name] = torch.zeros(len(store), *tensor.shape[1:])
                        weights[name] = torch.zeros(len(store), *share[name].shape[1:])
                    sums[name].index_add_(0, rows, tensor.float().cpu() * share[name])
                    weights[name].index_add_(0, rows, share[name])
    finally:
        model.train(was_training)
    if not sums:
        raise DataError(f"none of the {len(store)} tracklets can be read")
    kept = (weights["feature"].squeeze(1) > 0).nonzero().squeeze(1)
    means = {name: (total / weights[name].clamp(min=1e-6))[kept] for name, total in sums.items()}
    return PersonFeatures.from_tensors(means), kept.tolist()


def _groups(clips: Sequence[Clip], batch_size: int) -> Iterable[list[Clip]]:
    """Clips in order, as many a batch as padded to the longest have ``batch_size`` frames."""
    group: list[Clip] = []
    for clip in clips:
        if group and max(len(group[-1].frames), len(clip.frames)) * (len(group) + 1) > batch_size:
            yield group
            group = []
        group.append(clip)
    if group:
        yield group


def source_records(source: str | Path, kind: str = "auto", split: str | None = None) -> Records:
    """The images or tracklets that a folder, a table or a dataset holds, in a fixed order.

    Args:
        source: Folder or CSV table.
        kind: "images": every image below the folder, without labels; a dataset's kind; "auto": a dataset with splits
            where one is recognised, else images.
        split: "train", "query" or "gallery" of a dataset; None takes all three.

    Raises:
        DataError: Nothing is there, nothing is recognised, or plain images have no such split.
    """
    root = Path(source).expanduser()
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    if kind == "auto":
        # Any folder of folders looks like one folder per identity: only who asks for `folder` means that.
        vague = {"folder", "tracklet-folder"}
        known = [name for name, one in (VIDEO_KINDS | KINDS).items() if name not in vague and one.detect(root)]
        kind = known[0] if known else "images"
    if kind != "images":
        dataset = load_any_dataset(root, kind)
        if split is not None:
            records: Records = dataset.subset(split)
            if not records:
                raise DataError(f"{root}: the split {split} is empty")
            return records
        return [*dataset.train, *dataset.query, *dataset.gallery]
    if split is not None:
        raise DataError(f"{root} is a folder of plain images, which has no split {split!r}; leave --split out")
    return [ImageRecord(path, -1, -1) for path in scan_images(root)]


def extract(
    checkpoint: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    kind: str = "auto",
    split: str | None = None,
    batch_size: int = 128,
    device: str = "auto",
    precision: str = "fp32",
    flip: bool = False,
    workers: int = 2,
    shard: tuple[int, int] = (0, 1),
    sampling: ClipSampling | None = None,
) -> ExtractResult:
    """Writes the features of all images of a source: ``features.safetensors``, ``table.csv`` and ``manifest.json``.

    Row i of ``feature`` (n, D) float32, not normalised, belongs to line i of the table; a network with parts adds
    ``part_features`` (n, L, D) and ``part_visibility`` (n, L), and the manifest's ``parts`` says how many and how wide
    they are (null: none). Files that cannot be read are left out, counted and named in the manifest. The folder appears
    when it is complete. A set of tracklets gives a row a tracklet: ``path`` is the frame in its middle, and the table
    has two columns more, ``tracklet`` (name) and ``frames`` (number).

    Args:
        checkpoint: A run's folder, a checkpoint's, or the name of a packaged network.
        source: Folder of crops (with subfolders), CSV table, or dataset.
        out: Folder to write; an earlier extraction of that name is replaced.
        kind, split: As :func:`source_records`.
        batch_size, device, precision, flip, workers: As :func:`encode`.
        shard: (i, n): the i-th of n contiguous parts of the images, counted from 0.
        sampling: Which frames of tracklets are seen; None: all, in clips of 8.

    Raises:
        CheckpointError, ConfigError, DataError, OutputError: What cannot be used, read or written, and why.
    """
    require_positive(batch_size=batch_size, workers=workers)
    target = choose_device(device)
    folder = find_checkpoint(checkpoint)
    model, metadata = load_model(folder, device=target)
    root = Path(source).expanduser()
    out = Path(out)
    check_replaceable(out)
    records = source_records(root, kind, split)
    part, parts = shard
    if not 0 <= part < parts:
        raise DataError(f"shard must be i/n with 0 <= i < n, got {part}/{parts}")
    records = records[len(records) * part // parts : len(records) * (part + 1) // parts]
    if not records:
        raise DataError(f"shard {part}/{parts} of {root} holds no images")
    start = time.perf_counter()
    # Every image is read once: nothing to keep in memory, nothing to check beforehand.
    data = DataConfig(cache="disk", workers=workers)
    sampling = ClipSampling() if sampling is None else sampling
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "device": target,
        "precision": precision,
        "flip": flip,
        "description": "extracting",
    }
    with open_store(records, model.image_size, data, verify=False) as store:  # type: ignore[arg-type]
        if isinstance(store, ClipStore):
            features, kept = encode_tracklets(model, store, sampling, **options)
        else:
            features, kept = encode(model, store, **options)
        skipped = list(store.skipped)
        has_tracklets = isinstance(store, ClipStore)
    seconds = time.perf_counter() - start
    if not features.is_finite():
        raise CheckpointError(f"{folder} gives features that are not finite; its weights are damaged or diverged")
    base = root if root.is_dir() else root.parent
    unreadable = {item.path for item in skipped}
    rows = [_row(records[index], base, unreadable) for index in kept]
    num_images = len(kept)
    if has_tracklets:
        used = [record for record in (records[index] for index in kept) if isinstance(record, Tracklet)]
        shown = [record.paths[place] for record in used for clip in sampling.clips(len(record)) for place in clip]
        num_images = sum(path not in unreadable for path in shown)
    manifest: dict[str, Any] = {
        "motarfuse": __version__,
        "checkpoint": describe_checkpoint(folder, metadata["step"]),
        "model": metadata["model"],
        "image_size": list(model.image_size),  # type: ignore[arg-type]
        "source": str(base.resolve()),
        "split": split,
        "shard": {"index": part, "count": parts},
        "flip": flip,
        "precision": precision,
        "parts": parts_entry(features),
        "num_images": len(kept),
        **({"clips": sampling.to_dict(), "num_frames": num_images} if has_tracklets else {}),
        "num_skipped": len(skipped),
        "skipped": [{"path": _relative(item.path, base), "reason": item.reason} for item in skipped],
    }
    with atomic_folder(out) as partial:
        write_synced(partial / FEATURES, tensor_bytes(features.tensors))
        write_synced(partial / TABLE, table_bytes(rows))
        write_json(partial / MANIFEST, manifest)
    return ExtractResult(out, len(kept), skipped, seconds, num_images, has_tracklets)


def _row(record: ImageRecord | Tracklet, base: Path, unreadable: set[Path]) -> tuple[object, ...]:
    labels = (_relative(record.path, base), record.pid, record.camid)
    if isinstance(record, Tracklet):
        return (*labels, record.name, sum(path not in unreadable for path in record.paths))
    return labels


def parts_entry(features: PersonFeatures) -> dict[str, int] | None:
    """How many parts features have and how wide they are, as a manifest says it; None without parts."""
    if not features.has_parts:
        return None
    _, count, width = features.require_parts()[0].shape
    return {"count": count, "width": width}


def check_replaceable(out: Path) -> None:
    """Refuses to replace a folder that is no extraction: it may hold somebody's images."""
    if out.is_dir() and {path.name for path in out.iterdir()} not in (set(), {FEATURES, TABLE, MANIFEST}):
        raise DataError(
            f"{out} holds other files than an extraction's ({FEATURES}, {TABLE}, {MANIFEST}) and is not replaced; "
            "choose another folder for the features"
        )


def _relative(path: Path, base: Path) -> str:
    """The path below ``base`` where it is, else absolute; always with slashes."""
    try:
        return path.relative_to(base).as_posix()
    except ValueError:
        return path.resolve().as_posix()


def table_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """The table of an extraction: a line (path, pid, camid) an image, and (..., tracklet, frames) a tracklet."""
    lines = list(rows)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "pid", "camid", "tracklet", "frames"][: len(lines[0]) if lines else 3])
    writer.writerows(lines)
    return text.getvalue().encode()
