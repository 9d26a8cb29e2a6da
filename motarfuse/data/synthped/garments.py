"""Clothes and the limbs in them."""

from __future__ import annotations

import numpy as np

from motarfuse.data.synthped import identity as who
from motarfuse.data.synthped.draws import Floats
from motarfuse.data.synthped.fabrics import bottom_texture, top_texture
from motarfuse.data.synthped.layout import TEXTURE
from motarfuse.data.synthped.limbs import Limbs
from motarfuse.data.synthped.primitives import Value


def trunk(body: Limbs) -> None:
    p, j = body.people, body.joints
    outer = ((p.top == who.JACKET) | (p.top == who.COAT)).astype(np.float64)
    ease = 0.004 + 0.012 * p.loose + 0.006 * outer
    neck, pelvis = j["neck"], j["pelvis"]
    hem = np.where((p.top == who.COAT) | (p.top == who.DRESS), 0.47, p.top_length)
    drop = np.clip((pelvis[:, 1] - hem) / np.maximum(neck[:, 1] - pelvis[:, 1], 0.1), -0.1, 0.5)
    bottom = pelvis + (pelvis - neck) * drop[:, None]
    top = neck + np.asarray([0.0, -0.012, 0.0])
    tank = p.top == who.TANK
    chest = p.shoulder * np.where(tank, 0.92, 1.04) + ease
    waist = 0.070 + 0.040 * p.build - 0.012 * p.shape + ease
    hips = 0.076 + 0.030 * p.build + 0.012 * p.shape + ease
    skirted = np.where((p.top == who.DRESS), 0.006, 0.0)
    lateral = [p.shoulder * 0.70 + 0.5 * ease, chest, waist, hips, hips + 0.3 * ease + skirted]
    depth = [
        0.046 + 0.5 * ease,
        0.058 + 0.024 * p.build + 0.006 * p.shape + ease,
        0.052 + 0.042 * p.build + ease,
        0.062 + 0.032 * p.build + ease,
        0.062 + 0.03 * p.build + ease,
    ]
    forward = [-0.004, 0.008 + 0.006 * p.shape, 0.004 + 0.02 * p.build, -0.008, -0.006]
    texture, t = top_texture(body, sleeve=False)
    body.limb(
        "torso",
        top,
        bottom,
        [body.width(a, b) for a, b in zip(lateral, depth, strict=True)],
        [p.top_colour, p.top_second, p.top_third],
        bias=0.07,
        centres=[f * body.sin for f in forward],
        cap=0.22,
        texture=texture,
        t=t,
        wrinkle=0.07 + 0.10 * p.loose,
        contact=0.8,
    )
    # Neck: skin below the chin, drawn over the collar's middle.
    body.limb(
        "head",
        j["chin"] + np.asarray([0.0, 0.02, -0.012]),
        neck + np.asarray([0.0, -0.01, 0.0]),
        [0.029 + 0.006 * p.build],
        [p.skin],
        bias=0.066,
    )
    opening = (p.top == who.T_SHIRT) | tank | (p.top == who.DRESS)
    body.limb(
        "head",
        body.point(0.0, 0.0, 0.045, "neck"),
        body.point(0.0, -0.03, 0.055, "neck"),
        [0.034, 0.03, 0.026, 0.02, 0.014],
        [p.skin],
        active=opening | (p.top_texture == who.V_NECK),
        bias=0.072,
        contact=0.0,
    )
    body.limb(
        "torso",
        neck + np.asarray([0.0, 0.014, -0.004]),
        neck + np.asarray([0.0, -0.006, 0.004]),
        [body.width(0.036, 0.040), body.width(0.042, 0.044), body.width(0.05, 0.046)],
        [0.88 * p.top_colour],
        active=((p.top == who.SHIRT) | (p.top == who.JACKET) | (p.top == who.COAT)) & ~p.hood,
        bias=0.0745,
        cap=0.3,
    )
    body.limb(
        "torso",
        body.point(0.0, 0.022, -0.045, "neck"),
        body.point(0.0, -0.035, -0.062, "neck"),
        [
            body.width(0.045, 0.03),
            body.width(0.062, 0.036),
            body.width(0.066, 0.036),
            body.width(0.055, 0.03),
            body.width(0.03, 0.02),
        ],
        [0.93 * p.top_colour],
        active=p.hood & (p.hat != who.HOOD),
        bias=0.074,
    )
    body.limb(
        "torso",
        neck + np.asarray([0.0, 0.02, 0.004]),
        neck + np.asarray([0.0, -0.016, 0.012]),
        [body.width(0.044, 0.046), body.width(0.054, 0.054), body.width(0.058, 0.058)],
        [p.scarf_colour],
        active=p.scarf,
        bias=0.078,
        wrinkle=0.25,
    )


def lower_garment(body: Limbs) -> None:
    """Coat tails, dresses and skirts: one cone from the hips to the hem, wide enough for the stride."""
    p, j = body.people, body.joints
    tail = (p.top == who.COAT) | (p.top == who.DRESS)
    skirt = (p.bottom == who.SKIRT) & ~tail
    hem = np.where(tail, p.top_length, p.bottom_length)
    pelvis = j["pelvis"]
    start = pelvis + np.asarray([0.0, 0.012, 0.0])
    span = np.maximum(pelvis[:, 1] - hem, 0.05)
    middle = 0.5 * (j["left_knee"] + j["right_knee"])
    end = pelvis + (middle - pelvis) * (span / np.maximum(pelvis[:, 1] - middle[:, 1], 0.08))[:, None]
    knees, _ = body.view.project(np.stack([j["left_knee"], j["right_knee"]], axis=1))
    ankles, _ = body.view.project(np.stack([j["left_ankle"], j["right_ankle"]], axis=1))
    below = np.clip((span - 0.245) / 0.235, 0.0, 0.7)
    spread = 0.5 * np.abs(knees[:, 0, 0] - knees[:, 1, 0]) * np.minimum(span / 0.245, 1.0) + below * 0.35 * np.abs(
        ankles[:, 0, 0] - ankles[:, 1, 0]
    )
    hips = body.width(0.082 + 0.03 * p.build + 0.012 * p.shape, 0.066 + 0.032 * p.build)
    flare = np.where(tail, 0.008 + 0.03 * p.loose, 0.05 * p.bottom_scale * (1.0 + 0.4 * p.loose)) * np.minimum(
        span / 0.2, 1.3
    )
    at_hem = np.maximum(hips + flare, spread + body.width(0.05, 0.052) + 0.3 * flare)
    widths = [hips, hips + 0.3 * (at_hem - hips), hips + 0.58 * (at_hem - hips), hips + 0.82 * (at_hem - hips), at_hem]
    texture, t = top_texture(body, sleeve=False)
    skirt_texture, skirt_t = bottom_texture(body)
    mask = tail[:, None]
    moved = np.where(
        (np.asarray(texture) == TEXTURE["print"]) | (np.asarray(texture) == TEXTURE["two_tone"]), 0, texture
    )
    neckline = p.top_texture == who.V_NECK
    moved = np.where(neckline, 0, moved)
    body.limb(
        "lower_garment",
        start,
        end,
        widths,
        [
            np.where(mask, p.top_colour, p.bottom_colour),
            np.where(mask, p.top_second, p.bottom_second),
            np.where(mask, p.top_third, p.bottom_second),
        ],
        active=tail | skirt,
        bias=np.maximum(0.062, _above_thighs(body, start, end)),
        centres=[-0.004 * body.sin],
        cap=0.12,
        texture=np.where(tail, moved, skirt_texture),
        t=[np.where(tail, a, b) for a, b in zip(t, skirt_t, strict=True)],
        wrinkle=0.16,
    )


def _above_thighs(body: Limbs, start: Floats, end: Floats) -> Value:
    """The bias that paints a skirt after the thighs below it, also after one that is lifted towards the camera."""
    j = body.joints
    left, right = (body.below(start, end, (j[f"{side}_hip"], j[f"{side}_knee"])) for side in ("left", "right"))
    return np.minimum(np.maximum(left, right) + 0.006, 0.12)


def legs(body: Limbs) -> None:
    p, j = body.people, body.joints
    texture, t = bottom_texture(body)
    trousers = p.bottom <= who.WIDE
    tights = ((p.bottom == who.SKIRT) | ((p.top == who.DRESS) & (p.bottom == who.SHORTS))) & (p.bottom_scale < 0.35)
    leg_skin = np.where(tights[:, None], np.asarray([38.0, 36.0, 40.0]), p.skin)
    cloth = trousers | (p.bottom == who.LEGGINGS) | ((p.bottom == who.SHORTS) & (p.top != who.DRESS))
    colours = [p.bottom_colour, p.bottom_second, p.bottom_second]
    ease = np.select(
        [p.bottom == who.SLIM, p.bottom == who.JEANS, p.bottom == who.WIDE, p.bottom == who.SHORTS],
        [0.003, 0.006, 0.013, 0.013],
        0.001,
    )
    heavy = 0.018 * p.build
    thigh = [0.056 + heavy, 0.053 + heavy, 0.047 + 0.9 * heavy, 0.041 + 0.8 * heavy, 0.037 + 0.7 * heavy]
    shin = [0.036 + 0.6 * heavy, 0.037 + 0.6 * heavy, 0.033 + 0.5 * heavy, 0.026 + 0.4 * heavy, 0.021 + 0.3 * heavy]
    hem_widths = np.select(
        [p.bottom == who.WIDE, p.bottom == who.JEANS], [0.016 + 0.012 * p.bottom_scale, 0.007], 0.002
    )
    for name in ("left", "right"):
        hip, knee, ankle = j[name + "_hip"], j[name + "_knee"], j[name + "_ankle"]
        body.limb(f"{name}_upper_leg", hip, knee, thigh, [leg_skin], active=~trousers, bias=-0.004, fade="end")
        # Below long trousers only the ankle is bare; a knee drawn there would shine through a bend.
        bare = np.where(cloth & (p.bottom != who.SHORTS), 0.5, 0.0)[:, None]
        hem = np.where(p.bottom == who.SHORTS, 1.0, np.clip((0.285 - p.bottom_length) / 0.235, 0.4, 1.05))[:, None]
        trouser_leg = (knee, knee + (ankle - knee) * np.where(cloth[:, None], hem, 1.0))
        top = knee + (ankle - knee) * bare
        body.limb(
            f"{name}_lower_leg",
            top,
            ankle,
            shin,
            [leg_skin],
            bias=body.below(top, ankle, trouser_leg) - 0.006,
            fade="start",
        )
        boot = np.clip((p.boot - 0.03) / 0.235, 0.05, 0.95)[:, None]
        body.limb(
            f"{name}_lower_leg",
            ankle + (knee - ankle) * boot,
            ankle,
            [0.028 + 0.4 * heavy, 0.026, 0.024],
            [p.sock_colour],
            bias=body.below(ankle + (knee - ankle) * boot, ankle, trouser_leg) - 0.003,
        )
        short = p.bottom == who.SHORTS
        fraction = np.where(short, np.clip((0.52 - p.bottom_length) / 0.245, 0.35, 1.0), 1.0)[:, None]
        widths = [w + ease + np.where(short, 0.25 * k * ease, 0.0) for k, w in enumerate(thigh)]
        body.limb(
            f"{name}_upper_leg",
            hip,
            hip + (knee - hip) * fraction,
            widths,
            colours,
            active=cloth,
            cap=np.where(short, 0.2, 1.0),
            texture=texture,
            t=t,
            wrinkle=0.12,
            fade="end",
        )
        fraction = np.clip((0.285 - p.bottom_length) / 0.235, 0.4, 1.05)[:, None]
        widths = [w + ease + hem_widths * (0.3 + 0.7 * k / 4.0) for k, w in enumerate(shin)]
        body.limb(
            f"{name}_lower_leg",
            knee,
            knee + (ankle - knee) * fraction,
            widths,
            colours,
            active=cloth & ~short,
            bias=0.002,
            cap=0.5,
            texture=texture,
            t=t,
            wrinkle=0.16,
            fade="start",
        )
        heel, toe = j[name + "_heel"], j[name + "_toe"]
        low = np.asarray([0.0, -0.006, 0.0])
        body.limb(
            f"{name}_foot",
            heel + low,
            toe + low,
            [0.02, 0.021, 0.022, 0.024, 0.018],
            [p.sole_colour],
            bias=-0.002,
            contact=0.0,
        )
        body.limb(
            f"{name}_foot",
            heel + np.asarray([0.0, 0.006, 0.0]),
            toe,
            [0.024, 0.025, 0.022, 0.021, 0.015],
            [p.shoe_colour],
            bias=0.0,
        )
        body.limb(
            f"{name}_foot",
            ankle,
            0.6 * heel + 0.4 * toe,
            [0.022, 0.024, 0.024],
            [p.shoe_colour],
            bias=0.001,
            contact=0.0,
        )
    # The seat joins both legs below the hem of the top.
    widths = [body.width(0.074 + 0.03 * p.build + 0.012 * p.shape, 0.062 + 0.03 * p.build)]
    taper = [widths[0], widths[0], widths[0] * 0.97, widths[0] * 0.9, widths[0] * 0.74]
    body.limb(
        "lower_garment",
        j["pelvis"] + np.asarray([0.0, 0.05, 0.0]),
        j["pelvis"] - np.asarray([0.0, 0.035, 0.0]),
        taper,
        colours,
        active=cloth,
        bias=0.045,
        centres=[-0.006 * body.sin],
        cap=0.4,
        texture=np.where(texture == TEXTURE["side"], 0, texture),
        t=t,
        wrinkle=0.08,
        contact=0.0,
    )


def arms(body: Limbs) -> None:
    p, j = body.people, body.joints
    texture, t = top_texture(body, sleeve=True)
    colours = [p.sleeve_colour, p.top_second, p.top_third]
    heavy = 0.010 * p.build
    outer = ((p.top == who.JACKET) | (p.top == who.COAT)).astype(np.float64)
    ease = 0.003 + 0.006 * p.loose + 0.003 * outer
    upper = [0.021 + heavy, 0.024 + heavy, 0.0235 + heavy, 0.022 + heavy, 0.021 + heavy]
    lower = [0.022 + heavy, 0.022 + heavy, 0.020 + heavy, 0.017 + 0.7 * heavy, 0.014 + 0.6 * heavy]
    # Seen from the front the arms hang beside the trunk and lie on it; from the side one is hidden by it.
    for name in ("left", "right"):
        shoulder, elbow, wrist, hand = (j[f"{name}_{part}"] for part in ("shoulder", "elbow", "wrist", "hand"))
        long = p.sleeve > 1.5
        body.limb(f"{name}_upper_arm", shoulder, elbow, upper, [p.skin], active=~long, bias=0.088, fade="end")
        body.limb(f"{name}_lower_arm", elbow, wrist, lower, [p.skin], active=~long, bias=0.092, fade="start")
        body.limb(f"{name}_hand", wrist, hand, [0.014, 0.018, 0.019, 0.016, 0.010], [p.skin], bias=0.093)
        part = np.clip(p.sleeve, 0.0, 1.0)[:, None]
        short = p.sleeve < 0.99
        widths = [w + ease + np.where(short, 0.0015 * k, 0.0) for k, w in enumerate(upper)]
        body.limb(
            f"{name}_upper_arm",
            shoulder,
            shoulder + (elbow - shoulder) * part,
            widths,
            colours,
            active=p.sleeve > 0.1,
            bias=0.090,
            cap=np.where(short, 0.6, 1.0),
            texture=texture,
            t=t,
            wrinkle=0.06 + 0.12 * p.loose,
            fade="end",
        )
        widths = [w + ease + 0.003 * outer for w in lower]
        body.limb(
            f"{name}_lower_arm",
            elbow,
            elbow + (wrist - elbow) * 0.97,
            widths,
            colours,
            active=long,
            bias=0.094,
            cap=0.7,
            texture=texture,
            t=t,
            wrinkle=0.08 + 0.12 * p.loose,
            fade="start",
        )
