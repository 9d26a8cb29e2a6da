"""A person as primitives: limbs, clothes, hair and bags hung on projected joints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from motarfuse.data.synthped import identity as who
from motarfuse.data.synthped import layout
from motarfuse.data.synthped.draws import Draws, Floats
from motarfuse.data.synthped.identity import Identities
from motarfuse.data.synthped.layout import PART, TEXTURE
from motarfuse.data.synthped.pose import DEGREE, View
from motarfuse.data.synthped.primitives import Colour, Light, Primitives, Value

CAPACITY = 64


@dataclass(frozen=True)
class Frame:
    """Image plane -> pixels: pixel = origin + scale * point, n of each."""

    origin: Floats  # (n, 2)
    scale: Floats  # (n, 2) pixels per height of the body, across and down

    def pixels(self, points: Floats) -> Floats:
        """(n, 2) or (n, k, 2) points of the image plane in pixels."""
        extra = (1,) * (points.ndim - 2)
        return self.origin.reshape(-1, *extra, 2) + self.scale.reshape(-1, *extra, 2) * points


class BodyPainter:
    """Writes the primitives of n people; labels are the parts', or one fixed label for people who are scenery."""

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
    ) -> None:
        self.people, self.joints, self.view, self.frame, self.light = people, joints, view, frame, light
        self.layer, self.label = layer, label
        self.out = Primitives(len(people), CAPACITY)
        self.cos, self.sin = np.cos(view.yaw * DEGREE), np.sin(view.yaw * DEGREE)
        self.head_cos, self.head_sin = np.cos((view.yaw + head_yaw) * DEGREE), np.sin((view.yaw + head_yaw) * DEGREE)
        self.u0 = -view.yaw / 90.0
        self.head_u0 = -(view.yaw + head_yaw) / 90.0
        self.noise = draws.uniform("cloth noise", 0.0, 256.0, columns=2)
        self.contact = 0.34 if layer == layout.LAYER_SUBJECT else 0.0
        self.sx, self.sy = frame.scale[:, 0], frame.scale[:, 1]

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
        bias: float = 0.0,
        active: Value = True,
        centres: Sequence[Value] = (0.0,),
        cap: Value = 1.0,
        texture: Value = 0,
        t: Sequence[Value] = (),
        u0: Floats | None = None,
        unit_v: bool = False,
        wrinkle: Value = 0.0,
        opacity: Value = 1.0,
        contact: float = 1.0,
        depth: Value | None = None,
    ) -> None:
        """A sweep between two 3D points; half widths and centres in heights of the body."""
        a, depth_a = self.view.project(start)
        b, depth_b = self.view.project(end)
        axis = b - a
        plane_length = np.maximum(np.sqrt((axis * axis).sum(axis=1)), 1e-4)
        nx, ny = axis[:, 1] / plane_length, -axis[:, 0] / plane_length
        across = np.sqrt((self.sx * nx) ** 2 + (self.sy * ny) ** 2)
        pa, pb = self.frame.pixels(a), self.frame.pixels(b)
        pixel_length = np.maximum(np.sqrt(((pb - pa) ** 2).sum(axis=1)), 0.05)
        v_scale = 1.0 / pixel_length if unit_v else plane_length / pixel_length
        self.out.sweep(
            pa,
            pb,
            [np.maximum(w * across, 0.45) for w in widths],
            colours,
            active=active,
            label=PART[part] if self.label is None else self.label,
            layer=self.layer,
            centres=[c * across for c in centres],
            cap=cap,
            soft=1.0,
            opacity=opacity,
            texture=texture,
            t=t,
            u0=self.u0 if u0 is None else u0,
            v_scale=v_scale,
            light=self.light,
            wrinkle=wrinkle,
            noise=(self.noise[:, 0], self.noise[:, 1], 26.0, 150.0),
            contact=self.contact * contact,
            contact_reach=np.maximum(0.022 * self.sx, 1.0),
            depth=(0.5 * (depth_a + depth_b) if depth is None else depth) + bias,
        )

    def width(self, lateral: Value, front: Value) -> Floats:
        """Half width that an elliptic cross section shows to the camera."""
        return np.sqrt((lateral * self.cos) ** 2 + (front * self.sin) ** 2)

    def head_width(self, lateral: Value, front: Value) -> Floats:
        return np.sqrt((lateral * self.head_cos) ** 2 + (front * self.head_sin) ** 2)

    def paint(self) -> Floats:
        """All parts, far to near: (n, count, fields)."""
        self._legs()
        self._trunk()
        self._lower_garment()
        self._arms()
        self._head()
        self._bags()
        return self.out.sorted()

    def _top_texture(self, sleeve: bool) -> tuple[Value, list[Value]]:
        """Texture index and parameters of the upper garment."""
        p = self.people
        kind = p.top_texture
        if sleeve:
            kept = (kind == who.HOOPS) | (kind == who.PINSTRIPES) | (kind == who.CHECKS) | (kind == who.MOTTLED)
            kind = np.where(kept & (p.sleeve_colour == p.top_colour).all(axis=1), kind, who.PLAIN)
        texture = np.asarray(
            [TEXTURE[name] for name in ("plain", "stripe_v", "stripe_u", "check", "print", "print", "two_tone", "mottle", "open", "open")]
        )[kind]
        s, d = p.top_scale, p.top_detail
        period = 0.03 + 0.075 * s * s
        sharp = np.maximum(period * self.sy * 0.25, 0.7)
        balance = 0.5 + (d - 0.5) * sharp
        vertical = 2.0 + 5.0 * (1.0 - s)
        t = np.zeros((6, len(p)))

        def fill(mask: Floats, *values: Value) -> None:
            for k, value in enumerate(values):
                t[k] = np.where(mask, value, t[k])

        fill(kind == who.HOOPS, 1.0 / period, balance, sharp, 0.25)
        fill(kind == who.PINSTRIPES, vertical * 0.5, 0.1 + 0.6 * d, 1.4, 0.0)
        fill(kind == who.CHECKS, 0.8 / period, 0.3 + 0.4 * d, sharp, vertical * 0.4, np.where(d > 0.5, 0.6, 0.0))
        front = kind == who.FRONT_PRINT
        fill(front | (kind == who.BACK_PRINT), 0.09 + 0.05 * d, 0.022 + 0.05 * s, 0.22 + 0.35 * s, 14.0 + 16.0 * d, np.where(front, 0.0, 2.0), 200.0 * s)
        fill(kind == who.TWO_TONE, 0.07 + 0.13 * s, 90.0, np.where(d > 0.45, 0.008 + 0.03 * (d - 0.45), -1.0))
        fill(kind == who.MOTTLED, 10.0 + 14.0 * s, 90.0 + 120.0 * s, 3.5, 250.0 * d, 250.0 * s, 0.1)
        # An open front widens downwards, a neckline narrows.
        fill(kind == who.OPEN, 0.10 + 0.20 * s, 0.9 * d, 9.0, np.where(d > 0.6, 0.07, -1.0), 0.8)
        fill(kind == who.V_NECK, 0.42 + 0.1 * s, -(3.6 + 3.0 * d), 9.0, np.where(s > 0.5, 0.06, -1.0), 0.7)
        return texture, list(t)

    def _trunk(self) -> None:
        p, j = self.people, self.joints
        outer = ((p.top == who.JACKET) | (p.top == who.COAT)).astype(np.float64)
        ease = 0.004 + 0.012 * p.loose + 0.006 * outer
        neck, pelvis = j["neck"], j["pelvis"]
        hem = np.where((p.top == who.COAT) | (p.top == who.DRESS), 0.47, p.top_length)
        drop = np.clip((pelvis[:, 1] - hem) / np.maximum(neck[:, 1] - pelvis[:, 1], 0.1), -0.1, 0.5)
        bottom = pelvis + (pelvis - neck) * drop[:, None]
        top = neck + np.asarray([0.0, -0.012, 0.0])
        tank = p.top == who.TANK
        chest = p.shoulder * np.where(tank, 0.88, 0.97) + ease
        waist = 0.070 + 0.040 * p.build - 0.012 * p.shape + ease
        hips = 0.076 + 0.030 * p.build + 0.012 * p.shape + ease
        skirted = np.where((p.top == who.DRESS), 0.006, 0.0)
        lateral = [p.shoulder * 0.62 + 0.5 * ease, chest, waist, hips, hips + 0.3 * ease + skirted]
        depth = [0.046 + 0.5 * ease, 0.058 + 0.024 * p.build + 0.006 * p.shape + ease, 0.052 + 0.042 * p.build + ease, 0.062 + 0.032 * p.build + ease, 0.062 + 0.03 * p.build + ease]
        forward = [-0.004, 0.008 + 0.006 * p.shape, 0.004 + 0.02 * p.build, -0.008, -0.006]
        texture, t = self._top_texture(sleeve=False)
        self.limb(
            "torso",
            top,
            bottom,
            [self.width(a, b) for a, b in zip(lateral, depth)],
            [p.top_colour, p.top_second, p.top_third],
            bias=0.07,
            centres=[f * self.sin for f in forward],
            cap=0.22,
            texture=texture,
            t=t,
            wrinkle=0.07 + 0.10 * p.loose,
            contact=0.8,
        )
        # Neck: skin below the chin, drawn over the collar's middle.
        self.limb("head", j["chin"] + np.asarray([0.0, 0.02, -0.012]), neck + np.asarray([0.0, -0.01, 0.0]), [0.029 + 0.006 * p.build], [p.skin], bias=0.066)
        opening = (p.top == who.T_SHIRT) | tank | (p.top == who.DRESS)
        self.limb(
            "head",
            self.point(0.0, 0.0, 0.045, "neck"),
            self.point(0.0, -0.03, 0.055, "neck"),
            [0.034, 0.03, 0.026, 0.02, 0.014],
            [p.skin],
            active=opening | (p.top_texture == who.V_NECK),
            bias=0.072,
            contact=0.0,
        )
        self.limb(
            "torso",
            neck + np.asarray([0.0, 0.014, -0.004]),
            neck + np.asarray([0.0, -0.006, 0.004]),
            [self.width(0.036, 0.040), self.width(0.042, 0.044), self.width(0.05, 0.046)],
            [0.88 * p.top_colour],
            active=((p.top == who.SHIRT) | (p.top == who.JACKET) | (p.top == who.COAT)) & ~p.hood,
            bias=0.0745,
            cap=0.3,
        )
        self.limb(
            "torso",
            self.point(0.0, 0.022, -0.045, "neck"),
            self.point(0.0, -0.035, -0.062, "neck"),
            [self.width(0.045, 0.03), self.width(0.062, 0.036), self.width(0.066, 0.036), self.width(0.055, 0.03), self.width(0.03, 0.02)],
            [0.93 * p.top_colour],
            active=p.hood & (p.hat != who.HOOD),
            bias=0.074,
        )
        self.limb(
            "torso",
            neck + np.asarray([0.0, 0.02, 0.004]),
            neck + np.asarray([0.0, -0.016, 0.012]),
            [self.width(0.044, 0.046), self.width(0.054, 0.054), self.width(0.058, 0.058)],
            [p.scarf_colour],
            active=p.scarf,
            bias=0.078,
            wrinkle=0.25,
        )

    def _lower_garment(self) -> None:
        """Coat tails, dresses and skirts: one cone from the hips to the hem, wide enough for the stride."""
        p, j = self.people, self.joints
        tail = (p.top == who.COAT) | (p.top == who.DRESS)
        skirt = (p.bottom == who.SKIRT) & ~tail
        hem = np.where(tail, p.top_length, p.bottom_length)
        pelvis = j["pelvis"]
        start = pelvis + np.asarray([0.0, 0.012, 0.0])
        span = np.maximum(pelvis[:, 1] - hem, 0.05)
        middle = 0.5 * (j["left_knee"] + j["right_knee"])
        end = pelvis + (middle - pelvis) * (span / np.maximum(pelvis[:, 1] - middle[:, 1], 0.08))[:, None]
        knees, _ = self.view.project(np.stack([j["left_knee"], j["right_knee"]], axis=1))
        ankles, _ = self.view.project(np.stack([j["left_ankle"], j["right_ankle"]], axis=1))
        below = np.clip((span - 0.245) / 0.235, 0.0, 0.7)
        spread = 0.5 * np.abs(knees[:, 0, 0] - knees[:, 1, 0]) * np.minimum(span / 0.245, 1.0) + below * 0.35 * np.abs(ankles[:, 0, 0] - ankles[:, 1, 0])
        hips = self.width(0.082 + 0.03 * p.build + 0.012 * p.shape, 0.066 + 0.032 * p.build)
        flare = np.where(tail, 0.008 + 0.03 * p.loose, 0.05 * p.bottom_scale * (1.0 + 0.4 * p.loose)) * np.minimum(span / 0.2, 1.3)
        at_hem = np.maximum(hips + flare, spread + self.width(0.05, 0.052) + 0.3 * flare)
        widths = [hips, hips + 0.3 * (at_hem - hips), hips + 0.58 * (at_hem - hips), hips + 0.82 * (at_hem - hips), at_hem]
        texture, t = self._top_texture(sleeve=False)
        bottom_texture, bottom_t = self._bottom_texture()
        mask = tail[:, None]
        moved = np.where((np.asarray(texture) == TEXTURE["print"]) | (np.asarray(texture) == TEXTURE["two_tone"]), 0, texture)
        neckline = p.top_texture == who.V_NECK
        moved = np.where(neckline, 0, moved)
        self.limb(
            "lower_garment",
            start,
            end,
            widths,
            [np.where(mask, p.top_colour, p.bottom_colour), np.where(mask, p.top_second, p.bottom_second), np.where(mask, p.top_third, p.bottom_second)],
            active=tail | skirt,
            bias=0.062,
            centres=[-0.004 * self.sin],
            cap=0.12,
            texture=np.where(tail, moved, bottom_texture),
            t=[np.where(tail, a, b) for a, b in zip(t, bottom_t)],
            wrinkle=0.16,
        )

    def _bottom_texture(self) -> tuple[Value, list[Value]]:
        p = self.people
        kind = p.bottom_texture
        texture = np.asarray([TEXTURE[name] for name in ("plain", "side", "check", "mottle", "mottle")])[kind]
        s = p.bottom_scale
        period = 0.035 + 0.05 * s
        sharp = np.maximum(period * self.sy * 0.25, 0.7)
        table = (
            (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            (0.16 + 0.2 * s, 0.0, 7.0, 0.0, 0.0, 0.0),
            (1.0 / period, 0.4, sharp, 1.2, 0.5, 0.0),
            (12.0, 110.0 + 80.0 * s, 3.0, 200.0 * s, 90.0 * s, 0.0),
            (20.0, 60.0, 0.9, 200.0 * s, 90.0 * s, 0.25),
        )
        t = [np.select([kind == k for k in range(len(table))], [row[i] for row in table]) for i in range(6)]
        return texture, t

    def _legs(self) -> None:
        p, j = self.people, self.joints
        texture, t = self._bottom_texture()
        trousers = p.bottom <= who.WIDE
        tights = ((p.bottom == who.SKIRT) | ((p.top == who.DRESS) & (p.bottom == who.SHORTS))) & (p.bottom_scale < 0.35)
        leg_skin = np.where(tights[:, None], np.asarray([38.0, 36.0, 40.0]), p.skin)
        cloth = trousers | (p.bottom == who.LEGGINGS) | ((p.bottom == who.SHORTS) & (p.top != who.DRESS))
        colours = [p.bottom_colour, p.bottom_second, p.bottom_second]
        ease = np.select([p.bottom == who.SLIM, p.bottom == who.JEANS, p.bottom == who.WIDE, p.bottom == who.SHORTS], [0.003, 0.006, 0.013, 0.013], 0.001)
        heavy = 0.018 * p.build
        thigh = [0.056 + heavy, 0.053 + heavy, 0.047 + 0.9 * heavy, 0.041 + 0.8 * heavy, 0.037 + 0.7 * heavy]
        shin = [0.036 + 0.6 * heavy, 0.037 + 0.6 * heavy, 0.033 + 0.5 * heavy, 0.026 + 0.4 * heavy, 0.021 + 0.3 * heavy]
        hem_widths = np.select([p.bottom == who.WIDE, p.bottom == who.JEANS], [0.016 + 0.012 * p.bottom_scale, 0.007], 0.002)
        for name in ("left", "right"):
            hip, knee, ankle = j[name + "_hip"], j[name + "_knee"], j[name + "_ankle"]
            self.limb(f"{name}_upper_leg", hip, knee, thigh, [leg_skin], active=~trousers, bias=-0.004)
            self.limb(f"{name}_lower_leg", knee, ankle, shin, [leg_skin], bias=-0.006)
            boot = np.clip((p.boot - 0.03) / 0.235, 0.05, 0.95)[:, None]
            self.limb(f"{name}_lower_leg", ankle + (knee - ankle) * boot, ankle, [0.028 + 0.4 * heavy, 0.026, 0.024], [p.sock_colour], bias=-0.003)
            short = p.bottom == who.SHORTS
            fraction = np.where(short, np.clip((0.52 - p.bottom_length) / 0.245, 0.35, 1.0), 1.0)[:, None]
            widths = [w + ease + np.where(short, 0.25 * k * ease, 0.0) for k, w in enumerate(thigh)]
            self.limb(f"{name}_upper_leg", hip, hip + (knee - hip) * fraction, widths, colours, active=cloth, cap=np.where(short, 0.2, 1.0), texture=texture, t=t, wrinkle=0.12)
            fraction = np.clip((0.285 - p.bottom_length) / 0.235, 0.4, 1.05)[:, None]
            widths = [w + ease + hem_widths * (0.3 + 0.7 * k / 4.0) for k, w in enumerate(shin)]
            self.limb(
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
            )
            heel, toe = j[name + "_heel"], j[name + "_toe"]
            low = np.asarray([0.0, -0.006, 0.0])
            self.limb(f"{name}_foot", heel + low, toe + low, [0.02, 0.021, 0.022, 0.024, 0.018], [p.sole_colour], bias=-0.002, contact=0.0)
            self.limb(f"{name}_foot", heel + np.asarray([0.0, 0.006, 0.0]), toe, [0.024, 0.025, 0.022, 0.021, 0.015], [p.shoe_colour], bias=0.0)
            self.limb(f"{name}_foot", ankle, 0.6 * heel + 0.4 * toe, [0.022, 0.024, 0.024], [p.shoe_colour], bias=0.001, contact=0.0)
        # The seat joins both legs below the hem of the top.
        widths = [self.width(0.074 + 0.03 * p.build + 0.012 * p.shape, 0.062 + 0.03 * p.build)]
        taper = [widths[0], widths[0], widths[0] * 0.97, widths[0] * 0.9, widths[0] * 0.74]
        self.limb(
            "lower_garment",
            j["pelvis"] + np.asarray([0.0, 0.05, 0.0]),
            j["pelvis"] - np.asarray([0.0, 0.035, 0.0]),
            taper,
            colours,
            active=cloth,
            bias=0.045,
            centres=[-0.006 * self.sin],
            cap=0.4,
            texture=np.where(texture == TEXTURE["side"], 0, texture),
            t=t,
            wrinkle=0.08,
            contact=0.0,
        )

    def _arms(self) -> None:
        p, j = self.people, self.joints
        texture, t = self._top_texture(sleeve=True)
        colours = [p.sleeve_colour, p.top_second, p.top_third]
        heavy = 0.010 * p.build
        outer = ((p.top == who.JACKET) | (p.top == who.COAT)).astype(np.float64)
        ease = 0.003 + 0.007 * p.loose + 0.005 * outer
        upper = [0.029 + heavy, 0.028 + heavy, 0.025 + heavy, 0.023 + heavy, 0.022 + heavy]
        lower = [0.022 + heavy, 0.022 + heavy, 0.020 + heavy, 0.017 + 0.7 * heavy, 0.014 + 0.6 * heavy]
        # Seen from the front the arms hang beside the trunk and lie on it; from the side one is hidden by it.
        for name in ("left", "right"):
            shoulder, elbow, wrist, hand = (j[f"{name}_{part}"] for part in ("shoulder", "elbow", "wrist", "hand"))
            long = p.sleeve > 1.5
            self.limb(f"{name}_upper_arm", shoulder, elbow, upper, [p.skin], active=~long, bias=0.088)
            self.limb(f"{name}_lower_arm", elbow, wrist, lower, [p.skin], active=~long, bias=0.092)
            self.limb(f"{name}_hand", wrist, hand, [0.014, 0.018, 0.019, 0.016, 0.010], [p.skin], bias=0.093)
            part = np.clip(p.sleeve, 0.0, 1.0)[:, None]
            short = p.sleeve < 0.99
            widths = [w + ease + np.where(short, 0.0015 * k, 0.0) for k, w in enumerate(upper)]
            self.limb(
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
            )
            widths = [w + ease + 0.003 * outer for w in lower]
            self.limb(f"{name}_lower_arm", elbow, elbow + (wrist - elbow) * 0.97, widths, colours, active=long, bias=0.094, cap=0.7, texture=texture, t=t, wrinkle=0.08 + 0.12 * p.loose)

    def _head(self) -> None:
        p, j = self.people, self.joints
        crown, chin = j["crown"], j["chin"]
        up = crown - chin
        hooded = p.hat == who.HOOD
        covered = hooded | (p.hat == who.BEANIE)
        curly = (p.hair == who.CURLY) & ~covered
        volume = 1.0 + 0.05 * p.hair_volume * (p.hair != who.SHAVED) + 0.10 * curly + 0.10 * hooded
        width = self.head_width(0.042, 0.051) * p.head
        profile = [0.78 * volume, 1.0 * volume, 1.0 + 0.5 * (volume - 1.0), 0.88, 0.58]
        hair = np.where(hooded[:, None], p.top_colour * 0.95, p.hair_colour)
        long = (p.hair == who.BOB) | (p.hair == who.LONG)
        line = np.where(hooded, 0.22, p.hair_line)
        half_angle = np.select([hooded, long, curly], [0.62, 0.66, 0.78], 0.92)
        nape = np.select([hooded, long, p.hair == who.SHAVED], [1.4, 1.2, 0.55], 0.86)
        self.limb(
            "head",
            crown - 0.10 * up,
            chin + 0.10 * up,
            [width * k for k in profile],
            [p.skin, hair, np.asarray([34.0, 28.0, 28.0])],
            bias=0.085,
            centres=[0.0, -0.003 * self.head_sin, 0.0, 0.004 * self.head_sin, 0.010 * self.head_sin],
            cap=0.62,
            texture=TEXTURE["face"],
            t=[line, half_angle, nape, p.glasses, p.beard, np.where(hooded, PART["hat"], PART["hair"]) if self.label is None else self.label],
            u0=self.head_u0,
            unit_v=True,
        )
        back = self.head_offset(-0.030)
        strands = [p.hair_colour, 1.15 * p.hair_colour]
        free = ~hooded
        bob, flowing = p.hair == who.BOB, p.hair == who.LONG
        w = self.head_width(0.050, 0.040) * p.head * (1.0 + 0.08 * p.hair_volume)
        self.limb("hair", crown - 0.2 * up + 0.6 * back, chin - 0.02 * up + back, [w * 0.8, w, w * 1.04, w, w * 0.86], strands, active=bob & free, bias=0.080, cap=0.5, wrinkle=0.25)
        reach = 0.55 + 0.75 * p.hair_volume
        tail = chin - up * reach[:, None] + back + np.asarray([0.0, 0.0, -0.014])
        self.limb("hair", crown - 0.2 * up + 0.6 * back, tail, [w * 0.8, w * 1.02, w * 1.0, w * 0.92, w * 0.66], strands, active=flowing & free, bias=0.083, cap=0.5, wrinkle=0.25)
        knot = crown - 0.30 * up + self.head_offset(-0.060)
        drop = knot + self.head_offset(-0.016) - up * (0.7 + 0.9 * p.hair_volume)[:, None]
        self.limb("hair", knot, drop, [0.016, 0.021, 0.021, 0.017, 0.008], strands, active=(p.hair == who.PONYTAIL) & free, bias=0.084, wrinkle=0.2)
        ball = crown - 0.02 * up + self.head_offset(-0.034)
        self.limb("hair", ball, ball - 0.08 * up, [0.024], strands, active=(p.hair == who.BUN) & ~covered & (p.hat != who.CAP), bias=0.084)
        # Hats sit on the upper half of the head.
        brim = (p.hat == who.CAP) | (p.hat == who.BRIM)
        shell = self.head_width(0.046, 0.055) * p.head
        low = np.where(p.hat == who.BEANIE, 0.42, 0.34)[:, None]
        rim = self.head_offset(0.0)
        self.limb(
            "hat",
            crown - 0.06 * up,
            crown - low * up + rim,
            [shell * 0.74, shell * 0.96, shell * 1.02, shell * 1.04, shell * 1.04],
            [p.hat_colour, 0.8 * p.hat_colour],
            active=brim | (p.hat == who.BEANIE),
            bias=0.0865,
            cap=np.where(p.hat == who.BEANIE, 0.75, 0.5),
            u0=self.head_u0,
            wrinkle=0.06,
        )
        front = crown - 0.33 * up
        self.limb("hat", front + self.head_offset(0.042), front + self.head_offset(0.088) - 0.05 * up, [self.head_width(0.034, 0.008), self.head_width(0.026, 0.006)], [0.85 * p.hat_colour], active=p.hat == who.CAP, bias=0.087, cap=0.4)
        side = self.head_width(0.082, 0.086)
        self.limb("hat", front + 0.02 * up, front - 0.04 * up, [side * 0.94, side, side], [0.9 * p.hat_colour], active=p.hat == who.BRIM, bias=0.0862, cap=0.3)

    def head_offset(self, distance: float) -> Floats:
        """A step forward of the face, (n, 3), in the body's axes."""
        forward = self.joints["nose"] - self.joints["chin"]
        flat = forward * np.asarray([1.0, 0.0, 1.0])
        return distance * flat / np.maximum(np.sqrt((flat * flat).sum(axis=1, keepdims=True)), 1e-6)

    def _bags(self) -> None:
        p, j = self.people, self.joints
        n = len(p)
        colours = [p.bag_colour, p.bag_second, 0.6 * p.bag_colour]
        size = p.bag_size
        backpack = p.bag == who.BACKPACK
        across, deep = 0.066 + 0.030 * size, 0.042 + 0.022 * size
        away = -(0.062 + 0.03 * p.build + deep)
        width = self.width(across, deep)
        pocket = np.where(size > 0.3, TEXTURE["two_tone"], 0)
        self.limb(
            "bag",
            self.point(0.0, -0.03, away, "neck"),
            self.point(0.0, -0.16 - 0.09 * size, away, "neck"),
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
        for side in (1.0, -1.0):
            self.limb(
                "bag",
                self.point(side * 0.064, -0.004, 0.03, "neck"),
                self.point(side * 0.070, -0.15, chest_depth, "neck"),
                [0.011],
                [0.8 * p.bag_colour],
                active=backpack,
                bias=0.040 + 0.034,
                contact=0.0,
            )
        slung = p.bag == who.SHOULDER_BAG
        side = p.bag_side
        hip = side * (0.105 + 0.03 * p.build + 0.01 * size)
        width = self.width(0.03 + 0.012 * size, 0.055 + 0.03 * size)
        self.limb(
            "bag",
            self.point(hip, 0.035, -0.01, "pelvis"),
            self.point(hip, -0.05 - 0.05 * size, -0.01, "pelvis"),
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
            self.limb("bag", self.point(start_x, -0.004, 0.5 * depth, "neck"), self.point(0.9 * hip, 0.03, depth, "pelvis"), [0.008], [0.75 * p.bag_colour], active=slung, bias=0.052, contact=0.0)
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
        width = self.width(0.024 + 0.012 * size, np.where(carrier, 0.05 + 0.02 * size, 0.052 + 0.03 * size))
        self.limb("bag", hook, top, [0.006], [0.8 * p.bag_colour], active=held, bias=0.0942, contact=0.0)
        self.limb("bag", top, low, [0.86 * width, 0.95 * width, width, width, 0.98 * width], colours, active=held, bias=0.0945, cap=0.15, texture=np.where(carrier, TEXTURE["print"], pocket), t=[np.where(carrier, 0.06, 0.03), np.where(carrier, 0.03, 80.0), np.where(carrier, 0.7, -1.0), 12.0, np.where(side > 0, 1.0, 1.0), 0.0], wrinkle=np.where(carrier, 0.25, 0.05))
