"""Tables: columns, defaults, and errors that name the line and the column."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from motarfuse.data import load_dataset
from motarfuse.data.csv_table import load_csv
from motarfuse.errors import DataError

HEADER = "path,pid,camid,split\n"


@pytest.fixture
def table(tmp_path: Path, picture: Callable) -> Callable[[str], Path]:
    """Writes split.csv beside the pictures images/0.jpg .. images/5.jpg."""

    def write(text: str, name: str = "split.csv") -> Path:
        for number in range(6):
            picture(tmp_path / "images" / f"{number}.jpg", number)
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


GOOD = HEADER + "".join(
    f"images/{n}.jpg,{pid},{cam},{split}\n"
    for n, (pid, cam, split) in enumerate(
        [(4, 0, "train"), (4, 1, "train"), (8, 0, "train"), (9, 0, "query"), (9, 1, "gallery"), (-1, 1, "test")]
    )
)


def test_a_table_and_its_folder_load_the_same(tmp_path: Path, table: Callable) -> None:
    path = table(GOOD)
    for root in (path, tmp_path):
        dataset = load_dataset(root)
        assert (dataset.kind, len(dataset.train), len(dataset.query), len(dataset.gallery)) == ("csv", 3, 1, 1)
        assert dataset.junk == {"gallery": 1}
        assert [(record.pid, record.camid) for record in dataset.train] == [(4, 0), (4, 1), (8, 0)]


def test_columns_may_be_in_any_order_with_others_between_and_a_byte_order_mark(table: Callable) -> None:
    path = table("\ufeffsplit, note ,PID,path\ntrain,x,anna,images/0.jpg\n\ntrain,y,bert,images/1.jpg\n")
    dataset = load_csv(path)
    assert dataset.identity_names == {1: "anna", 2: "bert"}
    assert [record.camid for record in dataset.train] == [-1, -1]
    assert any("no column camid" in note for note in dataset.notes)


def test_an_empty_camera_is_unknown_and_counted(table: Callable) -> None:
    dataset = load_csv(table(HEADER + "images/0.jpg,1,,train\nimages/1.jpg,2,3,train\n"))
    assert [record.camid for record in dataset.train] == [-1, 3]
    assert any("1 of 2 rows have no camera" in note for note in dataset.notes)


def test_a_table_under_another_name_is_found_when_it_is_the_only_one(tmp_path: Path, table: Callable) -> None:
    table(GOOD, "people.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert load_dataset(tmp_path).variant == "table people.csv"


def test_paths_may_start_from_another_folder(tmp_path: Path, table: Callable) -> None:
    path = table(GOOD)
    moved = tmp_path / "lists" / "split.csv"
    moved.parent.mkdir()
    path.rename(moved)
    assert len(load_dataset(moved, images_root=tmp_path).train) == 3
    with pytest.raises(DataError, match=r"none of its 6 files exists; relative paths start from .*lists"):
        load_dataset(moved)


def test_files_that_are_missing_are_skipped_counted_and_named(tmp_path: Path, table: Callable) -> None:
    path = table(GOOD)
    (tmp_path / "images" / "1.jpg").unlink()
    dataset = load_csv(path)
    assert [skipped.path.name for skipped in dataset.skipped] == ["1.jpg"]
    assert len(dataset.train) == 2
    assert any("1 files of the table do not exist" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("path,camid,split\na,1,train\n", r"line 1: no column pid; found path, camid, split"),
        ("path,pid,split,pid\na,1,train,2\n", r"line 1: the column pid appears 2 times"),
        (HEADER + "images/0.jpg,1,0,train\nimages/1.jpg,1,0,val\n", r"line 3: split is 'val'; supported are train"),
        (HEADER + "images/0.jpg,1,left,train\n", r"line 2: camid is 'left'; supported are integers from 0"),
        (HEADER + "images/0.jpg,1,-2,train\n", r"line 2: camid is '-2'"),
        (HEADER + "images/0.jpg,,0,train\n", r"line 2: the column pid is empty"),
        (HEADER + ",1,0,train\n", r"line 2: the column path is empty"),
        (HEADER + "images/0.jpg,1\n", r"line 2: only 2 values, the column camid and the column split is missing"),
        (HEADER, r"no rows below its header"),
        ("", r"line 1: no column path and no column pid; found nothing"),
        (HEADER + '"images/0.jpg,1,0,train\n', r"not a CSV table"),
    ],
)
def test_mistakes_are_named_by_line_and_column(table: Callable, text: str, error: str) -> None:
    with pytest.raises(DataError, match=error):
        load_csv(table(text))


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_bytes(b"path,pid,split\n\xff\xfe\x00")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        load_csv(path)


def test_a_folder_without_a_table_says_what_a_table_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no table found; expected a \.csv or \.parquet file, or a folder"):
        load_csv(tmp_path)


@pytest.mark.real_data
def test_pku_reid_loads_with_its_counts_from_the_table_and_from_the_folder(real_data: Path) -> None:
    for root in (real_data / "pku-reid", real_data / "pku-reid" / "split.csv"):
        dataset = load_dataset(root)
        counts = {split: dataset.counts(split) for split in ("train", "query", "gallery")}
        assert {split: count.images for split, count in counts.items()} == {"train": 608, "query": 96, "gallery": 96}
        assert {split: count.identities for split, count in counts.items()} == {"train": 38, "query": 12, "gallery": 12}
        assert {r.pid for r in dataset.train}.isdisjoint({r.pid for r in dataset.query})
        assert dataset.queries_without_match() == []
        assert not dataset.skipped
