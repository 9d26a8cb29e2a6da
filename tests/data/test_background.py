"""The mode without boxes: what moves before a fixed camera, and cameras that are not fixed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from motarfuse.data.association import Associator, box_iou
from motarfuse.data.background import (
    Background,
    BackgroundConfig,
    _components,
    _sum_around,
    areas,
    picture_shift,
)
from motarfuse.data.boxes import read_boxes
from motarfuse.data.tracklets import Box
from motarfuse.data.video import open_video
from motarfuse.errors import ConfigError, DataError

SIZE = (90, 160)
CONFIG = BackgroundConfig(learn_seconds=1.0, absorb_seconds=4.0)
FPS = 10


def scene(margin: int = 40) -> np.ndarray:
    """A textured wall, wider and higher than a frame."""
    draws = np.random.default_rng(0)
    blocks = draws.integers(60, 200, (30, 50, 3)).repeat(8, 0).repeat(8, 1)
    return blocks[: SIZE[0] + margin, : SIZE[1] + margin].astype(np.float64)


WALL = scene()


def frame(
    index: int,
    person: tuple[int, int] | None = None,
    *,
    camera: tuple[int, int] = (0, 0),
    light: float = 0.0,
) -> np.ndarray:
    """A noisy frame; the person is 40 high, 14 wide and darker than any wall, its upper left corner given."""
    x, y = camera
    pixels = WALL[y : y + SIZE[0], x : x + SIZE[1]].copy()
    if person is not None:
        left, top = person
        pixels[top : top + 40, left : left + 14] = (20, 10, 30)
    noise = np.random.default_rng(index).normal(0, 2, pixels.shape)
    return np.clip(pixels + light + noise, 0, 255).astype(np.uint8)


def learnt(config: BackgroundConfig = CONFIG) -> Background:
    background = Background(config, FPS)
    background.learn([frame(index) for index in range(background.frames_to_learn)])
    return background


def found(background: Background, pixels: np.ndarray, index: int = 0) -> list[Box]:
    return areas(background.foreground(pixels, f"frame {index}"), SIZE, CONFIG)


def test_a_walking_person_is_found_where_it_is_and_nothing_else() -> None:
    background = learnt()
    for index in range(20, 60):
        place = (2 * index, 30)
        boxes = found(background, frame(index, place))
        assert len(boxes) == 1
        assert box_iou(boxes[0], (place[0], place[1], 14, 40)) > 0.85
    assert found(background, frame(60)) == []


def test_a_person_who_walks_while_the_background_is_learnt_does_not_belong_to_it() -> None:
    background = Background(CONFIG, FPS)
    background.learn([frame(index, (14 * index, 30)) for index in range(10)])
    assert found(background, frame(11)) == []
    assert len(found(background, frame(12, (70, 30)))) == 1


def test_a_person_who_stands_stays_foreground_until_absorbed() -> None:
    background = learnt()
    seen = [len(found(background, frame(index, (70, 30)), index)) for index in range(60)]
    assert seen[:40] == [1] * 40  # 4 seconds
    assert seen[45:] == [0] * 15


def test_slow_and_sudden_changes_of_light_are_no_foreground() -> None:
    background = learnt()
    for index in range(60):
        light = min(index, 40) * 0.8 - (25 if index > 50 else 0)
        assert found(background, frame(index, light=light)) == []
    assert len(found(background, frame(61, (70, 30), light=7))) == 1


def test_light_that_changes_slowly_in_a_part_of_the_picture_is_no_foreground() -> None:
    background = learnt()
    for index in range(80):
        pixels = frame(index).astype(np.float64)
        pixels[:, :60] += 0.5 * index
        assert found(background, np.clip(pixels, 0, 255).astype(np.uint8)) == []


def test_pixels_that_become_noisy_need_larger_differences() -> None:
    background = learnt()
    draws = np.random.default_rng(0)
    shares = [
        float(background.foreground(np.clip(WALL[: SIZE[0], : SIZE[1]] + noise, 0, 255).astype(np.uint8), "").mean())
        for noise in draws.normal(0, 9, (200, *SIZE, 3))
    ]
    assert sum(shares[-10:]) < 0.6 * sum(shares[:10])


def swing(index: int) -> tuple[int, int]:
    return 20 + index % 16, 10


CAMERAS: dict[str, Callable[[int], tuple[int, int]]] = {
    "pans": lambda index: (index // 2 % 40, 10),
    "swings": swing,
    "shakes": lambda index: (20 + 3 * (-1) ** index, 10 + index % 3),
    "starts to pan": lambda index: (max(0, min(39, index - 20)), 10),
    "is turned away": lambda index: (0, 0) if index < 20 else (37, 29),
}


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_moving_camera_is_refused(camera: str) -> None:
    background = Background(CONFIG, FPS)
    view = CAMERAS[camera]

    def watch() -> None:
        background.learn([frame(index, camera=view(index)) for index in range(10)])
        for index in range(10, 60):
            background.foreground(frame(index, camera=view(index)), f"frame {index}")

    with pytest.raises(DataError, match=r"the camera moves, .* give boxes \(--boxes\)"):
        watch()


def test_a_crowd_that_fills_the_frame_is_refused_and_a_fixed_camera_is_not() -> None:
    background = learnt()
    for index in range(60):
        background.foreground(frame(index, (60, 20)), f"frame {index}")
    filled = np.full((*SIZE, 3), 5, dtype=np.uint8)
    for index in range(60, 66):
        background.foreground(filled, f"frame {index}")
    with pytest.raises(DataError, match=r"at frame 66 \(\d+% of it changes\)"):
        background.foreground(filled, "frame 66")


def test_flashes_of_a_few_frames_are_not_refused() -> None:
    background = learnt()
    flash = np.full((*SIZE, 3), 255, dtype=np.uint8)
    for index in range(80):
        background.foreground(flash if index % 20 < 5 else frame(index), f"frame {index}")


def test_too_few_frames_are_an_error() -> None:
    with pytest.raises(DataError, match="4 frames are too few"):
        Background(CONFIG, FPS).learn([frame(0)] * 4)


@pytest.mark.parametrize("shift", [(0, 0), (3, -5), (-7, 12)])
def test_the_shift_of_a_picture_is_measured(shift: tuple[int, int]) -> None:
    down, right = shift
    reference = frame(0, camera=(20, 15)).mean(axis=2)
    moved = frame(1, (60, 20), camera=(20 - right, 15 - down)).mean(axis=2)
    assert picture_shift(moved, reference) == shift


def test_a_large_thing_that_moves_is_no_shift_of_the_picture() -> None:
    reference = frame(0, camera=(20, 15)).mean(axis=2)
    passed = reference.copy()
    passed[:, 55:105] = frame(1, camera=(10, 15)).mean(axis=2)[:, 55:105]
    assert picture_shift(passed, reference) == (0, 0)


def test_a_fixed_camera_before_a_bare_wall_is_not_refused() -> None:
    background = Background(CONFIG, FPS)
    draws = np.random.default_rng(0)
    bare = [np.clip(draws.normal(150, 3, (*SIZE, 3)), 0, 255).astype(np.uint8) for _ in range(80)]
    background.learn(bare[:10])
    for index, pixels in enumerate(bare):
        pixels[30:70, index : index + 14] = 20
        assert len(found(background, pixels, index)) == 1


def test_components_are_those_of_scipy() -> None:
    draws = np.random.default_rng(0)
    for density in (0.1, 0.3, 0.5, 0.7):
        mask = draws.random((37, 53)) < density
        labels = _components(mask)
        expected, count = ndimage.label(mask, np.ones((3, 3)))
        assert labels.max() == count
        # One label of ours for one of scipy's and the other way round.
        assert len(set(zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True))) == count + 1


def test_window_sums_are_those_of_a_convolution() -> None:
    mask = np.random.default_rng(0).random((11, 17)) < 0.5
    # The edge is repeated once; further outside counts too.
    expected = ndimage.convolve(mask.astype(int), np.ones((5, 3), int), mode="nearest")
    assert (_sum_around(mask, 2, 1) == expected).all()


def test_areas_are_cleaned_joined_and_measured_in_pixels_of_the_frame() -> None:
    mask = np.zeros(SIZE, dtype=bool)
    mask[20:45, 30:44] = True
    mask[48:70, 30:44] = True  # legs, with a belt between
    mask[10, 100] = True  # a speck
    mask[76:88, 60:140] = True  # low and wide
    mask[5:30, 90:98] = True  # narrower
    assert areas(mask, (180, 320), CONFIG) == [(60, 40, 28, 100), (180, 10, 16, 50)]
    assert areas(mask, (180, 320), BackgroundConfig(min_height=0.4)) == [(60, 40, 28, 100)]
    assert areas(mask, (180, 320), BackgroundConfig(min_area=0.04)) == [(60, 40, 28, 100)]
    assert areas(np.zeros(SIZE, dtype=bool), SIZE, CONFIG) == []


def test_settings_out_of_range_are_refused() -> None:
    for values in ({"iou": 0.0}, {"width": 8}, {"most_changed": 1.5}, {"min_area": -1.0}, {"threshold": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(values))):
            BackgroundConfig(**values)


def test_intersection_over_union() -> None:
    assert box_iou((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert box_iou((0, 0, 4, 4), (2, 0, 4, 4)) == pytest.approx(8 / 24)
    assert box_iou((0, 0, 4, 4), (4, 0, 4, 4)) == 0
    assert box_iou((0, 0, 4, 4), (0, 9, 4, 4)) == 0


def walk(frame_number: int, *, backwards: bool = False) -> Box:
    x = 100.0 - 6 * frame_number if backwards else 6.0 * frame_number
    return x, 10.0 + (40 if backwards else 0), 20.0, 50.0


def test_tracks_go_on_through_gaps_up_to_the_limit() -> None:
    joined = Associator(0.3, 3)
    assert joined.update(0, [walk(0)]) == [0]
    assert joined.update(1, [walk(1)]) == [0]
    assert joined.update(5, [walk(5)]) == [0]  # three frames missing, and 24 pixels on
    assert joined.update(10, [walk(10)]) == [1]  # four are too many


def test_people_who_pass_each_other_keep_their_tracks() -> None:
    joined = Associator(0.3, 3)
    for index in range(18):
        boxes = [walk(index), walk(index, backwards=True)]
        expected = [0, 1]
        if index % 2:  # the order of the boxes says nothing
            boxes.reverse()
            expected.reverse()
        assert joined.update(index, boxes) == expected


def test_the_best_pair_is_joined_first() -> None:
    joined = Associator(0.2, 3)
    assert joined.update(0, [(0, 0, 10, 10), (8, 0, 10, 10)]) == [0, 1]
    # The first box meets both tracks, the second one only the first.
    assert joined.update(1, [(5, 0, 10, 10), (1, 0, 10, 10), (50, 0, 10, 10)]) == [1, 0, 2]


@pytest.fixture(scope="module")
def real_frames(real_data: Path) -> list[np.ndarray]:
    """The first 460 frames of the real video, reduced: two people, one after the other."""
    with open_video(real_data / "intel-one-by-one" / "one-by-one-person-detection.mp4") as video:
        return [frame.reduced((108, 192)) for frame in video.frames(frozenset(range(460)))]


@pytest.mark.real_data
def test_the_first_real_people_are_found_and_tracked(real_data: Path, real_frames: list[np.ndarray]) -> None:
    config = BackgroundConfig()
    background = Background(config, 10.0)
    background.learn(real_frames[:40])
    joined = Associator(config.iou, config.max_gap)
    tracks: dict[int, dict[int, Box]] = {}
    for index in range(40, 460):
        boxes = areas(background.foreground(real_frames[index], f"frame {index}"), (432, 768), config)
        for number, box in zip(joined.update(index, boxes), boxes, strict=True):
            tracks.setdefault(number, {})[index] = box
    known: dict[str, dict[int, Box]] = {}
    for one in read_boxes(real_data / "intel-one-by-one" / "tracks.csv").boxes:
        known.setdefault(one.track, {})[one.frame] = one.box
    for person in ("1", "2"):
        met = [
            sum(box_iou(box, known[person][index]) >= 0.5 for index, box in track.items() if index in known[person])
            for track in tracks.values()
        ]
        assert max(met) >= 0.98 * len(known[person])  # all by one track


@pytest.mark.real_data
@pytest.mark.parametrize("step", [1, 3])
def test_a_camera_that_moves_before_a_real_scene_is_refused(real_frames: list[np.ndarray], step: int) -> None:
    background = Background(BackgroundConfig(), 10.0)
    seen = [
        pixels[10:90, place : place + 140]
        for index, pixels in enumerate(real_frames[:80])
        for place in [abs(step * index % 104 - 52)]
    ]

    def watch() -> None:
        background.learn(seen[:40])
        for index in range(40, 80):
            background.foreground(seen[index], f"frame {index}")

    with pytest.raises(DataError, match="shifted as a whole"):
        watch()
