"""Times other tiles than the table's for motion_attention's Triton kernels on the GPU at hand.

Run: python -m benchmarks.tune_motion_attention [--kernel backward_key] [--dtype bfloat16] [--head-dims 32,64,128]
     [--seconds 300] [--csv FILE]

Each entry of `motarfuse.kernels.motion_attention_table` meets its candidates (`motion_attention_candidates`), at a
shape of the network. A candidate is what the launcher launches while the table is overridden. It is dropped, and the
reason said, where it does not compile, asks for more than the GPU has, spills more than the table's own, or has another
result. The rest take turns with the table's, which runs twice: what the two differ by is noise. Times are of the kernel
alone.

Where a candidate wins by more than the noise, the line that replaces the table's comes last, ready to paste;
`python -m tools.kernel_report` then tells whether it spills with other numbers of channels. Entries and candidates come
in the order of what is expected of them, and what --seconds does not suffice for is said.

Exit status: 0; 1 where an entry of the table does not run; 2 for a wrong call; 3 where there is no GPU for it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from motarfuse.kernels import motion_attention_table as table
from motarfuse.kernels._launch import compiled_for
from motarfuse.kernels.motion_attention_table import ShortEntry

from benchmarks.bench_motion_attention import PEER_TOLERANCE
from benchmarks.motion_attention_candidates import HEAD_DIMS, KERNELS, Choice, Work, code, works
from benchmarks.motion_attention_peers import EXTRAS, draw
from benchmarks.timing import Call, Timing, append_rows, environment, input_copies, measure, row, short_reason

FAILED, NO_GPU = 1, 3
DTYPES = ("bfloat16", "float16", "float32")


class UnfitError(Exception):
    """Why a candidate cannot be launched here."""


class Prepared(NamedTuple):
    """A choice that was launched once.

    Attributes:
        call: Launches it again.
        results: What it computed, in tensors that held NaN before.
        registers, spills: Of a thread, the latter in words of local memory; the most of its kernels.
    """

    call: Call
    results: dict[str, torch.Tensor]
    registers: int
    spills: int


Prepare = Callable[[Choice], Prepared]
Timer = Callable[[Mapping[str, Call]], dict[str, Timing]]


@dataclass
class Found:
    """What became of an entry.

    Attributes:
        work: The entry.
        timings: By `code` of the choice, the table's own first and once more.
        registers: Likewise.
        dropped: Reasons.
        unreached: Candidates that time did not suffice for.
        failure: Why the table's own does not run; empty if it does.
    """

    work: Work
    timings: dict[str, Timing] = field(default_factory=dict)
    registers: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unreached: list[Choice] = field(default_factory=list)
    failure: str = ""

    @property
    def noise(self) -> float:
        """Seconds from the least to the most that the table's own takes in 60 % of its turns."""
        own = list(self.timings.values())[:2]
        return max(one.p80 for one in own) - min(one.p20 for one in own)

    @property
    def winner(self) -> Choice | None:
        """The fastest candidate, if it beats the table's own by more than the noise."""
        rivals = [choice for choice in self.work.candidates if code(choice) in self.timings]
        if not rivals:
            return None
        best = min(rivals, key=lambda choice: self.timings[code(choice)].median)
        own = min(one.median for one in list(self.timings.values())[:2])
        return best if own - self.timings[code(best)].median > self.noise else None


class Launcher:
    """Launches choices of an entry on inputs that are drawn once, and rotates over them."""

    def __init__(self, work: Work, device: torch.device) -> None:
        from motarfuse.kernels import motion_attention as launchers

        self.work, self.launchers = work, launchers
        copies = input_copies(work.case.size_bytes("fwd", work.dtype), device)
        self.inputs: list[tuple[list[Any], float, torch.Tensor, Any]] = []
        for seed in range(copies):
            drawn = draw(work.case, work.dtype, device, seed)
            tensors = [getattr(drawn, name) for name in ("query", "key", "value", *EXTRAS)]
            inputs: list[Any] = [None if tensor is None else tensor.detach() for tensor in tensors]
            forward = launchers.forward(*inputs, drawn.scale) if work.kernel.startswith("backward") else None
            self.inputs.append((inputs, drawn.scale, drawn.grad_out, forward))

    def prepare(self, choice: Choice) -> Prepared:
        """Compiles and launches a choice; raises `UnfitError` where it cannot be."""
        from triton.compiler.errors import CompilationError
        from triton.runtime.errors import OutOfResources, PTXASError

        try:
            # Triton prints a program that ptxas refuses.
            with self.work.overridden(choice), contextlib.redirect_stdout(io.StringIO()):
                return self._prepare()
        except (CompilationError, OutOfResources, PTXASError) as error:
            raise UnfitError(short_reason(error)) from error
        except RuntimeError as error:
            if "PassManager::run failed" not in str(error):  # what Triton's passes raise; a failed launch is no verdict
                raise
            raise UnfitError(short_reason(error)) from error

    def _prepare(self) -> Prepared:
        kernel = {
            "short": self.launchers.motion_attention_short_fwd_kernel,
            "forward": self.launchers.motion_attention_fwd_kernel,
            "backward_query": self.launchers.motion_attention_bwd_query_kernel,
            "backward_key": self.launchers.motion_attention_bwd_key_kernel,
        }[self.work.kernel]
        timed: list[list[Any]] = []
        usage = [(0, 0)]
        results: dict[str, torch.Tensor] = {}
        for index in range(len(self.inputs)):
            tensors, launches = self._launches(index)
            results = results or tensors
            timed.append([])
            for launch in launches:
                compiled = launch.kernel[launch.grid](**launch.arguments, **launch.constants, **launch.options)
                if launch.kernel is kernel:
                    timed[-1].append(launch)
                    if compiled is not None:  # as it is for the interpreter
                        usage.append((compiled.n_regs, compiled.n_spills))
        if not timed[0]:
            raise RuntimeError(f"{self.work.name}: the launcher launches no {kernel.__name__}")

        def call(index: int) -> None:
            for launch in timed[index % len(timed)]:
                launch.run()

        if "motion_scale" in results:  # a number for each tile of queries, however large that is
            results["motion_scale"] = results["motion_scale"].sum((0, 2))
        return Prepared(call, results, max(one for one, _ in usage), max(one for _, one in usage))

    def _launches(self, index: int) -> tuple[dict[str, torch.Tensor], Iterator[Any]]:
        """What the kernels will write, full of NaN, and their launches."""
        inputs, scale, grad_out, forward = self.inputs[index]
        problem = self.launchers.Problem(*inputs, scale)
        if forward is None:
            query = inputs[0]
            out = self.launchers.rows_first(query, query.shape[2])
            lse = query.new_empty(self.launchers.statistics_shape(query), dtype=problem.compute)
            results = {"out": out, "lse": lse}
            launches = self.launchers.forward_launches(problem, out, lse)
        else:
            attended = [self.launchers.rows_first(tensor, tensor.shape[2]) for tensor in inputs[:3]]
            small = [torch.empty_like(tensor) for tensor in inputs[3:]]
            wanted = self.launchers.Gradients(*attended, *self.launchers.per_head(problem, small, 0b1111111))
            results = wanted._asdict()
            launches = self.launchers.backward_launches(problem, grad_out, *forward, wanted)
        for tensor in results.values():
            tensor.fill_(float("nan"))
        return results, launches


def difference(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> tuple[float, str]:
    """The largest |x - y| / |y| (Frobenius norms), and of which result; NaN counts as the largest."""
    errors = {}
    for name, wanted in expected.items():
        exact = wanted.float()
        errors[name] = ((found[name].float() - exact).norm() / exact.norm()).item()
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
    return errors[worst], worst


def tune(work: Work, prepare: Prepare, timer: Timer, end: float, clock: Callable[[], float] = time.monotonic) -> Found:
    """Times an entry's choices.

    Args:
        work: The entry.
        prepare: Launches a choice once, or raises `UnfitError`.
        timer: Seconds of calls that take turns.
        end: When, by ``clock``, no other candidate is prepared. Those that are prepared are timed.
        clock: Seconds.
    """
    found = Found(work)
    try:
        own = prepare(work.own)
    except UnfitError as error:
        found.failure = str(error)
        return found
    name = code(work.own)
    calls = {name: own.call, f"{name}, again": own.call}
    found.registers = dict.fromkeys(calls, own.registers)
    limit = PEER_TOLERANCE[work.dtype]
    for place, choice in enumerate(work.candidates):
        if clock() >= end:
            found.unreached = list(work.candidates[place:])
            break
        name = code(choice)
        try:
            other = prepare(choice)
        except UnfitError as error:
            found.dropped[name] = str(error)
            continue
        apart, of = difference(other.results, own.results)
        if other.spills > own.spills:
            found.dropped[name] = f"spills {other.spills} words (the table's own: {own.spills})"
        elif not apart <= limit:
            found.dropped[name] = f"WRONG: its {of} differs by {apart:.1e} (at most {limit:.0e})"
        else:
            calls[name], found.registers[name] = other.call, other.registers
    if len(calls) > 2:
        found.timings = timer(calls)
    return found


def tune_all(
    todo: Sequence[Work],
    prepare: Callable[[Work], Prepare],
    timer: Timer,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Found]:
    """Entries in their order, as long as there is time; one that was not begun has all its candidates unreached."""
    end = clock() + seconds
    for work in todo:
        if clock() >= end:
            yield Found(work, unreached=list(work.candidates))
        else:
            yield tune(work, prepare(work), timer, end, clock)


def lines(found: Found) -> Iterator[str]:
    """An entry's part of the table that is printed."""
    yield found.work.name
    if found.failure:
        yield f"  FAILED: {code(found.work.own)}, which is the table's, does not run: {found.failure}"
    own = next(iter(found.timings.values()), None)
    for name, timing in found.timings.items():
        assert own is not None
        us = timing.scaled(1e6)
        spread = f"[{us.p20:.1f}, {us.p80:.1f}]"
        registers = f"{found.registers[name]:4} registers"
        yield f"  {name:44} {us.median:10.1f} us {spread:20} {own.median / timing.median:5.2f} x {registers}"
    for name, reason in found.dropped.items():
        yield f"  {name:44} dropped: {reason}"
    if found.unreached:
        yield f"  not reached: {', '.join(code(choice) for choice in found.unreached)}"
    if found.timings:
        winner = found.winner
        what = f"{code(winner)} is faster" if winner else "nothing is faster"
        yield f"  {what} by more than the noise ({found.noise * 1e6:.1f} us)"


def rows(found: Found) -> list[dict[str, str]]:
    """CSV rows without the environment's columns; peers are the other choices."""
    timed, (work, names) = [], (found.work, list(found.timings))
    for place, (name, timing) in enumerate(found.timings.items()):
        peers = names[2:] if place < 2 else [other for other in names if other != name]
        ratio = min(found.timings[other].median for other in peers) / timing.median
        timed.append(
            row("motion_attention", name, work.kernel, work.case.name, work.dtype, timing.scaled(1e6), ratio=ratio)
        )
    return timed


def replacements(found: Sequence[Found]) -> Iterator[str]:
    """Lines to paste into the table, for its entries that lost: a kernel's three entries, or one of ``SHORT``."""
    won = {one.work.entry: one.winner for one in found if one.timings and one.winner is not None}
    done = set()
    for entry, choice in won.items():
        if isinstance(entry, ShortEntry):
            yield f"    SHORT: {code(entry)}: {code(choice)},"
        elif entry[:3] not in done:
            done.add(entry[:3])
            entries = [entry._replace(block_d=block_d) for block_d in (32, 64, 128)]
            tiles = ", ".join(code(won.get(one) or table.TABLE[one]) for one in entries)
            yield f"    _rows({entry.architecture}, {entry.half}, ...): {entry.kernel}=({tiles}),"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", choices=KERNELS, help="this one alone")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="half types share entries (%(default)s)")
    parser.add_argument("--head-dims", default="32,64,128", help="comma-separated (%(default)s)")
    parser.add_argument("--seconds", type=float, default=300.0, help="for everything (%(default)s)")
    parser.add_argument("--turns", type=int, default=21, help="samples of each candidate (%(default)s)")
    parser.add_argument("--csv", type=Path, help="append rows to this file, as they are measured")
    args = parser.parse_args(arguments)
    try:
        args.head_dims = list(dict.fromkeys(int(word) for word in args.head_dims.split(",")))
    except ValueError:
        parser.error(f"--head-dims is a list such as 32,64, got {args.head_dims!r}")
    if not set(args.head_dims) <= set(HEAD_DIMS):
        parser.error(f"the table has entries for head dims 32, 64 and 128, got {args.head_dims}")
    if not args.seconds > 0:
        parser.error("--seconds is a positive number")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    if not torch.cuda.is_available():
        print("there is no GPU here that torch sees, and nothing else shows how fast a kernel is", file=sys.stderr)
        return NO_GPU
    device, capability = torch.device("cuda"), torch.cuda.get_device_capability()
    if capability < (8, 0):
        print(f"the kernels need compute capability 8.0, this GPU has {capability}", file=sys.stderr)
        return NO_GPU
    kernels = [args.kernel] if args.kernel else KERNELS
    todo = works(compiled_for(capability), kernels, getattr(torch, args.dtype), args.head_dims)
    if not todo:
        print(f"no entry of {args.kernel} for {args.dtype} and head dims {args.head_dims}", file=sys.stderr)
        return 2
    where = environment(device)
    print(f"{where['device']}, {args.dtype}: {len(todo)} entries in {args.seconds:.0f} s at most", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))  # by way of `finally`
    timer = partial(measure, device=device, turns=args.turns)
    done: list[Found] = []
    try:
        for found in tune_all(todo, lambda work: Launcher(work, device).prepare, timer, args.seconds):
            done.append(found)
            print("\n".join(lines(found)), flush=True)
            if args.csv and found.timings:
                append_rows(args.csv, [{**one, **where} for one in rows(found)])
    finally:
        for work in todo[len(done) :]:
            print(f"{work.name}\n  not reached")
        pasted = list(replacements(done))
        print("\n".join(["kernels/motion_attention_table.py:", *pasted] if pasted else ["the table stays as it is"]))
    return FAILED if any(found.failure for found in done) else 0


if __name__ == "__main__":
    raise SystemExit(main())
