"""Draws the picture of docs/losses.md: drawn people, moved by a known warp, and with a known cover.

python tools/draw_occluded_copies.py docs/images
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from motarfuse.data import OccludedCopy, OccludedCopyConfig
from motarfuse.data.synthped import SynthPed, SynthPedConfig

Pixels = NDArray[np.uint8]
PEOPLE, SCALE, GAP = 8, 2, 6
SEED = 15
OUTLINE = (255, 40, 160)  # no cloth, skin or scenery of SynthPed has it


def people() -> Tensor:
    """(PEOPLE, 3, H, W) in [-1, 1], one picture a person, the camera changing from one to the next."""
    config = SynthPedConfig(seed=0)
    per_person = config.images_per_camera * config.cameras
    drawn = SynthPed(config).images("train", limit=PEOPLE * per_person).images
    chosen = [k * per_person + k % config.cameras * config.images_per_camera for k in range(PEOPLE)]
    return torch.from_numpy(drawn[chosen]).permute(0, 3, 1, 2).float() / 127.5 - 1


def pixels(images: Tensor) -> Pixels:
    """(B, H, W, 3) bytes, SCALE times as large."""
    values = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return values.repeat(SCALE, axis=1).repeat(SCALE, axis=2)


def outlined(copies: Pixels, covered: Tensor) -> Pixels:
    """The copies with a line along the inner edge of what is covered."""
    large = covered.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2)[:, None].float()
    # Beyond the crop counts as covered: no line along its border.
    eroded = -F.max_pool2d(-F.pad(large, (SCALE,) * 4, value=1.0), 2 * SCALE + 1, stride=1)
    copies = copies.copy()
    copies[(large > eroded).squeeze(1).numpy()] = OUTLINE
    return copies


def tile(rows: list[Pixels]) -> Image.Image:
    """Rows of pictures of one size on white."""
    number, height, width, _ = rows[0].shape
    page = np.full((len(rows) * (height + GAP) - GAP, number * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            page[top : top + height, left : left + width] = picture
    return Image.fromarray(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    originals = people()
    labels = list(range(PEOPLE))
    # The same seed draws the same warps: without an occluder the copy is x o W.
    moved, copied = (
        OccludedCopy(OccludedCopyConfig(occluder_probability=probability))(
            originals, torch.Generator().manual_seed(SEED), labels=labels
        )
        for probability in (0.0, 1.0)
    )
    picture = tile([pixels(originals), pixels(moved.images), outlined(pixels(copied.images), copied.covered)])
    path = folder / "occluded_copies.png"
    reduced = picture.quantize(224, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
    reduced.save(path, optimize=True)
    print(path, picture.size)


if __name__ == "__main__":
    main()
