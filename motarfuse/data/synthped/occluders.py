"""What stands before people: posts, boxes, leaves, cars and panels. Other pedestrians are drawn by `body`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped import layout
from motarfuse.data.synthped.draws import Draws, Floats
from motarfuse.data.synthped.layout import OCCLUDER, TEXTURE
from motarfuse.data.synthped.primitives import Light, Primitives, Value

OCCLUDERS = ("post", "box", "foliage", "pedestrian", "car", "panel")
POST, BOX, FOLIAGE, PEDESTRIAN, CAR, PANEL = range(6)
WEIGHTS = (18, 18, 16, 22, 13, 13)

_SOLID = np.asarray(
    [
        (70, 72, 78),
        (140, 138, 134),
        (186, 180, 168),
        (104, 70, 48),
        (52, 74, 110),
        (150, 44, 42),
        (206, 176, 70),
        (44, 62, 50),
        (216, 216, 214),
        (30, 32, 36),
    ],
    dtype=np.float64,
)
_LEAVES = np.asarray([(66, 96, 44), (92, 118, 56), (54, 76, 44), (118, 110, 58), (84, 104, 70)], dtype=np.float64)


def paint(
    kind: NDArray[np.int64], size: Floats, body: Floats, draws: Draws, light: Light, height: int, width: int
) -> NDArray[np.float32]:
    """Primitives (n, count, fields) of the occluders.

    Args:
        kind: (n,) index into `OCCLUDERS`, -1 for none.
        size: (n,) how much of the body it shall hide, about.
        body: (n, 4) the body's box in pixels: x0, y0, x1, y1.
        draws: Draws of the images.
        light: Lamps of the images.
        height: Of the crop.
        width: Of the crop.
    """
    n = len(kind)
    out = Primitives(n, 16)
    unit = height / 128.0
    x0, y0, x1, y1 = body.T
    wide, tall = x1 - x0, y1 - y0
    middle = 0.5 * (x0 + x1)
    solid = np.clip(
        _SOLID[draws.integer("solid", len(_SOLID))] + draws.uniform("solid shift", -18.0, 18.0, columns=3), 8.0, 246.0
    )
    noise = (draws.uniform("occluder noise x", 0.0, 256.0), draws.uniform("occluder noise y", 0.0, 256.0))

    def sweep(
        active: NDArray[np.bool_],
        ax: Value,
        ay: Value,
        bx: Value,
        by: Value,
        widths: list[Value],
        colours: list[Floats],
        **options: Any,
    ) -> None:
        start = np.stack([np.broadcast_to(np.asarray(v, np.float64), (n,)) for v in (ax, ay)], axis=1)
        end = np.stack([np.broadcast_to(np.asarray(v, np.float64), (n,)) for v in (bx, by)], axis=1)
        settings: dict[str, Any] = {
            "label": OCCLUDER,
            "layer": layout.LAYER_OCCLUDER,
            "noise": (*noise, 24.0, 1.6 / unit),
            "v_scale": 1.0 / unit,
        }
        settings.update(options)
        out.sweep(start, end, widths, colours, active=active, **settings)

    # A post or trunk near the middle of the body, from the top or to the ground.
    post = kind == POST
    half = np.maximum(0.34 * size * wide, 1.2 * unit)
    x = middle + draws.uniform("post x", -0.14, 0.14) * wide
    trunk = draws.chance("trunk", 0.45)
    bark = np.where(
        trunk[:, None], np.asarray([86.0, 70.0, 56.0]) + draws.uniform("bark", -20.0, 20.0, columns=3), solid
    )
    sweep(
        post,
        x,
        -12.0,
        x + draws.normal("post lean", 0.0, 2.0) * unit,
        height + 12.0,
        [half * 0.92, half, half, half, half * 1.12],
        [bark, 0.55 * bark, 1.25 * bark],
        lit=True,
        texture=np.where(trunk, TEXTURE["mottle"], np.where(draws.chance("banded", 0.3), TEXTURE["stripe_v"], 0)),
        t=(np.where(trunk, 14.0, 0.06), np.where(trunk, 2.0, 0.2), np.where(trunk, 2.5, 2.0), 20.0, 40.0, 0.0),
        wrinkle=0.2,
    )

    # A box, wall, bin or bench that hides the lower body.
    box = kind == BOX
    top = y1 - size * draws.uniform("box height", 0.85, 1.05) * tall
    spread = np.where(draws.chance("long box", 0.5), 3.0 * wide, 0.62 * wide)
    x = middle + draws.uniform("box x", -0.12, 0.12) * wide
    texture = np.asarray([0, TEXTURE["brick"], TEXTURE["stripe_v"], TEXTURE["stripe_u"], TEXTURE["ground"]])[
        draws.choice("box kind", (25, 20, 20, 15, 20))
    ]
    flat = {"u_angle": 0.0, "u_flat": 1.0 / unit, "cap": 0.0}
    is_brick, is_ground = texture == TEXTURE["brick"], texture == TEXTURE["ground"]
    t = (
        np.select([is_brick, is_ground], [0.07, 1.1], draws.uniform("board", 0.05, 0.16)),
        np.select([is_brick, is_ground], [0.13, 0.4], 0.25),
        np.select([is_brick, is_ground], [0.76, 1.0], 1.6),
        np.select([is_brick, is_ground], [5.0, 0.3], 0.0),
        np.select([is_brick, is_ground], [0.25, 0.6], 0.0),
        np.select([is_brick, is_ground], [0.7, 0.4], 0.0),
    )
    sweep(
        box,
        x,
        top,
        x,
        height + 20.0,
        [spread],
        [solid, 0.68 * solid, 1.18 * solid],
        texture=texture,
        t=t,
        shade=draws.uniform("box shade", 0.75, 1.05),
        **flat,
    )
    sweep(box, x, top, x, top + 0.05 * tall, [spread], [np.clip(1.25 * solid, 0, 250)], shade=1.0, **flat)

    # Leaves: clumps from below and from one side.
    leaves = kind == FOLIAGE
    green = np.clip(
        _LEAVES[draws.integer("leaves", len(_LEAVES))] + draws.uniform("leaf shift", -16.0, 16.0, columns=3), 8.0, 240.0
    )
    low = draws.chance("low bush", 0.6)
    scale = draws.uniform("leaf size", 1.3, 3.2)
    for k in range(3):
        name = f"clump {k}"
        side = np.where(draws.chance("bush side", 0.5), 1.0, -1.0)
        x = np.where(
            low,
            middle + draws.uniform(name + " x", -0.6, 0.6) * wide,
            middle + side * (0.62 - 0.5 * size + draws.uniform(name + " in", -0.1, 0.15)) * wide,
        )
        y = np.where(low, y1 - 0.35 * size * tall, y0 + (0.2 + 0.3 * k) * tall)
        radius = np.where(low, 0.80 * size * tall, 0.55 * wide) * draws.uniform(name + " r", 0.8, 1.15)
        sweep(
            leaves,
            x,
            y,
            x + 0.1,
            y + np.where(low, 0.5, 0.25) * radius,
            [radius],
            [green, 0.45 * green, np.clip(1.5 * green, 0, 245)],
            texture=TEXTURE["foliage"],
            t=(scale, -0.55, 0.55, 4.0, 1.2, 0.0),
            u_angle=0.0,
            u_flat=1.0 / unit,
            shade=draws.uniform(name + " shade", 0.8, 1.1),
            noise=(noise[0] + 31.0 * k, noise[1] + 57.0 * k, 0.0, 0.0),
        )

    # A car: body, cabin, glass and wheels, side view, the lower body behind it.
    car = kind == CAR
    roof = y1 - size * 1.08 * tall
    x = middle + draws.uniform("car x", -1.2, 1.2) * wide
    waist = roof + 0.34 * (height - roof)
    glass = np.asarray([44.0, 52.0, 62.0]) + draws.uniform("glass", -12.0, 20.0, columns=3)
    sweep(
        car,
        x,
        roof,
        x,
        waist + 0.1 * tall,
        [1.1 * wide, 1.35 * wide, 1.5 * wide, 1.6 * wide, 1.65 * wide],
        [solid],
        cap=0.05,
        u_angle=0.0,
    )
    for end in (-1.0, 1.0):
        sweep(
            car,
            x + end * 0.72 * wide,
            roof + 0.05 * tall,
            x + end * 0.80 * wide,
            waist,
            [0.48 * wide, 0.56 * wide, 0.6 * wide],
            [glass, np.clip(glass * 2.0, 0, 220)],
            cap=0.05,
            u_angle=0.0,
            u_flat=0.1,
            texture=TEXTURE["two_tone"],
            t=(4.0, 0.1, -1.0),
        )
    sweep(
        car,
        x,
        waist,
        x,
        height + 20.0,
        [2.6 * wide],
        [solid, 0.72 * solid],
        cap=0.08,
        u_angle=0.0,
        texture=TEXTURE["two_tone"],
        t=(0.14 * 128.0, 0.2, 1.0),
    )
    for end in (-1.0, 1.0):
        y = waist + 0.75 * (height - waist)
        sweep(car, x + end * 1.6 * wide, y, x + end * 1.6 * wide, y + 0.1, [0.42 * wide], [np.full((n, 3), 26.0)])

    # A panel, door or column edge that hides one side.
    panel = kind == PANEL
    side = np.where(draws.chance("panel side", 0.5), 1.0, -1.0)
    inner = middle + side * (0.5 - size) * 0.52 * wide
    outer = middle + side * 4.0 * wide
    sweep(
        panel,
        0.5 * (inner + outer),
        -20.0,
        0.5 * (inner + outer),
        height + 20.0,
        [0.5 * np.abs(outer - inner)],
        [solid, 0.75 * solid, 1.2 * solid],
        texture=np.where(draws.chance("panel lines", 0.5), TEXTURE["stripe_v"], TEXTURE["ground"]),
        t=(draws.uniform("panel period", 0.04, 0.2), 0.15, 1.6, 0.3, 0.6, 0.3),
        shade=draws.uniform("panel shade", 0.7, 1.1),
        **flat,
    )
    return out.finish(light)
