"""A person as primitives: limbs, clothes, hair and bags hung on projected joints."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped import layout
from motarfuse.data.synthped.bags import bags
from motarfuse.data.synthped.draws import Draws, Floats
from motarfuse.data.synthped.garments import arms, legs, lower_garment, trunk
from motarfuse.data.synthped.head import head
from motarfuse.data.synthped.identity import Identities
from motarfuse.data.synthped.limbs import Frame, Limbs
from motarfuse.data.synthped.pose import View
from motarfuse.data.synthped.primitives import Light


def paint(
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
    nested: bool = False,
) -> NDArray[np.float32]:
    """The primitives (n, count, fields) of n people, far to near.

    Args:
        people: Who they are.
        joints: Their 3D joints (see `pose.joints`).
        head_yaw: Of the head relative to the body, degrees.
        view: Where the cameras stand.
        frame: Image plane to pixels.
        light: The lamps.
        draws: For the creases of the cloth.
        layer: Subject, scenery or occluder.
        label: One label for everything; None labels the parts.
        nested: Sort what trousers cover as deep as the trousers (see `Limbs.below`).
    """
    body = Limbs(people, joints, head_yaw, view, frame, light, draws, layer=layer, label=label, nested=nested)
    for part in (legs, trunk, lower_garment, arms, head, bags):
        part(body)
    return body.finish()
