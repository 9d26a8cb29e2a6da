"""Crops of people written as tracklets in the layout of MARS while a video goes by."""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from motarfuse.data.boxes import TrackBox
from motarfuse.data.left_out import LeftOut
from motarfuse.data.tracklets import Box, Tracklet
from motarfuse.data.video import VideoFrame
from motarfuse.errors import ConfigError, DataError

IMAGE_FORMATS = ("jpg", "png")
MOST_IDENTITIES = 9999
SPLITS = ("test", "train")


@dataclass(frozen=True)
class CropConfig:
    """How crops are written.

    Attributes:
        split: "test" or "train", the half of the layout that the tracklets belong to.
        size: (height, width) that every crop is resized to, None for the size of its box.
        image_format: "jpg" or "png".
        quality: Of JPEG, 1 to 100.
        camera: Number of the camera in file names, 1 to 9; ``camid`` is one less.
        min_visibility: Least visibility of a crop, 0 to 1.
        min_length: Least number of crops of a tracklet.
        workers: Threads that encode.
    """

    split: str = "test"
    size: tuple[int, int] | None = None
    image_format: str = "jpg"
    quality: int = 95
    camera: int = 1
    min_visibility: float = 0.0
    min_length: int = 1
    workers: int = 2

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ConfigError(f"unknown split {self.split!r}; supported are {', '.join(SPLITS)}")
        if self.image_format not in IMAGE_FORMATS:
            raise ConfigError(f"unknown image format {self.image_format!r}; supported are {', '.join(IMAGE_FORMATS)}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"the JPEG quality is {self.quality}; 1 to 100 are supported")
        if not 1 <= self.camera <= 9:
            raise ConfigError(f"the camera is {self.camera}; names in the layout of MARS have one digit for it, 1 to 9")
        if not 0 <= self.min_visibility <= 1:
            raise ConfigError(f"the least visibility is {self.min_visibility}; a share from 0 to 1 is needed")
        if self.min_length < 1 or self.workers < 1:
            raise ConfigError("the least length of a tracklet and the number of workers must be at least 1")
        if self.size is not None and min(self.size) < 1:
            raise ConfigError(f"the size is {self.size[0]} x {self.size[1]}; at least 1 x 1 is needed")


def share_inside(box: Box, size: tuple[int, int]) -> float:
    """Share of a box's area that lies inside a frame.

    Args:
        box: (x, y, w, h) with a size above 0.
        size: (height, width) of the frame.
    """
    x, y, w, h = box
    across = min(x + w, size[1]) - max(x, 0.0)
    down = min(y + h, size[0]) - max(y, 0.0)
    if across <= 0 or down <= 0:
        return 0.0
    return min(across / w, 1.0) * min(down / h, 1.0)


def crop(pixels: np.ndarray, box: Box) -> np.ndarray:
    """The part of a frame that a box covers, every pixel that it touches.

    Args:
        pixels: (H, W, 3).
        box: (x, y, w, h) that meets the frame.

    Returns:
        A view (h', w', 3).
    """
    height, width = pixels.shape[:2]
    x, y, w, h = box
    left, top = math.floor(max(x, 0.0)), math.floor(max(y, 0.0))
    right, bottom = math.ceil(min(x + w, width)), math.ceil(min(y + h, height))
    return pixels[top:bottom, left:right]


def encode(pixels: np.ndarray, config: CropConfig) -> bytes:
    """A crop as the bytes of an image file."""
    image = Image.fromarray(pixels)
    if config.size is not None and pixels.shape[:2] != config.size:
        image = image.resize(config.size[::-1], Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    if config.image_format == "png":
        image.save(stream, "PNG", compress_level=3)
    else:
        image.save(stream, "JPEG", quality=config.quality)
    return stream.getvalue()


@dataclass
class _Track:
    """A tracklet that grows; its crops wait until it is long enough to be written."""

    pid: int | None = None
    frames: list[int] = field(default_factory=list)
    seconds: list[float | None] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    visibility: list[float] = field(default_factory=list)
    waiting: list[tuple[int, Future[bytes]]] = field(default_factory=list)


class TrackletWriter:
    """Writes ``bbox_<split>/<pid>/<pid>C<camera>T0001F<frame>.jpg`` below a folder, a track after another or mixed.

    The frame in a name counts from 1 at the tracklet's first frame and steps as the video does, so that a gap is seen
    in the names too. Crops are encoded and written in threads while the next frames are decoded.

    Args:
        root: An existing folder.
        config: How crops are written.
        write: Writes bytes to a path; its ``OSError`` is passed on.
        pids: Identity of each track; None numbers tracks from 1 as they become long enough.
        longest: Most frames that a tracklet can span, for the digits in the names.
    """

    def __init__(
        self,
        root: Path,
        config: CropConfig,
        write: Callable[[Path, bytes], None],
        pids: Mapping[str, int] | None,
        longest: int,
    ) -> None:
        self.left_out = LeftOut()
        self.crops = 0
        self._root = root
        self._config = config
        self._write = write
        self._pids = pids
        self._digits = max(3, len(str(longest)))
        self._tracks: dict[str, _Track] = {}
        self._confirmed = 0
        self._pool = ThreadPoolExecutor(config.workers, thread_name_prefix="motarfuse-crops")
        self._writing: deque[Future[None]] = deque()
        if pids is not None and len(pids) > MOST_IDENTITIES:
            raise DataError(
                f"{len(pids):,} tracks; names in the layout of MARS number {MOST_IDENTITIES:,}: divide the boxes"
            )
        (root / f"bbox_{config.split}").mkdir()

    def __enter__(self) -> TrackletWriter:
        return self

    def __exit__(self, *_: object) -> None:
        # Nothing may still write into a folder that is about to be deleted.
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, frame: VideoFrame, boxes: list[TrackBox]) -> None:
        """Crops the people of one frame; frames come in the order of time.

        A crop's visibility is the share of its box inside the frame times the visibility that the box states, if any.
        """
        pixels = frame.rgb()
        for one in boxes:
            inside = share_inside(one.box, pixels.shape[:2])
            if inside <= 0:
                self.left_out.add("the box lies outside the frame", one.place)
                continue
            visibility = inside * (1.0 if one.visibility is None else one.visibility)
            if visibility < self._config.min_visibility:
                self.left_out.add(f"visibility below {self._config.min_visibility:g}", one.place)
                continue
            self._append(frame, one, np.ascontiguousarray(crop(pixels, one.box)), visibility)

    def _append(self, frame: VideoFrame, one: TrackBox, pixels: np.ndarray, visibility: float) -> None:
        track = self._tracks.setdefault(one.track, _Track())
        track.frames.append(frame.index)
        track.seconds.append(frame.seconds)
        track.boxes.append(one.box)
        track.visibility.append(visibility)
        track.waiting.append((frame.index, self._pool.submit(encode, pixels, self._config)))
        if len(track.frames) < self._config.min_length:
            return
        if track.pid is None:
            self._confirmed += 1
            track.pid = self._confirmed if self._pids is None else self._pids[one.track]
            if track.pid > MOST_IDENTITIES:
                raise DataError(
                    f"more than {MOST_IDENTITIES:,} tracks, which names in the layout of MARS cannot number"
                )
            self._folder(track.pid).mkdir()
        folder = self._folder(track.pid)
        for index, content in track.waiting:
            name = self._file(track.pid, index - track.frames[0])
            self._writing.append(self._pool.submit(self._store, folder / name, content))
            self.crops += 1
        track.waiting.clear()
        while len(self._writing) > 16 * self._config.workers:
            self._writing.popleft().result()

    def _store(self, path: Path, content: Future[bytes]) -> None:
        # Encoding was submitted first, so that it runs or is done: waiting for it cannot block the pool.
        self._write(path, content.result())

    def _folder(self, pid: int) -> Path:
        return self._root / f"bbox_{self._config.split}" / f"{pid:04d}"

    def _name(self, pid: int) -> str:
        return f"{pid:04d}C{self._config.camera}T0001"

    def _file(self, pid: int, step: int) -> str:
        return f"{self._name(pid)}F{step + 1:0{self._digits}d}.{self._config.image_format}"

    def finish(self, *, visibility_known: bool) -> tuple[list[Tracklet], dict[int, str]]:
        """Waits for the last crop and writes the lists of ``info``.

        Args:
            visibility_known: The boxes are those of whole people, so that the share inside the frame means something.

        Returns:
            The tracklets, by identity, and the track that each identity is.
        """
        while self._writing:
            self._writing.popleft().result()
        tracklets = {}
        identities = {}
        for name, track in self._tracks.items():
            if track.pid is None:
                self.left_out.add(
                    f"the track has fewer than {self._config.min_length} crops", f"track {name} ({len(track.frames)})"
                )
                continue
            times = tuple(second for second in track.seconds if second is not None)
            tracklets[track.pid] = Tracklet(
                self._name(track.pid),
                track.pid,
                self._config.camera - 1,
                self._folder(track.pid),
                tuple(self._file(track.pid, index - track.frames[0]) for index in track.frames),
                tuple(track.frames),
                times if len(times) == len(track.frames) else None,
                tuple(track.boxes),
                tuple(track.visibility) if visibility_known else None,
            )
            identities[track.pid] = name
        ordered = [tracklets[pid] for pid in sorted(tracklets)]
        self._write_info(ordered)
        return ordered, {pid: identities[pid] for pid in sorted(identities)}

    def _write_info(self, tracklets: list[Tracklet]) -> None:
        """The lists of MARS for the split that was written; one camera alone has no queries."""
        info = self._root / "info"
        info.mkdir()
        names: list[str] = []
        rows: list[str] = []
        for tracklet in tracklets:
            first = len(names) + 1
            names.extend(tracklet.files)
            rows.append(f"{first} {len(names)} {tracklet.pid} {self._config.camera}")
        split = self._config.split
        for file, lines in ((f"{split}_name.txt", names), (f"tracks_{split}_info.txt", rows)):
            self._write(info / file, "".join(f"{line}\n" for line in lines).encode())
