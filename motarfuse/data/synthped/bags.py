"""Backpacks, shoulder bags, handbags and carrier bags."""

from __future__ import annotations

import numpy as np

from motarfuse.data.synthped import identity as who
from motarfuse.data.synthped.layout import TEXTURE
from motarfuse.data.synthped.limbs import Limbs


def bags(body: Limbs) -> None:
    p, j = body.people, body.joints
    n = len(p)
    colours = [p.bag_colour, p.bag_second, 0.6 * p.bag_colour]
    size = p.bag_size
    backpack = p.bag == who.BACKPACK
    across, deep = 0.066 + 0.030 * size, 0.042 + 0.022 * size
    away = -(0.062 + 0.03 * p.build + deep)
    width = body.width(across, deep)
    pocket = np.where(size > 0.3, TEXTURE["two_tone"], 0)
    body.limb(
        "bag",
        body.point(0.0, -0.03, away, "neck"),
        body.point(0.0, -0.16 - 0.09 * size, away, "neck"),
        [0.8 * width, width, width, 1.02 * width, 0.96 * width],
        colours,
        active=backpack,
        bias=0.083,
        cap=0.35,
        texture=pocket,
        t=[0.10 + 0.05 * size, 80.0, np.where(p.bag_side > 0, 0.010, -1.0), 0.0, 0.0, 0.0],
        wrinkle=0.12,
    )
    chest_depth = 0.062 + 0.026 * p.build
    for strap in (1.0, -1.0):
        body.limb(
            "bag",
            body.point(strap * 0.064, -0.004, 0.03, "neck"),
            body.point(strap * 0.070, -0.15, chest_depth, "neck"),
            [0.011],
            [0.8 * p.bag_colour],
            active=backpack,
            bias=0.040 + 0.034,
            contact=0.0,
        )
    slung = p.bag == who.SHOULDER_BAG
    side = p.bag_side
    hip = side * (0.105 + 0.03 * p.build + 0.01 * size)
    width = body.width(0.03 + 0.012 * size, 0.055 + 0.03 * size)
    body.limb(
        "bag",
        body.point(hip, 0.035, -0.01, "pelvis"),
        body.point(hip, -0.05 - 0.05 * size, -0.01, "pelvis"),
        [0.9 * width, width, width, width, 0.94 * width],
        colours,
        active=slung,
        bias=0.075,
        cap=0.2,
        texture=pocket,
        t=[0.045, 80.0, -1.0, 0.0, 0.0, 0.0],
    )
    for z in (1.0, -1.0):
        depth = z * (chest_depth + 0.004)
        # Crossbody straps start at the far shoulder, the others at the near one.
        start_x = np.where(size > 0.4, -side * 0.065, side * 0.085)
        body.limb(
            "bag",
            body.point(start_x, -0.004, 0.5 * depth, "neck"),
            body.point(0.9 * hip, 0.03, depth, "pelvis"),
            [0.008],
            [0.75 * p.bag_colour],
            active=slung,
            bias=0.052,
            contact=0.0,
        )
    held = (p.bag == who.HANDBAG) | (p.bag == who.CARRIER)
    carrier = p.bag == who.CARRIER
    hand = np.where((side > 0)[:, None], j["left_hand"], j["right_hand"])
    elbow = np.where((side > 0)[:, None], j["left_elbow"], j["right_elbow"])
    hook = np.where(((p.bag == who.HANDBAG) & (size < 0.5))[:, None], 0.45 * hand + 0.55 * elbow, hand)
    handle = np.where(carrier, 0.03, 0.055)
    tall = np.where(carrier, 0.12 + 0.07 * size, 0.055 + 0.05 * size)
    zero = np.zeros(n)
    top = hook - np.stack([zero, handle, zero], axis=1)
    low = top - np.stack([zero, tall, zero], axis=1)
    width = body.width(0.024 + 0.012 * size, np.where(carrier, 0.05 + 0.02 * size, 0.052 + 0.03 * size))
    body.limb("bag", hook, top, [0.006], [0.8 * p.bag_colour], active=held, bias=0.0942, contact=0.0)
    body.limb(
        "bag",
        top,
        low,
        [0.86 * width, 0.95 * width, width, width, 0.98 * width],
        colours,
        active=held,
        bias=0.0945,
        cap=0.15,
        texture=np.where(carrier, TEXTURE["print"], pocket),
        t=[
            np.where(carrier, 0.06, 0.03),
            np.where(carrier, 0.03, 80.0),
            np.where(carrier, 0.7, -1.0),
            12.0,
            np.where(side > 0, 1.0, 1.0),
            0.0,
        ],
        wrinkle=np.where(carrier, 0.25, 0.05),
    )
