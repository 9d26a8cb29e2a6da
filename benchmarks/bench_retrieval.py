"""Evaluation and search at Market-1501's and MSMT17's size, beside the matrix product alone, faiss and NumPy.

Run: python -m benchmarks.bench_retrieval [--labels FOLDER] [--size market1501|msmt17] [--device cuda] [--csv FILE]
     [--threads 2] [--width 768] [--check]

Labels come from Market-1501's own .mat files (queryID, queryCam, testID, testCam) where a folder of them is given, else
from a random draw of the same counts. Features are random. The per-query evaluator (one argsort of the whole gallery
for each query, as evaluators in plain Python do) runs on a sample of queries and is scaled up; its average precisions
are compared with ``evaluate``'s before a time is believed, and ``search``'s results with ``torch.topk``'s. MSMT17's
size runs once: its rows are of single calls. Peak memory is the process's own, above that of the features.
"""

from __future__ import annotations

import argparse
import gc
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.timing import Call, Timing, append_rows, environment, measure
from motarfuse.retrieval import evaluate, search, storage_changes
from motarfuse.retrieval.scores import exact_products

SAMPLE, TURNS, WIDTH, TOP = 64, 7, 768, 10


class Size(NamedTuple):
    """How large a public set is: its labels are drawn with these counts."""

    queries: int
    identities: int
    distractors: int
    junk: int
    gallery: int
    cameras: int


SIZES = {
    "market1501": Size(3368, 750, 2798, 3819, 19732, 6),
    "msmt17": Size(11659, 3060, 0, 0, 82161, 15),
    "small": Size(200, 40, 50, 50, 1200, 6),
}


def read_labels(folder: Path | None, size: Size = SIZES["market1501"]) -> tuple[np.ndarray, ...]:
    """Identities and cameras of queries and gallery: (query pids, gallery pids, query camids, gallery camids)."""
    if folder is None:
        rng = np.random.default_rng(0)
        others = [-1] * size.junk + [0] * size.distractors
        ids = np.concatenate([others, rng.integers(1, size.identities + 1, size.gallery - len(others))])
        return (
            rng.integers(1, size.identities + 1, size.queries),
            ids.astype(np.int64),
            rng.integers(0, size.cameras, size.queries),
            rng.integers(0, size.cameras, size.gallery),
        )
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


def peak_above(call: Callable[[], object], device: torch.device) -> float:
    """Bytes that a call takes at most above what was taken before it: the device's, or the process's, watched."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    page, done, most = 4096, threading.Event(), 0

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    before = resident()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(most, resident()) - before


def faiss_search(query: torch.Tensor, gallery: torch.Tensor, threads: int) -> Call | None:
    """faiss' exact inner-product index; None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(query.shape[1])
    index.add(torch.nn.functional.normalize(gallery).cpu().numpy())
    unit = torch.nn.functional.normalize(query).cpu().numpy()
    return lambda _: index.search(unit, TOP)


def prepare(
    ids: tuple[np.ndarray, ...], width: int = WIDTH, device: torch.device | None = None
) -> tuple[dict[str, Call], Prepared]:
    """What is timed; `timings` scales the per-query evaluator up to all queries."""
    device = torch.device("cpu") if device is None else device
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(len(ids[0]), width, generator=generator)
    gallery = torch.randn(len(ids[1]), width, generator=generator)
    sample = np.random.default_rng(0).choice(len(query), min(SAMPLE, len(query)), replace=False)
    unit_query = torch.nn.functional.normalize(query[torch.from_numpy(sample)]).numpy()
    unit_gallery = torch.nn.functional.normalize(gallery).numpy()
    sample_ids = (ids[0][sample], ids[1], ids[2][sample], ids[3])
    query, gallery = query.to(device), gallery.to(device)
    kept = gallery[torch.from_numpy(ids[1] != -1).to(device)]
    unit, unit_kept = (torch.nn.functional.normalize(side) for side in (query, kept))

    result = evaluate(query[:8], gallery, ids[0][:8], ids[1], ids[2][:8], ids[3])  # what is loaded once is no peak
    extra = peak_above(lambda: evaluate(query, gallery, *ids), device)
    result = evaluate(query, gallery, *ids)
    # Single precision: two entries closer than its rounding may change places.
    slow = per_query(unit_query, unit_gallery, sample_ids)
    np.testing.assert_allclose(result.average_precision[sample], slow, rtol=1e-3, atol=1e-6)
    with exact_products(device):
        close = torch.topk(unit @ unit_kept.T, TOP, dim=1)
    scores, indices = search(query, kept, TOP)
    assert (indices == close.indices).double().mean() > 0.999
    torch.testing.assert_close(scores, close.values, rtol=1e-4, atol=1e-5)

    def product(_: int) -> torch.Tensor:
        with exact_products(device):
            return query @ kept.T

    def top(_: int) -> object:
        with exact_products(device):
            return torch.topk(unit @ unit_kept.T, TOP, dim=1)

    variants: dict[str, Call] = {
        "matrix product alone": product,
        "evaluate cosine": lambda _: evaluate(query, gallery, *ids),
        "evaluate cosine, again": lambda _: evaluate(query, gallery, *ids),
        "evaluate euclidean": lambda _: evaluate(query, gallery, *ids, metric="euclidean"),
        f"search k={TOP}": lambda _: search(query, kept, TOP),
        f"search k={TOP}, float16 storage": lambda _: search(query, kept, TOP, storage="float16"),
        "torch.topk of all scores": top,
        "per-query numpy": lambda _: per_query(unit_query, unit_gallery, sample_ids),
    }
    if (index := faiss_search(query, kept, torch.get_num_threads())) is not None:
        variants["faiss IndexFlatIP"] = index
    if device.type == "cuda":
        variants = {name: _waited(call) for name, call in variants.items()}
    return variants, Prepared(len(query), len(kept), result.num_valid, extra / 1e6)


def _waited(call: Call) -> Call:
    def run(turn: int) -> object:
        found = call(turn)
        torch.cuda.synchronize()
        return found

    return run


def timings(variants: dict[str, Call], queries: int, turns: int = TURNS) -> dict[str, Timing]:
    """Interleaved, as users call them (on a GPU with a synchronisation); the sampled evaluator scaled up."""
    found = measure(variants, torch.device("cpu"), turns=turns)
    found["per-query numpy"] = found["per-query numpy"].scaled(queries / min(SAMPLE, queries))
    return found


def once(ids: tuple[np.ndarray, ...], width: int, device: torch.device) -> tuple[dict[str, Timing], Prepared]:
    """Single calls at a size whose table of scores would not fit: seconds and peak memory."""
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randn(len(side), width, generator=generator).to(device) for side in ids[:2])
    found: dict[str, Timing] = {}
    extra: dict[str, float] = {}
    valid = 0

    def product() -> None:
        with exact_products(device):
            for some in query.split(512):
                some @ gallery.T

    def evaluated() -> None:
        nonlocal valid
        valid = evaluate(query, gallery, *ids).num_valid

    calls: dict[str, Callable[[], object]] = {
        "matrix product alone": product,
        "evaluate cosine": evaluated,
        f"search k={TOP}": lambda: search(query, gallery, TOP),
    }
    for name, call in calls.items():
        start = time.perf_counter()
        extra[name] = peak_above(call, device) / 1e6
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        found[name] = Timing(seconds, seconds, seconds)
    return found, Prepared(len(query), len(gallery), valid, extra["evaluate cosine"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="folder with Market-1501's label files")
    parser.add_argument("--size", choices=SIZES, default="market1501")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--check", action="store_true", help="compare results at the small size and time nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.check:
        _, prepared = prepare(read_labels(None, SIZES["small"]), 96, device)
        print(f"equal to the per-query evaluator and to torch.topk, {prepared.queries} queries")
        return 0

    ids = read_labels(args.labels, SIZES[args.size])
    if args.size == "msmt17":
        found, prepared = once(ids, args.width, device)
    else:
        variants, prepared = prepare(ids, args.width, device)
        found = timings(variants, prepared.queries)

    where = environment(device)
    product = found["matrix product alone"].median
    peers = {"evaluate": ("per-query numpy",), "search": ("torch.topk of all scores", "faiss IndexFlatIP")}
    shape = f"{prepared.queries}x{prepared.kept}x{args.width}"
    print(f"{shape}, {prepared.valid} valid queries, {where['device']}")
    print(f"evaluate: {prepared.extra_mb:.0f} MB above the features")
    rows: list[dict[str, str]] = []

    def row(name: str, mode: str, timing: Timing, unit: str, fraction: str, against: str) -> dict[str, str]:
        return {
            "operator": "retrieval",
            "implementation": name,
            "mode": mode,
            "shape": shape,
            "dtype": "float32",
            "median": f"{timing.median:.4f}",
            "p20": f"{timing.p20:.4f}",
            "p80": f"{timing.p80:.4f}",
            "unit": unit,
            "fraction_of_ceiling": fraction,
            "ratio_to_best_peer": against,
        }

    for name, timing in found.items():
        others = [found[peer].median for peer in peers.get(name.split()[0], ()) if peer in found]
        against = f"{min(others) / timing.median:.2f}" if others else ""
        print(
            f"{name:30} {timing.median:8.3f} s  [{timing.p20:.3f}, {timing.p80:.3f}]  "
            f"{timing.median / product:6.2f} x the product  {against}"
        )
        rows.append(row(name, "fwd", timing, "s", f"{product / timing.median:.3f}", against))
    extra = Timing(*[prepared.extra_mb] * 3)
    rows.append(row("evaluate cosine", "memory fwd", extra, "MB", "", ""))
    if args.size == "market1501":
        generator = torch.Generator().manual_seed(0)
        query, gallery = (
            torch.randn(count, args.width, generator=generator).to(device)
            for count in (prepared.queries, prepared.kept)
        )
        for storage in ("float16", "bfloat16"):
            print(storage_changes(query, gallery, TOP, storage=storage))
    if args.csv is not None:
        append_rows(args.csv, [{**one, **where} for one in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
