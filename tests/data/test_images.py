"""Reading images: the content decides, every mode becomes RGB, and what cannot be read is named with its reason."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from motarfuse.data import ImageReadError, images, read_image, read_images


def _gradient(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x // width, 255 * y // height, 128 + 0 * x], -1).astype(np.uint8)


def test_content_decides_the_format_whatever_the_suffix_says(tmp_path: Path) -> None:
    pixels = _gradient(32, 16)
    for name, image_format in (("jpeg.png", "JPEG"), ("png.jpg", "PNG"), ("bmp.tif", "BMP"), ("tiff.bmp", "TIFF")):
        Image.fromarray(pixels).save(tmp_path / name, format=image_format, quality=100)
        got = read_image(tmp_path / name)
        assert np.abs(got.astype(int) - pixels).max() <= (12 if image_format == "JPEG" else 0), name


@pytest.mark.real_data
def test_real_crops_with_jpeg_content_under_png_names_are_read(real_data: Path) -> None:
    paths = sorted((real_data / "pku-reid" / "images").iterdir())
    tensor, skipped, kept = read_images(paths, (128, 64))
    assert tensor.shape == (800, 3, 128, 64)
    assert (skipped, kept) == ([], list(range(800)))
    with Image.open(paths[0]) as image:
        assert image.format == "JPEG"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = _gradient(32, 16)
    upright[:4, :4] = (255, 0, 0)  # the corner that tells all eight orientations apart
    # What a camera held in that way stores: the inverse of what a viewer must do.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), upright)
    assert read_image(tmp_path / "a.png", (64, 20)).shape == (64, 20, 3)


def test_a_large_rotated_jpeg_is_reduced_along_the_right_axes(tmp_path: Path) -> None:
    wide = _gradient(400, 1600)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(wide).save(tmp_path / "a.jpg", exif=exif, quality=95)
    got = read_image(tmp_path / "a.jpg", (128, 32)).astype(float)
    full = Image.fromarray(np.ascontiguousarray(np.rot90(wide, -1))).resize((32, 128), Image.Resampling.BILINEAR)
    assert np.abs(got - np.asarray(full, dtype=float)).mean() < 2


def test_reduced_decoding_of_a_large_jpeg_looks_like_full_decoding(tmp_path: Path) -> None:
    big = np.asarray(Image.fromarray(_gradient(64, 32)).resize((800, 1600), Image.Resampling.BICUBIC))
    Image.fromarray(big).save(tmp_path / "a.jpg", quality=95)
    reduced = read_image(tmp_path / "a.jpg", (128, 64)).astype(float)
    full = Image.fromarray(read_image(tmp_path / "a.jpg")).resize((64, 128), Image.Resampling.BILINEAR)
    assert np.abs(reduced - np.asarray(full, dtype=float)).mean() < 1


def _save_modes(folder: Path) -> dict[str, tuple[Path, tuple[int, int, int]]]:
    """One flat image of each mode, with the RGB value that it should become."""
    images_by_mode: dict[str, tuple[Image.Image, str, tuple[int, int, int]]] = {
        "gray": (Image.new("L", (8, 16), 77), "png", (77, 77, 77)),
        "one bit": (Image.new("1", (8, 16), 1), "png", (255, 255, 255)),
        "palette": (Image.new("RGB", (8, 16), (200, 30, 60)).quantize(4), "png", (200, 30, 60)),
        "opaque": (Image.new("RGBA", (8, 16), (200, 30, 60, 255)), "png", (200, 30, 60)),
        "transparent": (Image.new("RGBA", (8, 16), (200, 30, 60, 0)), "png", (128, 128, 128)),
        "transparent gray": (Image.new("LA", (8, 16), (200, 0)), "png", (128, 128, 128)),
        "16 bits": (Image.fromarray(np.full((16, 8), 200 * 257, np.uint16)), "png", (200, 200, 200)),
        "16 bits tiff": (Image.fromarray(np.full((16, 8), 200 * 257, np.uint16)), "tiff", (200, 200, 200)),
        "cmyk": (Image.new("CMYK", (8, 16), (0, 255, 255, 0)), "tiff", (255, 0, 0)),
        "cmyk jpeg": (Image.new("CMYK", (8, 16), (0, 255, 255, 0)), "jpg", (255, 0, 0)),
    }
    saved = {}
    for name, (image, suffix, expected) in images_by_mode.items():
        path = folder / f"{name}.{suffix}"
        image.save(path)
        saved[name] = (path, expected)
    return saved


def test_every_colour_mode_becomes_eight_bit_rgb(tmp_path: Path) -> None:
    for name, (path, expected) in _save_modes(tmp_path).items():
        got = read_image(path)
        assert (got.shape, got.dtype) == ((16, 8, 3), np.uint8), name
        assert np.abs(got.astype(int) - np.array(expected)).max() <= 2, name
        assert np.abs(read_image(path, (6, 6)).astype(int) - np.array(expected)).max() <= 2, name


def test_a_palette_with_a_transparent_colour_shows_grey_there(tmp_path: Path) -> None:
    image = Image.new("P", (8, 16), 0)
    image.putpalette([10, 200, 10, 250, 0, 0])
    image.paste(1, (0, 0, 8, 8))
    image.save(tmp_path / "a.png", transparency=0)
    got = read_image(tmp_path / "a.png")
    assert (got[0, 0].tolist(), got[15, 0].tolist()) == ([250, 0, 0], [128, 128, 128])


def test_float_samples_are_refused_instead_of_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ImageReadError, match="F samples of 32 bits"):
        read_image(tmp_path / "a.tiff")


def _png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (b"not an image at all", "no image of a supported format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a supported format"),
        (b"\x89PNG\r\n\x1a\n", "no image of a supported format|cannot be decoded"),
    ],
)
def test_what_is_no_image_is_named_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "0001_c1.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=reason) as caught:
        read_image(path)
    assert caught.value.path == path
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_image_is_an_error_and_never_half_a_picture(
    tmp_path: Path, image_format: str, share: float
) -> None:
    path = tmp_path / "a"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format=image_format)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    for size in (None, (16, 8)):
        with pytest.raises(ImageReadError):
            read_image(path, size)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_100, 60_000])  # Pillow's own limit is 13,377 squared
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_that_claims(side, side))
    with pytest.raises(ImageReadError, match="pixels"):
        read_image(path)


def test_the_pixel_limit_is_the_projects_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Callable
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 10 * 10)
    with pytest.raises(ImageReadError, match="12 x 24 pixels"):
        read_image(picture(tmp_path / "a.jpg"))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="no such file"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(ImageReadError, match="directory"):
        read_image(tmp_path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_cost_the_picture(tmp_path: Path) -> None:
    Image.fromarray(_gradient(16, 8)).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg").shape == (16, 8, 3)


def test_many_images_keep_their_order_and_skip_the_broken_by_name(tmp_path: Path, picture: Callable) -> None:
    paths = [picture(tmp_path / f"{number}.jpg", number) for number in range(9)]
    paths[2].write_bytes(b"")
    paths[5].write_bytes(paths[4].read_bytes()[:200])
    for workers in (1, 4):
        tensor, skipped, kept = read_images(paths, (24, 12), workers)
        assert kept == [0, 1, 3, 4, 6, 7, 8]
        assert [failure.path for failure in skipped] == [paths[2], paths[5]]
        expected = np.stack([read_image(paths[index], (24, 12)) for index in kept]).transpose(0, 3, 1, 2)
        assert torch.equal(tensor, torch.from_numpy(expected))


def test_reading_nothing_gives_an_empty_batch() -> None:
    tensor, skipped, kept = read_images([], (24, 12))
    assert (tensor.shape, tensor.dtype, skipped, kept) == ((0, 3, 24, 12), torch.uint8, [], [])
