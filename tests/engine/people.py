"""Drawn crops for tests: identities that differ in colour, small enough to train on in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from motarfuse.engine.config import Config, load_config

SMALL_MODEL = ("model.image_size=[32,16]", "augment.pad_px=2")


def write_people(
    root: Path,
    *,
    identities: int = 6,
    images: int = 4,
    cameras: int = 2,
    seed: int = 0,
    size: tuple[int, int] = (32, 16),
) -> Path:
    """A dataset in the Market-1501 layout: the first half of the identities trains, the rest are query and gallery."""
    random = np.random.default_rng(seed)
    folders = {name: root / name for name in ("bounding_box_train", "query", "bounding_box_test")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    for pid in range(1, 2 * identities + 1):
        shirt, trousers = random.integers(0, 256, (2, 3))
        for index in range(images):
            camera = 1 + index % cameras
            pixels = np.empty((*size, 3))
            pixels[: size[0] // 2], pixels[size[0] // 2 :] = shirt, trousers
            pixels = np.clip(pixels + random.normal(0, 25, pixels.shape) + 10 * camera, 0, 255).astype(np.uint8)
            if pid <= identities:
                folder = folders["bounding_box_train"]
            else:
                folder = folders["query" if index == 0 else "bounding_box_test"]
            Image.fromarray(pixels).save(folder / f"{pid:04d}_c{camera}s1_{index:06d}_00.png", "PNG")
    return root


def small_config(data: Path, run_dir: Path, *overrides: str) -> Config:
    """A config that trains in about a tenth of a second a step."""
    return load_config(
        None,
        [
            f"data.root={data}",
            f"output.run_dir={run_dir}",
            "output.tensorboard=no",
            "train.batch_size=8",
            "train.instances=2",
            "train.steps=6",
            "train.log_every=1",
            "train.checkpoint_every=2",
            "train.device=cpu",
            *SMALL_MODEL,
            *overrides,
        ],
    )
