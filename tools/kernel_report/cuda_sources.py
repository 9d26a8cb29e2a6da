"""Compiles the .cu files as the build does and reads what ptxas and nvdisasm say of each kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from motarfuse import _build, _toolchain
from tools.kernel_report import sass
from tools.kernel_report.table import Row

ARCHITECTURES = {80: "sm_80", 90: "sm_90a", 100: "sm_100"}


class Kernel(NamedTuple):
    """One entry of ptxas' report; sizes in bytes."""

    mangled: str
    registers: int
    shared: int
    stack: int
    spills: int


def sources() -> list[Path]:
    """Every .cu file."""
    return sorted((_build.source_folder() / "cuda").glob("*.cu"))


def measure(path: Path, architecture: str, nvcc: _toolchain.Nvcc, nvdisasm: Path | None) -> list[Row]:
    """The rows of one file on one architecture; raises `BuildError` with nvcc's words when it does not compile.

    Without nvdisasm they have no instruction counts.
    """
    flags = _build.operator_flags(_build.source_folder(), _toolchain.find_torch(), nvcc)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        command = [str(nvcc.path), *_build.NVCC_FLAGS, *flags, f"-arch={architecture}", "-Xptxas=-v", "-cubin"]
        command += ["-o", str(cubin), str(path)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if result.returncode:
            raise _toolchain.BuildError(f"{path.name} does not compile for {architecture}:\n{result.stdout}")
        kernels = parse_report(result.stdout, path.name)
        programs = sass.disassemble(nvdisasm, cubin) if nvdisasm is not None else {}
    names = demangle([kernel.mangled for kernel in kernels])
    rows = []
    for kernel in kernels:
        row = Row(
            name=f"{path.name} {names[kernel.mangled]}",
            architecture=architecture,
            dtype="",
            shape="",
            compiler=f"nvcc {nvcc.version}",
            warps=None,
            stages=None,
            registers=kernel.registers,
            shared=kernel.shared,
            stack=kernel.stack,
            spill_bytes=kernel.spills,
        )
        if nvdisasm is not None:
            counts = sass.count(programs[kernel.mangled])._asdict()
            del counts["local_bytes"]  # ptxas says it
            row = row._replace(**counts)
        rows.append(row)
    return rows


def parse_report(text: str, file: str) -> list[Kernel]:
    """The kernels in the output of ``ptxas -v``; a kernel without its numbers is an error, never skipped."""
    kernels = []
    for block in re.split(r"Compiling entry function '", text)[1:]:
        mangled = block.split("'", 1)[0]
        registers = re.search(r"Used (\d+) registers", block)
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        if registers is None or stack is None:
            raise _toolchain.BuildError(f"{file}: ptxas reports no registers or no spills for {mangled}")
        shared = re.search(r"(\d+) bytes smem", block)
        spills = int(stack[2]) + int(stack[3])
        kernels.append(Kernel(mangled, int(registers[1]), int(shared[1]) if shared else 0, int(stack[1]), spills))
    if not kernels:
        raise _toolchain.BuildError(f"{file}: ptxas reports no kernel at all")
    return kernels


def demangle(names: list[str]) -> dict[str, str]:
    """Readable names, without the parameter lists."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None:
        raise _toolchain.BuildError("c++filt is missing, which names the kernels; install binutils")
    result = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    short = [_without_parameters(line) for line in result.stdout.splitlines()]
    if len(set(short)) != len(set(names)):
        raise _toolchain.BuildError(f"{tool} gives two kernels of {', '.join(sorted(short))} the same name")
    return dict(zip(names, short, strict=True))


def _without_parameters(name: str) -> str:
    """``kernel<float, (Kind)1>`` of ``void space::kernel<float, (Kind)1>(float*)``."""
    name = name.replace("(anonymous namespace)::", "").replace("motarfuse::", "").removeprefix("void ")
    depth = 0
    for index, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:index]
    return name
