"""What the stores of images and of clips share: checks, the choice of the cache, threads, reading ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from motarfuse.data.records import RecordT, Skipped, contiguous_labels
from motarfuse.errors import DataError

CACHES = ("auto", "memory", "disk")
DEFAULT_MEMORY_LIMIT_MB = 2048

Wanted = TypeVar("Wanted")
Found = TypeVar("Found")
Store = TypeVar("Store", bound="RecordStore[Any]")


class RecordStore(Generic[RecordT]):
    """Records whose pixels are kept in memory or decoded in threads; `ImageStore` and `ClipStore` say how.

    Args:
        records: What to read.
        files: How many files they are.
        names: What records and files are called, in the plural.
        size, cache, workers, memory_limit_mb, pin_memory: As of the stores.
    """

    def __init__(
        self,
        records: Sequence[RecordT],
        files: int,
        names: tuple[str, str],
        size: tuple[int, int],
        *,
        cache: str,
        workers: int,
        memory_limit_mb: float,
        pin_memory: bool | None,
    ) -> None:
        if cache not in CACHES:
            raise ValueError(f"cache must be one of {', '.join(CACHES)}, got {cache!r}")
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if min(size) < 1:
            raise ValueError(f"size must be a height and a width of at least 1 pixel, got {size}")
        if not records:
            raise DataError(f"there are no {names[0]} to read: the list of records is empty")
        self.size = size
        needed_mb = files * 3 * size[0] * size[1] / 1e6
        if cache == "memory" and needed_mb > memory_limit_mb:
            raise DataError(
                f"{files:,} {names[1]} of {size[0]} x {size[1]} need {needed_mb:,.0f} MB of memory, the limit is "
                f"{memory_limit_mb:,.0f} MB; raise the limit or let the cache be auto or disk"
            )
        self.cache = ("memory" if needed_mb <= memory_limit_mb else "disk") if cache == "auto" else cache
        self.records = list(records)
        self.kept = list(range(len(self.records)))
        self.skipped: list[Skipped] = []
        self._pin = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="motarfuse-decode")
        self._images: Tensor | None = None
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        return len(self.records)

    def __enter__(self: Store) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the decoding threads; a store on disk cannot read afterwards."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def labels(self) -> list[int]:
        """Class of each record: 0..C-1, in the order of the sorted identities."""
        return contiguous_labels(self.records)

    @property
    def camids(self) -> list[int]:
        """Camera of each record."""
        return [record.camid for record in self.records]

    def _read_ahead(
        self, read: Callable[[Wanted], Found], batches: Iterable[Wanted], depth: int
    ) -> Generator[tuple[Wanted, Found], None, None]:
        """Each batch with what ``read`` gives for it, up to ``depth`` batches ahead in the background, in order."""
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if self._images is not None and not self._pin:  # a copy within memory is cheaper than handing it to a thread
            for wanted in batches:
                yield wanted, read(wanted)
            return
        source = iter(batches)
        waiting: deque[tuple[Wanted, Future[Found]]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="motarfuse-prefetch") as reader:
            try:
                waiting.extend((wanted, reader.submit(read, wanted)) for wanted in islice(source, depth))
                while waiting:
                    wanted, found = waiting.popleft()
                    waiting.extend((later, reader.submit(read, later)) for later in islice(source, 1))
                    yield wanted, found.result()
            finally:
                for _, found in waiting:
                    found.cancel()
