"""The occluded copy: the same people moved by a known warp and hidden in part by a known cover."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from motarfuse.data.warp import CONTROLS, Warp


def _setting(default: float, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class OccludedCopyConfig:
    """How far an occluded copy is moved and how much of it is hidden; strengths of 0 and a scale of 1: not at all."""

    share: float = _setting(0.0, "share of a batch that gets an occluded copy; 0: none")
    rotation_degrees: float = _setting(15.0, "largest rotation to either side, in degrees")
    scale: float = _setting(1.25, "factor of the size, drawn from 1/scale to scale")
    shift: float = _setting(0.15, "largest shift to either side along both axes; the crop is 2 wide and 2 high")
    bend: float = _setting(0.05, "standard deviation of the bend at its control points; the crop is 2 wide and 2 high")
    area_min: float = _setting(0.15, "smallest cover, as a share of the crop")
    area_max: float = _setting(0.5, "largest cover, as a share of the crop")
    occluder_probability: float = _setting(0.5, "paste an occluder; a copy without one shows motion undisturbed")

    def __post_init__(self) -> None:
        for name in ("share", "area_min", "area_max", "occluder_probability"):
            self._check(name, 0 <= getattr(self, name) <= 1, "a number from 0 to 1")
        self._check("rotation_degrees", 0 <= self.rotation_degrees <= 180, "a number from 0 to 180")
        self._check("scale", 1 <= self.scale < math.inf, "1 or more")
        for name in ("shift", "bend"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        if self.area_min > self.area_max:
            raise ValueError(f"area_min is {self.area_min}, more than area_max = {self.area_max}")

    def _check(self, name: str, fine: bool, supported: str) -> None:
        if not fine:
            raise ValueError(f"{name} is {getattr(self, name)!r}; supported: {supported}")


class CopiedBatch(NamedTuple):
    """Occluded copies of a batch, and what is known about them.

    Attributes:
        images: (B, 3, H, W) float32, normalised as the input.
        warp: W, from coordinates of the copies to those of the originals.
        covered: (B, H, W) bool, the pixels of the copies that the occluder hides.
    """

    images: Tensor
    warp: Warp
    covered: Tensor

    def covered_share_of_cells(self, grid: tuple[int, int]) -> Tensor:
        """The covered share of each cell, pixels on an edge counted by the area that they have in it.

        Args:
            grid: (h, w), at most the pixels.

        Returns:
            (B, h * w) float32 in [0, 1], row-major.

        Raises:
            ValueError: if the grid has no cells or more than the images have pixels.
        """
        pixels = (self.covered.shape[1], self.covered.shape[2])
        if not (1 <= grid[0] <= pixels[0] and 1 <= grid[1] <= pixels[1]):
            raise ValueError(f"grid must have from 1 x 1 to {pixels[0]} x {pixels[1]} cells, got {grid}")
        rows, columns = (_overlap(n, m, self.covered.device) for n, m in zip(pixels, grid, strict=True))
        return (rows @ self.covered.double() @ columns.T).flatten(1).float()


def _overlap(pixels: int, cells: int, device: torch.device) -> Tensor:
    """(cells, pixels) float64: the part of each cell that each pixel fills; rows sum to 1."""
    side = pixels / cells
    pixel = torch.arange(pixels, dtype=torch.float64, device=device)
    start = torch.arange(cells, dtype=torch.float64, device=device)[:, None] * side
    return (torch.minimum(pixel + 1, start + side) - torch.maximum(pixel, start)).clamp_min(0) / side


# Silhouettes are level sets of the larger of a box and an ellipse: x^2 and y^2 and roundness (x^2 + y^2), in axes of
# the given ratio of width to height. Roundness 1/2 is a rectangle, 1 an ellipse, between them a box with round corners.
class _Shape(NamedTuple):
    ratio_min: float
    ratio_max: float
    roundness: float
    tilt_degrees: float
    ragged: float = 0.0  # how far noise moves the outline
    window_min: float = 1.0  # smallest part of a donor's crop, along the tighter side
    window_max: float = 1.0


_TEXTURE, _POST, _ELLIPSE, _BOX, _FOLIAGE, _CROP, _PERSON = range(7)
_SHAPES = torch.tensor(
    [
        _Shape(1 / 3, 3, 0.5, 45),
        _Shape(1 / 40, 1 / 12, 0.5, 12),
        _Shape(1 / 2, 2, 1, 90),
        _Shape(2 / 5, 5 / 2, 0.62, 20),
        _Shape(1 / 2, 2, 1, 90, ragged=1.3),
        # Patches of people: ratios are multiples of the crop's own.
        _Shape(0.6, 2, 0.5, 8, window_min=0.5),
        _Shape(0.62, 0.62, 1, 12, window_min=0.97, window_max=0.97),
    ],
    dtype=torch.float64,
)
_LATTICE = (12, 6)  # of the coarse noise over the crop
_GRAIN_PLACES = 32
_PAINTED_TOGETHER = 8
# Similarity and bend, whether and how much, what and where, noise, colours, pattern, shading, donor.
_WIDTH = (4 + 2 * CONTROLS) + 2 + 7 + (_LATTICE[0] * _LATTICE[1] + 3) + 7 + 6 + 2 + 4


class _Occluders(NamedTuple):
    """Parameters of a batch's occluders on the CPU, in units of half the crop's longer side unless noted."""

    pixels: Tensor  # (B,) int64, how many pixels are hidden
    donor: Tensor  # (B,) int64, the row of the donors that is pasted; -1: painted
    noise: Tensor  # (B, 12, 6) float64 in [0, 1)
    grain_place: Tensor  # (B, 2) int64
    # (B, .) float64
    center: Tensor
    tilt: Tensor  # cosine and sine
    axes: Tensor
    roundness: Tensor
    ragged: Tensor
    colors: Tensor  # two of three in [0, 1]
    pattern: Tensor  # direction (2), frequency along and across, phase along and across
    grain: Tensor  # weight of noise in the pattern, of fine noise in the noise
    shade: Tensor  # across the silhouette: linear and square
    window: Tensor  # scale from the unit silhouette to the donor, and the place there (2)


class OccludedCopy:
    """Copies of images, moved by a random known warp and covered in part by something in front.

        x~ = paste(x o W),   (x o W)(u) = x(W(u)), bilinear, border-padded

    W is a rotation by up to ``rotation_degrees``, a scaling and a shift after a thin-plate spline bend (`Warp`, which
    says how folds are ruled out). With ``occluder_probability`` an occluder hides ``area_min`` to ``area_max`` of the
    crop's pixels, counted, is anywhere and may reach over the border. A third each are textures (stripes, checks or
    noise in any two colours), objects (posts, ellipses, boxes with round corners, foliage; shaded), and patches of
    other people (a window of another image or an upright ellipse about its middle, freely scaled). Painted colours are
    in [-1, 1].

    The result depends on the arguments and on the generator's state alone. Every image takes the same number of random
    numbers whatever the settings, and none depends on the images' device: a generator on the CPU and labels on the CPU
    cost no synchronisation. Nothing here records gradients; `Warp` is differentiable in its points.

    Args:
        config: Strengths; ``share`` is for the caller, every image given is copied.
    """

    def __init__(self, config: OccludedCopyConfig | None = None) -> None:
        self.config = OccludedCopyConfig() if config is None else config

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator,
        donors: Tensor | None = None,
        labels: Tensor | Sequence[int] | None = None,
        donor_labels: Tensor | Sequence[int] | None = None,
    ) -> CopiedBatch:
        """Copies every image once.

        Args:
            images: (B, 3, H, W) float32, normalised to about [-1, 1]; left as they are.
            generator: Source of all random numbers; its state advances.
            donors: (M, 3, H, W) float32 images from which patches are cut; None: ``images``.
            labels: (B,) identities. A patch comes from another identity than the image's, and where no donor has
                another, a texture stands in for it. None: any donor may be taken, of ``images`` any but the image
                itself.
            donor_labels: (M,) identities of the donors; required with donors and labels, and only then.

        Returns:
            Images, warp and covered pixels.

        Raises:
            TypeError: if images or donors are not float32.
            ValueError: if a shape is another, or labels are given for one of images and donors only.
        """
        _check_images("images", images)
        size = (images.shape[2], images.shape[3])
        if donors is not None:
            _check_images("donors", donors)
            if donors.shape[1:] != images.shape[1:]:
                raise ValueError(f"donors must be (M, 3, {size[0]}, {size[1]}), got {tuple(donors.shape)}")
        allowed = _other_people(len(images), donors, labels, donor_labels)
        donors = images if donors is None else donors
        # float64, so that floor(u n) is uniform enough and equal on every device.
        uniform = torch.rand(len(images), _WIDTH, dtype=torch.float64, generator=generator, device=generator.device)
        grain_size = [side + _GRAIN_PLACES - 1 for side in size]
        grain = torch.rand(grain_size, generator=generator, device=generator.device).to(images.device)
        columns = iter(uniform.cpu().unbind(1))
        warp = _draw_warp(self.config, columns, size).to(images.device)
        occluders = _draw_occluders(self.config, columns, size, allowed)
        if not len(images):
            return CopiedBatch(images.clone(), warp, images.new_zeros((0, *size), dtype=torch.bool))
        copies = _sample(images, warp.on_pixels(size))
        covered = torch.zeros((len(images), *size), dtype=torch.bool, device=images.device)
        if bool(occluders.pixels.any()):
            # The painting of a few images at a time stays in a core's cache; on other devices launches cost more.
            step = _PAINTED_TOGETHER if images.device.type == "cpu" else len(images)
            for start in range(0, len(images), step):
                part = slice(start, start + step)
                few = _Occluders(*(value[part] for value in occluders))
                paint, covered[part] = _paint(few, size, grain, donors)
                # Exact for finite numbers, and on a CPU a fifth of the time of torch.where with a broadcast mask.
                cover = covered[part, None].float()
                copies[part].mul_(1 - cover).add_(paint.mul_(cover))
        return CopiedBatch(copies, warp, covered)


def _check_images(name: str, images: Tensor) -> None:
    if images.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, normalised as a transform returns them, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"{name} must be (B, 3, H, W), got {tuple(images.shape)}")


def _other_people(
    count: int,
    donors: Tensor | None,
    labels: Tensor | Sequence[int] | None,
    donor_labels: Tensor | Sequence[int] | None,
) -> Tensor:
    """(B, M) bool on the CPU: which donors may cover which image."""
    if donors is None:
        if donor_labels is not None:
            raise ValueError("donor_labels are given without donors; leave them out or give both")
        if labels is None:
            return ~torch.eye(count, dtype=torch.bool)
        donor_labels = labels
    elif (labels is None) != (donor_labels is None):
        raise ValueError("with donors, give labels and donor_labels, or neither of them")
    if labels is None or donor_labels is None:
        return torch.ones(count, 0 if donors is None else len(donors), dtype=torch.bool)
    own, others = torch.as_tensor(labels).cpu(), torch.as_tensor(donor_labels).cpu()
    expected = count if donors is None else len(donors)
    for name, value, length in (("labels", own, count), ("donor_labels", others, expected)):
        if value.shape != (length,):
            raise ValueError(f"{name} must be ({length},), one for each image, got {tuple(value.shape)}")
    return own[:, None] != others


def _sample(images: Tensor, positions: Tensor) -> Tensor:
    return functional.grid_sample(images, positions, padding_mode="border", align_corners=False)


def _take(columns: Iterator[Tensor], number: int) -> Tensor:
    return torch.stack([next(columns) for _ in range(number)], 1)


def _draw_warp(config: OccludedCopyConfig, columns: Iterator[Tensor], size: tuple[int, int]) -> Warp:
    angle, scale, shift_x, shift_y = (2 * next(columns) - 1 for _ in range(4))
    # The inverse of the normal distribution; torch.rand may return 0, whose normal number is infinite.
    normal = torch.special.ndtri(_take(columns, 2 * CONTROLS).clamp_min(1e-16))
    return Warp.compose(
        size,
        angle=angle * math.radians(config.rotation_degrees),
        scale=torch.exp(scale * math.log(config.scale)),
        shift=torch.stack([shift_x, shift_y], 1) * config.shift,
        displacements=normal.view(-1, CONTROLS, 2) * config.bend,
    )


def _draw_occluders(
    config: OccludedCopyConfig, columns: Iterator[Tensor], size: tuple[int, int], allowed: Tensor
) -> _Occluders:
    height, width = size
    half = torch.tensor([width, height], dtype=torch.float64) / max(size)

    hidden, area = next(columns) < config.occluder_probability, next(columns)
    share = config.area_min + (config.area_max - config.area_min) * area
    pixels = torch.where(hidden, (share * height * width).round().long(), 0)

    what, which, ratio, tilt, turned = (next(columns) for _ in range(5))
    center = (2 * _take(columns, 2) - 1) * half
    number = allowed.sum(1)
    kind = (3 * what).long()
    kind = torch.where((kind == 2) & (number == 0), 0, kind)
    shape = torch.stack([0 * kind + _TEXTURE, _POST + (4 * which).long(), _CROP + (2 * which).long()], 1)
    shape = shape.gather(1, kind[:, None]).squeeze(1)
    columns_of_shape = _SHAPES[shape].unbind(1)
    ratio_min, ratio_max, roundness, tilt_degrees, ragged, window_min, window_max = columns_of_shape
    ratio = ratio_min * (ratio_max / ratio_min) ** ratio
    ratio = torch.where(kind == 2, ratio * half[0] / half[1], ratio)
    lying = (shape == _POST) & (turned < 0.25)
    tilt = torch.deg2rad(tilt_degrees * (2 * tilt - 1) + 90 * lying)
    axes = torch.stack([ratio.sqrt(), 1 / ratio.sqrt()], 1)

    noise = _take(columns, _LATTICE[0] * _LATTICE[1]).view(-1, *_LATTICE)
    fine = next(columns)
    grain_place = (_take(columns, 2) * _GRAIN_PLACES).long()
    colors = _colors(_take(columns, 7), kind, shape == _FOLIAGE)
    pattern, weight = _pattern(_take(columns, 6), kind, shape == _FOLIAGE, float(half[0]))
    linear, square = next(columns), next(columns)
    shade = torch.stack([0.8 * linear - 0.4, 0.55 * square], 1) * (kind == 1)[:, None]

    pick, window, place = next(columns), next(columns), 2 * _take(columns, 2) - 1
    rank = (pick * number).long()
    donor = torch.where(kind == 2, (allowed.cumsum(1) <= rank[:, None]).sum(1), -1)
    # The unit silhouette, as large as the window asks, inside the donor's crop: its people grow and shrink with it.
    zoom = (half / axes).amin(1) * (window_min + (window_max - window_min) * window)
    free = (half - zoom[:, None] * axes) * (shape != _PERSON)[:, None]
    return _Occluders(
        pixels=pixels,
        donor=donor,
        noise=noise,
        grain_place=grain_place,
        center=center,
        tilt=torch.stack([tilt.cos(), tilt.sin()], 1),
        axes=axes,
        roundness=roundness[:, None],
        ragged=ragged[:, None],
        colors=colors,
        pattern=pattern,
        grain=torch.stack([weight, fine], 1),
        shade=shade,
        window=torch.cat([zoom[:, None], free * place], 1),
    )


def _colors(uniform: Tensor, kind: Tensor, foliage: Tensor) -> Tensor:
    """(B, 7) -> (B, 6): any two for textures, one muted colour and a darker one for objects, greens for foliage."""
    muted = 0.1 + 0.8 * uniform[:, 3:4] + 0.3 * (uniform[:, :3] - 0.5)
    muted = torch.cat([muted, muted * (0.5 + 0.4 * uniform[:, 4:5])], 1)
    green = torch.tensor([0.3, 0.42, 0.16], dtype=torch.float64) * (0.6 + 0.8 * uniform[:, 6:])
    green = green + 0.15 * (uniform[:, :3] - 0.5)
    green = torch.cat([green, 0.3 * green], 1)
    colors = torch.where((kind == 1)[:, None], muted, uniform[:, :6])
    return torch.where(foliage[:, None], green, colors).clamp(0, 1)


def _pattern(uniform: Tensor, kind: Tensor, foliage: Tensor, half_width: float) -> tuple[Tensor, Tensor]:
    """(B, 6) -> direction, frequencies and phases (B, 6), and the weight of noise (B,).

    Textures are stripes, checks or noise, a third each; of ten objects four are plain, two striped, one checked and
    three mottled.
    """
    choice, direction, period, along, across, grain = uniform.unbind(1)
    bounds = torch.where((kind == 1)[:, None], torch.tensor([0.2, 0.3, 0.6]), torch.tensor([1 / 3, 2 / 3, 1.0]))
    choice = (choice[:, None] >= bounds).sum(1)  # stripes, checks, noise, plain
    choice = torch.where(foliage, 2, choice)
    frequency = 1 / (2 * half_width * (1 / 16) * 8**period)  # periods of 1/16 to 1/2 of the crop's width
    angle = math.pi * direction
    # Phases are large enough for positive positions; .75 is in the gap.
    parts = [
        angle.cos(),
        angle.sin(),
        frequency * (choice < 2),
        frequency * (choice == 1),
        torch.where(choice < 2, 64 + along, 64.75),
        torch.where(choice == 1, 64 + across, 64.75),
    ]
    return torch.stack(parts, 1), torch.where(choice == 2, 1.0, 0.25 * grain)


def _paint(occluders: _Occluders, size: tuple[int, int], grain: Tensor, donors: Tensor) -> tuple[Tensor, Tensor]:
    """Paint (B, 3, H, W) in [-1, 1] and the pixels (B, H, W) that it covers."""
    height, width = size
    device = grain.device
    parameters = occluders[4:]
    # One copy to the device for all of them.
    floats = torch.cat(parameters, 1).float().to(device)[:, :, None, None]
    center, tilt, axes, roundness, ragged, colors, pattern, grains, shades, window = (
        group.unbind(1) for group in floats.split([value.shape[1] for value in parameters], 1)
    )
    (axis_x, axis_y), (cos, sin) = axes, tilt
    direction_x, direction_y, often, often_across, phase, phase_across = pattern
    zoom, place_x, place_y = window
    first, second = torch.stack(colors, 1).split(3, 1)

    y, x = ((2 * torch.arange(side, device=device) + 1 - side) / max(size) for side in size)
    dx, dy = x - center[0], y[:, None] - center[1]
    local_x = dx * (cos / axis_x) + dy * (sin / axis_x)
    local_y = dy * (cos / axis_y) - dx * (sin / axis_y)
    square_x, square_y = local_x.square(), local_y.square()
    rows, columns = (_stretch(few, side, str(device)) for few, side in zip(_LATTICE, size, strict=True))
    noise = (rows @ occluders.noise.to(device) @ columns.T).float()
    level = torch.maximum(torch.maximum(square_x, square_y), (square_x + square_y) * roundness[0])
    level = level * (1 + ragged[0] * (noise - 0.5))
    threshold = _threshold(level, occluders.pixels)
    covered = level <= threshold
    unit = threshold.clamp_min(1e-6).rsqrt()  # local coordinates to those of the unit silhouette

    in_stripe = ((dx * direction_x + dy * direction_y) * often + phase).frac() < 0.5
    in_cross_stripe = ((dy * direction_x - dx * direction_y) * often_across + phase_across).frac() < 0.5
    mix = (in_stripe ^ in_cross_stripe).float()
    top, left = (place.to(device) for place in occluders.grain_place.unbind(1))
    speckles = grain.unfold(0, height, 1).unfold(1, width, 1)[top, left]
    mix = mix + grains[0] * (noise + grains[1] * (speckles - 0.5) - mix)
    across = unit * local_x
    # Detached leaves lie beyond the unit silhouette, where the parabola would turn them black.
    shade = (1 + across * (shades[0] - shades[1] * across)).clamp_(0.3, 1.4)
    paint = (mix[:, None] * (second - first)).add_(first)
    paint.mul_(2 * shade[:, None]).sub_(1).clamp_(-1, 1)

    pasted = (occluders.donor >= 0).nonzero().squeeze(1)
    if len(pasted):
        donor, pasted = occluders.donor[pasted].to(device), pasted.to(device)
        scale = (zoom * unit)[pasted]
        # Coordinates of the donor: the crop spans half the width and half the height to either side of its middle.
        grid_x = (place_x[pasted] + scale * axis_x[pasted] * local_x[pasted]) * (max(size) / width)
        grid_y = (place_y[pasted] + scale * axis_y[pasted] * local_y[pasted]) * (max(size) / height)
        paint.index_copy_(0, pasted, _sample(donors[donor], torch.stack([grid_x, grid_y], -1)))
    return paint, covered


@lru_cache(maxsize=16)
def _stretch(few: int, many: int, device: str) -> Tensor:
    """(many, few) float64: bicubic interpolation of few values over a side as a matrix."""
    unit = torch.eye(few, dtype=torch.float64)[None, :, :, None]
    return functional.interpolate(unit, (many, 1), mode="bicubic")[0, :, :, 0].T.contiguous().to(device)


def _threshold(level: Tensor, pixels: Tensor) -> Tensor:
    """(B, 1, 1): the level of each image's pixels-th lowest pixel, -inf where no pixel is wanted.

    Image by image: selection on a CPU takes a fifth of the time of sorting the batch.
    """
    values = [
        one.flatten().kthvalue(number).values if number else one.new_tensor(-math.inf)
        for one, number in zip(level, pixels.tolist(), strict=True)
    ]
    return torch.stack(values)[:, None, None]
