"""MARS and its layout: both gallery protocols, tables against names, unsorted lists, and what is missing."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from motarfuse.data import mars
from motarfuse.data.mars import load_mars, parse_mars_name
from motarfuse.data.tracklet_files import Listing, list_names
from motarfuse.data.video_registry import load_video_dataset
from motarfuse.errors import DataError
from tests.data.video_trees import backwards, by_name, say, sizes, touch, write

# identity, camera, number and length; -1 is junk and 0 a distractor. Query rows count from 1.
TRAIN = [(2, 1, 1, 3), (2, 2, 1, 12), (7, 1, 1, 2), (7, 3, 1, 2)]
TEST = [(-1, 1, 1, 2), (0, 2, 1, 2), (3, 1, 1, 2), (3, 2, 1, 3), (5, 1, 1, 2), (5, 2, 1, 1), (5, 2, 2, 4)]
QUERIES = [3, 5, 6]

Tracks = list[tuple[int, int, int, int]]


def _names(track: tuple[int, int, int, int]) -> list[str]:
    pid, camera, number, length = track
    start = f"{'00-1' if pid == -1 else f'{pid:04d}'}C{camera}T{number:04d}"
    return [f"{start}F{frame:03d}.jpg" for frame in range(1, length + 1)]


def _write(base: Path, info: str | None = "txt", train: Tracks = TRAIN, test: Tracks = TEST) -> Path:
    """A tree of empty files, with tables as text, as MATLAB files, or without any."""
    for split, tracks in (("train", train), ("test", test)):
        (base / f"bbox_{split}").mkdir(parents=True)
        names: list[str] = []
        rows = []
        for track in tracks:
            files = _names(track)
            touch(base / f"bbox_{split}" / files[0][:4], files)
            rows.append((len(names) + 1, len(names) + track[3], track[0], track[1]))
            names += files
        if info is not None:
            write(base / "info" / f"{split}_name.txt", names)
        if info == "mat":
            from scipy.io import savemat

            savemat(base / "info" / f"tracks_{split}_info.mat", {f"track_{split}_info": np.array(rows, np.int32)})
        elif info == "txt":
            write(base / "info" / f"tracks_{split}_info.txt", (" ".join(map(str, row)) for row in rows))
    if info == "mat":
        savemat(base / "info" / "query_IDX.mat", {"query_IDX": np.array([QUERIES], np.uint16)})
    elif info == "txt":
        write(base / "info" / "query_idx.txt", map(str, QUERIES))
    return base


@pytest.mark.parametrize("info", ["txt", "mat"])
@pytest.mark.parametrize("place", [".", "mars", "MARS", "data/mars"])
def test_tables_are_read_from_either_form_and_every_place(tmp_path: Path, info: str, place: str) -> None:
    _write(tmp_path / place, info)
    dataset = load_video_dataset(tmp_path)
    assert (dataset.kind, sizes(dataset)) == ("mars", (4, 3, 6))
    assert dataset.junk == {"gallery": 1}
    assert (dataset.counts("gallery").distractors, dataset.counts("gallery").identities) == (1, 2)
    assert [(one.pid, one.camid) for one in dataset.query] == [(3, 0), (5, 0), (5, 1)]
    assert by_name(dataset.train)["0002C2T0001"].files == tuple(f"0002C2T0001F{k:03d}.jpg" for k in range(1, 13))
    assert ("the folder itself" if place == "." else place) in dataset.variant


def test_the_official_gallery_holds_the_queries_and_without_them_some_have_no_answer(tmp_path: Path) -> None:
    _write(tmp_path, test=[(3, 1, 1, 2), (3, 2, 1, 2), (5, 1, 1, 2), (5, 2, 1, 2), (8, 1, 1, 2)])
    write(tmp_path / "info" / "query_idx.txt", ["1", "2", "3"])
    official = load_mars(tmp_path)
    without = load_mars(tmp_path, queries_in_gallery=False)
    assert (sizes(official), sizes(without)) == ((4, 3, 5), (4, 3, 2))
    assert official.queries_without_match() == []
    assert [one.name for one in without.queries_without_match()] == ["0003C1T0001", "0003C2T0001"]
    assert "official" in official.protocol
    assert "without" in without.protocol
    for dataset in (official, without):
        assert "5 tracklets, 3 of 3 queries can be answered; without them: 2 tracklets, 1 of 3" in say(dataset)


@pytest.mark.real_data
def test_the_true_labels_of_mars_give_1980_answerable_queries_officially_and_1840_without(
    tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scipy.io import loadmat

    labels = real_data / "protocols" / "mars"
    listings: dict[Path, Listing] = {}
    for split in ("train", "test"):
        content = loadmat(labels / f"tracks_{split}_info.mat")
        rows = next(value for key, value in content.items() if not key.startswith("__")).astype(int)
        folder = tmp_path / "mars" / f"bbox_{split}"
        folder.mkdir(parents=True)
        names: list[str] = []
        numbers: dict[tuple[int, int], int] = {}
        folders: dict[str, list[str]] = {}
        for first, last, pid, camera in rows.tolist():
            numbers[pid, camera] = numbers.get((pid, camera), 0) + 1
            files = _names((pid, camera, numbers[pid, camera], last - first + 1))
            names += files
            folders.setdefault(files[0][:4], []).extend(files)
        write(tmp_path / "mars" / "info" / f"{split}_name.txt", names)
        (tmp_path / "mars" / "info" / f"tracks_{split}_info.mat").symlink_to(labels / f"tracks_{split}_info.mat")
        listings[folder] = Listing([], sorted(folders), [])
        listings.update({folder / name: Listing(sorted(files), [], []) for name, files in folders.items()})
    (tmp_path / "mars" / "info" / "query_IDX.mat").symlink_to(labels / "query_IDX.mat")
    # 1,191,003 names, without making as many files.
    monkeypatch.setattr(mars, "list_names", lambda folder: listings[folder])

    dataset = load_video_dataset(tmp_path)
    assert (dataset.name, sizes(dataset), dataset.skipped) == ("MARS", (8_298, 1_980, 11_310), [])
    gallery = dataset.counts("gallery")
    assert (gallery.identities, gallery.distractors, gallery.junk, gallery.cameras) == (634, 3_248, 870, 6)
    assert (dataset.num_train_ids, len({one.pid for one in dataset.query})) == (625, 626)
    assert sum(map(len, dataset.train)) == 509_914
    assert dataset.queries_without_match() == []
    assert "11,310 tracklets, 1,980 of 1,980 queries" in say(dataset)
    assert "9,330 tracklets, 1,840 of 1,980" in say(dataset)
    assert "every published count of MARS is met" in say(dataset)
    lengths = [len(one) for one in (*dataset.train, *dataset.gallery)]
    assert (min(lengths), max(lengths)) == (2, 920)


def test_labels_come_from_base_names_below_folders_that_look_like_labels(tmp_path: Path) -> None:
    base = _write(tmp_path / "run_2024_c3" / "1234C9T0001F001", info=None)
    dataset = load_mars(base)
    assert {one.pid for one in dataset.train} == {2, 7}
    assert {one.camid for one in dataset.train} == {0, 1, 2}


def test_frames_are_in_the_order_of_time_whatever_the_lists_and_folders_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, train=[(2, 1, 1, 1_100), (3, 1, 1, 2)])
    names = tmp_path / "info" / "train_name.txt"
    lines = names.read_text().split()
    write(names, [*Random(0).sample(lines[:1_100], 1_100), *lines[:1_099:-1]])
    backwards(monkeypatch)
    tabled = load_mars(tmp_path)
    for path in (tmp_path / "info").iterdir():
        path.unlink()
    for dataset in (tabled, load_mars(tmp_path)):
        first = by_name(dataset.train)["0002C1T0001"]
        # F1000 comes after F999, though as text before F101.
        assert first.frame_index == tuple(range(1, 1_101))
        assert [int(name[12:-4]) for name in first.files] == list(range(1, 1_101))


def test_without_tables_names_are_grouped_and_queries_come_from_a_list_of_names(tmp_path: Path) -> None:
    _write(tmp_path, info=None)
    bare = load_mars(tmp_path)
    assert (sizes(bare), bare.junk) == ((4, 0, 6), {"gallery": 1})
    assert "nothing says which test tracklets are queries" in say(bare)
    write(tmp_path / "info" / "query.txt", ["0003C1T0001", "0005C2T0002"])
    assert [one.name for one in load_mars(tmp_path).query] == ["0003C1T0001", "0005C2T0002"]
    (tmp_path / "info" / "query.json").write_text(json.dumps(["0005C1T0001"]))
    dataset = load_mars(tmp_path, queries_in_gallery=False)
    assert [one.name for one in dataset.query] == ["0005C1T0001"]
    assert "0005C1T0001" not in by_name(dataset.gallery)
    (tmp_path / "info" / "query.json").write_text('["0009C1T0001"]')
    with pytest.raises(DataError, match=r"no test tracklet is called 0009C1T0001; they are called like 0"):
        load_mars(tmp_path)


def test_text_tables_need_no_scipy_and_matlab_ones_say_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "text")
    _write(tmp_path / "matlab", "mat")
    _write(tmp_path / "both", "mat")
    for path in (tmp_path / "text" / "info").iterdir():
        (tmp_path / "both" / "info" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "both" / "info" / "query_idx.txt").rename(tmp_path / "both" / "info" / "query_IDX.txt")
    real: Callable[..., Any] = builtins.__import__

    def without_scipy(name: str, *rest: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    assert sizes(load_mars(tmp_path / "text")) == sizes(load_mars(tmp_path / "both")) == (4, 3, 6)
    with pytest.raises(DataError, match=r"tracks_train_info\.mat.*pip install motarfuse\[data\]"):
        load_mars(tmp_path / "matlab")


def test_files_that_are_not_there_leave_a_gap_and_are_named(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "bbox_train" / "0002" / "0002C2T0001F004.jpg").unlink()
    for name in _names((7, 3, 1, 2)):
        (tmp_path / "bbox_train" / "0007" / name).unlink()
    (tmp_path / "bbox_train" / "0007" / "0007C3T0002F001.jpg").touch()
    dataset = load_mars(tmp_path)
    gapped = by_name(dataset.train)["0002C2T0001"]
    assert (len(gapped), gapped.num_missing, gapped.frame_index[2:4]) == (11, 1, (3, 5))
    assert "0007C3T0001" not in by_name(dataset.train)
    assert {one.path.name for one in dataset.skipped} == {"0002C2T0001F004.jpg", "0007C3T0001F001.jpg"}
    assert "1 files of 1 tracklets left out (a list names it, but there is no such file)" in say(dataset)
    assert "1 tracklets left out (a tracklet without any frame)" in say(dataset)
    assert "bbox_train: 1 files belong to no tracklet" in say(dataset)


def test_a_query_without_any_file_is_counted(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "bbox_test" / "0005" / "0005C2T0001F001.jpg").unlink()
    dataset = load_mars(tmp_path)
    assert sizes(dataset) == (4, 2, 5)
    assert "1 of 3 queries have no file at all" in say(dataset)


def test_names_that_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    _write(tmp_path, info=None)
    touch(tmp_path / "bbox_train" / "0002", ["thumbnail.jpg", "0002C0T0001F001.jpg", "._0002C1T0001F001.jpg"])
    dataset = load_mars(tmp_path)
    assert sorted(one.path.name for one in dataset.skipped) == ["0002C0T0001F001.jpg", "thumbnail.jpg"]
    assert "2 files of 1 tracklets left out (its name does not say which frame it is)" in say(dataset)
    assert len(by_name(dataset.train)["0002C1T0001"]) == 3


def test_a_row_with_an_unreadable_name_keeps_its_other_files(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "bbox_train" / "0002" / "cover.jpg").touch()
    names = tmp_path / "info" / "train_name.txt"
    write(names, ["cover.jpg", "gone.jpg", *names.read_text().split()[2:]])
    dataset = load_mars(tmp_path)
    assert by_name(dataset.train)["0002C1T0001"].files == ("0002C1T0001F003.jpg",)
    assert {one.path.name: one.reason for one in dataset.skipped} == {
        "cover.jpg": "its name does not say which frame it is",
        "gone.jpg": "a list names it, but there is no such file",
    }


def test_two_files_of_one_frame_are_not_two_frames(tmp_path: Path) -> None:
    _write(tmp_path, info=None)
    (tmp_path / "bbox_train" / "0002" / "0002C1T0001F002.png").touch()
    dataset = load_mars(tmp_path)
    assert by_name(dataset.train)["0002C1T0001"].frame_index == (1, 2, 3)
    assert [one.path.name for one in dataset.skipped] == ["0002C1T0001F002.png"]


def test_tables_that_contradict_the_names_are_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    rows = tmp_path / "info" / "tracks_train_info.txt"
    for line, message in (
        ("1 3 9 1", r"row 1: identity 9 under camera 1, but one of its files is 0002C1T0001F001\.jpg"),
        ("1 3 2 2", r"row 1: identity 2 under camera 2"),
        ("1 4 2 1", r"0002C2T0001F001\.jpg"),
        ("0 3 2 1", r"row 1: names 0 to 3 .* counted from 1"),
        ("1 99 2 1", r"has 19 names"),
        ("1 3 2", r"3 columns, needed are four"),
        ("1 3 2 x", r"line 1: '1 3 2 x' is not a row of integers"),
    ):
        write(rows, [line])
        with pytest.raises(DataError, match=message):
            load_mars(tmp_path)


def test_queries_that_do_not_exist_or_repeat_are_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    for lines, message in (
        (["8"], "tracklet 8, but there are 7"),
        (["0"], "tracklet 0"),
        (["3", "3"], "3 is a query twice"),
    ):
        write(tmp_path / "info" / "query_idx.txt", lines)
        with pytest.raises(DataError, match=message):
            load_mars(tmp_path)
    write(tmp_path / "info" / "query_idx.txt", ["1"])
    assert "1 of 1 queries have no file at all, or are junk" in say(load_mars(tmp_path))
    (tmp_path / "info" / "tracks_test_info.txt").unlink()
    with pytest.raises(DataError, match="query_IDX numbers the rows of tracks_test_info, which is not there"):
        load_mars(tmp_path)


def test_empty_tables_are_empty_splits(tmp_path: Path) -> None:
    _write(tmp_path, train=[])
    write(tmp_path / "info" / "query_idx.txt", [])
    dataset = load_mars(tmp_path)
    assert sizes(dataset) == (0, 0, 6)
    assert "the list of queries is empty" in say(dataset)


def test_rows_that_hold_several_tracks_keep_all_their_frames(tmp_path: Path) -> None:
    _write(tmp_path, train=[(2, 1, 1, 3), (2, 1, 2, 2)])
    write(tmp_path / "info" / "tracks_train_info.txt", ["1 5 2 1"])
    dataset = load_mars(tmp_path)
    assert [one.files[2:4] for one in dataset.train] == [("0002C1T0001F003.jpg", "0002C1T0002F001.jpg")]
    assert "1 rows hold several T" in say(dataset)


def test_identities_that_count_from_zero_are_people(tmp_path: Path) -> None:
    dataset = load_mars(_write(tmp_path, train=[(0, 1, 1, 2), (1, 1, 1, 2)]))
    assert dataset.distractor_pid is None
    assert "identities count from 0 here" in say(dataset)


def test_a_file_in_another_identitys_folder_is_a_tracklet_of_its_own_that_is_found(tmp_path: Path) -> None:
    _write(tmp_path, info=None)
    touch(tmp_path / "bbox_train" / "0007", ["0002C1T0001F009.jpg"])
    stray = by_name(load_mars(tmp_path).train)["0002C1T0001#2"]
    assert (stray.pid, len(stray), stray.paths[0].is_file()) == (2, 1, True)


def test_frames_directly_in_the_split_folder_are_found(tmp_path: Path) -> None:
    names = [name for track in TRAIN for name in _names(track)]
    touch(tmp_path / "bbox_train", names)
    dataset = load_mars(tmp_path)
    assert sizes(dataset) == (4, 0, 0)
    assert dataset.train[0].paths[0] == tmp_path / "bbox_train" / "0002C1T0001F001.jpg"
    assert "no folder bbox_test" in say(dataset)


def test_the_manifest_of_cut_tracklets_adds_boxes_times_and_visibility(tmp_path: Path) -> None:
    from motarfuse.data.tracklet_manifest import FORMAT, MANIFEST, VERSION, tracklet_entry
    from motarfuse.data.tracklets import Tracklet

    _write(tmp_path, train=[], test=[(1, 1, 1, 3)])
    write(tmp_path / "info" / "query_idx.txt", [])
    files = tuple(_names((1, 1, 1, 3)))
    boxes = tuple((float(k), 2.0, 3.0, 4.0) for k in range(3))
    cut = Tracklet(
        "0001C1T0001", 1, 0, tmp_path / "bbox_test" / "0001", files, (40, 41, 42), (4.0, 4.1, 4.2), boxes, (1, 0.5, 1)
    )
    content = {
        "format": FORMAT,
        "version": VERSION,
        "tracklets": [tracklet_entry(cut, tmp_path)],
        "identities": {"1": "17"},
        "video": {"name": "a.mp4"},
        "mode": {"name": "boxes"},
        "settings": {"split": "test"},
        "notes": [],
    }
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    dataset = load_mars(tmp_path)
    assert dataset.gallery == [cut]
    assert dataset.identity_names == {1: "17"}
    (tmp_path / "bbox_test" / "0001" / files[1]).unlink()
    assert load_mars(tmp_path).gallery == [cut.select([0, 2])]


def test_no_file_is_opened_or_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path)
    listed: list[Path] = []

    def counting(folder: Path) -> Listing:
        listed.append(folder)
        return list_names(folder)

    def refuse(path: Path, *_: Any, **__: Any) -> Any:
        assert path.suffix != ".jpg", f"{path} was asked for"
        return real(path)

    real = Path.stat
    monkeypatch.setattr(mars, "list_names", counting)
    monkeypatch.setattr(Path, "stat", refuse)
    load_mars(tmp_path)
    assert len(listed) == len(set(listed)) == 2 + len({2, 7}) + len({-1, 0, 3, 5})


def test_what_is_no_mars_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="bbox_train or bbox_test"):
        load_mars(tmp_path)
    touch(tmp_path / "bbox_train" / "a", ["b.jpg"])
    with pytest.raises(DataError, match=r"0001C1T0001F001\.jpg.*found b\.jpg"):
        load_mars(tmp_path)
    _write(tmp_path / "x" / "one")
    _write(tmp_path / "x" / "two")
    with pytest.raises(DataError, match=r"several datasets .*\(one, two\)"):
        load_mars(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("0001C1T0001F001.jpg", ("0001C1T0001", 1, 0, 1)),
        ("00-1C6T0012F103.jpg", ("00-1C6T0012", -1, 5, 103)),
        ("-1C2T0001F001.jpg", ("-1C2T0001", -1, 1, 1)),
        ("12345C12T0001F1000.png", ("12345C12T0001", 12345, 11, 1000)),
        ("0001C0T0001F001.jpg", None),
        ("x0001C1T0001F001.jpg", None),
        ("0001C1T0001.jpg", None),
    ],
)
def test_a_name_says_tracklet_identity_camera_and_frame(name: str, labels: object) -> None:
    assert parse_mars_name(name) == labels
