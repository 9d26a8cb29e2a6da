"""Images of a list of records as batches of bytes: kept in memory where they fit, decoded in threads where not."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from motarfuse import console
from motarfuse.data.files import name_some
from motarfuse.data.images import read_images
from motarfuse.data.record_store import DEFAULT_MEMORY_LIMIT_MB, RecordStore
from motarfuse.data.records import ImageRecord, Skipped
from motarfuse.errors import DataError

_CHUNK = 256


class ImageStore(RecordStore[ImageRecord]):
    """Resized images of records, by index.

    In memory the store costs ``3 height width`` bytes an image (98 kB at 256 x 128, so that the default limit holds
    21,800 images); on disk it costs nothing, and every batch is decoded anew.

    Unreadable files: with ``verify`` (and always in memory) every file is decoded once up front, and what cannot be
    read is left out of ``records``, counted, named and warned about once. A file that breaks later, on disk, is named
    and warned about when it is first met; `batch` then takes the next readable image of the same identity in its
    place, so that labels stay true and a resumed run does the same; `stream` leaves it out, and warns once at its end.

    Attributes:
        records: The readable records; indices of `batch` count in this list.
        kept: For each of them its index in the list that was given.
        skipped: The files that could not be read, with the reasons.
        size: (height, width) in pixels.
        cache: "memory" or "disk".

    Args:
        records: What to read.
        size: (height, width) in pixels of all images.
        cache: "memory", "disk", or "auto": memory if the images fit into the limit.
        workers: Decoding threads.
        memory_limit_mb: Largest size of the images in memory, in MB of 10^6 bytes.
        verify: Whether to decode every file once up front; False starts at once.
        pin_memory: Whether batches lie in page-locked memory, for asynchronous copies to a GPU; None: if there is one.

    Raises:
        DataError: if there are no records or none can be read, or if "memory" was asked for and exceeds the limit.
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        size: tuple[int, int],
        *,
        cache: str = "auto",
        workers: int = 2,
        memory_limit_mb: float = DEFAULT_MEMORY_LIMIT_MB,
        verify: bool = True,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(
            records,
            len(records),
            ("images", "images"),
            size,
            cache=cache,
            workers=workers,
            memory_limit_mb=memory_limit_mb,
            pin_memory=pin_memory,
        )
        if self.cache == "memory" or verify:
            self._read_all()

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Images by index.

        Args:
            indices: Into ``records``; repetitions are allowed.

        Returns:
            uint8 tensor (B, 3, H, W).

        Raises:
            DataError: if an image broke since the start and its identity has no other readable one.
        """
        if self._images is not None:
            return self._pinned(pick(self._images, indices))
        wanted = [self._readable(index) for index in indices]
        while True:
            images, broken, failures = self._decode(wanted)
            for failure in failures:
                console.warn(f"{failure.path} can no longer be read: {failure.reason}")
            if not broken:
                return self._pinned(images)
            wanted = [self._readable(index) for index in wanted]

    def prefetch(
        self, batches: Iterable[Sequence[int]], depth: int = 2
    ) -> Generator[tuple[Sequence[int], Tensor], None, None]:
        """Yields each batch of indices with its images, reading up to ``depth`` batches ahead in the background.

        The order is kept, and an error is raised where its batch would have come.

        Args:
            batches: Lists of indices; may be endless.
            depth: Batches that wait, at least 1.
        """
        yield from self._read_ahead(self.batch, batches, depth)

    def stream(self, batch_size: int) -> Generator[tuple[list[int], Tensor], None, None]:
        """All images once, in order: indices into ``records`` and uint8 images (B, 3, H, W); unreadable ones left out.

        Args:
            batch_size: Largest number of images at a time; a batch with unreadable files is smaller.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        chunks = [range(start, min(start + batch_size, len(self))) for start in range(0, len(self), batch_size)]
        known = len(self.skipped)
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="motarfuse-prefetch") as reader:
                ahead = reader.submit(self._read_chunk, chunks[0])
                for chunk in [*chunks[1:], None]:
                    indices, images = ahead.result()
                    if chunk is not None:
                        ahead = reader.submit(self._read_chunk, chunk)
                    if indices:
                        yield indices, images
        finally:
            self._warn_left_out(self.skipped[known:])

    def _read_chunk(self, chunk: range) -> tuple[list[int], Tensor]:
        if self._images is not None:
            return list(chunk), self._pinned(self._images[chunk.start : chunk.stop].clone())
        images, broken, _ = self._decode(list(chunk))
        return [index for index in chunk if index not in broken], self._pinned(images)

    def _read_all(self) -> None:
        """Decodes every file: fills the memory, and leaves the unreadable ones out of ``records``."""
        height, width = self.size
        keep_images = self.cache == "memory"
        images = torch.empty((len(self.records) if keep_images else 0, 3, height, width), dtype=torch.uint8)
        kept: list[int] = []
        with console.progress("reading images", len(self.records)) as bar:
            for start in range(0, len(self.records), _CHUNK):
                paths = [record.path for record in self.records[start : start + _CHUNK]]
                chunk, skipped, places = read_images(paths, self.size, pool=self._pool)
                if keep_images:
                    images[len(kept) : len(kept) + len(places)] = chunk
                kept.extend(start + place for place in places)
                self.skipped.extend(skipped)
                bar.advance(bar.task_ids[0], len(paths))
        if not kept:
            first = self.skipped[0]
            raise DataError(f"none of {len(self.records)} images can be read; {first.path}: {first.reason}")
        self._warn_left_out(self.skipped)
        self.records = [self.records[index] for index in kept]
        self.kept = kept
        if keep_images:
            self._images = images[: len(kept)]

    def _warn_left_out(self, skipped: Sequence[Skipped]) -> None:
        if skipped:
            names = name_some((f"{item.path} ({item.reason})" for item in skipped), limit=5)
            console.warn(f"{len(skipped)} of {len(self.records)} images cannot be read and are left out: {names}")

    def _decode(self, indices: Sequence[int]) -> tuple[Tensor, set[int], list[Skipped]]:
        """Images of the readable indices, the broken ones, and the failures among them that are met first."""
        paths = [self.records[index].path for index in indices]
        images, skipped, places = read_images(paths, self.size, pool=self._pool)
        broken = set(indices) - {indices[place] for place in places}
        new = broken - self._unreadable
        self._unreadable |= broken
        failures = [
            failure
            for failure in {failure.path: failure for failure in skipped}.values()
            if any(self.records[index].path == failure.path for index in new)
        ]
        self.skipped.extend(failures)
        return images, broken, failures

    def _readable(self, index: int) -> int:
        """The index itself, or the next one of the same identity that has not failed."""
        if index not in self._unreadable:
            return index
        pid = self.records[index].pid
        for step in range(1, len(self.records)):
            other = (index + step) % len(self.records)
            if self.records[other].pid == pid and other not in self._unreadable:
                return other
        raise DataError(
            f"{self.records[index].path} can no longer be read, nor any other image of identity {pid}; "
            "repair the files or take the identity out of the training split"
        )

    def _pinned(self, images: Tensor) -> Tensor:
        return images.pin_memory() if self._pin else images


def pick(images: Tensor, indices: Sequence[int]) -> Tensor:
    """A copy of images (n, ...) in memory by index, on this thread: torch would wake others for it, and wait for them
    while they decode or serve other processes."""
    return torch.from_numpy(images.numpy().take(np.asarray(indices, dtype=np.int64), axis=0))
