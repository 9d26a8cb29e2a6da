"""From bytes to network input: normalisation, and for training the random changes, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from motarfuse.data import augment_host
from motarfuse.data.augment import LUMA, Augmentation, AugmentConfig, Rectangles, draw

__all__ = ["AugmentConfig", "EvalTransform", "TrainTransform"]

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)


class EvalTransform:
    """(images / 255 - mean) / std, as images scale + shift, both rounded to float32.

    Attributes:
        scale: 1 / (255 std).
        shift: -mean / std.

    Args:
        mean: Of RGB in [0, 1]; 0.5 each is usual for vision transformers.
        std: Of RGB in [0, 1].
    """

    def __init__(self, mean: tuple[float, float, float] = MEAN, std: tuple[float, float, float] = STD) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must be three numbers each, std positive; got {mean} and {std}")
        self.mean = mean
        self.std = std
        self.scale = [1 / (255 * one) for one in std]
        self.shift = [-of / by for of, by in zip(mean, std, strict=True)]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalises.

        Args:
            images: uint8 (..., 3, H, W).

        Returns:
            float32 of the same shape, on the same device.
        """
        _check_images(images, (4, 5))
        if augment_host.takes(images):
            flat = images.reshape(-1, *images.shape[-3:])
            return augment_host.normalize(flat, self.scale, self.shift).reshape(images.shape)
        return self.normalize_(images.float())

    def normalize_(self, images: Tensor) -> Tensor:
        """The same for float32 images of range 0..255, in place."""
        scale = torch.tensor(self.scale, device=images.device)
        shift = torch.tensor(self.shift, device=images.device)
        return images.mul_(scale[:, None, None]).add_(shift[:, None, None])


class TrainTransform:
    """Random changes and normalisation of a batch, every image with its own parameters.

    Flip, pad and crop, affine, occluder, colour jitter and grey, normalisation, random erasing: see `AugmentConfig`.
    The result depends on the images, the settings and the generator's state alone, not on the number of threads; all
    parameters come from the generator, so that saving its state saves where the augmentation stands. A generator on the
    CPU is best even for images on a GPU: it costs no synchronisation.

    Of a clip (B, T, 3, H, W) all frames share their parameters: the motion between them stays true.

    On a CPU ``motarfuse._host``, where it is built, does all but the rotation in one pass over each image, with the
    same bits; what the code here says is the definition.

    Args:
        config: Probabilities and strengths.
        mean: Of RGB in [0, 1].
        std: Of RGB in [0, 1].

    Source: random erasing, Zhong et al. 2017.
    """

    def __init__(
        self,
        config: AugmentConfig | None = None,
        mean: tuple[float, float, float] = MEAN,
        std: tuple[float, float, float] = STD,
    ) -> None:
        self.config = AugmentConfig() if config is None else config
        self._normalize = EvalTransform(mean, std)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Varies and normalises.

        Args:
            images: uint8 (B, 3, H, W), or (B, T, 3, H, W) for clips; left as they are.
            generator: Source of all random numbers; its state advances.

        Returns:
            float32 of the same shape, on the same device.

        Raises:
            TypeError: if the images are not uint8.
            ValueError: if their shape is another, or ``pad_px`` is not smaller than height and width.
        """
        _check_images(images, (4, 5))
        size = (images.shape[-2], images.shape[-1])
        if self.config.pad_px >= min(size):
            raise ValueError(f"pad_px is {self.config.pad_px}, images are {size[0]} x {size[1]}; it must be smaller")
        frames = images.shape[1] if images.ndim == 5 else 1
        chosen = draw(self.config, size, len(images), generator)
        noise = torch.empty(0)
        if self.config.erasing_probability > 0 and self.config.erasing_value == "pixel":
            noise = torch.randn(3, *size, generator=generator, device=generator.device).to(images.device)
        flat = images.reshape(-1, 3, *size)
        if len(flat) == 0:
            return flat.float().reshape(images.shape)
        if augment_host.takes(flat):
            return self._on_host(flat, chosen, frames, noise).reshape(images.shape)
        chosen = _repeat(chosen, frames)
        moved = _flip_and_shift(flat, chosen)
        if bool(chosen.affine.any()):
            _rotate_and_scale_(moved, chosen)
        _occlude_(moved, flat, chosen, frames)
        values = torch.empty(moved.shape, dtype=torch.float32, device=moved.device)
        for part in _cache_sized_parts(moved):
            piece = values[part].copy_(moved[part])
            _recolor_(piece, chosen, part)
            self._normalize.normalize_(piece)
        _erase_(values, noise, chosen)
        return values.reshape(images.shape)

    def _on_host(self, flat: Tensor, chosen: Augmentation, frames: int, noise: Tensor) -> Tensor:
        """The same bits in one pass over the images, of which torch only rotates those that are to be."""
        turned = flat[:0]
        if bool(chosen.affine.any()):
            some = _repeat(_select(chosen, chosen.affine), frames)
            turned = _flip_and_shift(flat[chosen.affine.repeat_interleave(frames)], some)
            _rotate_and_scale_(turned, some)
        normalize = self._normalize
        return augment_host.vary(
            flat, chosen, turned, noise if noise.numel() else None, normalize.scale, normalize.shift
        )


def _check_images(images: Tensor, ranks: tuple[int, ...]) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 (0..255), got {images.dtype}")
    if images.ndim not in ranks or images.shape[-3] != 3:
        raise ValueError(f"images must be (B, 3, H, W) or (B, T, 3, H, W), got {tuple(images.shape)}")


def _repeat(chosen: Augmentation, frames: int) -> Augmentation:
    return chosen if frames == 1 else _each(chosen, lambda values: values.repeat_interleave(frames, 0))


def _select(chosen: Augmentation, wanted: Tensor) -> Augmentation:
    return _each(chosen, lambda values: values[wanted])


def _each(chosen: Augmentation, function: Callable[[Tensor], Tensor]) -> Augmentation:
    values: dict[str, Any] = {}
    for item in fields(chosen):
        value = getattr(chosen, item.name)
        if isinstance(value, Rectangles):
            values[item.name] = Rectangles(*(function(getattr(value, side.name)) for side in fields(value)))
        else:
            values[item.name] = function(value)
    return replace(chosen, **values)


# Rectangles are copied image by image: on a CPU slices move 2 to 7 times as fast as one gather over the batch, and on a
# GPU the launches overlap with the training step.


def _flip_and_shift(images: Tensor, chosen: Augmentation) -> Tensor:
    height, width = images.shape[-2:]
    out = torch.zeros_like(images, memory_format=torch.contiguous_format)
    moves = zip(chosen.flip.tolist(), chosen.shift_y.tolist(), chosen.shift_x.tolist(), strict=True)
    for index, (flip, dy, dx) in enumerate(moves):
        source = images[index].flip(-1) if flip else images[index]
        rows, columns = slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0))
        from_rows, from_columns = slice(max(-dy, 0), height + min(-dy, 0)), slice(max(-dx, 0), width + min(-dx, 0))
        out[index, :, rows, columns] = source[:, from_rows, from_columns]
    return out


def _rotate_and_scale_(images: Tensor, chosen: Augmentation) -> None:
    height, width = images.shape[-2:]
    which = chosen.affine.nonzero().squeeze(1)
    cos = (chosen.angle.cos() / chosen.scale)[which].float().to(images.device)[:, None, None]
    sin = (chosen.angle.sin() / chosen.scale)[which].float().to(images.device)[:, None, None]
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    # Pixels to the [-1, 1] of grid_sample with align_corners=False, whose pixel centres are at (2 i + 1) / n - 1.
    # Single elementwise operations on purpose: affine_grid is a matrix product, whose rounding may depend on threads.
    grid = torch.stack([(cos * x - sin * y) * (2 / width), (sin * x + cos * y) * (2 / height)], -1)
    which = which.to(images.device)
    turned = functional.grid_sample(images[which].float(), grid, align_corners=False)
    images[which] = turned.round_().to(torch.uint8)


def _occlude_(images: Tensor, originals: Tensor, chosen: Augmentation, frames: int) -> None:
    height, width = images.shape[-2:]
    for index, top, left, h, w in _boxes(chosen.occluder):
        if chosen.occluder_from_batch[index]:
            donor = (index + int(chosen.donor[index]) * frames) % len(images)
            from_top, from_left = _place(chosen.donor_place[index], height - h, width - w)
            patch = originals[donor, :, from_top : from_top + h, from_left : from_left + w]
        else:
            patch = _stripes(chosen.texture[index], h, w).to(images.device)
        images[index, :, top : top + h, left : left + w] = patch


def _boxes(box: Rectangles) -> list[tuple[int, int, int, int, int]]:
    """(image, top, left, height, width) of the rectangles that are there."""
    sides = (range(len(box.height)), box.top.tolist(), box.left.tolist(), box.height.tolist(), box.width.tolist())
    return [entry for entry in zip(*sides, strict=True) if entry[3]]


def _place(shares: Tensor, free_y: int, free_x: int) -> tuple[int, int]:
    y, x = shares.tolist()
    return int(y * (free_y + 1)), int(x * (free_x + 1))


def _stripes(uniform: Tensor, height: int, width: int) -> Tensor:
    """uint8 (3, height, width): stripes of two colours, 2 to 17 pixels wide, in any of 8 x 8 directions."""
    colors = (uniform[:6] * 256).to(torch.uint8).reshape(2, 3, 1, 1)
    step_y, step_x = (int(value * 8) for value in uniform[6:8])
    period = 2 + int(uniform[8] * 16)
    phase = step_y * torch.arange(height)[:, None] + step_x * torch.arange(width)
    return torch.where((phase // (4 * period)) % 2 == 0, colors[0], colors[1])


# Floats of which a core holds most in its own cache: measured best of 2^16 to 2^30 at 128 x 64 and at 256 x 128.
_CACHED = 1 << 19


def _cache_sized_parts(images: Tensor) -> list[slice]:
    """The batch in pieces that fit into a cache on a CPU; one piece on other devices, where launches cost more."""
    count = len(images) if images.device.type != "cpu" else max(1, _CACHED // images[0].numel())
    return [slice(start, start + count) for start in range(0, len(images), count)]


def _recolor_(values: Tensor, chosen: Augmentation, part: slice) -> None:
    """Applies the colour matrices to float images of whole numbers 0..255, which are a part of the batch."""
    wanted = chosen.color[part].nonzero().squeeze(1)
    if not len(wanted):
        return
    which = wanted.to(values.device)
    picked = values.index_select(0, which)
    # Sums of whole numbers are exact in any order, as long as a row of them stays below 2^24; sums of fractions over
    # several threads are not.
    sums = picked.sum(3).double().sum(2)
    mean = (sums[:, 0] * LUMA[0] + sums[:, 1] * LUMA[1] + sums[:, 2] * LUMA[2]) / (values.shape[-2] * values.shape[-1])
    offset = (chosen.color_offset[part][wanted].to(values.device) * mean).float()[:, None, None]
    matrix = chosen.color_matrix[part][wanted].to(values.device).float()[:, :, :, None, None]
    # Product by product, each rounded on its own: a matrix product may round differently with other threads.
    mixed, product = torch.empty_like(picked), torch.empty_like(picked[:, 0])
    for channel in range(3):
        torch.mul(picked[:, 0], matrix[:, channel, 0], out=mixed[:, channel])
        mixed[:, channel] += torch.mul(picked[:, 1], matrix[:, channel, 1], out=product)
        mixed[:, channel] += torch.mul(picked[:, 2], matrix[:, channel, 2], out=product)
        mixed[:, channel] += offset
    values.index_copy_(0, which, mixed.clamp_(0, 255))


def _erase_(values: Tensor, noise: Tensor, chosen: Augmentation) -> None:
    height, width = values.shape[-2:]
    for index, top, left, h, w in _boxes(chosen.erasing):
        area = values[index, :, top : top + h, left : left + w]
        if noise.numel():
            from_top, from_left = _place(chosen.noise_place[index], height - h, width - w)
            area.copy_(noise[:, from_top : from_top + h, from_left : from_left + w])
        else:
            area.zero_()
