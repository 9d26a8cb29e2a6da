"""How somebody walks: what a person's gait is made of, and people of videos with such a gait and shared clothes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from motarfuse.data.synthped.draws import Draws, Floats, keys
from motarfuse.data.synthped.identity import Identities, Ints, identities

# People who wear the same clothes come in groups of so many.
GROUP = 3

# What belongs to the clothes of a person; body, skin, hair and gait stay one's own.
CLOTHES = (
    "hat", "hat_colour", "top", "top_colour", "top_second", "top_third", "top_texture", "top_scale", "top_detail",
    "sleeve", "sleeve_colour", "top_length", "loose", "hood", "scarf", "scarf_colour", "bottom", "bottom_colour",
    "bottom_second", "bottom_texture", "bottom_scale", "bottom_length", "shoe_colour", "sole_colour", "boot",
    "sock_colour", "bag", "bag_side", "bag_colour", "bag_second", "bag_size",
)  # fmt: skip


@dataclass(frozen=True)
class WalkStyle:
    """The gait of n people; lengths are in heights of the body."""

    cadence: Floats  # walking cycles (two steps) a second
    stride: Floats  # way of one cycle
    stance: Floats  # share of the cycle that a foot is on the ground
    clearance: Floats  # how far a foot is lifted in its swing
    foot_width: Floats  # distance of a foot from the line that is walked
    toe_out: Floats  # degrees
    bounce: Floats  # way of the pelvis up and down
    sway: Floats  # of the pelvis to the side of the standing leg
    twist: Floats  # degrees by which the pelvis turns with the leg in front
    asymmetry: Floats  # left minus right: how far a foot is set in front
    limp: Floats  # share of the cycle by which the right foot comes late
    swing_left: Floats  # degrees of shoulder flexion
    swing_right: Floats
    elbow: Floats  # degrees
    arm_out: Floats  # degrees
    lean: Floats  # degrees forward

    def __len__(self) -> int:
        return len(self.cadence)

    def take(self, rows: Ints) -> WalkStyle:
        """The gait of the given rows."""
        return WalkStyle(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def walk_styles(seed: int, people: Ints, build: Floats) -> WalkStyle:
    """The gait of the people with the given indices.

    Spreads are wider than those of the images' posture, whose one moment shows little of a gait. Means are those of
    adults at ease: 0.95 cycles a second, strides of 0.8 heights, three fifths of the cycle on the ground.

    Args:
        seed: Of the benchmark.
        people: (n,) indices.
        build: (n,) 0 slim to 1 heavy; heavy people set their feet and hold their arms wider.
    """
    own = Draws(keys(seed, "walk", people))
    swing = np.clip(own.normal("swing", 16.0, 6.5), 2.0, 27.0)
    uneven = np.clip(own.normal("uneven swing", 0.0, 0.16), -0.4, 0.4)
    stride = np.clip(own.normal("stride", 0.78, 0.09), 0.54, 0.96)
    return WalkStyle(
        cadence=np.clip(own.normal("cadence", 0.95, 0.13), 0.62, 1.30),
        stride=stride,
        stance=own.uniform("stance", 0.575, 0.645),
        clearance=own.uniform("clearance", 0.012, 0.05),
        foot_width=0.020 + 0.012 * build + own.uniform("foot width", 0.0, 0.022),
        toe_out=np.clip(own.normal("toe out", 8.0, 7.0), -8.0, 26.0),
        # Legs of one length over a step of half a stride: the way up and down that leaves the knees almost straight.
        bounce=own.uniform("bounce", 0.5, 1.6) * 0.030 * stride * stride,
        sway=own.uniform("sway", 0.006, 0.026),
        twist=own.uniform("twist", 3.0, 12.0),
        asymmetry=own.normal("asymmetry", 0.0, 0.010),
        limp=own.normal("limp", 0.0, 0.010),
        swing_left=swing * (1.0 + uneven),
        swing_right=swing * (1.0 - uneven),
        elbow=np.clip(own.normal("elbow", 20.0, 13.0), 3.0, 60.0),
        arm_out=np.clip(own.normal("arm out", 7.0, 4.0), 1.0, 20.0) + 6.0 * build,
        lean=own.normal("lean", 3.5, 3.5),
    )


def clothes_leaders(count: int, share: float) -> Ints:
    """Whose clothes each of ``count`` people wears: a position of its own, or that of the first of its group.

    Groups of `GROUP` successive people are spread evenly; as many as come nearest to ``share`` of the people, the last
    one grows by the rest where all wear shared clothes.

    Args:
        count: People.
        share: In [0, 1].
    """
    leader = np.arange(count)
    full = count // GROUP
    groups = min(int(share * count / GROUP + 0.5), full)
    chosen = [b for b in range(full) if (b + 1) * groups // full > b * groups // full]
    for block in chosen:
        end = count if groups == full and block == full - 1 else (block + 1) * GROUP
        leader[block * GROUP : end] = block * GROUP
    return leader


def walkers(seed: int, people: Ints, dressers: Ints, confusers: int) -> tuple[Identities, WalkStyle]:
    """People of videos and their gait.

    Args:
        seed: Of the benchmark.
        people: (n,) indices of whom.
        dressers: (n,) indices of those whose clothes they wear.
        confusers: As of `identities`.
    """
    who, lender = identities(seed, people, confusers), identities(seed, dressers, confusers)
    # A dress hangs on the figure that it was cut for.
    same_cut = 0.5 * who.shape + 0.5 * (lender.shape > 0.5)
    style = walk_styles(seed, people, who.build)
    return (
        replace(
            who,
            **{name: getattr(lender, name) for name in CLOTHES},
            shape=np.where(people == dressers, who.shape, same_cut),
            elbow=style.elbow,
            lean=style.lean,
            toe_out=style.toe_out,
            arm_out=style.arm_out,
            cadence=style.cadence,
        ),
        style,
    )
