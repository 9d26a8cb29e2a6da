"""How SynthPed's people walk: feet stay where they are set down, a gait is a person's own, clothes cover the body."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from motarfuse.data.synthped import KEYPOINTS, SynthPedConfig, SynthPedVideo, body, gait, pose, video_scene, walk
from motarfuse.data.synthped import identity as who
from motarfuse.data.synthped.draws import Draws, keys
from motarfuse.data.synthped.layout import FIELD, PART, SHAPE_NONE
from motarfuse.data.synthped.limbs import Frame
from motarfuse.data.synthped.primitives import Light
from motarfuse.data.synthped.video_scene import Tracklets

PEOPLE = 60
PHASES = 60

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
def cycle() -> tuple[who.Identities, gait.WalkStyle, dict[str, Floats]]:
    """3D joints of many people over one cycle, (PHASES, PEOPLE, 3) each."""
    people, style = gait.walkers(0, np.arange(PEOPLE), np.arange(PEOPLE), 1)
    height = walk.pelvis_height(people, style)
    free = pose.hands(people, Draws(keys(0, "test", np.arange(PEOPLE))), (1, 0, 0, 0))
    still = np.zeros(PEOPLE)
    moments = [
        walk.joints(people, style, np.full(PEOPLE, k / PHASES), height, free, still, still) for k in range(PHASES)
    ]
    return people, style, {name: np.stack([moment[name] for moment in moments]) for name in moments[0]}


# The walking cycle


def test_a_foot_on_the_ground_stays_where_it_is_set_down(
    cycle: tuple[who.Identities, gait.WalkStyle, dict[str, Floats]],
) -> None:
    _, style, joints = cycle
    way = style.stride * (np.arange(PHASES) / PHASES)[:, None]  # of the body
    flat = slice(
        int(0.15 * 0.65 * PHASES) + 1, int(0.5 * 0.57 * PHASES)
    )  # the whole sole, whatever share the stance has
    for name in ("left_heel", "left_toe", "left_ankle"):
        place = joints[name][flat, :, 2] + way[flat]
        assert np.ptp(place, axis=0).max() < 1e-9
        assert np.ptp(joints[name][flat, :, 1], axis=0).max() < 1e-9
    # While it rolls over the toes they stay, up to the small turn of a foot that points outwards.
    roll = slice(flat.start, int(0.57 * PHASES))
    assert np.ptp(joints["left_toe"][roll, :, 2] + way[roll], axis=0).max() < 0.02
    # And it goes a whole stride forward in its swing.
    ankle = joints["left_ankle"][..., 2] + way
    assert (ankle[-1] - ankle[flat.stop]) / style.stride == pytest.approx(np.ones(PEOPLE), abs=0.15)


def test_feet_never_sink_and_one_is_always_on_the_ground(
    cycle: tuple[who.Identities, gait.WalkStyle, dict[str, Floats]],
) -> None:
    _, style, joints = cycle
    low = {
        side: np.minimum(joints[f"{side}_heel"][..., 1], joints[f"{side}_toe"][..., 1]) for side in ("left", "right")
    }
    assert min(values.min() for values in low.values()) > -1e-9
    both = np.zeros((PHASES, PEOPLE), int)
    for k in range(PHASES):
        on_ground = walk.on_ground(style, np.full(PEOPLE, k / PHASES))
        for side, values in low.items():
            assert (values[k][on_ground[side]] < 1e-9).all()
            both[k] += on_ground[side]
            assert (joints[f"{side}_ankle"][k, ~on_ground[side], 1] > 0.035).all()
    assert both.min() == 1  # walking, not running
    assert 0.1 < (both == 2).mean() < 0.35


def test_feet_alternate_and_arms_go_against_the_legs(
    cycle: tuple[who.Identities, gait.WalkStyle, dict[str, Floats]],
) -> None:
    _, style, joints = cycle
    apart = joints["left_ankle"][..., 2] - joints["right_ankle"][..., 2]
    changes = (np.diff(np.sign(np.concatenate([apart, apart[:1]])), axis=0) != 0).sum(axis=0)
    assert (changes == 2).all()
    assert (apart.max(axis=0) > 0.2).all()
    assert (apart.min(axis=0) < -0.2).all()
    for side in ("left", "right"):
        leg = joints[f"{side}_ankle"][..., 2] - joints[f"{side}_hip"][..., 2]
        arm = joints[f"{side}_wrist"][..., 2] - joints[f"{side}_shoulder"][..., 2]
        for i in np.flatnonzero(style.swing_left > 6.0):
            assert np.corrcoef(leg[:, i], arm[:, i])[0, 1] < -0.7


def test_limbs_keep_their_lengths_and_knees_bend_forward(
    cycle: tuple[who.Identities, gait.WalkStyle, dict[str, Floats]],
) -> None:
    people, _, joints = cycle

    def length(a: str, b: str) -> Floats:
        return np.sqrt(((joints[a] - joints[b]) ** 2).sum(axis=-1))

    for side in ("left", "right"):
        assert length(f"{side}_hip", f"{side}_knee") == pytest.approx(
            np.broadcast_to(pose.THIGH * people.leg, (PHASES, PEOPLE)), rel=1e-9
        )
        # The leg is never stretched beyond its length.
        assert length(f"{side}_knee", f"{side}_ankle") == pytest.approx(
            np.broadcast_to(pose.SHIN * people.leg, (PHASES, PEOPLE)), rel=1e-9
        )
        middle = 0.5 * (joints[f"{side}_hip"] + joints[f"{side}_ankle"])
        assert ((joints[f"{side}_knee"] - middle)[..., 2] > 0.0).all()


def test_a_cycle_closes_and_goes_on_without_jumps(
    cycle: tuple[who.Identities, gait.WalkStyle, dict[str, Floats]],
) -> None:
    _, _, joints = cycle
    for values in joints.values():
        steps = np.abs(np.diff(np.concatenate([values, values[:1]]), axis=0))
        assert steps.max() < 3.3 / PHASES  # heights; the fastest is the foot in its swing


# Gait as a mark of identity


def test_gait_tells_people_apart_and_stays_with_them() -> None:
    """Frequency and amplitude of the ankles' way in the ground truth: spread between people against within."""
    people, frames = 16, 75
    config = SynthPedConfig(video_fps=25.0, video_missing=0.0, jitter=0.0, camera_variety=0.0, size=(32, 32))
    video, tracklets = SynthPedVideo(config), long_tracklets(people, frames)
    row, frame = video.frame_rows(tracklets)
    film = video_scene.film(config, tracklets, row, frame)
    keypoints = film.keypoints.astype(np.float64).reshape(len(tracklets), frames, 17, 2)
    apart = keypoints[:, :, point("left_ankle")] - keypoints[:, :, point("right_ankle")]
    # The direction in which the feet part most, whatever the view; a steady wave of the frequency of the cycle.
    apart = apart - apart.mean(axis=1, keepdims=True)
    direction = np.linalg.svd(apart, full_matrices=False)[2][:, 0]
    wave = np.einsum("tfk,tk->tf", apart, direction)
    rates = np.linspace(0.5, 1.6, 221)
    turns = np.exp(-2j * np.pi * rates[:, None] * np.arange(frames) / config.video_fps)
    power = np.abs(np.einsum("tf,rf->tr", wave * np.hanning(frames), turns))
    rate = rates[power.argmax(axis=1)]
    _, style = gait.walkers(0, tracklets.identity, tracklets.identity, config.confusers)
    assert np.abs(rate / style.cadence - 1.0).max() < 0.15
    assert spread_ratio(rate.reshape(people, 2)) > 5.0
    # Length of a step seen from the side: the feet's way along the ground in heights, free of the view.
    strides = []
    for number in (0, 1):
        walkers, own = gait.walkers(0, np.arange(people), np.arange(people), 1)
        draws = Draws(keys(0, "walks", np.arange(people), number))
        path = video_scene.Stroll.sample(walkers, own, draws)
        moments = [
            path.joints(np.arange(people), path.phase(np.arange(people), np.full(people, k / 25.0)), still(people))
            for k in range(50)
        ]
        ankles = np.stack([moment["left_ankle"][:, 2] - moment["right_ankle"][:, 2] for moment in moments])
        strides.append(np.ptp(ankles, axis=0))
    assert spread_ratio(np.stack(strides, axis=1)) > 20.0


def still(count: int) -> tuple[Floats, Floats]:
    return np.zeros(count), np.zeros(count)


def spread_ratio(values: Floats) -> float:
    """(people, walks) -> deviation between the means of people by that between walks of one."""
    return float(values.mean(axis=1).std() / max(values.std(axis=1).mean(), 1e-12))


# Clothes in motion


def test_long_trousers_cover_the_skin_also_where_a_leg_points_at_the_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """From behind, a shin that swings comes nearer than the knee; its skin is still below the cloth."""
    everybody, style = gait.walkers(0, np.arange(400), np.arange(400), 1)
    rows = np.flatnonzero((everybody.bottom <= who.WIDE) & (everybody.bottom_length < 0.07))
    people, style = everybody.take(rows), style.take(rows)
    n = len(rows)
    draws = Draws(keys(0, "test", rows))
    height, free = walk.pelvis_height(people, style), pose.hands(people, draws)
    view = pose.View(draws.uniform("yaw", 0.0, 360.0), np.full(n, 15.0), np.zeros(n), np.full(n, 0.1))
    window = Frame(np.full((n, 2), 64.0), np.full((n, 2), 110.0))
    lamp = Light(*(np.full(n, 0.5) for _ in range(4)))
    covered: dict[bool, list[NDArray[np.bool_]]] = {}
    for nested in (True, False):
        covered[nested] = []
        for phase in np.arange(8) / 8.0:
            joints = walk.joints(people, style, np.full(n, phase), height, free, *still(n))
            painted = body.paint(people, joints, np.zeros(n), view, window, lamp, draws, nested=nested)
            for label in ("left_lower_leg", "right_lower_leg"):
                ours = (painted[..., FIELD["label"]] == PART[label]) & (painted[..., FIELD["shape"]] != SHAPE_NONE)
                colour = painted[..., FIELD["colour0_r"] : FIELD["colour0_b"] + 1]
                place = [
                    (ours & (np.abs(colour - of[:, None]).max(axis=2) < 0.01)).argmax(axis=1)
                    for of in (people.skin, people.bottom_colour)
                ]
                covered[nested].append(place[0] < place[1])
    assert n > 50
    assert np.concatenate(covered[True]).all()
    # Still images, whose pixels are fixed, do without.
    assert not np.concatenate(covered[False]).all()
    asked: list[bool] = []

    def paint(*args: Any, nested: bool = False, **options: Any) -> NDArray[np.float32]:
        asked.append(nested)
        return original(*args, nested=nested, **options)

    original = body.paint
    monkeypatch.setattr(body, "paint", paint)
    SynthPedVideo(SynthPedConfig(size=(32, 32))).frames("video_test", limit=20)
    assert len(asked) >= 3  # persons, those behind and those before them
    assert all(asked)


def test_a_skirt_covers_a_thigh_that_is_lifted_towards_the_camera() -> None:
    everybody, style = gait.walkers(0, np.arange(600), np.arange(600), 1)
    rows = np.flatnonzero((everybody.bottom == who.SKIRT) & (everybody.top <= who.JACKET))
    people, style, n = everybody.take(rows), style.take(rows), len(rows)
    draws = Draws(keys(0, "test", rows))
    height, free = walk.pelvis_height(people, style), pose.hands(people, draws)
    view = pose.View(draws.uniform("yaw", 0.0, 360.0), np.full(n, 25.0), np.zeros(n), np.full(n, 0.1))
    window = Frame(np.full((n, 2), 64.0), np.full((n, 2), 110.0))
    lamp = Light(*(np.full(n, 0.5) for _ in range(4)))
    over: dict[bool, list[NDArray[np.bool_]]] = {True: [], False: []}
    for phase in np.arange(8) / 8.0:
        joints = walk.joints(people, style, np.full(n, phase), height, free, *still(n))
        for nested, found in over.items():
            painted = body.paint(people, joints, np.zeros(n), view, window, lamp, draws, nested=nested)
            label = np.where(painted[..., FIELD["shape"]] != SHAPE_NONE, painted[..., FIELD["label"]], -1.0)
            thigh = np.isin(label, [PART["left_upper_leg"], PART["right_upper_leg"]])
            skirt = (label == PART["lower_garment"]).argmax(axis=1)
            found.append(skirt > label.shape[1] - 1 - thigh[:, ::-1].argmax(axis=1))
    assert n > 30
    assert np.concatenate(over[True]).all()
    assert not np.concatenate(over[False]).all()
