"""Batched augmentation: exact where it can be, per image, and a function of the generator alone."""

from __future__ import annotations

import colorsys
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from motarfuse.data import AugmentConfig, EvalTransform, TrainTransform
from motarfuse.data.augment import draw

OFF = AugmentConfig(flip_probability=0, pad_px=0, color_probability=0, erasing_probability=0)
EVERYTHING = AugmentConfig(
    affine_probability=0.7, occluder_probability=0.7, color_probability=0.7, gray_probability=0.3, pad_px=4
)


def _images(count: int = 8, height: int = 32, width: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def _apply(images: Tensor, config: AugmentConfig, seed: int = 0) -> Tensor:
    return TrainTransform(config)(images, torch.Generator().manual_seed(seed))


def _with(**settings: Any) -> AugmentConfig:
    return dataclasses.replace(OFF, **settings)


def _bytes(values: Tensor) -> Tensor:
    """Back to 0..255, rounded."""
    return values.add(1).mul(127.5).round().to(torch.int64)


def test_evaluation_normalises_and_nothing_else() -> None:
    images = _images()
    got = EvalTransform(mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))(images)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.25, 0.2])
    expected = (images.double() / 255 - mean[:, None, None]) / std[:, None, None]
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() < 2e-6


def test_training_with_everything_off_equals_evaluation() -> None:
    images = _images()
    assert torch.equal(_apply(images, OFF), EvalTransform()(images))


def test_flip_mirrors_whole_images() -> None:
    images = _images(64)
    got = _bytes(_apply(images, _with(flip_probability=0.5)))
    flipped = [bool((got[index] == images[index].flip(-1)).all()) for index in range(64)]
    straight = [bool((got[index] == images[index]).all()) for index in range(64)]
    assert all(a != b for a, b in zip(flipped, straight, strict=True))
    assert 16 < sum(flipped) < 48
    assert torch.equal(_bytes(_apply(images, _with(flip_probability=1.0))), images.flip(-1).long())


def test_pad_and_crop_shifts_by_whole_pixels_over_the_full_range_and_fills_with_black() -> None:
    pad = 3
    images = _images(400) // 2 + 100  # never black
    got = _bytes(_apply(images, _with(pad_px=pad)))
    padded = torch.nn.functional.pad(images.long(), (pad, pad, pad, pad))
    shifts = set()
    for index in range(len(images)):
        matches = [
            (dy, dx)
            for dy in range(2 * pad + 1)
            for dx in range(2 * pad + 1)
            if torch.equal(got[index], padded[index, :, dy : dy + 32, dx : dx + 16])
        ]
        assert len(matches) == 1
        shifts.update(matches)
    assert len(shifts) == (2 * pad + 1) ** 2


def test_scale_and_rotation_move_the_content_as_said() -> None:
    height, width = 64, 48
    y, x = torch.meshgrid(torch.arange(height) - 31.5, torch.arange(width) - 23.5, indexing="ij")
    # A bright spot; where it goes tells the map.
    spot = (255 * torch.exp(-((x - 10) ** 2 + (y - 12) ** 2) / 8)).to(torch.uint8)
    images = spot.expand(32, 3, height, width).clone()
    config = _with(affine_probability=1.0, affine_degrees=20.0, affine_scale=0.3)
    got = (_apply(images, config, seed=4) + 1) / 2
    chosen = draw(config, (height, width), 32, torch.Generator().manual_seed(4))
    mass = got[:, 0] / got[:, 0].sum((1, 2), keepdim=True)
    found = torch.stack([(mass * x).sum((1, 2)), (mass * y).sum((1, 2))], 1)
    # Output pixel u shows R u / scale, so that the spot at q is seen at scale R^-1 q.
    cos, sin = chosen.angle.cos(), chosen.angle.sin()
    expected = torch.stack([cos * 10 + sin * 12, -sin * 10 + cos * 12], 1) * chosen.scale[:, None]
    assert (found - expected).abs().max() < 0.15
    assert chosen.scale.min() >= 1 / 1.3
    assert chosen.scale.max() <= 1.3
    assert chosen.scale.max() / chosen.scale.min() > 1.4


def test_affine_with_no_strength_changes_nothing() -> None:
    images = _images()
    got = _bytes(_apply(images, _with(affine_probability=1.0, affine_degrees=0.0, affine_scale=0.0)))
    assert (got - images.long()).abs().max() <= 1  # interpolation weights of 1 - 1e-7


def test_erasing_covers_a_share_of_the_images_with_rectangles_of_the_asked_area() -> None:
    images = torch.full((600, 3, 64, 32), 255, dtype=torch.uint8)
    config = _with(
        erasing_probability=0.5, erasing_value="mean", erasing_area_min=0.1, erasing_area_max=0.3, erasing_aspect=0.5
    )
    erased = _apply(images, config)[:, 0] == 0
    areas = erased.float().mean((1, 2))
    hit = areas > 0
    assert 0.42 < hit.float().mean() < 0.58
    assert areas[hit].min() > 0.08
    assert areas[hit].max() < 0.33
    for mask in erased[hit][:50]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert int(box) == int(mask.sum())
        ratio = float(rows.max() - rows.min() + 1) / float(columns.max() - columns.min() + 1)
        assert 0.4 < ratio < 2.5


def test_erased_pixels_are_normal_noise_that_differs_between_images() -> None:
    images = torch.full((200, 3, 64, 32), 255, dtype=torch.uint8)
    got = _apply(images, _with(erasing_probability=1.0, erasing_area_min=0.3))
    noise = got[got != 1]
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05
    assert not torch.equal(got[0], got[1])


@pytest.mark.parametrize("source", ["batch", "texture", "mixed"])
def test_an_occluder_is_one_rectangle_from_another_image_or_a_texture(source: str) -> None:
    # Image i is flat with value i + 1: pasted pixels tell whose they are.
    count = 100
    images = (torch.arange(count, dtype=torch.uint8) + 1)[:, None, None, None].expand(count, 3, 64, 32).clone()
    before = images.clone()
    got = _bytes(_apply(images, _with(occluder_probability=1.0, occluder_source=source, occluder_area_min=0.2)))
    from_batch = 0
    for index in range(count):
        pasted = (got[index] != index + 1).any(0)
        assert 0.15 < float(pasted.float().mean()) < 0.55
        rows, columns = pasted.any(1).nonzero(), pasted.any(0).nonzero()
        box = got[index, :, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        from_batch += len(box.unique()) == 1
    assert torch.equal(images, before)
    assert {"batch": from_batch == count, "texture": from_batch < 20, "mixed": 30 < from_batch < 80}[source]


def test_a_single_image_gets_a_texture_where_there_is_no_other_image() -> None:
    images = torch.full((1, 3, 64, 32), 7, dtype=torch.uint8)
    got = _bytes(_apply(images, _with(occluder_probability=1.0, occluder_source="batch")))
    assert (got != 7).any()


def test_brightness_contrast_and_saturation_follow_their_formulas() -> None:
    images = _images(16) // 2 + 60  # no clamping at these strengths
    config = _with(color_probability=1.0, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.0)
    got = (_apply(images, config, seed=2).double() + 1) * 127.5
    # The same parameters, each read off alone: draws do not depend on the other settings.
    b = _factor(_with(color_probability=1.0, brightness=0.1, contrast=0.0, saturation=0.0, hue=0.0), 2)
    c = _factor(_with(color_probability=1.0, brightness=0.0, contrast=0.1, saturation=0.0, hue=0.0), 2)
    s = _saturation(_with(color_probability=1.0, brightness=0.0, contrast=0.0, saturation=0.1, hue=0.0), 2)
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]
    x = images.double() * b
    x = c * x + (1 - c) * (x * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    x = s * x + (1 - s) * (x * luma).sum(1, keepdim=True)
    assert (got - x).abs().max() < 1e-3
    assert b.min() < 0.95 < 1.05 < b.max()


def _factor(config: AugmentConfig, seed: int) -> Tensor:
    matrix = draw(config, (32, 16), 16, torch.Generator().manual_seed(seed)).color_matrix
    return matrix[:, 0, 0][:, None, None, None]


def _saturation(config: AugmentConfig, seed: int) -> Tensor:
    matrix = draw(config, (32, 16), 16, torch.Generator().manual_seed(seed)).color_matrix
    return ((matrix[:, 0, 0] - 0.299) / (1 - 0.299))[:, None, None, None]


def test_a_turn_of_the_hue_goes_round_the_colour_circle_and_keeps_grey() -> None:
    config = _with(color_probability=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.5)
    chosen = draw(config, (4, 4), 64, torch.Generator().manual_seed(0))
    gray = torch.full((3,), 90.0, dtype=torch.float64)
    assert ((chosen.color_matrix @ gray) - 90).abs().max() < 1e-9
    red = torch.tensor([150.0, 90, 90], dtype=torch.float64)
    turns = (chosen.color_matrix @ red).tolist()
    hues = np.array([colorsys.rgb_to_hsv(*(value / 255 for value in rgb))[0] for rgb in turns])
    assert np.histogram(hues, bins=6, range=(0, 1))[0].min() > 0


def test_gray_images_have_three_equal_channels_with_the_luma() -> None:
    images = _images()
    got = _bytes(_apply(images, _with(gray_probability=1.0)))
    luma = (images.double() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    assert torch.equal(got[:, 0], got[:, 1])
    assert (got[:, 0] - luma).abs().max() <= 0.51


def test_colours_stay_in_the_range_of_images() -> None:
    got = _apply(_images(64), _with(color_probability=1.0, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5))
    assert got.min() >= -1 - 1e-6
    assert got.max() <= 1 + 1e-6


def test_the_generator_state_decides_everything_whatever_the_threads() -> None:
    images = _images(33, 64, 48)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(_apply(images, EVERYTHING, seed=9))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert not torch.equal(results[0], _apply(images, EVERYTHING, seed=10))


def test_a_saved_generator_state_continues_exactly() -> None:
    transform, images = TrainTransform(EVERYTHING), _images()
    generator = torch.Generator().manual_seed(1)
    transform(images, generator)
    state = generator.get_state()
    expected = [transform(images, generator) for _ in range(3)]
    resumed = torch.Generator()
    resumed.set_state(state)
    assert all(torch.equal(transform(images, resumed), value) for value in expected)


def test_one_probability_does_not_shift_the_draws_of_the_others() -> None:
    one = draw(EVERYTHING, (32, 16), 8, torch.Generator().manual_seed(0))
    other = draw(dataclasses.replace(EVERYTHING, flip_probability=0), (32, 16), 8, torch.Generator().manual_seed(0))
    assert torch.equal(one.erasing.top, other.erasing.top)
    assert torch.equal(one.color_matrix, other.color_matrix)


def test_images_of_a_batch_are_varied_independently() -> None:
    images = _images(1).expand(32, -1, -1, -1)
    got = _apply(images, EVERYTHING)
    distinct = {got[index].numpy().tobytes() for index in range(32)}
    assert len(distinct) == 32


def test_frames_of_a_clip_share_their_parameters() -> None:
    frame = _images(4)
    clips = frame[:, None].expand(4, 5, 3, 32, 16)
    got = TrainTransform(dataclasses.replace(EVERYTHING, occluder_source="texture"))(
        clips, torch.Generator().manual_seed(0)
    )
    assert got.shape == clips.shape
    assert all(torch.equal(got[:, 0], got[:, index]) for index in range(1, 5))
    assert torch.equal(
        got[:, 0],
        _apply(frame, dataclasses.replace(EVERYTHING, occluder_source="texture")),
    )


def test_strided_and_empty_batches_are_taken_and_the_input_is_left_alone() -> None:
    images = _images(8, 32, 16)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    assert torch.equal(_apply(channels_last, EVERYTHING), _apply(images, EVERYTHING))
    assert torch.equal(images, before)
    assert _apply(images[:0], EVERYTHING).shape == (0, 3, 32, 16)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_images_up_to_rounding() -> None:
    images = _images(32, 64, 32)
    config = dataclasses.replace(EVERYTHING, affine_probability=0.0)
    got = TrainTransform(config)(images.cuda(), torch.Generator().manual_seed(0)).cpu()
    assert (got - _apply(images, config)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 3, 32, 16), TypeError, "images must be uint8"),
        (torch.zeros(3, 32, 16, dtype=torch.uint8), ValueError, r"must be \(B, 3, H, W\) or .*got \(3, 32, 16\)"),
        (torch.zeros(2, 32, 16, 3, dtype=torch.uint8), ValueError, r"got \(2, 32, 16, 3\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ValueError, "pad_px is 10, images are 8 x 8"),
    ],
)
def test_images_of_the_wrong_kind_are_named(images: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _apply(images, AugmentConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip_probability": 1.5}, "flip_probability is 1.5; supported: a number from 0 to 1"),
        ({"pad_px": -1}, "pad_px is -1"),
        ({"hue": 0.7}, "hue is 0.7; supported: a number from 0 to 0.5"),
        ({"erasing_aspect": 0.0}, "erasing_aspect is 0.0"),
        ({"erasing_value": "black"}, "erasing_value is 'black'; supported: one of pixel, mean"),
        ({"occluder_source": "video"}, "occluder_source is 'video'; supported: one of batch, texture, mixed"),
        ({"occluder_area_min": 0.6}, "occluder_area_min is 0.6, more than occluder_area_max = 0.5"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**settings)


def test_every_setting_is_explained() -> None:
    assert all(item.metadata["help"] for item in dataclasses.fields(AugmentConfig))
