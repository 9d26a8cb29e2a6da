"""Tracklets: the frames of one person under one camera, in the order of time, and sets of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from motarfuse.data.files import natural_key
from motarfuse.data.records import ReIDDataset
from motarfuse.errors import DataError

Box = tuple[float, float, float, float]
# Thirty thousand years of video, and safe to calculate with.
_LAST_FRAME = 1 << 40


@dataclass(frozen=True, slots=True)
class Tracklet:
    """The frames of one person under one camera, ordered by time.

    Attributes:
        name: What the dataset calls it; unique among the tracklets of a split.
        pid: Identity as the files number it.
        camid: Camera, counted from 0; -1 when unknown.
        folder: Where the files lie.
        files: T file names, relative to the folder.
        frame_index: T integers, when each frame was taken, strictly increasing; consecutive ones differ by 1 where no
            frame is missing. Motion between frames is measured per step of this index.
        timestamps: T times in seconds, or None where nobody wrote them down.
        boxes: T boxes (x, y, w, h) in pixels of the video's frame, or None.
        visibility: T shares in [0, 1] of the person that can be seen, or None.

    Raises:
        DataError: No frame, lists of different lengths, frames that are not in the order of time, a share outside
            [0, 1].
    """

    name: str
    pid: int
    camid: int
    folder: Path
    files: tuple[str, ...]
    frame_index: tuple[int, ...]
    timestamps: tuple[float, ...] | None = None
    boxes: tuple[Box, ...] | None = None
    visibility: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.files:
            raise DataError(f"tracklet {self.name} has no frame")
        for what in ("frame_index", "timestamps", "boxes", "visibility"):
            values = getattr(self, what)
            if values is not None and len(values) != len(self.files):
                raise DataError(f"tracklet {self.name} has {len(self.files)} files, but {len(values)} {what}")
        for place, (earlier, later) in enumerate(pairwise(self.frame_index)):
            if later <= earlier:
                raise DataError(
                    f"tracklet {self.name} is not in the order of time: frame {later} ({self.files[place + 1]}) comes "
                    f"after frame {earlier} ({self.files[place]})"
                )
        if any(abs(frame) > _LAST_FRAME for frame in (self.frame_index[0], self.frame_index[-1])):
            raise DataError(f"tracklet {self.name} has frame {self.frame_index[-1]}; supported are numbers up to 2^40")
        if self.timestamps is not None and any(later < earlier for earlier, later in pairwise(self.timestamps)):
            raise DataError(f"tracklet {self.name} has timestamps that go back in time")
        if self.visibility is not None and not all(0 <= share <= 1 for share in self.visibility):
            raise DataError(f"tracklet {self.name} has a visibility outside [0, 1]")

    def __len__(self) -> int:
        return len(self.files)

    @property
    def paths(self) -> list[Path]:
        """The files in the order of time."""
        return [self.folder / name for name in self.files]

    @property
    def path(self) -> Path:
        """The frame in the middle, which stands for the tracklet in lists and pictures."""
        return self.folder / self.files[len(self.files) // 2]

    @property
    def num_missing(self) -> int:
        """Steps of the frame index between first and last that have no frame."""
        return self.frame_index[-1] - self.frame_index[0] + 1 - len(self)

    def select(self, places: Sequence[int], name: str | None = None) -> Tracklet:
        """Some of the frames as a tracklet.

        Args:
            places: Positions in ``files``, increasing.
            name: Of the result; None keeps this one's.

        Raises:
            DataError: No place, or places that do not increase.
        """
        return replace(
            self,
            name=self.name if name is None else name,
            files=tuple(self.files[place] for place in places),
            frame_index=tuple(self.frame_index[place] for place in places),
            timestamps=None if self.timestamps is None else tuple(self.timestamps[place] for place in places),
            boxes=None if self.boxes is None else tuple(self.boxes[place] for place in places),
            visibility=None if self.visibility is None else tuple(self.visibility[place] for place in places),
        )

    def cut(self, length: int) -> list[Tracklet]:
        """Pieces of ``length`` consecutive frames, the last one shorter where they do not come out even.

        Args:
            length: At least 1.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        starts = range(0, len(self), length)
        return [
            self.select(range(start, min(start + length, len(self))), f"{self.name}/{piece}")
            for piece, start in enumerate(starts)
        ]


def ordered_tracklet(
    name: str, pid: int, camid: int, folder: Path, files: Iterable[str], frame_of: Callable[[str], int | None]
) -> Tracklet:
    """A tracklet of files in any order: sorted by the frame numbers in their names.

    Args:
        name, pid, camid, folder: As of `Tracklet`.
        files: File names relative to the folder.
        frame_of: The frame number in a file's name, None where it has none. Where a name has none, frames count from 0
            in the natural order of the names.

    Raises:
        DataError: No file, some names with a number and others without, or two files of one frame.
    """
    names = sorted(files, key=natural_key)
    numbers = [frame_of(file) for file in names]
    if all(number is None for number in numbers):
        return Tracklet(name, pid, camid, folder, tuple(names), tuple(range(len(names))))
    missing = [file for file, number in zip(names, numbers, strict=True) if number is None]
    if missing:
        raise DataError(f"tracklet {name}: {missing[0]} has no frame number in its name, {len(names)} files have one")
    order = sorted((number, place) for place, number in enumerate(numbers) if number is not None)
    files, index = tuple(names[place] for _, place in order), tuple(number for number, _ in order)
    return Tracklet(name, pid, camid, folder, files, index)


@dataclass
class TrackletDataset(ReIDDataset[Tracklet]):
    """A loaded set of tracklets.

    Attributes:
        protocol: Which of the evaluation protocols in use the splits follow, in words.
    """

    protocol: str = ""
