"""Frames of tracklets as padded batches of clips: kept in memory where they fit, decoded in threads where not."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from motarfuse import console
from motarfuse.data.files import name_some
from motarfuse.data.images import read_images
from motarfuse.data.record_store import DEFAULT_MEMORY_LIMIT_MB, RecordStore
from motarfuse.data.records import Skipped
from motarfuse.data.tracklets import Tracklet
from motarfuse.errors import DataError

_CHUNK = 256
# Places in a tracklet's list of files, and the pixels (3, H, W) of each.
_Row = list[tuple[int, Any]]


class Clip(NamedTuple):
    """Some frames of one tracklet: its index in the store, and increasing positions in its list of files."""

    tracklet: int
    frames: Sequence[int]


class ClipBatch(NamedTuple):
    """Clips of different lengths, padded at their ends to the longest.

    Attributes:
        clips: B clips, as they were asked for.
        images: uint8 (B, T, 3, H, W), zero where nothing is.
        frame_mask: (B, T) bool, False for padding.
        frame_index: (B, T) int64, when each frame was taken, counted from the clip's first; padding goes on counting.
    """

    clips: list[Clip]
    images: Tensor
    frame_mask: Tensor
    frame_index: Tensor


class ClipStore(RecordStore[Tracklet]):
    """Resized frames of tracklets, by clip.

    In memory the store costs ``3 height width`` bytes a frame; on disk it costs nothing, and every clip is decoded
    anew.

    Frames that cannot be read are counted, named and warned about when they are first met. A clip goes without them:
    its other frames move together, with a gap in ``frame_index``; one that has none left takes the nearest readable
    frame of its tracklet. A tracklet of which nothing can be read leaves the store in memory; on disk `batch` takes
    another of its identity or leaves it out. All else is the same from memory and from disk.

    Attributes:
        records: The tracklets; indices of `Clip` count in this list.
        kept: For each of them its index in the list that was given.
        skipped: The files that could not be read, with the reasons.
        size: (height, width) in pixels.
        cache: "memory" or "disk".

    Args:
        records: What to read.
        size: (height, width) in pixels of all frames.
        cache: "memory", "disk", or "auto": memory if the frames fit into the limit.
        workers: Decoding threads.
        memory_limit_mb: Largest size of the frames in memory, in MB of 10^6 bytes.
        pin_memory: Whether batches lie in page-locked memory, for asynchronous copies to a GPU; None: if there is one.

    Raises:
        DataError: if there are no tracklets or, in memory, no frame can be read, or if "memory" was asked for and
            exceeds the limit.
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        records: Sequence[Tracklet],
        size: tuple[int, int],
        *,
        cache: str = "auto",
        workers: int = 2,
        memory_limit_mb: float = DEFAULT_MEMORY_LIMIT_MB,
        pin_memory: bool | None = None,
    ) -> None:
        frames = sum(map(len, records))
        super().__init__(
            records,
            frames,
            ("tracklets", "frames"),
            size,
            cache=cache,
            workers=workers,
            memory_limit_mb=memory_limit_mb,
            pin_memory=pin_memory,
        )
        self._broken: set[Path] = set()
        self._readable: list[bool] = []
        self._starts: list[int] = []
        if self.cache == "memory":
            self._read_all(frames)

    @property
    def num_frames(self) -> int:
        """Frames of all tracklets, those that cannot be read among them."""
        return sum(map(len, self.records))

    def batch(self, clips: Sequence[Clip], *, leave_out: bool = False) -> ClipBatch:
        """The clips as one padded batch.

        Args:
            clips: Each of at least one frame; repetitions are allowed.
            leave_out: Of a tracklet of which nothing can be read: its clips are missing in the batch, which may be
                empty. Otherwise the next tracklet of the same identity takes its place, so that labels stay true.

        Raises:
            DataError: if no tracklet of an identity can be read any more.
        """
        if not clips:
            raise ValueError("a batch needs at least one clip")
        wanted = list(clips)
        while True:
            if leave_out:
                wanted = [clip for clip in wanted if clip.tracklet not in self._unreadable]
            else:
                wanted = [self._alive(clip) for clip in wanted]
            rows = self._rows(wanted)
            if all(rows):
                return self._assembled(wanted, rows)

    def _assembled(self, clips: list[Clip], rows: list[_Row]) -> ClipBatch:
        """Readable frames, moved together: one that cannot be read is a gap, as one that was never there."""
        length = max((len(row) for row in rows), default=1)
        images = torch.zeros(len(clips), length, 3, *self.size, dtype=torch.uint8)
        mask = torch.zeros(len(clips), length, dtype=torch.bool)
        index = torch.zeros(len(clips), length, dtype=torch.int64)
        pixels = images.numpy()
        for number, (clip, row) in enumerate(zip(clips, rows, strict=True)):
            taken = self.records[clip.tracklet].frame_index
            times = torch.tensor([taken[place] - taken[row[0][0]] for place, _ in row])
            index[number, : len(row)] = times
            index[number, len(row) :] = times[-1] + torch.arange(1, length - len(row) + 1)
            mask[number, : len(row)] = True
            for column, (_, frame) in enumerate(row):
                pixels[number, column] = frame
        if self._pin:
            images, mask, index = images.pin_memory(), mask.pin_memory(), index.pin_memory()
        return ClipBatch(clips, images, mask, index)

    def prefetch(
        self, batches: Iterable[Sequence[Clip]], depth: int = 2, *, leave_out: bool = False
    ) -> Generator[ClipBatch, None, None]:
        """Yields each batch of clips, reading up to ``depth`` batches ahead in the background.

        The order is kept, and an error is raised where its batch would have come.

        Args:
            batches: Lists of clips; may be endless.
            depth: Batches that wait, at least 1.
            leave_out: As of `batch`.
        """
        read = partial(self.batch, leave_out=leave_out)
        for _, batch in self._read_ahead(read, batches, depth):
            yield batch

    def _rows(self, clips: Sequence[Clip]) -> list[_Row]:
        """The readable frames of each clip, or the nearest readable one of its tracklet; none where nothing is left."""
        if self._images is not None:
            known = self._readable
            places = [[self._starts[clip.tracklet] + place for place in clip.frames] for clip in clips]
            pixels = self._images.numpy()
            found: list[_Row] = [
                [(place, pixels[at]) for place, at in zip(clip.frames, row, strict=True) if known[at]]
                for clip, row in zip(clips, places, strict=True)
            ]
        else:
            paths = [self._path(clip.tracklet, place) for clip in clips for place in clip.frames]
            images, skipped, kept = read_images(paths, self.size, pool=self._pool)
            self._name(skipped)
            decoded = dict(zip(kept, images.numpy(), strict=True))
            starts = accumulate((len(clip.frames) for clip in clips), initial=0)
            found = [
                [
                    (place, decoded[start + offset])
                    for offset, place in enumerate(clip.frames)
                    if start + offset in decoded
                ]
                for clip, start in zip(clips, starts, strict=False)
            ]
        return [row or self._nearest(clip) for clip, row in zip(clips, found, strict=True)]

    def _path(self, tracklet: int, place: int) -> Path:
        record = self.records[tracklet]
        return record.folder / record.files[place]

    def _nearest(self, clip: Clip) -> _Row:
        """The readable frame of a tracklet that is nearest to a clip of which none can be read."""
        around = sorted(range(len(self.records[clip.tracklet])), key=lambda place: abs(place - clip.frames[0]))
        for place in around:
            if self._images is not None:
                at = self._starts[clip.tracklet] + place
                if self._readable[at]:
                    return [(place, self._images[at].numpy())]
                continue
            path = self._path(clip.tracklet, place)
            if path not in self._broken:
                found, skipped, _ = read_images([path], self.size, pool=self._pool)
                self._name(skipped)
                if not skipped:
                    return [(place, found[0].numpy())]
        self._unreadable.add(clip.tracklet)
        return []

    def _alive(self, clip: Clip) -> Clip:
        """The clip itself, or one as long from the middle of the next tracklet of its identity that can be read."""
        if clip.tracklet not in self._unreadable:
            return clip
        record = self.records[clip.tracklet]
        for step in range(1, len(self.records)):
            other = (clip.tracklet + step) % len(self.records)
            if self.records[other].pid == record.pid and other not in self._unreadable:
                length = len(self.records[other])
                count = min(len(clip.frames), length)
                return Clip(other, range((length - count) // 2, (length - count) // 2 + count))
        raise DataError(
            f"tracklet {record.name}: none of its {len(record)} frames in {record.folder} can be read, nor any other "
            f"tracklet of identity {record.pid}; repair the files or take the identity out of the training split"
        )

    def _name(self, skipped: Sequence[Skipped]) -> None:
        new = {item.path: item for item in skipped if item.path not in self._broken}
        self._broken.update(new)
        self.skipped.extend(new.values())
        if new:
            names = name_some((f"{item.path} ({item.reason})" for item in new.values()), limit=5)
            console.warn(f"{len(new)} frames cannot be read and are left out: {names}")

    def _read_all(self, frames: int) -> None:
        """Decodes every frame; a tracklet of which none can be read leaves the store."""
        images = torch.zeros((frames, 3, *self.size), dtype=torch.uint8)
        readable = [False] * frames
        places = [(number, place) for number, record in enumerate(self.records) for place in range(len(record))]
        skipped: list[Skipped] = []
        with console.progress("reading frames", frames) as bar:
            for start in range(0, frames, _CHUNK):
                chunk = places[start : start + _CHUNK]
                paths = [self._path(number, place) for number, place in chunk]
                found, failed, kept = read_images(paths, self.size, pool=self._pool)
                images[[start + which for which in kept]] = found
                for which in kept:
                    readable[start + which] = True
                skipped.extend(failed)
                bar.advance(bar.task_ids[0], len(chunk))
        if not any(readable):
            raise DataError(f"none of {frames} frames can be read; {skipped[0].path}: {skipped[0].reason}")
        self._name(skipped)
        starts = [0, *accumulate(len(record) for record in self.records)]
        self.kept = [
            number for number in range(len(self.records)) if any(readable[starts[number] : starts[number + 1]])
        ]
        self.records = [self.records[number] for number in self.kept]
        self._starts = [starts[number] for number in self.kept]
        self._images, self._readable = images, readable
