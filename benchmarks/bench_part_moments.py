"""part_moments beside plain PyTorch, eager and compiled, forward and with its backward.

Run: python -m benchmarks.bench_part_moments [--device cpu] [--threads 2 | --cpu-time] [--dtypes float32]
         [--csv FILE]

The peers are the shortest way to write it in PyTorch (a softmax, a matrix product, an einsum) and ``torch.compile`` of
that. The operator's own reference, which hides rows as well, is shown beside them. Results are compared before they are
timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.timing import Call, Clock, append_rows, copy_bandwidth, environment, input_copies, measure, row
from motarfuse import reference
from motarfuse.ops import part_moments

SHAPES = ((64, 8, (16, 8)), (32, 10, (64, 32)))  # batch, parts, grid
GPU_SHAPES = (*SHAPES, (512, 8, (16, 8)), (512, 32, (64, 32)))
TEMPERATURE = 0.1
PEERS = ("eager", "torch.compile")
Moments = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Function = Callable[[torch.Tensor, torch.Tensor], Moments]


def eager(logits: torch.Tensor, affine: torch.Tensor, cells: torch.Tensor) -> Moments:
    """The formula as one would write it, in the inputs' dtype."""
    probability = torch.softmax(logits / TEMPERATURE, dim=-1)
    affines = torch.einsum("bkn,bknij->bkij", probability, affine)
    return probability @ cells, affines, probability.square().sum(dim=-1)


def implementations(grid: tuple[int, int], cells: torch.Tensor, native: str) -> dict[str, Function]:
    """What is timed, by name; the first is given twice, to show the noise."""
    compiled = torch.compile(eager, fullgraph=True, dynamic=False)

    def run(impl: str) -> Function:
        return lambda logits, affine: part_moments(logits, affine, grid=grid, temperature=TEMPERATURE, impl=impl)

    return {
        native: run(native),
        f"{native}, again": run(native),
        "reference": run("reference"),
        "eager": lambda logits, affine: eager(logits, affine, cells),
        "torch.compile": lambda logits, affine: compiled(logits, affine, cells),
    }


def forward_call(function: Function, inputs: list[tuple[torch.Tensor, torch.Tensor]]) -> Call:
    def call(index: int) -> object:
        logits, affine = inputs[index % len(inputs)]
        with torch.no_grad():
            return function(logits, affine)

    return call


def full_call(
    function: Function, inputs: list[tuple[torch.Tensor, torch.Tensor]], incoming: list[torch.Tensor]
) -> Call:
    def call(index: int) -> object:
        logits, affine = inputs[index % len(inputs)]
        return torch.autograd.grad(function(logits, affine), (logits, affine), incoming)

    return call


def compare(functions: dict[str, Function], logits: torch.Tensor, affine: torch.Tensor) -> None:
    """Raises AssertionError unless all of them compute the same, results and gradients."""
    expected: list[torch.Tensor] | None = None
    for name, function in functions.items():
        results = function(logits, affine)
        loss = torch.cat([result.float().flatten() for result in results]).square().sum()
        found = [*results, *torch.autograd.grad(loss, (logits, affine))]
        if expected is None:
            expected = found
        tolerance = 20 * torch.finfo(logits.dtype).eps
        for value, wanted in zip(found, expected, strict=True):
            error, scale = (value - wanted).abs().max().item(), max(1.0, wanted.abs().max().item())
            if not error <= tolerance * scale:
                raise AssertionError(f"{name} differs from {next(iter(functions))} by {error:.1e} of {scale:.1e}")


def prepare(
    batch: int, parts: int, grid: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> dict[str, tuple[dict[str, Call], int]]:
    """By mode ("fwd" and "full"): the calls of one shape, compared, and the bytes that each must move."""
    cells = reference.cell_centers(grid, device=device, dtype=dtype)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(batch, parts, *shape, generator=generator).to(device, dtype)

    bytes_read = batch * parts * len(cells) * 5 * dtype.itemsize
    copies = input_copies(bytes_read, device)
    inputs = [(draw(len(cells)).requires_grad_(), draw(len(cells), 2, 2).requires_grad_()) for _ in range(copies)]
    incoming = [draw(2), draw(2, 2), draw()]
    functions = implementations(grid, cells, device.type)
    compare(functions, *inputs[0])
    forward = {name: forward_call(function, inputs) for name, function in functions.items()}
    full = {name: full_call(function, inputs, incoming) for name, function in functions.items()}
    # The backward reads everything once more and writes as much.
    return {"fwd": (forward, bytes_read), "full": (full, 3 * bytes_read)}


def bench(
    batch: int,
    parts: int,
    grid: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    ceiling: float,
    clock: Clock,
) -> Iterator[list[dict[str, str]]]:
    """Rows of one shape, a mode at a time, without the columns of the environment."""
    shape = f"{batch}x{parts}x{grid[0]}x{grid[1]}"
    for mode, (calls, size_bytes) in prepare(batch, parts, grid, dtype, device).items():
        timings = measure(calls, device, clock=clock)
        least = size_bytes / ceiling
        best_peer = min(timings[peer].median for peer in PEERS)
        rows: list[dict[str, str]] = []
        for name, timing in timings.items():
            against_eager, against_compiled = (timings[peer].median / timing.median for peer in PEERS)
            print(
                f"{shape:14} {mode:5} {dtype!s:15} {name:14} {timing.median * 1e6:9.1f} us "
                f"[{timing.p20 * 1e6:.1f}, {timing.p80 * 1e6:.1f}]  {against_eager:5.2f} x eager  "
                f"{against_compiled:5.2f} x compiled  {least / timing.median:.2f} of copy",
                flush=True,
            )
            fraction, ratio = least / timing.median, best_peer / timing.median
            rows.append(
                row("part_moments", name, mode, shape, dtype, timing.scaled(1e6), fraction=fraction, ratio=ratio)
            )
        yield rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--dtypes", default="float32", help="comma-separated: float32, bfloat16, float16")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread by its CPU time, on a machine that is shared"
    )
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(1 if args.cpu_time else args.threads)
    clock = time.thread_time if args.cpu_time else time.perf_counter
    device = torch.device(args.device)
    ceiling = copy_bandwidth(device, clock)
    where = environment(device, clock)
    print(f"{where['device']}; copy {ceiling / 1e9:.1f} GB/s")
    for name in args.dtypes.split(","):
        for batch, parts, grid in GPU_SHAPES if device.type == "cuda" else SHAPES:
            for rows in bench(batch, parts, grid, getattr(torch, name), device, ceiling, clock):
                if args.csv:
                    append_rows(args.csv, [{**one, **where} for one in rows])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
