"""What training, evaluation and extraction read: the pixels of images or of tracklets, whichever the records are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from motarfuse.data import ClipStore, ImageRecord, ImageStore, Tracklet
from motarfuse.engine.config import DataConfig

Records = Sequence[ImageRecord] | Sequence[Tracklet]


def open_store(
    records: Records, size: tuple[int, int], data: DataConfig, *, verify: bool = True
) -> ImageStore | ClipStore:
    """The pixels of images or of tracklets, whichever the records are.

    Args:
        records: All of one type, or it is a TypeError.
        size: (height, width) in pixels.
        data: How files are read.
        verify: As of `ImageStore`; frames of tracklets on disk are not decoded up front.
    """
    options: dict[str, Any] = {"cache": data.cache, "workers": data.workers, "memory_limit_mb": data.memory_limit_mb}
    tracklets = [record for record in records if isinstance(record, Tracklet)]
    if tracklets:
        if len(tracklets) < len(records):
            raise TypeError("records must all be images, or all be tracklets; an image may be a tracklet of one frame")
        return ClipStore(tracklets, size, **options)
    return ImageStore([record for record in records if isinstance(record, ImageRecord)], size, verify=verify, **options)


def describe_store(store: ImageStore | ClipStore) -> str:
    """How much there is, in words."""
    if isinstance(store, ClipStore):
        return f"{len(store):,} tracklets ({store.num_frames:,} frames)"
    return f"{len(store):,} images"
