"""Who is drawn: proportions, build, skin, clothes, hair, bag, shoes and gait of each identity."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped.draws import Draws, Floats, keys

Ints = NDArray[np.int64]

# Kinds of clothes, hair and bags; the index is the value in `Identities`.
TOPS = ("t-shirt", "shirt", "jacket", "coat", "dress", "tank top")
T_SHIRT, SHIRT, JACKET, COAT, DRESS, TANK = range(6)
BOTTOMS = ("slim trousers", "jeans", "wide trousers", "shorts", "skirt", "leggings")
SLIM, JEANS, WIDE, SHORTS, SKIRT, LEGGINGS = range(6)
TOP_TEXTURES = (
    "plain",
    "hoops",
    "pinstripes",
    "checks",
    "front print",
    "back print",
    "two-tone",
    "mottled",
    "open",
    "v-neck",
)
PLAIN, HOOPS, PINSTRIPES, CHECKS, FRONT_PRINT, BACK_PRINT, TWO_TONE, MOTTLED, OPEN, V_NECK = range(10)
BOTTOM_TEXTURES = ("plain", "side stripe", "checks", "mottled", "faded")
B_PLAIN, B_SIDE, B_CHECKS, B_MOTTLED, B_FADED = range(5)
HAIR = ("shaved", "short", "bob", "long", "ponytail", "bun", "curly")
SHAVED, SHORT, BOB, LONG, PONYTAIL, BUN, CURLY = range(7)
HATS = ("none", "cap", "beanie", "hood", "brimmed hat")
NO_HAT, CAP, BEANIE, HOOD, BRIM = range(5)
BAGS = ("none", "backpack", "shoulder bag", "handbag", "carrier bag")
NO_BAG, BACKPACK, SHOULDER_BAG, HANDBAG, CARRIER = range(5)

# Colours of clothes as people wear them: sRGB and how common (tops, bottoms).
_CLOTH = (
    ((28, 28, 32), 16, 26),  # black
    ((225, 224, 222), 13, 3),  # white
    ((128, 130, 134), 9, 9),  # grey
    ((72, 75, 82), 5, 9),  # charcoal
    ((34, 42, 82), 9, 14),  # navy
    ((56, 84, 132), 6, 14),  # denim
    ((110, 145, 188), 5, 6),  # light blue
    ((42, 88, 190), 4, 1),  # royal blue
    ((178, 34, 40), 7, 1.5),  # red
    ((108, 28, 42), 3, 1.5),  # burgundy
    ((222, 92, 34), 3, 0.5),  # orange
    ((226, 190, 52), 3, 0.7),  # yellow
    ((38, 98, 62), 4, 1),  # green
    ((98, 104, 66), 4, 4),  # olive
    ((140, 196, 150), 2, 0.3),  # mint
    ((232, 160, 178), 4, 0.6),  # pink
    ((128, 62, 128), 3, 0.5),  # purple
    ((176, 142, 104), 4, 7),  # beige
    ((112, 74, 48), 4, 4),  # brown
    ((236, 222, 190), 3, 2.5),  # cream
    ((38, 138, 148), 2, 0.4),  # teal
)
_CLOTH_RGB = np.asarray([c[0] for c in _CLOTH], dtype=np.float64)
_TOP_WEIGHTS = [float(c[1]) for c in _CLOTH]
_BOTTOM_WEIGHTS = [float(c[2]) for c in _CLOTH]

_SKIN = np.asarray(
    [(240, 200, 176), (226, 180, 150), (204, 154, 122), (170, 120, 88), (122, 82, 60), (84, 56, 44)], dtype=np.float64
)
_HAIR_RGB = np.asarray(
    [(22, 19, 20), (44, 32, 28), (84, 56, 38), (128, 88, 52), (190, 154, 96), (150, 148, 148), (120, 50, 32)],
    dtype=np.float64,
)
_BAG_RGB = np.asarray(
    [
        (26, 26, 30),
        (50, 56, 76),
        (112, 74, 46),
        (150, 36, 42),
        (176, 150, 116),
        (60, 92, 64),
        (222, 220, 214),
        (216, 120, 44),
        (58, 116, 170),
        (122, 122, 126),
    ],
    dtype=np.float64,
)
_SHOE_RGB = np.asarray(
    [(30, 28, 30), (230, 230, 228), (96, 62, 42), (120, 122, 126), (170, 40, 44), (50, 70, 130), (196, 160, 120)],
    dtype=np.float64,
)


@dataclass(frozen=True)
class Identities:
    """A table of n people; colours are sRGB 0..255 of shape (n, 3), lengths are in heights of the body."""

    build: Floats  # 0 slim .. 1 heavy
    shape: Floats  # 0 straight .. 1 narrow waist, wide hips
    head: Floats  # scale of the head
    leg: Floats  # share of the legs
    shoulder: Floats  # half distance of the shoulder joints
    hip: Floats  # half distance of the hip joints
    arm: Floats  # scale of the arms' length
    skin: Floats
    hair: Ints
    hair_colour: Floats
    hair_line: Floats
    hair_volume: Floats
    glasses: Floats
    beard: Floats
    hat: Ints
    hat_colour: Floats
    top: Ints
    top_colour: Floats
    top_second: Floats
    top_third: Floats
    top_texture: Ints
    top_scale: Floats  # period of the texture
    top_detail: Floats  # a second number of the texture
    sleeve: Floats  # 0 none, 1 elbow, 2 wrist
    sleeve_colour: Floats
    top_length: Floats  # hem above the ground
    loose: Floats
    hood: NDArray[np.bool_]
    scarf: NDArray[np.bool_]
    scarf_colour: Floats
    bottom: Ints
    bottom_colour: Floats
    bottom_second: Floats
    bottom_texture: Ints
    bottom_scale: Floats
    bottom_length: Floats  # hem above the ground
    shoe_colour: Floats
    sole_colour: Floats
    boot: Floats  # height of the boot or sock
    sock_colour: Floats
    bag: Ints
    bag_side: Floats  # +1 left, -1 right
    bag_colour: Floats
    bag_second: Floats
    bag_size: Floats
    stride: Floats
    swing: Floats
    elbow: Floats
    lean: Floats
    toe_out: Floats
    arm_out: Floats
    knee: Floats
    cadence: Floats  # walking cycles a second
    group: Ints

    def __len__(self) -> int:
        return len(self.build)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Identities:
        """The people of the given rows."""
        return Identities(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def _colour(draws: Draws, name: str, table: Floats, index: Ints, spread: float) -> Floats:
    """A table colour, a little brighter or darker and a little shifted."""
    light = draws.normal(name + " light", 1.0, spread / 100.0)
    shift = draws.uniform(name + " shift", -spread, spread, columns=3)
    return np.clip(table[index] * light[:, None] + shift, 6.0, 245.0)


def _contrast(base: Floats, other: Floats, alternative: Floats) -> Floats:
    """``other`` where it is told apart from ``base``, otherwise a lighter or darker colour."""
    distance = np.abs(base - other).sum(axis=1)
    return np.where((distance > 110.0)[:, None], other, alternative)


def _opposite(base: Floats) -> Floats:
    """White on dark cloth, dark on light cloth."""
    dark = base.mean(axis=1, keepdims=True) < 120.0
    return np.where(dark, 226.0 + 0.0 * base, 0.25 * base + 12.0)


def identities(seed: int, indices: Ints, confusers: int) -> Identities:
    """Draws the people with the given indices; blocks of ``confusers`` successive ones share their clothes' colours."""
    own = Draws(keys(seed, "identity", indices))
    group_index = indices // confusers
    group = Draws(keys(seed, "wardrobe", group_index))

    build = np.clip(own.normal("build", 0.42, 0.24), 0.0, 1.0)
    shape = own.uniform("shape")
    feminine = shape > 0.5

    top_base = _colour(group, "top", _CLOTH_RGB, group.choice("top colour", _TOP_WEIGHTS), 14.0)
    bottom_base = _colour(group, "bottom", _CLOTH_RGB, group.choice("bottom colour", _BOTTOM_WEIGHTS), 14.0)
    top_colour = np.clip(top_base + own.uniform("top dye", -6.0, 6.0, columns=3), 4.0, 247.0)
    bottom_colour = np.clip(bottom_base + own.uniform("bottom dye", -6.0, 6.0, columns=3), 4.0, 247.0)
    second = _colour(own, "top second", _CLOTH_RGB, own.choice("top second colour", _TOP_WEIGHTS), 14.0)
    top_second = _contrast(top_colour, second, _opposite(top_colour))
    third = _colour(own, "top third", _CLOTH_RGB, own.choice("top third colour", _TOP_WEIGHTS), 14.0)

    top = np.where(feminine, own.choice("top f", (20, 22, 20, 12, 16, 10)), own.choice("top m", (34, 26, 28, 10, 0, 2)))
    outer = (top == JACKET) | (top == COAT)
    texture = np.where(
        outer,
        own.choice("outer texture", (30, 3, 2, 6, 4, 5, 8, 5, 32, 5)),
        own.choice("inner texture", (26, 15, 5, 10, 17, 6, 9, 8, 0, 4)),
    )
    sleeve = np.select(
        [top == T_SHIRT, top == TANK, top == DRESS],
        [own.uniform("short sleeve", 0.5, 0.95), 0.0, np.where(own.chance("long dress sleeve", 0.5), 2.0, 0.55)],
        np.where((top == SHIRT) & own.chance("rolled", 0.2), 1.05, 2.0),
    )
    plain_sleeve = own.chance("raglan", 0.18) & (top != DRESS)
    length = np.select(
        [top == COAT, top == DRESS, top == JACKET],
        [
            own.uniform("coat hem", 0.24, 0.42),
            own.uniform("dress hem", 0.18, 0.40),
            own.uniform("jacket hem", 0.43, 0.50),
        ],
        own.uniform("top hem", 0.45, 0.53),
    )

    bottom = np.where(
        feminine, own.choice("bottom f", (26, 24, 10, 9, 18, 13)), own.choice("bottom m", (28, 38, 18, 16, 0, 0))
    )
    bottom = np.where(top == DRESS, np.where(own.chance("bare legs", 0.5), SHORTS, LEGGINGS), bottom)
    bottom_length = np.select(
        [bottom == SHORTS, bottom == SKIRT, bottom == WIDE],
        [
            own.uniform("shorts hem", 0.27, 0.38),
            own.uniform("skirt hem", 0.14, 0.40),
            own.uniform("wide hem", 0.02, 0.05),
        ],
        own.uniform("trouser hem", 0.035, 0.085),
    )
    bottom_texture = np.where(bottom == JEANS, B_FADED, own.choice("bottom texture", (60, 14, 9, 10, 7)))
    bottom_second = _contrast(
        bottom_colour,
        _colour(own, "bottom second", _CLOTH_RGB, own.choice("bottom second colour", _TOP_WEIGHTS), 14.0),
        _opposite(bottom_colour),
    )
    bottom_second = np.where(
        (bottom_texture == B_FADED)[:, None], np.clip(bottom_colour * 1.25 + 18.0, 0.0, 240.0), bottom_second
    )

    skin_tone = own.choice("skin", (26, 30, 20, 11, 8, 5))
    hair = np.where(
        feminine, own.choice("hair f", (0, 6, 22, 36, 20, 10, 6)), own.choice("hair m", (12, 76, 5, 2, 1, 0, 4))
    )
    hair_colour = _colour(own, "hair", _HAIR_RGB, own.choice("hair colour", (40, 24, 14, 8, 7, 6, 3)), 7.0)
    shaved = (hair == SHAVED)[:, None]
    skin = _colour(own, "skin", _SKIN, skin_tone, 7.0)
    hair_colour = np.where(shaved, 0.6 * skin + 0.4 * hair_colour, hair_colour)
    hat = own.choice("hat", (80, 8, 5, 4, 3))
    hooded = ((top == JACKET) | (top == COAT) | (top == SHIRT)) & own.chance("hooded top", 0.35)
    hat = np.where((hat == HOOD) & ~hooded, NO_HAT, hat)
    hat_colour = _colour(own, "hat", _CLOTH_RGB, own.choice("hat colour", _TOP_WEIGHTS), 14.0)
    hat_colour = np.where((hat == HOOD)[:, None], top_colour, hat_colour)

    shoe = _colour(own, "shoe", _SHOE_RGB, own.choice("shoe colour", (40, 24, 14, 9, 5, 5, 3)), 9.0)
    boots = own.chance("boots", 0.16)
    bag = own.choice("bag", (48, 22, 13, 10, 7))
    bag_colour = _colour(own, "bag", _BAG_RGB, own.choice("bag colour", (34, 12, 11, 7, 9, 6, 6, 5, 6, 6)), 10.0)

    return Identities(
        build=build,
        shape=shape,
        head=own.normal("head", 1.0, 0.05),
        leg=own.normal("leg", 1.0, 0.025),
        shoulder=0.087 + 0.012 * build - 0.012 * shape + own.normal("shoulder", 0.0, 0.005),
        hip=0.046 + 0.008 * build + 0.006 * shape,
        arm=own.normal("arm", 1.0, 0.03),
        skin=skin,
        hair=hair,
        hair_colour=hair_colour,
        hair_line=own.uniform("hair line", 0.24, 0.40),
        hair_volume=own.uniform("hair volume", 0.0, 1.0),
        glasses=np.where(own.chance("glasses", 0.25), own.uniform("glasses tone", 0.4, 0.95), 0.0),
        beard=np.where(~feminine & own.chance("beard", 0.25), own.uniform("beard tone", 0.4, 0.9), 0.0),
        hat=hat,
        hat_colour=hat_colour,
        top=top,
        top_colour=top_colour,
        top_second=top_second,
        top_third=_contrast(top_second, third, _opposite(top_second)),
        top_texture=texture,
        top_scale=own.uniform("top scale"),
        top_detail=own.uniform("top detail"),
        sleeve=sleeve,
        sleeve_colour=np.where(plain_sleeve[:, None], top_second, top_colour),
        top_length=length,
        loose=np.clip(own.normal("loose", 0.4, 0.25) + 0.25 * outer, 0.0, 1.0),
        hood=hooded,
        scarf=own.chance("scarf", 0.07),
        scarf_colour=_colour(own, "scarf", _CLOTH_RGB, own.choice("scarf colour", _TOP_WEIGHTS), 14.0),
        bottom=bottom,
        bottom_colour=bottom_colour,
        bottom_second=bottom_second,
        bottom_texture=bottom_texture,
        bottom_scale=own.uniform("bottom scale"),
        bottom_length=bottom_length,
        shoe_colour=shoe,
        sole_colour=np.where(own.chance("white sole", 0.45)[:, None], 224.0, 0.6 * shoe),
        boot=np.where(
            boots,
            own.uniform("boot", 0.08, 0.24),
            np.where(own.chance("sock", 0.5), own.uniform("sock height", 0.07, 0.13), 0.05),
        ),
        sock_colour=np.where(
            boots[:, None], shoe, np.where(own.chance("white sock", 0.6)[:, None], 222.0, 40.0 + 0.0 * shoe)
        ),
        bag=bag,
        bag_side=np.where(own.chance("bag side", 0.5), 1.0, -1.0),
        bag_colour=bag_colour,
        bag_second=_contrast(
            bag_colour,
            _colour(own, "bag second", _BAG_RGB, own.integer("bag second colour", 10), 10.0),
            _opposite(bag_colour),
        ),
        bag_size=own.uniform("bag size"),
        stride=own.normal("stride", 25.0, 4.0),
        swing=own.normal("swing", 22.0, 9.0),
        elbow=np.clip(own.normal("elbow", 22.0, 14.0), 3.0, 70.0),
        lean=own.normal("lean", 4.0, 3.0),
        toe_out=own.normal("toe out", 8.0, 6.0),
        arm_out=np.clip(own.normal("arm out", 7.0, 3.5), 1.0, 20.0) + 6.0 * build,
        knee=own.normal("knee", 58.0, 7.0),
        cadence=own.normal("cadence", 0.95, 0.08),
        group=group_index,
    )
