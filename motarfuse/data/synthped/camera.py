"""How cameras see: where they stand, how they light, colour, blur and pixelate, what changes from image to image."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped import layout
from motarfuse.data.synthped.draws import Draws, Floats, keys
from motarfuse.data.synthped.layout import RESPONSE_FIELD
from motarfuse.data.synthped.pose import View
from motarfuse.data.synthped.primitives import Light

FAMILIES = ("street", "wall", "pavement", "grass", "indoor", "shrubs")
STREET, WALL, PAVEMENT, GRASS, INDOOR, SHRUBS = range(6)


class Style:
    """Draws that belong partly to the camera and partly to the image.

    ``variety`` 0 gives every image its camera's value, 1 a value of its own, and between them a mixture of both.
    """

    def __init__(
        self, seed: int, cameras: NDArray[np.int64], image: Draws, variety: float, strength: float = 1.0
    ) -> None:
        self.camera = Draws(keys(seed, "camera", cameras))
        self.image = image.fork("style")
        self.variety, self.strength = variety, strength

    def uniform(self, name: str, low: float, high: float) -> Floats:
        """A value in [low, high)."""
        own = self.image.uniform(name, low, high)
        return self.camera.uniform(name, low, high) * (1.0 - self.variety) + own * self.variety

    def response(self, name: str, low: float, neutral: float, high: float) -> Floats:
        """A property of the camera itself: in [low, high) at full strength, ``neutral`` at none."""
        return neutral + self.strength * (self.uniform(name, low, high) - neutral)

    def colour(self, name: str, spread: float) -> Floats:
        """Three values in [-spread, spread)."""
        own = self.image.uniform(name, -spread, spread, columns=3)
        return self.camera.uniform(name, -spread, spread, columns=3) * (1.0 - self.variety) + own * self.variety

    def choice(self, name: str, weights: tuple[float, ...]) -> NDArray[np.int64]:
        """An index: the image's own with probability ``variety``, otherwise the camera's."""
        own = self.image.chance(name + " own", self.variety)
        return np.where(own, self.image.choice(name, weights), self.camera.choice(name, weights))

    def chance(self, name: str, probability: float) -> NDArray[np.bool_]:
        """True with the given probability; the image's own draw or the camera's."""
        return self.choice(name, (1.0 - probability, probability)) == 1


def view(style: Style) -> View:
    """Each camera sees people from a preferred side, two of five images from any side."""
    image = style.image
    preferred = style.camera.integer("side", 4) * 90.0 + style.camera.uniform("side offset", -35.0, 35.0)
    anywhere = image.chance("any side", 0.4 + 0.6 * style.variety * (style.variety > 0.9))
    yaw = np.where(anywhere, image.uniform("yaw", 0.0, 360.0), preferred + image.normal("yaw spread", 0.0, 26.0))
    return View(
        yaw=yaw,
        elevation=style.uniform("elevation", 2.0, 34.0) + image.normal("elevation jitter", 0.0, 2.0),
        roll=image.normal("roll", 0.0, 1.8),
        perspective=style.uniform("perspective", 0.05, 0.30),
    )


def light(style: Style) -> Light:
    """A lamp above the scene, to one side; ambient and direct light add up to about one on a body's middle."""
    ambient = style.response("ambient", 0.46, 0.65, 0.80)
    direct = 1.04 - ambient
    side = style.uniform("light side", -1.0, 1.0)
    return Light(
        x=0.9 * direct * side,
        y=-0.25 * direct * np.ones_like(side),
        depth=direct * (1.0 - 0.35 * side * side),
        ambient=ambient,
    )


@dataclass(frozen=True)
class Optics:
    """The camera's response as the rasteriser takes it."""

    responses: NDArray[np.float32]  # (n, NUM_RESPONSE)
    curves: NDArray[np.uint8]  # (n, 1024)
    lattice_x: NDArray[np.int32]  # (n, 2, width)
    weight_x: NDArray[np.float32]  # (n, width)
    lattice_y: NDArray[np.int32]
    weight_y: NDArray[np.float32]

    def take(self, rows: NDArray[np.int64]) -> Optics:
        """The responses of the given rows."""
        return Optics(*(getattr(self, field.name)[rows] for field in fields(self)))


def optics(style: Style, height: int, width: int) -> Optics:
    """White balance, saturation, tone curve, exposure, uneven light, blur, lost resolution, sharpening and noise."""
    image = style.image
    n = len(image)
    unit = height / 128.0
    r = np.zeros((n, layout.NUM_RESPONSE))
    at = RESPONSE_FIELD

    temperature, tint = style.response("temperature", -1.0, 0.0, 1.0), style.response("tint", -1.0, 0.0, 1.0)
    gains = np.stack([1.0 + 0.17 * temperature, 1.0 + 0.06 * tint, 1.0 - 0.19 * temperature], axis=1)
    saturation = style.response("saturation", 0.45, 0.95, 1.3)[:, None, None]
    grey = np.asarray([0.30, 0.59, 0.11])
    matrix = (saturation * np.eye(3) + (1.0 - saturation) * grey) * gains[:, :, None]
    r[:, at["matrix00"] : at["matrix00"] + 9] = matrix.reshape(n, 9)
    haze = np.maximum(style.response("haze", -18.0, 0.0, 26.0), 0.0)
    r[:, at["offset0"] : at["offset0"] + 3] = haze[:, None] * np.stack(
        [1.0 + 0.1 * temperature, np.ones(n), 1.0 - 0.1 * temperature], axis=1
    )

    exposure = style.response("exposure", 0.84, 1.15, 1.5) * image.normal("exposure jitter", 1.0, 0.04)
    fall_x, fall_y = (
        style.response("fall x", -0.16, 0.0, 0.16) / width,
        style.response("fall y", -0.14, 0.0, 0.18) / height,
    )
    r[:, at["light_base"]] = exposure - 0.5 * (fall_x * width + fall_y * height)
    r[:, at["light_x"]], r[:, at["light_y"]] = fall_x, fall_y
    dappled = style.chance("dappled", 0.3)
    r[:, at["dapple"]] = np.where(dappled, style.strength * image.uniform("dapple", 0.12, 0.5), 0.0)
    r[:, at["dapple_gain"]], r[:, at["dapple_bias"]] = 5.0, image.uniform("dapple bias", -0.8, 0.8)
    r[:, at["dapple_scale"]] = image.uniform("dapple scale", 0.5, 1.3) / unit
    r[:, at["dapple_x"]], r[:, at["dapple_y"]] = (
        image.uniform("dapple x", 0.0, 256.0),
        image.uniform("dapple y", 0.0, 256.0),
    )

    coarse = (
        np.maximum(style.response("resolution", 0.6, 0.8, 2.0) * image.uniform("resolution jitter", 0.85, 1.15), 1.0)
        * unit
    )
    coarse = np.maximum(coarse, 1.0)
    blur = style.response("blur", 0.26, 0.35, 0.62) * unit * np.maximum(coarse / unit, 1.0) ** 0.7
    moving = np.where(image.chance("motion blur", 0.15), image.uniform("motion", 0.3, 1.1) * unit, 0.0)
    for axis, sigma in (("x", np.sqrt(blur * blur + moving * moving)), ("y", blur)):
        taps = np.exp(-0.5 * (np.arange(4) / np.maximum(sigma, 0.2)[:, None]) ** 2)
        taps /= taps[:, :1] + 2.0 * taps[:, 1:].sum(axis=1, keepdims=True)
        r[:, at[f"kernel_{axis}0"] : at[f"kernel_{axis}0"] + 4] = taps
    r[:, at["sharpen"]] = np.maximum(style.response("sharpen", -0.5, 0.2, 1.5), 0.0)
    r[:, at["noise_luma"]] = style.response("grain", 0.5, 1.0, 5.5)
    r[:, at["noise_chroma"]] = style.response("blotches", 0.0, 0.0, 6.0)
    r[:, at["noise_x"]], r[:, at["noise_y"]] = image.integer("noise x", 256), image.integer("noise y", 256)

    x = np.arange(layout.CURVE_SIZE) / (layout.CURVE_SIZE - 1.0)
    gamma = style.response("gamma", 0.72, 0.95, 1.22)[:, None]
    bend = style.response("contrast", -0.25, 0.25, 0.75)[:, None]
    y = x[None, :] ** gamma
    y = y + bend * (y * y * (3.0 - 2.0 * y) - y)
    curves = np.clip(np.floor(y * 255.0 + 0.5), 0, 255).astype(np.uint8)
    lattice_x, weight_x = _lattice(coarse, width)
    lattice_y, weight_y = _lattice(coarse, height)
    return Optics(_rounded(r), curves, lattice_x, _rounded(weight_x), lattice_y, _rounded(weight_y))


def _rounded(values: Floats) -> NDArray[np.float32]:
    """To multiples of 2^-20, so that the last bit of an exponential does not matter."""
    return (np.round(values * 2.0**20) * 2.0**-20).astype(np.float32)


def _lattice(pitch: Floats, size: int) -> tuple[NDArray[np.int32], Floats]:
    """For each pixel the two sampled pixels around it, ``pitch`` pixels apart, and the share of the second."""
    pitch = np.round(pitch * 64.0) / 64.0
    position = np.arange(size)[None, :] / pitch[:, None]
    low = np.floor(position)
    first = np.minimum(np.floor(low * pitch[:, None] + 0.5), size - 1)
    second = np.minimum(np.floor((low + 1.0) * pitch[:, None] + 0.5), size - 1)
    return np.stack([first, second], axis=1).astype(np.int32), position - low
