"""What the benchmarks of operators share: variants, modes, rows, the command line.

A variant is a function of the operator's tensors. The compiled kernels come first (the first one twice, which shows the
noise); their peers are the operator's own reference and the shortest way to write it in PyTorch, both in eager mode and
under ``torch.compile``, and what else an operator names. Results and gradients are compared before anything is timed.
Modes: ``fwd``; ``full``, forward and backward; ``memory fwd`` and ``memory full``, the most bytes that a call holds
beyond its results and gradients.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import (
    Call,
    Clock,
    Timing,
    append_rows,
    copy_bandwidth,
    environment,
    input_copies,
    measure,
    peak_memory,
    row,
)
from motarfuse.ops import operators

Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., Tensors]
REFERENCE, EAGER = "reference", "eager"
COMPILED = "{}, compiled"
PEERS = (REFERENCE, COMPILED.format(REFERENCE), EAGER, COMPILED.format(EAGER))
TIMED_MODES = ("fwd", "full")
MEMORY_MODES = ("memory fwd", "memory full")


@dataclass(frozen=True)
class BenchedOperator:
    """One operator to measure.

    Attributes:
        name: As in ``motarfuse.ops``.
        shapes: Measured on a CPU.
        gpu_shapes: Measured on a GPU.
        inputs: Draws the tensors of a shape; those of a float type get gradients.
        call: The public function on them, by ``call(shape, impl)``.
        eager: The shortest way to write it, by ``eager(shape, dtype, device)``.
        read: Bytes that a forward must read, of a shape and an element size.
        written: Bytes that it must write.
        peers: More of them by name, such as other libraries' kernels: as ``eager``, or None where one cannot run.
        jumps: How far results and gradients may be apart, as a share of their root mean square, where derivatives jump
            and rounding decides on which side of the jump a number lies.
    """

    name: str
    shapes: Sequence[Any]
    gpu_shapes: Sequence[Any]
    inputs: Callable[[Any, Callable[..., torch.Tensor]], Tensors]
    call: Callable[[Any, str], Function]
    eager: Callable[[Any, torch.dtype, torch.device], Function]
    read: Callable[[Any, int], int]
    written: Callable[[Any, int], int]
    peers: Mapping[str, Callable[[Any, torch.dtype, torch.device], Function | None]] = field(default_factory=dict)
    jumps: float = 0.0

    def bytes_moved(self, mode: str, shape: Any, itemsize: int) -> int:
        """The least: a backward reads inputs and the results' gradients and writes the inputs' gradients."""
        read, written = self.read(shape, itemsize), self.written(shape, itemsize)
        return read + written if mode == "fwd" else 3 * read + 2 * written


class Bench:
    """The variants of one shape, compared.

    Args:
        operator, shape: What.
        dtype: Of all tensors.
        device: Where.
        compiled: Whether ``torch.compile`` is among the peers.
    """

    def __init__(
        self, operator: BenchedOperator, shape: Any, dtype: torch.dtype, device: torch.device, *, compiled: bool = True
    ) -> None:
        self.operator, self.shape, self.dtype, self.device = operator, shape, dtype, device
        generator = torch.Generator().manual_seed(0)

        def draw(*sizes: int) -> torch.Tensor:
            return torch.randn(*sizes, generator=generator).to(device, dtype)

        copies = input_copies(operator.read(shape, dtype.itemsize), device)
        self.inputs = [
            tuple(one.requires_grad_() if one.is_floating_point() else one for one in operator.inputs(shape, draw))
            for _ in range(copies)
        ]
        self.functions = self._functions(compiled)
        self.native = next(iter(self.functions))
        self.incoming = [draw(*result.shape) for result in self.functions[self.native](*self.inputs[0])]
        self._compare()

    def _functions(self, compiled: bool) -> dict[str, Function]:
        operator, shape = self.operator, self.shape
        if compiled:
            torch.compiler.reset()  # or a function of many shapes meets the limit of its recompilations
        eager = operator.eager(shape, self.dtype, self.device)
        peers = {REFERENCE: operator.call(shape, REFERENCE), EAGER: eager}
        kernels = [name for name in self._kernels() if name != REFERENCE]
        functions = {name: operator.call(shape, name) for name in kernels}
        if kernels:
            functions[f"{kernels[0]}, again"] = functions[kernels[0]]
        for name, function in peers.items():
            functions[name] = function
            if compiled:
                functions[COMPILED.format(name)] = torch.compile(function, fullgraph=True, dynamic=False)
        for name, make in operator.peers.items():
            if (peer := make(self.shape, self.dtype, self.device)) is not None:
                functions[name] = peer
        return functions

    def _kernels(self) -> list[str]:
        """The backends that take these inputs, the one that ``auto`` takes first."""
        able = []
        for name in operators()[self.operator.name].backends:
            try:
                with torch.no_grad():
                    self.operator.call(self.shape, name)(*self.inputs[0])
            except RuntimeError:
                continue
            if name != "triton" or self.device.type == "cuda":  # its interpreter is for tests
                able.append(name)
        return able

    def leaves(self, index: int) -> Tensors:
        """The inputs that get gradients, of one of the copies."""
        return tuple(tensor for tensor in self.inputs[index] if tensor.requires_grad)

    def _compare(self) -> None:
        """Raises AssertionError unless all variants compute the same, results and gradients."""
        expected: Tensors | None = None
        # Sums of many numbers, in other orders.
        tolerance = 100 * torch.finfo(self.dtype).eps + self.operator.jumps
        for name, function in self.functions.items():
            results = function(*self.inputs[0])
            found = (*results, *torch.autograd.grad(results, self.leaves(0), self.incoming))
            if expected is None:
                expected = found
            for value, wanted in zip(found, expected, strict=True):
                error, scale = _root_mean_square(value - wanted), _root_mean_square(wanted)
                if not error <= tolerance * scale:
                    raise AssertionError(f"{name} differs from {self.native} by {error:.1e} of {scale:.1e}")

    def call(self, name: str, mode: str) -> Call:
        """Variant ``name`` as one call, for the timer."""
        function, inputs, incoming = self.functions[name], self.inputs, self.incoming

        def forward(index: int) -> object:
            with torch.no_grad():
                return function(*inputs[index % len(inputs)])

        def full(index: int) -> object:
            chosen = index % len(inputs)
            return torch.autograd.grad(function(*inputs[chosen]), self.leaves(chosen), incoming)

        return forward if mode.endswith("fwd") else full

    def timings(self, mode: str, *, turns: int = 31, clock: Clock = time.perf_counter) -> dict[str, Timing]:
        """By variant: seconds, or bytes beyond results and gradients for the modes of memory."""
        if mode in TIMED_MODES:
            return measure({name: self.call(name, mode) for name in self.functions}, self.device, turns=turns,
                           clock=clock)  # fmt: skip
        kept = self.incoming if mode.endswith("fwd") else (*self.incoming, *self.leaves(0))
        results = sum(tensor.numel() * tensor.element_size() for tensor in kept)
        found = {}
        for name in self.functions:
            call = partial(self.call(name, mode), 0)
            call()
            size = float(max(0, peak_memory(call, self.device) - results))
            found[name] = Timing(size, size, size)
        return found

    def peers(self) -> tuple[str, ...]:
        """Names of all that the kernels are compared with."""
        return (*PEERS, *self.operator.peers)

    def ratio(self, found: dict[str, Timing], name: str) -> float | None:
        """The best peer's quantity over that of ``name``."""
        rivals = [found[peer].median for peer in self.peers() if peer in found]
        return min(rivals) / found[name].median if found[name].median else None

    def fraction(self, mode: str, timing: Timing, bandwidth: float) -> float:
        """Of the ceiling: the time that moving the least bytes takes over the time taken."""
        return self.operator.bytes_moved(mode, self.shape, self.dtype.itemsize) / bandwidth / timing.median

    def rows(self, mode: str, bandwidth: float, clock: Clock) -> list[dict[str, str]]:
        """Prints and returns the rows of a mode, without the columns of the environment."""
        found = self.timings(mode, clock=clock)
        timed = mode in TIMED_MODES
        rows = []
        for name, timing in found.items():
            scaled, unit = (timing.scaled(1e6), "us") if timed else (timing.scaled(1e-3), "KB")
            against = [
                f"{found[peer].median / timing.median:5.2f} x {peer}"
                for peer in self.peers()
                if peer in found and timing.median and not name.startswith(peer)
            ]
            fraction = self.fraction(mode, timing, bandwidth) if timed else None
            ceiling = "" if fraction is None else f"  {fraction:.2f} of copy"
            print(
                f"{self.shape!s:18} {mode:11} {self.dtype!s:15} {name:19} {scaled.median:10.1f} {unit} "
                f"[{scaled.p20:.1f}, {scaled.p80:.1f}]  {'  '.join(against)}{ceiling}",
                flush=True,
            )
            ratio = self.ratio(found, name)
            rows.append(row(self.operator.name, name, mode, str(self.shape), self.dtype, scaled, unit=unit,
                            fraction=fraction, ratio=ratio))  # fmt: skip
        return rows


def _root_mean_square(tensor: torch.Tensor) -> float:
    return tensor.double().square().mean().sqrt().item() if tensor.numel() else 0.0


def main(operator: BenchedOperator, arguments: Sequence[str] | None = None) -> int:
    """The command line of one operator's benchmark."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.bench_{operator.name}", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--dtypes", default="float32", help="comma-separated: float32, bfloat16, float16")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread by its CPU time, on a machine that is shared"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1 if args.cpu_time else args.threads)
    clock = time.thread_time if args.cpu_time else time.perf_counter
    device = torch.device(args.device)
    bandwidth = copy_bandwidth(device, clock)
    where = environment(device, clock)
    print(f"{where['device']}; copy {bandwidth / 1e9:.1f} GB/s")
    for rows in _all_rows(operator, args, device, bandwidth, clock):
        if args.csv:
            append_rows(args.csv, [{**one, **where} for one in rows])
    return 0


def _all_rows(
    operator: BenchedOperator, args: Any, device: torch.device, bandwidth: float, clock: Clock
) -> Iterator[list[dict[str, str]]]:
    for name in args.dtypes.split(","):
        for shape in operator.gpu_shapes if device.type == "cuda" else operator.shapes:
            bench = Bench(operator, shape, getattr(torch, name), device, compiled=not args.no_compile)
            for mode in (*TIMED_MODES, *MEMORY_MODES):
                yield bench.rows(mode, bandwidth, clock)
