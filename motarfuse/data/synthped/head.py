"""Heads, hair and hats."""

from __future__ import annotations

import numpy as np

from motarfuse.data.synthped import identity as who
from motarfuse.data.synthped.layout import PART, TEXTURE
from motarfuse.data.synthped.limbs import Limbs


def head(body: Limbs) -> None:
    p, j = body.people, body.joints
    crown, chin = j["crown"], j["chin"]
    up = crown - chin
    hooded = p.hat == who.HOOD
    covered = hooded | (p.hat == who.BEANIE)
    curly = (p.hair == who.CURLY) & ~covered
    volume = 1.0 + 0.05 * p.hair_volume * (p.hair != who.SHAVED) + 0.10 * curly + 0.10 * hooded
    width = body.head_width(0.042, 0.051) * p.head
    profile = [0.78 * volume, 1.0 * volume, 1.0 + 0.5 * (volume - 1.0), 0.88, 0.58]
    hair = np.where(hooded[:, None], p.top_colour * 0.95, p.hair_colour)
    long = (p.hair == who.BOB) | (p.hair == who.LONG)
    line = np.where(hooded, 0.22, p.hair_line)
    half_angle = np.select([hooded, long, curly], [0.62, 0.66, 0.78], 0.92)
    nape = np.select([hooded, long, p.hair == who.SHAVED], [1.4, 1.2, 0.55], 0.86)
    body.limb(
        "head",
        crown - 0.10 * up,
        chin + 0.10 * up,
        [width * k for k in profile],
        [p.skin, hair, np.asarray([34.0, 28.0, 28.0])],
        bias=0.085,
        centres=[0.0, -0.003 * body.head_sin, 0.0, 0.004 * body.head_sin, 0.010 * body.head_sin],
        cap=0.62,
        texture=TEXTURE["face"],
        t=[
            line,
            half_angle,
            nape,
            p.glasses,
            p.beard,
            np.where(hooded, PART["hat"], PART["hair"]) if body.label is None else body.label,
        ],
        u0=body.head_u0,
        unit_v=True,
    )
    back = body.head_offset(-0.030)
    strands = [p.hair_colour, 1.15 * p.hair_colour]
    free = ~hooded
    bob, flowing = p.hair == who.BOB, p.hair == who.LONG
    w = body.head_width(0.050, 0.040) * p.head * (1.0 + 0.08 * p.hair_volume)
    body.limb(
        "hair",
        crown - 0.2 * up + 0.6 * back,
        chin - 0.02 * up + back,
        [w * 0.8, w, w * 1.04, w, w * 0.86],
        strands,
        active=bob & free,
        bias=0.080,
        cap=0.5,
        wrinkle=0.25,
    )
    reach = 0.55 + 0.75 * p.hair_volume
    tail = chin - up * reach[:, None] + back + np.asarray([0.0, 0.0, -0.014])
    body.limb(
        "hair",
        crown - 0.2 * up + 0.6 * back,
        tail,
        [w * 0.8, w * 1.02, w * 1.0, w * 0.92, w * 0.66],
        strands,
        active=flowing & free,
        bias=0.083,
        cap=0.5,
        wrinkle=0.25,
    )
    knot = crown - 0.30 * up + body.head_offset(-0.060)
    drop = knot + body.head_offset(-0.016) - up * (0.7 + 0.9 * p.hair_volume)[:, None]
    body.limb(
        "hair",
        knot,
        drop,
        [0.016, 0.021, 0.021, 0.017, 0.008],
        strands,
        active=(p.hair == who.PONYTAIL) & free,
        bias=0.084,
        wrinkle=0.2,
    )
    ball = crown - 0.02 * up + body.head_offset(-0.034)
    body.limb(
        "hair",
        ball,
        ball - 0.08 * up,
        [0.024],
        strands,
        active=(p.hair == who.BUN) & ~covered & (p.hat != who.CAP),
        bias=0.084,
    )
    # Hats sit on the upper half of the head.
    brim = (p.hat == who.CAP) | (p.hat == who.BRIM)
    shell = body.head_width(0.046, 0.055) * p.head
    low = np.where(p.hat == who.BEANIE, 0.42, 0.34)[:, None]
    rim = body.head_offset(0.0)
    body.limb(
        "hat",
        crown - 0.06 * up,
        crown - low * up + rim,
        [shell * 0.74, shell * 0.96, shell * 1.02, shell * 1.04, shell * 1.04],
        [p.hat_colour, 0.8 * p.hat_colour],
        active=brim | (p.hat == who.BEANIE),
        bias=0.0865,
        cap=np.where(p.hat == who.BEANIE, 0.75, 0.5),
        u0=body.head_u0,
        wrinkle=0.06,
    )
    front = crown - 0.33 * up
    body.limb(
        "hat",
        front + body.head_offset(0.042),
        front + body.head_offset(0.088) - 0.05 * up,
        [body.head_width(0.034, 0.008), body.head_width(0.026, 0.006)],
        [0.85 * p.hat_colour],
        active=p.hat == who.CAP,
        bias=0.087,
        cap=0.4,
    )
    side = body.head_width(0.082, 0.086)
    body.limb(
        "hat",
        front + 0.02 * up,
        front - 0.04 * up,
        [side * 0.94, side, side],
        [0.9 * p.hat_colour],
        active=p.hat == who.BRIM,
        bias=0.0862,
        cap=0.3,
    )
