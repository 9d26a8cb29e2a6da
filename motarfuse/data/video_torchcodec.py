"""Videos decoded by torchcodec, which uses the FFmpeg libraries of the system."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from motarfuse.data.video import Video, VideoFrame, VideoInfo, import_decoder
from motarfuse.errors import DataError

# torchcodec has no error classes of its own.
_ERRORS = (RuntimeError, ValueError, IndexError)


class _Frame(VideoFrame):
    def __init__(self, frame: Any, index: int) -> None:
        super().__init__(index, float(frame.pts_seconds))
        self._pixels: np.ndarray = frame.data.numpy()

    def rgb(self) -> np.ndarray:
        return self._pixels


class TorchcodecVideo(Video):
    """A video decoded by torchcodec; see `open_video`.

    Only the frames that are wanted are decoded. torchcodec itself turns frames upright.
    """

    def __init__(self, path: Path, rotate: bool) -> None:
        install = "pip install torchcodec (it needs FFmpeg's libraries), or choose the decoder pyav"
        decoders = import_decoder("torchcodec.decoders", "torchcodec", install)
        if not rotate:
            raise DataError("torchcodec always turns frames upright; choose the decoder pyav to keep them as stored")
        try:
            # "exact" scans the file, so that a number means the same frame however the file was cut.
            self._decoder = decoders.VideoDecoder(str(path.resolve()), dimension_order="NHWC", seek_mode="exact")
            count = len(self._decoder)
        except _ERRORS as error:
            raise DataError(f"{path}: cannot be opened as a video: {str(error).partition(chr(10))[0]}") from error
        known = self._decoder.metadata
        declared = getattr(known, "num_frames_from_header", None)
        try:
            name = f"torchcodec {version('torchcodec')}"
        except PackageNotFoundError:
            name = "torchcodec"
        info = VideoInfo(
            name=path.name,
            width=known.width,
            height=known.height,
            fps=known.average_fps,
            declared_frames=declared,
            duration_seconds=known.duration_seconds,
            codec=str(known.codec),
            rotation=round(getattr(known, "rotation", None) or 0) % 360,
            decoder=name,
        )
        super().__init__(path, info)
        self._count = count

    def close(self) -> None:
        del self._decoder

    def _read(self, wanted: Collection[int] | None) -> Iterator[VideoFrame]:
        for index in range(self._count):
            self.info.frames = index + 1
            if wanted is not None and index not in wanted:
                continue
            try:
                frame = self._decoder.get_frame_at(index)
            except _ERRORS:
                self.left_out.add("the frame cannot be decoded", f"frame {index}")
                continue
            found = _Frame(frame, index)
            self.info.height, self.info.width = found.rgb().shape[:2]
            yield found
