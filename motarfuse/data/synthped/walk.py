"""The walking cycle: 3D joints from the phase, with feet that stay where they are set down.

A foot's way is given first: on the ground it moves back in the body's frame exactly as fast as the body goes forward,
rolls over the heel and then over the toes, and swings to the next step. The pelvis goes up and down as far as the legs
reach, and hips and ankles give the knees.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped.draws import Floats
from motarfuse.data.synthped.gait import WalkStyle
from motarfuse.data.synthped.identity import Identities
from motarfuse.data.synthped.pose import ANKLE, DEGREE, FOOT, SHIN, THIGH, Arm, Hand, turn, upper_body, vector

_HEEL, _SOLE = 0.30 * FOOT, 0.8 * ANKLE  # of the ankle: behind it, below it
_STRIKE, _PUSH = 18.0, 46.0  # degrees: toes up when the heel is set down, heel up when the toes leave
_FLAT_FROM, _FLAT_TO = 0.15, 0.50  # of the stance: the whole sole is on the ground
_MIDDLE = 0.26  # phase at which the left leg stands upright
_STRAIGHT = 0.994  # the longest leg, of thigh and shin
_SAMPLES = 32  # phases at which the reach of the legs is asked for


def _stance(phase: Floats, style: WalkStyle, ahead: Floats) -> tuple[Floats, Floats, Floats]:
    """Ankle's z and y and the foot's pitch in degrees, of a foot on the ground at phase 0 .. stance."""
    part = phase / style.stance
    strike = np.maximum(1.0 - part / _FLAT_FROM, 0.0)
    push = np.maximum((part - _FLAT_TO) / (1.0 - _FLAT_TO), 0.0)
    pitch = _STRIKE * strike * strike - _PUSH * push * push
    c, s = np.cos(pitch * DEGREE), np.sin(pitch * DEGREE)
    # Over the heel with the toes up, over the toes with the heel up.
    pivot = np.where(pitch > 0.0, -_HEEL, FOOT)
    z = ahead - style.stride * phase + pivot * (1.0 - c) - _SOLE * s
    y = _SOLE * c - pivot * s
    return z, y, pitch


def _foot(phase: Floats, style: WalkStyle, ahead: Floats) -> tuple[Floats, Floats, Floats]:
    """Ankle's z and y and the foot's pitch at any phase in [0, 1); the heel is set down at 0."""
    stance = style.stance
    step = 1e-3
    ground = _stance(np.minimum(phase, stance), style, ahead)
    leave, before = _stance(stance, style, ahead), _stance(stance - step, style, ahead)
    land, after = (
        _stance(np.zeros_like(phase), style, ahead),
        _stance(np.full_like(phase, step), style, ahead),
    )
    b = np.clip((phase - stance) / (1.0 - stance), 0.0, 1.0)
    swing = []
    for k, damping in enumerate((1.0, 0.5, 0.35)):
        slope0 = (leave[k] - before[k]) / step * (1.0 - stance) * damping
        slope1 = (after[k] - land[k]) / step * (1.0 - stance) * damping
        swing.append(
            (1.0 + 2.0 * b) * (1.0 - b) ** 2 * leave[k]
            + b * (1.0 - b) ** 2 * slope0
            + b * b * (3.0 - 2.0 * b) * land[k]
            + b * b * (b - 1.0) * slope1
        )
    z, y, pitch = swing
    y = y + style.clearance * np.sin(np.pi * b) ** 2
    down = phase < stance
    return (
        np.where(down, ground[0], z),
        np.where(down, ground[1], y),
        np.where(down, ground[2], pitch),
    )


def _legs(
    people: Identities, style: WalkStyle, phase: Floats
) -> dict[str, tuple[float, Floats, tuple[Floats, Floats, Floats]]]:
    """Side, hip relative to the pelvis' resting place, and the foot, of both legs."""
    n = len(people)
    twist = style.twist * np.cos(2.0 * np.pi * phase)
    sway = style.sway * np.cos(2.0 * np.pi * (phase - _MIDDLE))
    legs = {}
    for side, name in ((1.0, "left"), (-1.0, "right")):
        own = phase if side > 0 else phase + 0.5 + style.limp
        # Half a step in front, less what the roll over the toes adds behind.
        ahead = 0.25 * style.stride - 0.010 + side * style.asymmetry
        hip = turn(vector(side * people.hip, 0.0, 0.0, n), -twist) + vector(sway, 0.0, 0.0, n)
        legs[name] = (side, hip, _foot(own - np.floor(own), style, ahead))
    return legs


def _bounce(style: WalkStyle, phase: Floats) -> Floats:
    return 0.5 * style.bounce * np.cos(4.0 * np.pi * (phase - _MIDDLE))


def pelvis_height(people: Identities, style: WalkStyle) -> Floats:
    """(n,) mean height of the pelvis: as high as the legs reach over the whole cycle."""
    height = np.full(len(people), np.inf)
    reach = _STRAIGHT * (THIGH + SHIN) * people.leg
    for k in range(_SAMPLES):
        phase = np.full(len(people), k / _SAMPLES)
        for side, hip, (z, y, _) in _legs(people, style, phase).values():
            flat = (hip[:, 2] - z) ** 2 + (hip[:, 0] - side * style.foot_width) ** 2
            height = np.minimum(height, y + np.sqrt(reach * reach - flat) - _bounce(style, phase))
    return height


def joints(
    people: Identities,
    style: WalkStyle,
    phase: Floats,
    height: Floats,
    hands: tuple[Hand, Hand],
    head_yaw: Floats,
    head_pitch: Floats,
) -> dict[str, Floats]:
    """3D joints of n walking bodies, (n, 3) each in heights: x to the person's left, y up from the ground, z forward.

    The frame goes with the body: z of a foot on the ground falls by ``style.stride`` a cycle.

    Args:
        people: Who walk, as of `gait.walkers`.
        style: How.
        phase: Cycles; the left heel is set down at whole numbers.
        height: As of `pelvis_height`.
        hands: What left and right hands do.
        head_yaw: Degrees relative to the body.
        head_pitch: Degrees downwards.
    """
    n = len(people)
    phase = phase - np.floor(phase)
    j: dict[str, Floats] = {}
    sway = style.sway * np.cos(2.0 * np.pi * (phase - _MIDDLE))
    up = height + _bounce(style, phase)
    j["pelvis"] = vector(sway, up, 0.0, n)
    for name, (side, hip, (z, y, pitch)) in _legs(people, style, phase).items():
        hip = hip + vector(0.0, up, 0.0, n)
        ankle = vector(side * style.foot_width, y, z, n)
        j[name + "_hip"], j[name + "_knee"] = hip, _knee(hip, ankle, people.leg, side * style.toe_out)
        angle = pitch * DEGREE
        foot = turn(vector(0.0, np.sin(angle), np.cos(angle), n), side * style.toe_out)
        down = turn(vector(0.0, -np.cos(angle), np.sin(angle), n), side * style.toe_out)
        j[name + "_ankle"] = ankle
        j[name + "_heel"], j[name + "_toe"] = ankle + _SOLE * down - _HEEL * foot, ankle + _SOLE * down + FOOT * foot
    # An arm is behind while its leg is in front.
    left, right = (
        Arm(
            forward=-np.cos(2.0 * np.pi * (phase - 0.03 + shift)),
            swing=swing * np.where(hand.busy, 0.2, 1.0),
            lift=hand.lift + 0.2 * swing * ~hand.busy,
            elbow=hand.elbow,
        )
        for shift, swing, hand in ((0.0, style.swing_left, hands[0]), (0.5, style.swing_right, hands[1]))
    )
    twist = style.twist * np.cos(2.0 * np.pi * phase)
    upper_body(j, people, -0.4 * sway, twist, head_yaw, head_pitch, (left, right))
    return j


def _knee(hip: Floats, ankle: Floats, leg: Floats, toe_out: Floats) -> Floats:
    """Where thigh and shin meet, in front of the line from the hip to the ankle."""
    thigh, shin = THIGH * leg, SHIN * leg
    line = ankle - hip
    distance = np.sqrt((line * line).sum(axis=1))
    along = (thigh * thigh - shin * shin + distance * distance) / (2.0 * distance)
    out = np.sqrt(np.maximum(thigh * thigh - along * along, 0.0))
    line = line / distance[:, None]
    front = turn(vector(0.0, 0.0, 1.0, len(leg)), 0.5 * toe_out)
    front = front - (front * line).sum(axis=1, keepdims=True) * line
    front = front / np.sqrt((front * front).sum(axis=1, keepdims=True))
    return hip + along[:, None] * line + out[:, None] * front


def on_ground(style: WalkStyle, phase: Floats) -> Mapping[str, NDArray[np.bool_]]:
    """(n,) for ``left`` and ``right``: whether the foot is on the ground."""
    own = {"left": phase, "right": phase + 0.5 + style.limp}
    return {name: value - np.floor(value) < style.stance for name, value in own.items()}
