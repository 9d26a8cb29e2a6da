"""Compiles a .cu file for the host, with this folder's headers in the place of CUDA's: kernels without a GPU."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from motarfuse._build import TORCH_TARGET_VERSION
from motarfuse._toolchain import BuildError, find_compiler, find_torch
from motarfuse.ops.backends import Backend, Operator, supports_everything
from motarfuse.ops.kernels import KernelFamily, Kernels

HEADERS = Path(__file__).parent
EMULATED = ("emulated", "cpu")  # an ``impl`` and the device it runs on
EXPORTS = """
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
// Emitted only where something uses them.
__attribute__((used)) void (*const exported[])() = {reinterpret_cast<void (*)()>(&set_multiprocessors),
                                                    reinterpret_cast<void (*)()>(&set_shared_memory)};
"""


def host_source(cuda: str) -> str:
    """The .cu file with its launches turned into calls, and without the guard that needs a device."""
    source, launches = re.subn(
        r"(\w+_kernel(?:<[^<>]*>)?)\s*<<<(.*?), ([^,]+), ([^,]+), stream>>>\((.*?)\);",
        r"emulation::launch(\2, \3, \4, [&] { \1(\5); });",
        cuda,
        flags=re.DOTALL,
    )
    assert launches > 0
    assert "<<<" not in source, "a launch was not translated"
    return re.sub(r".*DeviceGuard guard\(device\);\n", "", source)


def load(name: str, csrc: Path, folder: Path, registration: str, optimise: str = "-O1") -> ctypes.CDLL:
    """Compiles ``csrc/cuda/<name>.cu`` in ``folder`` and loads it; skips the test where there is no compiler.

    Args:
        name: Of the .cu file.
        csrc: The folder with the sources.
        folder: Receives a copy of them, in which mma.cuh is this folder's.
        registration: C++ source that registers the operators and exports what a test calls.
        optimise: The compiler's flag.
    """
    try:
        compiler, torch_files = find_compiler(), find_torch()
    except BuildError as error:
        pytest.skip(f"nothing to compile with: {error}")
    copied = folder / "csrc"
    shutil.copytree(csrc, copied)
    shutil.copyfile(HEADERS / "mma.cuh", copied / "cuda" / "mma.cuh")
    source, target = copied / "cuda" / f"{name}.cpp", folder / f"{name}.so"
    source.write_text(host_source((copied / "cuda" / f"{name}.cu").read_text()) + registration + EXPORTS)
    flags = ["-std=c++20", optimise, "-w", "-fPIC", "-shared", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    flags += ["-fvisibility=hidden", "-fno-gnu-unique", "-U_FORTIFY_SOURCE"]
    flags += ["-DUSE_CUDA", "-DMOTARFUSE_WITH_CUDA", f"-I{HEADERS}"]
    flags += ["-isystem", str(torch_files.include), f"-L{torch_files.lib}"]
    command = [*compiler, *flags, str(source), "-o", str(target), "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    torch.ops.load_library(str(target))
    return ctypes.CDLL(str(target))


def registration(operator: str, *directions: str) -> str:
    """C++ that registers an operator's CUDA entry points for CPU tensors, as ``<operator>_<direction>_emulated``."""
    names = [f"{operator}_{direction}" for direction in directions]
    lines = [f'library.impl("{name}_emulated", TORCH_BOX(&motarfuse::{name}_cuda));' for name in names]
    opening = ("\n#include <torch/csrc/stable/library.h>", "STABLE_TORCH_LIBRARY_IMPL(motarfuse, CPU, library) {")
    return "\n".join((*opening, *lines, "}\n"))


@contextmanager
def emulated_backend(
    family: KernelFamily, operator: Operator, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kernels]:
    """Makes ``impl="emulated"`` what `registration` registered; ``family.define("_emulated")`` has been called."""
    namespace = torch.ops.motarfuse
    kernels = Kernels(
        getattr(namespace, f"{operator.name}_forward_emulated").default,
        getattr(namespace, f"{operator.name}_backward_emulated").default,
    )
    backend = Backend("emulated", partial(run, kernels), supports_everything)
    with monkeypatch.context() as patch:
        patch.setattr(operator, "backends", {**operator.backends, "emulated": backend})
        yield kernels
