"""Writes a SynthPed benchmark to disk in the layouts of Market-1501 and MARS, with its ground truth beside it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from motarfuse.console import track
from motarfuse.data.synthped import layout
from motarfuse.data.synthped.config import ALL_PROTOCOLS, PROTOCOLS, VERSION, VIDEO, SynthPedConfig
from motarfuse.data.synthped.dataset import BLOCK, SynthPed, SynthPedImages
from motarfuse.data.synthped.encode import FORMATS, JPEG_QUALITY, save_image
from motarfuse.data.synthped.occluders import OCCLUDERS
from motarfuse.data.synthped.scene import Shots
from motarfuse.data.synthped.video_write import write_video
from motarfuse.data.synthped.workers import draw_blocks
from motarfuse.errors import ConfigError, OutputError


def write_synthped(
    root: str | Path,
    config: SynthPedConfig | None = None,
    *,
    protocols: Sequence[str] = PROTOCOLS,
    image_format: str = "jpg",
    workers: int = 2,
    overwrite: bool = False,
    ground_truth: bool = True,
    **options: Any,
) -> Path:
    """Draws a benchmark and writes ``root/<protocol>/{bounding_box_train,query,bounding_box_test}``.

    The same configuration gives the same pixels before encoding; the bytes of a JPEG also depend on the version of
    Pillow's encoder, those of PNG decode to the drawn pixels exactly. Everything is written into a temporary folder
    beside ``root`` first, so that an interrupted run leaves nothing that looks like a benchmark.

    Args:
        root: The folder to create.
        config: What to draw; the defaults when None.
        protocols: Which of ``holistic``, ``occluded``, ``partial`` to write. Training set and gallery are the same in
            each and are written once (hard links, or copies where the file system has none). ``video``, which is
            written only when it is named, is one of tracklets: ``root/video/{bbox_train,bbox_test,info}`` in the
            layout of MARS, of people of its own.
        image_format: ``jpg`` (quality 92, chroma at half resolution) or ``png``.
        workers: Processes that draw and encode (threads where processes cannot be forked).
        overwrite: Replace a folder that exists. Only a benchmark written by this function is ever replaced.
        ground_truth: Also write ``root/ground_truth/<set>.npz``. Masks of videos are stored as they are drawn, so that
            memory does not grow with them.
        **options: Fields of `SynthPedConfig` to change, e.g. ``seed=1, train_ids=50``.

    Returns:
        The folder.

    Raises:
        ConfigError: For options that do not exist or contradict each other.
        OutputError: When the folder cannot be written; nothing is left behind then.
    """
    config = (config or SynthPedConfig()).with_options(**options)
    root = Path(root)
    _check(protocols, image_format, workers)
    _check_target(root, overwrite)
    synthped = SynthPed(config)
    temporary = root.parent / f".{root.name}.{uuid.uuid4().hex[:8]}.partial"
    with _output_errors(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            images = [name for name in protocols if name != VIDEO]
            counts = _write_all(synthped, temporary, images, image_format, workers, ground_truth)
            video = {}
            if VIDEO in protocols:
                video = write_video(config, temporary, image_format, workers, ground_truth)
            manifest = {
                "dataset": "SynthPed",
                "version": VERSION,
                "config": config.to_dict(),
                "protocols": {name: SynthPed.protocol(name) for name in images},
                "images": counts,
                "image_format": image_format,
                "jpeg_quality": JPEG_QUALITY if image_format == "jpg" else None,
                "parts": list(layout.PARTS),
                "keypoints": list(layout.KEYPOINTS),
                "occluders": list(OCCLUDERS),
            }
            if video:
                manifest["video"] = video
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            _replace(root, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return root


def _check(protocols: Sequence[str], image_format: str, workers: int) -> None:
    unknown = [name for name in protocols if name not in ALL_PROTOCOLS]
    if unknown or isinstance(protocols, str) or len(protocols) == 0:
        raise ConfigError(f"synthped: protocols must be some of {', '.join(ALL_PROTOCOLS)}, got {protocols!r}")
    if image_format not in FORMATS:
        raise ConfigError(f"synthped: image_format must be one of {', '.join(FORMATS)}, got {image_format!r}")
    if workers < 1:
        raise ConfigError(f"synthped: workers must be at least 1, got {workers}")


def _check_target(root: Path, overwrite: bool) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise OutputError(f"{root} is a file; name a folder that does not exist yet")
    with _output_errors(root):
        if not any(root.iterdir()):
            return
    if not overwrite:
        raise OutputError(f"{root} is not empty; name another folder, or overwrite it (overwrite=True, --overwrite)")
    if not _is_benchmark(root):
        raise OutputError(
            f"{root} holds something that is not a SynthPed benchmark and is not overwritten; name another folder"
        )


def _is_benchmark(root: Path) -> bool:
    try:
        manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("dataset") == "SynthPed"


def _replace(root: Path, new: Path) -> None:
    """Puts the finished folder in place; what was there goes only after that."""
    if not root.exists():
        new.rename(root)
        return
    old = new.with_suffix(".old")
    root.rename(old)
    try:
        new.rename(root)
    except OSError:
        old.rename(root)
        raise
    shutil.rmtree(old)


@contextmanager
def _output_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = (
            "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose a folder that can be written"
        )
        raise OutputError(f"cannot write SynthPed to {root}: {reason}; {advice}") from error


def file_names(synthped: SynthPed, shots: Shots, image_format: str = "jpg") -> list[str]:
    """Market-1501 names: person, camera, sequence, frame (unique within person and camera), box."""
    pids = synthped.pids(shots)
    frames: dict[tuple[int, int], int] = {}
    names = []
    for pid, camera, key in zip(pids.tolist(), shots.camera.tolist(), shots.key.tolist(), strict=True):
        count = frames.get((pid, camera), 0) + 1
        frames[pid, camera] = count
        # Frames of different sets never meet: ten thousand each, the set's number first.
        names.append(f"{pid:04d}_c{camera + 1}s1_{key // 10_000_000 * 10_000 + count:06d}_00.{image_format}")
    return names


def _write_all(
    synthped: SynthPed, root: Path, protocols: Sequence[str], image_format: str, workers: int, ground_truth: bool
) -> dict[str, int]:
    """Every set goes to the first protocol that uses it and is linked into the others."""
    homes: dict[str, Path] = {}
    links: list[tuple[str, Path]] = []
    for protocol in protocols:
        for folder, name in SynthPed.protocol(protocol).items():
            target = root / protocol / folder
            target.mkdir(parents=True)
            if name in homes:
                links.append((name, target))
            else:
                homes[name] = target
    names = {name: file_names(synthped, synthped.shots(name), image_format) for name in homes}
    blocks = [
        _Block(synthped.config, name, start, homes[name], tuple(names[name][start : start + BLOCK]))
        for name in homes
        for start in range(0, len(names[name]), BLOCK)
    ]
    if ground_truth and homes:
        (root / "ground_truth").mkdir()
    drawn: dict[str, list[SynthPedImages]] = {name: [] for name in homes}
    # Closed before anybody removes the folder, so that no worker still writes into it.
    with closing(draw_blocks(blocks, workers)) as results:
        for block, images in track(results, "drawing SynthPed", total=len(blocks)):
            if not ground_truth:
                continue
            drawn[block.name].append(images)
            if sum(len(part) for part in drawn[block.name]) == len(names[block.name]):
                _write_truth(root / "ground_truth" / f"{block.name}.npz", names[block.name], drawn.pop(block.name))
    for name, target in links:
        for file_name in names[name]:
            _link(homes[name] / file_name, target / file_name)
    return {name: len(names[name]) for name in homes}


@dataclass(frozen=True)
class _Block:
    """Some images of a set, which one worker draws and writes."""

    config: SynthPedConfig
    name: str
    start: int
    folder: Path
    file_names: tuple[str, ...]

    def draw(self) -> SynthPedImages:
        """Writes the images and returns what is known of them."""
        synthped = SynthPed(self.config)
        rows = slice(self.start, self.start + len(self.file_names))
        images = synthped.draw(synthped.shots(self.name).take(rows))
        for pixels, file_name in zip(images.images, self.file_names, strict=True):
            save_image(pixels, self.folder / file_name)
        return images.without_pixels()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        shutil.copyfile(source, target)  # file systems without hard links


def _write_truth(path: Path, names: list[str], blocks: list[SynthPedImages]) -> None:
    """An ``.npz``; fast compression, because masks are small in any case."""
    truth = SynthPedImages.join(blocks)
    arrays = {
        "names": np.asarray(names),
        "pids": truth.pids.astype(np.int32),
        "camids": truth.camids.astype(np.int32),
        "parts": truth.parts,
        "amodal": truth.amodal,
        "keypoints": truth.keypoints,
        "visibility": truth.visibility,
        "occluded_share": truth.occluded_share,
        "in_frame": truth.in_frame,
        "occluder": truth.occluder.astype(np.int8),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
