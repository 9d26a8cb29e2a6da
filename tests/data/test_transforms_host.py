"""The compiled loops: the bits of the torch and Pillow code, whatever the settings, sizes and threads."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from motarfuse import _native
from motarfuse.data import AugmentConfig, EvalTransform, TrainTransform, augment_host, images, read_image, read_images
from motarfuse.data.augment import Rectangles, draw

needs_host = pytest.mark.skipif(augment_host.module() is None, reason="motarfuse._host is not built (motarfuse build)")

OFF = AugmentConfig(flip_probability=0, pad_px=0, color_probability=0, erasing_probability=0)


def _without_host(function: Callable[[], Tensor]) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "host", lambda: None)
        return function()


def _batch(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """-0 and 0 are two."""
    return one.shape == other.shape and torch.equal(one.view(torch.int32), other.view(torch.int32))


def _agrees(pixels: Tensor, config: AugmentConfig, seed: int = 0, mean: float = 0.5, std: float = 0.5) -> bool:
    transform = TrainTransform(config, (mean, 0.4, 0.3), (std, 0.25, 0.2))

    def vary() -> Tensor:
        return transform(pixels, torch.Generator().manual_seed(seed))

    return _same_bits(vary(), _without_host(vary))


@needs_host
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"flip_probability": 0.5},
        {"pad_px": 9},
        {"affine_probability": 0.5, "affine_degrees": 30.0},
        {"affine_probability": 1.0, "flip_probability": 0.5, "pad_px": 3},
        {"occluder_probability": 0.7, "occluder_source": "batch"},
        {"occluder_probability": 0.7, "occluder_source": "texture"},
        {"occluder_probability": 1.0, "occluder_source": "mixed", "flip_probability": 1.0, "pad_px": 5},
        {"color_probability": 0.5},
        {"color_probability": 1.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5},
        {"gray_probability": 0.5},
        {"erasing_probability": 0.5, "erasing_value": "pixel"},
        {"erasing_probability": 0.5, "erasing_value": "mean"},
    ],
    ids=lambda settings: "-".join(settings) or "off",
)
@pytest.mark.parametrize("shape", [(17, 3, 32, 16), (5, 4, 3, 21, 13)], ids=["images", "clips"])
def test_each_change_alone_gives_the_bits_of_torch(settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert _agrees(_batch(shape, 1), dataclasses.replace(OFF, **settings), seed=3)


@needs_host
@pytest.mark.parametrize("seed", range(40))
def test_any_settings_and_sizes_give_the_bits_of_torch(seed: int) -> None:
    chance = random.Random(seed)
    height, width = chance.randint(1, 70), chance.randint(1, 70)
    config = AugmentConfig(
        **{
            f"{what}_probability": chance.choice([0, 0.5, 1])
            for what in ("flip", "affine", "occluder", "color", "gray", "erasing")
        },
        pad_px=chance.choice([0, chance.randrange(min(height, width))]),
        occluder_source=chance.choice(["batch", "texture", "mixed"]),
        erasing_value=chance.choice(["pixel", "mean"]),
        contrast=chance.choice([0.0, 0.15, 1.0]),
        hue=chance.choice([0.0, 0.5]),
    )
    clips = [chance.randint(1, 4)] * chance.randint(0, 1)
    pixels = _batch((chance.randint(1, 9), *clips, 3, height, width), seed)
    if chance.random() < 0.3:  # sums that end in 0 and colours that are clamped
        pixels = pixels.bitwise_and(128) // 128 * 255
    assert _agrees(pixels, config, seed, mean=chance.choice([0.0, 0.5]), std=chance.choice([0.2, 1.0]))


@needs_host
@pytest.mark.parametrize("shape", [(3, 3, 31, 17), (2, 4, 3, 31, 17)])
def test_evaluation_gives_the_bits_of_torch(shape: tuple[int, ...]) -> None:
    transform = EvalTransform((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = _batch(shape, 0)
    assert _same_bits(transform(pixels), _without_host(lambda: transform(pixels)))
    turned = pixels.transpose(-1, -2)  # not contiguous
    assert _same_bits(transform(turned), _without_host(lambda: transform(turned)))


@needs_host
def test_threads_share_a_large_batch_without_changing_it() -> None:
    pixels = _batch((24, 3, 256, 128), 0)  # at least 8 images a thread

    def both() -> Tensor:
        return torch.cat([TrainTransform()(pixels, torch.Generator().manual_seed(0)), EvalTransform()(pixels)])

    expected, threads = _without_host(both), torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert _same_bits(both(), expected)
    finally:
        torch.set_num_threads(threads)


@needs_host
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shift_y", 32, "a shift moves an image out of itself"),
        ("shift_x", -16, "a shift moves an image out of itself"),
        ("donor", 2, "a donor is none of the batch"),
        ("donor_place", 1.0, "a place is not in"),
        ("noise_place", -0.1, "a place is not in"),
        ("texture", 1.0, "a texture is not in"),
        ("affine", True, "there are fewer turned images"),
    ],
)
def test_parameters_that_reach_outside_the_images_are_refused(field: str, value: float, message: str) -> None:
    pixels = _batch((1, 3, 32, 16), 0)
    chosen = draw(OFF, (32, 16), 1, torch.Generator().manual_seed(0))
    changed: dict[str, Any] = {field: torch.full_like(getattr(chosen, field), value)}
    wrong = dataclasses.replace(chosen, **changed)
    with pytest.raises(ValueError, match=message):
        augment_host.vary(pixels, wrong, pixels[:0], None, [1.0] * 3, [0.0] * 3)


@needs_host
@pytest.mark.parametrize("which", ["occluder", "erasing"])
@pytest.mark.parametrize("sides", [(30, 0, 3, 1), (0, 14, 1, 3), (-1, 0, 2, 2), (0, 0, 2, -2)])
def test_rectangles_that_leave_their_image_are_refused(which: str, sides: tuple[int, ...]) -> None:
    pixels = _batch((4, 3, 32, 16), 0)
    chosen = draw(OFF, (32, 16), 4, torch.Generator().manual_seed(0))
    box: dict[str, Any] = {which: Rectangles(*(torch.full((4,), side) for side in sides))}
    with pytest.raises(ValueError, match="a rectangle leaves its image"):
        augment_host.vary(pixels, dataclasses.replace(chosen, **box), pixels[:0], None, [1.0] * 3, [0.0] * 3)


def test_a_library_of_other_sources_is_not_used_and_said_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Old:
        augment_revision = augment_host.REVISION + 1
        augment_fields = augment_host.FIELDS

    monkeypatch.setattr(_native, "host", lambda: Old)
    pixels = _batch((2, 3, 32, 16), 0)
    assert torch.equal(EvalTransform()(pixels), _without_host(lambda: EvalTransform()(pixels)))
    assert "built from other sources" in " ".join(capsys.readouterr().err.split())


def _files(folder: Path) -> list[Path]:
    """Pictures smaller and larger than 40 x 20 along either side, of several modes, and one that Pillow cannot lend."""
    random_bytes = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate(
        [(40, 20), (20, 10), (80, 40), (40, 33), (77, 20), (13, 57), (90, 7), (1, 1), (2, 300), (700, 3), (2300, 1900)]
    ):
        shape = (height, width) if number == 4 else (height, width, 4 if number == 5 else 3)
        path = folder / f"{number}.png"
        Image.fromarray(random_bytes.integers(0, 256, shape, dtype=np.uint8)).save(path, compress_level=1)
        paths.append(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, side in enumerate((50, 200)):  # the second is decoded at a reduced scale
        path = folder / f"{number}.jpg"
        Image.fromarray(random_bytes.integers(0, 256, (side, 2 * side, 3), dtype=np.uint8)).save(path, exif=exif)
        paths.append(path)
    return paths


@needs_host
@pytest.mark.parametrize("lends", [True, False])
def test_resizing_gives_the_bits_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lends: bool) -> None:
    paths = _files(tmp_path)
    if not lends:  # as before Pillow 11.2
        monkeypatch.setattr(images, "_lends", lambda: False)
    got, skipped, _ = read_images(paths, (40, 20))
    assert not skipped
    assert torch.equal(got, _without_host(lambda: read_images(paths, (40, 20))[0]))
    for index, path in enumerate(paths):
        assert np.array_equal(got[index].permute(1, 2, 0), read_image(path, (40, 20))), path.name


@needs_host
def test_resizing_to_any_size_gives_the_bits_of_pillow(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    path = tmp_path / "a.png"
    for _ in range(60):
        height, width, to_height, to_width = (int(side) for side in chance.integers(1, chance.choice([5, 150]), 4))
        Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        got = read_images([path], (to_height, to_width))[0][0].permute(1, 2, 0)
        assert np.array_equal(got, read_image(path, (to_height, to_width))), (height, width, to_height, to_width)


@needs_host
@pytest.mark.skipif(not hasattr(Image.Image, "__arrow_c_array__"), reason="Pillow lends its memory from 11.2 on")
def test_pillow_s_own_memory_is_read_without_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 40)).save(tmp_path / "a.png")

    def copied(*_: object) -> bytes:
        raise AssertionError("tobytes was called")

    monkeypatch.setattr(Image.Image, "tobytes", copied)
    assert read_images([tmp_path / "a.png"], (8, 8))[0].shape == (1, 3, 8, 8)


@needs_host
def test_a_picture_of_another_size_than_said_is_refused() -> None:
    host = augment_host.module()
    assert host is not None
    out = np.zeros((1, 3, 4, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match="the picture's bytes have another size"):
        host.resize_into(bytes(11), 2, 2, out, 0)
    with pytest.raises(ValueError, match="there are fewer images"):
        host.resize_into(bytes(12), 2, 2, out, 1)
    if hasattr(Image.Image, "__arrow_c_array__"):
        with pytest.raises(ValueError, match="the Arrow picture has another size"):
            host.resize_into(Image.new("RGB", (3, 2)).__arrow_c_array__(), 2, 2, out, 0)
        with pytest.raises(ValueError, match="four bytes a pixel"):
            host.resize_into(Image.new("L", (2, 2)).__arrow_c_array__(), 2, 2, out, 0)


def test_the_header_and_python_agree_on_the_revisions() -> None:
    folder = Path(__file__).resolve().parents[2] / "csrc" / "host"
    assert f"kRevision = {augment_host.REVISION};" in (folder / "augment.h").read_text()
    assert f"kRevision = {augment_host.RESIZE_REVISION};" in (folder / "resize.h").read_text()
