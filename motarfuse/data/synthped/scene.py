"""From identities and cameras to scenes: everything the rasteriser needs, for many images at once."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped import body, camera, layout, occluders, pose, scenery
from motarfuse.data.synthped.config import SynthPedConfig
from motarfuse.data.synthped.draws import Draws, Floats, keys
from motarfuse.data.synthped.identity import Identities, identities
from motarfuse.data.synthped.limbs import Frame
from motarfuse.data.synthped.primitives import Light, pack

Ints = NDArray[np.int64]

FULL, OCCLUDED, PARTIAL = 0, 1, 2

# Identities that are nobody to be found: distractors of the gallery, and people who are scenery or occluders.
DISTRACTORS = 1_000_000
PASSERS_BY = 100_000_000


@dataclass(frozen=True)
class Shots:
    """Which images to draw: one row an image."""

    identity: Ints  # index of the person
    camera: Ints  # 0-based
    key: Ints  # number of the image, unique within a seed
    kind: Ints  # FULL, OCCLUDED or PARTIAL

    def __len__(self) -> int:
        return len(self.identity)

    def take(self, rows: Ints | slice) -> Shots:
        """Some of the rows."""
        return Shots(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class Scenes:
    """n scenes as the rasteriser takes them."""

    primitives: NDArray[np.float32]
    boxes: NDArray[np.int32]
    optics: camera.Optics


@dataclass(frozen=True)
class Prepared:
    """n scenes without what hides the person; `scenes` adds that, in any size."""

    config: SynthPedConfig
    shots: Shots
    draws: Draws
    light: Light
    view: pose.View
    frame: Frame
    optics: camera.Optics
    primitives: NDArray[np.float32]
    boxes: NDArray[np.int32]
    person: Floats  # (n, 4) the person's box, pixels
    keypoints: NDArray[np.float32]  # (n, 17, 2) pixels, x first
    facing: NDArray[np.bool_]  # (n, 17) not turned away from the camera
    in_frame: NDArray[np.float32]  # (n,) share of the person's box inside the crop
    occluder: Ints  # (n,) index into OCCLUDERS, -1 for none
    asked: Floats  # (n,) share of the person that the occluder was to hide

    def scenes(self, rows: Ints, size: Floats) -> Scenes:
        """The scenes of the given rows, which may repeat.

        Args:
            rows: (m,) which.
            size: (m,) factors on their occluders' drawn sizes.
        """
        height, width = self.config.size
        kind, share = self.occluder[rows], self.asked[rows] * size
        groups: list[tuple[NDArray[np.float32], Ints | None]] = []
        hidden = np.flatnonzero(kind >= 0)
        if len(hidden):
            at = rows[hidden]
            things = occluders.paint(
                kind[hidden], share[hidden], self.person[at], self.draws.at(at), self.light.take(at), height, width
            )
            groups.append((things, hidden))
        near = np.flatnonzero(kind == occluders.PEDESTRIAN)
        if len(near):
            at = rows[near]
            person = _passer_by(
                self.config,
                self.draws.at(at).fork("near"),
                self.shots.key[at] + 1_000_000_000,
                self.frame,
                self.light,
                self.view,
                at,
                (share[near], self.person[at]),
            )
            groups.append((person, near))
        primitives, boxes = pack(groups, len(rows), height, width)
        return Scenes(
            primitives=np.concatenate([self.primitives[rows], primitives], axis=1),
            boxes=np.concatenate([self.boxes[rows], boxes], axis=1),
            optics=self.optics.take(rows),
        )


def prepare(config: SynthPedConfig, shots: Shots) -> Prepared:
    """Draws everything random about the images and lays the scenes out.

    Args:
        config: The benchmark.
        shots: The images.
    """
    n = len(shots)
    height, width = config.size
    draws = Draws(keys(config.seed, "image", shots.key))
    people = identities(config.seed, shots.identity, config.confusers)
    style = camera.Style(config.seed, shots.camera, draws, config.camera_variety, config.camera_strength)
    view = camera.view(style)
    gait = pose.sample_gait(people, draws)
    joints = pose.joints(people, gait)
    frame, in_frame = _frame(config, shots, draws, people, joints, view)
    light = camera.light(style)
    painted = body.paint(people, joints, gait.head_yaw, view, frame, light, draws)

    ground, _ = view.project(
        np.stack([0.5 * (joints[s + "_heel"] + joints[s + "_toe"]) for s in ("left", "right")], axis=1)
    )
    feet = frame.pixels(ground)
    shade = scenery.shadow(style, feet, frame.scale, style.uniform("shadow", 0.1, 0.75))
    groups: list[tuple[NDArray[np.float32], Ints | None]] = [
        (scenery.paint(style, height, width, view.elevation), None)
    ]
    far = np.flatnonzero(draws.chance("passer-by", 0.12))
    if len(far):
        groups.append(
            (_passer_by(config, draws.at(far).fork("far"), shots.key[far], frame, light, view, far, None), far)
        )
    groups += [(shade, None), (painted, None)]
    primitives, boxes = pack(groups, n, height, width)

    plane, depth = view.project(np.stack([joints[name] for name in layout.KEYPOINTS], axis=1))
    return Prepared(
        config=config,
        shots=shots,
        draws=draws,
        light=light,
        view=view,
        frame=frame,
        optics=camera.optics(style, height, width),
        primitives=primitives,
        boxes=boxes,
        person=frame.pixels(body_box(joints, view).reshape(n, 2, 2)).reshape(n, 4),
        keypoints=np.round(frame.pixels(plane) * 64.0).astype(np.float32) * np.float32(1.0 / 64.0),
        facing=facing(joints, view, depth),
        in_frame=in_frame.astype(np.float32),
        occluder=np.where(shots.kind == OCCLUDED, draws.choice("occluder", occluders.WEIGHTS), -1),
        asked=draws.uniform("occluder size", *config.occlusion),
    )


def body_box(joints: dict[str, Floats], view: pose.View) -> Floats:
    """(n, 4) the body's box on the image plane, with the flesh around the joints."""
    names = [name for name in joints if name not in ("pelvis", "waist", "chest", "neck")]
    plane, _ = view.project(np.stack([joints[name] for name in names], axis=1))
    low, high = plane.min(axis=1), plane.max(axis=1)
    return np.concatenate([low - np.asarray([0.03, 0.015]), high + np.asarray([0.03, 0.012])], axis=1)


def _frame(
    config: SynthPedConfig, shots: Shots, draws: Draws, people: Identities, joints: dict[str, Floats], view: pose.View
) -> tuple[Frame, Floats]:
    """Where the crop's window lies: tight around the body with some inaccuracy, or around a part of it."""
    height, width = config.size
    box = body_box(joints, view)
    wide, tall = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    partial = shots.kind == PARTIAL
    keep = draws.uniform("kept", *config.partial)
    # Legs cut off, head cut off, or one side cut off.
    cut = draws.choice("cut", (60, 15, 25))
    left = draws.chance("cut left", 0.5)
    top = np.where(partial & (cut == 1), 1.0 - keep, 0.0)
    bottom = np.where(partial & (cut == 0), keep, 1.0)
    sided = partial & (cut == 2)
    window_left = np.where(sided & left, 1.0 - keep, 0.0)
    window_right = np.where(sided & ~left, keep, 1.0)
    x0, x1 = box[:, 0] + window_left * wide, box[:, 0] + window_right * wide
    y0, y1 = box[:, 1] + top * tall, box[:, 1] + bottom * tall

    fill = draws.uniform("fill", 0.88, 1.0)
    sy = height * fill / (y1 - y0)
    stretch = draws.uniform("stretch", 0.95, 1.32)
    sx = sy * stretch
    # A detector's box is as wide as the stride; a crop is squeezed into its fixed shape.
    sx = np.minimum(sx, 1.02 * width / np.maximum(x1 - x0, 0.1))
    sx = np.where(partial, np.clip(0.95 * width / np.maximum(x1 - x0, 0.1), 0.33 * sy, 1.6 * sy), sx)
    jitter = config.jitter * np.where(partial, 0.4, 1.0)
    centre_x = 0.5 * (x0 + x1) + draws.normal("jitter x", 0.0, jitter)
    centre_y = 0.5 * (y0 + y1) + draws.normal("jitter y", 0.0, 0.6 * jitter)
    # A cut must stay a cut: the window's own edge lies on the image's edge.
    edge_y = np.where(bottom < 1.0, height - sy * y1, np.where(top > 0.0, -sy * y0, 0.5 * height - sy * centre_y))
    edge_x = np.where(
        window_right < 1.0, width - sx * x1, np.where(window_left > 0.0, -sx * x0, 0.5 * width - sx * centre_x)
    )
    frame = Frame(origin=np.stack([edge_x, edge_y], axis=1), scale=np.stack([sx, sy], axis=1))
    return frame, share_inside(box, frame, height, width)


def share_inside(box: Floats, frame: Frame, height: int, width: int) -> Floats:
    """(n,) share of boxes (n, 4) of the image plane that lies inside the crop."""
    a, b = frame.pixels(box[:, :2]), frame.pixels(box[:, 2:])
    limit = np.asarray([width, height], dtype=np.float64)
    inside = np.maximum(np.minimum(b, limit) - np.maximum(a, 0.0), 0.0) / (b - a)
    return inside[:, 0] * inside[:, 1]


def _passer_by(
    config: SynthPedConfig,
    draws: Draws,
    key: Ints,
    frame: Frame,
    light: Light,
    view: pose.View,
    rows: Ints,
    before: tuple[Floats, Floats] | None,
) -> NDArray[np.float32]:
    """Another person, smaller behind the subject or in front of it; ``before`` is (share to hide, subject's box)."""
    height, width = config.size
    people = identities(config.seed, PASSERS_BY + key, 1)
    gait = pose.sample_gait(people, draws)
    joints = pose.joints(people, gait)
    seen = pose.View(
        view.yaw[rows] + draws.uniform("turn", -180.0, 180.0),
        view.elevation[rows],
        view.roll[rows],
        view.perspective[rows],
    )
    if before is None:
        scale = frame.scale[rows] * draws.uniform("far scale", 0.3, 0.85)[:, None]
        x = draws.uniform("far x", -0.1, 1.1) * width
        y = draws.uniform("far y", 0.2, 0.6) * height
    else:
        share, box = before
        scale = frame.scale[rows] * draws.uniform("near scale", 0.95, 1.25)[:, None]
        wide = box[:, 2] - box[:, 0]
        side = np.where(draws.chance("near side", 0.5), 1.0, -1.0)
        # The more it shall hide the nearer to the subject's middle it walks.
        x = 0.5 * (box[:, 0] + box[:, 2]) + side * np.maximum(0.60 - 0.95 * share, 0.0) * np.maximum(
            wide, 0.32 * scale[:, 0]
        )
        y = 0.5 * (box[:, 1] + box[:, 3]) + draws.uniform("near y", 0.02, 0.22) * (box[:, 3] - box[:, 1])
    other = Frame(origin=np.stack([x, y], axis=1), scale=scale)
    layer = layout.LAYER_SCENE if before is None else layout.LAYER_OCCLUDER
    label = layout.NO_LABEL if before is None else layout.OCCLUDER
    lamp = light.take(rows)
    return body.paint(people, joints, gait.head_yaw, seen, other, lamp, draws, layer=layer, label=label)


def facing(joints: dict[str, Floats], view: pose.View, depth: Floats) -> NDArray[np.bool_]:
    """Which keypoints lie on the near side of the body; limbs always do, they are judged by the pixels."""
    facing = np.ones(depth.shape, bool)
    _, head = view.project(0.5 * (joints["crown"] + joints["chin"]))
    _, neck = view.project(joints["neck"])
    _, pelvis = view.project(joints["pelvis"])
    for k, name in enumerate(layout.KEYPOINTS):
        if name in ("nose", "left_eye", "right_eye"):
            facing[:, k] = depth[:, k] > head + 0.004
        elif name.endswith("_ear"):
            facing[:, k] = depth[:, k] > head - 0.022
        elif name.endswith("_shoulder"):
            facing[:, k] = depth[:, k] > neck - 0.06
        elif name.endswith("_hip"):
            facing[:, k] = depth[:, k] > pelvis - 0.03
    return facing
