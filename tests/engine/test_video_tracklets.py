"""Tracklets cut from a video: what is written, what can be read back, and that a failure leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from motarfuse.data.boxes import TrackBox
from motarfuse.data.mars import load_mars
from motarfuse.data.tracklet_manifest import MANIFEST, is_tracklet_manifest, read_tracklet_manifest
from motarfuse.data.tracklet_writer import CropConfig, TrackletWriter, crop, share_inside
from motarfuse.data.video import VideoFrame
from motarfuse.engine import video_tracklets
from motarfuse.engine.video_tracklets import extract_tracklets
from motarfuse.errors import ConfigError, DataError, OutputError
from tests.data.videos import SIZE, plain_frame, shades, write_video

HEIGHT, WIDTH = SIZE


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """20 plain frames, 10 a second."""
    return write_video(tmp_path / "walk.mp4", 20)


def boxes(tmp_path: Path, *rows: str, header: str = "frame,track,x,y,w,h") -> Path:
    path = tmp_path / "boxes.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_attribute_of_a_tracklet_can_be_read_back(tmp_path: Path, video: Path) -> None:
    table = boxes(
        tmp_path,
        "9,b,0,0,8,8,",
        "3,b,-4,0,8,8,0.5",
        "5,b,2,2,8,8,",
        "4,a10,60,40,8,16,",
        "3,a9,10.5,10.25,4,4,1",
        header="frame,track,x,y,w,h,visibility",
    )
    result = extract_tracklets(video, tmp_path / "out", table, image_format="png", camera=3)
    assert len(result.left_out) == 0
    assert (result.crops, result.identities) == (5, {1: "a9", 2: "a10", 3: "b"})
    third = result.tracklets[2]
    assert (third.name, third.pid, third.camid) == ("0003C3T0001", 3, 2)
    assert third.folder == tmp_path / "out" / "bbox_test" / "0003"
    # Frames are numbered from 0; a step of the names is a step of the video.
    assert third.frame_index == (2, 4, 8)
    assert third.files == ("0003C3T0001F001.png", "0003C3T0001F003.png", "0003C3T0001F007.png")
    assert third.timestamps == pytest.approx((0.2, 0.4, 0.8))
    assert third.boxes == ((-4, 0, 8, 8), (2, 2, 8, 8), (0, 0, 8, 8))
    assert third.visibility == (0.25, 1.0, 1.0)
    assert result.tracklets[1].visibility == pytest.approx((0.25,))
    pictures = [np.asarray(Image.open(path)) for path in third.paths]
    assert [picture.shape for picture in pictures] == [(8, 4, 3), (8, 8, 3), (8, 8, 3)]
    assert shades(pictures) == [2, 4, 8]
    assert Image.open(result.tracklets[0].paths[0]).size == (5, 5)  # every pixel that the box touches
    read = read_tracklet_manifest(tmp_path / "out")
    assert read.gallery == result.tracklets
    assert (read.identity_names, read.skipped, read.train) == (result.identities, [], [])
    assert read_tracklet_manifest(tmp_path / "out" / MANIFEST).gallery == result.tracklets


def test_the_folder_is_one_in_the_layout_of_mars(tmp_path: Path, video: Path) -> None:
    table = boxes(tmp_path, *(f"{frame},{track},4,4,9,9" for track in (5, 30) for frame in (1, 2, 4)))
    result = extract_tracklets(video, tmp_path / "out", table, size=(16, 8))
    files = contents(tmp_path / "out")
    names = [f"000{pid}C1T0001F00{frame}.jpg" for pid in (1, 2) for frame in (1, 2, 4)]
    assert files["info/test_name.txt"].decode().splitlines() == names
    assert files["info/tracks_test_info.txt"].decode() == "1 3 1 1\n4 6 2 1\n"
    assert sorted(files) == sorted(
        [
            *(f"bbox_test/{name[:4]}/{name}" for name in names),
            "info/test_name.txt",
            "info/tracks_test_info.txt",
            MANIFEST,
        ]
    )
    loaded = load_mars(tmp_path / "out")
    assert [(one.name, one.pid, one.camid, one.files) for one in loaded.gallery] == [
        (one.name, one.pid, one.camid, one.files) for one in result.tracklets
    ]
    assert loaded.skipped == []
    with Image.open(result.tracklets[0].paths[0]) as picture:
        assert (picture.size, picture.format) == ((8, 16), "JPEG")


def test_tracklets_can_be_a_training_split(tmp_path: Path, video: Path) -> None:
    table = boxes(tmp_path, "1,a,4,4,9,9", "1,b,4,4,9,9")
    extract_tracklets(video, tmp_path / "out", table, split="train")
    assert [one.pid for one in load_mars(tmp_path / "out").train] == [1, 2]
    read = read_tracklet_manifest(tmp_path / "out")
    assert ([one.pid for one in read.train], read.gallery) == ([1, 2], [])


def test_boxes_that_cannot_be_cropped_are_counted_and_named(tmp_path: Path, video: Path) -> None:
    table = boxes(
        tmp_path,
        "1,a,4,4,9,9",
        "2,a,64,4,9,9",
        "3,a,4,-9,9,9",
        "4,a,-1e300,4,9,9",
        "21,a,4,4,9,9",
        "5000000000,a,4,4,9,9",
        "5,a,4,4,0,9",
        "6,a,1e308,1e308,1e308,1e308",
        "7,a,-1e9,-1e9,1.5e9,1.5e9",
        "8,b,60,4,40,9",
    )
    result = extract_tracklets(video, tmp_path / "out", table, min_visibility=0.2)
    assert result.tracklets[0].frame_index == (0,)
    assert result.left_out.counts == {
        "the box has no size": 1,
        "the box lies outside the frame": 4,
        "visibility below 0.2": 2,
        "the video has no such frame (it has 20)": 2,
    }
    assert result.left_out.places("the video has no such frame (it has 20)") == [
        "line 6: frame 21",
        "line 7: frame 5000000000",
    ]
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["left_out"] == result.left_out.to_list()
    assert manifest["identities"] == {"1": "a"}
    assert manifest["video"]["frames"] == 20
    assert manifest["mode"] == {
        "name": "boxes",
        "file": "boxes.csv",
        "layout": "CSV table",
        "first_frame": 1,
        "rows": 10,
        "kept": 9,
    }
    assert str(tmp_path) not in (tmp_path / "out" / MANIFEST).read_text()


def test_boxes_on_frames_that_cannot_be_decoded_are_named(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from motarfuse.data.video_pyav import PyAVVideo

    whole = PyAVVideo._read

    def without_third(self: PyAVVideo, wanted: Any) -> Any:
        for frame in whole(self, wanted):
            if frame.index == 2:
                self.left_out.add("the frame cannot be decoded", "frame 2")
            else:
                yield frame

    monkeypatch.setattr(PyAVVideo, "_read", without_third)
    result = extract_tracklets(video, tmp_path / "out", boxes(tmp_path, *(f"{n},a,4,4,9,9" for n in range(1, 5))))
    assert result.tracklets[0].frame_index == (0, 1, 3)
    assert result.left_out.counts == {
        "the frame cannot be decoded": 1,
        "a box on a frame that cannot be decoded or is damaged": 1,
    }
    assert result.left_out.places("a box on a frame that cannot be decoded or is damaged") == ["line 4: frame 3"]


def test_short_tracks_are_left_out_and_named(tmp_path: Path, video: Path) -> None:
    rows = [
        f"{frame},{track},4,4,9,9" for track, count in (("a", 2), ("b", 5), ("c", 4)) for frame in range(1, count + 1)
    ]
    result = extract_tracklets(video, tmp_path / "out", boxes(tmp_path, *rows), min_length=4)
    assert result.identities == {2: "b", 3: "c"}
    assert [len(one) for one in result.tracklets] == [5, 4]
    assert all(path.is_file() for one in result.tracklets for path in one.paths)
    assert result.left_out.lines() == ["1 x the track has fewer than 4 crops: track a (2)"]
    assert not (tmp_path / "out" / "bbox_test" / "0001").exists()


def test_nothing_left_is_an_error_and_no_folder(tmp_path: Path, video: Path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(
        DataError, match=r"walk\.mp4: no tracklet is left \(1 x the box lies outside the frame: line 2\)"
    ):
        extract_tracklets(video, tmp_path / "out", boxes(tmp_path, "1,a,99,4,9,9"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "boxes.csv"])


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 7])
def test_a_full_disk_and_an_interrupt_leave_what_was_there(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, after: int
) -> None:
    table = boxes(tmp_path, *(f"{frame},a,4,4,9,9" for frame in range(1, 15)))
    extract_tracklets(video, tmp_path / "out", table)
    before = contents(tmp_path)
    written: list[Path] = []
    real = video_tracklets.write_synced

    def failing(path: Path, content: bytes) -> None:
        if len(written) >= after:
            raise failure
        written.append(path)
        real(path, content)

    monkeypatch.setattr(video_tracklets, "write_synced", failing)
    expected = OutputError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="the disk is full" if isinstance(failure, OSError) else None):
        extract_tracklets(video, tmp_path / "out", table, overwrite=True, size=(8, 8))
    assert contents(tmp_path) == before


def test_nothing_but_an_earlier_extraction_is_ever_replaced(tmp_path: Path, video: Path) -> None:
    table = boxes(tmp_path, "1,a,4,4,9,9")
    mine = tmp_path / "mine"
    mine.mkdir()
    extract_tracklets(video, mine, table)  # an empty folder is fine
    with pytest.raises(OutputError, match=r"holds tracklets already; .*--overwrite"):
        extract_tracklets(video, mine, table)
    extract_tracklets(video, mine, boxes(tmp_path, "1,a,4,4,9,9", "2,a,4,4,9,9"), overwrite=True)
    assert len(read_tracklet_manifest(mine).gallery[0]) == 2
    other = tmp_path / "other"
    other.mkdir()
    for content in (None, "{}", "["):
        (other / "precious.txt").write_text("precious")
        if content is not None:
            (other / MANIFEST).write_text(content)
        with pytest.raises(OutputError, match="is not empty and holds no tracklets"):
            extract_tracklets(video, other, table, overwrite=True)
        assert (other / "precious.txt").read_text() == "precious"
    with pytest.raises(OutputError, match="a file of that name is in the way"):
        extract_tracklets(video, other / "precious.txt", table, overwrite=True)


def test_settings_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    for values, message in (
        ({"image_format": "gif"}, "unknown image format 'gif'"),
        ({"quality": 0}, "the JPEG quality is 0"),
        ({"camera": 10}, "the camera is 10"),
        ({"camera": 0}, "the camera is 0"),
        ({"min_visibility": 1.5}, "the least visibility is 1.5"),
        ({"min_length": 0}, "the least length"),
        ({"size": (0, 8)}, "the size is 0 x 8"),
        ({"split": "query"}, "unknown split 'query'"),
        ({"background": video_tracklets.BackgroundConfig()}, "but boxes too"),
    ):
        with pytest.raises(ConfigError, match=message):
            extract_tracklets(tmp_path / "none.mp4", tmp_path / "out", tmp_path / "none.csv", **values)


def test_more_tracks_than_names_can_number_are_refused(tmp_path: Path, video: Path) -> None:
    table = boxes(tmp_path, *(f"1,{track},4,4,9,9" for track in range(10_000)))
    with pytest.raises(DataError, match="10,000 tracks; names in the layout of MARS number 9,999"):
        extract_tracklets(video, tmp_path / "out", table)
    assert not (tmp_path / "out").exists()


class PlainFrame(VideoFrame):
    def rgb(self) -> np.ndarray:
        return plain_frame(self.index)


def test_nothing_is_still_being_written_once_the_writer_is_left(tmp_path: Path) -> None:
    begun, ended = threading.Event(), threading.Event()

    def slow(path: Path, content: bytes) -> None:
        begun.set()
        time.sleep(0.2)
        ended.set()

    writer = TrackletWriter(tmp_path, CropConfig(), slow, {"a": 1}, 1)
    with writer:
        writer.add(PlainFrame(0, None), [TrackBox(0, "a", (0, 0, 2, 2), None, "")])
        assert begun.wait(10)
    assert ended.is_set()


def test_names_of_a_long_tracklet_sort_as_its_frames(tmp_path: Path) -> None:
    config = CropConfig(image_format="png")
    with TrackletWriter(tmp_path, config, lambda path, content: None, {"a": 1}, 1001) as writer:
        for index in (0, 998, 1000):
            writer.add(PlainFrame(index, None), [TrackBox(index, "a", (0, 0, 2, 2), None, "")])
        (tracklet,), _ = writer.finish(visibility_known=True)
    assert list(tracklet.files) == sorted(tracklet.files)
    assert tracklet.files[2] == "0001C1T0001F1001.png"
    assert tracklet.timestamps is None


@pytest.mark.parametrize(
    "box", [(-3.0, 4.0, 6.0, 10.0), (60.5, 40.25, 9.0, 30.0), (-5.0, -5.0, 100.0, 100.0), (3.2, 4.7, 0.1, 0.1)]
)
def test_a_box_is_clipped_to_its_frame(box: tuple[float, float, float, float]) -> None:
    pixels = np.arange(HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3)
    x, y, w, h = box
    rows = [row for row in range(HEIGHT) if row + 1 > y and row < y + h]
    columns = [column for column in range(WIDTH) if column + 1 > x and column < x + w]
    assert (crop(pixels, box) == pixels[rows][:, columns]).all()
    fine = 40  # the share, by counting points
    points = (np.arange(fine) + 0.5) / fine
    across, down = x + w * points, y + h * points
    inside = ((across > 0) & (across < WIDTH)).mean() * ((down > 0) & (down < HEIGHT)).mean()
    assert share_inside(box, SIZE) == pytest.approx(inside, rel=0.1)


def walking(count: int, people: int = 1) -> list[np.ndarray]:
    """People of 24 x 8 pixels who walk from left to right before a textured wall, from frame 12 on."""
    wall = np.random.default_rng(0).integers(90, 200, (SIZE[0] // 4, SIZE[1] // 4, 3), dtype=np.uint8)
    wall = wall.repeat(4, 0).repeat(4, 1)
    frames = []
    for index in range(count):
        pixels = wall.copy()
        for person in range(people):
            left = 2 * (index - 12) - 4 * person
            if 0 <= left < SIZE[1] - 8:
                pixels[12:36, left : left + 8] = 10
        frames.append(pixels)
    return frames


def test_without_boxes_moving_areas_before_a_fixed_camera_become_tracklets(tmp_path: Path) -> None:
    path = write_video(tmp_path / "walk.mkv", walking(50))
    settings = video_tracklets.BackgroundConfig(learn_seconds=1.0)
    result = extract_tracklets(path, tmp_path / "out", background=settings)
    (tracklet,) = result.tracklets
    assert len(tracklet) >= 24
    assert tracklet.visibility is None
    assert tracklet.boxes is not None
    assert tracklet.frame_index[0] == 12
    for index, (x, y, w, h) in zip(tracklet.frame_index, tracklet.boxes, strict=True):
        assert abs(x - 2 * (index - 12)) <= 2
        assert abs(y - 12) <= 2
        assert abs(w - 8) <= 4
        assert abs(h - 24) <= 4
    assert "no tracklets in the first 10 frames, from which the background was learnt" in result.notes
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["mode"]["name"] == "fixed camera without boxes"
    assert "no detector" in manifest["mode"]["method"]
    assert manifest["mode"]["settings"]["learn_seconds"] == 1.0
    assert read_tracklet_manifest(tmp_path / "out").gallery == [tracklet]


def test_without_boxes_a_still_or_too_short_video_has_no_tracklets(tmp_path: Path) -> None:
    settings = video_tracklets.BackgroundConfig(learn_seconds=1.0)
    still = write_video(tmp_path / "still.mkv", [walking(1)[0]] * 20)
    with pytest.raises(DataError, match=r"no tracklet is left \(nothing moved\)"):
        extract_tracklets(still, tmp_path / "out", background=settings)
    with pytest.raises(
        DataError, match="ends after 20 frames, while the background was still learnt from the first 40"
    ):
        extract_tracklets(still, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def written(tmp_path: Path, video: Path) -> Path:
    extract_tracklets(video, tmp_path / "out", boxes(tmp_path, *(f"{n},a,4,4,9,9" for n in range(1, 5)), "1,b,0,0,9,9"))
    return tmp_path / "out"


def test_files_that_are_gone_are_left_out_and_named(tmp_path: Path, video: Path) -> None:
    out = written(tmp_path, video)
    (out / "bbox_test/0001/0001C1T0001F002.jpg").unlink()
    (out / "bbox_test/0002/0002C1T0001F001.jpg").unlink()
    read = read_tracklet_manifest(out)
    assert [one.frame_index for one in read.gallery] == [(0, 2, 3)]
    assert [skipped.path.name for skipped in read.skipped] == ["0001C1T0001F002.jpg", "0002C1T0001F001.jpg"]
    for path in out.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="none of the 2 tracklets has a file"):
        read_tracklet_manifest(out)


def test_a_damaged_manifest_is_an_error_with_a_remedy(tmp_path: Path, video: Path) -> None:
    out = written(tmp_path, video)
    content = json.loads((out / MANIFEST).read_text())

    def changed(**changes: Any) -> str:
        return json.dumps(content | changes)

    entry = content["tracklets"][0]
    for text, message in (
        (changed(format="else"), "is no manifest of tracklets"),
        (changed(version=9), "version 9, supported is 1"),
        (changed(tracklets=[{}]), "is damaged"),
        (changed(tracklets=3), "is damaged"),
        (changed(tracklets=[entry | {"folder": "../x"}]), "is damaged .*outside the folder"),
        (changed(tracklets=[entry | {"files": ["../" + name for name in entry["files"]]}]), "outside the folder"),
        (changed(tracklets=[entry | {"boxes": [[1, 2, 3]] * 4}]), "is damaged"),
        (changed(tracklets=[entry | {"frame_index": [3, 2, 1, 0]}]), "not in the order of time"),
        (changed()[:-30], "is no JSON, or cut off"),
        ("[]", "is no JSON object"),
    ):
        (out / MANIFEST).write_text(text)
        with pytest.raises(DataError, match=message):
            read_tracklet_manifest(out)
    os.remove(out / MANIFEST)  # noqa: PTH107
    assert not is_tracklet_manifest(out)
    with pytest.raises(DataError, match=r"no manifest\.json"):
        read_tracklet_manifest(out)


@pytest.mark.real_data
def test_the_real_video_gives_six_tracklets_by_its_boxes(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "intel-one-by-one"
    path = folder / "one-by-one-person-detection.mp4"
    result = extract_tracklets(path, tmp_path / "out", folder / "tracks.csv", size=(64, 32))
    assert [len(one) for one in result.tracklets] == [130, 213, 188, 113, 267, 116]
    assert (result.crops, len(result.left_out)) == (1027, 0)
    assert [one.num_missing for one in result.tracklets] == [0] * 6
    first = result.tracklets[0]
    assert (first.frame_index[0], first.boxes and first.boxes[0]) == (61, (210, 324, 119, 108))
    assert first.timestamps is not None
    assert first.timestamps[0] == pytest.approx(6.1)
    assert read_tracklet_manifest(tmp_path / "out").gallery == result.tracklets
