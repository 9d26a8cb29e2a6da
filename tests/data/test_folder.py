"""One folder per identity: any names, cameras from base names, splits or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from motarfuse.data import load_dataset
from motarfuse.data.folder import load_folder
from motarfuse.errors import DataError


def test_folders_without_splits_are_a_training_set(tmp_path: Path, picture: Callable) -> None:
    for identity in ("anna", "bert", "Carl"):
        for number in range(2):
            picture(tmp_path / identity / f"{number}.jpg")
    dataset = load_dataset(tmp_path)
    assert (dataset.kind, len(dataset.train), len(dataset.query)) == ("folder", 6, 0)
    assert dataset.identity_names == {1: "anna", 2: "bert", 3: "Carl"}
    assert dataset.train_labels() == [0, 0, 1, 1, 2, 2]
    dataset.require_training()


def test_one_person_has_one_number_in_all_splits(tmp_path: Path, picture: Callable) -> None:
    for split, identity in (("train", "z"), ("query", "b"), ("test", "b"), ("test", "a")):
        picture(tmp_path / split / identity / f"{split}.jpg")
    dataset = load_dataset(tmp_path)
    names = {
        split: [dataset.identity_names[r.pid] for r in dataset.subset(split)] for split in ("train", "query", "gallery")
    }
    assert names == {"train": ["z"], "query": ["b"], "gallery": ["a", "b"]}
    dataset.require_evaluation()


def test_integer_names_keep_their_values_and_minus_one_is_junk(tmp_path: Path, picture: Callable) -> None:
    for split, identity in (("train", "0002"), ("train", "0010"), ("query", "3"), ("gallery", "3"), ("gallery", "-1")):
        picture(tmp_path / split / identity / "a.jpg")
    dataset = load_folder(tmp_path)
    assert [record.pid for record in dataset.train] == [2, 10]
    assert (dataset.junk, dataset.identity_names) == ({"gallery": 1}, {})


def test_names_that_are_one_number_twice_stay_two_people(tmp_path: Path, picture: Callable) -> None:
    picture(tmp_path / "1" / "a.jpg")
    picture(tmp_path / "01" / "a.jpg")
    assert len({record.pid for record in load_folder(tmp_path).train}) == 2


def test_cameras_come_from_the_base_name_where_it_tells_them(tmp_path: Path, picture: Callable) -> None:
    for name in ("0001_c2_3.jpg", "c1.jpg", "plain.jpg"):
        picture(tmp_path / "cam_c7" / name)
    dataset = load_folder(tmp_path)
    assert {record.path.name: record.camid for record in dataset.train} == {
        "0001_c2_3.jpg": 1,
        "c1.jpg": 0,
        "plain.jpg": -1,
    }
    assert any("1 of 3 images have no camera" in note for note in dataset.notes)


def test_cameras_that_count_from_zero_are_taken_as_they_are(tmp_path: Path, picture: Callable) -> None:
    for name in ("a_c0.jpg", "a_c1.jpg"):
        picture(tmp_path / "x" / name)
    dataset = load_folder(tmp_path)
    assert [record.camid for record in dataset.train] == [0, 1]
    assert any("counting from 0" in note for note in dataset.notes)


def test_unknown_cameras_never_count_as_the_same_camera(tmp_path: Path, picture: Callable) -> None:
    picture(tmp_path / "query" / "a" / "1.jpg")
    picture(tmp_path / "gallery" / "a" / "2.jpg")
    dataset = load_folder(tmp_path)
    assert dataset.queries_without_match() == []


def test_what_is_not_read_is_noted(tmp_path: Path, picture: Callable) -> None:
    picture(tmp_path / "train" / "a" / "1.jpg")
    (tmp_path / "train" / "empty").mkdir()
    picture(tmp_path / "misc" / "b" / "1.jpg")
    picture(tmp_path / "loose.jpg")
    notes = " | ".join(load_folder(tmp_path).notes)
    for text in ("no folder for query and gallery", "1 folders are no split and not read: misc", "empty", "loose.jpg"):
        assert text in notes


def test_frames_in_folders_below_an_identity_belong_to_it(tmp_path: Path, picture: Callable) -> None:
    picture(tmp_path / "a" / "walk10" / "f1.jpg")
    picture(tmp_path / "a" / "walk9" / "f1.jpg")
    picture(tmp_path / "a" / "walk9" / "f0.jpg")
    names = [record.path.relative_to(tmp_path / "a").as_posix() for record in load_folder(tmp_path).train]
    assert names == ["walk9/f0.jpg", "walk9/f1.jpg", "walk10/f1.jpg"]


def test_split_folders_without_identities_say_what_is_expected(tmp_path: Path, picture: Callable) -> None:
    picture(tmp_path / "train" / "loose.jpg")
    with pytest.raises(DataError, match=r"found train.*expected <identity>/\*\.jpg"):
        load_dataset(tmp_path)


def test_an_empty_folder_is_refused_with_the_layouts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder is empty\. Supported: occluded_duke.*market1501.*csv.*folder"):
        load_dataset(tmp_path)


def test_a_flat_folder_of_images_is_refused_with_what_it_holds(tmp_path: Path, picture: Callable) -> None:
    picture(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"holds 1 images, 0 folders and 0 other files \(a\.jpg\)"):
        load_dataset(tmp_path)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        load_dataset(tmp_path / "nowhere")


def test_an_unknown_kind_names_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown dataset kind 'mars'; supported are auto, .*msmt17, .*csv, folder"):
        load_dataset(tmp_path, "mars")


def test_an_option_of_another_kind_is_refused(tmp_path: Path, picture: Callable) -> None:
    picture(tmp_path / "a" / "1.jpg")
    with pytest.raises(DataError, match="extra_distractors is no option of the kind 'folder'"):
        load_dataset(tmp_path, extra_distractors=True)


def test_an_unreadable_folder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.touch()
    with pytest.raises(DataError, match=r"is a file, not a \.csv table"):
        load_dataset(file)
    with pytest.raises(DataError, match="is a file, a folder of images is needed"):
        load_dataset(file, "folder")
