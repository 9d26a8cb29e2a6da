"""Tables that the scene builder, both rasterisers and the ground truth share: parts, keypoints, primitive fields."""

from __future__ import annotations

from typing import Final

# Part labels of a mask, index = pixel value. The order is a file format: append only.
PARTS: Final = (
    "background",
    "head",
    "hair",
    "hat",
    "torso",
    "lower_garment",
    "left_upper_arm",
    "right_upper_arm",
    "left_lower_arm",
    "right_lower_arm",
    "left_hand",
    "right_hand",
    "left_upper_leg",
    "right_upper_leg",
    "left_lower_leg",
    "right_lower_leg",
    "left_foot",
    "right_foot",
    "bag",
    "occluder",
)
PART: Final = {name: index for index, name in enumerate(PARTS)}
BACKGROUND: Final = 0
OCCLUDER: Final = PART["occluder"]
NO_LABEL: Final = 255  # in a primitive: it changes colours, never labels (shadows, straps of light)

# The 17 keypoints of COCO, in its order; left and right are the person's own.
KEYPOINTS: Final = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
OUT_OF_FRAME: Final = 0
BEHIND_OCCLUDER: Final = 1
BEHIND_SELF: Final = 2
VISIBLE: Final = 3

# Layers of a primitive: what it means for the ground truth.
LAYER_SCENE: Final = 0
LAYER_SUBJECT: Final = 1
LAYER_OCCLUDER: Final = 2

# Shapes.
SHAPE_NONE: Final = 0
SHAPE_SWEEP: Final = 1
SHAPE_PLANE: Final = 2

# Textures: what colours 0, 1 and 2 mean at surface coordinates (u, v).
TEXTURES: Final = (
    "plain",
    "stripe_v",
    "stripe_u",
    "check",
    "print",
    "two_tone",
    "mottle",
    "open",
    "face",
    "side",
    "ground",
    "tiles",
    "brick",
    "leaves",
    "foliage",
)
TEXTURE: Final = {name: index for index, name in enumerate(TEXTURES)}

# Fields of a primitive (float32), in the order in which csrc/host/synthped.h lists them.
STATIONS: Final = 5  # a sweep's half width and centre line are given at 5 points along its axis
FIELDS: Final = (
    "shape",
    "label",
    "layer",
    "start_x",
    "start_y",
    "axis_x",
    "axis_y",
    "length",
    "station_scale",
    *(f"width{k}" for k in range(STATIONS)),
    *(f"centre{k}" for k in range(STATIONS)),
    "cap_inverse",
    "soft_inverse",
    "opacity",
    *(f"colour{k}_{c}" for k in range(3) for c in "rgb"),
    "texture",
    *(f"t{k}" for k in range(6)),
    "u0",
    "u_angle",
    "u_flat",
    "v0",
    "v_scale",
    "light_lateral",
    "light_depth",
    "ambient",
    "wrinkle",
    "noise_x",
    "noise_y",
    "noise_u",
    "noise_v",
    "contact",
    "contact_inverse",
    "contact_gain",
    "contact_bias",
)
FIELD: Final = {name: index for index, name in enumerate(FIELDS)}
NUM_FIELDS: Final = len(FIELDS)

# Fields of the camera's response to one image (float32).
RESPONSE: Final = (
    *(f"kernel_x{k}" for k in range(4)),
    *(f"kernel_y{k}" for k in range(4)),
    "sharpen",
    *(f"matrix{i}{j}" for i in range(3) for j in range(3)),
    *(f"offset{i}" for i in range(3)),
    "noise_luma",
    "noise_chroma",
    "noise_x",
    "noise_y",
    "light_base",
    "light_x",
    "light_y",
    "dapple",
    "dapple_gain",
    "dapple_bias",
    "dapple_scale",
    "dapple_x",
    "dapple_y",
)
RESPONSE_FIELD: Final = {name: index for index, name in enumerate(RESPONSE)}
NUM_RESPONSE: Final = len(RESPONSE)
CURVE_SIZE: Final = 1024  # entries of the tone curve: values 0..255 in quarters

TILE: Final = 256  # side of the periodic noise tiles
TILE_SMOOTH: Final = 0
TILE_WHITE: Final = 1
TILE_CELL: Final = 2
NUM_TILES: Final = 3
