"""DukeMTMC-VideoReID: both patterns of file names, labels against folders, and the queries in the gallery."""

from __future__ import annotations

from pathlib import Path

import pytest

from motarfuse.data.duke_video import load_duke_video, parse_duke_name
from motarfuse.data.video_registry import load_video_dataset
from motarfuse.errors import DataError
from tests.data.video_trees import backwards, by_name, say, sizes, touch

# split, identity, tracklet, camera, frames
TRACKLETS = [
    ("train", 1, "0007", 1, range(1, 4)),
    ("train", 1, "0008", 6, range(1, 120)),
    ("train", 20, "0009", 8, range(1, 3)),
    ("query", 30, "0100", 1, range(1, 4)),
    ("query", 31, "0102", 2, range(1, 4)),
    ("gallery", 30, "0100", 1, range(1, 4)),
    ("gallery", 30, "0101", 2, range(1, 4)),
    ("gallery", 31, "0102", 2, range(1, 4)),
    ("gallery", 31, "0103", 3, range(1, 4)),
    ("gallery", 44, "0104", 3, range(1, 4)),
]
NEW, OLD = "{:04d}_C{}_F{:04d}_X{}.jpg", "{:04d}C{}F{:04d}X{}.jpg"


def _write(base: Path, pattern: str = NEW) -> Path:
    for split, pid, tracklet, camera, frames in TRACKLETS:
        names = [pattern.format(pid, camera, frame, 30_000 + 12 * frame) for frame in frames]
        touch(base / split / f"{pid:04d}" / tracklet, names)
    return base


@pytest.mark.parametrize("pattern", [NEW, OLD])
@pytest.mark.parametrize("place", [".", "DukeMTMC-VideoReID", "dukemtmc-vidreid/DukeMTMC-VideoReID"])
def test_both_patterns_are_read_from_every_place(tmp_path: Path, pattern: str, place: str) -> None:
    _write(tmp_path / place, pattern)
    dataset = load_video_dataset(tmp_path)
    assert (dataset.kind, sizes(dataset)) == ("dukemtmc-video", (3, 2, 5))
    assert [(one.pid, one.camid) for one in dataset.train] == [(1, 0), (1, 5), (20, 7)]
    assert pattern.format(1, 6, 99, 30823).removesuffix(".jpg") in dataset.variant
    assert dataset.queries_without_match() == []


def test_frames_are_in_the_order_of_time_however_folders_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, "{:04d}_C{}_F{:d}_X{}.jpg")
    backwards(monkeypatch)
    dataset = load_duke_video(tmp_path)
    assert by_name(dataset.train)["0001/0008"].frame_index == tuple(range(1, 120))
    assert [one.pid for one in dataset.gallery] == [30, 30, 31, 31, 44]


def test_labels_come_from_the_identitys_own_folder_and_base_names(tmp_path: Path) -> None:
    dataset = load_duke_video(_write(tmp_path / "run_2024_C3_F1_X1" / "0999"))
    assert {one.pid for one in dataset.train} == {1, 20}
    assert {one.camid for one in dataset.train} == {0, 5, 7}


def test_queries_can_be_taken_out_of_the_gallery_and_both_counts_are_told(tmp_path: Path) -> None:
    _write(tmp_path)
    dataset = load_duke_video(tmp_path, queries_in_gallery=False)
    assert [one.name for one in dataset.gallery] == ["0030/0101", "0031/0103", "0044/0104"]
    for one in (dataset, load_duke_video(tmp_path)):
        assert "(official): 5 tracklets, 2 of 2 queries can be answered; without them: 3 tracklets, 2 of 2" in say(one)
    for path in sorted((tmp_path / "gallery" / "0030" / "0100").iterdir()):
        path.unlink()
    (tmp_path / "gallery" / "0030" / "0100").rmdir()
    assert "1 of 2 queries are not in the gallery folder" in say(load_duke_video(tmp_path))


def test_files_of_another_identity_or_camera_are_left_out_and_named(tmp_path: Path) -> None:
    _write(tmp_path)
    folder = tmp_path / "train" / "0001" / "0007"
    touch(folder, ["0002_C1_F0009_X1.jpg", "0001_C2_F0009_X1.jpg", "0001_C1_F0001_X9.jpg", "cover.jpg"])
    dataset = load_duke_video(tmp_path)
    assert by_name(dataset.train)["0001/0007"].frame_index == (1, 2, 3)
    assert sorted(one.path.name for one in dataset.skipped) == [
        "0001_C1_F0001_X9.jpg",
        "0001_C2_F0009_X1.jpg",
        "0002_C1_F0009_X1.jpg",
        "cover.jpg",
    ]
    assert "2 files of 1 tracklets left out (its name says another identity or camera than its tracklet)" in say(
        dataset
    )


def test_odd_folders_junk_and_loose_files_are_counted(tmp_path: Path) -> None:
    _write(tmp_path)
    touch(tmp_path / "train" / "__MACOSX" / "0001", ["0001_C1_F0001_X1.jpg"])
    touch(tmp_path / "gallery" / "-1" / "0001", ["-1_C1_F0001_X1.jpg"])
    touch(tmp_path / "train" / "0001", ["0001_C1_F0001_X1.jpg"])
    touch(tmp_path / "train" / "0001" / "0099", ["a.jpg"])
    dataset = load_duke_video(tmp_path)
    assert (sizes(dataset), dataset.junk) == ((3, 2, 5), {"gallery": 1})
    assert "train: 1 folders are no identities and not read: __MACOSX" in say(dataset)
    assert "1 files of 1 tracklets left out (it lies outside any tracklet's folder)" in say(dataset)
    assert "1 tracklets left out (a tracklet without any frame): 0099" in say(dataset)


def test_images_of_duke_are_no_video(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "0001", ["0001_c1_f0046182.jpg"])
    with pytest.raises(DataError, match="no set of tracklets recognised"):
        load_video_dataset(tmp_path)
    with pytest.raises(DataError, match=r"0001_C6_F0099_X30823\.jpg"):
        load_duke_video(tmp_path)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("0001_C6_F0099_X30823.jpg", (1, 5, 99)),
        ("0001C6F0099X30823.jpg", (1, 5, 99)),
        ("0001_C0_F0099_X30823.jpg", None),
        ("a_0001_C6_F0099_X30823.jpg", None),
        ("0001_c6_f0099.jpg", None),
    ],
)
def test_a_name_says_identity_camera_and_frame(name: str, labels: object) -> None:
    assert parse_duke_name(name) == labels
