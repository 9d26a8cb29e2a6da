"""Reading image files: whatever the content is, it becomes RGB bytes of one size, or an error that names the file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, TiffImagePlugin, WebPImagePlugin
from torch import Tensor

from motarfuse.data import augment_host
from motarfuse.data.records import Skipped
from motarfuse.errors import DataError

# Decoders by content. EPS and its like start other programs, so that nothing outside this list is opened. All decoders
# are registered here once: Pillow's own registration on first use is not made for threads.
FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "PPM",
    TiffImagePlugin.TiffImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
)
Image.preinit()

MAX_PIXELS = 100_000_000
"""Largest image that is decoded: a few kilobytes can claim to be gigapixels (a decompression bomb)."""

# Transparent pixels show mid-grey, which normalises to zero: neither the black nor the white of somebody's clothes.
_BACKDROP = (128, 128, 128)

_ORIENTATION_TAG = 0x0112
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow's decoders raise on broken content (SyntaxError: a broken PNG chunk; struct.error: a cut-off header).
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)

# Images that a thread reads for each hand-over, which takes as long as opening one.
_PER_TASK = 4

_Result = TypeVar("_Result")


class ImageReadError(DataError):
    """An image file that cannot be read.

    Attributes:
        path: The file.
        reason: Why, in words.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads an image as RGB.

    The content decides the format, not the file's suffix. The EXIF orientation is applied; greyscale, palette, CMYK and
    16-bit samples become 8-bit RGB; transparent pixels show mid-grey. A JPEG much larger than ``size`` is decoded at a
    reduced scale (at least twice ``size``). Resizing is bilinear with antialiasing, across and then down.

    Args:
        path: The file.
        size: (height, width) in pixels; None keeps the image's own.

    Returns:
        uint8 array (H, W, 3).

    Raises:
        ImageReadError: if the file is missing, empty, truncated, of no supported format or larger than `MAX_PIXELS`.
    """
    return _read(Path(path), size, lambda image: np.array(_resized(image, size)))


def _read(path: Path, size: tuple[int, int] | None, finish: Callable[[Image.Image], _Result]) -> _Result:
    """Opens and decodes an image, and gives it to ``finish`` in RGB, upright, and of its own or a reduced size."""
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise ImageReadError(path, "the file is empty (0 bytes)")
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                return finish(_upright_rgb(path, image, size))
    except FileNotFoundError:
        raise ImageReadError(path, "no such file") from None
    except Image.UnidentifiedImageError:
        supported = ", ".join(FORMATS)
        raise ImageReadError(path, f"the content is no image of a supported format ({supported})") from None
    except Image.DecompressionBombError as error:
        raise ImageReadError(path, str(error)) from None
    except _DECODE_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageReadError(path, f"cannot be decoded: {reason}") from error


def _upright_rgb(path: Path, image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ImageReadError(path, f"{image.width} x {image.height} pixels, more than the {MAX_PIXELS:,} supported")
    orientation = _orientation(image)
    if size is not None and image.format in ("JPEG", "MPO"):
        height, width = size if orientation < 5 else size[::-1]
        image.draft(None, (2 * width, 2 * height))
    image = _eight_bit_rgb(path, image)
    return image.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else image


def _resized(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Two steps: the order of a single one, and with it the last bit, depends on Pillow's version."""
    height, width = (image.height, image.width) if size is None else size
    if image.width != width:
        image = image.resize((width, image.height), Image.Resampling.BILINEAR)
    if image.height != height:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image


@lru_cache(maxsize=1)
def _lends() -> bool:
    """Whether this Pillow lends an image's memory (from 11.2 on), in the layout that ``motarfuse._host`` knows."""
    host = augment_host.module()
    try:
        picture = Image.new("RGB", (1, 1)).__arrow_c_array__()
        return host is not None and host.resize_into(picture, 1, 1, np.empty((1, 3, 1, 1), np.uint8), 0) is None
    except (AttributeError, ValueError):
        return False


def _picture(image: Image.Image) -> object:
    """An RGB image for ``motarfuse._host``: Pillow's own memory where it lends it, else a copy."""
    if _lends():
        try:
            return image.__arrow_c_array__()
        except ValueError:  # a large image, whose rows lie in several blocks
            pass
    return image.tobytes()


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 1..8; a picture whose EXIF block is broken is shown as it is stored."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _eight_bit_rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ImageReadError(path, f"{image.mode} samples of 32 bits; supported are 8 and 16 bits")
    if image.mode.startswith("I"):  # 16-bit greyscale, which convert() would clip at 255 instead of scaling
        samples = np.asarray(image).astype(np.uint16)
        return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        backdrop = Image.new("RGBA", layer.size, (*_BACKDROP, 255))
        return Image.alpha_composite(backdrop, layer).convert("RGB")
    return image.convert("RGB")


def read_images(
    paths: Sequence[str | Path], size: tuple[int, int], workers: int = 2, *, pool: Executor | None = None
) -> tuple[Tensor, list[Skipped], list[int]]:
    """Reads many images in parallel threads (Pillow's decoders run outside the interpreter's lock).

    Args:
        paths: The files.
        size: (height, width) in pixels of the result.
        workers: Number of threads.
        pool: Threads to use instead of starting ``workers`` new ones.

    Returns:
        uint8 tensor (n, 3, H, W) of the readable images in the order of ``paths``, the unreadable files with their
        reasons, and the n indices into ``paths`` that were kept.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    height, width = size
    images = np.empty((len(paths), 3, height, width), dtype=np.uint8)
    host = augment_host.module()

    def read_into(index: int) -> str | None:
        def finish(image: Image.Image) -> None:
            if host is None:
                images[index] = np.asarray(_resized(image, size)).transpose(2, 0, 1)
            else:
                host.resize_into(_picture(image), image.height, image.width, images, index)

        try:
            _read(Path(paths[index]), size, finish)
        except ImageReadError as error:
            return error.reason
        return None

    def read_some(start: int) -> list[str | None]:
        return [read_into(index) for index in indices[start : start + _PER_TASK]]

    indices = range(len(paths))
    starts = indices[::_PER_TASK]
    if pool is not None:
        found = list(pool.map(read_some, starts))
    elif workers == 1 or len(paths) < 2:
        found = [read_some(start) for start in starts]
    else:
        with ThreadPoolExecutor(workers, thread_name_prefix="motarfuse-decode") as threads:
            found = list(threads.map(read_some, starts))
    reasons = list(chain.from_iterable(found))
    kept = [index for index in indices if reasons[index] is None]
    skipped = [Skipped(Path(paths[index]), reason) for index in indices if (reason := reasons[index]) is not None]
    tensor = torch.from_numpy(images)
    return (tensor if len(kept) == len(paths) else tensor[kept]), skipped, kept
