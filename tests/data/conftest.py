"""Small image trees in the layouts that the loaders read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Picture = Callable[..., Path]


@pytest.fixture
def picture() -> Picture:
    """Writes one image; equal ``value`` gives equal pixels, and the suffix need not tell the format."""

    def write(
        path: Path, value: int = 0, *, size: tuple[int, int] = (24, 12), image_format: str | None = "JPEG"
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(value).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, format=image_format)
        return path

    return write


@pytest.fixture
def market(picture: Picture) -> Callable[[Path], Path]:
    """Writes a tiny Market-1501: 3 training identities, 2 query identities, junk and distractors, 2 cameras."""

    def write(base: Path) -> Path:
        value = 0
        for folder, names in {
            "bounding_box_train": [
                f"{pid:04d}_c{cam}s1_{n:06d}_01.jpg" for pid in (2, 7, 9) for cam in (1, 2) for n in (9, 10)
            ],
            "query": ["0003_c1s1_000001_00.jpg", "0005_c2s1_000001_00.jpg"],
            "bounding_box_test": [
                "-1_c1s1_000003_02.jpg",
                "-1_c3s1_000004_02.jpg",
                "0000_c2s1_000002_00.jpg",
                "0003_c2s1_000007_01.jpg",
                "0003_c1s1_000008_01.jpg",
                "0005_c1s1_000009_01.jpg",
            ],
        }.items():
            for name in names:
                value += 1
                picture(base / folder / name, value)
        return base

    return write
