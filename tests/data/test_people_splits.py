"""iLIDS-VID and PRID2011: people sorted before they are counted, split files, and splits of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from motarfuse.data.ilids_vid import load_ilids_vid
from motarfuse.data.people_splits import generate_splits
from motarfuse.data.prid2011 import generate_prid2011_splits, load_prid2011
from motarfuse.data.video_registry import load_video_dataset
from motarfuse.errors import DataError
from tests.data.video_trees import backwards, by_name, say, sizes, touch

# Numbers with a gap, and without leading zeros as text 10 would come before 9.
PEOPLE = (1, 2, 4, 9, 10, 11)
ORDERS = [[6, 1, 3, 2, 4, 5], [1, 2, 3, 4, 5, 6]]


def _ilids(base: Path, splits: Path | None, people: tuple[int, ...] = PEOPLE, padded: bool = True) -> Path:
    from scipy.io import savemat

    for camera in (1, 2):
        for person in people:
            name = f"person{person:03d}" if padded else f"person{person}"
            start = f"cam{camera}_{name}_"
            touch(base / "sequences" / f"cam{camera}" / name, [f"{start}{frame:05d}.png" for frame in (9, 10, 12)])
    if splits is not None:
        splits.mkdir(parents=True, exist_ok=True)
        savemat(splits / "train_test_splits_ilidsvid.mat", {"ls_set": np.array(ORDERS, np.uint16), "other": 1})
    return base


@pytest.mark.parametrize(
    ("base", "splits"),
    [
        ("i-LIDS-VID", "train-test people splits"),
        ("ilids-vid/i-LIDS-VID", "ilids-vid/train-test people splits"),
        ("iLIDS-VID/i-LIDS-VID/i-LIDS-VID", "iLIDS-VID/i-LIDS-VID/train-test people splits"),
        ("i-LIDS-VID", "i-LIDS-VID/train_test_people_split"),
        (".", "."),
    ],
)
def test_every_place_of_ilids_vid_is_found(tmp_path: Path, base: str, splits: str) -> None:
    _ilids(tmp_path / base, tmp_path / splits)
    dataset = load_video_dataset(tmp_path)
    assert (dataset.kind, sizes(dataset)) == ("ilids-vid", (6, 3, 3))
    # The first half of a row tests: places 6, 1 and 3 of the sorted people.
    assert [one.pid for one in dataset.query] == [1, 4, 11] == [one.pid for one in dataset.gallery]
    assert {one.pid for one in dataset.train} == {2, 9, 10}
    assert {one.camid for one in dataset.query} == {0}
    assert {one.camid for one in dataset.gallery} == {1}
    assert dataset.queries_without_match() == []


def test_the_numbers_of_a_split_count_the_people_in_natural_order_however_folders_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ilids(tmp_path, tmp_path, padded=False)
    backwards(monkeypatch)
    dataset = load_ilids_vid(tmp_path, split=1)
    assert [one.pid for one in dataset.query] == [1, 2, 4]
    assert [one.pid for one in dataset.train] == [9, 10, 11, 9, 10, 11]
    assert dataset.query[0].frame_index == (9, 10, 12)
    assert dataset.query[0].files[0] == "cam1_person1_00009.png"
    assert "split 1 of 2" in dataset.protocol


def test_pids_of_ilids_vid_come_from_the_persons_own_folder(tmp_path: Path) -> None:
    dataset = load_ilids_vid(_ilids(tmp_path / "person777" / "cam9", tmp_path / "person777" / "cam9"))
    assert {one.pid for one in dataset.train} == {2, 9, 10}


def test_splits_that_do_not_fit_the_folders_are_refused(tmp_path: Path) -> None:
    _ilids(tmp_path / "five", tmp_path / "five", people=PEOPLE[:5])
    with pytest.raises(DataError, match=r"split 0: orders 6 people numbered 1 to 6, but 5 people have a folder"):
        load_ilids_vid(tmp_path / "five")
    _ilids(tmp_path / "six", tmp_path / "six")
    with pytest.raises(DataError, match=r"there is no split 2; splits 0 to 1"):
        load_ilids_vid(tmp_path / "six", split=2)
    with pytest.raises(DataError, match=r"there is no split -1"):
        load_ilids_vid(tmp_path / "six", split=-1)


def test_a_person_without_a_tracklet_under_one_camera_is_named(tmp_path: Path) -> None:
    _ilids(tmp_path, tmp_path)
    for path in sorted((tmp_path / "sequences" / "cam2" / "person009").iterdir()):
        path.unlink()
    dataset = load_ilids_vid(tmp_path)
    assert sizes(dataset) == (5, 3, 3)
    assert "1 tracklets left out (a tracklet without any frame)" in say(dataset)
    (tmp_path / "sequences" / "cam2" / "person009").rmdir()
    dataset = load_ilids_vid(tmp_path)
    assert sizes(dataset) == (5, 3, 3)
    assert "1 folders that train_test_splits_ilidsvid.mat names are not there: cam2/person009" in say(dataset)


def test_ilids_vid_without_splits_says_what_to_do_and_takes_a_seed_or_json(tmp_path: Path) -> None:
    _ilids(tmp_path, None)
    with pytest.raises(DataError, match=r"train_test_splits_ilidsvid\.mat.*split_seed=0"):
        load_ilids_vid(tmp_path)
    generated = load_ilids_vid(tmp_path, split=3, split_seed=7)
    assert sizes(generated) == (6, 3, 3)
    assert "generated from seed 7: results do not compare" in say(generated)
    names = [f"person{person:03d}" for person in PEOPLE]
    (tmp_path / "splits.json").write_text(json.dumps([{"train": names[:3], "test": names[3:], "num_train": 3}]))
    assert [one.pid for one in load_ilids_vid(tmp_path).query] == [9, 10, 11]


def test_the_counts_of_a_whole_ilids_vid_are_met(tmp_path: Path) -> None:
    from scipy.io import savemat

    for camera in ("cam1", "cam2"):
        for person in range(1, 301):
            touch(tmp_path / "sequences" / camera / f"person{person:03d}", [f"{camera}_person{person:03d}_00001.png"])
    order = np.random.default_rng(0).permutation(300) + 1
    savemat(tmp_path / "train_test_splits_ilidsvid.mat", {"ls_set": np.stack([order] * 10).astype(np.uint16)})
    dataset = load_video_dataset(tmp_path, split=9)
    assert sizes(dataset) == (300, 150, 150)
    assert sorted(order[:150]) == [one.pid for one in dataset.query]
    assert "every published count of iLIDS-VID is met" in say(dataset)


def test_people_of_other_names_are_numbered_and_named(tmp_path: Path) -> None:
    for camera in ("cam1", "cam2"):
        for name in ("person9b", "person5a", "person12"):
            touch(tmp_path / "sequences" / camera / name, ["1.png"])
    (tmp_path / "splits.json").write_text(json.dumps([{"train": ["person5a"], "test": ["person12", "person9b"]}]))
    dataset = load_ilids_vid(tmp_path)
    assert [one.pid for one in (*dataset.train, *dataset.query)] == [1, 1, 2, 3]
    assert dataset.identity_names == {1: "person5a", 2: "person9b", 3: "person12"}


def _prid(base: Path, lengths: dict[int, int] | None = None) -> Path:
    lengths = {1: 30, 2: 22, 3: 21, 9: 40, 10: 25, 201: 50} if lengths is None else lengths
    for camera in ("cam_a", "cam_b"):
        for person, length in lengths.items():
            names = [f"{frame:04d}.png" for frame in range(1, length + 1)]
            touch(base / "multi_shot" / camera / f"person_{person:04d}", names)
    touch(base / "single_shot" / "cam_a", ["person_0001.png"])
    return base


def _persons(*numbers: int) -> list[str]:
    return [f"person_{number:04d}" for number in numbers]


@pytest.mark.parametrize(
    ("base", "splits"), [(".", "."), ("prid_2011", "."), ("prid2011/prid_2011", "prid2011"), (".", "info")]
)
def test_every_place_of_prid2011_is_found(tmp_path: Path, base: str, splits: str) -> None:
    _prid(tmp_path / base)
    (tmp_path / splits).mkdir(exist_ok=True)
    content = [{"train": _persons(1, 9), "test": _persons(2, 10)}, {"train": _persons(2), "test": _persons(1)}]
    (tmp_path / splits / "splits_prid2011.json").write_text(json.dumps(content))
    dataset = load_video_dataset(tmp_path)
    assert (dataset.kind, sizes(dataset)) == ("prid2011", (4, 2, 2))
    assert [(one.pid, one.camid) for one in dataset.query] == [(2, 0), (10, 0)]
    assert [(one.pid, one.camid) for one in dataset.gallery] == [(2, 1), (10, 1)]
    assert by_name(dataset.train)["cam_a/person_0001"].frame_index == tuple(range(1, 31))
    assert [one.pid for one in load_prid2011(tmp_path, split=1).query] == [1]


def test_prid2011_generates_a_split_only_when_it_is_asked_for(tmp_path: Path) -> None:
    _prid(tmp_path)
    with pytest.raises(DataError, match=r"splits_prid2011\.json.*not part of the dataset's archive.*split_seed=0"):
        load_prid2011(tmp_path)
    dataset = load_prid2011(tmp_path, split_seed=0)
    # Person 3 has 21 frames; 201 is somebody else in the other camera.
    people = {one.pid for one in (*dataset.train, *dataset.query)}
    assert people == {1, 2, 9, 10}
    assert "seed 0 over the 4 people with at least 22 frames" in say(dataset)
    assert "do not compare with published" in say(dataset)
    splits = generate_prid2011_splits(tmp_path, 0)
    (tmp_path / "splits_prid2011.json").write_text(json.dumps(splits))
    for split in range(10):
        from_file, from_seed = load_prid2011(tmp_path, split=split), load_prid2011(tmp_path, split=split, split_seed=0)
        assert (from_file.train, from_file.query) == (from_seed.train, from_seed.query)


def test_generated_splits_depend_on_names_and_seed_alone() -> None:
    people = _persons(*range(1, 179))
    splits = generate_splits(people, 0)
    assert splits == generate_splits(people[::-1], 0)
    assert splits != generate_splits(people, 1)
    assert len({tuple(split["test"]) for split in splits}) == 10
    for split in splits:
        assert (len(split["train"]), len(split["test"])) == (89, 89)
        assert sorted([*split["train"], *split["test"]]) == people
    # A split that somebody published a result with must never change.
    assert splits[0]["test"][:5] == _persons(3, 4, 6, 7, 8)


def test_people_who_are_two_people_are_refused(tmp_path: Path) -> None:
    _prid(tmp_path)
    path = tmp_path / "splits_prid2011.json"
    path.write_text(json.dumps([{"train": _persons(1, 201), "test": _persons(2)}]))
    with pytest.raises(DataError, match=r"names person_0201; from person_0201 on"):
        load_prid2011(tmp_path)
    path.write_text(json.dumps([{"train": _persons(1, 2), "test": _persons(2)}]))
    with pytest.raises(DataError, match=r"trains and tests with the same people: person_0002"):
        load_prid2011(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", '[{"train": ["a"]}]', '[{"train": [1], "test": []}]'])
def test_split_files_of_another_form_are_refused(tmp_path: Path, content: str) -> None:
    _prid(tmp_path)
    (tmp_path / "splits_prid2011.json").write_text(content)
    with pytest.raises(DataError, match=r"splits_prid2011\.json.*(JSON|two lists of folder names)"):
        load_prid2011(tmp_path)


def test_a_split_of_nobody_who_is_there_is_refused(tmp_path: Path) -> None:
    _prid(tmp_path)
    (tmp_path / "splits_prid2011.json").write_text(json.dumps([{"train": _persons(50), "test": _persons(60)}]))
    with pytest.raises(DataError, match=r"none of the people in splits_prid2011\.json has a folder"):
        load_prid2011(tmp_path)
