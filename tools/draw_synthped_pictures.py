"""Draws the two pictures of docs/synthped.md with the pixels of the present version.

python tools/draw_synthped_pictures.py docs/images
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from motarfuse.data.synthped import SynthPed, SynthPedConfig, SynthPedImages
from motarfuse.data.synthped.layout import KEYPOINTS, PARTS

Pixels = NDArray[np.uint8]
GAP, PEOPLE, QUERIES, TRUTHS, SCALE = 4, 4, 8, 6, 2
# Distinct on white and on black; the background is black, an occluder white.
_HUES = np.random.default_rng(5).permutation(len(PARTS))


def colours() -> Pixels:
    table = [(0, 0, 0)]
    for k in range(1, len(PARTS)):
        hue = Image.new("HSV", (1, 1), (int(_HUES[k]) * 255 // len(PARTS), 150 + 50 * (k % 2), 170 + 40 * (k % 3)))
        table.append(hue.convert("RGB").getpixel((0, 0)))  # type: ignore[arg-type]
    table[PARTS.index("occluder")] = (255, 255, 255)
    return np.asarray(table, np.uint8)


def tile(rows: list[list[Pixels]]) -> Image.Image:
    """Rows of pictures of one size on white."""
    height, width = rows[0][0].shape[:2]
    page = np.full(
        (len(rows) * (height + GAP) - GAP, max(len(row) for row in rows) * (width + GAP) - GAP, 3), 255, np.uint8
    )
    for i, row in enumerate(rows):
        for j, pixels in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            page[top : top + height, left : left + width] = pixels
    return Image.fromarray(page)


def overview(synthped: SynthPed) -> Image.Image:
    """Two people a row, each by all cameras; below occluded and partial queries."""
    config = synthped.config
    per_camera, per_person = config.images_per_camera, config.images_per_camera * config.cameras
    train = synthped.images("train", limit=PEOPLE * per_person).images
    seen = [[train[p * per_person + c * per_camera] for c in range(config.cameras)] for p in range(PEOPLE)]
    rows = [seen[p] + seen[p + 1] for p in range(0, PEOPLE, 2)]
    for name in ("query_occluded", "query_partial"):
        images = synthped.images(name, limit=QUERIES * config.cameras).images
        rows.append([images[k * config.cameras + k % config.cameras] for k in range(QUERIES)])
    return tile(rows)


def truth(drawn: SynthPedImages) -> Image.Image:
    """Three pictures a query: with its keypoints, the visible parts, the parts without the occluder."""
    palette = colours()
    row: list[list[Pixels]] = [[], []]
    for k in range(TRUTHS):
        image = Image.fromarray(drawn.images[k]).resize(
            (drawn.images.shape[2] * SCALE, drawn.images.shape[1] * SCALE), Image.Resampling.LANCZOS
        )
        pen = ImageDraw.Draw(image)
        for number in range(len(KEYPOINTS)):
            x, y = (float(value) * SCALE for value in drawn.keypoints[k, number])
            seen = drawn.visibility[k, number] == 3
            if drawn.visibility[k, number] > 0:
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(255, 230, 0) if seen else None, outline=(220, 0, 0))
        masks = [
            palette[labels].repeat(SCALE, axis=0).repeat(SCALE, axis=1) for labels in (drawn.parts[k], drawn.amodal[k])
        ]
        row[k // (TRUTHS // 2)] += [np.asarray(image), *masks]
    return tile(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    synthped = SynthPed(SynthPedConfig(seed=0))
    queries = synthped.shots("query_occluded").take(np.arange(TRUTHS) * 5 + 2)
    pictures = {"synthped_overview": overview(synthped), "synthped_truth": truth(synthped.draw(queries))}
    for name, picture in pictures.items():
        # 224 colours with their dither look the same and take a third of the bytes.
        reduced = picture.quantize(224, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
        reduced.save(folder / f"{name}.png", optimize=True)
        print(f"{folder / name}.png", picture.size)


if __name__ == "__main__":
    main()
