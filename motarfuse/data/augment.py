"""How strongly training images are varied: the settings, and the random parameters drawn from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

OccluderSource = Literal["batch", "texture", "mixed"]
ErasingValue = Literal["pixel", "mean"]

# A rectangle that does not fit is drawn again, as in Zhong et al. 2017; with ten tries fewer than 1 in 10^4 stay out at
# the default areas and aspects.
_TRIES = 10


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class AugmentConfig:
    """Random changes of training images; a probability of 0 switches one off.

    Applied in this order: flip, pad and crop, affine, occluder, colour jitter and grey, normalisation, erasing. The
    defaults are the usual ones of person re-identification at 256 x 128 (Luo et al. 2019) with mild colour jitter.
    """

    flip_probability: float = _setting(0.5, "mirror left and right")
    pad_px: int = _setting(10, "pad by this many black pixels on every side and crop the size back at random; 0: off")
    affine_probability: float = _setting(0.0, "rotate and scale about the centre")
    affine_degrees: float = _setting(5.0, "largest rotation to either side, in degrees")
    affine_scale: float = _setting(0.1, "largest change of scale: 0.1 draws from 1/1.1 to 1.1")
    occluder_probability: float = _setting(0.0, "paste a rectangle over the person, as something standing in front")
    occluder_source: OccluderSource = field(
        default="mixed",
        metadata={"help": "batch: a piece of another image of the batch; texture: two-coloured stripes; mixed: either"},
    )
    occluder_area_min: float = _setting(0.15, "smallest occluder, as a share of the image")
    occluder_area_max: float = _setting(0.5, "largest occluder, as a share of the image")
    color_probability: float = _setting(0.5, "change brightness, contrast, saturation and hue")
    brightness: float = _setting(0.2, "strength: 0.2 multiplies by a factor between 0.8 and 1.2")
    contrast: float = _setting(0.15, "strength: factor about the image's mean grey")
    saturation: float = _setting(0.1, "strength: factor between grey and the colours")
    hue: float = _setting(0.02, "largest turn of the hue, as a share of the colour circle (at most 0.5)")
    gray_probability: float = _setting(0.0, "turn the image grey")
    erasing_probability: float = _setting(0.5, "random erasing: fill a rectangle")
    erasing_area_min: float = _setting(0.02, "smallest erased share of the image")
    erasing_area_max: float = _setting(0.4, "largest erased share of the image")
    erasing_aspect: float = _setting(0.3, "aspect ratios (height by width) lie between this and its inverse")
    erasing_value: ErasingValue = field(
        default="pixel", metadata={"help": "pixel: normal noise; mean: the normalisation's mean"}
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_probability") or "_area_" in item.name:
                self._check(item.name, 0 <= value <= 1, "a number from 0 to 1")
        for name in ("pad_px", "affine_degrees", "affine_scale"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("brightness", "contrast", "saturation"):
            self._check(name, 0 <= getattr(self, name) <= 1, "a number from 0 to 1")
        self._check("hue", 0 <= self.hue <= 0.5, "a number from 0 to 0.5")
        self._check("erasing_aspect", 0 < self.erasing_aspect <= 1, "above 0 and at most 1")
        for name, kind in (("erasing_value", ErasingValue), ("occluder_source", OccluderSource)):
            self._check(name, getattr(self, name) in get_args(kind), f"one of {', '.join(get_args(kind))}")
        for what in ("occluder", "erasing"):
            least, most = getattr(self, f"{what}_area_min"), getattr(self, f"{what}_area_max")
            if least > most:
                raise ValueError(f"{what}_area_min is {least}, more than {what}_area_max = {most}")

    def _check(self, name: str, fine: bool, supported: str) -> None:
        if not fine:
            raise ValueError(f"{name} is {getattr(self, name)!r}; supported: {supported}")


@dataclass(frozen=True)
class Rectangles:
    """One rectangle an image, in pixels: (B,) int64 each on the CPU; height 0 means none."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


@dataclass(frozen=True)
class Augmentation:
    """The random parameters of a batch of images: (B,) tensors on the CPU unless noted.

    Attributes:
        flip: Mirror or not.
        shift_y, shift_x: Content moves down and right by so many pixels.
        affine: Rotate and scale or not.
        angle: In radians.
        scale: Above 1 the person grows.
        occluder: Where the occluder covers the image.
        occluder_from_batch: Another image's piece, else a texture.
        donor: How many images further in the batch the piece comes from, 1..B-1.
        donor_place: (B, 2) its top and left, as shares of what is free.
        texture: (B, 9) the texture's two colours, direction and period, uniform in [0, 1).
        color: Whether colours change (jitter or grey).
        color_matrix: (B, 3, 3) on RGB.
        color_offset: Factor of the image's mean grey that is added.
        erasing: What is erased.
        noise_place: (B, 2) where in the noise field the filling starts, as shares of what is free.
    """

    flip: Tensor
    shift_y: Tensor
    shift_x: Tensor
    affine: Tensor
    angle: Tensor
    scale: Tensor
    occluder: Rectangles
    occluder_from_batch: Tensor
    donor: Tensor
    donor_place: Tensor
    texture: Tensor
    color: Tensor
    color_matrix: Tensor
    color_offset: Tensor
    erasing: Rectangles
    noise_place: Tensor


LUMA = (0.299, 0.587, 0.114)
_WIDTH = 2 * (3 + 2 * _TRIES) + 2 + 1 + 2 + 3 + 1 + 1 + 2 + 9 + 6 + 2


def draw(config: AugmentConfig, size: tuple[int, int], count: int, generator: torch.Generator) -> Augmentation:
    """Draws the parameters of ``count`` images of (height, width) ``size``.

    Every image takes the same number of random numbers whatever the settings, so that changing one of them leaves the
    others' draws as they were, and the parameters do not depend on the device of the images.
    """
    height, width = size
    # float64, so that floor(u n) is uniform enough and equal on every device.
    uniform = torch.rand(count, _WIDTH, dtype=torch.float64, generator=generator, device=generator.device).cpu()
    columns = iter(uniform.unbind(1))

    def below(probability: float) -> Tensor:
        return next(columns) < probability

    def take(number: int) -> Tensor:
        return torch.stack([next(columns) for _ in range(number)], 1)

    def symmetric(strength: float) -> Tensor:
        return (2 * next(columns) - 1) * strength

    def rectangles(probability: float, areas: tuple[float, float], aspect: float) -> Rectangles:
        wanted, area, ratio, place = below(probability), take(_TRIES), take(_TRIES), take(2)
        area = (areas[0] + (areas[1] - areas[0]) * area) * height * width
        ratio = _serially(np.exp, (2 * ratio - 1) * math.log(1 / aspect))
        heights = _serially(np.sqrt, area * ratio).round().long()
        widths = _serially(np.sqrt, area / ratio).round().long()
        fits = (heights < height) & (widths < width) & (heights > 0) & (widths > 0)
        first = fits.int().argmax(1, keepdim=True)
        wanted = wanted & fits.any(1)
        h = torch.where(wanted, heights.gather(1, first).squeeze(1), 0)
        w = torch.where(wanted, widths.gather(1, first).squeeze(1), 0)
        return Rectangles((place[:, 0] * (height - h + 1)).long(), (place[:, 1] * (width - w + 1)).long(), h, w)

    flip = below(config.flip_probability)
    shift_y, shift_x = (take(2) * (2 * config.pad_px + 1)).long().sub(config.pad_px).unbind(1)
    affine = below(config.affine_probability)
    angle = symmetric(math.radians(config.affine_degrees))
    scale = torch.exp(symmetric(math.log1p(config.affine_scale)))
    occluder = rectangles(
        config.occluder_probability, (config.occluder_area_min, config.occluder_area_max), config.erasing_aspect
    )
    from_batch = below({"batch": 1.0, "texture": 0.0, "mixed": 0.5}[config.occluder_source])
    donor = 1 + (next(columns) * max(count - 1, 1)).long()
    donor_place, texture = take(2), take(9)
    jitter, gray = below(config.color_probability), below(config.gray_probability)
    brightness, contrast = 1 + symmetric(config.brightness), 1 + symmetric(config.contrast)
    saturation, hue = 1 + symmetric(config.saturation), symmetric(2 * math.pi * config.hue)
    matrix, offset = _color_matrices(jitter, gray, brightness, contrast, saturation, hue)
    erasing = rectangles(
        config.erasing_probability, (config.erasing_area_min, config.erasing_area_max), config.erasing_aspect
    )
    return Augmentation(
        flip=flip,
        shift_y=shift_y,
        shift_x=shift_x,
        affine=affine,
        angle=angle,
        scale=scale,
        occluder=occluder,
        occluder_from_batch=from_batch & (count > 1),
        donor=donor,
        donor_place=donor_place,
        texture=texture,
        color=jitter | gray,
        color_matrix=matrix,
        color_offset=offset,
        erasing=erasing,
        noise_place=take(2),
    )


def _serially(function: np.ufunc, values: Tensor) -> Tensor:
    """An elementwise function of numpy: torch's wake a thread for some hundred numbers, and wait while others run."""
    return torch.from_numpy(function(values.numpy()))


def _color_matrices(
    jitter: Tensor, gray: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> tuple[Tensor, Tensor]:
    """Brightness, contrast, saturation, hue and grey in turn as one matrix on RGB and one offset.

    brightness: b x; contrast: c x + (1 - c) mean luma; saturation: s x + (1 - s) luma; hue: a rotation about the grey
    axis. All but brightness and contrast leave grey pixels as they are, so that contrast's offset,
    (1 - c) b mean(luma), goes through the later ones unchanged and is equal in the three channels.
    """
    one = torch.ones_like(brightness)
    brightness, contrast = torch.where(jitter, brightness, one), torch.where(jitter, contrast, one)
    saturation, hue = torch.where(jitter, saturation, one), torch.where(jitter, hue, 0 * one)
    eye = torch.eye(3, dtype=torch.float64)
    luma = torch.tensor(LUMA, dtype=torch.float64).expand(3, 3)
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)

    def column(values: Tensor) -> Tensor:
        return values[:, None, None]

    saturate = column(saturation) * eye + column(1 - saturation) * luma
    turn = column(hue.cos()) * eye + column(1 - hue.cos()) / 3 + column(hue.sin()) * cross
    matrix = column(brightness * contrast) * _products(turn, saturate)
    matrix = torch.where(column(gray), _products(luma.expand_as(matrix), matrix), matrix)
    return matrix, (1 - contrast) * brightness


def _products(left: Tensor, right: Tensor) -> Tensor:
    """(B, 3, 3) matrix products term by term: a library's may round differently with other threads, and wakes them."""
    first, second, third = (left[:, :, k : k + 1] * right[:, k : k + 1] for k in range(3))
    return first + second + third
