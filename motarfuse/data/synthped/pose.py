"""How a body stands or walks: 3D joints from the phase of the walking cycle, and their view from a camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped.draws import Draws, Floats
from motarfuse.data.synthped.identity import CARRIER, HANDBAG, SHOULDER_BAG, Identities

DEGREE = np.pi / 180.0


@dataclass(frozen=True)
class Gait:
    """The state of n bodies at one moment. A video advances ``phase`` and keeps the rest."""

    phase: Floats  # radians; the left leg swings forward at 0
    stride: Floats  # degrees of hip flexion
    swing: Floats  # degrees of shoulder flexion
    elbow_left: Floats  # degrees of elbow flexion
    elbow_right: Floats
    lift_left: Floats  # degrees of shoulder flexion beside the swing
    lift_right: Floats
    head_yaw: Floats  # degrees relative to the body
    head_pitch: Floats


def sample_gait(people: Identities, draws: Draws) -> Gait:
    """Walking (three of four) or standing, with what the hands do: swing, hold a telephone, hide in a pocket, carry."""
    n = len(people)
    walking = draws.chance("walking", 0.78)
    stride = np.where(walking, people.stride * draws.uniform("stride", 0.75, 1.2), draws.uniform("stand", 1.0, 7.0))
    swing = np.where(walking, people.swing * draws.uniform("swing", 0.7, 1.2), draws.uniform("arms still", 0.0, 5.0))
    left, right = hands(people, draws)
    return Gait(
        phase=draws.uniform("phase", 0.0, 2.0 * np.pi),
        stride=stride,
        swing=swing,
        elbow_left=left.elbow,
        elbow_right=right.elbow,
        lift_left=left.lift,
        lift_right=right.lift,
        head_yaw=draws.normal("head yaw", 0.0, 18.0) * np.ones(n),
        head_pitch=draws.normal("head pitch", 6.0, 8.0),
    )


@dataclass(frozen=True)
class Hand:
    """What n hands do."""

    elbow: Floats  # degrees of elbow flexion
    lift: Floats  # degrees of shoulder flexion beside the swing
    busy: NDArray[np.bool_]  # it holds something up or hides, so that its arm does not swing freely


def hands(
    people: Identities,
    draws: Draws,
    weights: tuple[float, float, float, float] = (74, 7, 11, 8),
    spread: tuple[float, float] = (0.6, 1.4),
) -> tuple[Hand, Hand]:
    """What the left and the right hands do.

    Args:
        people: Whose hands.
        draws: Draws of the images.
        weights: How common a free hand is, one with a telephone, in a pocket, at the strap or with a cup in front.
        spread: How far an elbow bends, relative to the person's habit.
    """
    result = []
    for side, name in ((1.0, "left"), (-1.0, "right")):
        hand = draws.choice("hand " + name, weights)
        carries = ((people.bag == HANDBAG) | (people.bag == CARRIER)) & (people.bag_side == side)
        hand = np.where(carries, 0, hand)
        bent = draws.uniform("elbow " + name, *spread)
        elbow = np.select(
            [hand == 1, hand == 2, hand == 3],
            [125.0 + 15.0 * bent, 48.0, 95.0 + 20.0 * bent],
            people.elbow * bent,
        )
        lift = np.select([hand == 1, hand == 2, hand == 3], [25.0 * bent, -18.0, 12.0 * bent], 0.0)
        hooked = carries & (people.bag == HANDBAG) & (people.bag_size < 0.5)
        result.append(
            Hand(
                elbow=np.where(hooked, 80.0, np.where(carries, 8.0, elbow)),
                lift=np.where(carries & (people.bag == SHOULDER_BAG), 0.0, lift),
                busy=(hand > 0) | hooked,
            )
        )
    return result[0], result[1]


def direction(flexion: Floats, abduction: Floats) -> Floats:
    """Unit vector of a limb that hangs at 0; flexion turns it forward, abduction to the person's left (degrees)."""
    f, a = flexion * DEGREE, abduction * DEGREE
    return np.stack([np.sin(a), -np.cos(a) * np.cos(f), np.cos(a) * np.sin(f)], axis=1)


def turn(points: Floats, angle: Floats) -> Floats:
    """Rotation about the vertical, (n, ..., 3) by (n,) degrees; positive turns the front to the person's left."""
    c, s = np.cos(angle * DEGREE), np.sin(angle * DEGREE)
    shape = (len(angle),) + (1,) * (points.ndim - 2)
    c, s = c.reshape(shape), s.reshape(shape)
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    return np.stack([x * c + z * s, y, -x * s + z * c], axis=-1)


def vector(x: Floats | float, y: Floats | float, z: Floats | float, n: int) -> Floats:
    return np.stack([np.broadcast_to(np.asarray(value, dtype=np.float64), (n,)) for value in (x, y, z)], axis=1)


# Lengths in heights of the body (Drillis and Contini 1966, rounded).
THIGH, SHIN, ANKLE, FOOT = 0.245, 0.235, 0.04, 0.115
TRUNK, NECK, HEAD = 0.285, 0.038, 0.136
UPPER_ARM, LOWER_ARM, HAND = 0.172, 0.15, 0.06


@dataclass(frozen=True)
class Arm:
    """How n arms hang at one moment."""

    forward: Floats  # where in the swing: -1 behind, 1 in front
    swing: Floats  # degrees of shoulder flexion
    lift: Floats
    elbow: Floats


def upper_body(
    j: dict[str, Floats],
    people: Identities,
    tilt: Floats,
    twist: Floats,
    head_yaw: Floats,
    head_pitch: Floats,
    arms: tuple[Arm, Arm],
) -> None:
    """Adds trunk, head and arms to a skeleton that has its pelvis.

    Args:
        j: Joints, (n, 3) each.
        people: Whose.
        tilt: Of the trunk to the person's left, as a share of its length.
        twist: Degrees by which the left hip is in front; the shoulders turn against it.
        head_yaw: Degrees relative to the body.
        head_pitch: Degrees downwards.
        arms: The left and the right.
    """
    n = len(people)
    pelvis = j["pelvis"]
    lean = people.lean * DEGREE
    up = vector(tilt, np.cos(lean), np.sin(lean), n)
    trunk = (TRUNK * (2.0 - people.leg))[:, None]
    j["waist"] = pelvis + 0.35 * trunk * up
    j["chest"] = pelvis + 0.82 * trunk * up
    j["neck"] = pelvis + trunk * up
    pitch = head_pitch * DEGREE
    head_up = turn(vector(0.0, np.cos(pitch), np.sin(pitch), n), head_yaw)
    j["chin"] = j["neck"] + NECK * 0.62 * head_up + vector(0.0, 0.0, 0.008, n)
    head = (HEAD * people.head)[:, None]
    j["crown"] = j["chin"] + head * head_up
    forward = turn(vector(0.0, -np.sin(pitch), np.cos(pitch), n), head_yaw)
    across = turn(vector(1.0, 0.0, 0.0, n), head_yaw)
    scale = people.head[:, None]
    j["nose"] = j["chin"] + 0.36 * head * head_up + 0.055 * scale * forward
    for side, name, arm in ((1.0, "left", arms[0]), (-1.0, "right", arms[1])):
        j[name + "_eye"] = j["chin"] + 0.48 * head * head_up + scale * (0.046 * forward + side * 0.018 * across)
        j[name + "_ear"] = j["chin"] + 0.42 * head * head_up + scale * (-0.004 * forward + side * 0.043 * across)
        shoulder = j["neck"] - 0.030 * up + turn(vector(side * people.shoulder, 0.0, 0.0, n), 0.7 * twist)
        flexion = arm.swing * arm.forward + arm.lift + people.lean
        upper = turn(direction(flexion, side * people.arm_out), 0.7 * twist)
        bend = arm.elbow + 0.5 * arm.swing * np.maximum(arm.forward, 0.0)
        inward = -side * np.clip(0.16 * bend, 0.0, 22.0)
        lower = turn(direction(flexion + bend, 0.4 * side * people.arm_out + inward), 0.7 * twist)
        elbow = shoulder + (UPPER_ARM * people.arm)[:, None] * upper
        wrist = elbow + (LOWER_ARM * people.arm)[:, None] * lower
        j[name + "_shoulder"], j[name + "_elbow"], j[name + "_wrist"] = shoulder, elbow, wrist
        j[name + "_hand"] = wrist + HAND * turn(
            direction(flexion + bend * 0.9, 0.3 * side * people.arm_out + inward), 0.7 * twist
        )


def joints(people: Identities, gait: Gait) -> dict[str, Floats]:
    """3D joints of n bodies, (n, 3) each in heights of the body: x to the person's left, y up, z forward."""
    n = len(people)
    zero = np.zeros(n)
    j: dict[str, Floats] = {}
    sway = np.sin(gait.phase)
    twist = 0.28 * gait.stride * sway
    pelvis = np.zeros((n, 3))
    j["pelvis"] = pelvis
    lowest = []
    for side, name, shift in ((1.0, "left", 0.0), (-1.0, "right", np.pi)):
        phase = gait.phase + shift
        hip = turn(vector(side * people.hip, 0.0, 0.0, n), -twist)
        flexion = gait.stride * np.sin(phase) + 0.12 * gait.stride
        swinging = np.maximum(np.cos(phase), 0.0)
        knee_angle = (
            4.0
            + people.knee * (gait.stride / 25.0) * swinging * swinging
            + 0.25 * gait.stride * np.maximum(-np.cos(phase), 0.0)
        )
        spread = side * np.full(n, 2.0)
        thigh = direction(flexion, spread)
        shin = direction(flexion - knee_angle, 0.4 * spread)
        knee = hip + (THIGH * people.leg)[:, None] * thigh
        ankle = knee + (SHIN * people.leg)[:, None] * shin
        pitch = np.clip(0.75 * (flexion - knee_angle), -55.0, 18.0) * DEGREE
        foot = turn(vector(0.0, np.sin(pitch), np.cos(pitch), n), side * people.toe_out)
        down = vector(0.0, -np.cos(pitch), np.sin(pitch), n)
        heel = ankle + ANKLE * 0.8 * down - 0.30 * FOOT * foot
        toe = ankle + ANKLE * 0.8 * down + FOOT * foot
        j[name + "_hip"], j[name + "_knee"], j[name + "_ankle"] = hip, knee, ankle
        j[name + "_heel"], j[name + "_toe"] = heel, toe
        lowest.append(np.minimum(heel[:, 1], toe[:, 1]))
    arms = [
        Arm(-np.sin(gait.phase + shift), gait.swing, lift, bend)
        for shift, lift, bend in (
            (0.0, gait.lift_left, gait.elbow_left),
            (np.pi, gait.lift_right, gait.elbow_right),
        )
    ]
    upper_body(j, people, 0.015 * sway, twist, gait.head_yaw, gait.head_pitch, (arms[0], arms[1]))
    ground = np.minimum(lowest[0], lowest[1])
    offset = np.stack([zero, -ground, zero], axis=1)
    return {name: value + offset for name, value in j.items()}


@dataclass(frozen=True)
class View:
    """Where n cameras stand: yaw 0 sees the front, 90 a body that walks to the right, 180 the back (degrees)."""

    yaw: Floats
    elevation: Floats
    roll: Floats
    perspective: Floats  # how much a point one height nearer is enlarged

    def project(self, points: Floats) -> tuple[Floats, Floats]:
        """(n, 3) or (n, k, 3) points -> image plane (..., 2), x right and y down, and depth (...), larger is nearer."""
        extra = (1,) * (points.ndim - 2)
        yaw, elevation, roll = (angle.reshape(-1, *extra) * DEGREE for angle in (self.yaw, self.elevation, self.roll))
        x, y, z = points[..., 0], points[..., 1] - 0.5, points[..., 2]
        right = x * np.cos(yaw) + z * np.sin(yaw)
        near = -x * np.sin(yaw) + z * np.cos(yaw)
        up = y * np.cos(elevation) - near * np.sin(elevation)
        depth = near * np.cos(elevation) + y * np.sin(elevation)
        scale = 1.0 / (1.0 - self.perspective.reshape(-1, *extra) * depth)
        right, up = right * scale, up * scale
        c, s = np.cos(roll), np.sin(roll)
        return np.stack([right * c - up * s, -(right * s + up * c)], axis=-1), depth
