"""The one benchmark timer: variants take turns, medians with p20 and p80, rows of one CSV format.

Variants are interleaved, so that a slow moment of the machine meets all of them, and the first one should be given
twice: the two show the noise. A call takes its number, to rotate over inputs that the last-level cache cannot hold. On
a GPU, the calls of a turn are one CUDA graph, which leaves the host out; on a CPU they are timed as users call them.

On a CPU that other work shares, wall-clock times of parallel code mean little. There, `time.thread_time` with one
thread compares what the variants compute; rows measured so say it in their device column.
"""

from __future__ import annotations

import csv
import datetime
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    variants: Mapping[str, Call], device: torch.device, *, turns: int = 31, clock: Clock = time.perf_counter
) -> dict[str, Timing]:
    """Times variants that compute the same.

    Args:
        variants: By name; each is called with 0, 1, 2, ... and must not depend on another's results.
        device: Where they run: a CPU or a CUDA device.
        turns: Samples of each variant.
        clock: Of a CPU; ``time.thread_time`` is refused with more than one thread, whose work it would not see.
    """
    if clock is time.thread_time and torch.get_num_threads() > 1:
        raise ValueError(f"the thread clock sees one thread, but torch uses {torch.get_num_threads()}")
    samplers = {name: _sampler(call, device, clock) for name, call in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
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


def _graph_sampler(call: Call, device: torch.device, calls: int) -> Callable[[], float]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
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


def copy_bandwidth(device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Bytes read and written a second by a copy of 256 MB, this run's ceiling for operators bound by memory."""
    source = torch.randn(1 << 26, device=device)
    target = torch.empty_like(source)
    timing = measure({"copy": lambda _: target.copy_(source)}, device, turns=11, clock=clock)["copy"]
    return 2 * source.numel() * source.element_size() / timing.median


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
