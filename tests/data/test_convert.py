"""`motarfuse data convert`: what is loaded from the result is what was loaded from the source."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from motarfuse.cli.main import main
from motarfuse.data import convert as convert_module
from motarfuse.data.any_dataset import files_of, load_any_dataset
from motarfuse.data.convert import convert_dataset
from motarfuse.data.records import SPLITS
from motarfuse.data.tracklets import Tracklet
from motarfuse.errors import DataError, OutputError

Market = Callable[[Path], Path]


def contents(dataset: Any, split: str) -> Counter:
    """Labels, bytes and frame numbers of every record of a split."""
    return Counter(
        (
            dataset.identity_names.get(record.pid, str(record.pid)),
            record.camid,
            tuple(path.read_bytes() for path in files_of(record)),
            record.frame_index if isinstance(record, Tracklet) else None,
        )
        for record in dataset.subset(split)
    )


def same(first: Any, second: Any) -> None:
    for split in SPLITS:
        assert contents(first, split) == contents(second, split), split


@pytest.mark.parametrize("to", ["market1501", "csv", "folder"])
@pytest.mark.parametrize("files", ["copy", "hardlink", "symlink"])
def test_images_survive_the_way_there_and_back(tmp_path: Path, market: Market, to: str, files: str) -> None:
    source = load_any_dataset(market(tmp_path / "source"))
    done = convert_dataset(tmp_path / "source", tmp_path / "out", to, files=files)  # type: ignore[arg-type]
    written = load_any_dataset(tmp_path / "out")
    assert written.kind == to
    same(source, written)
    assert done.records == {"train": 12, "query": 2, "gallery": 4}
    assert any("2 images of junk are not written" in note for note in done.notes)
    convert_dataset(tmp_path / "out", tmp_path / "back", "market1501")
    same(source, load_any_dataset(tmp_path / "back"))


@pytest.mark.parametrize(
    ("files", "link", "shared"), [("copy", False, False), ("hardlink", False, True), ("symlink", True, True)]
)
def test_files_are_placed_as_asked(tmp_path: Path, market: Market, files: str, link: bool, shared: bool) -> None:
    market(tmp_path / "source")
    convert_dataset(tmp_path / "source", tmp_path / "out", "market1501", files=files)  # type: ignore[arg-type]
    source = next((tmp_path / "source" / "query").iterdir())
    pid = source.name.partition("_")[0]
    (target,) = (tmp_path / "out" / "query").glob(f"{pid}_*")
    assert target.is_symlink() == link
    assert target.samefile(source) == shared


def test_nothing_is_ever_overwritten_and_nothing_half_written_is_left(
    tmp_path: Path, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    market(tmp_path / "source")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(OutputError, match="is not empty; nothing is ever overwritten"):
        convert_dataset(tmp_path / "source", out, "csv")
    assert list(out.iterdir()) == [out / "mine"]
    (out / "mine").unlink()
    convert_dataset(tmp_path / "source", out, "csv")  # an empty folder may be there
    with pytest.raises(OutputError):
        convert_dataset(tmp_path / "source", out, "csv")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_module.shutil, "copyfile", full)
    with pytest.raises(OutputError, match="No space left"):
        convert_dataset(tmp_path / "source", tmp_path / "second", "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_file_in_the_way_is_kept(tmp_path: Path, market: Market) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="is a file or a link"):
        convert_dataset(market(tmp_path / "source"), tmp_path / "out", "csv")
    assert (tmp_path / "out").read_text() == "mine"


def test_unknown_cameras_go_where_they_can_be_said(tmp_path: Path, picture: Callable) -> None:
    picture(tmp_path / "source" / "anna" / "1.jpg", 1)
    picture(tmp_path / "source" / "bert" / "2_c3.png", 2)
    with pytest.raises(DataError, match="1 records have no camera, and names of market1501 need one; convert to csv"):
        convert_dataset(tmp_path / "source", tmp_path / "out", "market1501")
    assert not (tmp_path / "out").exists()
    for to in ("csv", "folder"):
        convert_dataset(tmp_path / "source", tmp_path / to, to)
        same(load_any_dataset(tmp_path / "source"), load_any_dataset(tmp_path / to))


@pytest.mark.parametrize("to", ["csv", "folder"])
def test_identities_that_are_no_numbers_keep_their_names(tmp_path: Path, picture: Callable, to: str) -> None:
    for value, name in enumerate(("zoe", "Anna B", "0007", "7")):
        picture(tmp_path / "source" / name / "c1.jpg", value)
    convert_dataset(tmp_path / "source", tmp_path / "out", to)  # type: ignore[arg-type]
    same(load_any_dataset(tmp_path / "source"), load_any_dataset(tmp_path / "out"))


@pytest.mark.parametrize("to", ["csv", "folder"])
def test_identities_keep_their_numbers_when_another_has_no_file_left(
    tmp_path: Path, picture: Callable, to: str
) -> None:
    lines = ["path,pid,camid", "gone.jpg,anna,0", "1.jpg,bert,0", "2.jpg,carl,0"]
    for value in (1, 2):
        picture(tmp_path / "source" / f"{value}.jpg", value)
    (tmp_path / "source" / "split.csv").write_text("\n".join(lines) + "\n")
    done = convert_dataset(tmp_path / "source", tmp_path / "out", to)  # type: ignore[arg-type]
    assert any("written as numbers" in note for note in done.notes)
    assert any("1 files that the loader left out" in note for note in done.notes)
    assert sorted(record.pid for record in load_any_dataset(tmp_path / "out").train) == [2, 3]


def test_names_that_no_folder_can_have_become_numbers(tmp_path: Path, picture: Callable) -> None:
    lines = ["path,pid,camid"]
    for value, name in enumerate(("a/b", "..", ".hidden")):
        picture(tmp_path / "source" / f"{value}.jpg", value)
        lines.append(f"{value}.jpg,{name},0")
    (tmp_path / "source" / "split.csv").write_text("\n".join(lines) + "\n")
    done = convert_dataset(tmp_path / "source", tmp_path / "out", "folder")
    assert any("written as numbers" in note for note in done.notes)
    first, second = load_any_dataset(tmp_path / "source"), load_any_dataset(tmp_path / "out")
    assert sorted((one.pid, one.camid) for one in first.train) == [(1, 0), (2, 0), (3, 0)]
    assert sorted((one.pid, one.camid) for one in second.train) == [(1, 0), (2, 0), (3, 0)]


def test_it_is_said_that_a_person_called_0_counts_as_a_distractor(tmp_path: Path, picture: Callable) -> None:
    lines = ["path,pid,camid,split", "0.jpg,0,0,gallery", "1.jpg,1,0,gallery", "2.jpg,1,1,query"]
    for value in range(3):
        picture(tmp_path / "source" / f"{value}.jpg", value)
    (tmp_path / "source" / "split.csv").write_text("\n".join(lines) + "\n")
    done = convert_dataset(tmp_path / "source", tmp_path / "out", "market1501")
    assert any("identity 0, which is in the gallery only, counts as distractors here" in note for note in done.notes)
    same(load_any_dataset(tmp_path / "source"), load_any_dataset(tmp_path / "out"))


def test_a_picture_that_is_query_and_gallery_is_written_once_to_a_table(tmp_path: Path, picture: Callable) -> None:
    lines = ["path,pid,camid,is_query,is_gallery", "0.jpg,1,0,1,1", "1.jpg,1,1,1,1"]
    for value in range(2):
        picture(tmp_path / "source" / f"{value}.jpg", value)
    (tmp_path / "source" / "split.csv").write_text("\n".join(lines) + "\n")
    assert convert_dataset(tmp_path / "source", tmp_path / "csv", "csv").files == 2
    assert convert_dataset(tmp_path / "source", tmp_path / "market", "market1501").files == 4
    for out in ("csv", "market"):
        same(load_any_dataset(tmp_path / "source"), load_any_dataset(tmp_path / out))


def test_files_of_other_endings_go_to_tables_only(tmp_path: Path, picture: Callable) -> None:
    for value in range(2):
        picture(tmp_path / "source" / f"{value}.img", value)
    table = "path,pid,camid\n0.img,1,0\n1.img,2,1\n"
    (tmp_path / "source" / "split.csv").write_text(table)
    for to in ("market1501", "folder"):
        with pytest.raises(DataError, match=r"0\.img: files of that ending are not found in the layout"):
            convert_dataset(tmp_path / "source", tmp_path / "out", to)
    convert_dataset(tmp_path / "source", tmp_path / "out", "csv")
    same(load_any_dataset(tmp_path / "source"), load_any_dataset(tmp_path / "out"))


@pytest.fixture
def walks(tmp_path: Path, picture: Callable) -> Callable[..., Path]:
    """Writes a table of tracklets with gaps, times, boxes and visibility."""

    def write(*, queries_in_gallery: bool, camera: int = 1) -> Path:
        base = tmp_path / "walks"
        lines = ["path,pid,camid,is_query,is_gallery,split,track,frame,timestamp,x,y,w,h,visibility"]
        tracks = [
            ("train", 1, 0, "a", (0, 1, 4)),
            ("train", 2, 1, "b", (5, 1200)),
            ("query", 3, 0, "c", (7,)),
            ("gallery", 3, camera, "d", (1, 2, 3)),
            ("gallery", 0, 1, "e", (1, 2)),
        ]
        value = 0
        for split, pid, camid, track, frames in tracks:
            for frame in frames:
                value += 1
                picture(base / track / f"{frame}.jpg", value)
                flags = {"train": ",", "query": f"1,{int(queries_in_gallery)}", "gallery": "0,1"}[split]
                test = "train" if split == "train" else "test"
                lines.append(
                    f"{track}/{frame}.jpg,{pid},{camid},{flags},{test},{track},{frame},{frame / 3},{frame},2,3.5,4,0.1"
                )
        (base / "split.csv").write_text("\n".join(lines) + "\n")
        return base

    return write


@pytest.mark.parametrize("inside", [True, False])
def test_tracklets_survive_the_way_to_mars_and_back(tmp_path: Path, walks: Callable[..., Path], inside: bool) -> None:
    base = walks(queries_in_gallery=inside)
    source = load_any_dataset(base)
    done = convert_dataset(base, tmp_path / "mars", "mars")
    assert any("csv keeps them" in note for note in done.notes)
    assert any("queries_in_gallery=False" in note for note in done.notes) == (not inside)
    kind = "auto" if inside else "mars:queries_in_gallery=false"
    written = load_any_dataset(tmp_path / "mars", kind)
    assert written.kind == "mars"
    same(source, written)
    convert_dataset(tmp_path / "mars", tmp_path / "back", "csv", kind=kind)
    same(source, load_any_dataset(tmp_path / "back"))


def test_a_table_of_tracklets_keeps_everything(tmp_path: Path, walks: Callable[..., Path]) -> None:
    base = walks(queries_in_gallery=True)
    convert_dataset(base, tmp_path / "out", "csv", files="hardlink")
    source, written = load_any_dataset(base), load_any_dataset(tmp_path / "out")
    same(source, written)
    for split in SPLITS:
        for one, other in zip(source.subset(split), written.subset(split), strict=True):
            assert isinstance(one, Tracklet)
            assert isinstance(other, Tracklet)
            for attribute in ("name", "pid", "camid", "frame_index", "timestamps", "boxes", "visibility"):
                assert getattr(one, attribute) == getattr(other, attribute)


def test_tracklets_become_folders(tmp_path: Path, walks: Callable[..., Path]) -> None:
    base = walks(queries_in_gallery=False)
    convert_dataset(base, tmp_path / "out", "folder", files="symlink")
    written = load_any_dataset(tmp_path / "out")
    assert written.kind == "tracklet-folder"
    same(load_any_dataset(base), written)


def test_images_do_not_become_tracklets_nor_tracklets_images(
    tmp_path: Path, market: Market, walks: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match="is a set of images, which mars does not hold"):
        convert_dataset(market(tmp_path / "source"), tmp_path / "out", "mars")
    with pytest.raises(DataError, match="is a set of tracklets, which market1501 does not hold"):
        convert_dataset(walks(queries_in_gallery=True), tmp_path / "out", "market1501")


def test_a_result_that_does_not_read_back_is_not_left(
    tmp_path: Path, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = convert_module.place_file

    def wrong(source: Path, target: Path, placement: str) -> None:
        name = target.name.replace("_c1s1", "_c2s1")
        place(source, target.with_name(name), placement)

    monkeypatch.setattr(convert_module, "place_file", wrong)
    with pytest.raises(DataError, match="does not give back what was written"):
        convert_dataset(market(tmp_path / "source"), tmp_path / "out", "market1501")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_command_converts_with_options_of_the_kind(
    tmp_path: Path, market: Market, picture: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    base = market(tmp_path / "source")
    picture(base / "images" / "00000001.jpg", 99)
    command = ["data", "convert", str(base), str(tmp_path / "out"), "--to", "csv", "--files", "hardlink"]
    assert main([*command, "--extra-distractors"]) == 0
    out = capsys.readouterr().out
    assert "as csv: train 12, query 2, gallery 5 images (19 files, hardlink)" in out
    assert "counts as an identity" in out
    assert main(command) == 2
    assert "nothing is ever overwritten" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, market: Market) -> None:
    market(tmp_path / "source")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot write"):
        convert_dataset(tmp_path / "source", tmp_path / "locked" / "out", "csv")
