"""Frames of videos: their numbers, their times, and what happens to damaged files."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from motarfuse.data.video import VideoFrame, VideoInfo, open_video
from motarfuse.errors import DataError

from .videos import SIZE, plain_frame, shade, shades, write_audio, write_video


def read(path: Path, **options: Any) -> tuple[list[VideoFrame], VideoInfo, list[str]]:
    with open_video(path, **options) as video:
        frames = list(video.frames())
        return frames, video.info, video.left_out.lines(99)


# mpeg4 with and without frames that are shown before what they are predicted from; two containers.
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("options", [{"g": "4"}, {"g": "12", "bf": "2"}])
def test_frames_come_in_the_order_of_time_with_their_numbers_and_times(
    tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    frames, info, left_out = read(write_video(tmp_path / name, 30, options=options))
    assert [frame.index for frame in frames] == list(range(30))
    assert [frame.seconds for frame in frames] == pytest.approx([index / 10 for index in range(30)], abs=2e-3)
    assert shades([frame.rgb() for frame in frames]) == list(range(30))
    assert (info.frames, info.complete, info.variable_rate, info.fps, left_out) == (30, True, False, 10.0, [])
    assert (info.height, info.width) == SIZE


def test_reading_stops_after_the_last_frame_that_is_wanted(tmp_path: Path) -> None:
    with open_video(write_video(tmp_path / "a.mp4", 30)) as video:
        frames = list(video.frames({3, 7}))
        assert [frame.index for frame in frames] == [3, 7]
        assert shades([frame.rgb() for frame in frames]) == [3, 7]
        assert (video.info.frames, video.info.complete) == (8, False)


def test_a_variable_frame_rate_changes_times_and_not_numbers(tmp_path: Path) -> None:
    times = [0, 1, 2, 5, 6, 12]
    frames, info, _ = read(write_video(tmp_path / "a.mp4", 6, times=times))
    assert [frame.index for frame in frames] == list(range(6))
    assert [frame.seconds for frame in frames] == pytest.approx([time / 10 for time in times])
    assert info.variable_rate
    assert any("varies from 0.100 to 0.600 s (after frame 4)" in note for note in info.notes)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_frames_are_turned_upright_as_the_file_says(tmp_path: Path, turn: int) -> None:
    picture = np.zeros((*SIZE, 3), dtype=np.uint8)
    picture[:24, :32] = 200  # the upper left quarter
    path = write_video(tmp_path / "a.mp4", [picture] * 3, turn=turn)
    upright = np.rot90(picture, turn // 90)
    frames, info, _ = read(path)
    assert info.rotation == turn
    assert (info.height, info.width) == upright.shape[:2]
    for pixels, expected in (
        (frames[1].rgb(), upright),
        (frames[1].reduced((upright.shape[0] // 4, upright.shape[1] // 4)), upright[::4, ::4]),
    ):
        assert pixels.shape == expected.shape
        assert np.abs(pixels.astype(int) - expected).mean() < 10
    frames, info, _ = read(path, rotate=False)
    assert frames[1].rgb().shape[:2] == SIZE
    assert any("rotation" in note for note in info.notes)


def test_a_reduced_frame_shows_the_same_picture(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(60, 196, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frames, _, _ = read(write_video(tmp_path / "a.mp4", [picture] * 2))
    small = frames[0].reduced((6, 8))
    expected = frames[0].rgb().reshape(6, 8, 8, 8, 3).mean(axis=(1, 3))
    assert np.abs(small - expected).mean() < 4


def damaged(path: Path, start: float, stop: float) -> Path:
    """Overwrites a part of the pictures' bytes with noise."""
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 4
    length = int.from_bytes(content[begin - 8 : begin - 4], "big") - 8
    first, last = begin + int(start * length), begin + int(stop * length)
    content[first:last] = np.random.default_rng(0).bytes(last - first)
    path.write_bytes(content)
    return path


def test_a_frame_that_cannot_be_decoded_keeps_its_number(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, *SIZE, 3), dtype=np.uint8)
    pictures = [(plain_frame(index) // 8 * 7 + noise[index] // 8).astype(np.uint8) for index in range(60)]
    options = {"g": "6", "bf": "2", "x264-params": "threads=1"}
    path = damaged(write_video(tmp_path / "a.mp4", pictures, codec="libx264", options=options), 0.4, 0.5)
    with open_video(path) as video:
        frames = list(video.frames())
        indices = [frame.index for frame in frames]
        assert [round(10 * frame.seconds) for frame in frames if frame.seconds is not None] == indices
        assert indices == sorted(indices)
        assert video.info.frames == 60
        assert 0 < 60 - len(frames) == len(video.left_out)
        lost = sorted(set(range(60)) - set(indices))
        named = [place for reason in video.left_out.counts for place in video.left_out.places(reason)]
        assert sorted(int(place.split()[1]) for place in named) == lost
        assert any("cut off or damaged" in note for note in video.info.notes)
        assert any("before the next key frame" in note for note in video.info.notes)


@pytest.mark.parametrize("share", [0.3, 0.62, 0.9])
@pytest.mark.parametrize(
    ("codec", "options"),
    [("mpeg4", {"g": "6"}), ("mpeg4", {"g": "12", "bf": "2"}), ("libx264", {"g": "12", "bf": "3"})],
)
def test_a_video_that_is_cut_off_gives_its_first_frames_and_says_so(
    tmp_path: Path, share: float, codec: str, options: dict[str, str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, *SIZE, 3), dtype=np.uint8)
    path = _index_first(write_video(tmp_path / "a.mp4", list(noise), codec=codec, options=options))
    content = path.read_bytes()
    begin = content.index(b"mdat")
    path.write_bytes(content[: begin + int(share * (len(content) - begin))])
    frames, info, _ = read(path)
    assert 0 < len(frames) < 40
    assert [round(10 * frame.seconds) for frame in frames if frame.seconds is not None] == [f.index for f in frames]
    assert f"the file claims 40 frames, {len(frames)} can be read: cut off or damaged" in info.notes


@pytest.mark.real_data
def test_frames_after_others_that_were_cut_off_are_left_out(real_data: Path, tmp_path: Path) -> None:
    content = (real_data / "intel-one-by-one" / "one-by-one-person-detection.mp4").read_bytes()
    path = tmp_path / "half.mp4"
    path.write_bytes(content[: len(content) // 2])
    frames, info, left_out = read(path)
    # The last frame in the file is shown after two that are not in it.
    assert [round(10 * frame.seconds) for frame in frames if frame.seconds is not None] == list(range(685))
    assert len(left_out) == 1
    assert "number is not certain: after frame 684" in left_out[0]
    assert any("claims 1,394 frames, 685 can be read" in note for note in info.notes)


def _index_first(path: Path) -> Path:
    """Rewrites a video with its index before the pictures, as films for the web have it."""
    import av

    target = path.with_name("first.mp4")
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return target


def test_a_video_that_lost_its_index_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 10)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match=r"a\.mp4: cannot be opened as a video: "):
        open_video(path)


def test_an_old_decoder_is_an_error_that_says_which_one_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("av.__version__", "14.4.0")
    with pytest.raises(
        DataError, match=r"PyAV 14\.4\.0 is too old, at least 15 is needed: pip install -U motarfuse\[video\]"
    ):
        open_video(write_video(tmp_path / "a.mp4", 2))


def test_what_is_no_video_is_an_error_that_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video\n" * 50)
    (tmp_path / "folder").mkdir()
    for path, reason in {
        "none.mp4": "no such file",
        "empty.mp4": "empty",
        "text.mp4": "cannot be opened as a video",
        "folder": "is a folder",
        write_audio(tmp_path / "sound.m4a").name: "holds no video, only audio",
        write_audio(tmp_path / "song.mp4", cover=True).name: "holds no video, only audio",
    }.items():
        with pytest.raises(DataError, match=f"{path}: .*{reason}"):
            open_video(tmp_path / path)
    with pytest.raises(DataError, match="unknown decoder 'decord'; supported are pyav, torchcodec"):
        open_video(tmp_path / "text.mp4", "decord")


def test_a_name_with_a_colon_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", 3).rename(tmp_path / "http:a.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(read(Path("http:a.mp4"))[0]) == 3


@pytest.mark.parametrize(("decoder", "package"), [("pyav", "av"), ("torchcodec", "torchcodec")])
def test_a_missing_decoder_is_an_error_that_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str, package: str
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match="not installed: pip install "):
        open_video(tmp_path / "a.mp4", decoder)


class _Decoder:
    """Stands in for torchcodec's decoder of a video of plain frames, the third of which is broken."""

    made_with: tuple[Any, ...] = ()
    decoded: list[int]

    def __init__(self, source: str, *, dimension_order: str, seek_mode: str) -> None:
        type(self).made_with = (source, dimension_order, seek_mode)
        type(self).decoded = []
        if not Path(source).read_bytes().startswith(b"video"):
            raise RuntimeError("Could not open input file: Invalid data\nbacktrace")
        self.metadata = SimpleNamespace(
            width=64, height=48, average_fps=10.0, num_frames_from_header=8, duration_seconds=0.8, codec="h264"
        )

    def __len__(self) -> int:
        return 8

    def get_frame_at(self, index: int) -> Any:
        self.decoded.append(index)
        if index == 2:
            raise RuntimeError("Could not decode")
        return SimpleNamespace(data=torch.full((*SIZE, 3), shade(index), dtype=torch.uint8), pts_seconds=index / 10)


@pytest.fixture
def torchcodec(monkeypatch: pytest.MonkeyPatch) -> type[_Decoder]:
    package, decoders = ModuleType("torchcodec"), ModuleType("torchcodec.decoders")
    package.__path__ = []
    decoders.__spec__ = ModuleSpec("torchcodec.decoders", None)
    decoders.__dict__["VideoDecoder"] = _Decoder
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    return _Decoder


def test_torchcodec_decodes_what_is_wanted_and_names_what_it_cannot(tmp_path: Path, torchcodec: type[_Decoder]) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"video")
    with open_video(path, "torchcodec") as video:
        frames = list(video.frames({1, 2, 5}))
        assert [(frame.index, frame.seconds) for frame in frames] == [(1, 0.1), (5, 0.5)]
        assert shades([frame.rgb() for frame in frames]) == [1, 5]
        assert frames[0].reduced((6, 8)).shape == (6, 8, 3)
        assert video.left_out.lines() == ["1 x the frame cannot be decoded: frame 2"]
        assert video.info.decoder == "torchcodec"
    assert torchcodec.decoded == [1, 2, 5]
    assert torchcodec.made_with == (str(path.resolve()), "NHWC", "exact")
    path.write_bytes(b"else")
    with pytest.raises(DataError, match=r"cannot be opened as a video: Could not open input file: Invalid data$"):
        open_video(path, "torchcodec")


def test_a_torchcodec_without_ffmpeg_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "torchcodec"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "decoders.py").write_text("raise RuntimeError('Could not load libtorchcodec.\\nmany lines')\n")
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("torchcodec", "torchcodec.decoders"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(
        DataError, match=r"^torchcodec is installed, but cannot be used here: Could not load libtorchcodec\.$"
    ):
        open_video(tmp_path / "a.mp4", "torchcodec")
