"""Tiny videos for tests, whose pixels tell which frame it is."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SIZE = (48, 64)
"""Height and width."""

NUMBERS = 43
"""Numbers that a plain frame can tell apart."""


def shade(index: int) -> int:
    """Grey level of the frame of that number; neighbours differ by far more than compression changes them."""
    return 20 + 5 * (17 * index % NUMBERS)


def plain_frame(index: int) -> np.ndarray:
    """A frame whose one grey level is its number's."""
    return np.full((*SIZE, 3), shade(index), dtype=np.uint8)


def write_video(
    path: Path,
    frames: int | Sequence[np.ndarray],
    *,
    fps: int = 10,
    times: Sequence[int] | None = None,
    codec: str = "mpeg4",
    options: dict[str, str] | None = None,
    turn: int = 0,
) -> Path:
    """Writes a video.

    Args:
        path: Its suffix says the container.
        frames: Pictures, or how many plain ones.
        fps: Frames a second, and units a second of ``times``.
        times: When each frame is shown, None for one a unit.
        codec, options: Of the encoder.
        turn: Degrees counter-clockwise that the file asks to be turned by (mp4 only).
    """
    av = pytest.importorskip("av", reason="needs the extra video")
    pictures = [plain_frame(index) for index in range(frames)] if isinstance(frames, int) else frames
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {"g": "4"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        stream.codec_context.time_base = Fraction(1, fps)
        for place, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = place if times is None else times[place]
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if turn:
        path.write_bytes(_turned(path.read_bytes(), turn))
    return path


def _turned(content: bytes, turn: int) -> bytes:
    """An mp4 file whose track header asks for a rotation: its matrix lies 40 bytes behind the version."""
    place = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    a, b, c, d = {90: (0, -one, one, 0), 180: (-one, 0, 0, -one), 270: (0, one, -one, 0)}[turn]
    return content[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[place + 36 :]


def write_audio(path: Path, *, cover: bool = False) -> Path:
    """Half a second of silence, with a cover picture or without."""
    av = pytest.importorskip("av", reason="needs the extra video")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        if cover:
            _add_cover(container)
        for start in range(0, 4096, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            frame.pts = start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _add_cover(container: Any) -> None:
    import av

    stream = container.add_stream("mjpeg", rate=1)
    stream.height, stream.width = SIZE
    stream.pix_fmt = "yuvj420p"
    stream.disposition = av.stream.Disposition.attached_pic
    frame = av.VideoFrame.from_ndarray(plain_frame(0), format="rgb24").reformat(format="yuvj420p")
    frame.pts = 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def shades(frames: Sequence[np.ndarray]) -> list[int]:
    """Number of each plain frame, told by its grey level."""
    known = np.array([shade(index) for index in range(NUMBERS)])
    return [int(np.abs(known - float(frame.mean())).argmin()) for frame in frames]
