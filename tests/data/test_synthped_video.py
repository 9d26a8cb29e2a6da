"""SynthPed's tracklets: which there are, what moves from frame to frame, and what the ground truth says of it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from motarfuse.data.synthped import (
    KEYPOINTS,
    OCCLUDERS,
    SynthPedConfig,
    SynthPedFrames,
    SynthPedVideo,
    gait,
    layout,
    video_scene,
)
from motarfuse.data.synthped import identity as who
from motarfuse.data.synthped.layout import FIELD, PART
from motarfuse.data.synthped.video_scene import Tracklets
from motarfuse.errors import ConfigError

# SHA-256 of the first tracklets of the default benchmark, version 1: it changes together with
# motarfuse.data.synthped.VERSION only.
GOLDEN = "f216835eb3932380dbfb25e4b1a9899978fa882b8c7c0ecb58beb18e69e1672f"

Floats = NDArray[np.float64]


def point(name: str) -> int:
    return KEYPOINTS.index(name)


def long_tracklets(people: int, frames: int, per_person: int = 2) -> Tracklets:
    """Tracklets of some people, all as long as each other."""
    person = np.repeat(np.arange(people), per_person)
    number = np.tile(np.arange(per_person), people)
    index = 2_000_000_000 + person
    return Tracklets(index, index, person + 1, number % 2, number + 1, np.full(len(person), frames))


@pytest.fixture(scope="module")
def drawn() -> tuple[Tracklets, SynthPedFrames]:
    """The test set of the default benchmark, in half of the size."""
    video = SynthPedVideo(SynthPedConfig(size=(64, 32)))
    return video.tracklets("video_test"), video.frames("video_test", threads=1)


# Gait in time


def test_a_phase_advances_evenly_in_time_also_over_gaps(drawn: tuple[Tracklets, SynthPedFrames]) -> None:
    tracklets, frames = drawn
    config = SynthPedConfig()
    _, style = gait.walkers(0, tracklets.identity, tracklets.clothes, config.confusers)
    crossed = 0
    for t in range(len(tracklets)):
        rows = np.flatnonzero(frames.tracklet == t)
        steps = np.diff(frames.frame[rows])
        advance = np.mod(np.diff(frames.phase[rows].astype(np.float64)), 1.0)
        rate = style.cadence[t] / config.video_fps
        # At most 9 % from the person's own cadence, and even.
        turns = np.round(steps * rate - advance)
        pace = (advance + turns) / (steps * rate)
        assert np.ptp(pace) < 1e-3
        assert abs(pace.mean() - 1.0) < 0.09
        crossed += int((steps > 1).sum())
    assert crossed > 30


def test_groups_share_clothes_but_neither_body_nor_gait() -> None:
    video = SynthPedVideo(SynthPedConfig(video_train_ids=40, video_test_ids=30))
    for name, first, last, groups in (("video_train", 1, 40, 4), ("video_test", 41, 70, 3)):
        found = video.same_clothes(name)
        assert [len(group) for group in found] == [3] * groups
        assert all(first <= pid <= last for group in found for pid in group)
        tracklets = video.tracklets(name)
        for group in found:
            rows = np.asarray([np.flatnonzero(tracklets.pid == pid)[0] for pid in group])
            people, style = gait.walkers(0, tracklets.identity[rows], tracklets.clothes[rows], 2)
            for field in gait.CLOTHES:
                values = getattr(people, field)
                assert (values == values[:1]).all(), field
            for values in (people.build, people.head, people.shoulder, people.skin[:, 0], style.cadence, style.stride):
                assert len(np.unique(values)) == 3
            assert len(np.unique(people.shape > 0.5)) == 1  # nobody wears what was cut for another figure
    assert (gait.clothes_leaders(10, 0.0) == np.arange(10)).all()
    assert gait.clothes_leaders(10, 1.0).tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6, 6]
    assert gait.clothes_leaders(2, 1.0).tolist() == [0, 1]


def test_people_of_videos_are_nobody_of_the_images() -> None:
    tracklets = SynthPedVideo().tracklets("video_train")
    of_images = who.identities(0, np.arange(10_000), 2)
    of_videos = who.identities(0, np.unique(tracklets.identity), 2)
    assert not np.isin(of_videos.build, of_images.build[of_images.build > 0.0]).any()


# Frames


def test_motion_between_frames_is_small_and_consistent(drawn: tuple[Tracklets, SynthPedFrames]) -> None:
    _, frames = drawn
    height, width = frames.truth.parts.shape[1:]
    keypoints = frames.truth.keypoints.astype(np.float64) / np.asarray([width, height])
    step = (np.diff(frames.tracklet) == 0) & (np.diff(frames.frame) == 1)
    moved = np.abs(np.diff(keypoints, axis=0)[step])
    assert moved.max() < 0.45  # the foot of a fast walker seen from the side, of the crop's width
    assert np.median(moved) < 0.02
    # The trunk goes as one.
    trunk = [point(f"{side}_{joint}") for side in ("left", "right") for joint in ("shoulder", "hip")]
    motion = np.diff(keypoints, axis=0)[step][:, trunk]
    assert np.abs(motion - motion.mean(axis=1, keepdims=True)).max() < 0.13
    # What a frame shows is better foretold by its neighbours on both sides than by any frame three steps away.
    inner = np.flatnonzero(step[:-3] & step[1:-2] & step[2:-1] & step[3:])
    between = 0.5 * (keypoints[inner] + keypoints[inner + 2]) - keypoints[inner + 1]
    far = keypoints[inner + 4] - keypoints[inner + 1]
    assert np.abs(between).mean() < 0.3 * np.abs(far).mean()


def test_people_go_where_they_look(drawn: tuple[Tracklets, SynthPedFrames]) -> None:
    """Seen from the side, the foot on the ground goes back in the crop, which goes with the person."""
    _, frames = drawn
    keypoints = frames.truth.keypoints
    nose, ears = keypoints[:, point("nose"), 0], keypoints[:, [point("left_ear"), point("right_ear")], 0].mean(axis=1)
    ahead = (nose - ears) / frames.truth.parts.shape[2]
    step = (np.diff(frames.tracklet) == 0) & (np.diff(frames.frame) == 1)
    stands = (frames.phase > 0.1) & (frames.phase < 0.5)
    rows = np.flatnonzero(step & stands[:-1] & stands[1:] & (np.abs(ahead[:-1]) > 0.055))
    assert len(rows) > 100
    left = keypoints[rows + 1, point("left_ankle"), 0] - keypoints[rows, point("left_ankle"), 0]
    assert (left * np.sign(ahead[rows]) < 0.0).mean() > 0.93


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_scenery_goes_by_with_the_foot_on_the_ground(monkeypatch: pytest.MonkeyPatch, missing: float) -> None:
    """In a crop without a detector's error, what the ground moves by is what the standing foot moves by."""
    moved: list[tuple[Floats, Floats]] = []

    def scroll(place: NDArray[np.float32], right: Floats, down: Floats, feet: Floats, width: int) -> None:
        moved.append((right, down))

    monkeypatch.setattr(video_scene, "_scroll", scroll)
    config = SynthPedConfig(video_missing=missing, jitter=0.0, size=(256, 128))
    video, tracklets = SynthPedVideo(config), long_tracklets(24, 20)
    row, frame = video.frame_rows(tracklets)
    film = video_scene.film(config, tracklets, row, frame)
    step = (np.diff(row) == 0) & (np.diff(frame) < 4)
    flat = (film.phase > 0.1) & (film.phase < 0.28)
    later = np.mod(np.diff(film.phase), 1.0) < 0.2
    rows = np.flatnonzero(step & flat[:-1] & flat[1:] & later)
    assert len(rows) > 60
    for axis, way in enumerate(moved[0]):
        foot = film.keypoints[:, point("left_ankle"), axis].astype(np.float64)
        ground, ankle = np.diff(way)[rows], np.diff(foot)[rows]
        # Perspective and the turn of the body make the way on the picture a little longer or shorter.
        assert np.corrcoef(ground, ankle)[0, 1] > 0.97
        assert 0.8 < (ground @ ankle) / (ground @ ground) < 1.25


def test_frames_of_a_tracklet_differ_in_noise_and_in_nothing_else_of_camera_and_cloth() -> None:
    video, tracklets = SynthPedVideo(SynthPedConfig(size=(32, 32))), long_tracklets(3, 10)
    row, frame = video.frame_rows(tracklets)
    scenes = video_scene.film(video.config, tracklets, row, frame).scenes
    optics = scenes.optics
    noise = [layout.RESPONSE_FIELD["noise_x"], layout.RESPONSE_FIELD["noise_y"]]
    for t in range(len(tracklets)):
        responses = optics.responses[row == t]
        assert len(np.unique(responses[:, noise], axis=0)) > 8
        assert (np.delete(responses - responses[:1], noise, axis=1) == 0.0).all()
        assert (optics.curves[row == t] == optics.curves[row == t][:1]).all()
        person = scenes.primitives[row == t]
        person = person[person[..., FIELD["layer"]] == layout.LAYER_SUBJECT]
        assert len(np.unique(person[:, FIELD["noise_x"]])) == 1  # creases go with the cloth


def test_textures_of_ground_and_wall_move_by_the_given_pixels() -> None:
    rng = np.random.default_rng(0)
    right, down, feet = rng.uniform(-200, 200, 20), rng.uniform(-20, 20, 20), rng.uniform(100, 126, 20)
    plane = np.zeros((20, 2, layout.NUM_FIELDS), np.float32)
    plane[..., FIELD["shape"]] = layout.SHAPE_PLANE
    plane[..., FIELD["axis_y"]] = 1.0
    plane[..., FIELD["width2"]] = 20.0
    plane[:, 0, FIELD["width0"]], plane[:, 0, FIELD["width1"]] = -60.0, -40_000.0  # a receding ground
    plane[:, 0, FIELD["centre1"]], plane[:, 1, FIELD["centre1"]] = 180.0, 1.0  # and a flat wall

    def texture(scene: NDArray[np.float32], k: int, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        p = scene[:, k].astype(np.float64).T
        depth = 1.0 / (y - p[FIELD["width0"]])
        u = (x - p[FIELD["centre0"]]) * p[FIELD["centre1"]] * (depth if k == 0 else 1.0) + p[FIELD["u0"]]
        return u, depth * p[FIELD["width1"]] + p[FIELD["v0"]]

    moved = plane.copy()
    video_scene._scroll(moved, right, down, feet, 64)
    x = rng.uniform(0, 64, 20)
    u, v = texture(plane, 0, x, feet)
    u_later, v_later = texture(moved, 0, x + right, feet)
    assert u_later == pytest.approx(u, abs=2e-3)
    assert v_later - v == pytest.approx(-texture_slope(plane, feet) * down, abs=2e-3)
    # The wall is farther away and goes by slower.
    u, _ = texture(plane, 1, x, feet)
    u_later, _ = texture(moved, 1, x + 0.75 * right, feet)
    assert u_later == pytest.approx(u, abs=2e-3)


def texture_slope(plane: NDArray[np.float32], feet: Floats) -> Floats:
    """Texture a pixel down at the feet."""
    p = plane[:, 0].astype(np.float64).T
    return -p[FIELD["width1"]] / (feet - p[FIELD["width0"]]) ** 2


def test_things_pass_by_against_the_walking_direction() -> None:
    place = np.zeros((2, 1, layout.NUM_FIELDS), np.float32)
    place[..., FIELD["shape"]], place[..., FIELD["axis_y"]], place[..., FIELD["length"]] = layout.SHAPE_SWEEP, 1.0, 40.0
    place[..., FIELD["start_x"]] = 30.0
    video_scene._scroll(place, np.asarray([20.0, -2_000.0]), np.zeros(2), np.full(2, 120.0), 64)
    assert place[0, 0, FIELD["start_x"]] == 45.0
    assert -64.0 <= place[1, 0, FIELD["start_x"]] < 128.0


def test_occluders_of_every_kind_come_and_go(drawn: tuple[Tracklets, SynthPedFrames]) -> None:
    tracklets, frames = drawn
    kinds = {OCCLUDERS[k] for k in np.unique(frames.truth.occluder) if k >= 0}
    assert kinds == {"post", "box", "foliage", "pedestrian", "car"}
    hidden = frames.truth.occluded_share > 0.02
    per_tracklet = np.asarray([hidden[frames.tracklet == t].mean() for t in range(len(tracklets))])
    assert 0.25 < (per_tracklet > 0).mean() < 0.65
    # Most of those that something passes before are seen freely in some frames.
    assert ((per_tracklet > 0) & (per_tracklet < 1)).sum() > 0.6 * (per_tracklet > 0).sum()
    assert (frames.truth.occluded_share > 0.85).mean() < 0.02
    none = SynthPedVideo(SynthPedConfig(video_occluded=0.0, size=(32, 32))).frames("video_test", limit=20)
    assert (none.truth.occluder == -1).all()
    assert (none.truth.occluded_share == 0.0).all()


def test_visible_keypoints_lie_inside_the_crop_on_their_parts(drawn: tuple[Tracklets, SynthPedFrames]) -> None:
    truth = drawn[1].truth
    n, height, width = truth.parts.shape
    column, row = np.floor(truth.keypoints[..., 0]).astype(int), np.floor(truth.keypoints[..., 1]).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    assert (inside == (truth.visibility != layout.OUT_OF_FRAME)).all()
    assert (truth.visibility == layout.VISIBLE).mean() > 0.5
    assert inside.mean() > 0.98
    assert truth.in_frame.min() > 0.6
    label = truth.parts[np.arange(n)[:, None], row.clip(0, height - 1), column.clip(0, width - 1)]
    assert ((label == PART["occluder"]) & inside == (truth.visibility == layout.BEHIND_OCCLUDER)).all()
    for name, parts in (
        ("left_knee", ("left_upper_leg", "left_lower_leg", "lower_garment")),
        ("nose", ("head", "hair")),
    ):
        seen = np.flatnonzero(truth.visibility[:, point(name)] == layout.VISIBLE)
        wanted = [PART[part] for part in parts]
        patches = [
            truth.amodal[i, max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2]
            for i, r, c in zip(seen, row[seen, point(name)], column[seen, point(name)], strict=True)
        ]
        assert len(patches) > 200
        assert all(np.isin(patch, wanted).any() for patch in patches)


# Sets


def test_the_sets_are_disjoint_and_every_query_has_a_match_of_another_camera() -> None:
    for cameras, tracklets_each in ((2, 1), (4, 2), (9, 3)):
        video = SynthPedVideo(SynthPedConfig(cameras=cameras, video_tracklets=tracklets_each))
        train, test = video.tracklets("video_train"), video.tracklets("video_test")
        assert set(train.pid.tolist()) == set(range(1, 41))
        assert set(test.pid.tolist()) == {0, *range(41, 71)}
        assert not set(train.identity.tolist()) & set(test.identity.tolist())
        assert (test.pid == 0).sum() == 10
        queries = video.queries(test)
        assert set(test.pid[queries].tolist()) == set(range(41, 71))
        for row in queries:
            assert ((test.pid == test.pid[row]) & (test.camera != test.camera[row])).any()
        seen = [len(set(train.camera[train.pid == pid].tolist())) for pid in range(1, 41)]
        assert set(seen) == ({2} if cameras == 2 else {2, 3})
        key = list(zip(test.pid.tolist(), test.camera.tolist(), test.number.tolist(), strict=True))
        assert key == sorted(set(key))


def test_lengths_are_uneven_and_frames_are_missing() -> None:
    video = SynthPedVideo(SynthPedConfig())
    tracklets = video.tracklets("video_train")
    assert (tracklets.length.min(), tracklets.length.max()) == (8, 32)
    assert len(np.unique(tracklets.length)) > 15
    row, frame = video.frame_rows(tracklets)
    for t in range(len(tracklets)):
        own = frame[row == t]
        assert len(own) == tracklets.length[t]
        assert own[0] == 1
        assert ((np.diff(own) >= 1) & (np.diff(own) <= 4)).all()
    steps = np.diff(frame)[np.diff(row) == 0]
    assert 0.04 < (steps > 1).mean() < 0.08
    gaps = [(np.diff(frame[row == t]) > 1).mean() for t in range(len(tracklets))]
    assert 0.4 < np.mean([0 < share < 0.5 for share in gaps]) < 0.85
    whole = SynthPedVideo(SynthPedConfig(video_missing=0.0, video_frames=(5, 5)))
    _, frame = whole.frame_rows(whole.tracklets("video_test").take(slice(0, 3)))
    assert frame.tolist() == [1, 2, 3, 4, 5] * 3


def test_a_tracklet_is_the_same_whoever_draws_it_with_whom() -> None:
    config = SynthPedConfig(size=(64, 32))
    video = SynthPedVideo(config)
    tracklets = video.tracklets("video_train").take(slice(0, 12))
    whole = video.draw(tracklets, threads=2)
    one = video.draw(tracklets.take(np.asarray([7])), 7)
    rows = whole.tracklet == 7
    for name in ("images", "parts", "amodal", "keypoints", "visibility", "occluder"):
        assert np.array_equal(getattr(whole.truth, name)[rows], getattr(one.truth, name)), name
    assert np.array_equal(whole.frame[rows], one.frame)
    assert (one.tracklet == 7).all()
    blocks = [video.draw(tracklets.take(part), part.start) for part in video.blocks(tracklets, 40)]
    assert len(blocks) > 3
    assert np.array_equal(SynthPedFrames.join(blocks).truth.images, whole.truth.images)
    other = SynthPedVideo(config.with_options(seed=1))
    assert not np.array_equal(other.draw(tracklets.take(np.asarray([7]))).truth.images[0], one.truth.images[0])


def test_pixels_of_version_1() -> None:
    video = SynthPedVideo()
    tracklets = video.tracklets("video_test").take(np.asarray([12, 40, 60]))
    frames = video.draw(tracklets)
    content = frames.truth.images.tobytes() + frames.truth.parts.tobytes() + frames.truth.keypoints.tobytes()
    assert hashlib.sha256(content).hexdigest() == GOLDEN


def test_the_numpy_rasteriser_draws_the_same_frames() -> None:
    video = SynthPedVideo(SynthPedConfig(size=(64, 32), video_frames=(3, 3)))
    tracklets = video.tracklets("video_test").take(np.asarray([12, 50]))
    assert np.array_equal(video.draw(tracklets).truth.images, video.draw(tracklets, impl="numpy").truth.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"video_frames": (1, 5)}, r"video_frames must be two numbers of frames in 2\.\.200"),
        ({"video_frames": (9, 5)}, "video_frames"),
        ({"video_fps": 1.0}, r"video_fps must be in \[5, 60\]"),
        ({"video_missing": 0.9}, "video_missing"),
        ({"video_test_ids": 0}, "video_test_ids"),
        ({"video_train_ids": 9990}, "four digits of a MARS name"),
        ({"video_tracklets": 0}, "video_tracklets"),
        ({"same_clothes_share": 1.5}, "same_clothes_share"),
        ({"video_occluded": -0.1}, "video_occluded"),
    ],
)
def test_a_wrong_setting_is_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SynthPedConfig().with_options(**options)


def test_unknown_sets_are_named() -> None:
    with pytest.raises(ValueError, match="video_train"):
        SynthPedVideo().tracklets("train")
