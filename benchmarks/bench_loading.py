"""Images and clips a second from files to network input: read, decode, resize, vary, normalise.

Run: python -m benchmarks.bench_loading [--images DIR] [--count 512] [--csv FILE]

Against a plain pipeline, the one that ReID code bases have: a `Dataset` that opens a file with Pillow, resizes, flips,
pads and crops, jitters colours and makes a tensor that is normalised and erased, in a `DataLoader` with two worker
processes. Ours is `ImageStore` (or `ClipStore`) with two threads from disk, and from its memory, with
`TrainTransform`. Same files, same steps with the same probabilities, batches of 64 images or 8 clips of 8 frames; turns
alternate and the first batch of each turn (the workers' start) does not count.

Without ``--images``, crops of SynthPed are drawn at 128 x 64 (as Market-1501's) and 384 x 192 and read at 256 x 128.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import Timing, append_rows, environment, row
from motarfuse.data import (
    AugmentConfig,
    Clip,
    ClipStore,
    ImageRecord,
    ImageStore,
    Tracklet,
    TrainTransform,
    read_image,
    scan_images,
)
from motarfuse.data.synthped import SynthPedConfig, write_synthped

SIZE = (256, 128)
BATCH, CLIPS, FRAMES, WORKERS = 64, 8, 8, 2
PLAIN, DISK, MEMORY = "plain PIL and DataLoader", "disk", "memory"
_CONFIG = AugmentConfig()
_MEAN_STD = 0.5


class PlainClips(Dataset[Tensor]):
    """Clips of consecutive files, each varied by one draw; of one frame they are images."""

    def __init__(self, paths: Sequence[Path], frames: int) -> None:
        self.clips = [paths[start : start + frames] for start in range(0, len(paths) - frames + 1, frames)]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        draw = _PlainDraw()
        frames = torch.stack([draw.frame(path) for path in self.clips[index]])
        return frames[0] if len(frames) == 1 else frames


class _PlainDraw:
    """What happens to all frames of a clip."""

    def __init__(self) -> None:
        config, uniform = _CONFIG, random.random
        self.flip = uniform() < config.flip_probability
        self.place = random.randint(0, 2 * config.pad_px), random.randint(0, 2 * config.pad_px)
        self.jitter = uniform() < config.color_probability
        self.factors = [
            random.uniform(1 - by, 1 + by) for by in (config.brightness, config.contrast, config.saturation)
        ]
        self.hue = random.uniform(-config.hue, config.hue)
        self.erased = uniform() < config.erasing_probability
        area = random.uniform(config.erasing_area_min, config.erasing_area_max) * SIZE[0] * SIZE[1]
        aspect = random.uniform(config.erasing_aspect, 1 / config.erasing_aspect)
        self.box = (min(int((area * aspect) ** 0.5), SIZE[0]), min(int((area / aspect) ** 0.5), SIZE[1]))
        self.corner = random.randint(0, SIZE[0] - self.box[0]), random.randint(0, SIZE[1] - self.box[1])

    def frame(self, path: Path) -> Tensor:
        with Image.open(path) as file:
            image = file.convert("RGB").resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR)
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pad = _CONFIG.pad_px
        padded = Image.new("RGB", (SIZE[1] + 2 * pad, SIZE[0] + 2 * pad))
        padded.paste(image, (pad, pad))
        left, top = self.place
        image = padded.crop((left, top, left + SIZE[1], top + SIZE[0]))
        if self.jitter:
            for kind, factor in zip(
                (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), self.factors, strict=True
            ):
                image = kind(image).enhance(factor)
            hue, saturation, value = image.convert("HSV").split()
            turned = (np.asarray(hue, dtype=np.int16) + round(255 * self.hue)) % 256
            image = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
        tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div_(255)
        tensor = tensor.sub_(_MEAN_STD).div_(_MEAN_STD)
        if self.erased:
            (height, width), (top, left) = self.box, self.corner
            tensor[:, top : top + height, left : left + width] = torch.randn(3, height, width)
        return tensor


def _plain(paths: Sequence[Path], frames: int, count: int) -> Iterator[Tensor]:
    clips = PlainClips(paths, frames)
    loader = DataLoader(clips, batch_size=count, shuffle=True, num_workers=WORKERS, drop_last=True)
    while True:
        yield from loader


def _images(paths: Sequence[Path], cache: str) -> Iterator[Tensor]:
    records = [ImageRecord(path, 0, 0) for path in paths]
    transform, generator = TrainTransform(_CONFIG), torch.Generator().manual_seed(0)
    with ImageStore(records, SIZE, cache=cache, workers=WORKERS, verify=False) as store:
        order = cycle(range(0, len(records) - BATCH + 1, BATCH))
        shuffled = torch.randperm(len(records), generator=generator).tolist()
        for _, pixels in store.prefetch(shuffled[start : start + BATCH] for start in order):
            yield transform(pixels, generator)


def _clips(paths: Sequence[Path], cache: str) -> Iterator[Tensor]:
    groups = [paths[start : start + FRAMES] for start in range(0, len(paths) - FRAMES + 1, FRAMES)]
    records = [
        Tracklet(str(number), 0, 0, Path(), tuple(map(str, group)), tuple(range(FRAMES)))
        for number, group in enumerate(groups)
    ]
    transform, generator = TrainTransform(_CONFIG), torch.Generator().manual_seed(0)
    with ClipStore(records, SIZE, cache=cache, workers=WORKERS) as store:
        order = cycle(range(0, len(records) - CLIPS + 1, CLIPS))
        whole = range(FRAMES)
        for batch in store.prefetch([Clip(start + row, whole) for row in range(CLIPS)] for start in order):
            yield transform(batch.images, generator)


def rates(variants: dict[str, Callable[[], Iterator[Tensor]]], batches: int, turns: int) -> dict[str, Timing]:
    """Seconds an image of each variant, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(turns):
        for name, start in variants.items():
            stream = start()
            shape = next(stream).shape  # the workers' start, and what lies in their queues
            images = shape[0] * (shape[1] if len(shape) == 5 else 1)
            if name.startswith(PLAIN):
                for _ in range(2 * WORKERS):
                    next(stream)
            begin = time.perf_counter()
            for _ in islice(stream, batches):
                pass
            seconds[name].append((time.perf_counter() - begin) / (batches * images))
            stream.close()  # type: ignore[attr-defined]
    return {name: Timing(statistics.median(one), min(one), max(one)) for name, one in seconds.items()}


def profile(paths: Sequence[Path], count: int = 256) -> dict[str, float]:
    """Microseconds an image of one thread: reading and decoding, and what `TrainTransform` takes of a batch."""
    some = list(islice(cycle(paths), count))
    begin = time.perf_counter()
    arrays = [read_image(path, SIZE) for path in some]
    decode = time.perf_counter() - begin
    pixels = torch.from_numpy(np.stack(arrays).transpose(0, 3, 1, 2).copy())
    generator = torch.Generator().manual_seed(0)
    transform = TrainTransform(_CONFIG)
    transform(pixels[:BATCH], generator)
    begin = time.perf_counter()
    for start in range(0, count - BATCH + 1, BATCH):
        transform(pixels[start : start + BATCH], generator)
    return {"decode and resize": 1e6 * decode / count, "vary": 1e6 * (time.perf_counter() - begin) / count}


def draw_images(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """Crops of drawn people."""
    people = SynthPedConfig(train_ids=max(2, count // 8), test_ids=2, size=size)
    write_synthped(folder, people, protocols=["holistic"], ground_truth=False)
    return scan_images(folder)[:count]


def run(paths: Sequence[Path], label: str, *, batches: int, turns: int, csv: Path | None) -> None:
    """Measures images and clips of these files and prints what was found."""
    for what, variants in (
        (
            "images",
            {
                PLAIN: lambda: _plain(paths, 1, BATCH),
                DISK: lambda: _images(paths, "disk"),
                MEMORY: lambda: _images(paths, "memory"),
            },
        ),
        (
            f"clips of {FRAMES}",
            {
                PLAIN: lambda: _plain(paths, FRAMES, CLIPS),
                DISK: lambda: _clips(paths, "disk"),
                MEMORY: lambda: _clips(paths, "memory"),
            },
        ),
    ):
        found = rates(variants, batches, turns)
        best = found[PLAIN].median
        shape = f"{what} {label}"
        print(f"\n{shape} -> {SIZE[0]}x{SIZE[1]}, {torch.get_num_threads()} threads")
        for name, timing in found.items():
            ratio = best / timing.median
            print(f"  {name:26s} {1 / timing.median:8,.0f} images/s  {ratio:5.2f} x plain")
        if csv is not None:
            base = environment(torch.device("cpu"))
            made = [
                row("loading", name, "train", shape, torch.uint8, one.scaled(1e6), ratio=best / one.median)
                for name, one in found.items()
            ]
            append_rows(csv, [{**base, **one} for one in made])
    print("profile, one thread: " + ", ".join(f"{name} {value:,.0f} us" for name, value in profile(paths).items()))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of images instead of drawn ones")
    parser.add_argument("--count", type=int, default=512, help="files (default 512)")
    parser.add_argument("--batches", type=int, default=8, help="batches a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    args = parser.parse_args(argv)
    options = {"batches": args.batches, "turns": args.turns, "csv": args.csv}
    if args.images is not None:
        run(scan_images(args.images)[: args.count], "given", **options)
        return
    with tempfile.TemporaryDirectory() as folder:
        for size in ((128, 64), (384, 192)):
            paths = draw_images(Path(folder) / f"{size[0]}", size, args.count)
            run(paths, f"of {size[0]}x{size[1]} JPEG", **options)


if __name__ == "__main__":
    main()
