"""The clip store: padded batches, equal bytes from memory and disk, broken frames masked and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from motarfuse.data import Clip, ClipStore, Tracklet, read_image
from motarfuse.errors import DataError

SIZE = (24, 12)


@pytest.fixture
def tracklets(tmp_path: Path, picture: Callable) -> list[Tracklet]:
    """Three tracklets of 5, 1 and 3 frames; every second frame is missing."""
    found = []
    for number, length in enumerate((5, 1, 3)):
        folder = tmp_path / str(number)
        folder.mkdir()
        files = tuple(f"{frame}.jpg" for frame in range(length))
        for frame, name in enumerate(files):
            picture(folder / name, 10 * number + frame)
        index = tuple(range(4, 4 + 2 * length, 2))
        found.append(Tracklet(f"t{number}", 7 + number // 2, number % 2, folder, files, index))
    return found


def _frame(tracklet: Tracklet, place: int) -> torch.Tensor:
    return torch.from_numpy(read_image(tracklet.paths[place], SIZE).transpose(2, 0, 1).copy())


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_batch_is_padded_to_its_longest_clip(tracklets: list[Tracklet], cache: str) -> None:
    with ClipStore(tracklets, SIZE, cache=cache) as store:
        batch = store.batch([Clip(2, [0, 2]), Clip(0, [1, 2, 4]), Clip(1, [0])])
        assert (store.labels, store.camids, store.num_frames) == ([0, 0, 1], [0, 1, 0], 9)
    assert batch.frame_mask.tolist() == [[True, True, False], [True, True, True], [True, False, False]]
    assert batch.frame_index.tolist() == [[0, 4, 5], [0, 2, 6], [0, 1, 2]]
    for row, (number, places) in enumerate([(2, [0, 2]), (0, [1, 2, 4]), (1, [0])]):
        for column, place in enumerate(places):
            assert torch.equal(batch.images[row, column], _frame(tracklets[number], place))
        assert not batch.images[row, len(places) :].any()


def test_memory_and_disk_give_equal_batches_in_order(tracklets: list[Tracklet]) -> None:
    wanted = [[Clip(0, [0, 4]), Clip(1, [0])], [Clip(2, [1])], [Clip(2, [0, 1, 2])]]
    with ClipStore(tracklets, SIZE, cache="memory") as memory, ClipStore(tracklets, SIZE, cache="disk") as disk:
        for one, other, clips in zip(memory.prefetch(wanted), disk.prefetch(wanted, 1), wanted, strict=True):
            assert one.clips == other.clips == clips
            assert all(torch.equal(mine, its) for mine, its in zip(one[1:], other[1:], strict=True))


def test_auto_keeps_in_memory_what_fits_into_the_limit(tracklets: list[Tracklet]) -> None:
    needed_mb = 9 * 3 * 24 * 12 / 1e6
    assert ClipStore(tracklets, SIZE, memory_limit_mb=needed_mb).cache == "memory"
    assert ClipStore(tracklets, SIZE, memory_limit_mb=needed_mb * 0.99).cache == "disk"
    with pytest.raises(DataError, match="9 frames of 24 x 12 need"):
        ClipStore(tracklets, SIZE, cache="memory", memory_limit_mb=needed_mb * 0.99)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_broken_frame_is_a_gap_and_named_once(
    tracklets: list[Tracklet], cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tracklets[0].paths[1].write_bytes(b"no picture")
    with ClipStore(tracklets, SIZE, cache=cache) as store:
        for _ in range(2):
            batch = store.batch([Clip(0, [0, 1, 2]), Clip(2, [0])])
            assert batch.frame_mask.tolist() == [[True, True], [True, False]]
            assert batch.frame_index.tolist() == [[0, 4], [0, 1]]
            assert torch.equal(batch.images[0], torch.stack([_frame(tracklets[0], place) for place in (0, 2)]))
        assert [len(record) for record in store.records] == [5, 1, 3]
        assert [item.path for item in store.skipped] == [tracklets[0].paths[1]]
    assert "1 frames cannot be read" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_clip_without_a_readable_frame_takes_the_nearest_of_its_tracklet(
    tracklets: list[Tracklet], cache: str
) -> None:
    for place in (1, 2):
        tracklets[0].paths[place].unlink()
    with ClipStore(tracklets, SIZE, cache=cache) as store:
        batch = store.batch([Clip(0, [2])])
        assert batch.frame_mask.tolist() == [[True]]
        assert torch.equal(batch.images[0, 0], _frame(tracklets[0], 3))


def test_in_memory_a_tracklet_of_which_nothing_can_be_read_leaves_the_store(tracklets: list[Tracklet]) -> None:
    tracklets[1].paths[0].write_bytes(b"no picture")
    with ClipStore(tracklets, SIZE, cache="memory") as store:
        assert store.kept == [0, 2]
        assert [record.name for record in store.records] == ["t0", "t2"]
        assert torch.equal(store.batch([Clip(1, [2])]).images[0, 0], _frame(tracklets[2], 2))


def test_on_disk_another_tracklet_of_the_identity_takes_the_place_of_an_unreadable_one(
    tracklets: list[Tracklet],
) -> None:
    tracklets[1].paths[0].unlink()  # of identity 7, as the first tracklet
    with ClipStore(tracklets, SIZE, cache="disk") as store:
        batch = store.batch([Clip(1, [0]), Clip(2, [1])])
        assert [clip.tracklet for clip in batch.clips] == [0, 2]
        assert torch.equal(batch.images[0, 0], _frame(tracklets[0], 2))
        kept = store.batch([Clip(1, [0]), Clip(2, [1])], leave_out=True)
        assert [clip.tracklet for clip in kept.clips] == [2]
        assert len(store.batch([Clip(1, [0])], leave_out=True).images) == 0
        assert [item.path for item in store.skipped] == [tracklets[1].paths[0]]


def test_an_identity_of_which_nothing_can_be_read_is_named(tracklets: list[Tracklet]) -> None:
    for path in tracklets[2].paths:
        path.unlink()
    with (
        ClipStore(tracklets, SIZE, cache="disk") as store,
        pytest.raises(DataError, match=r"tracklet t2: none of its 3 frames .* nor any other tracklet of identity 8"),
    ):
        store.batch([Clip(2, [1])])


def test_nothing_readable_at_all_is_an_error(tracklets: list[Tracklet]) -> None:
    for tracklet in tracklets:
        for path in tracklet.paths:
            path.write_bytes(b"")
    with pytest.raises(DataError, match="none of 9 frames can be read"):
        ClipStore(tracklets, SIZE, cache="memory")


@pytest.mark.parametrize(
    ("options", "message"), [({"cache": "tape"}, "cache"), ({"workers": 0}, "workers"), ({"size": (0, 4)}, "size")]
)
def test_wrong_arguments_are_named(tracklets: list[Tracklet], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipStore(tracklets, options.pop("size", SIZE), **options)
    with pytest.raises(DataError, match="empty"):
        ClipStore([], SIZE)


def test_frame_indices_count_from_the_clip_s_first_frame(tracklets: list[Tracklet]) -> None:
    with ClipStore(tracklets, SIZE) as store:
        assert np.array_equal(store.batch([Clip(0, [2, 4])]).frame_index, [[0, 4]])
