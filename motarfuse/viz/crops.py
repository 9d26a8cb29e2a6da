"""Person crops for pictures and pages: read without failing, made small, embedded as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from motarfuse.data.images import ImageReadError, read_image


def load_crop(path: str | Path) -> tuple[Image.Image | None, str]:
    """The image, or None and why it cannot be read; a missing crop never costs a whole page."""
    try:
        return Image.fromarray(read_image(path)), ""
    except ImageReadError as error:
        return None, error.reason


def data_uri(image: Image.Image, *, height_px: int = 160, quality: int = 80) -> str:
    """A JPEG of at most this height (and twice this width) as a ``data:`` address, about 3 kB for a person."""
    small = image.convert("RGB")
    small.thumbnail((2 * height_px, height_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
