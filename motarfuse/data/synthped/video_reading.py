"""Reads the ground truth of SynthPed's video protocol back from disk."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped.config import VIDEO
from motarfuse.data.synthped.dataset import SynthPedImages
from motarfuse.data.synthped.video import VIDEO_SETS, SynthPedFrames
from motarfuse.data.synthped.video_write import FOLDERS
from motarfuse.errors import DataError


@dataclass(frozen=True)
class WrittenFrames:
    """The frames of a set of tracklets that `write_synthped` wrote; n rows.

    Attributes:
        name: One of `VIDEO_SETS`.
        paths: The n image files.
        frames: Their ground truth, with an empty ``truth.images``.
    """

    name: str
    paths: tuple[Path, ...]
    frames: SynthPedFrames

    def __len__(self) -> int:
        return len(self.paths)


def read_written_frames(root: str | Path, name: str, *, masks: bool = True) -> WrittenFrames:
    """Ground truth of a set of tracklets and where its images lie.

    Args:
        root: The benchmark's folder, as given to `write_synthped`.
        name: One of `VIDEO_SETS`.
        masks: Also read ``parts`` and ``amodal``; without, they have no rows, and memory stays small.

    Raises:
        ValueError: For a name that is not in `VIDEO_SETS`.
        DataError: The ground truth is absent or damaged.
    """
    if name not in VIDEO_SETS:
        raise ValueError(f"there is no set {name!r}; there are {', '.join(VIDEO_SETS)}")
    root = Path(root).expanduser()
    path = root / "ground_truth" / f"{name}.npz"
    if not path.is_file():
        raise DataError(f"{path} is not there; draw it with motarfuse data synth OUT --protocols video")
    try:
        with np.load(path) as stored:
            wanted = [key for key in stored.files if masks or key not in ("parts", "amodal")]
            arrays: dict[str, NDArray[Any]] = {key: stored[key] for key in wanted}
        names = [str(one) for one in arrays.pop("names")]
        height_width = arrays["parts"].shape[1:] if masks else (0, 0)
        empty = np.empty((0, *height_width), np.uint8)
        truth = SynthPedImages(
            images=np.empty((0, *height_width, 3), np.uint8),
            pids=arrays["pids"].astype(np.int64),
            camids=arrays["camids"].astype(np.int64),
            parts=arrays["parts"] if masks else empty,
            amodal=arrays["amodal"] if masks else empty,
            keypoints=arrays["keypoints"],
            visibility=arrays["visibility"],
            occluded_share=arrays["occluded_share"],
            in_frame=arrays["in_frame"],
            occluder=arrays["occluder"].astype(np.int64),
        )
        tracklet, frame = arrays["tracklets"].astype(np.int64), arrays["frames"].astype(np.int64)
        frames = SynthPedFrames(truth, tracklet, frame, arrays["phase"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} is damaged or no ground truth of SynthPed ({error}); draw the benchmark anew"
        ) from error
    short = [key for key, array in arrays.items() if len(array) != len(names)]
    if short:
        raise DataError(f"{path} is damaged: {short[0]} has other rows than names; draw the benchmark anew")
    folder = root / VIDEO / FOLDERS[name]
    return WrittenFrames(name, tuple(folder / one[:4] / one for one in names), frames)
