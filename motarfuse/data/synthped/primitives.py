"""A growing list of primitives per image: what the scene builders write and the rasterisers read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped import layout
from motarfuse.data.synthped.draws import Floats
from motarfuse.data.synthped.layout import FIELD

Value = Floats | NDArray[np.int64] | NDArray[np.bool_] | float | int
Colour = Floats | tuple[float, float, float]

# Geometry is rounded to this fraction of a pixel: the last bit of a sine may differ between machines, its pixel may not.
_QUANTUM = 1024.0


@dataclass(frozen=True)
class Light:
    """The lamp of n images: direction in the image (x right, y down, depth towards the camera), shares of light."""

    x: Floats
    y: Floats
    depth: Floats
    ambient: Floats

    def take(self, rows: NDArray[np.int64]) -> Light:
        """The lamps of the given rows."""
        return Light(self.x[rows], self.y[rows], self.depth[rows], self.ambient[rows])


class Primitives:
    """Up to ``capacity`` primitives for each of n images."""

    def __init__(self, n: int, capacity: int) -> None:
        self.values = np.zeros((n, capacity, layout.NUM_FIELDS))
        self.depth = np.full((n, capacity), np.inf)
        self.count = 0

    def _next(self) -> tuple[Floats, int]:
        if self.count == self.values.shape[1]:
            raise RuntimeError(f"synthped: more than {self.count} primitives")
        self.count += 1
        return self.values[:, self.count - 1], self.count - 1

    @staticmethod
    def _paint(row: Floats, colours: Sequence[Colour], texture: Value, t: Sequence[Value]) -> None:
        for k in range(3):
            at = FIELD[f"colour{k}_r"]
            row[:, at : at + 3] = np.asarray(colours[min(k, len(colours) - 1)])
        row[:, FIELD["texture"]] = texture
        for k, value in enumerate(t):
            row[:, FIELD[f"t{k}"]] = value

    def sweep(
        self,
        start: Floats,
        end: Floats,
        widths: Sequence[Value],
        colours: Sequence[Colour],
        *,
        active: Value = True,
        label: Value = layout.NO_LABEL,
        layer: int = layout.LAYER_SCENE,
        centres: Sequence[Value] = (0.0,),
        cap: Value = 1.0,
        soft: Value = 1.0,
        opacity: Value = 1.0,
        texture: Value = 0,
        t: Sequence[Value] = (),
        u0: Value = 0.0,
        u_angle: Value = 1.0,
        u_flat: Value = 0.0,
        v0: Value = 0.0,
        v_scale: Value = 0.0,
        light: Light | None = None,
        shade: Value = 1.0,
        wrinkle: Value = 0.0,
        noise: Sequence[Value] = (0.0, 0.0, 0.0, 0.0),
        contact: Value = 0.0,
        contact_reach: Value = 2.0,
        depth: Value = 0.0,
    ) -> None:
        """A strip of varying half width about the axis start -> end (pixels), with elliptic ends of ``cap`` half widths.

        ``widths`` and ``centres`` are given at five even stations along the axis (a single value holds for all); without
        a light the shade is constant. ``noise`` is the offset (x, y) and the scales (u, v) in the noise tile.
        """
        row, k = self._next()
        f = FIELD
        axis = end - start
        length = np.sqrt(axis[:, 0] * axis[:, 0] + axis[:, 1] * axis[:, 1])
        short = length < 0.05
        safe = np.where(short, 1.0, length)
        ax, ay = np.where(short, 0.0, axis[:, 0] / safe), np.where(short, 1.0, axis[:, 1] / safe)
        length = np.maximum(length, 0.05)
        row[:, f["shape"]] = np.where(active, layout.SHAPE_SWEEP, layout.SHAPE_NONE)
        row[:, f["label"]] = label
        row[:, f["layer"]] = layer
        row[:, f["start_x"]], row[:, f["start_y"]] = start[:, 0], start[:, 1]
        row[:, f["axis_x"]], row[:, f["axis_y"]], row[:, f["length"]] = ax, ay, length
        row[:, f["station_scale"]] = (layout.STATIONS - 1) / length
        for i in range(layout.STATIONS):
            row[:, f["width0"] + i] = widths[min(i, len(widths) - 1)]
            row[:, f["centre0"] + i] = centres[min(i, len(centres) - 1)]
        row[:, f["cap_inverse"]] = 1.0 / np.maximum(cap, 0.02)
        row[:, f["soft_inverse"]] = 1.0 / np.maximum(soft, 0.5)
        row[:, f["opacity"]] = opacity
        self._paint(row, colours, texture, t)
        row[:, f["u0"]], row[:, f["u_angle"]], row[:, f["u_flat"]] = u0, u_angle, u_flat
        row[:, f["v0"]], row[:, f["v_scale"]] = v0, v_scale
        if light is None:
            row[:, f["ambient"]] = shade
        else:
            row[:, f["ambient"]] = light.ambient * shade
            row[:, f["light_lateral"]] = (light.x * ay - light.y * ax) * shade
            row[:, f["light_depth"]] = light.depth * shade
        row[:, f["wrinkle"]] = wrinkle
        for name, value in zip(("noise_x", "noise_y", "noise_u", "noise_v"), noise):
            row[:, f[name]] = value
        row[:, f["contact"]], row[:, f["contact_inverse"]] = contact, 1.0 / np.maximum(contact_reach, 0.5)
        self.depth[:, k] = depth

    def plane(
        self,
        point: tuple[Value, Value],
        normal: tuple[Value, Value],
        colours: Sequence[Colour],
        *,
        active: Value = True,
        soft: Value = 1.0,
        texture: Value = 0,
        t: Sequence[Value] = (),
        horizon: Value = 0.0,
        perspective: Value = 0.0,
        nearest: Value = 4.0,
        column: Value = 0.0,
        u_scale: Value = 1.0,
        v_scale: Value = 1.0,
        u0: Value = 0.0,
        v0: Value = 0.0,
        shade: Value = 1.0,
        shade_x: Value = 0.0,
        shade_y: Value = 0.0,
        noise: tuple[Value, Value] = (0.0, 0.0),
    ) -> None:
        """A half plane of scenery: all pixels on the inner side of a line.

        With ``perspective`` 0 the texture lies flat, u = u_scale (x - column), v = v_scale y; otherwise it recedes to
        ``horizon``: v = perspective / (y - horizon), u = u_scale (x - column) / (y - horizon).
        """
        row, k = self._next()
        f = FIELD
        row[:, f["shape"]] = np.where(active, layout.SHAPE_PLANE, layout.SHAPE_NONE)
        row[:, f["label"]] = layout.NO_LABEL
        row[:, f["start_x"]], row[:, f["start_y"]] = point
        row[:, f["axis_x"]], row[:, f["axis_y"]] = normal
        row[:, f["width0"]], row[:, f["width0"] + 1], row[:, f["width0"] + 2] = horizon, perspective, nearest
        row[:, f["centre0"]], row[:, f["centre0"] + 1] = column, u_scale
        row[:, f["soft_inverse"]] = 1.0 / np.maximum(soft, 0.5)
        row[:, f["opacity"]] = 1.0
        self._paint(row, colours, texture, t)
        row[:, f["u0"]], row[:, f["v0"]], row[:, f["v_scale"]] = u0, v0, v_scale
        row[:, f["ambient"]], row[:, f["light_lateral"]], row[:, f["light_depth"]] = shade, shade_x, shade_y
        row[:, f["noise_x"]], row[:, f["noise_y"]] = noise
        self.depth[:, k] = float(k)

    def sorted(self) -> Floats:
        """(n, count, fields), far to near."""
        order = np.argsort(self.depth[:, : self.count], axis=1, kind="stable")
        return np.take_along_axis(self.values[:, : self.count], order[:, :, None], axis=1)


def pack(groups: Sequence[tuple[Floats, NDArray[np.int64] | None]], n: int, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Joins groups of primitives, painted in the order given.

    Args:
        groups: (values (m, p, fields), rows): the images that the m entries belong to, None for all n.

    Returns:
        Primitives (n, P, fields) float32 and their boxes (n, P, 4) int32: x0, y0, x1, y1, conservative, clipped.
    """
    total = sum(values.shape[1] for values, _ in groups)
    result = np.zeros((n, total, layout.NUM_FIELDS), np.float32)
    at = 0
    for values, rows in groups:
        rounded = np.round(values * _QUANTUM) * (1.0 / _QUANTUM)
        # Scales and directions need more than a thousandth.
        for name in _FINE:
            rounded[..., FIELD[name]] = np.round(values[..., FIELD[name]] * 2.0**20) * 2.0**-20
        result[slice(None) if rows is None else rows, at : at + values.shape[1]] = rounded
        at += values.shape[1]
    return result, _boxes(result, height, width)


_FINE = (
    "axis_x", "axis_y", "station_scale", "v_scale", "u_flat", "v0", "contact_inverse", "soft_inverse", "noise_u", "noise_v",
    "centre1", "light_lateral", "light_depth",
)  # fmt: skip


def _boxes(p: NDArray[np.float32], height: int, width: int) -> NDArray[np.int32]:
    f = FIELD
    widths = p[..., f["width0"] : f["width0"] + layout.STATIONS]
    centres = p[..., f["centre0"] : f["centre0"] + layout.STATIONS]
    soft = 0.5 / np.maximum(p[..., f["soft_inverse"]], 1e-3) + 1.0
    contact = np.where(p[..., f["contact"]] > 0, 1.0 / np.maximum(p[..., f["contact_inverse"]], 1e-3), 0.0)
    reach = widths.max(axis=-1) + np.abs(centres).max(axis=-1) + np.maximum(soft, contact)
    # Along the axis an end reaches cap times as far as across it.
    cap = np.maximum(1.0, 1.0 / np.maximum(p[..., f["cap_inverse"]], 1e-3))
    margin = reach * cap
    sweep = p[..., f["shape"]] == layout.SHAPE_SWEEP
    boxes = np.empty((*p.shape[:2], 4), np.int32)
    for k, (start, axis, size) in enumerate((("start_x", "axis_x", width), ("start_y", "axis_y", height))):
        a = p[..., f[start]]
        b = a + p[..., f[axis]] * p[..., f["length"]]
        boxes[..., k] = np.where(sweep, np.clip(np.floor(np.minimum(a, b) - margin), 0, size), 0)
        boxes[..., k + 2] = np.where(sweep, np.clip(np.ceil(np.maximum(a, b) + margin), 0, size), size)
    return boxes
