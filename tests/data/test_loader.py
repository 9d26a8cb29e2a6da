"""The image store: equal bytes from memory and disk, broken files named and never mislabelled."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from motarfuse.data import ImageRecord, ImageStore, read_image
from motarfuse.errors import DataError

SIZE = (24, 12)


@pytest.fixture
def records(tmp_path: Path, picture: Callable) -> list[ImageRecord]:
    """12 images of 4 identities: 0, 1, 2 belong to identity 10, 3, 4, 5 to 11, and so on."""
    return [
        ImageRecord(picture(tmp_path / f"{number}.jpg", number), 10 + number // 3, number % 2) for number in range(12)
    ]


def _expected(records: list[ImageRecord], indices: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.stack([read_image(records[i].path, SIZE).transpose(2, 0, 1) for i in indices]))


@pytest.mark.parametrize("cache", ["memory", "disk"])
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_hold_the_images_of_their_indices_in_order(
    records: list[ImageRecord], cache: str, workers: int
) -> None:
    with ImageStore(records, SIZE, cache=cache, workers=workers) as store:
        for indices in ([5], [3, 3, 0, 11], list(range(12)), []):
            got = store.batch(indices)
            assert got.dtype == torch.uint8
            if indices:
                assert torch.equal(got, _expected(records, indices))
            else:
                assert got.shape == (0, 3, *SIZE)
        assert (store.labels, store.camids) == ([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], [0, 1] * 6)


def test_auto_keeps_in_memory_what_fits_into_the_limit(records: list[ImageRecord]) -> None:
    needed_mb = 12 * 3 * 24 * 12 / 1e6
    assert ImageStore(records, SIZE, memory_limit_mb=needed_mb).cache == "memory"
    assert ImageStore(records, SIZE, memory_limit_mb=needed_mb * 0.99).cache == "disk"
    with pytest.raises(DataError, match="12 images of 24 x 12 need 0 MB of memory, the limit is 0 MB; raise the limit"):
        ImageStore(records, SIZE, cache="memory", memory_limit_mb=needed_mb * 0.99)


def test_memory_holds_the_images_even_when_the_files_go_away(records: list[ImageRecord]) -> None:
    store = ImageStore(records, SIZE, cache="memory")
    expected = _expected(records, [4, 7])
    for record in records:
        record.path.unlink()
    assert torch.equal(store.batch([4, 7]), expected)


def test_a_batch_from_memory_is_a_copy(records: list[ImageRecord]) -> None:
    store = ImageStore(records, SIZE, cache="memory")
    store.batch([0]).zero_()
    for _, images in store.stream(5):
        images.zero_()
    assert torch.equal(store.batch([0]), _expected(records, [0]))


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_files_that_are_broken_from_the_start_are_left_out_counted_and_named(
    records: list[ImageRecord], cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    records[1].path.write_bytes(b"")
    records[6].path.write_bytes(records[6].path.read_bytes()[:150])
    records[9].path.unlink()
    store = ImageStore(records, SIZE, cache=cache)
    assert store.kept == [0, 2, 3, 4, 5, 7, 8, 10, 11]
    assert store.records == [records[index] for index in store.kept]
    assert [skipped.path for skipped in store.skipped] == [records[index].path for index in (1, 6, 9)]
    assert [skipped.reason for skipped in store.skipped][::2] == ["the file is empty (0 bytes)", "no such file"]
    assert torch.equal(store.batch([1]), _expected(records, [2]))
    warning = " ".join(capsys.readouterr().err.split())
    assert "3 of 12 images cannot be read and are left out" in warning
    assert warning.count("warning") == 1


def test_a_file_that_breaks_later_is_named_once_and_replaced_by_the_next_of_its_identity(
    records: list[ImageRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = _expected(records, [5, 3, 8])
    store = ImageStore(records, SIZE, cache="disk")
    records[4].path.write_bytes(b"")
    assert torch.equal(store.batch([4, 3, 8]), expected)
    assert torch.equal(store.batch([4, 3, 8]), expected)
    assert [skipped.path for skipped in store.skipped] == [records[4].path]
    warning = "".join(capsys.readouterr().err.split())
    assert warning.count("cannolongerberead") == 1
    assert "4.jpg" in warning
    # The last image of an identity goes on with its first; another process that meets the damage later agrees.
    records[5].path.write_bytes(b"")
    again = ImageStore(records, SIZE, cache="disk", verify=False)
    for reader in (store, again):
        assert torch.equal(reader.batch([4, 5]), _expected(records, [3, 3]))


def test_an_identity_without_a_readable_image_left_is_an_error_that_names_it(records: list[ImageRecord]) -> None:
    store = ImageStore(records, SIZE, cache="disk")
    for record in records[3:6]:
        record.path.unlink()
    with pytest.raises(DataError, match="nor any other image of identity 11"):
        store.batch([0, 4])
    assert torch.equal(store.batch([0]), _expected(records, [0]))


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_stream_gives_every_readable_image_once_in_order(records: list[ImageRecord], cache: str) -> None:
    store = ImageStore(records, SIZE, cache=cache)
    for batch_size in (1, 5, 12, 50):
        pieces = list(store.stream(batch_size))
        assert [index for indices, _ in pieces for index in indices] == list(range(12))
        assert torch.equal(torch.cat([images for _, images in pieces]), _expected(records, list(range(12))))


def test_a_stream_leaves_out_what_breaks_later_and_never_replaces_it(records: list[ImageRecord]) -> None:
    store = ImageStore(records, SIZE, cache="disk", verify=False)
    for index in (0, 1, 7):
        records[index].path.write_bytes(b"")
    pieces = list(store.stream(2))
    indices = [index for indices, _ in pieces for index in indices]
    assert indices == [2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert torch.equal(torch.cat([images for _, images in pieces]), _expected(records, indices))
    assert [skipped.path for skipped in store.skipped] == [records[index].path for index in (0, 1, 7)]


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_prefetching_gives_the_same_batches_in_the_same_order(records: list[ImageRecord], cache: str) -> None:
    store = ImageStore(records, SIZE, cache=cache)
    batches = [[index, (index + 5) % 12] for index in range(12)]
    for depth in (1, 4):
        for (indices, images), wanted in zip(store.prefetch(batches, depth), batches, strict=True):
            assert indices == wanted
            assert torch.equal(images, _expected(records, wanted))


def test_prefetching_stays_a_fixed_number_of_batches_ahead_of_an_endless_source(records: list[ImageRecord]) -> None:
    store = ImageStore(records, SIZE, cache="disk")
    taken = itertools.count()
    source = ([next(taken) % 12] for _ in itertools.count())
    batches = store.prefetch(source, depth=3)
    for _ in range(5):
        next(batches)
    batches.close()
    assert next(taken) == 5 + 3
    assert not any(thread.name.startswith("motarfuse-prefetch") for thread in threading.enumerate())


def test_an_error_while_prefetching_arrives_where_its_batch_would(records: list[ImageRecord]) -> None:
    store = ImageStore(records, SIZE, cache="disk")
    for record in records[3:6]:
        record.path.unlink()
    batches = store.prefetch([[0], [4], [1]])
    assert next(batches)[0] == [0]
    with pytest.raises(DataError, match="identity 11"):
        next(batches)


def test_nothing_readable_is_an_error_with_the_first_reason(records: list[ImageRecord]) -> None:
    for record in records:
        record.path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 12 images can be read; .*0\.jpg: the file is empty"):
        ImageStore(records, SIZE)


@pytest.mark.gpu
def test_batches_lie_in_page_locked_memory_beside_a_gpu(records: list[ImageRecord]) -> None:
    store = ImageStore(records, SIZE)
    assert store.batch([0, 1]).is_pinned()
    assert all(images.is_pinned() for _, images in store.prefetch([[0], [1]]))


def test_arguments_out_of_range_are_named(records: list[ImageRecord]) -> None:
    with pytest.raises(DataError, match="the list of records is empty"):
        ImageStore([], SIZE)
    with pytest.raises(ValueError, match="cache must be one of auto, memory, disk, got 'ram'"):
        ImageStore(records, SIZE, cache="ram")
    with pytest.raises(ValueError, match="workers must be at least 1"):
        ImageStore(records, SIZE, workers=0)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        ImageStore(records, (0, 12))
    store = ImageStore(records, SIZE)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        next(store.stream(0))
    with pytest.raises(ValueError, match="depth must be at least 1"):
        next(store.prefetch([[0]], depth=0))
