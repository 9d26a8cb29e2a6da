"""Tracklets in folders of one's own: splits or none, cameras and frames from names."""

from __future__ import annotations

from pathlib import Path

import pytest

from motarfuse.data.tracklet_folder import frame_number, load_tracklet_folder
from motarfuse.data.video_registry import is_video_dataset, load_video_dataset
from motarfuse.errors import DataError
from tests.data.video_trees import backwards, by_name, say, sizes, touch


def _write(base: Path, names: tuple[str, str, str] = ("train", "query", "gallery")) -> Path:
    train, query, gallery = (base / name for name in names)
    touch(train / "anna" / "walk_c1", [f"frame{k}.jpg" for k in range(8, 12)])
    touch(train / "bert" / "cam2_morning", ["1.png", "2.png"])
    touch(query / "carl" / "a_c1", ["1.jpg", "2.jpg"])
    touch(gallery / "carl" / "b_c2", ["1.jpg", "3.jpg"])
    touch(gallery / "-1" / "x", ["1.jpg"])
    return base


@pytest.mark.parametrize("names", [("train", "query", "gallery"), ("train_all", "probe", "test")])
def test_splits_are_read_under_their_usual_names(tmp_path: Path, names: tuple[str, str, str]) -> None:
    _write(tmp_path, names)
    dataset = load_video_dataset(tmp_path)
    assert (dataset.kind, sizes(dataset), dataset.junk) == ("tracklet-folder", (2, 1, 1), {"gallery": 1})
    assert [one.camid for one in (*dataset.train, *dataset.query, *dataset.gallery)] == [0, 1, 0, 1]
    assert dataset.identity_names[dataset.query[0].pid] == "carl"
    assert dataset.gallery[0].num_missing == 1
    assert dataset.queries_without_match() == []


def test_frames_are_in_the_order_of_time_however_folders_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "run_2024_c3" / "frame_7")
    backwards(monkeypatch)
    dataset = load_tracklet_folder(tmp_path / "run_2024_c3" / "frame_7")
    assert by_name(dataset.train)["anna/walk_c1"].frame_index == (8, 9, 10, 11)
    assert dataset.train[0].files[:2] == ("frame8.jpg", "frame9.jpg")
    assert {one.camid for one in dataset.train} == {0, 1}


def test_integers_stay_identities_and_a_camera_in_a_frames_name_counts(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "007" / "1", ["0007_c3_f0001.jpg", "0007_c3_f0002.jpg"])
    touch(tmp_path / "train" / "12" / "1", ["a.jpg", "b.jpg"])
    dataset = load_tracklet_folder(tmp_path)
    assert [(one.pid, one.camid, one.frame_index) for one in dataset.train] == [(7, 2, (1, 2)), (12, -1, (0, 1))]
    assert dataset.identity_names == {}
    assert "1 tracklets have no frame numbers" in say(dataset)
    assert "1 of 2 images have no camera in their name" in say(dataset)


def test_without_splits_it_is_asked_for_by_name_and_trains(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "walk", ["1.jpg"])
    assert not is_video_dataset(tmp_path)
    dataset = load_video_dataset(tmp_path, "tracklet-folder")
    assert sizes(dataset) == (1, 0, 0)
    assert "every identity is for training" in say(dataset)


def test_sets_of_images_are_no_tracklets(tmp_path: Path) -> None:
    touch(tmp_path / "msmt" / "train" / "0001", ["0001_000_01_a.jpg"])
    touch(tmp_path / "pduke" / "train" / "whole_body_images" / "0001", ["1.jpg"])
    touch(tmp_path / "market" / "bounding_box_train", ["0002_c1s1_000451_03.jpg"])
    for name in ("msmt", "pduke", "market"):
        assert not is_video_dataset(tmp_path / name)


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    _write(tmp_path)
    touch(tmp_path / "train" / "anna", ["portrait.jpg"])
    (tmp_path / "train" / "anna" / "empty").mkdir()
    touch(tmp_path / "train" / "bert" / "cam2_morning", ["cover.png"])
    dataset = load_tracklet_folder(tmp_path)
    assert sorted(one.path.name for one in dataset.skipped) == ["cover.png", "empty", "portrait.jpg"]
    assert "1 tracklets left out (a tracklet without any frame): empty" in say(dataset)
    assert by_name(dataset.train)["bert/cam2_morning"].frame_index == (1, 2)


def test_folders_without_tracklets_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "a", ["1.jpg"])
    with pytest.raises(DataError, match=r"no images in tracklet folders \(found train\)"):
        load_tracklet_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("0007.jpg", 7),
        ("frame_12_c3.jpg", 12),
        ("0007_c3_f0042.jpg", 42),
        ("person2_15_cam1.png", 15),
        ("walk.jpg", None),
        ("clip2_0003.v2.jpg", 2),
    ],
)
def test_a_name_says_its_frame(name: str, number: int | None) -> None:
    assert frame_number(name) == number
