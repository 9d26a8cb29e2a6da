"""Writes SynthPed's video protocol to disk in the layout of MARS, with its ground truth beside it."""

from __future__ import annotations

import shutil
import zipfile
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from motarfuse.console import track
from motarfuse.data.synthped.config import VIDEO, SynthPedConfig
from motarfuse.data.synthped.encode import save_image
from motarfuse.data.synthped.video import SynthPedFrames, SynthPedVideo
from motarfuse.data.synthped.video_scene import Tracklets
from motarfuse.data.synthped.workers import draw_blocks

# Frames that a worker draws at once. Whole tracklets, so that a block may be larger.
BLOCK = 256
FOLDERS = {"video_train": "bbox_train", "video_test": "bbox_test"}


def write_video(
    config: SynthPedConfig, root: Path, image_format: str, workers: int, ground_truth: bool
) -> dict[str, Any]:
    """Draws all tracklets into ``root/video``; returns what a manifest says of them.

    The layout is that of MARS: ``bbox_train/0001/0001C1T0001F001.jpg`` (person, camera and tracklet from 1, frame) and
    the same in ``bbox_test``. The tables that MARS has as ``.mat`` are text, one row of integers a line, counted from
    1: ``info/tracks_train_info.txt`` and ``tracks_test_info.txt`` with first and last line of ``train_name.txt`` or
    ``test_name.txt``, person (0 a distractor) and camera of each tracklet, and ``query_idx.txt`` with rows of
    ``tracks_test_info.txt``.
    """
    video = SynthPedVideo(config)
    home = root / VIDEO
    (home / "info").mkdir(parents=True)
    about: dict[str, Any] = {"folders": FOLDERS, "tracklets": {}, "images": {}, "same_clothes": {}}
    for name, folder in FOLDERS.items():
        tracklets = video.tracklets(name)
        row, frame = video.frame_rows(tracklets)
        names = frame_names(tracklets, row, frame, image_format)
        for pid in sorted(set(tracklets.pid.tolist())):
            (home / folder / f"{pid:04d}").mkdir(parents=True)
        (home / folder).mkdir(exist_ok=True)
        _write_info(home / "info", name.removeprefix("video_"), tracklets, names)
        if name == "video_test":
            _write_rows(home / "info" / "query_idx.txt", video.queries(tracklets)[:, None] + 1)
        _draw(video, name, tracklets, names, home / folder, root if ground_truth else None, workers)
        about["tracklets"][name], about["images"][name] = len(tracklets), len(names)
        about["same_clothes"][name] = video.same_clothes(name)
    return about


def frame_names(
    tracklets: Tracklets, row: NDArray[np.int64], frame: NDArray[np.int64], image_format: str = "jpg"
) -> list[str]:
    """MARS names of frames: person, camera, tracklet of the person in the camera, number of the frame."""
    stems = [
        f"{pid:04d}C{camera + 1}T{number:04d}"
        for pid, camera, number in zip(
            tracklets.pid.tolist(), tracklets.camera.tolist(), tracklets.number.tolist(), strict=True
        )
    ]
    return [f"{stems[i]}F{k:03d}.{image_format}" for i, k in zip(row.tolist(), frame.tolist(), strict=True)]


def _write_info(folder: Path, split: str, tracklets: Tracklets, names: list[str]) -> None:
    (folder / f"{split}_name.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    last = np.cumsum(tracklets.length)
    rows = np.stack([last - tracklets.length + 1, last, tracklets.pid, tracklets.camera + 1], axis=1)
    _write_rows(folder / f"tracks_{split}_info.txt", rows)


def _write_rows(path: Path, rows: NDArray[np.int64]) -> None:
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows.tolist()), encoding="utf-8")


def _draw(
    video: SynthPedVideo,
    name: str,
    tracklets: Tracklets,
    names: list[str],
    folder: Path,
    truth_root: Path | None,
    workers: int,
) -> None:
    ends = np.cumsum(tracklets.length)
    blocks = [
        _Block(
            video.config,
            tracklets.take(rows),
            rows.start,
            folder,
            tuple(names[ends[rows.start] - tracklets.length[rows.start] : ends[rows.stop - 1]]),
        )
        for rows in video.blocks(tracklets, BLOCK)
    ]
    with ExitStack() as stack:
        truth = None
        if truth_root is not None:
            truth = stack.enter_context(_TruthFile(truth_root / "ground_truth" / f"{name}.npz", names))
        # Closed before anybody removes the folder, so that no worker still writes into it.
        results = stack.enter_context(closing(draw_blocks(blocks, workers)))
        for _, frames in track(results, f"drawing SynthPed, {name}", total=len(blocks)):
            if truth is not None:
                truth.append(frames)


@dataclass(frozen=True)
class _Block:
    """Some tracklets of a set, which one worker draws and writes."""

    config: SynthPedConfig
    tracklets: Tracklets
    first: int  # row of the first one in its set
    folder: Path
    file_names: tuple[str, ...]

    def draw(self) -> SynthPedFrames:
        """Writes the frames and returns what is known of them."""
        frames = SynthPedVideo(self.config).draw(self.tracklets, self.first)
        for pixels, file_name in zip(frames.truth.images, self.file_names, strict=True):
            save_image(pixels, self.folder / file_name[:4] / file_name)
        return frames.without_pixels()


class _TruthFile:
    """An ``.npz`` of the ground truth whose masks never lie in memory as a whole.

    A member of an archive is written in one go, so that masks wait in files of their own until the last block has come.
    """

    MASKS = ("parts", "amodal")

    def __init__(self, path: Path, names: list[str]) -> None:
        self.path, self.names = path, names
        self.blocks: list[SynthPedFrames] = []
        self.raw = {mask: path.with_name(f".{path.stem}.{mask}") for mask in self.MASKS}
        self.shape: tuple[int, ...] = ()

    def __enter__(self) -> _TruthFile:
        self.path.parent.mkdir(exist_ok=True)
        self.stack = ExitStack()
        self.files: dict[str, BinaryIO] = {
            mask: self.stack.enter_context(path.open("wb")) for mask, path in self.raw.items()
        }
        return self

    def append(self, frames: SynthPedFrames) -> None:
        """The next rows."""
        for mask, file in self.files.items():
            values = getattr(frames.truth, mask)
            self.shape = values.shape[1:]
            file.write(np.ascontiguousarray(values).data)
        bare = {mask: getattr(frames.truth, mask)[:0].copy() for mask in self.MASKS}
        self.blocks.append(SynthPedFrames(replace(frames.truth, **bare), frames.tracklet, frames.frame, frames.phase))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()
        if kind is None and self.blocks:
            self._pack()
        for path in self.raw.values():
            path.unlink()

    def _pack(self) -> None:
        known = SynthPedFrames.join(self.blocks)
        arrays = {
            "names": np.asarray(self.names),
            "pids": known.truth.pids.astype(np.int32),
            "camids": known.truth.camids.astype(np.int32),
            "tracklets": known.tracklet.astype(np.int32),
            "frames": known.frame.astype(np.int32),
            "phase": known.phase,
            "keypoints": known.truth.keypoints,
            "visibility": known.truth.visibility,
            "occluded_share": known.truth.occluded_share,
            "in_frame": known.truth.in_frame,
            "occluder": known.truth.occluder.astype(np.int8),
        }
        with zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
            for mask, path in self.raw.items():
                shape = (len(known), *self.shape)
                with archive.open(f"{mask}.npy", "w", force_zip64=True) as file, path.open("rb") as raw:
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                    shutil.copyfileobj(raw, file, 1 << 20)
