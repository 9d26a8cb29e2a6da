"""``motarfuse tracklets``: what a user reads, on the screen and in the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from motarfuse.cli.main import main
from motarfuse.data.tracklet_manifest import read_tracklet_manifest
from tests.data.videos import write_audio, write_video


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A video of 12 frames and boxes of two people, one box of them outside; the working folder is beside them."""
    monkeypatch.chdir(tmp_path)
    path = write_video(tmp_path / "walk.mp4", 12)
    lines = [f"{frame},{track},{track},4,9,20" for frame in range(1, 9) for track in (3, 8)]
    (tmp_path / "gt.txt").write_text("\n".join([*lines, "9,3,70,4,9,20", "40,3,1,4,9,20"]) + "\n")
    return path


def test_the_folder_is_named_after_the_video_and_everything_left_out_is_said(
    walk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tracklets", "walk.mp4", "--boxes", "gt.txt", "--size", "32", "16", "--format", "png"]) == 0
    output = capsys.readouterr()
    assert "walk.mp4: 64 x 48, 10 frames/s, 12 frames read" in output.out
    assert "16 crops in 2 tracklets" in output.out
    assert "note: frames count from 1 in gt.txt" in output.out
    assert "1 x the box lies outside the frame: line 17" in output.err
    assert "1 x the video has no such frame (it has 12): line 18: frame 40" in output.err
    read = read_tracklet_manifest("walk-tracklets")
    assert [len(one) for one in read.gallery] == [8, 8]
    assert read.identity_names == {1: "3", 2: "8"}


def test_every_option_reaches_the_extraction(walk: Path) -> None:
    options = {"--out": "o", "--split": "train", "--camera": "4", "--min-length": "3", "--first-frame": "0"}
    options |= {"--min-visibility": "0.5", "--quality": "50", "--workers": "1"}
    words = [word for option in options.items() for word in option]
    assert main(["tracklets", "walk.mp4", "--boxes", "gt.txt", "--no-rotate", *words]) == 0
    train = read_tracklet_manifest("o").train
    assert [(one.camid, one.frame_index[0]) for one in train] == [(3, 1), (3, 1)]
    assert main(["tracklets", "walk.mp4", "--boxes", "gt.txt", "--out", "o", "--overwrite", "--classes", "1"]) == 0
    assert read_tracklet_manifest("o").train == []


def test_without_boxes_the_method_is_said_in_help_output_and_manifest(
    walk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tracklets", "walk.mp4", "--background", "learn_seconds=1", "width=32"]) == 2
    output = capsys.readouterr()
    assert output.out.startswith("no boxes given: no detector: ")
    assert "no tracklet is left (nothing moved)" in output.err  # only the light changes
    with pytest.raises(SystemExit):
        main(["tracklets", "--help"])
    text = capsys.readouterr().out
    assert "without --boxes: no detector" in text
    assert "absorb_seconds" in text
    assert not Path("walk-tracklets").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.mp4"], "none.mp4: no such file"),
        (["sound.m4a"], "sound.m4a: holds no video, only audio"),
        (["walk.mp4", "--boxes", "none.txt"], "none.txt: no such file"),
        (["walk.mp4", "--boxes", "empty.txt"], "empty.txt: the file is empty"),
        (["walk.mp4", "--boxes", "gt.txt", "--quality", "0"], "the JPEG quality is 0"),
        (["walk.mp4", "--boxes", "gt.txt", "--background", "iou=0.5"], "but boxes too"),
        (["walk.mp4", "--background", "iuo=0.5"], "'iuo=0.5' is no setting"),
        (["walk.mp4", "--classes", "1"], "--classes says how boxes are read, but no --boxes are given"),
        (["walk.mp4", "--boxes", "gt.txt", "--out", "gt.txt"], "cannot write"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    walk: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_audio(walk.with_name("sound.m4a"))
    walk.with_name("empty.txt").touch()
    before = sorted(path.name for path in walk.parent.iterdir())
    assert main(["tracklets", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in walk.parent.iterdir()) == before
