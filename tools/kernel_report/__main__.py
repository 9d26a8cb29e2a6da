"""Compiles every kernel without a GPU, reports what became of it, and fails on regressions.

Fails when a kernel misses a demand (no spills, matrix instructions, exact fp32, shared memory), when its registers,
shared memory, spills or instructions have grown against the committed table beyond a margin, and when kernels are new
or gone; `--update` writes the table anew. The margins hold for the compilers that the table names: numbers of others
are only listed. Without Triton or without nvcc it says so and leaves that half out.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from motarfuse import _toolchain
from tools.kernel_report import cuda_sources, table, triton_cases

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TABLE = REPOSITORY / "docs" / "kernels" / "static_report.csv"
CACHE = REPOSITORY / "build" / "kernel_report"


class Report:
    """What was measured.

    Attributes:
        rows: Numbers of everything that compiled.
        failures: Sentences about what is wrong.
        covered: Starts of `table.Row.compiler` and architectures that were measured.
        broken: (case or file, architecture) that did not compile.
    """

    def __init__(self) -> None:
        self.rows: list[table.Row] = []
        self.failures: list[str] = []
        self.covered: set[tuple[str, str]] = set()
        self.broken: set[tuple[str, str]] = set()

    def committed(self, rows: list[table.Row], only: str) -> list[table.Row]:
        """The rows of the table that this run measures anew."""
        return [
            row
            for row in rows
            if only in row.name
            and (row.compiler.split()[0], row.architecture) in self.covered
            and row.key not in self.broken
            and (row.name.split()[0], row.architecture) not in self.broken
        ]


def kernel_modules() -> list[str]:
    """Every module of ``kernels/``."""
    files = sorted((REPOSITORY / "kernels").glob("*.py"))
    return [f"motarfuse.kernels.{path.stem}" for path in files if path.stem != "__init__"]


def report_triton(report: Report, pool: ProcessPoolExecutor, modules: list[str], args: argparse.Namespace) -> None:
    """Adds the Triton kernels."""
    found = pool.submit(triton_cases.find, modules).result()
    report.failures += found.problems
    chosen = [case for case in found.cases if args.only in case.name and case.architecture in args.arch]
    jobs = [pool.submit(triton_cases.measure, case) for case in chosen]
    for case, job in zip(chosen, jobs, strict=True):
        measured = job.result()
        report.failures += measured.failures
        if measured.row is None:
            report.broken.add((case.name, f"sm_{case.architecture}"))
        else:
            report.rows.append(measured.row)
    report.covered |= {("triton", f"sm_{architecture}") for architecture in args.arch}


def report_cuda(report: Report, nvcc: _toolchain.Nvcc, nvdisasm: Path | None, args: argparse.Namespace) -> None:
    """Adds the kernels of the .cu files."""
    for architecture in sorted(set(args.arch) - nvcc.supported):
        print(f"nvcc {nvcc.version} does not compile for sm_{architecture}; those rows are left out")
    names = [cuda_sources.ARCHITECTURES[one] for one in args.arch if one in nvcc.supported]
    files = [path for path in cuda_sources.sources() if args.only in path.name or path.name in args.only]
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = {
            (path.name, name): pool.submit(cuda_sources.measure, path, name, nvcc, nvdisasm)
            for path in files
            for name in names
        }
        for key, job in jobs.items():
            try:
                rows = [row for row in job.result() if args.only in row.name]
            except _toolchain.BuildError as error:
                report.failures.append(str(error))
                report.broken.add(key)
                continue
            report.rows += rows
            report.failures += [text for row in rows for text in table.failures(row, {"no_spills"})]
    report.covered |= {("nvcc", name) for name in names}


def make(args: argparse.Namespace, modules: list[str] | None = None) -> Report:
    """Measures all that can be measured here; ``modules`` are those of ``kernels/`` unless given."""
    report = Report()
    nvdisasm = None
    if importlib.util.find_spec("triton") is None:
        print("the Triton kernels were not compiled: Triton is not installed; pip install triton")
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.jobs, context, triton_cases.start, (str(args.cache),)) as pool:
            report_triton(report, pool, kernel_modules() if modules is None else modules, args)
            nvdisasm = Path(pool.submit(triton_cases.nvdisasm).result())
    try:
        nvcc = _toolchain.find_nvcc()
    except _toolchain.BuildError as error:
        print(f"the CUDA sources were not compiled: {error}")
    else:
        report_cuda(report, nvcc, nvdisasm, args)
    return report


def conclude(report: Report, args: argparse.Namespace) -> int:
    """Prints the report, writes the table if asked to; the exit code."""
    committed = table.read(args.table)
    mine = report.committed(committed, args.only)
    regressions, differences = table.compare(report.rows, mine)
    print(table.text(report.rows))
    if differences:
        print("\n".join([f"\nDifferences from {args.table.name}:", *differences]))
    if args.update:
        replaced = {row.key for row in [*mine, *report.rows]}
        table.write(args.table, [*(row for row in committed if row.key not in replaced), *report.rows])
        print(f"\n{args.table}: written")
        regressions = []
    if regressions:
        remedy = "if that is meant, run it with --update and commit the table"
        print("\n".join([f"\nRegressions from {args.table.name} ({remedy}):", *regressions]))
    if report.failures:
        print("\n".join(["\nFailures:", *report.failures]))
    failed = bool(regressions or report.failures)
    print(f"\n{len(report.rows)} kernels compiled, {'FAILED' if failed else 'all as they should be'}")
    return int(failed)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m tools.kernel_report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    architectures = list(table.ARCHITECTURES)
    result.add_argument("--only", default="", metavar="TEXT", help="only kernels with this in their name")
    result.add_argument("--arch", type=int, nargs="+", choices=architectures, default=architectures)
    result.add_argument("--update", action="store_true", help="write the rows of all that compiled into the table")
    result.add_argument("--jobs", type=int, default=2, help="compilations at a time")
    result.add_argument("--table", type=Path, default=TABLE, help="the committed table")
    result.add_argument("--cache", type=Path, default=CACHE, help="Triton's cache: what did not change compiles once")
    return result


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    begun = time.monotonic()
    report = make(args)
    code = conclude(report, args)
    print(f"{time.monotonic() - begun:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
