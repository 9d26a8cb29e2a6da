"""Tables beyond path, pid, split: other names of columns, OML's flags, Parquet, and one row a frame of tracklets."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from motarfuse.data import load_dataset, load_video_dataset
from motarfuse.data.any_dataset import holds_tracklets, load_any_dataset
from motarfuse.data.table_rows import read_rows
from motarfuse.errors import DataError

Write = Callable[..., Path]


@pytest.fixture
def table(tmp_path: Path) -> Write:
    """Writes a table of these rows beside the (empty) files images/0.jpg .. images/9.jpg."""

    def write(header: str, *rows: str, name: str = "split.csv") -> Path:
        (tmp_path / "images").mkdir(exist_ok=True)
        for number in range(10):
            (tmp_path / "images" / f"{number}.jpg").touch()
        path = tmp_path / name
        if path.suffix == ".csv":
            path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
            return path
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        names = header.split(",")
        columns: dict[str, list[Any]] = {key: [] for key in names}
        for row in rows:
            for key, text in zip(names, row.split(","), strict=True):
                flag = {"true": True, "false": False}.get(text, text)
                columns[key].append(None if text == "" else int(text) if text.lstrip("-").isdigit() else flag)
        parquet.write_table(pyarrow.table(columns), path)
        return path

    return write


def labels(dataset: Any, split: str) -> list[tuple[int, int]]:
    return [(record.pid, record.camid) for record in dataset.subset(split)]


BOTH = pytest.mark.parametrize("name", ["split.csv", "split.parquet", "people.csv", "people.parquet", "people.pq"])


@BOTH
def test_cam_is_camid_and_parquet_is_csv(table: Write, name: str) -> None:
    path = table(
        "path,pid,cam,split", "images/0.jpg,7,2,train", "images/1.jpg,9,,query", "images/2.jpg,9,0,test", name=name
    )
    for root in (path, path.parent):
        dataset = load_dataset(root)
        assert (dataset.kind, dataset.variant) == ("csv", f"table {name}")
        assert labels(dataset, "train") == [(7, 2)]
        assert labels(dataset, "query") == [(9, -1)]
        assert labels(dataset, "gallery") == [(9, 0)]


def test_a_table_without_a_split_is_for_training(table: Write) -> None:
    dataset = load_dataset(table("path,pid", "images/0.jpg,1", "images/1.jpg,2"))
    assert (len(dataset.train), len(dataset.query)) == (2, 0)
    assert any("no column split: every row is for training" in note for note in dataset.notes)


@pytest.mark.parametrize("name", ["oml.csv", "oml.parquet"])
def test_the_flags_of_oml_say_what_is_query_and_gallery(table: Write, name: str) -> None:
    path = table(
        "label,path,split,is_query,is_gallery,category",
        "3,images/0.jpg,train,,,x",
        "4,images/1.jpg,validation,true,false,x",
        "4,images/2.jpg,validation,false,true,x",
        "5,images/3.jpg,validation,true,true,x",
        "6,images/4.jpg,validation,false,false,x",
        "7,images/5.jpg,train,false,false,x",
        name=name,
    )
    dataset = load_dataset(path)
    assert [record.path.name for record in dataset.train] == ["0.jpg", "5.jpg"]
    assert [record.path.name for record in dataset.query] == ["1.jpg", "3.jpg"]
    assert [record.path.name for record in dataset.gallery] == ["2.jpg", "3.jpg"]
    assert any("1 of 6 rows are neither for training nor query nor gallery" in note for note in dataset.notes)
    # Without a camera, a row that is both must not be its own answer; other images of the person still are.
    (query,) = [record for record in dataset.query if record.path.name == "3.jpg"]
    assert [record.path.name for record in dataset.queries_without_match()] == ["3.jpg"]
    assert query.camid >= 0
    assert labels(dataset, "query")[0] == (4, -1)


def test_sequences_count_as_cameras_where_there_is_none(table: Write) -> None:
    path = table(
        "path,pid,is_query,is_gallery,sequence",
        "images/0.jpg,1,1,1,a",
        "images/1.jpg,1,0,1,a",
        "images/2.jpg,1,0,1,b",
    )
    dataset = load_dataset(path, "csv")
    assert labels(dataset, "query") == [(1, 0)]
    assert labels(dataset, "gallery") == [(1, 0), (1, 0), (1, 1)]
    assert any("the 2 sequences count as cameras" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("header", "row", "error"),
    [
        ("path,pid,cam,camid", "a,1,0,0", "a column camid and a column cam; keep one"),
        ("path,pid,is_query", "images/0.jpg,1,maybe", "line 2: is_query is 'maybe'; supported are true and false"),
        (
            "path,pid,split,frame,track",
            "images/0.jpg,1,train,1.5,a",
            r"line 2: frame is '1\.5'; supported are integers",
        ),
        ("path,pid,split,timestamp", "images/0.jpg,1,train,noon", "line 2: timestamp is 'noon'; supported are numbers"),
        ("path,pid,split", "images/0.jpg,1,validation", "line 2: split is 'validation'"),
    ],
)
def test_mistakes_are_named_by_line_and_column(table: Write, header: str, row: str, error: str) -> None:
    with pytest.raises(DataError, match=error):
        read_rows(table(header, row))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "people.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"people\.parquet: is no Parquet file"):
        load_dataset(path)


def test_a_gap_in_a_column_of_numbers_is_nothing_and_numbers_stay_whole(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number in range(2):
        (tmp_path / f"{number}.jpg").touch()
    columns = {"path": ["0.jpg", "1.jpg"], "pid": [7.0, 9.0], "camid": [float("nan"), 2.0]}  # as pandas writes them
    parquet.write_table(pyarrow.table(columns), tmp_path / "people.parquet")
    dataset = load_dataset(tmp_path)
    assert labels(dataset, "train") == [(7, -1), (9, 2)]
    parquet.write_table(pyarrow.table({**columns, "pid": [7.0, float("nan")]}), tmp_path / "people.parquet")
    with pytest.raises(DataError, match=r"people\.parquet, row 2: the column pid is empty"):
        load_dataset(tmp_path)


def test_without_pyarrow_a_parquet_table_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "people.parquet").write_bytes(b"PAR1")
    for root in (tmp_path, tmp_path / "people.parquet"):
        with pytest.raises(DataError, match=r"needs pyarrow; pip install motarfuse\[data\]"):
            load_dataset(root)


def test_boxes_of_oml_are_noted_as_not_cut_out(table: Write) -> None:
    dataset = load_dataset(table("path,pid,x_1,x_2,y_1,y_2", "images/0.jpg,1,0,9,0,9", "images/1.jpg,2,0,9,0,9"))
    assert any("are not cut out" in note for note in dataset.notes)


FRAMES = (
    "images/9.jpg,anna,0,train,t1,9",
    "images/3.jpg,anna,0,train,t1,12",
    "images/5.jpg,anna,0,train,t1,10",
    "images/1.jpg,bert,1,query,t2,1",
    "images/2.jpg,bert,0,gallery,t2,1",
    "images/4.jpg,bert,0,gallery,t2,3",
)


@BOTH
def test_rows_of_one_track_are_a_tracklet_in_the_order_of_frames(table: Write, name: str) -> None:
    path = table("path,pid,camid,split,track,frame", *FRAMES, name=name)
    found = load_any_dataset(path)
    assert holds_tracklets(found)
    assert found.kind == "table"
    dataset = load_video_dataset(path.parent)
    (one,) = dataset.train
    assert [file.name for file in one.paths] == ["9.jpg", "5.jpg", "3.jpg"]
    assert (one.frame_index, one.num_missing, one.camid) == ((9, 10, 12), 1, 0)
    assert dataset.identity_names == {1: "anna", 2: "bert"}
    # One name under two cameras is two tracklets, and never two people or cameras in one.
    assert [(one.name, one.camid, len(one)) for one in dataset.query] == [("t2", 1, 1)]
    assert [(one.name, one.camid, len(one)) for one in dataset.gallery] == [("t2", 0, 2)]
    assert any("1 names of tracks are used for several identities or cameras" in note for note in dataset.notes)


def test_the_same_table_is_images_when_asked_for_by_kind(table: Write) -> None:
    path = table("path,pid,camid,split,track,frame", *FRAMES)
    dataset = load_any_dataset(path, "csv")
    assert not holds_tracklets(dataset)
    assert len(dataset.train) == 3


def test_without_frames_the_natural_order_of_names_is_the_order_of_time(table: Write, tmp_path: Path) -> None:
    for name in ("f10.jpg", "f9.jpg", "f100.jpg"):
        (tmp_path / name).touch()
    dataset = load_video_dataset(table("path,pid,track", "f10.jpg,1,a", "f100.jpg,1,a", "f9.jpg,1,a"))
    assert [path.name for path in dataset.train[0].paths] == ["f9.jpg", "f10.jpg", "f100.jpg"]
    assert dataset.train[0].frame_index == (0, 1, 2)
    assert any("no column frame" in note for note in dataset.notes)


def test_times_boxes_and_visibility_are_read(table: Write) -> None:
    path = table(
        "path,pid,track,frame,timestamp,x,y,w,h,visibility",
        "images/1.jpg,1,a,2,0.5,1,2,3,4,0.25",
        "images/0.jpg,1,a,1,0.25,5,6,7,8.5,1",
        "images/2.jpg,2,b,1,,1,2,3,4,",
    )
    first, second = load_video_dataset(path).train
    assert first.timestamps == (0.25, 0.5)
    assert first.boxes == ((5, 6, 7, 8.5), (1, 2, 3, 4))
    assert first.visibility == (1, 0.25)
    assert (second.timestamps, second.visibility) == (None, None)


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        (("images/0.jpg,1,0,train,a,1", "images/1.jpg,1,0,train,a,1"), "not in the order of time"),
        (("images/0.jpg,1,0,train,a,1", "images/1.jpg,1,0,train,a,"), "line 3: the column frame is empty"),
        (("images/0.jpg,1,0,train,,1",), "line 2: the column track is empty"),
        (("images/x.jpg,1,0,train,a,1",), "none of its 1 files exists"),
    ],
)
def test_a_track_that_cannot_be_ordered_is_refused(table: Write, rows: tuple[str, ...], error: str) -> None:
    with pytest.raises(DataError, match=error):
        load_video_dataset(table("path,pid,camid,split,track,frame", *rows))


def test_missing_frames_are_skipped_junk_is_dropped_and_queries_in_the_gallery_are_parted(table: Write) -> None:
    path = table(
        "path,pid,is_query,is_gallery,track,frame",
        "images/0.jpg,1,1,1,a,1",
        "images/gone.jpg,1,1,1,a,2",
        "images/1.jpg,1,1,1,a,3",
        "images/2.jpg,1,0,1,b,1",
        "images/3.jpg,-1,0,1,c,1",
    )
    dataset = load_video_dataset(path)
    assert [skipped.path.name for skipped in dataset.skipped] == ["gone.jpg"]
    assert dataset.junk == {"gallery": 1}
    (query,) = dataset.query
    assert query.frame_index == (1, 3)
    assert (query.camid, [one.camid for one in dataset.gallery]) == (0, [0, -1])
    assert dataset.queries_without_match() == []


def test_a_table_without_tracks_is_no_set_of_tracklets(table: Write) -> None:
    path = table("path,pid", "images/0.jpg,1")
    with pytest.raises(DataError, match=r"no table found; expected .* of the columns path, pid, track"):
        load_video_dataset(path, "table")
    assert not holds_tracklets(load_any_dataset(path))
