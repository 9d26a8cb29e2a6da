"""The one benchmark timer: variants take turns, medians with p20 and p80, rows of one CSV format.

Variants are interleaved, so that a slow moment of the machine meets all of them, and the first one should be given
twice: the two show the noise. A call takes its number, to rotate over inputs that the last-level cache cannot hold. On
a GPU, the calls of a turn are one CUDA graph, which leaves the host out; on a CPU they are timed as users call them.

Run: python -m benchmarks.timing [--device cuda] [--csv FILE] for the two ceilings alone.

On a CPU that other work shares, wall-clock times of parallel code mean little. There, `time.thread_time` with one
thread compares what the variants compute; rows measured so say it in their device column.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

COLUMNS = (
    "operator", "implementation", "mode", "shape", "dtype", "median", "p20", "p80", "unit", "fraction_of_ceiling",
    "ratio_to_best_peer", "device", "driver", "torch", "triton", "nvcc", "commit", "date",
)  # fmt: skip

Call = Callable[[int], object]
Clock = Callable[[], float]
# A sample shorter than this measures the clock and the scheduler.
SAMPLE_SECONDS = 5e-3
# What torch and its compilers raise where an implementation cannot take a call (out of memory is a RuntimeError).
REFUSALS = (RuntimeError, ValueError, TypeError, ImportError)


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median, 20th and 80th percentile over the turns."""

    median: float
    p20: float
    p80: float

    def scaled(self, factor: float) -> Timing:
        """The time of ``factor`` times as much of the same work."""
        return Timing(self.median * factor, self.p20 * factor, self.p80 * factor)


def measure(
    variants: Mapping[str, Call],
    device: torch.device,
    *,
    turns: int = 31,
    clock: Clock = time.perf_counter,
    left_out: dict[str, str] | None = None,
) -> dict[str, Timing]:
    """Times variants that compute the same.

    Args:
        variants: By name; each is called with 0, 1, 2, ... and must not depend on another's results.
        device: Where they run: a CPU or a CUDA device.
        turns: Samples of each variant.
        clock: Of a CPU; ``time.thread_time`` is refused with more than one thread, whose work it would not see.
        left_out: Where it is given, a variant that cannot run here, or not in a CUDA graph, is left out of the result
            and gets its reason there; without it the error is raised.
    """
    if clock is time.thread_time and torch.get_num_threads() > 1:
        raise ValueError(f"the thread clock sees one thread, but torch uses {torch.get_num_threads()}")
    samplers: dict[str, Callable[[], float]] = {}
    for name, call in variants.items():
        try:
            samplers[name] = _sampler(call, device, clock)
        except REFUSALS as error:
            if left_out is None:
                raise
            left_out[name] = short_reason(error)
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for turn in range(turns):
        order = list(samplers) if turn % 2 == 0 else list(reversed(samplers))
        for name in order:
            seconds[name].append(samplers[name]())
    return {name: _timing(values) for name, values in seconds.items()}


def _timing(values: Sequence[float]) -> Timing:
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return Timing(statistics.median(values), cuts[0], cuts[3])


def _sampler(call: Call, device: torch.device, clock: Clock) -> Callable[[], float]:
    """A function that runs a sample and returns its seconds a call."""
    for index in range(3):
        call(index)
    _synchronise(device)
    start = time.perf_counter()
    call(0)
    _synchronise(device)
    calls = max(1, min(1000, round(SAMPLE_SECONDS / max(time.perf_counter() - start, 1e-6))))
    if device.type == "cuda":
        return _graph_sampler(call, device, max(calls, 10))

    def sample() -> float:
        start = clock()
        for index in range(calls):
            call(index)
        return (clock() - start) / calls

    return sample


@lru_cache(maxsize=1)
def capture_stream() -> torch.cuda.Stream:
    """The stream whose work is captured. A backward runs on its forward's stream: alone, it needs its forward here."""
    return torch.cuda.Stream()


def _graph_sampler(call: Call, device: torch.device, calls: int) -> Callable[[], float]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=capture_stream()):
        for index in range(calls):
            call(index)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample() -> float:
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) * 1e-3 / calls

    sample()
    return sample


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def short_reason(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters of it."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def input_copies(size_bytes: int, device: torch.device) -> int:
    """How many copies of inputs of this size to rotate over, so that a GPU's L2 holds none; 1 on a CPU."""
    if device.type != "cuda":
        return 1
    return max(1, -(-3 * torch.cuda.get_device_properties(device).L2_cache_size // size_bytes))


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors allocated by a call hold at once, beyond what was allocated before it.

    Call it once before: libraries allocate their workspaces at the first call.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write a line for each start and stop
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        kept = call()  # freed within the profile, a result would still count; freed after, it is no event
    del kept
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@dataclass(frozen=True)
class Ceilings:
    """What this device does at most, measured in this run.

    Attributes:
        copy: Timing and bytes read and written of a copy of 256 MB.
        product: Timing and FLOPs of a square matrix product of random numbers, bf16 on a GPU, fp32 on a CPU.
    """

    copy: tuple[Timing, int]
    product: tuple[Timing, int]

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.copy[1] / self.copy[0].median

    @property
    def matrix_rate(self) -> float:
        """FLOP/s."""
        return self.product[1] / self.product[0].median

    def least_seconds(self, size_bytes: float, flops: float) -> float:
        """No faster can be what moves so many bytes and does so many FLOPs in matrix products."""
        return max(size_bytes / self.bandwidth, flops / self.matrix_rate)

    def __str__(self) -> str:
        return f"copy {self.bandwidth / 1e9:.1f} GB/s, matrix product {self.matrix_rate / 1e12:.3g} TFLOP/s"


def ceilings(device: torch.device, clock: Clock = time.perf_counter) -> Ceilings:
    """Measures both."""
    return Ceilings(_copy(device, clock), _product(device, clock))


def copy_bandwidth(device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Bytes read and written a second by a copy of 256 MB, the ceiling for operators bound by memory."""
    timing, size_bytes = _copy(device, clock)
    return size_bytes / timing.median


def _copy(device: torch.device, clock: Clock) -> tuple[Timing, int]:
    source = torch.randn(1 << 26, device=device)
    target = torch.empty_like(source)
    timing = measure({"copy": lambda _: target.copy_(source)}, device, turns=11, clock=clock)["copy"]
    return timing, 2 * source.numel() * source.element_size()


def _product(device: torch.device, clock: Clock) -> tuple[Timing, int]:
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    timing = measure({"product": lambda _: torch.mm(left, right, out=out)}, device, turns=11, clock=clock)["product"]
    return timing, 2 * size**3


def row(
    operator: str,
    implementation: str,
    mode: str,
    shape: str,
    dtype: torch.dtype,
    timing: Timing,
    *,
    unit: str = "us",
    fraction: float | None = None,
    ratio: float | None = None,
) -> dict[str, str]:
    """The columns of one measurement, without those of `environment`.

    Args:
        operator, implementation, mode, shape, dtype: As the columns.
        timing: In the unit, "us", or a quantity other than time.
        unit: Of ``timing``.
        fraction: Of the ceiling; None where there is none.
        ratio: Time of the best peer over this one's; None where there is no peer.
    """
    return {
        "operator": operator,
        "implementation": implementation,
        "mode": mode,
        "shape": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "median": f"{timing.median:.1f}",
        "p20": f"{timing.p20:.1f}",
        "p80": f"{timing.p80:.1f}",
        "unit": unit,
        "fraction_of_ceiling": "" if fraction is None else f"{fraction:.3f}",
        "ratio_to_best_peer": "" if ratio is None else f"{ratio:.2f}",
    }


def environment(device: torch.device, clock: Clock = time.perf_counter) -> dict[str, str]:
    """The columns that say where, when and by which clock a row was measured."""
    name, driver = _processor(), ""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    else:
        name += f", {torch.get_num_threads()} threads" if clock is time.perf_counter else ", CPU time of 1 thread"
    release = [word for word in _output("nvcc", "--version").split() if word.startswith("V")]
    return {
        "device": name,
        "driver": driver,
        "torch": torch.__version__,
        "triton": _triton_version(),
        "nvcc": release[-1].removeprefix("V") if release else "",
        "commit": _output("git", "describe", "--always", "--dirty", "--abbrev=12"),
        "date": datetime.date.today().isoformat(),
    }


def append_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Adds rows with the columns of `COLUMNS` to a CSV file, which gets its header when it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return str(triton.__version__)


def _output(*command: str) -> str:
    """A program's output, empty where there is no such program."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    ).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description="The two ceilings of a device: copy bandwidth and matrix rate.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    found, where = ceilings(device), environment(device)
    print(f"{where['device']}: {found}")
    if args.csv is not None:
        product_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        rows = []
        for name, (timing, amount), unit, dtype in (
            ("copy", found.copy, "GB/s", torch.float32),
            ("matrix product", found.product, "GFLOP/s", product_dtype),
        ):
            rates = Timing(*(amount / seconds / 1e9 for seconds in (timing.median, timing.p80, timing.p20)))
            shape = f"{amount} {'bytes' if name == 'copy' else 'FLOP'}"
            rows.append({**row("ceiling", name, "fwd", shape, dtype, rates, unit=unit), **where})
        append_rows(args.csv, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
