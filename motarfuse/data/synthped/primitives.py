"""A growing list of primitives per image: what the scene builders write and the rasterisers read.

Arrays are field-major, (fields, capacity, n), so that every assignment writes one contiguous row; what follows from the
written values is computed once for all primitives of all images in `Primitives.finish`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped import layout
from motarfuse.data.synthped.draws import Floats
from motarfuse.data.synthped.layout import FIELD, NUM_FIELDS, STATIONS

Value = NDArray[Any] | float | int
Colour = Floats | tuple[float, float, float]

# Geometry is rounded to this fraction of a pixel, scales and directions to a finer one: the last bit of a sine may
# differ between machines, its pixel may not.
_QUANTUM, _FINE_QUANTUM = 2.0**10, 2.0**20
_FINE = (
    "axis_x", "axis_y", "station_scale", "v_scale", "u_flat", "v0", "contact_inverse", "soft_inverse",
    "noise_u", "noise_v", "centre1", "light_lateral", "light_depth",
)  # fmt: skip
_SCALE = np.full(NUM_FIELDS, _QUANTUM)
_SCALE[[FIELD[name] for name in _FINE]] = _FINE_QUANTUM

_T, _WIDTH, _CENTRE, _COLOUR = FIELD["t0"], FIELD["width0"], FIELD["centre0"], FIELD["colour0_r"]
_NOISE = tuple(FIELD[f"noise_{name}"] for name in "xyuv")


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
        self.values = np.zeros((NUM_FIELDS, capacity, n))
        self.order = np.zeros((capacity, n))
        self.end = np.zeros((2, capacity, n))
        self.lit = np.zeros(capacity, bool)
        self.count = 0

    def _next(self) -> int:
        if self.count == self.values.shape[1]:
            raise RuntimeError(f"synthped: more than {self.count} primitives")
        self.count += 1
        return self.count - 1

    def _paint(self, k: int, colours: Sequence[Colour], texture: Value, t: Sequence[Value]) -> None:
        values = self.values
        for i in range(3):
            colour = np.asarray(colours[min(i, len(colours) - 1)])
            values[_COLOUR + 3 * i : _COLOUR + 3 * i + 3, k] = colour.T if colour.ndim == 2 else colour[:, None]
        values[FIELD["texture"], k] = texture
        for i, value in enumerate(t):
            values[_T + i, k] = value

    def sweep(
        self,
        start: Floats | None,
        end: Floats | None,
        widths: Sequence[Value],
        colours: Sequence[Colour],
        *,
        active: Value = True,
        label: Value = layout.NO_LABEL,
        layer: int = layout.LAYER_SCENE,
        centres: Sequence[Value] = (),
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
        lit: bool = False,
        shade: Value = 1.0,
        wrinkle: Value = 0.0,
        noise: Sequence[Value] = (),
        contact: Value = 0.0,
        contact_reach: Value = 2.0,
        depth: Value | None = None,
    ) -> int:
        """A strip of varying half width about the axis start -> end (pixels); its ends are ``cap`` half widths long.

        ``widths`` and ``centres`` are given at five even stations along the axis (the last one holds for those that are
        missing); where ``lit`` is False the shade is constant. ``noise`` is the offset (x, y) and the scales (u, v) in
        the noise tile. Far ones are painted first: without ``depth`` in the order of the calls. Returns its number;
        ends that are None are filled in by the caller.
        """
        k = self._next()
        f, values = FIELD, self.values
        if start is not None and end is not None:
            values[f["start_x"] : f["start_y"] + 1, k] = start.T
            self.end[:, k] = end.T
        values[f["shape"], k] = np.where(active, layout.SHAPE_SWEEP, layout.SHAPE_NONE)
        values[f["label"], k] = label
        values[f["layer"], k] = layer
        for i in range(STATIONS):
            values[_WIDTH + i, k] = widths[min(i, len(widths) - 1)]
        for i in range(STATIONS if centres else 0):
            values[_CENTRE + i, k] = centres[min(i, len(centres) - 1)]
        # Reciprocals are taken in `finish`.
        values[f["cap_inverse"], k], values[f["soft_inverse"], k], values[f["opacity"], k] = cap, soft, opacity
        self._paint(k, colours, texture, t)
        values[f["u0"], k], values[f["u_angle"], k], values[f["u_flat"], k] = u0, u_angle, u_flat
        values[f["v0"], k], values[f["v_scale"], k] = v0, v_scale
        self.lit[k] = lit
        values[f["ambient"], k] = shade
        values[f["wrinkle"], k] = wrinkle
        for at, value in zip(_NOISE, noise, strict=False):
            values[at, k] = value
        values[f["contact"], k], values[f["contact_inverse"], k] = contact, contact_reach
        values[f["contact_bias"], k] = 1.0
        self.order[k] = float(k) if depth is None else depth
        return k

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
        k = self._next()
        f, values = FIELD, self.values
        values[f["shape"], k] = np.where(active, layout.SHAPE_PLANE, layout.SHAPE_NONE)
        values[f["label"], k] = layout.NO_LABEL
        values[f["start_x"], k], values[f["start_y"], k] = point
        values[f["axis_x"], k], values[f["axis_y"], k] = normal
        values[_WIDTH, k], values[_WIDTH + 1, k], values[_WIDTH + 2, k] = horizon, perspective, nearest
        values[_CENTRE, k], values[_CENTRE + 1, k] = column, u_scale
        values[f["cap_inverse"], k], values[f["soft_inverse"], k], values[f["opacity"], k] = 1.0, soft, 1.0
        self._paint(k, colours, texture, t)
        values[f["u0"], k], values[f["v0"], k], values[f["v_scale"], k] = u0, v0, v_scale
        values[f["ambient"], k], values[f["light_lateral"], k], values[f["light_depth"], k] = shade, shade_x, shade_y
        values[f["noise_x"], k], values[f["noise_y"], k] = noise
        values[f["contact_inverse"], k] = 1.0
        self.order[k] = float(k)

    def finish(self, light: Light | None = None) -> NDArray[np.float32]:
        """Computes what follows from the written values: (n, most in one image, fields) float32, far to near."""
        f, count = FIELD, self.count
        values, sweep = self.values[:, :count], self.values[f["shape"], :count] == layout.SHAPE_SWEEP
        start = values[f["start_x"] : f["start_y"] + 1]
        axis = self.end[:, :count] - start
        length = np.sqrt(axis[0] * axis[0] + axis[1] * axis[1])
        short = length < 0.05
        axis /= np.where(short, 1.0, length)
        axis[0][short], axis[1][short] = 0.0, 1.0
        length = np.maximum(length, 0.05)
        for i, name in enumerate(("axis_x", "axis_y")):
            values[f[name]] = np.where(sweep, axis[i], values[f[name]])
        values[f["length"]] = length
        values[f["station_scale"]] = (STATIONS - 1) / length
        values[f["cap_inverse"]] = 1.0 / np.maximum(values[f["cap_inverse"]], 0.02)
        values[f["soft_inverse"]] = 1.0 / np.maximum(values[f["soft_inverse"]], 0.5)
        values[f["contact_inverse"]] = 1.0 / np.maximum(values[f["contact_inverse"]], 0.5)
        lit = np.flatnonzero(self.lit[:count])
        if light is not None and len(lit):
            shade = values[f["ambient"], lit]
            values[f["light_lateral"], lit] = (light.x * axis[1, lit] - light.y * axis[0, lit]) * shade
            values[f["light_depth"], lit] = light.depth * shade
            values[f["ambient"], lit] = light.ambient * shade
        present = values[f["shape"]] != layout.SHAPE_NONE
        most = int(present.sum(axis=0).max(initial=0))
        rank = np.argsort(np.where(present, self.order[:count], np.inf), axis=0, kind="stable")[:most]
        chosen = np.take_along_axis(values, rank[None], axis=1)
        chosen *= _SCALE[:, None, None]
        np.round(chosen, out=chosen)
        chosen *= (1.0 / _SCALE)[:, None, None]
        return np.ascontiguousarray(chosen.astype(np.float32).transpose(2, 1, 0))


def pack(
    groups: Sequence[tuple[NDArray[np.float32], NDArray[np.int64] | None]], n: int, height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Joins groups of primitives, painted in the order given.

    Args:
        groups: (primitives (m, p, fields), rows): the images that the m entries belong to, None for all n.
        n: Images.
        height: Of an image.
        width: Of an image.

    Returns:
        Primitives (n, P, fields) float32 and their boxes (n, P, 4) int32: x0, y0, x1, y1, conservative, clipped.
    """
    total = sum(values.shape[1] for values, _ in groups)
    result = np.zeros((n, total, NUM_FIELDS), np.float32)
    at = 0
    for values, rows in groups:
        result[slice(None) if rows is None else rows, at : at + values.shape[1]] = values
        at += values.shape[1]
    return result, _boxes(result, height, width)


def _boxes(p: NDArray[np.float32], height: int, width: int) -> NDArray[np.int32]:
    f = FIELD
    soft = 1.0 / np.maximum(p[..., f["soft_inverse"]], 1e-3) + 1.0
    contact = np.where(p[..., f["contact"]] > 0, 1.0 / np.maximum(p[..., f["contact_inverse"]], 1e-3), 0.0)
    half = p[..., _WIDTH : _WIDTH + STATIONS].max(axis=-1)
    shift = np.abs(p[..., _CENTRE : _CENTRE + STATIONS]).max(axis=-1)
    # Along the axis an end reaches cap times as far as across it.
    margin = (half + shift + np.maximum(soft, contact)) * np.maximum(
        1.0, 1.0 / np.maximum(p[..., f["cap_inverse"]], 1e-3)
    )
    sweep = p[..., f["shape"]] == layout.SHAPE_SWEEP
    boxes = np.empty((*p.shape[:2], 4), np.int32)
    for k, (start, axis, size) in enumerate((("start_x", "axis_x", width), ("start_y", "axis_y", height))):
        a = p[..., f[start]]
        b = a + p[..., f[axis]] * p[..., f["length"]]
        boxes[..., k] = np.where(sweep, np.clip(np.floor(np.minimum(a, b) - margin), 0, size), 0)
        boxes[..., k + 2] = np.where(sweep, np.clip(np.ceil(np.maximum(a, b) + margin), 0, size), size)
    return boxes
