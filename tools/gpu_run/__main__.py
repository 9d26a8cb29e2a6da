"""The GPU run: builds, tests, measures and checks everything that needs a GPU, in bounded time and without a network.

    python3 -m tools.gpu_run                            everything, nine minutes at most
    python3 -m tools.gpu_run --only motion_attention --limit 5 --out /tmp/run
    python3 -m tools.gpu_run --dry-run                  the plan, on any machine

Stages: build (the native parts, for this GPU only), tests (pytest -m gpu), with --tune the operators' tuning, ceilings
(copy bandwidth and matrix rate), bench (rows are added as they are measured), and sanitizer (compute-sanitizer's
memcheck, racecheck and initcheck over a short selection). Each gets a share of the time that is left; one that outruns
it is ended with everything it started, and what it has written stays. All output is in gpu-run.log; a short table comes
last and is kept in summary.txt.

Exit status: 0; 1 when a stage failed, or the build, the tests or a sanitizer did not end in their time (benchmarks cut
short and skipped stages are said, and are no failures); 2 for a wrong call; 3 where there is no usable NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.gpu_run.environment import REPOSITORY, Gpu, find_gpu, find_python
from tools.gpu_run.operators import OPERATORS, Operator
from tools.gpu_run.stages import SANITIZER_ERROR, SANITIZERS, Outcome, Stage, run_stages, shares
from tools.gpu_run.table import measurements, stages_table

FAILED, NO_GPU = 1, 3
# The kinds of stages in their order, and what each may take of the time left, relative to those after it.
WEIGHTS = {"build": 3.0, "tests": 2.5, "tune": 3.0, "ceilings": 0.3, "bench": 4.0, "sanitizer": 3.0}
BUILD = REPOSITORY / "build" / "gpu-run"
RESULTS = REPOSITORY / "benchmarks" / "results"
CUDA_PROGRAMS = Path("/usr/local/cuda/bin")


def plan(chosen: Mapping[str, Operator], kinds: Sequence[str], rows: Path, python: str, gpu: Gpu | None) -> list[Stage]:
    """The stages of the chosen operators.

    Args:
        chosen: By name; the tests are all of them where these are all operators.
        kinds: Names of `WEIGHTS`.
        rows: Folder for CSV files.
        python: Runs every command.
        gpu: Which architecture to build for; None leaves it to the build.
    """
    stages = []
    command: tuple[str, ...]
    if "build" in kinds:
        has_nvcc = (shutil.which("nvcc") or (CUDA_PROGRAMS / "nvcc").exists()) and gpu is not None
        environment = {}
        if gpu is not None and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            environment["TORCH_CUDA_ARCH_LIST"] = gpu.architecture
        command = (python, "-m", "motarfuse", "build", "--cuda", "1" if has_nvcc else "auto")
        stages.append(Stage("build", command, WEIGHTS["build"], environment=environment))
    if "tests" in kinds:
        files = [file for one in chosen.values() for pattern in one.tests for file in sorted(REPOSITORY.glob(pattern))]
        names = () if len(chosen) == len(OPERATORS) else tuple(str(file.relative_to(REPOSITORY)) for file in files)
        skip = "" if files else "there are no test files"
        command = (python, "-m", "pytest", "-m", "gpu and not slow", "-v", "-rfE", *names)
        stages.append(Stage("tests", command, WEIGHTS["tests"], skip=skip))
    if "tune" in kinds:
        for name, one in chosen.items():
            command = (python, *(one.tune or ()), "--csv", str(rows / f"{name}_tuning.csv"))
            skip = "" if one.tune else "nothing is to be tuned"
            stages.append(Stage(f"tune {name}", command, WEIGHTS["tune"] / len(chosen), must_end=False, skip=skip))
    if "ceilings" in kinds:
        command = (python, "-m", "benchmarks.timing", "--device", "cuda", "--csv", str(rows / "ceilings.csv"))
        stages.append(Stage("ceilings", command, WEIGHTS["ceilings"], must_end=False))
    if "bench" in kinds:
        total = sum(one.weight for one in chosen.values())
        for name, one in chosen.items():
            command = (python, *one.bench, "--csv", str(rows / f"{name}.csv"))
            stages.append(Stage(f"bench {name}", command, WEIGHTS["bench"] * one.weight / total, must_end=False))
    return stages + (_sanitizer_stages(chosen, python) if "sanitizer" in kinds else [])


def _sanitizer_stages(chosen: Mapping[str, Operator], python: str) -> list[Stage]:
    """One for each checker and operator; checkers first, so that an early end leaves every operator with some."""
    program = shutil.which("compute-sanitizer") or str(CUDA_PROGRAMS / "compute-sanitizer")
    skip = "" if Path(program).exists() else "compute-sanitizer is not installed"
    option = "--kernel-name" if skip else _kernel_option(program)
    checked = {name: one for name, one in chosen.items() if one.sanitize is not None}
    stages = []
    for tool in SANITIZERS:
        for name, one in checked.items():
            assert one.sanitize is not None
            kernels = (word for part in one.kernels for word in (option, f"kns={part}"))
            command = (
                *(program, "--tool", tool, "--error-exitcode", str(SANITIZER_ERROR)),
                *("--target-processes", "application-only", *kernels, python, *one.sanitize),
            )
            # In the large blocks of torch's allocator, an access beyond a tensor would still be a valid one.
            environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            weight = WEIGHTS["sanitizer"] / len(SANITIZERS) / len(checked)
            stages.append(Stage(f"{tool} {name}", command, weight, environment=environment, skip=skip))
    return stages


def _kernel_option(program: str) -> str:
    """Older releases call it otherwise."""
    result = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    return "--kernel-name" if "--kernel-name" in result.stdout + result.stderr else "--kernel-regex"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    kinds = [kind for kind in WEIGHTS if kind != "tune"]
    parser = argparse.ArgumentParser(
        prog="gpu_run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=OPERATORS, help="this operator alone; may be repeated")
    parser.add_argument("--stages", nargs="+", default=kinds, choices=list(WEIGHTS), help="these kinds alone")
    parser.add_argument("--tune", action="store_true", help="tune as well")
    parser.add_argument("--limit", type=float, default=9.0, help="minutes for everything (default: %(default)s)")
    where = f"{BUILD.relative_to(REPOSITORY)}, rows in {RESULTS.relative_to(REPOSITORY)}"
    parser.add_argument("--out", type=Path, help=f"folder for log, table and rows (default: {where})")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and end")
    args = parser.parse_args(arguments)
    if not 0 < args.limit < 1e6:
        parser.error("--limit is a positive number of minutes")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    start = time.monotonic()
    args = parse(arguments)
    gpu = find_gpu()
    chosen = {name: OPERATORS[name] for name in dict.fromkeys(args.only or OPERATORS)}
    kinds = [*args.stages, *(["tune"] if args.tune else [])]
    folder = args.out.resolve() if args.out else BUILD
    rows = folder if args.out else RESULTS
    if args.dry_run:
        show(plan(chosen, kinds, rows, "python", gpu), args.limit * 60, gpu)
        return 0
    if gpu is None:
        print("there is no NVIDIA GPU here (nvidia-smi finds none); --dry-run shows what would be run", file=sys.stderr)
        return NO_GPU
    python, problem = find_python(BUILD / "venv")
    if problem:
        print(f"here is an {gpu.name}, but {problem}", file=sys.stderr)
        return NO_GPU
    print(f"{gpu.name}, driver {gpu.driver}; {python}; log: {folder / 'gpu-run.log'}", flush=True)
    return execute(plan(chosen, kinds, rows, python, gpu), args.limit * 60 - (time.monotonic() - start), folder, rows)


def show(stages: Sequence[Stage], seconds: float, gpu: Gpu | None) -> None:
    """The plan, with the most that each stage may take if none ends early."""
    print(f"{gpu.name}:" if gpu else "no NVIDIA GPU here (nvidia-smi finds none); the plan for one:")
    for stage, share in zip(stages, shares(stages, seconds), strict=True):
        print(f"{stage.name:26} {f'skipped: {stage.skip}' if stage.skip else f'{share:4.0f} s'}")
        print(f"    {shlex.join(stage.command)}")


def execute(stages: Sequence[Stage], seconds: float, folder: Path, rows: Path) -> int:
    """Runs the stages, writes log and table into ``folder`` even if it is ended early, and returns the exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    rows.mkdir(parents=True, exist_ok=True)
    known = {file: len(file.read_text().splitlines()) for file in rows.glob("*.csv")}
    log = folder / "gpu-run.log"
    log.write_text("")
    outcomes: list[Outcome] = []
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))  # by way of every `finally`
    try:
        for outcome in run_stages(stages, seconds, log):
            outcomes += [outcome]
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    finally:
        signal.signal(signal.SIGTERM, previous)
        outcomes += [Outcome(stage.name, "not reached") for stage in stages[len(outcomes) :]]
        table = "\n".join([*stages_table(outcomes), "", *measurements(rows, known)])
        (folder / "summary.txt").write_text(table + "\n")
        print(f"\n{table}", flush=True)
    return FAILED if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
