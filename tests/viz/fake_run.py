"""A run folder as training leaves it, with drawn stick people instead of photographs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = ("#b5483a", "#3a6fb5", "#3a9a5b", "#b59a3a", "#7a3ab5", "#3aa8b5", "#b53a86", "#5c6670")


def draw_person(pid: int, camid: int, seed: int) -> Image.Image:
    """A crop of 64 x 128 pixels: the identity chooses the clothes, the camera the background, the seed the posture."""
    rng = np.random.default_rng([pid, camid, seed])
    image = Image.new("RGB", (64, 128), ("#c9c4b8", "#8f9a94", "#dcd8d0", "#77808c")[camid % 4])
    draw = ImageDraw.Draw(image)
    x, lean = 32 + int(rng.integers(-5, 6)), int(rng.integers(3, 10))
    draw.ellipse((x - 8, 10, x + 8, 28), fill="#caa283")
    draw.rectangle((x - 13, 29, x + 13, 70), fill=COLOURS[pid % len(COLOURS)])
    for side in (-1, 1):
        draw.line((x + side * 12, 32, x + side * (14 + lean), 66), fill=COLOURS[pid % len(COLOURS)], width=7)
        draw.line((x + side * 6, 70, x + side * lean, 120), fill=COLOURS[(pid + 3) % len(COLOURS)], width=9)
    return image


def write_images(root: Path, identities: int = 12, cameras: int = 3) -> list[tuple[str, int, int]]:
    """Writes crops and returns (path relative to ``root``, pid, camid)."""
    root.mkdir(parents=True, exist_ok=True)
    records = []
    for pid in range(1, identities + 1):
        for camid in range(cameras):
            name = f"{pid:04d}_c{camid + 1}s1_000001_00.jpg"
            draw_person(pid, camid, 0).save(root / name)
            records.append((name, pid, camid))
    return records


def write_evaluation(run: Path, name: str, root: Path, *, step: int = 300, quality: float = 0.6) -> None:
    """Writes ``evaluations/<name>.json`` with 24 rank lists."""
    records = write_images(root)
    rng = np.random.default_rng(len(name))
    lists = []
    for index in range(24):
        query = records[(index * 3) % len(records)]
        right = rng.random(10) < 0.1 + 0.8 * index / 24
        entries = []
        for rank in range(10):
            same = [record for record in records if (record[1] == query[1]) == bool(right[rank]) and record != query]
            path, pid, camid = same[int(rng.integers(len(same)))]
            match = pid == query[1]
            entries.append({"path": path, "pid": pid, "camid": camid, "score": 0.93 - 0.04 * rank, "match": match})
        lists.append(
            {
                "query": query[0],
                "query_pid": query[1],
                "query_camid": query[2],
                "average_precision": (index + 1) / 25,
                "entries": entries,
            }
        )
    cmc = [1 - (1 - quality) * math.exp(-k / 6) for k in range(50)]
    metrics = {"mAP": quality - 0.1, "mINP": quality - 0.3, "rank1": cmc[0], "rank5": cmc[4], "rank10": cmc[9]}
    values = {
        "name": name,
        "dataset": "synthped",
        "root": str(root),
        "step": step,
        "metrics": {**metrics, "num_valid": 480, "num_query": 500, "num_gallery": 2000},
        "cmc": cmc,
        "manifest": {"protocol": {"name": "market1501", "ignored_pids": [-1]}, "ties": "stable", "sha256": "ab" * 32},
        "rank_lists": lists,
    }
    folder = run / "evaluations"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(values))


def write_log(run: Path, *, steps: int = 300, every: int = 1, sets: tuple[str, ...] = ("holistic", "occluded")) -> None:
    """Writes ``config.yaml`` for 300 steps and a log of ``steps`` of them."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("model:\n  name: vit_reid\n  size: nano\ntrain:\n  steps: 300\n  seed: 0\n")
    rng = np.random.default_rng(0)
    lines = []
    for step in range(every, steps + 1, every):
        identity = 4.2 * math.exp(-step / 110) + 0.6 + 0.1 * rng.normal()
        triplet = 0.9 * math.exp(-step / 90) + 0.08 + 0.03 * abs(rng.normal())
        rate = 1e-3 * 0.5 * (1 - math.cos(2 * math.pi * step / 300)) + 1e-6
        event = {
            "event": "train",
            "step": step,
            "loss": identity + triplet,
            "loss_id": identity,
            "loss_triplet": triplet,
        }
        lines.append({**event, "lr": rate, "images_per_second": 150 + 8 * rng.normal(), "seconds": 0.44 * step})
        if step % 50 == 0:
            for place, name in enumerate(sets):
                score = (0.75 - 0.2 * place) * (1 - math.exp(-step / 120))
                ranks = {"rank1": score + 0.1, "rank5": score + 0.15, "rank10": score + 0.18, "mINP": score / 2}
                lines.append({"event": "evaluation", "step": step, "name": name, "mAP": score, **ranks})
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(run: Path, *, sets: tuple[str, ...] = ("holistic", "occluded")) -> Path:
    """A finished run of 300 steps with one evaluation a set."""
    write_log(run, sets=sets)
    for place, name in enumerate(sets):
        write_evaluation(run, name, run.parent / "images", quality=0.8 - 0.25 * place)
    checkpoint = run / "checkpoints" / "step-00000300"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text("{}")
    (run / "tensorboard").mkdir()
    return run
