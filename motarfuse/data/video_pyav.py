"""Videos decoded by PyAV, which brings FFmpeg's libraries with it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from motarfuse.data.video import Video, VideoFrame, VideoInfo, import_decoder
from motarfuse.errors import DataError

_LEAST_VERSION = 15
_UNDECODABLE = "the frame cannot be decoded"
_DAMAGED = "the frame is damaged"
_UNCERTAIN = "the file is cut off amid a group of frames, so that the frame's number is not certain"


class _Frame(VideoFrame):
    def __init__(self, frame: Any, index: int, turns: int) -> None:
        super().__init__(index, None if frame.time is None else float(frame.time))
        self._frame = frame
        self._turns = turns

    def rgb(self) -> np.ndarray:
        return self._turned(self._frame.to_ndarray(format="rgb24"))

    def reduced(self, size: tuple[int, int]) -> np.ndarray:
        height, width = size[::-1] if self._turns % 2 else size
        # The full frame in RGB would cost more than all the rest; in one step to RGB, colours would be halved in width.
        small = self._frame.reformat(width=width, height=height, format="yuv444p", interpolation="AREA")
        return self._turned(small.to_ndarray(format="rgb24"))

    def _turned(self, pixels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(pixels, self._turns)) if self._turns else pixels


class PyAVVideo(Video):
    """A video decoded by PyAV; see `open_video`."""

    def __init__(self, path: Path, rotate: bool) -> None:
        self._av = import_decoder("av", "av", "pip install motarfuse[video]")
        if int(self._av.__version__.partition(".")[0]) < _LEAST_VERSION:
            raise DataError(
                f"PyAV {self._av.__version__} is too old, at least {_LEAST_VERSION} is needed: "
                "pip install -U motarfuse[video]"
            )
        self._rotate = rotate
        self._turns: int | None = None
        self._size: tuple[int, int] | None = None
        self._resized = False
        try:
            # The prefix keeps a name with a colon from being read as an address.
            self._container = self._av.open(f"file:{path.resolve()}")
        except (self._av.error.FFmpegError, ValueError) as error:
            raise DataError(f"{path}: cannot be opened as a video: {_reason(error)}") from error
        try:
            self._stream = self._video_stream(path)
        except DataError:
            self.close()
            raise
        super().__init__(path, self._info(path))
        # Packets that were read and whose frame has not come out yet, by time; damage among them that explains a gap.
        self._expected: list[int] = []
        self._errors = 0
        self._broken = False
        self._by_time = True
        self._hides_packets = False
        self._damaged = False
        # First and last frame since damage, while no key frame has come.
        self._suspect: list[int] = []

    def close(self) -> None:
        self._container.close()

    def _video_stream(self, path: Path) -> Any:
        cover = self._av.stream.Disposition.attached_pic
        streams = [one for one in self._container.streams.video if not one.disposition & cover]
        if not streams:
            kinds = [one.type for one in self._container.streams if one.type != "video"]
            held = f"only {', '.join(sorted(set(kinds)))}" if kinds else "nothing that is known"
            raise DataError(f"{path}: holds no video, {held}")
        stream = streams[0]
        if stream.codec_context is None:
            raise DataError(f"{path}: its video is of a compression that this FFmpeg cannot decode")
        stream.thread_type = "SLICE"  # threads over frames would name damage frames late
        return stream

    def _info(self, path: Path) -> VideoInfo:
        stream = self._stream
        duration = self._container.duration
        if stream.duration is not None and stream.time_base is not None:
            seconds: float | None = float(stream.duration * stream.time_base)
        else:
            seconds = None if duration is None else duration / 1e6
        rate = stream.average_rate
        return VideoInfo(
            name=path.name,
            width=stream.width,
            height=stream.height,
            fps=float(rate) if rate else None,
            declared_frames=stream.frames or None,
            duration_seconds=seconds,
            codec=stream.codec_context.name,
            rotation=0,
            decoder=f"PyAV {self._av.__version__}",
        )

    def _read(self, wanted: Collection[int] | None) -> Iterator[VideoFrame]:
        packets = 0
        certain = math.inf
        reached: int | None = None
        for packet in self._packets():
            if packet.size:
                packets += 1
                # What has not been read yet is shown later than this.
                reached = None if packet.dts is None else packet.dts + (packet.duration or 0)
            elif self._errors or self._broken or packets < (self.info.declared_frames or 0):
                certain = math.inf if reached is None else reached
            if packet.pts is not None and not packet.is_discard:
                heapq.heappush(self._expected, packet.pts)
            elif packet.size and not packet.is_discard:
                self._by_time = False
            try:
                decoded = packet.decode()
            except self._av.error.FFmpegError:
                self._errors += 1
                self._damaged = True
                continue
            for frame in decoded:
                if frame.pts is not None and frame.pts > certain:
                    self.left_out.add(_UNCERTAIN, f"after frame {self.info.frames - 1}")
                    continue
                losses = len(self.left_out)
                index = self._number(frame.pts)
                if frame.is_corrupt:
                    self._damaged = True
                    self.left_out.add(_DAMAGED, f"frame {index}")
                self._watch(index, frame.key_frame, len(self.left_out) > losses)
                if not frame.is_corrupt:
                    yield _Frame(frame, index, self._oriented(frame))
        if certain == math.inf:
            self._lose(len(self._expected) if self._by_time else self._errors)
        self._name_suspects()

    def _packets(self) -> Iterator[Any]:
        """The packets of the video up to where the file ends or breaks, then the empty one that flushes the decoder."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except self._av.error.FFmpegError as error:
                self.info.notes.append(f"the file cannot be read after frame {self.info.frames - 1}: {_reason(error)}")
                self._broken = True
                yield self._flush()
                return
            yield packet

    def _flush(self) -> Any:
        packet = self._av.Packet()
        packet.stream = self._stream
        return packet

    def _number(self, pts: int | None) -> int:
        """Number of the next frame: one more than the last, and one more for each that damage took in between.

        Every packet that is shown before this frame has been read by now, so that one without a frame is lost - or
        never shown (half of an interlaced frame, a hidden reference), which is known from files that have such packets
        where nothing is damaged.
        """
        if pts is None:
            self._by_time = False
        if self._by_time and pts is not None:
            missing = 0
            while self._expected and self._expected[0] <= pts:
                missing += heapq.heappop(self._expected) < pts
            self._lose(missing)
        else:
            self._lose(self._errors)
        self.info.frames += 1
        return self.info.frames - 1

    def _lose(self, missing: int) -> None:
        if missing and not self._damaged:
            self._hides_packets = True
        if self._hides_packets or not self._damaged:
            missing = min(missing, self._errors)
        self._errors -= min(missing, self._errors)
        for _ in range(missing):
            self.left_out.add(_UNDECODABLE, f"frame {self.info.frames}")
            self.info.frames += 1

    def _watch(self, index: int, key_frame: bool, damage: bool) -> None:
        """Remembers the frames that are predicted from damaged ones: decoders show them as if nothing had happened."""
        if key_frame and not damage:
            self._name_suspects()
        elif damage and not self._suspect:
            self._suspect = [index, index]
        elif self._suspect:
            self._suspect[1] = index

    def _name_suspects(self) -> None:
        if self._suspect:
            first, last = self._suspect
            self.info.notes.append(
                f"the frames {first} to {last} come after damage and before the next key frame: those that could be "
                "decoded may look wrong"
            )
            self._suspect = []

    def _oriented(self, frame: Any) -> int:
        """Quarter turns, counter-clockwise, that show a frame upright."""
        info = self.info
        if self._turns is None:
            degrees = int(frame.rotation) % 360
            self._turns = degrees // 90 if self._rotate and degrees % 90 == 0 else 0
            if degrees % 90:
                info.notes.append(
                    f"the file asks for a rotation by {degrees} degrees, which is no quarter turn: ignored"
                )
            elif degrees and not self._rotate:
                info.notes.append(f"the file asks for a rotation by {degrees} degrees: ignored, as asked for")
            info.rotation = 90 * self._turns
            self._size = frame.width, frame.height
            info.width, info.height = self._size[::-1] if self._turns % 2 else self._size
            ratio = self._stream.sample_aspect_ratio
            if ratio and ratio != 1:
                info.notes.append(f"its pixels are not square ({ratio}); boxes and crops are in stored pixels")
        elif (frame.width, frame.height) != self._size and not self._resized:
            self._resized = True
            info.notes.append(
                f"the frames change their size at frame {info.frames - 1}: {frame.width} x {frame.height}"
            )
        return self._turns


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
