"""motion_attention beside attention with its bias made otherwise: forward, backward, both, and peak memory.

Run: python -m benchmarks.bench_motion_attention [--device cuda] [--csv FILE] [--only N129,R8] [--modes fwd,full]
     python -m benchmarks.bench_motion_attention --device cuda --check      small odd cases, compared and not timed

Peers: SDPA with the bias materialised and requiring its gradient; the bias folded into the head width through SDPA
(flash and cuDNN), with its concatenations and, to show their cost, without; FlexAttention with the bias captured;
xformers with the bias materialised. Attention without any bias is the line that no peer can cross. What cannot run here
is left out and said so. Results and gradients are compared with the float64 reference before a time is believed.

A row's fraction of the ceiling is the least time that this device needs for the bytes and the FLOPs (the larger of the
two; `Case` has the formulas), its ratio is the time of the best peer with a bias over its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.motion_attention_peers import MODES, Case, Inputs, Variant, backends, draw, error_of, exact, peers
from benchmarks.timing import (
    REFUSALS,
    Call,
    Ceilings,
    Clock,
    Timing,
    append_rows,
    capture_stream,
    ceilings,
    environment,
    input_copies,
    measure,
    peak_memory,
    row,
    short_reason,
)

MEMORY = "memory"
# Batch, heads, queries, keys, head width, motion channels; the most important ones first, since a run may be cut short.
GPU_CASES = (
    Case(64, 12, 129, 129, 64, 8),
    Case(16, 12, 1032, 1032, 64, 8),
    Case(64, 12, 138, 138, 64, 10),  # fusion encoder, a frame
    Case(16, 12, 1104, 1104, 64, 12),  # its clip scope
    Case(64, 12, 8, 128, 64, 0),  # part decoder
    Case(16, 12, 516, 516, 64, 8),
    Case(64, 12, 211, 211, 64, 8),
    Case(128, 12, 129, 129, 64, 8),
    Case(64, 12, 129, 129, 64, 0),
    Case(64, 12, 129, 129, 64, 16),
    Case(16, 12, 1032, 1032, 64, 0),
    Case(16, 12, 1032, 1032, 64, 16),
    Case(64, 12, 243, 243, 64, 10),
    Case(16, 12, 516, 516, 64, 12),
    Case(64, 12, 8, 128, 64, 10),
    Case(64, 12, 129, 129, 64, 10),
)
FLEX_CASES = GPU_CASES[:2]
CPU_CASES = (
    Case(2, 12, 129, 129, 64, 8),
    Case(2, 12, 129, 129, 64, 0),
    Case(2, 12, 138, 138, 64, 10),
    Case(1, 12, 516, 516, 64, 12),
    Case(8, 12, 8, 128, 64, 0),
)
CHECK_CASES = (
    Case(2, 3, 129, 129, 64, 8),
    Case(1, 2, 138, 138, 64, 10),
    Case(2, 2, 65, 65, 64, 0),
    Case(1, 2, 516, 516, 64, 16),
    Case(2, 3, 8, 128, 64, 0),
    Case(1, 2, 7, 128, 72, 12),
)
# Of |x - exact| / |exact|. Peers, and backends that hand a bias to a library, round it to the half type as well.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
PEER_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
LIBRARIES = ("sdpa", "xformers")


class WrongResultError(Exception):
    """The operator itself is wrong, fails, or has no backend here."""


class Bench:
    """One case: its inputs and the implementations whose results were compared.

    Args:
        case: What is computed.
        dtype: Of query, key and value.
        device: Where.
        ceiling: Of this run; None for `Bench` objects that are only checked.
        flex: Whether FlexAttention is compiled.
        only_kernels: Leaves out peers and backends that are no kernels of this project; the float64 reference then runs
            on the CPU. What is left is worth a checker that slows a program down a hundredfold.

    Attributes:
        variants: By name, the operator's best backend first and twice.
        left_out: The reason of each implementation that is not among them.
        errors: Largest relative error of each and of which result.
    """

    def __init__(
        self,
        case: Case,
        dtype: torch.dtype,
        device: torch.device,
        ceiling: Ceilings | None = None,
        *,
        flex: bool = False,
        only_kernels: bool = False,
    ) -> None:
        self.case, self.dtype, self.device, self.ceiling = case, dtype, device, ceiling
        first = draw(case, dtype, device, seed=0)
        copies = 1 if only_kernels else input_copies(case.size_bytes("fwd", dtype), device)
        self.inputs = [first, *(draw(case, dtype, device, seed) for seed in range(1, copies))]
        ours, self.left_out = backends(case, first, timed=not only_kernels)
        if only_kernels:
            kernels = {name: one for name, one in ours.items() if not name.startswith((*LIBRARIES, "reference"))}
            ours = kernels if device.type == "cuda" else kernels or ours  # nothing to check must not look like success
        others, why = ({}, {}) if only_kernels else peers(device, flex)
        self.left_out |= why
        self.errors: dict[str, tuple[float, str]] = {}
        self.variants: dict[str, Variant] = {}
        self._compare({**ours, **others}, torch.device("cpu") if only_kernels else device)

    def _compare(self, variants: dict[str, Variant], device: torch.device) -> None:
        expected = {biased: exact(self.inputs[0], biased, device) for biased in (True, False)}
        for name, variant in variants.items():
            exactly = expected[variant.role != "unbiased"]
            try:
                error, of = error_of(variant, self.inputs[0], exactly)
            except REFUSALS as problem:
                if variant.role == "ours":
                    raise WrongResultError(f"{self.case.name}: {name} fails: {short_reason(problem)}") from problem
                self.left_out[name] = short_reason(problem)
                variant = variant._replace(leaves=())  # cuDNN, for one, takes a bias that needs no gradient
                try:
                    error, of = error_of(variant, self.inputs[0], exactly)
                except REFUSALS:
                    continue
                self.left_out[f"{name} (gradients)"] = self.left_out.pop(name)
            ours = variant.role == "ours" and not name.startswith(LIBRARIES)
            limit = (TOLERANCE if ours else PEER_TOLERANCE)[self.dtype]
            if error <= limit:
                self.errors[name], self.variants[name] = (error, of), variant
            elif variant.role == "ours":
                raise WrongResultError(f"{self.case.name}: {name} is wrong: {of} by {error:.1e} (at most {limit:.0e})")
            else:
                self.left_out[name] = f"its {of} is wrong by {error:.1e} (at most {limit:.0e})"
        if not self.variants or next(iter(self.variants.values())).role != "ours":
            raise WrongResultError(f"{self.case.name}: no backend of motion_attention can run here: {self.left_out}")

    def timings(self, mode: str, *, turns: int, clock: Clock = time.perf_counter) -> dict[str, Timing]:
        """Seconds a call of each variant, interleaved; one that cannot take this mode joins `left_out`."""
        left_out: dict[str, str] = {}
        calls: dict[str, Call] = {}
        for name, variant in self._able(mode).items():
            try:
                calls[name] = self.call(variant, mode)
            except REFUSALS as error:
                left_out[name] = short_reason(error)
        found = measure(calls, self.device, turns=turns, clock=clock, left_out=left_out)
        self.left_out |= {f"{name} ({mode})": why for name, why in left_out.items()}
        return found

    def memory(self) -> dict[str, Timing]:
        """Peak bytes of forward and backward beyond the inputs."""
        found = {}
        for name, variant in self._able(MEMORY).items():
            call = partial(self.call(variant, "full"), 0)
            call()
            size = float(peak_memory(call, self.device))
            found[name] = Timing(size, size, size)
        return found

    def _able(self, mode: str) -> dict[str, Variant]:
        return {name: variant for name, variant in self.variants.items() if mode == "fwd" or variant.leaves}

    def ratio(self, found: dict[str, Timing], name: str) -> float | None:
        """The best peer's quantity over that of ``name``; None where there is no peer."""
        rivals = [timing.median for other, timing in found.items() if self.variants[other].role == "peer"]
        return min(rivals) / found[name].median if rivals and found[name].median else None

    def fraction(self, mode: str, timing: Timing) -> float | None:
        """Of the ceiling; None for memory."""
        if self.ceiling is None or mode == MEMORY:
            return None
        size, flops = self.case.size_bytes(mode, self.dtype), self.case.flops(mode)
        return self.ceiling.least_seconds(size, flops) / timing.median

    def rows(self, mode: str, *, turns: int, clock: Clock = time.perf_counter) -> list[dict[str, str]]:
        """Measures a mode, prints it, and returns its rows without the columns of the environment."""
        found = self.memory() if mode == MEMORY else self.timings(mode, turns=turns, clock=clock)
        unit, factor = ("MB", 1e-6) if mode == MEMORY else ("us", 1e6)
        rows = []
        for name, timing in found.items():
            fraction, ratio = self.fraction(mode, timing), self.ratio(found, name)
            scaled = timing.scaled(factor)
            rows.append(
                row(
                    "motion_attention", name, mode, self.case.name, self.dtype, scaled,
                    unit=unit, fraction=fraction, ratio=ratio,
                )
            )  # fmt: skip
            against = "" if ratio is None else f"{ratio:6.2f} x the best peer"
            of_ceiling = "" if fraction is None else f"{fraction:6.2f} of the ceiling"
            spread = "" if mode == MEMORY else f"[{scaled.p20:.1f}, {scaled.p80:.1f}]"
            print(f"  {mode:6} {name:40} {scaled.median:10.1f} {unit} {spread:20} {against} {of_ceiling}", flush=True)
        return rows

    def call(self, variant: Variant, mode: str) -> Call:
        """A function of a turn's number that runs a variant once, on that turn's inputs."""
        inputs = self.inputs
        if mode == "fwd":

            def forward(index: int) -> object:
                with torch.no_grad():
                    return variant.run(inputs[index % len(inputs)])

            return forward
        leaves = [list(one.leaves(variant.leaves).values()) for one in inputs]
        if mode == "full":

            def full(index: int) -> object:
                turn = index % len(inputs)
                return torch.autograd.grad(variant.run(inputs[turn]), leaves[turn], inputs[turn].grad_out)

            return full
        outs = self._forwards(variant, inputs)

        def backward(index: int) -> object:
            turn = index % len(inputs)
            return torch.autograd.grad(outs[turn], leaves[turn], inputs[turn].grad_out, retain_graph=True)

        return backward

    def _forwards(self, variant: Variant, inputs: Sequence[Inputs]) -> list[torch.Tensor]:
        if self.device.type != "cuda":
            return [variant.run(one) for one in inputs]
        torch.cuda.synchronize(self.device)
        with torch.cuda.stream(capture_stream()):
            outs = [variant.run(one) for one in inputs]
        torch.cuda.synchronize(self.device)
        return outs


def selected(cases: Sequence[Case], only: str) -> list[Case]:
    """The cases whose names have one of the comma-separated lists' words, such as ``N129`` or ``R8``; all without."""
    words = [word.strip() for word in only.split(",") if word.strip()]
    return [case for case in cases if not words or set(words) & set(case.name.split())]


def run(args: argparse.Namespace) -> Iterator[list[dict[str, str]]]:
    """Rows, a mode of a case at a time; raises `WrongResultError` after the last case where one was wrong."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype or default_dtype(torch.device(args.device)))
    clock: Clock = time.thread_time if args.cpu_time else time.perf_counter
    cases = selected(CHECK_CASES if args.check else GPU_CASES if device.type == "cuda" else CPU_CASES, args.only)
    if not cases:
        raise SystemExit(f"no case matches {args.only!r}")
    ceiling = None if args.check else ceilings(device, clock)
    print(f"{environment(device, clock)['device']}, {args.dtype or default_dtype(device)}; {ceiling or 'no timing'}")
    wrong: list[str] = []
    said: dict[str, str] = {}
    for case in cases:
        try:
            flex = device.type == "cuda" and (args.flex or case in FLEX_CASES)
            bench = Bench(case, dtype, device, ceiling, flex=flex, only_kernels=args.check)
        except WrongResultError as error:
            wrong.append(str(error))
            print(f"WRONG {error}", flush=True)
            continue
        print(case.name)
        for name, (size, of) in bench.errors.items():
            print(f"  error  {name:40} {size:.1e} of {of}")
        for mode in () if args.check else args.modes.split(","):
            yield bench.rows(mode, turns=args.turns, clock=clock)
        for name, why in bench.left_out.items():
            if said.get(name) != why:
                print(f"  left out: {name}: {why}")
        said |= bench.left_out
    if wrong:
        raise WrongResultError("; ".join(wrong))


def default_dtype(device: torch.device) -> str:
    return "bfloat16" if device.type == "cuda" else "float32"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--only", default="", help="comma-separated words of case names: N129, R8, B64, N8+128")
    parser.add_argument(
        "--modes", default=",".join((*MODES, MEMORY)), help=f"comma-separated, of {', '.join((*MODES, MEMORY))}"
    )
    parser.add_argument("--turns", type=int, default=21, help="samples of each implementation")
    parser.add_argument("--flex", action="store_true", help="compile FlexAttention for every case, not for two")
    parser.add_argument("--check", action="store_true", help="compare the operator on small odd cases, time nothing")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--cpu-time", action="store_true", help="one thread by its CPU time, on a shared machine")
    parser.add_argument("--csv", type=Path, help="append rows to this file, as they are measured")
    args = parser.parse_args(arguments)
    if unknown := set(args.modes.split(",")) - {*MODES, MEMORY}:
        parser.error(f"unknown modes {', '.join(sorted(unknown))}; known: {', '.join((*MODES, MEMORY))}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("--device cuda needs an NVIDIA GPU, and torch sees none here")
        return 3
    torch.set_num_threads(1 if args.cpu_time else args.threads)
    where = environment(torch.device(args.device), time.thread_time if args.cpu_time else time.perf_counter)
    print(f"{where['device']}, torch {where['torch']}", flush=True)
    try:
        for rows in run(args):
            if args.csv:
                append_rows(args.csv, [{**one, **where} for one in rows])
    except WrongResultError as error:
        print(f"FAILED: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
