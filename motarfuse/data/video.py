"""Frames of a video file in the order of time, each with its number and its time; damage is counted, never hidden."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from motarfuse.data.left_out import LeftOut
from motarfuse.errors import DataError

DECODERS = ("pyav", "torchcodec")


@dataclass
class VideoInfo:
    """What is known of a video; the counts grow while it is read.

    Attributes:
        name: Base name of the file.
        width, height: Of the first frame in pixels, turned upright.
        fps: Frames a second on average, None where the file does not say.
        declared_frames: Frames that the file claims to have, None where it does not say.
        duration_seconds: That the file claims to last, None where it does not say.
        codec: Name of the compression.
        rotation: Degrees, counter-clockwise, by which the frames are turned for viewing.
        decoder: What decodes it.
        frames: Frames met so far, the damaged ones too.
        complete: The end was reached; otherwise nobody needed the rest.
        variable_rate: The time between frames varied by more than a tenth.
        notes: What a user should know.
    """

    name: str
    width: int
    height: int
    fps: float | None
    declared_frames: int | None
    duration_seconds: float | None
    codec: str
    rotation: int
    decoder: str
    frames: int = 0
    complete: bool = False
    variable_rate: bool = False
    notes: list[str] = field(default_factory=list)


class VideoFrame(ABC):
    """One frame; its pixels are converted when they are asked for.

    Attributes:
        index: Number of the frame in the video, from 0.
        seconds: When it is shown, None where the file does not say.
    """

    def __init__(self, index: int, seconds: float | None) -> None:
        self.index = index
        self.seconds = seconds

    @abstractmethod
    def rgb(self) -> np.ndarray:
        """The picture, upright: uint8 (H, W, 3)."""

    def reduced(self, size: tuple[int, int]) -> np.ndarray:
        """The picture at a smaller size, every pixel the mean of an area.

        Args:
            size: (height, width).

        Returns:
            uint8 (height, width, 3).
        """
        return np.asarray(Image.fromarray(self.rgb()).resize(size[::-1], Image.Resampling.BOX))


class Video(ABC):
    """A video file that is read once, from the start.

    Attributes:
        path: The file.
        info: What is known of it.
        left_out: Frames that cannot be shown.
    """

    def __init__(self, path: Path, info: VideoInfo) -> None:
        self.path = path
        self.info = info
        self.left_out = LeftOut()
        # Seconds from one frame to the next; the longest step with the frame before it.
        self._shortest = math.inf
        self._longest = 0.0, 0
        self._last: tuple[int, float] | None = None
        self._times_mended = 0
        self._shown = 0

    @abstractmethod
    def _read(self, wanted: Collection[int] | None) -> Iterator[VideoFrame]:
        """The frames that can be decoded, at least the wanted ones; ``info.frames`` is kept."""

    @abstractmethod
    def close(self) -> None:
        """Lets the file go."""

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def frames(self, wanted: Collection[int] | None = None) -> Iterator[VideoFrame]:
        """The frames in the order of time; stops after the last one that is wanted.

        Frames are numbered in the order in which they are shown. A frame that cannot be decoded keeps its number, so
        that the later ones keep theirs. Times never go back: a frame that would is given the time of the one before.

        Args:
            wanted: Numbers of the frames that are needed, None for all.

        Raises:
            DataError: Not one frame can be decoded.
        """
        last = None if wanted is None else max(wanted, default=-1)
        for frame in self._read(wanted):
            if last is not None and frame.index > last:
                break
            self._shown += 1
            self._time(frame)
            if wanted is None or frame.index in wanted:
                yield frame
            if frame.index == last:
                break
        else:
            self.info.complete = True
        if self._shown == 0 and last != -1:
            damage = "; ".join(self.left_out.lines())
            raise DataError(f"{self.path}: not one frame can be decoded{f' ({damage})' if damage else ''}")
        self._conclude()

    def _time(self, frame: VideoFrame) -> None:
        if frame.seconds is None:
            return
        if self._last is not None:
            index, seconds = self._last
            if frame.seconds < seconds:
                frame.seconds = seconds
                self._times_mended += 1
            step = (frame.seconds - seconds) / (frame.index - index)
            self._shortest = min(self._shortest, step)
            self._longest = max(self._longest, (step, index))
        self._last = frame.index, frame.seconds

    def _conclude(self) -> None:
        info = self.info
        longest, before = self._longest
        # Some containers round times to milliseconds.
        info.variable_rate = longest > 1.1 * self._shortest + 0.002
        if info.variable_rate:
            info.notes.append(
                f"the time between frames varies from {self._shortest:.3f} to {longest:.3f} s (after frame {before}); "
                "frames are numbered as they come, so that frames which a damaged file lost would not be seen"
            )
        if self._times_mended:
            info.notes.append(f"{self._times_mended:,} frames had a time before that of the frame before; mended")
        if not info.complete:
            return
        if info.declared_frames is not None and self._shown < info.declared_frames:
            info.notes.append(
                f"the file claims {info.declared_frames:,} frames, {self._shown:,} can be read: cut off or damaged"
            )
        elif (
            info.declared_frames is None
            and info.duration_seconds is not None
            and self._last is not None
            and self._last[1] + 1.5 < info.duration_seconds
        ):
            info.notes.append(
                f"the file claims {info.duration_seconds:.1f} s, the last frame is at {self._last[1]:.1f} s: it may be "
                "cut off"
            )


def open_video(path: str | Path, decoder: str = "pyav", *, rotate: bool = True) -> Video:
    """Opens a video file.

    Args:
        path: The file; addresses on a network are not opened.
        decoder: "pyav" or "torchcodec", each an optional dependency.
        rotate: Turn the frames upright as the file's rotation says (players and OpenCV do).

    Raises:
        DataError: No file, no video in it, broken beyond opening, an unknown decoder, or one that is not installed.
    """
    path = Path(path).expanduser()
    if decoder not in DECODERS:
        raise DataError(f"unknown decoder {decoder!r}; supported are {', '.join(DECODERS)}")
    if path.is_dir():
        raise DataError(f"{path}: is a folder, a video file is needed")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise DataError(f"{path}: the file is empty (0 bytes)")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if decoder == "torchcodec":
        from motarfuse.data.video_torchcodec import TorchcodecVideo

        return TorchcodecVideo(path, rotate)
    from motarfuse.data.video_pyav import PyAVVideo

    return PyAVVideo(path, rotate)


def import_decoder(module: str, package: str, install: str) -> ModuleType:
    """An optional decoder.

    Raises:
        DataError: It is missing, or installed and broken (torchcodec without FFmpeg's libraries).
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name and error.name.partition(".")[0] == package:
            raise DataError(
                f"decoding videos with {package} needs a package that is not installed: {install}"
            ) from error
        raise DataError(f"{package} is installed, but cannot be imported: {error}") from error
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"{package} is installed, but cannot be used here: {reason}") from error
