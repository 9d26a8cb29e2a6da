"""Compiles every .cu file as the build does and fails on register spills; prints what ptxas reports of each kernel.

Needs nvcc and torch's headers, no GPU. Without nvcc it says so and passes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from motarfuse import _build, _toolchain

ARCHITECTURES = ("sm_80", "sm_90a")


@dataclass(frozen=True)
class Kernel:
    """One row of ptxas' report; sizes in bytes."""

    file: str
    name: str
    architecture: str
    registers: int
    shared: int
    stack: int
    spills: int


def compile_one(path: Path, architecture: str, nvcc: _toolchain.Nvcc) -> list[Kernel]:
    """The report of one file on one architecture; raises `BuildError` with nvcc's words when it does not compile."""
    flags = _build.operator_flags(_build.source_folder(), _toolchain.find_torch(), nvcc)
    with tempfile.TemporaryDirectory() as folder:
        command = [str(nvcc.path), *_build.NVCC_FLAGS, *flags, f"-arch={architecture}", "-Xptxas=-v", "-cubin"]
        command += ["-o", str(Path(folder) / "kernel.cubin"), str(path)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise _toolchain.BuildError(f"{path.name} does not compile for {architecture}:\n{result.stdout}")
    return parse_report(result.stdout, path.name, architecture)


def parse_report(text: str, file: str, architecture: str) -> list[Kernel]:
    """The kernels in the output of ``ptxas -v``; a kernel without its numbers is an error, never skipped."""
    kernels = []
    blocks = re.split(r"Compiling entry function '", text)[1:]
    for block in blocks:
        mangled = block.split("'", 1)[0]
        registers = re.search(r"Used (\d+) registers", block)
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        if registers is None or stack is None:
            raise _toolchain.BuildError(f"{file}: ptxas reports no registers or no spills for {mangled}")
        shared = re.search(r"(\d+) bytes smem", block)
        spills = int(stack[2]) + int(stack[3])
        size = int(shared[1]) if shared else 0
        kernels.append(Kernel(file, mangled, architecture, int(registers[1]), size, int(stack[1]), spills))
    return kernels


def demangle(names: list[str]) -> dict[str, str]:
    """Readable names, without the parameter lists."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    result = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    lines = result.stdout.replace("(anonymous namespace)::", "").splitlines()
    short = [re.sub(r"\(.*$|^void ", "", line) for line in lines]
    return dict(zip(names, short, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="*", default=list(ARCHITECTURES), help="architectures, such as sm_90a")
    args = parser.parse_args()
    try:
        nvcc = _toolchain.find_nvcc()
    except _toolchain.BuildError as error:
        print(f"the CUDA sources were not compiled: {error}")
        return
    files = sorted((_build.source_folder() / "cuda").glob("*.cu"))
    if not files:
        sys.exit(f"no .cu files in {_build.source_folder() / 'cuda'}")
    try:
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(compile_one, path, architecture, nvcc) for path in files for architecture in args.arch]
            kernels = [row for job in jobs for row in job.result()]
    except _toolchain.BuildError as error:
        sys.exit(str(error))
    if not kernels:
        sys.exit("ptxas reported no kernel at all")
    names = demangle(sorted({row.name for row in kernels}))
    print(f"nvcc {nvcc.version}")
    print(f"{'file':<24} {'arch':<7} {'registers':>9} {'shared':>7} {'stack':>6} {'spills':>6}  kernel")
    for row in kernels:
        sizes = f"{row.registers:>9} {row.shared:>7} {row.stack:>6} {row.spills:>6}"
        print(f"{row.file:<24} {row.architecture:<7} {sizes}  {names[row.name]}")
    spilled = [row for row in kernels if row.spills]
    if spilled:
        which = "\n".join(f"  {row.architecture} {names[row.name]}: {row.spills} bytes" for row in spilled)
        sys.exit(f"{len(spilled)} of {len(kernels)} kernels spill registers:\n{which}")
    print(f"{len(kernels)} kernels compiled, no spills")


if __name__ == "__main__":
    main()
