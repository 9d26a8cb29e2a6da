"""Crops of a tracker: lists of crops in any order, labels that restart, and halves that can find each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from motarfuse.data.tracker_crops import load_tracker_crops
from motarfuse.data.video_registry import load_video_dataset
from motarfuse.errors import DataError
from tests.data.video_trees import backwards, by_name, say, sizes, touch, write

TRACKS = {"MOT17-02_000001": 12, "MOT17-02_000002": 3, "MOT17-04_000001": 30, "MOT17-04_000009": 5}
TRAIN, TEST = list(TRACKS)[:2], list(TRACKS)[2:]


def _write(base: Path, meta: bool = True) -> Path:
    for folder, length in TRACKS.items():
        touch(base / "imgs" / folder, [f"{k:06d}.jpg" for k in range(length)])
    if meta:
        for name, folders in (("train_80", TRAIN), ("val_20", TEST), ("train", list(TRACKS))):
            lines = [f"{f}/{k:06d}.jpg {label}" for label, f in enumerate(folders) for k in range(TRACKS[f])]
            write(base / "meta" / f"{name}.txt", reversed(lines))
    return base


@pytest.mark.parametrize(("root", "base"), [(".", "."), (".", "reid"), (".", "MOT17/reid"), ("reid", "reid")])
def test_every_place_is_found_and_labels_of_the_test_list_are_numbered_on(tmp_path: Path, root: str, base: str) -> None:
    _write(tmp_path / base)
    dataset = load_video_dataset(tmp_path / root)
    assert dataset.kind == "tracker-crops"
    assert [(one.name, one.pid, len(one)) for one in dataset.train] == [(TRAIN[0], 0, 12), (TRAIN[1], 1, 3)]
    assert {one.pid for one in dataset.gallery} == {2}
    assert dataset.identity_names == dict(enumerate(TRACKS))
    assert {one.camid for one in dataset.train} == {-1}
    assert "those of the test list are numbered on" in say(dataset)


def test_a_test_track_is_halved_in_time_into_pieces_that_find_each_other(tmp_path: Path) -> None:
    dataset = load_tracker_crops(_write(tmp_path), length=4, gap=10)
    assert [(one.camid, one.frame_index) for one in dataset.query] == [
        (0, (0, 1, 2, 3)),
        (0, (4, 5, 6, 7)),
        (0, (8, 9)),
    ]
    assert [(one.camid, one.frame_index[0], len(one)) for one in dataset.gallery] == [
        (1, 20, 4),
        (1, 24, 4),
        (1, 28, 2),
    ]
    assert dataset.queries_without_match() == []
    by_name([*dataset.query, *dataset.gallery])
    assert "10 crops apart, in pieces of at most 4 frames" in dataset.protocol
    assert "3 queries and 3 gallery pieces of 2 test tracks, of which 1 are too short" in say(dataset)


def test_without_a_gap_every_track_of_two_crops_is_used(tmp_path: Path) -> None:
    dataset = load_tracker_crops(_write(tmp_path), length=100, gap=0)
    assert [(one.pid, len(one)) for one in dataset.query] == [(2, 15), (3, 2)]
    assert [(one.pid, len(one)) for one in dataset.gallery] == [(2, 15), (3, 3)]


def test_frames_are_in_the_order_of_time_whatever_the_lists_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "run_2024_000007")
    backwards(monkeypatch)
    dataset = load_tracker_crops(tmp_path)
    assert [one.frame_index for one in dataset.train] == [tuple(range(12)), (0, 1, 2)]
    assert {one.pid for one in dataset.train} == {0, 1}


def test_crops_that_are_not_there_or_in_no_list_are_counted(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "imgs" / TRAIN[0] / "000003.jpg").unlink()
    touch(tmp_path / "imgs" / TRAIN[0], ["000099.jpg"])
    dataset = load_tracker_crops(tmp_path)
    assert dataset.train[0].num_missing == 1
    assert [one.path.name for one in dataset.skipped] == ["000003.jpg"]
    assert "1 images in imgs are in no list and not read" in say(dataset)


def test_without_lists_every_track_trains(tmp_path: Path) -> None:
    dataset = load_video_dataset(_write(tmp_path, meta=False))
    assert sizes(dataset) == (4, 0, 0)
    assert "every track is for training" in say(dataset)
    assert dataset.identity_names == dict(enumerate(TRACKS))


def test_lines_of_another_form_are_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    for line in ("MOT17-02_000001/000000.jpg", "000000.jpg 1", "MOT17-02_000001/000000.txt 1", "a_1/0.jpg x"):
        write(tmp_path / "meta" / "train_80.txt", [line])
        with pytest.raises(DataError, match=r"train_80\.txt, line 1: .* is not <sequence>_<track>/<file> <label>"):
            load_tracker_crops(tmp_path)


def test_unusable_arguments_are_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    with pytest.raises(ValueError, match="length must be at least 1 and gap at least 0, got 0 and 10"):
        load_tracker_crops(tmp_path, length=0)
    with pytest.raises(ValueError, match="got 8 and -1"):
        load_tracker_crops(tmp_path, gap=-1)
