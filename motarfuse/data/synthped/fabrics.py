"""Textures of clothes: which one a garment wears, and its numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped import identity as who
from motarfuse.data.synthped.layout import TEXTURE
from motarfuse.data.synthped.limbs import Limbs
from motarfuse.data.synthped.primitives import Value


def top_texture(body: Limbs, sleeve: bool) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
    """Texture index and parameters of the upper garment."""
    p = body.people
    kind = p.top_texture
    if sleeve:
        kept = (kind == who.HOOPS) | (kind == who.PINSTRIPES) | (kind == who.CHECKS) | (kind == who.MOTTLED)
        kind = np.where(kept & (p.sleeve_colour == p.top_colour).all(axis=1), kind, who.PLAIN)
    texture = np.asarray(
        [
            TEXTURE[name]
            for name in (
                "plain",
                "stripe_v",
                "stripe_u",
                "check",
                "print",
                "print",
                "two_tone",
                "mottle",
                "open",
                "open",
            )
        ]
    )[kind]
    s, d = p.top_scale, p.top_detail
    period = 0.03 + 0.075 * s * s
    sharp = np.maximum(period * body.sy * 0.25, 0.7)
    balance = 0.5 + (d - 0.5) * sharp
    vertical = 2.0 + 5.0 * (1.0 - s)
    t = np.zeros((6, len(p)))

    def fill(mask: NDArray[np.bool_], *values: Value) -> None:
        for k, value in enumerate(values):
            t[k] = np.where(mask, value, t[k])

    fill(kind == who.HOOPS, 1.0 / period, balance, sharp, 0.25)
    fill(kind == who.PINSTRIPES, vertical * 0.5, 0.1 + 0.6 * d, 1.4, 0.0)
    fill(kind == who.CHECKS, 0.8 / period, 0.3 + 0.4 * d, sharp, vertical * 0.4, np.where(d > 0.5, 0.6, 0.0))
    front = kind == who.FRONT_PRINT
    fill(
        front | (kind == who.BACK_PRINT),
        0.09 + 0.05 * d,
        0.022 + 0.05 * s,
        0.22 + 0.35 * s,
        14.0 + 16.0 * d,
        np.where(front, 0.0, 2.0),
        200.0 * s,
    )
    fill(kind == who.TWO_TONE, 0.07 + 0.13 * s, 90.0, np.where(d > 0.45, 0.008 + 0.03 * (d - 0.45), -1.0))
    fill(kind == who.MOTTLED, 10.0 + 14.0 * s, 90.0 + 120.0 * s, 3.5, 250.0 * d, 250.0 * s, 0.1)
    # An open front widens downwards, a neckline narrows.
    fill(kind == who.OPEN, 0.10 + 0.20 * s, 0.9 * d, 9.0, np.where(d > 0.6, 0.07, -1.0), 0.8)
    fill(kind == who.V_NECK, 0.42 + 0.1 * s, -(3.6 + 3.0 * d), 9.0, np.where(s > 0.5, 0.06, -1.0), 0.7)
    return texture, [*t]


def bottom_texture(body: Limbs) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
    p = body.people
    kind = p.bottom_texture
    texture = np.asarray([TEXTURE[name] for name in ("plain", "side", "check", "mottle", "mottle")])[kind]
    s = p.bottom_scale
    period = 0.035 + 0.05 * s
    sharp = np.maximum(period * body.sy * 0.25, 0.7)
    table = (
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        (0.16 + 0.2 * s, 0.0, 7.0, 0.0, 0.0, 0.0),
        (1.0 / period, 0.4, sharp, 1.2, 0.5, 0.0),
        (12.0, 110.0 + 80.0 * s, 3.0, 200.0 * s, 90.0 * s, 0.0),
        (20.0, 60.0, 0.9, 200.0 * s, 90.0 * s, 0.25),
    )
    t = [np.select([kind == k for k in range(len(table))], [row[i] for row in table]) for i in range(6)]
    return texture, t
