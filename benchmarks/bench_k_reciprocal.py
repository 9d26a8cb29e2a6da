"""Re-ranking by k-reciprocal encoding beside the same formula in dense NumPy, as toolkits compute it.

Run: python -m benchmarks.bench_k_reciprocal [--samples 20000] [--spread 2.5] [--device cuda] [--csv FILE]
     [--threads 2] [--width 768] [--no-dense] [--check]

Features are random people of 25 images each: a centre, and noise of ``spread`` times its length on every image; at 2.5
sets of neighbours are mostly right, from 5 on they are noise in which a few samples are everybody's neighbours, which
is the most work that re-ranking can have. 15 % of the samples are queries. The dense formula holds several tables of
samples x samples (20,000: 8 GB) and is timed once, ours five times; their orders are compared before a time is
believed. Times are from features to every query's first 10 entries, and of an evaluation. Peak memory is the process's
own, above that of the features.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench_retrieval import peak_above
from benchmarks.timing import Timing, append_rows, environment
from motarfuse.retrieval import rerank

TOP, WIDTH, IMAGES, TURNS = 10, 768, 25, 5


def people(samples: int, width: int, spread: float) -> tuple[torch.Tensor, torch.Tensor, tuple[np.ndarray, ...]]:
    """Features of queries and gallery, and (query pids, gallery pids, query camids, gallery camids)."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(2, samples // IMAGES), width), dtype=np.float32)
    pids = rng.integers(0, len(centres), samples)
    features = rng.standard_normal((samples, width), dtype=np.float32)
    features *= spread
    for pid in range(len(centres)):
        features[pids == pid] += centres[pid]
    camids = rng.integers(0, 6, samples)
    queries = samples * 3 // 20
    table = torch.from_numpy(features)
    return (
        table[:queries].clone(),
        table[queries:].clone(),
        (pids[:queries], pids[queries:], camids[:queries], camids[queries:]),
    )


def dense_formula(query: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, share: float = 0.3) -> np.ndarray:
    """(Q, G) final distances by tables of all samples, float32."""
    samples = np.concatenate([query, gallery])
    count, queries = len(samples), len(query)
    squares = np.square(samples).sum(axis=1)
    distances = samples @ samples.T
    distances *= -2
    distances += squares
    distances += squares[:, None]
    distances /= distances.max(axis=0)[:, None]  # symmetric: a row's largest is a column's
    order = np.argsort(distances, axis=1).astype(np.int32)
    weights = np.zeros((count, count), np.float32)

    def reciprocal(sample: int, k: int) -> np.ndarray:
        nearest = order[sample, :k]
        return nearest[(order[nearest, :k] == sample).any(axis=1)]

    for sample in range(count):
        own = reciprocal(sample, k1 + 1)
        members = own
        for candidate in own:
            theirs = reciprocal(candidate, int(np.around(k1 / 2)) + 1)
            if len(np.intersect1d(theirs, own)) > 2.0 / 3 * len(theirs):
                members = np.append(members, theirs)
        members = np.unique(members)
        row = np.exp(-distances[sample, members])
        weights[sample, members] = row / row.sum()
    distances = distances[:queries, queries:].copy()
    means = np.empty_like(weights)
    for sample in range(count):
        means[sample] = weights[order[sample, :k2]].mean(axis=0)
    del weights
    holders = [np.flatnonzero(means[queries:, sample]) for sample in range(count)]
    for sample in range(queries):
        shared = np.zeros(len(gallery), np.float32)
        for column in np.flatnonzero(means[sample]):
            entries = holders[column]
            shared[entries] += np.minimum(means[sample, column], means[queries + entries, column])
        distances[sample] = (1 - share) * (1 - shared / (2 - shared)) + share * distances[sample]
    return distances


def timed(call: Callable[[], object], device: torch.device, turns: int) -> tuple[Timing, float]:
    """Seconds of some calls, and the bytes that another one took at most: watching memory takes time of its own."""
    extra = peak_above(call, device)
    seconds = []
    for _ in range(turns):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    cuts = statistics.quantiles(seconds, n=5, method="inclusive") if turns > 1 else [seconds[0]] * 4
    return Timing(statistics.median(seconds), cuts[0], cuts[3]), extra


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20000)
    parser.add_argument("--spread", type=float, default=2.5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--no-dense", action="store_true", help="leave the dense formula out")
    parser.add_argument("--check", action="store_true", help="compare results at a small size and time nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.check:
        args.samples, args.width = 1000, 96
    query, gallery, ids = people(args.samples, args.width, args.spread)
    wanted = np.empty((0, 0), np.float32)

    def dense() -> None:
        nonlocal wanted
        wanted = dense_formula(query.numpy(), gallery.numpy())

    found: dict[str, tuple[Timing, float]] = {}
    if not args.no_dense:
        found["dense numpy"] = timed(dense, torch.device("cpu"), 1)
    here, there = query.to(device), gallery.to(device)
    rerank(here[:32], there[:200]).topk(TOP)  # what is loaded once is no time of ours
    found[f"rerank topk={TOP}"] = timed(lambda: rerank(here, there).topk(TOP), device, TURNS)
    found["rerank evaluate"] = timed(lambda: rerank(here, there).evaluate(*ids), device, TURNS)
    result = rerank(here, there)
    if not args.no_dense:
        entries = np.argsort(wanted, axis=1, kind="stable")[:, :TOP]
        same = (result.topk(TOP)[1].cpu().numpy() == entries).mean()
        assert same > 0.99, same  # single precision: two entries closer than its rounding may change places
        print(f"{100 * same:.2f} % of the first {TOP} entries are those of the dense formula in single precision")
    print(f"mAP {result.evaluate(*ids).mAP:.4f}")
    if args.check:
        return 0

    where = environment(device)
    shape = f"{len(query)}+{len(gallery)}x{args.width} spread {args.spread:g}"
    slow = found["dense numpy"][0].median if "dense numpy" in found else None
    rows = []
    for name, (seconds, extra) in found.items():
        against = f"{slow / seconds.median:.2f}" if slow is not None and name != "dense numpy" else ""
        print(f"{name:20} {seconds.median:9.2f} s  {extra / 1e6:9.0f} MB  {against}")
        memory = Timing(*[extra / 1e6] * 3)
        for mode, value, unit, ratio in (("fwd", seconds, "s", against), ("memory fwd", memory, "MB", "")):
            numbers = {key: f"{getattr(value, key):.4f}" for key in ("median", "p20", "p80")}
            rows.append(
                {
                    "operator": "k_reciprocal", "implementation": name, "mode": mode, "shape": shape,
                    "dtype": "float32", **numbers, "unit": unit, "fraction_of_ceiling": "",
                    "ratio_to_best_peer": ratio, **where,
                }
            )  # fmt: skip
    if args.csv is not None:
        append_rows(args.csv, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
