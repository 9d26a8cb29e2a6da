"""A vision transformer as it is and accelerated (`motarfuse.accelerate`): forward, and forward with backward.

Run: python -m benchmarks.bench_accelerate [--device cuda] [--sizes base] [--no-compile] [--csv FILE]

The model has timm's structure, or TransReID's, whose attention stores its scores. Variants take turns: the model before
(twice, which shows the noise), after, and both under ``torch.compile``. On a CPU, where the accelerated model runs its
own forwards, the question is whether that costs anything; ``--cpu-time`` counts that of one thread, for a machine
that other work shares.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import motarfuse
from benchmarks.timing import Call, Clock, Timing, append_rows, environment, measure, row
from tests.vit_copies import timm_like

MODES = ("fwd", "full")
BEFORE, AFTER = "before", "accelerated"
COMPILED = "{}, compiled"


class Size(NamedTuple):
    """As the sizes of `motarfuse.models`, and how many images at a time on a CPU and on a GPU."""

    dim: int
    depth: int
    heads: int
    image: tuple[int, int]
    patch: int
    cpu_batch: int
    gpu_batch: int


SIZES = {
    "nano": Size(96, 4, 3, (128, 64), 8, 8, 256),
    "tiny": Size(192, 6, 3, (128, 64), 8, 4, 256),
    "small": Size(384, 12, 6, (256, 128), 16, 1, 128),
    "base": Size(768, 12, 12, (256, 128), 16, 1, 64),
}
BLOCKS: dict[str, type[nn.Module]] = {"timm": timm_like.Block, "transreid": timm_like.ReIDBlock}


class Bench:
    """The variants of one model.

    Args:
        structure: A key of `BLOCKS`.
        size: Of the model.
        dtype: Of weights and images.
        device: Where.
        compiled: Whether ``torch.compile`` is among the variants.
    """

    def __init__(
        self, structure: str, size: Size, dtype: torch.dtype, device: torch.device, *, compiled: bool = True
    ) -> None:
        torch.manual_seed(0)
        before = timm_like.VisionTransformer(
            size.dim, size.depth, size.heads, size.image, size.patch, block=BLOCKS[structure]
        ).to(device, dtype)
        after = copy.deepcopy(before)
        self.report = motarfuse.accelerate(after)
        if self.report.left or len(self.report.replaced) != 3 * size.depth:
            raise AssertionError(f"not all was replaced: {self.report}")
        batch = size.gpu_batch if device.type == "cuda" else size.cpu_batch
        self.images = torch.randn(batch, 3, *size.image, device=device, dtype=dtype)
        self.device, self.shape = device, f"{structure} {size.dim}x{size.depth} batch {batch}"
        self.models: dict[str, Callable[[Tensor], Tensor]] = {BEFORE: before, AFTER: after, f"{BEFORE}, again": before}
        self.parameters = {name: list(model.parameters()) for name, model in ((BEFORE, before), (AFTER, after))}
        if compiled:
            for name, model in ((BEFORE, before), (AFTER, after)):
                self.models[COMPILED.format(name)] = torch.compile(model, fullgraph=True, dynamic=False)
        self._compare()

    def _compare(self) -> None:
        with torch.no_grad():
            wanted, found = (self.models[name](self.images).float() for name in (BEFORE, AFTER))
        error, scale = (found - wanted).square().mean().sqrt(), wanted.square().mean().sqrt()
        if not error <= 100 * torch.finfo(self.images.dtype).eps * scale:
            raise AssertionError(f"the accelerated model differs by {error:.1e} of {scale:.1e}")

    def call(self, name: str, mode: str) -> Call:
        """A variant as one call, for the timer."""
        model, parameters = self.models[name], self.parameters[name.split(",")[0]]

        def forward(_: int) -> object:
            with torch.no_grad():
                return model(self.images)

        def full(_: int) -> object:
            return torch.autograd.grad(model(self.images)[:, 0].float().square().mean(), parameters)

        return forward if mode == "fwd" else full

    def timings(self, mode: str, *, turns: int = 15, clock: Clock = time.perf_counter) -> dict[str, Timing]:
        """By variant, seconds a call."""
        calls = {name: self.call(name, mode) for name in self.models}
        return measure(calls, self.device, turns=turns, clock=clock)


def ratios(found: dict[str, Timing]) -> dict[str, float]:
    """How many times faster than before each variant is; a compiled one than before and compiled."""
    peers = {name: COMPILED.format(BEFORE) if name.endswith("compiled") else BEFORE for name in found}
    return {name: found[peer].median / found[name].median for name, peer in peers.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="default: nano tiny small; with cuda small base")
    parser.add_argument("--structures", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2, help="of a CPU")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread by its CPU time, on a machine that is shared"
    )
    parser.add_argument("--no-compile", dest="compiled", action="store_false", help="leave out torch.compile")
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    torch.set_num_threads(1 if args.cpu_time else args.threads)
    clock = time.thread_time if args.cpu_time else time.perf_counter
    dtype = getattr(torch, args.dtype or ("bfloat16" if on_gpu else "float32"))
    rows = []
    for name in args.sizes or (("small", "base") if on_gpu else ("nano", "tiny", "small")):
        for structure in args.structures:
            bench = Bench(structure, SIZES[name], dtype, device, compiled=args.compiled)
            for mode in MODES:
                found = bench.timings(mode, turns=args.turns, clock=clock)
                ratio = ratios(found)
                print(f"{name} {bench.shape} {mode}: " + ", ".join(
                    f"{one} {timing.median * 1e3:.2f} ms (x{ratio[one]:.3f})" for one, timing in found.items()
                ), flush=True)  # fmt: skip
                line = partial(row, "accelerate", mode=mode, shape=f"{name} {bench.shape}", dtype=dtype)
                rows += [
                    line(one, timing=timing.scaled(1e6), ratio=ratio[one]) | environment(device, clock)
                    for one, timing in found.items()
                ]
    if args.csv is not None:
        append_rows(args.csv, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
