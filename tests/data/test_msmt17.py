"""MSMT17: both versions in every folder variant, training on train or train+val, identities and cameras from lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from motarfuse.data import load_dataset
from motarfuse.data.msmt17 import load_msmt17
from motarfuse.errors import DataError

FOLDERS = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}
# Both numberings start at 0; person 1 of the training lists is in list_val as well.
LISTS = {
    "train": [("0000/0000_000_01_0303morning_0008_0.jpg", 0), ("0001/0001_000_15_0303noon_0008_0.jpg", 1)],
    "val": [("0000/0000_001_03_0303morning_0008_0.jpg", 0), ("0001/0001_001_02_0303noon_0009_0.jpg", 1)],
    "query": [("0000/0000_000_04_0303morning_0008_0.jpg", 0)],
    "gallery": [("0000/0000_001_05_0303morning_0008_0.jpg", 0), ("0001/0001_002_01_0303noon_0008_0.jpg", 1)],
}


def write(base: Path, version: str = "V1") -> Path:
    for name, rows in LISTS.items():
        folder = base / FOLDERS[version][name in ("query", "gallery")]
        for path, _ in rows:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
        (base / f"list_{name}.txt").write_text("".join(f"{path} {pid}\n" for path, pid in rows))
    return base


@pytest.mark.parametrize("variant", [".", "MSMT17_V1", "MSMT17", "msmt17/MSMT17_V1", "msmt17/MSMT17_V2"])
@pytest.mark.parametrize("version", ["V1", "V2"])
def test_every_folder_variant_is_found_and_named(tmp_path: Path, variant: str, version: str) -> None:
    write(tmp_path / variant, version)
    dataset = load_dataset(tmp_path)
    assert (dataset.kind, dataset.name) == ("msmt17", "MSMT17")
    assert [len(dataset.subset(split)) for split in ("train", "query", "gallery")] == [2, 1, 2]
    assert f"MSMT17 {version}" in dataset.variant
    assert ("the folder itself" if variant == "." else variant) in dataset.variant


def test_validation_images_are_trained_on_only_when_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path)
    assert len(load_dataset(tmp_path).train) == 2
    both = load_dataset(tmp_path, training="train+val")
    assert [(record.pid, record.camid) for record in both.train] == [(0, 0), (1, 14), (0, 2), (1, 1)]
    assert both.published is not None
    assert both.published.images["train"] == 32_621
    assert "trained on train+val" in both.variant
    assert len(load_dataset(tmp_path, "msmt17:training=train+val").train) == 4
    with pytest.raises(DataError, match="training is 'all'; supported are train, train"):
        load_msmt17(tmp_path, training="all")  # type: ignore[arg-type]


def test_test_identities_are_other_people_than_training_identities_of_the_same_number(tmp_path: Path) -> None:
    write(tmp_path)
    for training in ("train", "train+val"):
        dataset = load_dataset(tmp_path, training=training)
        assert [record.pid for record in dataset.query] == [2]
        assert [record.pid for record in dataset.gallery] == [2, 3]
        assert dataset.distractor_pid is None
    assert any("moved up by 2" in note for note in dataset.notes)


def test_test_identities_do_not_depend_on_which_images_are_trained_on(tmp_path: Path) -> None:
    write(tmp_path)
    with (tmp_path / "list_val.txt").open("a") as file:  # somebody in val alone
        file.write("0007/0007_000_01_0303noon_0009_0.jpg 7\n")
    found = {training: load_dataset(tmp_path, training=training) for training in ("train", "train+val")}
    assert [record.pid for record in found["train"].query] == [record.pid for record in found["train+val"].query] == [8]


def test_labels_come_from_the_list_and_the_base_name_not_from_folders(tmp_path: Path) -> None:
    # Split at underscores, the whole path has its camera elsewhere.
    base = write(tmp_path / "2024_07_09_run" / "MSMT17_V1")
    lines = (base / "list_train.txt").read_text()
    (base / "list_train.txt").write_text(lines.replace("_0.jpg 1", "_0.jpg 40"))
    dataset = load_dataset(base)
    assert [(record.pid, record.camid) for record in dataset.train] == [(0, 0), (40, 14)]
    assert any("1 names start with another identity" in note for note in dataset.notes)
    assert [(record.pid, record.camid) for record in dataset.query] == [(41, 3)]


def test_listed_files_that_are_missing_are_skipped_and_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "test" / "0001" / "0001_002_01_0303noon_0008_0.jpg").unlink()
    dataset = load_dataset(tmp_path)
    assert [skipped.path.name for skipped in dataset.skipped] == ["0001_002_01_0303noon_0008_0.jpg"]
    assert len(dataset.gallery) == 1
    assert any("1 images skipped" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("0000/0000_000_01_0303morning_0008_0.jpg", r"list_query.txt, line 2: .* is not <folder>"),
        ("0000/0000_000_00_0303morning_0008_0.jpg 0", r"line 2: .*camera from 1"),
        ("0000/frame.jpg 0", "line 2: '0000/frame.jpg 0' is not"),
        ("0000/0000_000_04_0303morning_0008_0.jpg -1", "line 2"),
        ("0000/0000_000_04_0303morning_0008_0.jpg 0", "1 files are listed twice: 0000/0000_000_04"),
    ],
)
def test_a_mistake_in_a_list_is_named_by_its_line(tmp_path: Path, line: str, error: str) -> None:
    write(tmp_path)
    with (tmp_path / "list_query.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=error):
        load_dataset(tmp_path)


def test_both_versions_below_one_root_are_told_apart_by_the_user(tmp_path: Path) -> None:
    write(tmp_path / "MSMT17_V1")
    write(tmp_path / "MSMT17_V2", "V2")
    with pytest.raises(DataError, match=r"several datasets.*MSMT17_V1, MSMT17_V2.*point at one"):
        load_dataset(tmp_path)


def test_without_a_validation_list_train_and_val_cannot_be_asked_for(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "list_val.txt").unlink()
    assert any("no list_val.txt" in note for note in load_dataset(tmp_path).notes)
    with pytest.raises(DataError, match=r"there is no list_val\.txt"):
        load_dataset(tmp_path, training="train+val")


def test_lists_without_their_images_are_an_error_with_an_example(tmp_path: Path) -> None:
    write(tmp_path)
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match=r"none of the files of the lists exists, e\.g\. .*0000_000_01"):
        load_dataset(tmp_path)


def test_the_published_counts_are_what_a_complete_copy_is_compared_with(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path))
    assert any("train: 2 images, MSMT17 was published with 30,248" in note for note in dataset.notes)
    assert any("gallery: 2 identities, MSMT17 was published with 3,060" in note for note in dataset.notes)
