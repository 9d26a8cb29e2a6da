"""Occluded-Duke from its lists over the images of DukeMTMC-reID."""

from __future__ import annotations

from pathlib import Path

import pytest

from motarfuse.data import load_dataset
from motarfuse.errors import DataError

LISTS = {
    "train": ["0001_c2_f0046182.jpg", "0002_c1_f0044158.jpg"],
    "query": ["0019_c1_f0051230.jpg"],
    "gallery": ["0019_c2_f0051350.jpg", "0020_c2_f0051350.jpg"],
}
# DukeMTMC-reID has the query among its gallery, a gallery image among its queries, and images in no list.
DUKE = {
    "bounding_box_train": [*LISTS["train"], "0003_c1_f1.jpg"],
    "query": ["0020_c2_f0051350.jpg"],
    "bounding_box_test": ["0019_c1_f0051230.jpg", "0019_c2_f0051350.jpg"],
}


def write_lists(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in LISTS.items():
        (folder / f"{split}.list").write_text("\n".join(names) + "\n")
    return folder


def write_images(base: Path, folders: dict[str, list[str]]) -> Path:
    for folder, names in folders.items():
        (base / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (base / folder / name).touch()
    return base


@pytest.mark.parametrize("lists", [".", "Occluded_Duke", "dukemtmcreid/Occluded_Duke"])
@pytest.mark.parametrize("images", [".", "DukeMTMC-reID", "dukemtmc-reid/DukeMTMC-reID"])
def test_lists_decide_wherever_they_and_the_images_lie(tmp_path: Path, lists: str, images: str) -> None:
    write_lists(tmp_path / lists)
    write_images(tmp_path / images, DUKE)
    dataset = load_dataset(tmp_path)
    assert (dataset.kind, dataset.name) == ("occluded_duke", "Occluded-Duke")
    for split, names in LISTS.items():
        assert [record.path.name for record in dataset.subset(split)] == names
    assert [(record.pid, record.camid) for record in dataset.query] == [(19, 0)]
    assert any("1 images are in no list" in note and "0003_c1_f1.jpg" in note for note in dataset.notes)
    assert any("train: 2 images, Occluded-Duke was published with 15,618" in note for note in dataset.notes)


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    lists = write_lists(tmp_path / "lists")
    images = write_images(tmp_path / "images" / "DukeMTMC-reID", DUKE)
    with pytest.raises(DataError, match=r"not the images.*images_root"):
        load_dataset(lists)
    assert len(load_dataset(lists, images_root=images).gallery) == 2
    assert len(load_dataset(lists, images_root=images.parent).gallery) == 2


def test_a_listed_file_in_its_own_folder_is_taken_first(tmp_path: Path) -> None:
    write_lists(tmp_path)
    write_images(tmp_path, {**DUKE, "query": [*DUKE["query"], *LISTS["query"]]})
    assert [record.path.parent.name for record in load_dataset(tmp_path).query] == ["query"]


def test_missing_files_are_skipped_and_named(tmp_path: Path) -> None:
    write_lists(tmp_path)
    write_images(tmp_path, DUKE)
    (tmp_path / "bounding_box_train" / LISTS["train"][0]).unlink()
    dataset = load_dataset(tmp_path)
    assert [skipped.path.name for skipped in dataset.skipped] == [LISTS["train"][0]]


@pytest.mark.parametrize(("first", "second"), [("train", "query"), ("train", "gallery"), ("gallery", "gallery")])
def test_a_name_that_is_trained_on_and_tested_with_or_listed_twice_is_refused(
    tmp_path: Path, first: str, second: str
) -> None:
    write_images(write_lists(tmp_path), DUKE)
    with (tmp_path / f"{second}.list").open("a") as file:
        file.write(LISTS[first][0] + "\n")
    with pytest.raises(DataError, match=rf"{second}\.list, line \d: {LISTS[first][0]} is in {first}\.list already"):
        load_dataset(tmp_path)


def test_a_query_may_be_in_the_gallery_as_well(tmp_path: Path) -> None:
    write_images(write_lists(tmp_path), DUKE)
    with (tmp_path / "gallery.list").open("a") as file:
        file.write(LISTS["query"][0] + "\n")
    dataset = load_dataset(tmp_path)
    assert dataset.query[0] in dataset.gallery
    assert dataset.queries_without_match() == []


@pytest.mark.real_data
def test_the_true_lists_over_folders_of_dukemtmc_have_the_published_counts(tmp_path: Path, real_data: Path) -> None:
    lists = real_data / "protocols" / "occluded-duke"
    names = {split: (lists / f"{split}.list").read_text().split() for split in LISTS}
    # Queries come out of the gallery's folder; which gallery images were queries before is not told by the lists.
    write_images(
        tmp_path / "DukeMTMC-reID",
        {
            "bounding_box_train": names["train"],
            "query": names["gallery"][:2_000],
            "bounding_box_test": [*names["gallery"][2_000:], *names["query"]],
        },
    )
    dataset = load_dataset(lists, images_root=tmp_path)
    assert [dataset.counts(split).images for split in LISTS] == [15_618, 2_210, 17_661]
    assert [dataset.counts(split).identities for split in LISTS] == [702, 519, 1_110]
    assert dataset.queries_without_match() == []
    assert any("equal those published for Occluded-Duke" in note for note in dataset.notes)
