"""Frames of tracklets as padded batches of clips: kept in memory where they fit, decoded in threads where not."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, islice
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from motarfuse import console
from motarfuse.data.files import name_some
from motarfuse.data.images import read_images
from motarfuse.data.loader import CACHES, DEFAULT_MEMORY_LIMIT_MB, pick
from motarfuse.data.records import Skipped, contiguous_labels
from motarfuse.data.tracklets import Tracklet
from motarfuse.errors import DataError

_CHUNK = 256


class Clip(NamedTuple):
    """Some frames of one tracklet: its index in the store, and increasing positions in its list of files."""

    tracklet: int
    frames: Sequence[int]


class ClipBatch(NamedTuple):
    """Clips of different lengths, padded at their ends to the longest.

    Attributes:
        clips: B clips, as they were asked for.
        images: uint8 (B, T, 3, H, W), zero where nothing is.
        frame_mask: (B, T) bool, False for padding and for frames that could not be read.
        frame_index: (B, T) int64, when each frame was taken, counted from the clip's first; padding goes on counting.
    """

    clips: list[Clip]
    images: Tensor
    frame_mask: Tensor
    frame_index: Tensor


class ClipStore:
    """Resized frames of tracklets, by clip.

    In memory the store costs ``3 height width`` bytes a frame; on disk it costs nothing, and every clip is decoded
    anew.

    Frames that cannot be read are counted, named and warned about when they are first met. In memory they leave their
    tracklets, and a tracklet without any frame leaves the store; on disk they are masked, and a clip that has none left
    takes the nearest readable frame of its tracklet, or, of a tracklet that has none, raises.

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
        if cache not in CACHES:
            raise ValueError(f"cache must be one of {', '.join(CACHES)}, got {cache!r}")
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if min(size) < 1:
            raise ValueError(f"size must be a height and a width of at least 1 pixel, got {size}")
        if not records:
            raise DataError("there are no tracklets to read: the list of records is empty")
        self.size = size
        frames = sum(map(len, records))
        needed_mb = frames * 3 * size[0] * size[1] / 1e6
        if cache == "memory" and needed_mb > memory_limit_mb:
            raise DataError(
                f"{frames:,} frames of {size[0]} x {size[1]} need {needed_mb:,.0f} MB of memory, the limit is "
                f"{memory_limit_mb:,.0f} MB; raise the limit or let the cache be auto or disk"
            )
        self.cache = ("memory" if needed_mb <= memory_limit_mb else "disk") if cache == "auto" else cache
        self.records = list(records)
        self.kept = list(range(len(self.records)))
        self.skipped: list[Skipped] = []
        self._pin = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="motarfuse-decode")
        self._broken: set[Path] = set()
        self._images: Tensor | None = None
        if self.cache == "memory":
            self._read_all(frames)
        self._starts = [0, *accumulate(len(record) for record in self.records)]

    def __len__(self) -> int:
        return len(self.records)

    def __enter__(self) -> ClipStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the decoding threads; a store on disk cannot read afterwards."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def num_frames(self) -> int:
        """Frames of all tracklets."""
        return self._starts[-1]

    @property
    def labels(self) -> list[int]:
        """Class of each tracklet: 0..C-1, in the order of the sorted identities."""
        return contiguous_labels(self.records)

    @property
    def camids(self) -> list[int]:
        """Camera of each tracklet."""
        return [record.camid for record in self.records]

    def batch(self, clips: Sequence[Clip]) -> ClipBatch:
        """The clips as one padded batch.

        Args:
            clips: Each of at least one frame; repetitions are allowed.

        Raises:
            DataError: if no frame of a clip's tracklet can be read any more.
        """
        if not clips:
            raise ValueError("a batch needs at least one clip")
        length = max(len(clip.frames) for clip in clips)
        mask = torch.zeros(len(clips), length, dtype=torch.bool)
        index = torch.zeros(len(clips), length, dtype=torch.int64)
        for row, clip in enumerate(clips):
            taken = self.records[clip.tracklet].frame_index
            times = torch.tensor([taken[place] - taken[clip.frames[0]] for place in clip.frames])
            index[row, : len(times)] = times
            index[row, len(times) :] = times[-1] + torch.arange(1, length - len(times) + 1)
            mask[row, : len(times)] = True
        if self._images is not None:
            places = [self._starts[clip.tracklet] + place for clip in clips for place in clip.frames]
            images = _padded(pick(self._images, places), clips, length)
        else:
            images = self._decode(clips, mask)
        if self._pin:
            images, mask, index = images.pin_memory(), mask.pin_memory(), index.pin_memory()
        return ClipBatch(list(clips), images, mask, index)

    def prefetch(self, batches: Iterable[Sequence[Clip]], depth: int = 2) -> Generator[ClipBatch, None, None]:
        """Yields each batch of clips, reading up to ``depth`` batches ahead in the background.

        The order is kept, and an error is raised where its batch would have come.

        Args:
            batches: Lists of clips; may be endless.
            depth: Batches that wait, at least 1.
        """
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if self._images is not None and not self._pin:  # a copy within memory is cheaper than handing it to a thread
            yield from map(self.batch, batches)
            return
        source = iter(batches)
        with ThreadPoolExecutor(1, thread_name_prefix="motarfuse-prefetch") as reader:
            waiting: deque[Future[ClipBatch]] = deque()
            try:
                waiting.extend(reader.submit(self.batch, clips) for clips in islice(source, depth))
                while waiting:
                    found = waiting.popleft()
                    waiting.extend(reader.submit(self.batch, clips) for clips in islice(source, 1))
                    yield found.result()
            finally:
                for later in waiting:
                    later.cancel()

    def _decode(self, clips: Sequence[Clip], mask: Tensor) -> Tensor:
        """Reads the frames of a batch; takes those that cannot be read out of ``mask``."""
        wanted = [
            (row, column, self.records[clip.tracklet].folder / self.records[clip.tracklet].files[place])
            for row, clip in enumerate(clips)
            for column, place in enumerate(clip.frames)
        ]
        found, skipped, kept = read_images([path for _, _, path in wanted], self.size, pool=self._pool)
        self._name(skipped)
        if len(kept) == len(wanted):
            return _padded(found, clips, mask.shape[1])
        images = torch.zeros(*mask.shape, 3, *self.size, dtype=torch.uint8)
        rows = torch.tensor([wanted[place][0] for place in kept], dtype=torch.int64)
        columns = torch.tensor([wanted[place][1] for place in kept], dtype=torch.int64)
        images[rows, columns] = found
        mask.fill_(False)
        mask[rows, columns] = True
        for row in (~mask.any(1)).nonzero().flatten().tolist():
            images[row, 0], mask[row, 0] = self._nearest(clips[row]), True
        return images

    def _nearest(self, clip: Clip) -> Tensor:
        """The readable frame of a tracklet that is nearest to a clip of which none can be read."""
        record = self.records[clip.tracklet]
        for place in sorted(range(len(record)), key=lambda place: abs(place - clip.frames[0])):
            path = record.folder / record.files[place]
            if path not in self._broken:
                found, skipped, _ = read_images([path], self.size, pool=self._pool)
                self._name(skipped)
                if not skipped:
                    return found[0]
        raise DataError(
            f"tracklet {record.name}: none of its {len(record)} frames in {record.folder} can be read; repair the "
            "files or take the tracklet out of the dataset"
        )

    def _name(self, skipped: Sequence[Skipped]) -> None:
        new = {item.path: item for item in skipped if item.path not in self._broken}
        self._broken.update(new)
        self.skipped.extend(new.values())
        if new:
            names = name_some((f"{item.path} ({item.reason})" for item in new.values()), limit=5)
            console.warn(f"{len(new)} frames cannot be read and are left out: {names}")

    def _read_all(self, frames: int) -> None:
        """Decodes every frame; leaves the unreadable ones out of their tracklets."""
        images = torch.empty((frames, 3, *self.size), dtype=torch.uint8)
        places = [(number, place) for number, record in enumerate(self.records) for place in range(len(record))]
        readable: list[list[int]] = [[] for _ in self.records]
        skipped: list[Skipped] = []
        count = 0
        with console.progress("reading frames", frames) as bar:
            for start in range(0, frames, _CHUNK):
                chunk = places[start : start + _CHUNK]
                paths = [self.records[number].folder / self.records[number].files[place] for number, place in chunk]
                found, failed, kept = read_images(paths, self.size, pool=self._pool)
                images[count : count + len(kept)] = found
                count += len(kept)
                for which in kept:
                    readable[chunk[which][0]].append(chunk[which][1])
                skipped.extend(failed)
                bar.advance(bar.task_ids[0], len(chunk))
        if not count:
            raise DataError(f"none of {frames} frames can be read; {skipped[0].path}: {skipped[0].reason}")
        self._name(skipped)
        self.kept = [number for number, some in enumerate(readable) if some]
        self.records = [self.records[number].select(readable[number]) for number in self.kept]
        self._images = images[:count]


def _padded(frames: Tensor, clips: Sequence[Clip], length: int) -> Tensor:
    """Frames (n, 3, H, W) of the clips in order as (B, length, 3, H, W); no copy where the clips are equally long."""
    if len(frames) == len(clips) * length:
        return frames.unflatten(0, (len(clips), length))
    images = torch.zeros(len(clips), length, *frames.shape[1:], dtype=frames.dtype)
    pieces = frames.split([len(clip.frames) for clip in clips])
    for row, piece in enumerate(pieces):
        images[row, : len(piece)] = piece
    return images
