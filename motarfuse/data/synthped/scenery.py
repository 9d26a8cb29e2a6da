"""What lies behind people: ground, walls, kerbs and clutter of six families of places."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped.camera import GRASS, INDOOR, PAVEMENT, SHRUBS, STREET, WALL, Style
from motarfuse.data.synthped.draws import Floats
from motarfuse.data.synthped.layout import TEXTURE
from motarfuse.data.synthped.primitives import Colour, Light, Primitives, Value

_WALLS = np.asarray(
    [
        (160, 156, 150),
        (184, 176, 162),
        (132, 84, 68),
        (112, 114, 120),
        (210, 204, 194),
        (84, 80, 76),
        (158, 144, 120),
        (128, 140, 148),
    ],
    dtype=np.float64,
)
_GROUNDS = np.asarray(
    [
        (128, 128, 134),
        (152, 148, 142),
        (104, 102, 104),
        (176, 170, 160),
        (138, 126, 114),
        (160, 160, 176),
        (204, 200, 196),
    ],
    dtype=np.float64,
)
_GREENS = np.asarray([(88, 120, 56), (122, 146, 74), (74, 96, 54), (140, 138, 80), (104, 126, 82)], dtype=np.float64)
_LITTER = np.asarray([(150, 100, 58), (176, 140, 84), (112, 70, 52), (188, 164, 110), (130, 86, 70)], dtype=np.float64)
_CLUTTER = np.asarray(
    [
        (60, 62, 68),
        (128, 128, 132),
        (178, 172, 162),
        (92, 62, 46),
        (48, 68, 96),
        (140, 40, 40),
        (206, 196, 160),
        (36, 52, 44),
        (222, 222, 224),
    ],
    dtype=np.float64,
)


def _pick(style: Style, name: str, table: Floats, spread: float = 10.0) -> Floats:
    index = style.choice(name, tuple(1.0 for _ in table))
    return np.clip(table[index] + style.colour(name + " shift", spread), 8.0, 248.0)


def paint(style: Style, height: int, width: int, elevation: Floats) -> NDArray[np.float32]:
    """The scenery of n images: primitives (n, count, fields), far to near."""
    image = style.image
    n = len(image)
    out = Primitives(n, 24)
    unit = height / 128.0
    family = style.choice("family", (22, 16, 20, 18, 12, 12))
    noise = (image.uniform("scenery x", 0.0, 256.0), image.uniform("scenery y", 0.0, 256.0))
    # Where the ground ends: cameras that look down steeply see nothing but ground.
    base = (0.62 - elevation / 34.0 + 0.45 * style.image.normal("wall line", 0.0, 0.3)) * height
    ground_seen = base < height
    green = (family == GRASS) | (family == SHRUBS)

    wall = _pick(style, "wall", _WALLS)
    leafy = _pick(style, "foliage", _GREENS) * 0.7
    wall = np.where(
        (family == SHRUBS)[:, None] | ((family == GRASS) & image.chance("hedge", 0.6))[:, None], leafy, wall
    )
    bushes = (family == SHRUBS) | (family == GRASS)
    kind = style.choice("wall kind", (30, 26, 24, 20))
    wall_texture = np.where(
        bushes,
        TEXTURE["leaves"],
        np.asarray([TEXTURE["ground"], TEXTURE["brick"], TEXTURE["tiles"], TEXTURE["stripe_v"]])[kind],
    )
    windows = (wall_texture == TEXTURE["tiles"]) & image.chance("windows", 0.5)
    # (texture, t0..t5): scales are per pixel of a 128-pixel crop
    is_brick, is_tiles, is_leaves, is_ground = (
        wall_texture == TEXTURE[k] for k in ("brick", "tiles", "leaves", "ground")
    )
    period = image.uniform("wall period", 0.6, 1.6)
    t0 = np.select(
        [is_brick, is_tiles, is_leaves, is_ground],
        [0.09 * period, np.where(windows, 0.035, 0.06) * period, 1.6 * period, 0.8 * period],
        0.05 * period,
    )
    t1 = np.select(
        [is_brick, is_tiles, is_leaves, is_ground],
        [0.16 * period, np.where(windows, 0.022, 0.05) * period, -0.1, 0.5],
        0.4,
    )
    t2 = np.select([is_brick, is_tiles, is_leaves, is_ground], [0.72, np.where(windows, 0.4, 0.86), 0.55, 1.0], 0.8)
    t3 = np.select([is_brick, is_tiles, is_leaves, is_ground], [6.0, 9.0, 1.5, 0.2], 0.0)
    t4 = np.select([is_brick, is_tiles, is_leaves, is_ground], [0.25, 0.2, 0.7, 0.6], 0.0)
    t5 = np.select([is_brick, is_tiles, is_leaves, is_ground], [0.8, 0.7, 1.2, 0.5], 0.0)
    second = np.clip(wall * image.uniform("wall second", 0.55, 0.9)[:, None], 0.0, 255.0)
    third = np.where(
        (is_leaves | windows)[:, None],
        np.clip(wall * image.uniform("wall third", 0.3, 1.6)[:, None], 4.0, 240.0),
        wall * 1.18,
    )
    slope = style.image.normal("wall slope", 0.0, 0.06)
    out.plane(
        (0.0, 0.0),
        (0.0, 0.0),
        [wall, second, third],
        texture=wall_texture,
        t=(t0, t1, t2, t3, t4, t5),
        u_scale=1.0 / unit,
        v_scale=1.0 / unit,
        noise=noise,
        shade=1.0 - 0.1 * style.uniform("wall shade", 0.0, 1.0),
        shade_y=style.uniform("wall gradient", -0.25, 0.25) / height,
        soft=1e3,
    )

    def rectangle(
        name: str,
        active: Value,
        left: Floats,
        right: Floats,
        top: Floats,
        bottom: Floats,
        colours: list[Colour],
        **options: Any,
    ) -> None:
        middle, half = 0.5 * (left + right), np.maximum(0.5 * (right - left), 0.5)
        out.sweep(
            np.stack([middle, top], axis=1),
            np.stack([middle, np.maximum(bottom, top + 1.0)], axis=1),
            [half],
            colours,
            active=active,
            cap=0.0,
            u_angle=0.0,
            u_flat=0.05 / unit,
            v_scale=0.05 / unit,
            **options,
        )

    # Doors, posters, shop windows and parked vans on the wall.
    for k in range(3):
        name = f"panel {k}"
        active = image.chance(name, 0.26) & ~bushes
        left = image.uniform(name + " x", -0.5, 1.0) * width
        top = base - image.uniform(name + " top", 0.1, 0.8) * height
        colour = _pick(style, name + " colour", _CLUTTER, 12.0)
        rectangle(
            name,
            active,
            left,
            left + image.uniform(name + " w", 0.15, 0.9) * width,
            top,
            top + image.uniform(name + " h", 0.12, 0.7) * height,
            [colour, 0.7 * colour, 1.3 * colour],
            soft=image.uniform(name + " soft", 0.7, 2.5),
            texture=np.where(image.chance(name + " stripes", 0.4), TEXTURE["stripe_u"], 0),
            t=(image.uniform(name + " period", 0.6, 2.5), 0.2, 1.5),
        )

    ground = _pick(style, "ground", _GROUNDS)
    turf = _pick(style, "turf", _GREENS, 18.0)
    litter = _pick(style, "litter", _LITTER, 18.0)
    soil = np.where(image.chance("leafy ground", 0.4)[:, None], litter, turf)
    ground = np.where(green[:, None], soil, ground)
    tiled = (
        (family == PAVEMENT)
        | ((family == INDOOR) & style.chance("floor tiles", 0.7))
        | ((family == WALL) & style.chance("paved", 0.5))
    )
    texture = np.where(
        green,
        TEXTURE["leaves"],
        np.where(tiled, np.where(style.chance("bond", 0.5), TEXTURE["brick"], TEXTURE["tiles"]), TEXTURE["ground"]),
    )
    speckle = image.uniform("speckle", 0.15, 0.7)
    size = image.uniform("tile size", 0.5, 1.5)
    is_tiles = tiled & ~green
    t0 = np.select([green, is_tiles], [image.uniform("blade", 2.2, 4.5), 0.05 / size], 1.4)
    t1 = np.select([green, is_tiles], [0.1, 0.05 / size], 0.3 * speckle)
    t2 = np.select([green, is_tiles], [image.uniform("litter share", 0.2, 0.9), 0.82], 0.9)
    t3 = np.select([green, is_tiles], [0.8, 5.0], 0.5 * speckle)
    t4 = np.select([green, is_tiles], [0.7, 0.3 * speckle], 0.7)
    t5 = np.select([green, is_tiles], [0.8, 0.8], 0.35)
    ground_second = np.where(
        green[:, None],
        np.where(image.chance("dry", 0.5)[:, None], 0.55 * ground + 0.45 * litter, 0.65 * ground),
        0.82 * ground,
    )
    ground_third = np.where(
        green[:, None],
        np.where(image.chance("bright", 0.5)[:, None], np.clip(litter * 1.25, 0, 240), 0.4 * ground),
        ground * image.uniform("joint", 0.55, 1.25)[:, None],
    )
    horizon = np.minimum(base - 0.25 * height, -0.15 * height) - elevation / 34.0 * 1.4 * height
    perspective = style.chance("deep", 0.7)
    span = 1.15 * height - horizon
    recede = np.where(perspective, -span * span / unit, 0.0)
    across = np.where(perspective, span / unit, 1.0 / unit)
    normal = (slope, np.sqrt(1.0 - slope * slope))
    middle = 0.5 * width
    shared: dict[str, Any] = {
        "horizon": horizon,
        "perspective": recede,
        "nearest": 0.15 * height,
        "column": image.uniform("column", -0.5, 1.5) * width,
        "u_scale": across,
        "v_scale": 1.0 / unit,
    }
    out.plane(
        (middle, base),
        normal,
        [ground, ground_second, ground_third],
        active=ground_seen,
        soft=image.uniform("wall edge", 0.8, 3.0),
        texture=texture,
        t=(t0, t1, t2, t3, t4, t5),
        noise=noise,
        shade=style.uniform("ground shade", 0.85, 1.12),
        shade_y=style.uniform("ground gradient", -0.1, 0.25) / height,
        **shared,
    )
    # A second kind of ground beyond a slanting edge: path and lawn, road and pavement.
    edge = image.uniform("edge", -0.2, 1.2) * width
    turn = image.uniform("edge turn", -0.8, 0.8)
    flip = np.where(image.chance("edge side", 0.5), 1.0, -1.0)
    nx, ny = flip / np.sqrt(1.0 + turn * turn), flip * turn / np.sqrt(1.0 + turn * turn)
    other = np.where(image.chance("other green", 0.35)[:, None], turf, _pick(style, "other ground", _GROUNDS))
    split = style.chance("split ground", 0.35) & (family != INDOOR) & (base < 0.1 * height)
    out.plane(
        (edge, 0.5 * height),
        (nx, ny),
        [other, 0.75 * other, 0.9 * other],
        active=split,
        soft=image.uniform("edge soft", 0.8, 5.0),
        texture=TEXTURE["ground"],
        t=(1.4, 0.3, 0.9, 0.35, 0.7, 0.3),
        noise=noise,
        **shared,
    )
    # Kerb, skirting board or lane marking.
    line = (style.chance("kerb", 0.5) & ((family == STREET) | (family == WALL) | (family == INDOOR))) | (
        image.chance("marking", 0.3) & (family == STREET)
    )
    marking = image.chance("on ground", 0.4)
    y = np.where(marking, image.uniform("marking y", 0.05, 0.98) * height, base)
    tilt = np.where(marking, image.normal("marking tilt", 0.0, 0.5), -slope)
    out.sweep(
        np.stack([np.full(n, -8.0), y - (middle + 8.0) * tilt], axis=1),
        np.stack([np.full(n, width + 8.0), y + (middle + 8.0) * tilt], axis=1),
        [image.uniform("kerb width", 0.6, 2.6) * unit],
        [np.where(marking[:, None], 208.0 + 0.0 * ground, 1.15 * ground)],
        active=line,
        soft=1.5,
        opacity=0.85,
    )
    # Posts, trees and railings between wall and person.
    for k in range(2):
        name = f"post {k}"
        active = image.chance(name, np.where(bushes, 0.35, 0.22))
        x = image.uniform(name + " x", -0.05, 1.05) * width
        bottom = np.maximum(base, 0.05 * height) + image.uniform(name + " reach", 0.0, 0.35) * height
        colour = np.where(bushes[:, None], np.asarray([70.0, 58.0, 48.0]), _pick(style, name + " colour", _CLUTTER))
        half = image.uniform(name + " half", 0.8, np.where(bushes, 4.5, 2.2)) * unit
        out.sweep(
            np.stack([x, np.full(n, -10.0)], axis=1),
            np.stack([x + image.normal(name + " lean", 0.0, 1.5), bottom], axis=1),
            [half],
            [colour, 0.7 * colour],
            active=active,
            lit=True,
            soft=1.5,
            texture=np.where(bushes, TEXTURE["mottle"], 0),
            t=(8.0, 4.0, 3.0, 5.0, 9.0, 0.3),
            v_scale=1.0 / unit,
        )
    return out.finish(_post_light(n))


def _post_light(n: int) -> Light:
    return Light(np.full(n, 0.25), np.zeros(n), np.full(n, 0.35), np.full(n, 0.62))


def shadow(style: Style, feet: Floats, scale: Floats, strength: Floats) -> NDArray[np.float32]:
    """Soft shadows: one below each foot and a long one away from the lamp. feet (n, 2, 2) pixels, scale (n, 2)."""
    image = style.image
    out = Primitives(len(image), 3)
    unit = scale[:, 1]
    black = (6.0, 6.0, 10.0)
    for k in range(2):
        reach = np.stack([0.06 * scale[:, 0], np.zeros(len(image))], axis=1)
        out.sweep(
            feet[:, k] - reach,
            feet[:, k] + reach,
            [0.016 * unit],
            [black],
            soft=0.035 * unit,
            opacity=0.65 * strength + 0.15,
        )
    middle = feet.mean(axis=1)
    side = style.uniform("light side", -1.0, 1.0)
    length = style.uniform("shadow length", 0.1, 0.7)
    tip = middle + np.stack(
        [-np.sign(side) * length * scale[:, 0], -style.uniform("shadow rise", -0.08, 0.2) * unit], axis=1
    )
    out.sweep(
        middle,
        tip,
        [0.03 * unit, 0.045 * unit, 0.05 * unit, 0.045 * unit, 0.03 * unit],
        [black],
        soft=0.05 * unit,
        opacity=0.75 * strength,
    )
    return out.finish()
