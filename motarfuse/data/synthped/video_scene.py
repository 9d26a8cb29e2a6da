"""From tracklets to scenes: people who walk past cameras that stand still, what passes before and behind them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped import body, camera, gait, layout, occluders, pose, scene, scenery, walk
from motarfuse.data.synthped.camera import Style
from motarfuse.data.synthped.config import SynthPedConfig
from motarfuse.data.synthped.draws import Draws, Floats, keys
from motarfuse.data.synthped.identity import Identities
from motarfuse.data.synthped.layout import FIELD
from motarfuse.data.synthped.limbs import Frame
from motarfuse.data.synthped.pose import DEGREE, Hand, View
from motarfuse.data.synthped.primitives import Light, pack
from motarfuse.data.synthped.scene import Scenes

Ints = NDArray[np.int64]

# How common each of OCCLUDERS is among what passes; a panel has no end.
_PASSING = (24, 18, 12, 36, 10, 0)
# Heights a second; slower than this across the picture nothing that stands would pass, so that a pedestrian does.
_SLOW = 0.25
_WALL_PARALLAX = 0.75  # how far the scenery goes by, relative to the person's place
_PASSERS_BY = 3_000_000_000
# Phases at which the space that a walking body takes is asked for.
_BOX_PHASES = 8


@dataclass(frozen=True)
class Tracklets:
    """n tracklets: who, by which camera, how long."""

    identity: Ints  # index of the person
    clothes: Ints  # index of the person whose clothes are worn
    pid: Ints  # person id from 1 on, 0 for a distractor
    camera: Ints  # 0-based
    number: Ints  # of the tracklet among those of the person in the camera, from 1
    length: Ints  # frames

    def __len__(self) -> int:
        return len(self.identity)

    def take(self, rows: Ints | slice) -> Tracklets:
        """Some of the rows."""
        return Tracklets(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class Film:
    """n frames of tracklets."""

    scenes: Scenes
    keypoints: NDArray[np.float32]  # (n, 17, 2) pixels, x first
    facing: NDArray[np.bool_]  # (n, 17) not turned away from the camera
    in_frame: NDArray[np.float32]  # (n,) share of the person's box inside the crop
    occluder: Ints  # (n,) index into OCCLUDERS of what passes somewhere in the tracklet, -1 for nothing
    phase: NDArray[np.float32]  # (n,) of the walking cycle, in [0, 1)


@dataclass(frozen=True)
class Stroll:
    """m people on their way past a camera."""

    people: Identities
    style: gait.WalkStyle
    height: Floats  # of the pelvis
    hands: tuple[Hand, Hand]
    pace: Floats  # of this walk, relative to the person's own
    start: Floats  # phase at time 0, cycles
    draws: Draws

    @staticmethod
    def sample(people: Identities, style: gait.WalkStyle, draws: Draws) -> Stroll:
        """How these people walk this time."""
        return Stroll(
            people=people,
            style=style,
            height=walk.pelvis_height(people, style),
            hands=pose.hands(people, draws, (86, 4, 6, 4), (0.9, 1.1)),
            pace=draws.normal("pace", 1.0, 0.025),
            start=draws.uniform("start"),
            draws=draws,
        )

    @property
    def speed(self) -> Floats:
        """(m,) heights a second."""
        return self.style.stride * self.style.cadence * self.pace

    def phase(self, rows: Ints, time: Floats) -> Floats:
        """Cycles, (n,) at ``time`` seconds of the walks ``rows``."""
        return self.start[rows] + (self.style.cadence * self.pace)[rows] * time

    def head(self, rows: Ints, time: Floats) -> tuple[Floats, Floats]:
        """Yaw and pitch of the head: people look about slowly."""
        draws = self.draws
        turn = draws.uniform("look", 0.0, 9.0)[rows] * np.sin(
            2.0 * np.pi * (draws.uniform("look phase")[rows] + draws.uniform("look rate", 0.1, 0.5)[rows] * time)
        )
        return draws.normal("head yaw", 0.0, 12.0)[rows] + turn, draws.normal("head pitch", 6.0, 6.0)[rows]

    def joints(self, rows: Ints, phase: Floats, head: tuple[Floats, Floats]) -> dict[str, Floats]:
        """Skeletons, (n, 3) a joint."""
        left, right = (Hand(hand.elbow[rows], hand.lift[rows], hand.busy[rows]) for hand in self.hands)
        return walk.joints(
            self.people.take(rows), self.style.take(rows), phase, self.height[rows], (left, right), *head
        )


def _take(view: View, rows: Ints) -> View:
    return View(view.yaw[rows], view.elevation[rows], view.roll[rows], view.perspective[rows])


def film(config: SynthPedConfig, tracklets: Tracklets, row: Ints, frame: Ints) -> Film:
    """Lays out the scenes of some frames.

    A tracklet's draws are the same in all of its frames: the camera, its light, the place, the clothes' creases. What
    a frame has of its own are the moment of the walk, the detector's inaccuracy and the sensor's noise.

    Args:
        config: The benchmark.
        tracklets: Whose frames.
        row: (n,) a frame's tracklet.
        frame: (n,) its number from 1.
    """
    height, width = config.size
    c = config
    number = (tracklets.identity, tracklets.camera, tracklets.number)
    draws = Draws(keys(c.seed, "tracklet", *number))
    moment = Draws(keys(c.seed, "frame", *(column[row] for column in number), frame))
    time = (frame - 1) / c.video_fps
    duration = np.zeros(len(tracklets))
    np.maximum.at(duration, row, time)

    who, style = gait.walkers(c.seed, tracklets.identity, tracklets.clothes, c.confusers)
    subject = Stroll.sample(who, style, draws)
    look = Style(c.seed, tracklets.camera, draws, c.camera_variety, c.camera_strength)
    still, light = camera.view(look), camera.light(look)
    # Whoever passes a camera turns relative to it.
    turning = draws.normal("turning", 0.0, 7.0)
    way = _Way(still.yaw - 0.5 * turning * duration, turning, subject.speed)
    view = replace(_take(still, row), yaw=way.yaw(row, time))

    phase, head = subject.phase(row, time), subject.head(row, time)
    joints = subject.joints(row, phase, head)
    space = _space(subject, still, way, duration)
    window = _window(c, draws, moment, space, row, time, duration)
    lamp, rows_draws = light.take(row), draws.at(row)
    painted = body.paint(subject.people.take(row), joints, head[0], view, window, lamp, rows_draws, nested=True)

    ground, _ = view.project(
        np.stack([0.5 * (joints[s + "_heel"] + joints[s + "_toe"]) for s in ("left", "right")], axis=1)
    )
    feet = window.pixels(ground)
    shade = scenery.shadow(
        Style(c.seed, tracklets.camera[row], rows_draws, c.camera_variety, c.camera_strength),
        feet,
        window.scale,
        look.uniform("shadow", 0.1, 0.75)[row],
    )
    across, nearer = way.gone(row, time)
    place = scenery.paint(look, height, width, still.elevation)[row]
    _scroll(
        place,
        -across * window.scale[:, 0],
        -nearer * np.sin(still.elevation[row] * DEGREE) * window.scale[:, 1],
        feet[:, :, 1].mean(axis=1),
        width,
    )
    groups: list[tuple[NDArray[np.float32], Ints | None]] = [(place, None)]
    traffic = _Traffic(c, draws, way, still, light, window, row, time, duration, space)
    groups += [*traffic.behind(), (shade, None), (painted, None)]
    kind, before = traffic.before()
    groups += before
    primitives, boxes = pack(groups, len(row), height, width)

    optics = camera.optics(look, height, width).take(row)
    responses = optics.responses.copy()
    for axis in ("noise_x", "noise_y"):
        responses[:, layout.RESPONSE_FIELD[axis]] = moment.integer(axis, 256)
    plane, depth = view.project(np.stack([joints[name] for name in layout.KEYPOINTS], axis=1))
    return Film(
        scenes=Scenes(primitives, boxes, replace(optics, responses=responses)),
        keypoints=np.round(window.pixels(plane) * 64.0).astype(np.float32) * np.float32(1.0 / 64.0),
        facing=scene.facing(joints, view, depth),
        in_frame=scene.share_inside(scene.body_box(joints, view), window, height, width).astype(np.float32),
        occluder=kind[row],
        phase=(phase - np.floor(phase)).astype(np.float32),
    )


@dataclass(frozen=True)
class _Way:
    """m ways: where people go, seen from the camera."""

    first_yaw: Floats  # degrees
    turning: Floats  # degrees a second
    speed: Floats  # heights a second

    def yaw(self, rows: Ints, time: Floats) -> Floats:
        """Degrees at some moments."""
        return self.first_yaw[rows] + self.turning[rows] * time

    def gone(self, rows: Ints, time: Floats) -> tuple[Floats, Floats]:
        """Heights to the right and towards the camera since time 0."""
        yaw = (self.first_yaw[rows] + 0.5 * self.turning[rows] * time) * DEGREE
        return self.speed[rows] * time * np.sin(yaw), self.speed[rows] * time * np.cos(yaw)

    def across(self, duration: Floats) -> Floats:
        """(m,) heights a second to the right, on average."""
        return self.speed * np.sin((self.first_yaw + 0.5 * self.turning * duration) * DEGREE)


def _space(subject: Stroll, still: View, way: _Way, duration: Floats) -> Floats:
    """(m, 4) the box on the image plane that holds a body during its whole cycle."""
    m = len(subject.people)
    low, high = [], []
    for k in range(_BOX_PHASES):
        rows, phase = np.arange(m), np.full(m, k / _BOX_PHASES)
        time = duration * (k / (_BOX_PHASES - 1.0))
        box = scene.body_box(
            subject.joints(rows, phase, subject.head(rows, time)), replace(still, yaw=way.yaw(rows, time))
        )
        low.append(box[:, :2])
        high.append(box[:, 2:])
    return np.concatenate([np.min(low, axis=0), np.max(high, axis=0)], axis=1)


def _window(
    config: SynthPedConfig, draws: Draws, moment: Draws, space: Floats, row: Ints, time: Floats, duration: Floats
) -> Frame:
    """Where a detector's box lies: around the body's space, with an error that drifts and one that jumps."""
    height, width = config.size
    sy = height * draws.uniform("fill", 0.86, 0.97) / (space[:, 3] - space[:, 1])
    sx = np.minimum(sy * draws.uniform("stretch", 0.95, 1.32), 1.0 * width / np.maximum(space[:, 2] - space[:, 0], 0.1))
    centre = 0.5 * (space[:, :2] + space[:, 2:])
    scale = np.stack([sx, sy], axis=1)[row]
    jitter = config.jitter
    shift = []
    for axis, share in (("x", 1.0), ("y", 0.6)):
        wave = draws.uniform("drift phase " + axis)[row] + draws.uniform("drift rate " + axis, 0.2, 0.6)[row] * time
        drift = draws.normal("drift " + axis, 0.0, jitter)[row] * np.sin(2.0 * np.pi * wave)
        shift.append(share * (drift + moment.normal("jitter " + axis, 0.0, 0.25 * jitter)))
    zoom = moment.normal("zoom", 1.0, 0.3 * jitter)
    scale = scale * zoom[:, None]
    middle = np.asarray([0.5 * width, 0.5 * height])
    return Frame(origin=middle - scale * (centre[row] + np.stack(shift, axis=1)), scale=scale)


def _scroll(place: NDArray[np.float32], right: Floats, down: Floats, feet: Floats, width: int) -> None:
    """Moves a scenery by pixels of the ground at the feet; what leaves the crop far on one side returns on the other.

    Args:
        place: Primitives (n, count, fields), changed in place.
        right: (n,) pixels to the right.
        down: (n,) pixels down.
        feet: (n,) row of the feet.
        width: Of the crop.
    """
    f = FIELD
    wall = np.round(_WALL_PARALLAX * right * 1024.0)[:, None] / 1024.0
    shape = place[..., f["shape"]]
    # Lines that span the crop, such as kerbs, go along themselves.
    thing = (shape == layout.SHAPE_SWEEP) & (np.abs(place[..., f["axis_x"]]) * place[..., f["length"]] < 0.9 * width)
    x = place[..., f["start_x"]] + wall
    place[..., f["start_x"]] = np.where(thing, np.mod(x + width, 3.0 * width) - width, place[..., f["start_x"]])
    plane = shape == layout.SHAPE_PLANE
    edge = plane & (np.abs(place[..., f["axis_y"]]) < 0.9) & (np.abs(place[..., f["axis_x"]]) > 0.0)
    place[..., f["start_x"]] += np.where(edge, wall, 0.0)
    recede = plane & (place[..., f["width1"]] != 0.0)
    place[..., f["centre0"]] += np.where(plane & ~recede, wall, 0.0)
    # A receding ground: the same way on the ground is fewer pixels the farther it is.
    depth = 1.0 / np.maximum(feet[:, None] - place[..., f["width0"]], place[..., f["width2"]])
    u = -right[:, None] * place[..., f["centre1"]] * depth
    v = down[:, None] * place[..., f["width1"]] * depth * depth
    place[..., f["u0"]] += np.where(recede, np.round(u * 1024.0) / 1024.0, 0.0)
    place[..., f["v0"]] += np.where(recede, np.round(v * 1024.0) / 1024.0, 0.0)


class _Traffic:
    """What else is on the way of m tracklets, in their n frames."""

    def __init__(
        self,
        config: SynthPedConfig,
        draws: Draws,
        way: _Way,
        still: View,
        light: Light,
        window: Frame,
        row: Ints,
        time: Floats,
        duration: Floats,
        space: Floats,
    ) -> None:
        self.config, self.draws = config, draws
        self.still, self.light, self.window = still, light, window
        self.row, self.time, self.duration, self.space = row, time, duration, space
        self.across = way.across(duration)

    def behind(self) -> list[tuple[NDArray[np.float32], Ints | None]]:
        """People who walk in the background of some tracklets."""
        draws = self.draws.fork("far")
        rows = np.flatnonzero(draws.chance("passer-by", 0.25)[self.row])
        if len(rows) == 0:
            return []
        height, width = self.config.size
        at = self.row[rows]
        size = draws.uniform("far scale", 0.3, 0.8)
        stroll, yaw, speed = self._stranger(draws, None)
        scale = self.window.scale[rows] * size[at][:, None]
        x = (
            draws.uniform("far x", 0.0, 1.0)[at] * width
            + (speed - self.across)[at] * self._from_middle(rows) * (scale[:, 0])
        )
        y = draws.uniform("far y", 0.2, 0.55)[at] * height
        frame = Frame(np.stack([x, y], axis=1), scale)
        return [(self._paint(stroll, draws, rows, yaw, frame, layout.LAYER_SCENE, layout.NO_LABEL), rows)]

    def before(self) -> tuple[Ints, list[tuple[NDArray[np.float32], Ints | None]]]:
        """(m,) what passes before the person, -1 for nothing, and its primitives."""
        c, draws = self.config, self.draws.fork("near")
        height, width = c.size
        kind = np.where(draws.chance("occluded", c.video_occluded), draws.choice("occluder", _PASSING), -1)
        nearness = draws.uniform("nearness", 1.05, 1.4)
        stands = (kind >= 0) & (kind != occluders.PEDESTRIAN)
        kind = np.where(stands & (np.abs(self.across) * nearness < _SLOW), occluders.PEDESTRIAN, kind)
        stroll, yaw, speed = self._stranger(draws, self.across)
        walks = kind == occluders.PEDESTRIAN
        relative = (np.where(walks, speed, 0.0) - self.across) * nearness
        meeting = draws.uniform("meeting", 0.15, 0.85) * self.duration
        share = draws.uniform("occluder size", *c.occlusion)
        shift = relative[self.row] * (self.time - meeting[self.row])
        groups: list[tuple[NDArray[np.float32], Ints | None]] = []
        body_box = self.window.pixels(self.space[self.row].reshape(-1, 2, 2)).reshape(-1, 4)
        shifted = body_box + (shift * self.window.scale[:, 0])[:, None] * np.asarray([1.0, 0.0, 1.0, 0.0])
        rows = np.flatnonzero((kind >= 0)[self.row] & ~walks[self.row])
        if len(rows):
            at = self.row[rows]
            groups.append(
                (
                    occluders.paint(
                        kind[at], share[at], shifted[rows], draws.at(at), self.light.take(at), height, width
                    ),
                    rows,
                )
            )
        rows = np.flatnonzero(walks[self.row])
        if len(rows):
            at = self.row[rows]
            scale = self.window.scale[rows] * draws.uniform("near scale", 0.95, 1.2)[at][:, None]
            x = 0.5 * (shifted[rows, 0] + shifted[rows, 2])
            y = 0.5 * (shifted[rows, 1] + shifted[rows, 3]) + draws.uniform("near y", 0.02, 0.18)[at] * height
            frame = Frame(np.stack([x, y], axis=1), scale)
            painted = self._paint(stroll, draws, rows, yaw, frame, layout.LAYER_OCCLUDER, layout.OCCLUDER)
            groups.append((painted, rows))
        return kind, groups

    def _from_middle(self, rows: Ints) -> Floats:
        return self.time[rows] - 0.5 * self.duration[self.row[rows]]

    def _stranger(self, draws: Draws, across: Floats | None) -> tuple[Stroll, Floats, Floats]:
        """(m,) others who walk, from which side they are seen, and how fast they go to the right.

        Whoever would go along before the person for long, whose speed ``across`` is, comes from the other side instead.
        """
        index = _PASSERS_BY + draws.integer("stranger", 1_000_000_000)
        people, style = gait.walkers(self.config.seed, index, index, 1)
        stroll = Stroll.sample(people, style, draws)
        right = draws.chance("to the right", 0.5)
        slant = draws.uniform("slant", 50.0, 90.0)
        speed = stroll.speed * np.sin(slant * DEGREE)
        if across is not None:
            right = right ^ (np.abs(np.where(right, speed, -speed) - across) < 2.0 * _SLOW)
        away = draws.chance("away", 0.5)
        yaw = np.where(away, 180.0 - slant, slant)
        return stroll, np.where(right, yaw, -yaw), np.where(right, speed, -speed)

    def _paint(
        self, stroll: Stroll, draws: Draws, rows: Ints, yaw: Floats, frame: Frame, layer: int, label: int
    ) -> NDArray[np.float32]:
        at, time = self.row[rows], self.time[rows]
        head = stroll.head(at, time)
        joints = stroll.joints(at, stroll.phase(at, time), head)
        view = replace(_take(self.still, at), yaw=yaw[at])
        return body.paint(
            stroll.people.take(at), joints, head[0], view, frame, self.light.take(at), draws.at(at), layer=layer,
            label=label, nested=True,
        )  # fmt: skip
