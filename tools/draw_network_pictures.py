"""Draws the pictures of docs/network.md and README.md: a trained network's parts, matches and searches on drawn people.

python tools/draw_network_pictures.py runs/synthped_nano data/synthped docs/images
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from motarfuse.data import EvalTransform, ReIDDataset, Warp, load_dataset
from motarfuse.engine import encode, load_model
from motarfuse.models import MotarFuse
from motarfuse.nn import CanonicalPosture
from motarfuse.ops import PartMoments, motion_warp
from motarfuse.retrieval import rank_lists
from motarfuse.viz import (
    RankEntry,
    draw_canonical_posture,
    draw_motion_field,
    draw_part_matches,
    draw_people,
    draw_rank_list,
)

PEOPLE = (0, 60, 120)  # of either set of queries
SEARCHES = (10, 45, 130)
# Of motion fields: a query in full view that is turned and shifted, and an occluded one.
TURNED, HIDDEN = 60, 75


def crop(path: Path, size: tuple[int, int]) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)


def batch(images: list[Image.Image]) -> torch.Tensor:
    pixels = torch.stack([torch.from_numpy(np.asarray(image).copy()) for image in images])
    return EvalTransform()(pixels.permute(0, 3, 1, 2))


def stacked(pictures: list[Image.Image]) -> Image.Image:
    """One below the other on white."""
    page = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        page.paste(picture, (0, top))
        top += picture.height
    return page


def save(picture: Image.Image, path: Path, width: int) -> None:
    """At most ``width`` pixels wide, with a palette that keeps rare colours, such as a part's: below about 300 kB."""
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    few = picture.quantize(224, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    print(path, picture.size, path.stat().st_size)


def searches(model: MotarFuse, data: ReIDDataset) -> Image.Image:
    """Three covered queries, each with its best eight answers from other cameras."""
    sides = []
    for records in (data.query, data.gallery):
        features, kept = encode(model, [record.path for record in records])
        sides.append((features, [records[index] for index in kept]))
    (query, queries), (gallery, answers) = sides
    labels = [[getattr(one, name) for one in side] for name in ("pid", "camid") for side in (queries, answers)]
    lists = rank_lists(query, gallery, *labels, k=8, queries=np.array(SEARCHES))
    rows = []
    for found in lists:
        entries = [
            RankEntry(
                crop(answers[index].path, model.image_size),
                float(score),
                answers[index].pid,
                answers[index].camid,
                bool(match),
            )
            for index, score, match in zip(found.indices, found.scores, found.matches, strict=True)
        ]
        rows.append(draw_rank_list(crop(queries[found.query].path, model.image_size), entries, columns=8))
    return stacked(rows)


def turned(image: Image.Image) -> Image.Image:
    """The crop turned by 12 degrees, 10 % smaller and shifted, its border drawn on."""
    size = image.height, image.width
    warp = Warp.compose(
        size, angle=torch.tensor([math.radians(12)]), scale=torch.tensor([1.1]), shift=torch.tensor([[0.2, 0.05]])
    )
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float()
    moved = F.grid_sample(pixels, warp.on_pixels(size), padding_mode="border", align_corners=False)
    return Image.fromarray(moved[0].permute(1, 2, 0).round().byte().numpy())


def read_parts(model: MotarFuse, images: list[Image.Image]) -> tuple[PartMoments, torch.Tensor]:
    """Moments and part logits of the last decoder layer, as the operators gave and take them."""
    read: list[Any] = []
    hook = model.decoder.heads.register_forward_hook(lambda module, inputs, output: read.append(output))
    with torch.inference_mode():
        model(batch(images))
    hook.remove()
    keypoints, affines, confidence, part_logits = read[-1][:4]
    return PartMoments(keypoints, affines, confidence), part_logits


def motion_fields(model: MotarFuse, sets: dict[str, ReIDDataset]) -> Image.Image:
    """A person and their turned copy, whose motion is known; two images of a person, the second behind something."""
    still = crop(sets["holistic"].query[TURNED].path, model.image_size)
    query = sets["occluded"].query[HIDDEN]
    match = next(one for one in sets["holistic"].gallery if one.pid == query.pid and one.camid != query.camid)
    sources = [still, crop(match.path, model.image_size)]
    targets = [turned(still), crop(query.path, model.image_size)]
    source, source_logits = read_parts(model, sources)
    target, logits = read_parts(model, targets)
    grid = model.decoder.heads.grid
    nothing = torch.empty(len(sources), grid[0] * grid[1], 0)
    postures = (source.keypoints, source.affines, target.keypoints, target.affines)
    warp = motion_warp(nothing, *postures, logits, source_logits, grid=grid)
    labels = ("copy\nturned and\nshifted", "two cameras\nlegs hidden\nin the second")
    return draw_motion_field(sources, targets, source, target, logits, warp, source_logits, grid=grid, labels=labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of motar_fuse")
    parser.add_argument("synthped", type=Path, help="folder of motarfuse data synth")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    args = parser.parse_args()
    model, _ = load_model(args.run)
    assert isinstance(model, MotarFuse), "parts are wanted"
    sets = {name: load_dataset(args.synthped / name) for name in ("holistic", "occluded")}
    chosen = [records.query[index] for records in sets.values() for index in PEOPLE]
    images = [crop(record.path, model.image_size) for record in chosen]
    with torch.inference_mode():
        output = model(batch(images))
    save(draw_people(images, output), args.folder / "parts_on_people.png", 960)
    canonical = next(module for module in model.modules() if isinstance(module, CanonicalPosture))
    save(draw_canonical_posture(canonical.keypoints, canonical.affines), args.folder / "canonical_posture.png", 320)
    query = sets["occluded"].query[SEARCHES[1]]
    match = next(one for one in sets["occluded"].gallery if one.pid == query.pid and one.camid != query.camid)
    pair = [crop(one.path, model.image_size) for one in (query, match)]
    with torch.inference_mode():
        both = model(batch(pair))
    picture = draw_part_matches(pair[0], both, pair[1], both, query_index=0, gallery_index=1)
    save(picture, args.folder / "part_matches.png", 900)
    save(motion_fields(model, sets), args.folder / "motion_field.png", 1600)
    save(searches(model, sets["occluded"]), args.folder / "demo_rank_lists.png", 1200)


if __name__ == "__main__":
    main()
