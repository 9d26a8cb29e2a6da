"""`motarfuse data check` of tracklets: frames, gaps, lengths, broken frames, and copies between tracklets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from motarfuse.cli.main import main
from motarfuse.data import check_dataset, load_any_dataset
from motarfuse.errors import DataError

Walks = Callable[..., Path]

# (split, identity, camera, track, frames)
TRACKS = [
    ("train", 1, 0, "a", (1, 2, 3)),
    ("train", 2, 1, "b", (5, 9)),
    ("query", 3, 0, "c", (1,)),
    ("gallery", 3, 1, "d", (1, 2, 3, 4)),
    ("gallery", 4, 1, "e", (1, 2)),
]


@pytest.fixture
def walks(tmp_path: Path, picture: Callable) -> Walks:
    """Writes tracks.csv with a picture a frame; gives the table."""

    def write(folder: str = "walks") -> Path:
        base = tmp_path / folder
        lines, value = ["path,pid,camid,split,track,frame"], 0
        for split, pid, camid, track, frames in TRACKS:
            for frame in frames:
                value += 1
                picture(base / track / f"{frame}.jpg", value)
                lines.append(f"{track}/{frame}.jpg,{pid},{camid},{split},{track},{frame}")
        (base / "tracks.csv").write_text("\n".join(lines) + "\n")
        return base / "tracks.csv"

    return write


def test_frames_gaps_and_lengths_are_counted(walks: Walks) -> None:
    report = check_dataset(walks())
    assert report.usable
    assert (report.unit, report.kind) == ("tracklets", "table")
    assert {split: counts.images for split, counts in report.splits.items()} == {"train": 2, "query": 1, "gallery": 2}
    assert report.frames is not None
    train, gallery = report.frames["train"], report.frames["gallery"]
    assert (train.frames, train.missing, train.with_gaps) == (5, 3, 1)
    assert (gallery.frames, gallery.missing, gallery.with_gaps) == (6, 0, 0)
    assert gallery.lengths is not None
    assert (gallery.lengths.least, gallery.lengths.median, gallery.lengths.most, gallery.lengths.mean) == (2, 2, 4, 3.0)


def test_broken_frames_leave_their_tracklets_and_may_cost_a_query_its_match(walks: Walks) -> None:
    base = walks().parent
    (base / "a" / "2.jpg").write_bytes(b"")
    report = check_dataset(base)
    assert [failure.path.name for failure in report.unreadable] == ["2.jpg"]
    assert report.frames is not None
    assert (report.frames["train"].frames, report.frames["train"].missing) == (4, 4)
    assert report.splits["train"].images == 2
    for frame in range(1, 5):
        (base / "d" / f"{frame}.jpg").write_bytes(b"x")
    report = check_dataset(base)
    assert report.splits["gallery"].images == 1
    assert [path.parent.name for path in report.queries_without_match] == ["c"]
    assert not report.usable
    assert "none of the 1 queries" in report.problems[0]


def test_tracklets_that_share_frames_are_listed_once(walks: Walks) -> None:
    base = walks().parent
    for frame in (1, 2):
        shutil.copy(base / "a" / f"{frame}.jpg", base / "d" / f"{frame + 2}.jpg")
    shutil.copy(base / "b" / "5.jpg", base / "b" / "9.jpg")  # a standing person, within one tracklet
    (duplicate,) = check_dataset(base).duplicates
    assert (duplicate.frames, duplicate.splits, duplicate.pids) == (2, ["train", "gallery"], [1, 3])
    assert duplicate.unfair == "one picture under different identities"
    assert {path.parent.name for path in duplicate.paths} == {"a", "d"}


def test_the_command_prints_frames_gaps_and_lengths(walks: Walks, capsys: pytest.CaptureFixture[str]) -> None:
    path = walks()
    assert main(["data", "check", str(path)]) == 0
    out = capsys.readouterr().out
    assert "train: 5 frames, 3 missing in 1 tracklets; frames a tracklet 2 | 2 2 2 3 3 | 3, mean 2.5" in out
    assert "gallery: 6 frames, no gap" in out
    assert "tracklets" in out
    assert main(["data", "check", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["unit"] == "tracklets"
    assert report["frames"]["gallery"]["lengths"]["most"] == 4
    assert main(["data", "check", str(path), "--kind", "csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["gallery"]["images"] == 6


def test_mars_is_checked_with_its_queries_in_the_gallery(
    tmp_path: Path, picture: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    value = 0
    for folder, tracks in {
        "bbox_train": ["0001C1T0001", "0002C1T0001"],
        "bbox_test": ["0005C1T0001", "0005C2T0002", "00-1C1T0001"],
    }.items():
        for track in tracks:
            for frame in (1, 2):
                value += 1
                picture(tmp_path / folder / track[:4] / f"{track}F{frame:03d}.jpg", value)
    (tmp_path / "info").mkdir()
    (tmp_path / "info" / "query.txt").write_text("0005C1T0001\n")
    report = check_dataset(tmp_path)
    assert (report.kind, report.usable) == ("mars", True)
    assert {split: counts.images for split, counts in report.splits.items()} == {"train": 2, "query": 1, "gallery": 2}
    assert report.duplicates == []  # the query in the gallery is under its own camera
    assert main(["data", "check", str(tmp_path), "--kind", "mars:queries_in_gallery=false", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["gallery"]["images"] == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mrs", "unknown dataset kind 'mrs'; supported are auto, "),
        ("csv:images", "'images' is no option; write KIND:NAME=VALUE"),
        ("table:split=1", "split is no option of the kind 'table'"),
        ("csv:images_root=a,images_root=b", "the option images_root is given twice"),
    ],
)
def test_a_mistaken_kind_is_named(walks: Walks, kind: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(walks()), "--kind", kind]) == 2
    assert message in capsys.readouterr().err


def test_tracklets_beside_images_are_not_taken_for_the_whole(tmp_path: Path) -> None:
    (tmp_path / "holistic/bounding_box_train").mkdir(parents=True)
    folder = tmp_path / "video/bbox_train/0001"
    folder.mkdir(parents=True)
    (folder / "0001C1T0001F001.jpg").touch()
    assert load_any_dataset(tmp_path / "video").train
    with pytest.raises(DataError, match=r"holds tracklets, and images beside them \(holistic\); point at one"):
        load_any_dataset(tmp_path)
