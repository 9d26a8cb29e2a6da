"""The rasteriser in numpy: the definition of the pixels, and what draws them where ``motarfuse._host`` is not built.

Line for line the arithmetic of csrc/host/synthped.cpp in fp32: + - * / floor min max in the same order, so that both
give the same bits. Slow (some 15 ms a crop), complete.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped import layout
from motarfuse.data.synthped.layout import FIELD, RESPONSE_FIELD, TEXTURE

Float = np.float32
Image = NDArray[np.float32]

_F = dict(FIELD)


def _c(value: float) -> np.float32:
    return np.float32(value)


_ZERO, _HALF, _ONE, _TWO, _FOUR = _c(0.0), _c(0.5), _c(1.0), _c(2.0), _c(4.0)


def _clamp01(x: Image) -> Image:
    return np.minimum(np.maximum(x, _ZERO), _ONE)


def _triangle(x: Image) -> Image:
    return np.abs(x - np.floor(x) - _HALF) * _FOUR - _ONE


def _texel(tile: Image, u: Image, v: Image) -> Image:
    mask = layout.TILE - 1
    return tile[np.floor(v).astype(np.int32) & mask, np.floor(u).astype(np.int32) & mask]


def _sweep(p: Image, x: Image, y: Image) -> tuple[Image, Image, Image, Image, Image]:
    f = _F
    w, c = p[f["width0"] : f["width0"] + 5], p[f["centre0"] : f["centre0"] + 5]
    py = y + _HALF - p[f["start_y"]]
    px = x + _HALF - p[f["start_x"]]
    along = px * p[f["axis_x"]] + py * p[f["axis_y"]]
    lateral = px * p[f["axis_y"]] - py * p[f["axis_x"]]
    inside = np.minimum(np.maximum(along, _ZERO), p[f["length"]])
    k = inside * p[f["station_scale"]]
    f1, f2, f3, f4 = np.minimum(k, _ONE), _clamp01(k - _ONE), _clamp01(k - _TWO), np.maximum(k - _c(3.0), _ZERO)
    half = (((w[0] + (w[1] - w[0]) * f1) + (w[2] - w[1]) * f2) + (w[3] - w[2]) * f3) + (w[4] - w[3]) * f4
    mid = (((c[0] + (c[1] - c[0]) * f1) + (c[2] - c[1]) * f2) + (c[3] - c[2]) * f3) + (c[4] - c[3]) * f4
    s = lateral - mid
    over = (along - inside) * p[f["cap_inverse"]]
    inverse = _ONE / np.maximum(half, _c(0.25))
    distance = ((s * s + over * over) - half * half) * (inverse * _HALF)
    cover = _clamp01(_HALF - distance * p[f["soft_inverse"]]) * p[f["opacity"]]
    q = np.minimum(np.maximum(s * inverse, -_ONE), _ONE)
    qq = q * q
    q4 = qq * qq
    facing = _ONE - _HALF * (qq + q4 * q4)
    shade = p[f["ambient"]] + np.maximum(q * p[f["light_lateral"]] + facing * p[f["light_depth"]], _ZERO)
    angle = q * (_c(0.64) + _c(0.36) * qq)
    u = (p[f["u0"]] + angle * p[f["u_angle"]]) + s * p[f["u_flat"]]
    turn = _FOUR if p[f["u_flat"]] == 0 else _ZERO
    u = u - np.floor((u + _TWO) * _c(0.25)) * turn
    v = along * p[f["v_scale"]] + p[f["v0"]]
    return cover, distance, shade, u, v


def _plane(p: Image, x: Image, y: Image) -> tuple[Image, Image, Image, Image, Image]:
    f = _F
    fx, fy = x + _HALF, y + _HALF
    depth = _ONE / np.maximum(fy - p[f["width0"]], p[f["width2"]])
    if p[f["width1"]] == 0:
        u_scale, v_value = p[f["centre1"]], fy * p[f["v_scale"]] + p[f["v0"]]
    else:
        u_scale, v_value = depth * p[f["centre1"]], depth * p[f["width1"]] + p[f["v0"]]
    tone = p[f["ambient"]] + fy * p[f["light_depth"]]
    inward = (fx - p[f["start_x"]]) * p[f["axis_x"]] + (fy - p[f["start_y"]]) * p[f["axis_y"]]
    cover = _clamp01(inward * p[f["soft_inverse"]] + _HALF) * p[f["opacity"]]
    shade = tone + fx * p[f["light_lateral"]]
    u = (fx - p[f["centre0"]]) * u_scale + p[f["u0"]]
    v = np.broadcast_to(v_value, cover.shape)
    return cover, np.full(cover.shape, _c(1.0e6)), shade, u, v


def _texture(p: Image, tiles: Image, shade: Image, u: Image, v: Image) -> tuple[Image, Image, Image, Image]:
    smooth, white, cell = tiles
    t = p[_F["t0"] : _F["t0"] + 6]
    nx, ny = p[_F["noise_x"]], p[_F["noise_y"]]
    kind = int(p[_F["texture"]])
    f = np.zeros_like(u)
    g = np.zeros_like(u)
    h = np.ones_like(u)
    if kind == TEXTURE["stripe_v"]:
        f = _clamp01(_triangle(v * t[0] + t[3]) * t[2] + t[1])
    elif kind == TEXTURE["stripe_u"]:
        f = _clamp01(_triangle(u * t[0] + t[3]) * t[2] + t[1])
    elif kind == TEXTURE["check"]:
        a, b = _clamp01(_triangle(v * t[0]) * t[2] + t[1]), _clamp01(_triangle(u * t[3]) * t[2] + t[1])
        f = (a + b) * _HALF
        g = a * b * t[4]
    elif kind == TEXTURE["print"]:
        du = np.abs(np.abs(u) - t[4])
        f = _clamp01((t[2] - du) * _c(12.0)) * _clamp01((t[1] - np.abs(v - t[0])) * _c(80.0))
        g = f * _clamp01(_texel(cell, u * t[3] + t[5], v * t[3] * _FOUR + t[5]) * _FOUR + _HALF)
    elif kind == TEXTURE["two_tone"]:
        f = _clamp01((v - t[0]) * t[1] + _HALF)
        g = _clamp01((t[2] - np.abs(v - t[0])) * t[1] + _HALF)
    elif kind == TEXTURE["mottle"]:
        mu, mv = u * t[0] + t[3], v * t[1] + t[4]
        f = _clamp01(_texel(smooth, mu, mv) * t[2] + t[5])
        g = _clamp01(_texel(smooth, mu + _c(97.0), mv + _c(31.0)) * t[2] + t[5])
    elif kind == TEXTURE["open"]:
        du, half = np.abs(u), t[0] + t[1] * np.maximum(v, _ZERO)
        f = _clamp01((half - du) * t[2] + _HALF)
        g = _clamp01((t[3] - np.abs(du - half)) * t[2] + _HALF) * t[4]
    elif kind == TEXTURE["face"]:
        f, g = _face(t, u, v)
    elif kind == TEXTURE["side"]:
        f = _clamp01((t[0] - np.abs(np.abs(u) - _ONE)) * t[2] + _HALF)
    elif kind == TEXTURE["ground"]:
        a = _texel(smooth, u * t[0] + nx, v * t[0] + ny) * t[1]
        b = _texel(white, u * t[2] + ny, v * t[2] + nx) * t[3]
        f = _clamp01((a + b) + _HALF)
        g = _clamp01(_texel(smooth, u * t[4] + ny, v * t[4] + nx) * t[5])
    elif kind in (TEXTURE["tiles"], TEXTURE["brick"]):
        stagger = _HALF if kind == TEXTURE["brick"] else _ZERO
        gv = v * t[1]
        course = np.floor(gv + _HALF)
        gu = u * t[0] + (course - np.floor(course * _HALF) * _TWO) * stagger
        line_u, line_v = _clamp01((_triangle(gu) - t[2]) * t[3]), _clamp01((_triangle(gv + _HALF) - t[2]) * t[3])
        bed = _texel(white, np.floor(gu) + nx, course + ny) * t[4] + _texel(smooth, u * t[5] + nx, v * t[5] + ny) * _c(
            0.4
        )
        f = _clamp01(bed + _c(0.3))
        g = np.maximum(line_u, line_v)
    elif kind == TEXTURE["leaves"]:
        lu, lv = u * t[0] + nx, v * t[0] + ny
        a = _texel(cell, lu, lv) + _texel(smooth, u * t[4] + ny, v * t[4] + nx) * t[5]
        f = _clamp01((a - t[1]) * t[3])
        g = _clamp01((_texel(cell, lu + _c(77.0), lv + _c(131.0)) - t[2]) * t[3])
    elif kind == TEXTURE["foliage"]:
        lu, lv = u * t[0] + nx, v * t[0] + ny
        a = _texel(smooth, u * t[4] + ny, v * t[4] + nx)
        h = _clamp01((_texel(cell, lu, lv) * _c(0.6) + a - t[1]) * t[3])
        f = _clamp01(_texel(cell, lu + _c(40.0), lv + _c(90.0)) * _c(0.7) + _HALF)
        g = _clamp01((_texel(cell, lu + _c(77.0), lv + _c(131.0)) - t[2]) * t[3])
    wrinkle = p[_F["wrinkle"]]
    if wrinkle != 0:
        shade = shade * (_ONE + wrinkle * _texel(smooth, u * p[_F["noise_u"]] + nx, v * p[_F["noise_v"]] + ny))
    return f, g, h, shade


def _face(t: Image, u: Image, v: Image) -> tuple[Image, Image]:
    du = np.abs(u)
    front = _clamp01((t[0] - v) * _c(14.0) + _HALF)
    sides = np.minimum(_clamp01((du - t[1]) * _c(7.0) + _HALF), _clamp01((t[2] - v) * _c(14.0) + _HALF))
    chin = np.minimum(_clamp01((v - _c(0.74)) * _c(14.0) + _HALF), _clamp01((_ONE - du) * _c(8.0))) * t[4]
    f = np.maximum(np.maximum(front, sides), chin)
    ex, ey = (du - _c(0.30)) * _c(7.5), (v - _c(0.53)) * _c(13.0)
    eye = _clamp01(_c(1.3) - (ex * ex + ey * ey)) * _c(0.55)
    gx = (du - _c(0.30)) * _c(3.4)
    glasses = _clamp01(_c(2.0) - (gx * gx + ey * ey) * _c(2.0)) * t[3]
    mx, my = du * _c(4.0), (v - _c(0.80)) * _c(18.0)
    mouth = _clamp01(_c(1.2) - (mx * mx + my * my)) * _c(0.3)
    return f, np.maximum(np.maximum(eye, glasses), mouth) * (_ONE - f)


def _draw(
    primitives: Image, boxes: NDArray[np.int32], tiles: Image, height: int, width: int
) -> tuple[Image, NDArray, NDArray]:
    planes = np.zeros((3, height, width), np.float32)
    visible = np.zeros((height, width), np.uint8)
    amodal = np.zeros((height, width), np.uint8)
    for p, box in zip(primitives, boxes, strict=True):
        shape = int(p[_F["shape"]])
        x0, y0, x1, y1 = max(int(box[0]), 0), max(int(box[1]), 0), min(int(box[2]), width), min(int(box[3]), height)
        if shape == layout.SHAPE_NONE or x0 >= x1 or y0 >= y1:
            continue
        x = np.arange(x0, x1, dtype=np.float32)[None, :]
        y = np.arange(y0, y1, dtype=np.float32)[:, None]
        cover, distance, shade, u, v = (_sweep if shape == layout.SHAPE_SWEEP else _plane)(p, x, y)
        f, g, h, shade = _texture(p, tiles, shade, u, v)
        area = (slice(y0, y1), slice(x0, x1))
        contact = p[_F["contact"]]
        if contact > 0:
            fade = _clamp01(v * p[_F["contact_gain"]] + p[_F["contact_bias"]])
            near = _clamp01(_ONE - distance * p[_F["contact_inverse"]]) * (fade * contact)
            keep = np.where(amodal[area] != 0, _ONE - near, _ONE)
            for plane in planes:
                plane[area] = plane[area] * keep
        cover = cover * h
        colours = p[_F["colour0_r"] : _F["colour0_r"] + 9].reshape(3, 3)
        for c in range(3):
            c0, c1, c2 = colours[0, c], colours[1, c], colours[2, c]
            a = c0 + (c1 - c0) * f
            b = (a + (c2 - a) * g) * shade
            planes[c][area] = planes[c][area] + (b - planes[c][area]) * cover
        label = int(p[_F["label"]])
        if label == layout.NO_LABEL:
            continue
        covered = cover >= _HALF
        labels = np.full(covered.shape, label, np.uint8)
        if int(p[_F["texture"]]) == TEXTURE["face"]:
            labels[f >= _HALF] = int(p[_F["t5"]])
        visible[area][covered] = labels[covered]
        if int(p[_F["layer"]]) == layout.LAYER_SUBJECT:
            amodal[area][covered] = labels[covered]
    return planes, visible, amodal


def _filter(plane: Image, kernel: Image, axis: int) -> Image:
    radius = len(kernel) - 1
    pad = [(0, 0), (0, 0)]
    pad[axis] = (radius, radius)
    padded = np.pad(plane, pad, mode="edge")
    n = plane.shape[axis]

    def tap(offset: int) -> Image:
        part = slice(radius + offset, radius + offset + n)
        return padded[:, part] if axis == 1 else padded[part]

    total = plane * kernel[0]
    for k in range(1, radius + 1):
        total = total + (tap(-k) + tap(k)) * kernel[k]
    return total


def _finish(
    r: Image,
    curve: NDArray[np.uint8],
    lattice: tuple[NDArray[np.int32], Image, NDArray[np.int32], Image],
    tiles: Image,
    planes: Image,
) -> NDArray[np.uint8]:
    smooth, white = tiles[0], tiles[1]
    at = RESPONSE_FIELD
    height, width = planes.shape[1:]
    x, y = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]
    fx, fy = x + _HALF, y + _HALF
    n = _texel(smooth, fx * r[at["dapple_scale"]] + r[at["dapple_x"]], fy * r[at["dapple_scale"]] + r[at["dapple_y"]])
    light = (r[at["light_base"]] + fy * r[at["light_y"]]) + fx * r[at["light_x"]]
    light = light * (_ONE - _clamp01(n * r[at["dapple_gain"]] + r[at["dapple_bias"]]) * r[at["dapple"]])
    kernel_x, kernel_y = r[at["kernel_x0"] : at["kernel_x0"] + 4], r[at["kernel_y0"] : at["kernel_y0"] + 4]
    soft = np.asarray([0.5, 0.25], np.float32)
    columns, weight_x, rows, weight_y = lattice
    sharp = []
    for plane in planes:
        value = _filter(_filter(plane * light, kernel_x, 1), kernel_y, 0)
        first, second = value[:, columns[0]], value[:, columns[1]]
        value = first + (second - first) * weight_x[None, :]
        first, second = value[rows[0]], value[rows[1]]
        value = first + (second - first) * weight_y[:, None]
        blurred = _filter(_filter(value, soft, 1), soft, 0)
        sharp.append(value + (value - blurred) * r[at["sharpen"]])
    red, green, blue = sharp
    image = np.empty((height, width, 3), np.uint8)
    matrix = r[at["matrix00"] : at["matrix00"] + 9].reshape(3, 3)
    nx, ny = r[at["noise_x"]], r[at["noise_y"]]
    luma = _texel(white, x + nx, y + ny) * r[at["noise_luma"]]
    for c in range(3):
        shift = _c(c * 61 + 17)
        chroma = _texel(smooth, x * _FOUR + nx + shift, y * _FOUR + ny + shift) * r[at["noise_chroma"]]
        value = ((red * matrix[c, 0] + green * matrix[c, 1]) + blue * matrix[c, 2]) + r[at["offset0"] + c]
        noisy = (value + luma) + chroma
        index = np.minimum(np.maximum(noisy * _FOUR, _ZERO), _c(layout.CURVE_SIZE - 1)).astype(np.int32)
        image[:, :, c] = curve[index]
    return image


def render(
    primitives: Image,
    boxes: NDArray[np.int32],
    responses: Image,
    curves: NDArray[np.uint8],
    lattice_x: NDArray[np.int32],
    weight_x: Image,
    lattice_y: NDArray[np.int32],
    weight_y: Image,
    tiles: Image,
    height: int,
    width: int,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws n scenes: images (n, height, width, 3), visible labels and amodal labels (n, height, width), all uint8."""
    count = len(primitives)
    images = np.empty((count, height, width, 3), np.uint8)
    visible = np.empty((count, height, width), np.uint8)
    amodal = np.empty((count, height, width), np.uint8)
    for i in range(count):
        planes, visible[i], amodal[i] = _draw(primitives[i], boxes[i], tiles, height, width)
        lattice = (lattice_x[i], weight_x[i], lattice_y[i], weight_y[i])
        images[i] = _finish(responses[i], curves[i], lattice, tiles, planes)
    return images, visible, amodal
