"""A real video from file to ranking: clips against single frames, frames a second, the motion field as a film strip.

Run: python -m benchmarks.real_video VIDEO BOXES CHECKPOINT ... [--out runs/real_video] [--name NAME ...]

Protocol: every track of the boxes is an identity. Its frames are halved, with GAP frames of the video left out around
the middle; the first half is camera 0, the second camera 1, and each is cut into tracklets of LENGTH frames (a shorter
rest is dropped). Tracklets of camera 0 are the queries, those of camera 1 the gallery; market1501's junk rule. One
video has one camera in truth: the two differ in place, scale and posture alone, so that numbers are higher than between
real cameras, and the few people make them coarse.

Variants: the middle frame alone; the mean over all frames as single images; the clip as a whole. The network is each
CHECKPOINT (run folder, checkpoint or packaged name).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from motarfuse.data import ClipSampling, ClipStore, EvalTransform, Tracklet
from motarfuse.data.clip_store import Clip
from motarfuse.data.images import read_image
from motarfuse.engine.checkpoint import find_checkpoint, load_model
from motarfuse.engine.extractor import encode_tracklets
from motarfuse.engine.video_tracklets import extract_tracklets
from motarfuse.models import MotarFuse
from motarfuse.retrieval import SCORES, PersonFeatures, evaluate
from motarfuse.viz import draw_film_strip

GAP = 10
LENGTH = 8
VARIANTS = {
    "middle frame": ClipSampling("evenly", 1),
    "mean of single frames": ClipSampling("all", 1),
    "clip": ClipSampling("all", LENGTH),
}


def halves(tracklet: Tracklet, gap: int = GAP, length: int = LENGTH) -> tuple[list[Tracklet], list[Tracklet]]:
    """Tracklets of ``length`` frames from both halves of a track, ``gap`` steps of the frame index apart."""
    first, last = tracklet.frame_index[0], tracklet.frame_index[-1]
    middle = (first + last) / 2
    sides = []
    for camid, keep in ((0, lambda frame: frame <= middle - gap / 2), (1, lambda frame: frame >= middle + gap / 2)):
        places = [place for place, frame in enumerate(tracklet.frame_index) if keep(frame)]
        half = replace(tracklet.select(places), name=f"{tracklet.name}/{camid}", camid=camid) if places else None
        sides.append([piece for piece in half.cut(length) if len(piece) == length] if half else [])
    return sides[0], sides[1]


def measure(
    model: torch.nn.Module, query: Sequence[Tracklet], gallery: Sequence[Tracklet]
) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics by variant and score."""
    size: tuple[int, int] = model.image_size  # type: ignore[assignment]
    labels = [[getattr(record, name) for record in side] for name in ("pid", "camid") for side in (query, gallery)]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, sampling in VARIANTS.items():
        sides: list[PersonFeatures] = []
        for side in (query, gallery):
            with ClipStore(side, size) as store:
                sides.append(encode_tracklets(model, store, sampling, description=name)[0])
        scores = SCORES if sides[0].has_parts else ("feature",)
        found[name] = {score: dict(evaluate(*sides, *labels, score=score).metrics) for score in scores}
    return found


def speed(model: torch.nn.Module, tracklets: Sequence[Tracklet]) -> float:
    """Frames a second from the crops' files to features, in clips."""
    size: tuple[int, int] = model.image_size  # type: ignore[assignment]
    with ClipStore(tracklets, size, cache="disk") as store:
        start = time.perf_counter()
        encode_tracklets(model, store, VARIANTS["clip"], batch_size=64, description="timing")
        return store.num_frames / (time.perf_counter() - start)


@torch.no_grad()
def draw(model: MotarFuse, tracklet: Tracklet, path: Path) -> None:
    """Film strip of the first frames of a tracklet."""
    with ClipStore([tracklet], model.image_size) as store:
        batch = store.batch([Clip(0, range(min(LENGTH, len(tracklet))))])
    output = model.eval()(EvalTransform()(batch.images), None, batch.frame_mask, batch.frame_index)
    crops = [read_image(path) for path in tracklet.paths[:LENGTH]]
    title = f"{tracklet.name}: frames of the video, parts, and motion"
    draw_film_strip(crops, output, frame_index=tracklet.frame_index[:LENGTH], title=title).save(path)


def run(video: Path, boxes: Path, checkpoints: Sequence[str], names: Sequence[str], out: Path) -> dict[str, Any]:
    """Measures, draws and prints; returns what is written to ``out/results.json``."""
    cut = extract_tracklets(video, out / "tracklets", boxes, overwrite=True)
    tracklets = cut.tracklets
    pairs = [halves(tracklet) for tracklet in tracklets]
    query, gallery = ([piece for pair in pairs for piece in pair[side]] for side in (0, 1))
    people = len({piece.pid for piece in query})
    rate = cut.video.frames / cut.seconds
    print(
        f"{cut.crops:,} crops of {len(tracklets)} tracks; decode, crop, write: {rate:,.0f} frames of the video a second"
    )
    print(
        f"protocol: {len(query)} queries and {len(gallery)} gallery tracklets of {LENGTH} frames, {people} people, "
        f"halves {GAP} frames apart"
    )
    results: dict[str, Any] = {"queries": len(query), "gallery": len(gallery), "people": people, "networks": {}}
    for checkpoint, name in zip(checkpoints, names, strict=True):
        model, _ = load_model(find_checkpoint(checkpoint))
        metrics = measure(model, query, gallery)
        rate = speed(model, tracklets)
        whole = 1 / (1 / rate + cut.seconds / cut.crops)
        results["networks"][name] = {"metrics": metrics, "frames_per_second": rate, "from_video_per_second": whole}
        print(f"\n{name}: {rate:,.0f} crops a second to features, {whole:,.0f} from the video's file on")
        for variant, scores in metrics.items():
            for score, values in scores.items():
                print(f"  {variant:22s} {score:8s} mAP {100 * values['mAP']:5.1f}  Rank-1 {100 * values['rank1']:5.1f}")
        if isinstance(model, MotarFuse):
            for tracklet in tracklets[:2]:
                middle = len(tracklet) // 3
                part = tracklet.select(range(middle, min(middle + LENGTH, len(tracklet))))
                draw(model, part, out / f"film_{name}_{tracklet.pid}.png")
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("boxes", type=Path)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--name", nargs="+", help="a name a checkpoint (default: the checkpoint's own)")
    parser.add_argument("--out", type=Path, default=Path("runs/real_video"))
    args = parser.parse_args(argv)
    names = args.name or [Path(checkpoint).name for checkpoint in args.checkpoints]
    if len(names) != len(args.checkpoints):
        parser.error(f"{len(names)} names for {len(args.checkpoints)} checkpoints")
    args.out.mkdir(parents=True, exist_ok=True)
    run(args.video, args.boxes, args.checkpoints, names, args.out)


if __name__ == "__main__":
    main()
