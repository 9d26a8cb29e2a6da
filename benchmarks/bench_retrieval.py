"""Evaluation and search at Market-1501's size, beside the matrix product alone and a per-query NumPy evaluator.

Run: python -m benchmarks.bench_retrieval [--labels FOLDER] [--csv FILE] [--threads 2] [--width 768]

Labels come from Market-1501's own .mat files (queryID, queryCam, testID, testCam) where a folder of them is given, else
from a random draw of the same counts. Features are random. The per-query evaluator (one argsort of the whole gallery
for each query, as evaluators in plain Python do) runs on a sample of queries and is scaled up; its average precisions
are compared with ``evaluate``'s before a time is believed.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from motarfuse.retrieval import evaluate, search

QUERIES, GALLERY, SAMPLE, REPEATS = 3368, 19732, 64, 7
COLUMNS = (
    "operator", "implementation", "mode", "shape", "dtype", "median", "p20", "p80", "unit", "fraction_of_ceiling",
    "ratio_to_best_peer", "device", "driver", "torch", "triton", "nvcc", "commit", "date",
)  # fmt: skip


def read_labels(folder: Path | None) -> tuple[np.ndarray, ...]:
    """Identities and cameras of queries and gallery: (query pids, gallery pids, query camids, gallery camids)."""
    if folder is None:
        rng = np.random.default_rng(0)
        junk_and_distractors = [-1] * 3819 + [0] * 2798
        ids = np.concatenate([junk_and_distractors, rng.integers(1, 751, GALLERY - len(junk_and_distractors))])
        return rng.integers(1, 751, QUERIES), ids, rng.integers(0, 6, QUERIES), rng.integers(0, 6, GALLERY)
    from scipy.io import loadmat

    def column(name: str) -> np.ndarray:
        file = loadmat(str(folder / f"{name}.mat"))
        return next(value for key, value in file.items() if not key.startswith("_")).ravel().astype(np.int64)

    return column("queryID"), column("testID"), column("queryCam"), column("testCam")


def per_query(query: np.ndarray, gallery: np.ndarray, ids: tuple[np.ndarray, ...]) -> np.ndarray:
    """Average precisions by one argsort a query, features of unit length."""
    query_pids, gallery_pids, query_camids, gallery_camids = ids
    found = np.full(len(query), np.nan)
    scores = query @ gallery.T
    for i in range(len(query)):
        order = np.argsort(-scores[i], kind="stable")
        pids, camids = gallery_pids[order], gallery_camids[order]
        kept = (pids != -1) & ~((pids == query_pids[i]) & (camids == query_camids[i]))
        ranks = np.flatnonzero(pids[kept] == query_pids[i]) + 1
        if len(ranks):
            found[i] = np.mean(np.arange(1, len(ranks) + 1) / ranks)
    return found


def processor() -> str:
    """The processor's name, as Linux gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def commit() -> str:
    """The commit that is measured, with a mark where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip() or "none"


def interleaved(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each variant; they take turns, so that a slow moment of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="folder with Market-1501's label files")
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=768)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    ids = read_labels(args.labels)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(len(ids[0]), args.width, generator=generator)
    gallery = torch.randn(len(ids[1]), args.width, generator=generator)
    kept = gallery[torch.from_numpy(ids[1] != -1)]
    sample = np.random.default_rng(0).choice(len(query), SAMPLE, replace=False)
    unit_query = torch.nn.functional.normalize(query[torch.from_numpy(sample)]).numpy()
    unit_gallery = torch.nn.functional.normalize(gallery).numpy()
    sample_ids = (ids[0][sample], ids[1], ids[2][sample], ids[3])

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = evaluate(query, gallery, *ids)
    extra_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
    # Single precision: two entries closer than its rounding may change places.
    slow = per_query(unit_query, unit_gallery, sample_ids)
    np.testing.assert_allclose(result.average_precision[sample], slow, rtol=1e-3, atol=1e-6)

    variants: dict[str, Callable[[], object]] = {
        "matrix product alone": lambda: query @ kept.T,
        "evaluate cosine": lambda: evaluate(query, gallery, *ids),
        "evaluate cosine, again": lambda: evaluate(query, gallery, *ids),
        "evaluate euclidean": lambda: evaluate(query, gallery, *ids, metric="euclidean"),
        "search k=10": lambda: search(query, kept, 10),
        "torch.topk of all scores": lambda: torch.topk(query @ kept.T, 10, dim=1),
        "per-query numpy": lambda: per_query(unit_query, unit_gallery, sample_ids),
    }
    seconds = interleaved(variants, REPEATS)
    seconds["per-query numpy"] = [value * len(query) / SAMPLE for value in seconds["per-query numpy"]]

    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    product = medians["matrix product alone"]
    peers = {"evaluate": medians["per-query numpy"], "search k=10": medians["torch.topk of all scores"]}
    shape = f"{len(query)}x{len(kept)}x{args.width}"
    print(f"{shape}, {result.num_valid} valid queries, {args.threads} threads of {processor()}")
    print(f"evaluate: {extra_mb:.0f} MB above the features; equal to the per-query evaluator on {SAMPLE} queries")
    rows: list[dict[str, str]] = []
    for name, values in seconds.items():
        low, middle, high = np.percentile(values, [20, 50, 80])
        peer = next((value for start, value in peers.items() if name.startswith(start)), None)
        against = "" if peer is None else f"{peer / middle:.2f}"
        print(f"{name:26} {middle:8.3f} s  [{low:.3f}, {high:.3f}]  {middle / product:6.2f} x the product  {against}")
        row = {
            "operator": "retrieval",
            "implementation": name,
            "mode": "fwd",
            "shape": shape,
            "dtype": "float32",
            "median": f"{middle:.4f}",
            "p20": f"{low:.4f}",
            "p80": f"{high:.4f}",
            "unit": "s",
            "fraction_of_ceiling": f"{product / middle:.3f}",
            "ratio_to_best_peer": against,
            "device": f"{processor()}, {args.threads} threads",
            "torch": torch.__version__,
            "commit": commit(),
            "date": datetime.date.today().isoformat(),
        }
        rows.append(row)
    if args.csv is not None:
        new = not args.csv.is_file()
        with args.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
