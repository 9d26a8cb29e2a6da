"""Image files of drawn pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("jpg", "png")
JPEG_QUALITY = 92


def save_image(pixels: np.ndarray, path: Path) -> None:
    """Writes (h, w, 3) uint8 RGB; the suffix names the format."""
    image = Image.fromarray(pixels)
    if path.suffix == ".png":
        image.save(path, "PNG", compress_level=3)
    else:
        image.save(path, "JPEG", quality=JPEG_QUALITY, subsampling=2)
