"""CCVID: lists of three columns, views as cameras, clothes."""

from __future__ import annotations

from pathlib import Path

import pytest

from motarfuse.data.ccvid import load_ccvid
from motarfuse.data.video_registry import load_video_dataset
from motarfuse.errors import DataError
from tests.data.video_trees import backwards, by_name, say, sizes, touch, write

LISTS = {
    "train": ["session1/001_01 001 u0_l0", "session2/001_12 001 u1_l0", "session3/001_01 001 u0_l1"],
    "query": ["session1/076_02 076 u2_l2"],
    "gallery": ["session3/076_02 076 u2_l3", "session2/076_03 076 u2_l2", "session1/077_04 077 u0_l0"],
}


def _write(base: Path) -> Path:
    for split, lines in LISTS.items():
        write(base / f"{split}.txt", lines)
        for line in lines:
            touch(base / line.split()[0], [f"{frame}.jpg" for frame in (9, 10, 11)])
    return base


@pytest.mark.parametrize("place", [".", "CCVID", "data/CCVID"])
def test_the_lists_are_found_and_views_of_session_3_are_other_cameras(tmp_path: Path, place: str) -> None:
    _write(tmp_path / place)
    dataset = load_video_dataset(tmp_path)
    assert (dataset.kind, sizes(dataset)) == ("ccvid", (3, 1, 3))
    assert [(one.pid, one.camid) for one in dataset.train] == [(1, 0), (1, 11), (1, 12)]
    assert [(one.pid, one.camid) for one in dataset.gallery] == [(76, 13), (76, 2), (77, 3)]
    assert dataset.queries_without_match() == []


def test_what_people_wear_is_kept(tmp_path: Path) -> None:
    dataset = load_ccvid(_write(tmp_path))
    assert [dataset.clothes[one.name] for one in dataset.gallery] == ["u2_l3", "u2_l2", "u0_l0"]
    same = [one.name for one in dataset.gallery if dataset.clothes[one.name] == dataset.clothes[dataset.query[0].name]]
    assert same == ["session2/076_03"]


def test_frames_are_in_the_order_of_time_and_labels_from_the_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = _write(tmp_path / "session3" / "2024_05")
    backwards(monkeypatch)
    monkeypatch.chdir(base)
    dataset = load_ccvid(".")
    assert by_name(dataset.train)["session1/001_01"].frame_index == (9, 10, 11)
    assert [one.camid for one in dataset.train] == [0, 11, 12]


def test_tracklets_that_are_not_there_are_named(tmp_path: Path) -> None:
    _write(tmp_path)
    for path in sorted((tmp_path / "session1" / "001_01").iterdir()):
        path.unlink()
    write(tmp_path / "gallery.txt", [*LISTS["gallery"], "session9/080_01 080 u0", "odd 081 u0"])
    touch(tmp_path / "odd", ["1.jpg"])
    dataset = load_ccvid(tmp_path)
    assert sizes(dataset) == (2, 1, 4)
    assert "gallery.txt names it, but there is no such folder" in say(dataset)
    assert "1 tracklets left out (a tracklet without any frame): 001_01" in say(dataset)
    assert "1 tracklets do not say their view, camera unknown: odd" in say(dataset)
    assert {one.path.name for one in dataset.skipped} == {"001_01", "080_01"}


def test_a_line_of_another_form_is_refused_with_its_number(tmp_path: Path) -> None:
    _write(tmp_path)
    write(tmp_path / "query.txt", ["session1/076_02 076 u2_l2", "session1/076_02 u2_l2"])
    with pytest.raises(DataError, match=r"query\.txt, line 2: .* is not <tracklet's folder> <identity> <clothes>"):
        load_ccvid(tmp_path)


def test_lists_without_their_folders_are_refused(tmp_path: Path) -> None:
    for split, lines in LISTS.items():
        write(tmp_path / f"{split}.txt", lines)
    with pytest.raises(DataError, match=r"none of the 7 folders of the lists is there"):
        load_ccvid(tmp_path)


def test_other_lists_are_no_ccvid(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", ["a/b.jpg 1"])
    with pytest.raises(DataError, match=r"train\.txt, query\.txt and gallery\.txt of three columns"):
        load_ccvid(tmp_path)
