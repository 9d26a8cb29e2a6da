"""Occluded-REID, Partial-REID, Partial-iLIDS, P-DukeMTMC: every layout, no training split, labels from own names."""

from __future__ import annotations

from pathlib import Path

import pytest

from motarfuse.data import ReIDDataset, check_dataset, load_dataset
from motarfuse.data.occluded_sets import is_occluded_reid
from motarfuse.errors import DataError


def write(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def labels(dataset: ReIDDataset, split: str) -> list[tuple[int, int]]:
    return [(record.pid, record.camid) for record in dataset.subset(split)]


NESTED = [f"{pid:03d}/{pid:03d}_{number:02d}.tif" for pid in (1, 2, 10) for number in (1, 2)]
FLAT = [name.partition("/")[2].replace(".tif", ".jpg") for name in NESTED]
PEOPLE = [1, 1, 2, 2, 10, 10]


@pytest.mark.parametrize(
    ("place", "folders", "names"),
    [
        ("Occluded_REID", ("occluded_body_images", "whole_body_images"), NESTED),
        ("ICME2018_Occluded-Person/Occluded_REID", ("occluded_body_images", "whole_body_images"), NESTED),
        ("anything", ("occluded_body_images", "whole_body_images"), NESTED),
        ("OccludedREID", ("query", "gallery"), FLAT),
        ("occluded-reid", ("query", "gallery"), FLAT),
    ],
)
def test_occluded_reid_is_read_in_both_layouts(
    tmp_path: Path, place: str, folders: tuple[str, str], names: list[str]
) -> None:
    for folder in folders:
        write(tmp_path / place / folder, names)
    for root in (tmp_path, tmp_path / place):
        dataset = load_dataset(root)
        assert (dataset.kind, dataset.name, dataset.train) == ("occluded_reid", "Occluded-REID", [])
        assert labels(dataset, "query") == [(pid, 0) for pid in PEOPLE]
        assert labels(dataset, "gallery") == [(pid, 1) for pid in PEOPLE]
        assert dataset.queries_without_match() == []
        dataset.require_evaluation()
    assert any("query: 6 images, Occluded-REID was published with 1,000" in note for note in dataset.notes)
    assert not any(note.startswith("train:") for note in dataset.notes)


def test_the_second_number_is_a_camera_only_by_name(tmp_path: Path) -> None:
    for folder in ("query", "gallery"):
        write(tmp_path / "OccludedREID" / folder, FLAT)
    dataset = load_dataset(tmp_path, cameras="names")
    assert (
        labels(dataset, "query") == labels(dataset, "gallery") == [(pid, cam) for pid in (1, 2, 10) for cam in (1, 2)]
    )
    assert "cameras from names" in dataset.variant
    assert not any("cameras," in note for note in dataset.notes)
    assert "cameras from sets" in load_dataset(tmp_path).variant
    with pytest.raises(DataError, match="cameras is 'index'; supported are sets, names"):
        load_dataset(tmp_path, cameras="index")


def test_labels_do_not_come_from_folders_above(tmp_path: Path) -> None:
    base = tmp_path / "77_88" / "Occluded_REID"
    for folder in ("occluded_body_images", "whole_body_images"):
        write(base / folder, NESTED)
    assert {record.pid for record in load_dataset(base).gallery} == {1, 2, 10}


def test_a_file_in_another_persons_folder_is_noted_and_counts_by_its_own_name(tmp_path: Path) -> None:
    for folder in ("occluded_body_images", "whole_body_images"):
        write(tmp_path / folder, NESTED)
    write(tmp_path / "whole_body_images", ["002/010_05.tif"])
    dataset = load_dataset(tmp_path)
    assert sum(record.pid == 10 for record in dataset.gallery) == 3
    assert any(
        "1 files and folders name different people" in note and "002/010_05.tif" in note for note in dataset.notes
    )


@pytest.mark.parametrize("folders", [("partial_body_images", "whole_body_images"), ("query", "gallery")])
def test_partial_reid_is_read(tmp_path: Path, folders: tuple[str, str]) -> None:
    for folder in folders:
        write(tmp_path / "Partial_REID" / folder, [f"{pid:03d}_{n:03d}.jpg" for pid in (1, 60) for n in (1, 2)])
    dataset = load_dataset(tmp_path)
    assert (dataset.kind, dataset.name) == ("partial_reid", "Partial-REID")
    assert labels(dataset, "query") == [(1, 0), (1, 0), (60, 0), (60, 0)]
    assert {camid for _, camid in labels(dataset, "gallery")} == {1}


@pytest.mark.parametrize("place", ["Partial_iLIDS", "partial-ilids", "PartialiLIDS"])
@pytest.mark.parametrize("folders", [("query", "gallery"), ("Probe", "Gallery"), ("partial_body_images", "gallery")])
def test_partial_ilids_takes_the_stem_as_identity(tmp_path: Path, place: str, folders: tuple[str, str]) -> None:
    for folder in folders:
        write(tmp_path / place / folder, ["001.jpg", "2.jpg", "119.jpg", "readme.jpg"])
    dataset = load_dataset(tmp_path)
    assert (dataset.kind, dataset.name) == ("partial_ilids", "Partial-iLIDS")
    assert labels(dataset, "query") == [(1, 0), (2, 0), (119, 0)]
    assert labels(dataset, "gallery") == [(1, 1), (2, 1), (119, 1)]
    assert [skipped.path.name for skipped in dataset.skipped] == ["readme.jpg"] * 2


def test_without_a_telling_name_the_set_is_asked_for_by_kind(tmp_path: Path) -> None:
    for folder in ("query", "gallery"):
        write(tmp_path / "data" / folder, FLAT)
    with pytest.raises(DataError):
        load_dataset(tmp_path)
    assert len(load_dataset(tmp_path, "partial_reid").query) == 6


def test_a_users_own_folders_are_not_taken_for_a_set_by_their_root(tmp_path: Path) -> None:
    for split in ("train", "query", "gallery"):
        write(tmp_path / "Occluded_REID" / split, ["anna/001_c1.jpg", "bert/001_c2.jpg"])
    dataset = load_dataset(tmp_path / "Occluded_REID")
    assert (dataset.kind, len(dataset.train)) == ("folder", 2)


P_DUKE = {
    "train/whole_body_images": ["0001/0001_c2_f0046182.jpg"],
    "train/occluded_body_images": ["0001/0001_c3_f0046302.jpg", "0007/0007_c1_f0046302.jpg"],
    "test/whole_body_images": ["0005/0005_c2_f0051341.jpg", "0009/0009_c2_f0051341.jpg"],
    "test/occluded_body_images": ["0005/0005_c2_f0051342.jpg"],
}


@pytest.mark.parametrize("place", ["P-DukeMTMC-reID", "P-DukeMTMC-reid", "p/duke"])
def test_p_duke_is_read(tmp_path: Path, place: str) -> None:
    for folder, names in P_DUKE.items():
        write(tmp_path / place / folder, names)
    dataset = load_dataset(tmp_path)
    assert (dataset.kind, dataset.name) == ("p_duke", "P-DukeMTMC-reID")
    assert labels(dataset, "train") == [(1, 0), (7, 0), (1, 1)]
    assert labels(dataset, "query") == [(5, 0)]
    assert labels(dataset, "gallery") == [(5, 1), (9, 1)]
    assert dataset.queries_without_match() == []
    assert any("train: 3 images, P-DukeMTMC-reID was published with 12,927" in note for note in dataset.notes)
    named = load_dataset(tmp_path, "p_duke:cameras=names")
    assert labels(named, "gallery") == [(5, 1), (9, 1)]
    assert labels(named, "query") == [(5, 1)]
    assert named.queries_without_match() == named.query


def test_a_part_of_p_duke_is_not_taken_for_occluded_reid(tmp_path: Path) -> None:
    for folder, names in P_DUKE.items():
        write(tmp_path / folder, names)
    assert not is_occluded_reid(tmp_path)
    assert not is_occluded_reid(tmp_path / "test")


def test_p_duke_takes_the_files_own_folder_only(tmp_path: Path) -> None:
    for folder, names in P_DUKE.items():
        write(tmp_path / "1234" / "P-DukeMTMC-reID" / folder, names)
    write(tmp_path / "1234" / "P-DukeMTMC-reID" / "test" / "whole_body_images", ["misc/0005_c2_f1.jpg"])
    dataset = load_dataset(tmp_path)
    assert {record.pid for record in dataset.gallery} == {5, 9}
    assert [skipped.path.name for skipped in dataset.skipped] == ["0005_c2_f1.jpg"]


def test_a_set_for_testing_alone_is_usable(tmp_path: Path, picture) -> None:  # type: ignore[no-untyped-def]
    for value, folder in enumerate(("partial_body_images", "whole_body_images")):
        for pid in (1, 2):
            picture(tmp_path / folder / f"{pid:03d}_001.jpg", 10 * value + pid)
    report = check_dataset(tmp_path)
    assert report.usable
    assert report.splits["train"].images == 0
    with pytest.raises(DataError, match="no training images"):
        load_dataset(tmp_path).require_training()


def test_a_set_without_any_fitting_name_says_what_it_found(tmp_path: Path) -> None:
    for folder in ("occluded_body_images", "whole_body_images"):
        write(tmp_path / folder, ["x.jpg"])
    with pytest.raises(DataError, match=r"no image with a name like 001_01\.tif; found x\.jpg"):
        load_dataset(tmp_path)
