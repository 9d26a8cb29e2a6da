"""Limbs: sweeps between the 3D joints of a body, projected and scaled to pixels all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped import layout
from motarfuse.data.synthped.draws import Draws, Floats
from motarfuse.data.synthped.identity import Identities
from motarfuse.data.synthped.layout import FIELD, PART
from motarfuse.data.synthped.pose import DEGREE, View
from motarfuse.data.synthped.primitives import Colour, Light, Primitives, Value

CAPACITY = 64

# Half limbs that meet at a joint do not darken each other there.
FADES = {"": 0.0, "start": 1.0, "end": -1.0}
_FADE = 45.0  # per height of the body


@dataclass(frozen=True)
class Frame:
    """Image plane -> pixels: pixel = origin + scale * point, n of each."""

    origin: Floats  # (n, 2)
    scale: Floats  # (n, 2) pixels per height of the body, across and down

    def pixels(self, points: Floats) -> Floats:
        """(n, 2) or (n, k, 2) points of the image plane in pixels."""
        extra = (1,) * (points.ndim - 2)
        return self.origin.reshape(-1, *extra, 2) + self.scale.reshape(-1, *extra, 2) * points


class Limbs:
    """Sweeps hung on the joints of n people; labels are the parts', or one fixed label for people who are scenery."""

    def __init__(
        self,
        people: Identities,
        joints: dict[str, Floats],
        head_yaw: Floats,
        view: View,
        frame: Frame,
        light: Light,
        draws: Draws,
        *,
        layer: int = layout.LAYER_SUBJECT,
        label: int | None = None,
        nested: bool = False,
    ) -> None:
        self.nested = nested
        self.people, self.joints, self.view, self.frame, self.light = people, joints, view, frame, light
        self.layer, self.label = layer, label
        self.out = Primitives(len(people), CAPACITY)
        self.cos, self.sin = np.cos(view.yaw * DEGREE), np.sin(view.yaw * DEGREE)
        self.head_cos, self.head_sin = np.cos((view.yaw + head_yaw) * DEGREE), np.sin((view.yaw + head_yaw) * DEGREE)
        self.u0 = -view.yaw / 90.0
        self.head_u0 = -(view.yaw + head_yaw) / 90.0
        noise = draws.uniform("cloth noise", 0.0, 256.0, columns=2)
        self.noise: tuple[Value, ...] = (noise[:, 0], noise[:, 1], 26.0, 150.0)
        self.contact = 0.34 if layer == layout.LAYER_SUBJECT else 0.0
        self.sx, self.sy = frame.scale[:, 0], frame.scale[:, 1]
        self.contact_reach = np.maximum(0.022 * self.sx, 1.0)
        self.ends = np.zeros((len(people), CAPACITY, 2, 3))
        self.fades = np.zeros(CAPACITY)

    def point(self, x: Value, y: Value, z: Value, base: str) -> Floats:
        """A point of the body's own axes relative to a joint, (n, 3)."""
        n = len(self.people)
        offset = np.stack([np.broadcast_to(np.asarray(value, np.float64), (n,)) for value in (x, y, z)], axis=1)
        return self.joints[base] + offset

    def limb(
        self,
        part: str,
        start: Floats,
        end: Floats,
        widths: Sequence[Value],
        colours: Sequence[Colour],
        *,
        bias: Value = 0.0,
        active: Value = True,
        centres: Sequence[Value] = (),
        cap: Value = 1.0,
        texture: Value = 0,
        t: Sequence[Value] = (),
        u0: Floats | None = None,
        unit_v: bool = False,
        wrinkle: Value = 0.0,
        opacity: Value = 1.0,
        contact: float = 1.0,
        fade: str = "",
    ) -> None:
        """A sweep between two 3D points; half widths and centres in heights of the body."""
        k = self.out.sweep(
            None,
            None,
            widths,
            colours,
            active=active,
            label=PART[part] if self.label is None else self.label,
            layer=self.layer,
            centres=centres,
            cap=cap,
            opacity=opacity,
            texture=texture,
            t=t,
            u0=self.u0 if u0 is None else u0,
            v_scale=1.0 if unit_v else 0.0,
            lit=True,
            wrinkle=wrinkle,
            noise=self.noise,
            contact=self.contact * contact,
            contact_reach=self.contact_reach,
            depth=bias,
        )
        self.fades[k] = FADES[fade]
        self.ends[:, k, 0] = start
        self.ends[:, k, 1] = end

    def below(self, start: Floats, end: Floats, around: tuple[Floats, Floats]) -> Value:
        """The bias that sorts a limb as deep as another one with other ends, which it lies in or hangs over.

        Still images do without: where a leg points at the camera its skin may show through their trousers and its
        thigh through their skirts, and the pixels of a seed stay what they are.
        """
        if not self.nested:
            return 0.0
        _, inner = self.view.project(0.5 * (start + end))
        _, outer = self.view.project(0.5 * (around[0] + around[1]))
        return outer - inner

    def finish(self) -> NDArray[np.float32]:
        """All limbs, far to near: (n, count, fields)."""
        self._place()
        return self.out.finish(self.light)

    def _place(self) -> None:
        """Projects all limbs at once: ends and half widths in pixels, depths, the scale of the texture."""
        f, out, count = FIELD, self.out, self.out.count
        plane, depth = self.view.project(self.ends[:, :count])
        axis = plane[:, :, 1] - plane[:, :, 0]
        length = np.maximum(np.sqrt((axis * axis).sum(axis=2)), 1e-4)
        # A limb's width is scaled as its direction is: across for upright ones, down for level ones.
        across = np.sqrt((self.sx[:, None] * axis[:, :, 1]) ** 2 + (self.sy[:, None] * axis[:, :, 0]) ** 2) / length
        pixels = self.frame.pixels(plane)
        pixel_axis = pixels[:, :, 1] - pixels[:, :, 0]
        pixel_length = np.maximum(np.sqrt((pixel_axis * pixel_axis).sum(axis=2)), 0.05)
        values = out.values[:, :count]
        stations = slice(f["width0"], f["width0"] + layout.STATIONS)
        values[stations] = np.maximum(values[stations] * across.T, 0.45)
        stations = slice(f["centre0"], f["centre0"] + layout.STATIONS)
        values[stations] *= across.T
        unit = values[f["v_scale"]] > 0.0
        values[f["v_scale"]] = np.where(unit, 1.0, length.T) / pixel_length.T
        fades = self.fades[:count, None]
        values[f["contact_gain"]] = _FADE * fades
        values[f["contact_bias"]] = np.select([fades > 0.0, fades < 0.0], [-1.0, _FADE * length.T - 1.0], 1.0)
        values[f["start_x"] : f["start_y"] + 1] = pixels[:, :, 0].transpose(2, 1, 0)
        out.end[:, :count] = pixels[:, :, 1].transpose(2, 1, 0)
        out.order[:count] += 0.5 * (depth[:, :, 0] + depth[:, :, 1]).T

    def width(self, lateral: Value, front: Value) -> Floats:
        """Half width that an elliptic cross section shows to the camera."""
        return np.sqrt((lateral * self.cos) ** 2 + (front * self.sin) ** 2)

    def head_width(self, lateral: Value, front: Value) -> Floats:
        """The same of the head, which turns by itself."""
        return np.sqrt((lateral * self.head_cos) ** 2 + (front * self.head_sin) ** 2)

    def head_offset(self, distance: float) -> Floats:
        """A step forward of the face, (n, 3), in the body's axes."""
        forward = self.joints["nose"] - self.joints["chin"]
        flat = forward * np.asarray([1.0, 0.0, 1.0])
        return distance * flat / np.maximum(np.sqrt((flat * flat).sum(axis=1, keepdims=True)), 1e-6)
