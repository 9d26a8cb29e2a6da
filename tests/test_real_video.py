"""The protocol of the real video, and the film strips and numbers that come of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import real_video
from motarfuse.data import Tracklet


def _track(*frames: int) -> Tracklet:
    return Tracklet("t", 3, 0, Path(), tuple(f"{frame}.jpg" for frame in frames), frames)


def test_halves_are_apart_in_time_and_cut_into_equal_tracklets() -> None:
    first, second = real_video.halves(_track(*range(100, 160)))
    assert [piece.camid for piece in first + second] == [0] * len(first) + [1] * len(second)
    assert {len(piece) for piece in first + second} == {real_video.LENGTH}
    assert len(first) == len(second) == 3  # 25 frames of each half: three of 8, and one is dropped
    assert min(second[0].frame_index) - max(first[-1].frame_index) >= real_video.GAP
    assert {piece.pid for piece in first + second} == {3}
    assert len({piece.name for piece in first + second}) == 6


def test_halves_are_of_time_where_frames_are_missing() -> None:
    first, second = real_video.halves(_track(*range(10), *range(80, 100)), length=4)
    assert [piece.frame_index[0] for piece in first] == [0, 4]
    assert [piece.frame_index[0] for piece in second] == [80, 84, 88, 92, 96]
    assert real_video.halves(_track(1, 2, 3)) == ([], [])


@pytest.mark.real_data
@pytest.mark.slow
def test_the_real_video_is_ranked_well_above_chance(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = real_data / "intel-one-by-one"
    video, boxes = folder / "one-by-one-person-detection.mp4", folder / "tracks.csv"
    real_video.main([str(video), str(boxes), "nano-synthped", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["queries"], results["gallery"], results["people"]) == (58, 58, 6)
    variants = results["networks"]["nano-synthped"]["metrics"]
    # Of six people in shuffled order Rank-1 would be about a sixth.
    assert all(scores["feature"]["rank1"] > 0.6 for scores in variants.values())
    assert len(list(tmp_path.glob("film_*.png"))) == 2
    assert "58 queries and 58 gallery tracklets of 8 frames, 6 people" in capsys.readouterr().out
