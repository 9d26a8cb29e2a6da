"""Evaluation and search at Market-1501's size, beside the matrix product alone and a per-query NumPy evaluator.

Run: python -m benchmarks.bench_retrieval [--labels FOLDER] [--csv FILE] [--threads 2] [--width 768]

Labels come from Market-1501's own .mat files (queryID, queryCam, testID, testCam) where a folder of them is given, else
from a random draw of the same counts. Features are random. The per-query evaluator (one argsort of the whole gallery
for each query, as evaluators in plain Python do) runs on a sample of queries and is scaled up; its average precisions
are compared with ``evaluate``'s before a time is believed.
"""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.timing import Call, Timing, append_rows, environment, measure
from motarfuse.retrieval import evaluate, search

QUERIES, GALLERY, SAMPLE, TURNS, WIDTH = 3368, 19732, 64, 7, 768


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


class Prepared(NamedTuple):
    """What was computed before anything is timed."""

    queries: int
    kept: int
    valid: int
    extra_mb: float


def prepare(ids: tuple[np.ndarray, ...], width: int = WIDTH) -> tuple[dict[str, Call], Prepared]:
    """What is timed; `timings` scales the per-query evaluator up to all queries."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(len(ids[0]), width, generator=generator)
    gallery = torch.randn(len(ids[1]), width, generator=generator)
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

    variants: dict[str, Call] = {
        "matrix product alone": lambda _: query @ kept.T,
        "evaluate cosine": lambda _: evaluate(query, gallery, *ids),
        "evaluate cosine, again": lambda _: evaluate(query, gallery, *ids),
        "evaluate euclidean": lambda _: evaluate(query, gallery, *ids, metric="euclidean"),
        "search k=10": lambda _: search(query, kept, 10),
        "torch.topk of all scores": lambda _: torch.topk(query @ kept.T, 10, dim=1),
        "per-query numpy": lambda _: per_query(unit_query, unit_gallery, sample_ids),
    }
    return variants, Prepared(len(query), len(kept), result.num_valid, extra_mb)


def timings(variants: dict[str, Call], queries: int, turns: int = TURNS) -> dict[str, Timing]:
    """Interleaved, the sampled evaluator scaled up."""
    found = measure(variants, torch.device("cpu"), turns=turns)
    found["per-query numpy"] = found["per-query numpy"].scaled(queries / SAMPLE)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="folder with Market-1501's label files")
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=WIDTH)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    variants, prepared = prepare(read_labels(args.labels), args.width)
    found = timings(variants, prepared.queries)

    where = environment(torch.device("cpu"))
    product = found["matrix product alone"].median
    peers = {"evaluate": found["per-query numpy"], "search k=10": found["torch.topk of all scores"]}
    shape = f"{prepared.queries}x{prepared.kept}x{args.width}"
    extra = f"{prepared.extra_mb:.0f} MB"
    print(f"{shape}, {prepared.valid} valid queries, {where['device']}")
    print(f"evaluate: {extra} above the features; equal to the per-query evaluator on {SAMPLE} queries")
    rows: list[dict[str, str]] = []
    for name, timing in found.items():
        peer = next((value.median for start, value in peers.items() if name.startswith(start)), None)
        against = "" if peer is None else f"{peer / timing.median:.2f}"
        print(
            f"{name:26} {timing.median:8.3f} s  [{timing.p20:.3f}, {timing.p80:.3f}]  "
            f"{timing.median / product:6.2f} x the product  {against}"
        )
        row = {
            "operator": "retrieval",
            "implementation": name,
            "mode": "fwd",
            "shape": shape,
            "dtype": "float32",
            "median": f"{timing.median:.4f}",
            "p20": f"{timing.p20:.4f}",
            "p80": f"{timing.p80:.4f}",
            "unit": "s",
            "fraction_of_ceiling": f"{product / timing.median:.3f}",
            "ratio_to_best_peer": against,
        }
        rows.append(row)
    if args.csv is not None:
        append_rows(args.csv, [{**row, **where} for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
