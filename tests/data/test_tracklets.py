"""Tracklets: order, gaps, selection; which frames the sampling policies take."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motarfuse.data import ClipSampling, Tracklet
from motarfuse.data.tracklets import ordered_tracklet
from motarfuse.errors import DataError

FOLDER = Path("somewhere")


def _tracklet(*frames: int, **extra: object) -> Tracklet:
    return Tracklet("a", 1, 0, FOLDER, tuple(f"{frame}.jpg" for frame in frames), frames, **extra)  # type: ignore[arg-type]


def test_frames_out_of_order_are_refused_and_both_are_named() -> None:
    with pytest.raises(DataError, match=r"frame 3 \(3\.jpg\) comes after frame 5 \(5\.jpg\)"):
        _tracklet(1, 5, 3)
    with pytest.raises(DataError, match="frame 5"):
        _tracklet(5, 5)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"timestamps": (0.0, 0.1)}, "has 3 files, but 2 timestamps"),
        ({"timestamps": (0.0, 0.2, 0.1)}, "back in time"),
        ({"visibility": (0.5, 1.2, 0.1)}, r"visibility outside \[0, 1\]"),
        ({"visibility": (0.5, float("nan"), 0.1)}, r"visibility outside \[0, 1\]"),
    ],
)
def test_what_does_not_fit_the_frames_is_refused(extra: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _tracklet(1, 2, 3, **extra)


def test_a_frame_number_that_nothing_can_have_is_refused() -> None:
    with pytest.raises(DataError, match="numbers up to"):
        _tracklet(1, 10**20)


def test_a_tracklet_without_frames_is_refused() -> None:
    with pytest.raises(DataError, match="has no frame"):
        _tracklet()


def test_missing_frames_are_counted_and_the_middle_frame_stands_for_all() -> None:
    tracklet = _tracklet(2, 3, 7, 8)
    assert tracklet.num_missing == 3
    assert tracklet.path == FOLDER / "7.jpg"


def test_a_selection_keeps_every_attribute_of_its_frames() -> None:
    boxes = tuple((float(frame), 0.0, 4.0, 8.0) for frame in (2, 3, 7))
    whole = _tracklet(2, 3, 7, timestamps=(0.2, 0.3, 0.7), boxes=boxes, visibility=(1.0, 0.5, 0.0))
    part = whole.select([0, 2], "b")
    assert (part.name, part.files, part.frame_index) == ("b", ("2.jpg", "7.jpg"), (2, 7))
    assert (part.timestamps, part.boxes, part.visibility) == ((0.2, 0.7), (boxes[0], boxes[2]), (1.0, 0.0))
    with pytest.raises(DataError, match="order"):
        whole.select([2, 0])


def test_pieces_hold_all_frames_once_in_order() -> None:
    pieces = _tracklet(*range(10)).cut(4)
    assert [piece.frame_index for piece in pieces] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert len({piece.name for piece in pieces}) == 3


def test_files_are_ordered_by_their_frame_numbers_not_by_their_names() -> None:
    def frame_of(name: str) -> int:
        return int(name.split("_")[1].removesuffix(".jpg"))

    found = ordered_tracklet("t", 1, 0, FOLDER, ["b_10.jpg", "a_9.jpg", "z_1.jpg"], frame_of)
    assert found.files == ("z_1.jpg", "a_9.jpg", "b_10.jpg")
    assert found.frame_index == (1, 9, 10)
    with pytest.raises(DataError, match="frame 9"):
        ordered_tracklet("t", 1, 0, FOLDER, ["b_9.jpg", "a_9.jpg"], frame_of)


def test_names_without_numbers_keep_their_natural_order() -> None:
    found = ordered_tracklet("t", 1, 0, FOLDER, ["f10.jpg", "f9.jpg"], lambda _: None)
    assert found.files == ("f9.jpg", "f10.jpg")
    assert found.frame_index == (0, 1)
    with pytest.raises(DataError, match=r"f10\.jpg has no frame number"):
        ordered_tracklet("t", 1, 0, FOLDER, ["f10.jpg", "f9.jpg"], lambda name: 9 if name == "f9.jpg" else None)


@given(
    policy=st.sampled_from(["random", "dense", "evenly", "all"]),
    frames=st.integers(1, 12),
    stride=st.integers(1, 5),
    length=st.integers(1, 60),
    seed=st.integers(0, 5),
)
def test_every_clip_has_increasing_frames_of_the_tracklet_and_no_more_than_wanted(
    policy: str, frames: int, stride: int, length: int, seed: int
) -> None:
    sampling = ClipSampling(policy, frames, stride)  # type: ignore[arg-type]
    for random in (None, np.random.default_rng(seed)):
        clips = sampling.clips(length, random)
        for clip in clips:
            assert all(earlier < later for earlier, later in pairwise(clip))
            assert 0 <= clip[0] <= clip[-1] < length
            assert 1 <= len(clip) <= frames
        if policy == "all":
            assert [frame for clip in clips for frame in clip] == list(range(length))
            assert max(map(len, clips)) - min(map(len, clips)) <= 1
        else:
            assert [len(clip) for clip in clips] == [min(frames, length)]
        if policy == "dense":
            steps = {later - earlier for earlier, later in pairwise(clips[0])}
            assert len(steps) <= 1
            assert max(steps, default=1) <= stride


def test_random_takes_one_frame_of_each_segment_and_reaches_all_of_them() -> None:
    random = np.random.default_rng(0)
    drawn = np.array([ClipSampling("random", 4).clips(12, random)[0] for _ in range(300)])
    assert [sorted(set(column)) for column in drawn.T.tolist()] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_dense_reaches_every_start_and_without_draws_takes_the_middle() -> None:
    random = np.random.default_rng(0)
    sampling = ClipSampling("dense", 3, 2)
    assert {sampling.clips(8, random)[0][0] for _ in range(100)} == {0, 1, 2, 3}
    assert sampling.clips(9) == [[2, 4, 6]]
    assert sampling.clips(4) == [[0, 1, 2]]


def test_evenly_takes_the_middles_of_equal_segments() -> None:
    assert ClipSampling("evenly", 4).clips(16) == [[2, 6, 10, 14]]
    assert ClipSampling("evenly", 4).clips(3) == [[0, 1, 2]]


@pytest.mark.parametrize(("field", "value"), [("policy", "some"), ("frames", 0), ("stride", 0)])
def test_wrong_settings_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        ClipSampling(**{field: value})  # type: ignore[arg-type]
