"""Finds what the native parts are compiled with: torch's headers, compiler, nvcc, ninja, pybind11, Python's headers.

Each finder returns what it found or raises `BuildError` with the reason and the remedy; the build and
``motarfuse doctor`` both ask here. Nothing is imported from torch.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from motarfuse.errors import MotarfuseError

OLDEST_TORCH = (2, 10)
DEFAULT_NVCC = Path("/usr/local/cuda/bin/nvcc")
DEFAULT_ARCHITECTURES = "8.0;9.0a;10.0+PTX"


class BuildError(MotarfuseError):
    """The native parts cannot be compiled: a tool or torch is missing, or a source does not compile."""


@dataclass(frozen=True)
class Torch:
    """An installed torch, known by its files."""

    root: Path
    version: str
    cuda: str | None

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"

    def require_stable_abi(self) -> None:
        """Raises `BuildError` where the operator library cannot be built against this torch."""
        if release(self.version) < OLDEST_TORCH:
            raise BuildError(
                f"torch {self.version} at {self.root} is older than 2.10; "
                "install torch>=2.10, then run `motarfuse build`"
            )
        if not (self.include / "torch" / "csrc" / "stable" / "library.h").is_file():
            raise BuildError(f"torch {self.version} at {self.root} has no C++ headers; install torch from its wheel")


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler and the toolkit it belongs to; ``supported`` are compute capabilities such as 90 for 9.0."""

    path: Path
    root: Path
    version: str
    supported: frozenset[int]

    @property
    def include(self) -> Path:
        return next((path for path in [*self._targets("include"), self.root / "include"] if path.is_dir()), self.root)

    @property
    def lib(self) -> Path:
        """The folder with the static CUDA runtime."""
        folders = [self.root / "lib64", self.root / "lib", *self._targets("lib")]
        return next((path for path in folders if (path / "libcudart_static.a").is_file()), folders[0])

    def _targets(self, name: str) -> list[Path]:
        return sorted((self.root / "targets").glob(f"*-linux/{name}"))


def release(version: str) -> tuple[int, int]:
    """(major, minor) of a version such as ``2.13.0+cpu``; compared as numbers, since "2.10" < "2.6" as text."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


@functools.lru_cache(maxsize=1)
def find_torch() -> Torch:
    """The torch of the environment that is being installed into.

    An isolated build sees a path of its own, so that interpreter is asked again without PYTHONPATH: it then follows its
    site-packages, ``.pth`` files and, for a virtual environment with system site-packages, the base's.
    """
    spec = importlib.util.find_spec("torch")
    origin = spec.origin if spec is not None else None
    if origin is None:
        code = "import importlib.util as u; s = u.find_spec('torch'); print((s and s.origin) or '')"
        answer = subprocess.run([sys.executable, "-E", "-c", code], cwd="/", capture_output=True, text=True)
        origin = answer.stdout.strip() or None
    if origin is None:
        raise BuildError(
            f"no torch in the environment of {sys.executable}; install torch>=2.10, then run `motarfuse build`"
        )
    root = Path(origin).resolve().parent
    text = (root / "version.py").read_text() if (root / "version.py").is_file() else ""
    version = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    if version is None:
        raise BuildError(f"torch at {root} is incomplete (no version.py); install torch>=2.10 again")
    return Torch(root, version[1], cuda[1] if cuda else None)


def find_ninja() -> Path:
    """The ``ninja`` package's binary, else the one on PATH."""
    candidates = []
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        candidates.append(Path(ninja.BIN_DIR) / "ninja")
    on_path = shutil.which("ninja")
    candidates += [Path(on_path)] if on_path else []
    for path in candidates:
        if path.is_file():
            return path
    raise BuildError("ninja is missing; `pip install ninja`, then run `motarfuse build`")


def find_compiler() -> list[str]:
    """The C++ compiler as a command: ``CXX``, else c++, g++ or clang++ on PATH."""
    wanted = os.environ.get("CXX", "")
    words = shlex.split(wanted)
    if words:
        if shutil.which(words[0]) is None:
            raise BuildError(f"CXX is {wanted!r}, which is no program; unset it or name a C++17 compiler")
        return words
    for name in ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found:
            return [found]
    raise BuildError("no C++ compiler (c++, g++, clang++) on PATH; install g++, then run `motarfuse build`")


@functools.lru_cache(maxsize=8)
def _first_line(command: tuple[str, ...]) -> str:
    result = subprocess.run([*command, "--version"], capture_output=True, text=True)
    return result.stdout.splitlines()[0] if result.stdout else ""


def compiler_version(command: list[str]) -> str:
    """The first line of the compiler's ``--version``."""
    return _first_line(tuple(command))


def find_nvcc() -> Nvcc:
    """nvcc of ``CUDA_HOME`` (when set, nowhere else), else on PATH, else of /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        path = Path(home) / "bin" / "nvcc"
        if not path.is_file():
            raise BuildError(f"CUDA_HOME is {home!r} and has no bin/nvcc; unset it or name a CUDA toolkit")
        return _inspect_nvcc(path)
    on_path = shutil.which("nvcc")
    for candidate in ([Path(on_path)] if on_path else []) + [DEFAULT_NVCC]:
        if candidate.is_file():
            return _inspect_nvcc(candidate)
    raise BuildError(
        "no nvcc on PATH; install a CUDA toolkit (12.4 or later) or set CUDA_HOME, then run `motarfuse build`"
    )


@functools.lru_cache(maxsize=4)
def _inspect_nvcc(path: Path) -> Nvcc:
    def ask(*arguments: str) -> str:
        result = subprocess.run([str(path), *arguments], capture_output=True, text=True)
        return result.stdout + result.stderr

    version = re.search(r"release (\d+\.\d+)", ask("--version"))
    if version is None:
        raise BuildError(f"{path} does not run; repair the CUDA toolkit or set MOTARFUSE_BUILD_CUDA=0")
    # Asked rather than derived from the path, which may be a wrapper script.
    top = re.search(r"TOP=(.+)", ask("--dryrun", "-x", "cu", os.devnull))
    root = Path(top[1].strip()).resolve() if top else path.resolve().parent.parent
    supported = frozenset(int(number) for number in re.findall(r"\bsm_(\d+)\b", ask("--list-gpu-code")))
    return Nvcc(path, root, version[1], supported)


def selected_architectures(nvcc: Nvcc) -> list[str]:
    """The architectures of ``TORCH_CUDA_ARCH_LIST``; of the default list, those that this nvcc knows.

    Raises:
        BuildError: An entry that is not like ``8.0``, ``9.0a`` or ``10.0+PTX``, or that this nvcc does not know.
    """
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    chosen = []
    for entry in re.split(r"[;,\s]+", wanted or DEFAULT_ARCHITECTURES):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if match is None:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST has {entry!r}; entries are like 8.0, 9.0a or 10.0+PTX")
        if int(match[1] + match[2]) in nvcc.supported:
            chosen.append(entry)
        elif wanted:
            known = ", ".join(f"{number // 10}.{number % 10}" for number in sorted(nvcc.supported))
            raise BuildError(f"TORCH_CUDA_ARCH_LIST has {entry!r}; nvcc {nvcc.version} knows {known}")
    if not chosen:
        raise BuildError(f"nvcc {nvcc.version} knows none of {DEFAULT_ARCHITECTURES}; set TORCH_CUDA_ARCH_LIST")
    return chosen


def gencode_flags(architectures: list[str]) -> list[str]:
    """nvcc's flags: machine code for each architecture, portable code (PTX) too where ``+PTX`` asks for it."""
    flags = []
    for entry in architectures:
        number = entry.removesuffix("+PTX").replace(".", "")
        code = f"sm_{number},compute_{number}" if entry.endswith("+PTX") else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code=[{code}]")
    return flags


def pybind11_include(torch: Torch | None) -> tuple[Path, str]:
    """The folder with pybind11's headers and their version.

    torch's own copy comes first: its path does not change between isolated build environments, so that nothing is
    compiled again without a change.
    """
    folders = [torch.include] if torch is not None else []
    spec = importlib.util.find_spec("pybind11")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "include")
    for folder in folders:
        header = folder / "pybind11" / "detail" / "common.h"
        if header.is_file():
            numbers = re.findall(r"define PYBIND11_VERSION_(?:MAJOR|MINOR|MICRO|PATCH)\s+(\d+)", header.read_text())
            return folder, ".".join(numbers[:3])
    raise BuildError("pybind11's headers are missing; `pip install pybind11`, then run `motarfuse build`")


def python_include() -> Path:
    """The folder of Python.h."""
    folder = Path(sysconfig.get_path("include"))
    if not (folder / "Python.h").is_file():
        raise BuildError(f"no Python.h in {folder}; install Python's headers (python3-dev), then run `motarfuse build`")
    return folder


def source_digest(source: Path, *folders: str) -> str:
    """Which sources a library was built from: the first 16 digits of the SHA-256 of their names and contents."""
    digest = hashlib.sha256()
    for folder in sorted(folders):
        for path in sorted((source / folder).glob("*")):
            if path.suffix in (".h", ".cpp", ".cu", ".cuh"):
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
