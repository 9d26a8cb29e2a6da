"""Compiles the native parts with ninja: the operator library ``_C.so`` and the host module ``_host``.

setup.py and ``motarfuse build`` share it. Only torch's headers and libraries are needed: torch is found by path and
never imported, so that an isolated build environment needs none of its own. Nothing here needs a GPU.

Variables: ``MOTARFUSE_BUILD_CUDA`` = auto, 0 or 1; ``TORCH_CUDA_ARCH_LIST``; ``MAX_JOBS``; ``CXX``; ``CUDA_HOME``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from motarfuse._toolchain import (
    BuildError,
    Nvcc,
    Torch,
    compiler_version,
    find_compiler,
    find_ninja,
    find_nvcc,
    find_torch,
    gencode_flags,
    pybind11_include,
    python_include,
    selected_architectures,
    source_digest,
)

TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10: the oldest torch that the operator library runs in
PACKAGE = Path(__file__).resolve().parent
OPERATORS = "_C.so"
HOST = "_host" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")

WARNINGS = ["-Wall", "-Wextra"]
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", *WARNINGS]
# Let the compiler vectorise the sums that are marked `omp simd` (in an order of its own but a fixed one; no OpenMP),
# and loops with a choice between two numbers, as the exponential's, for processors without masks: nobody reads the
# floating-point flags that a number not chosen may raise.
OPERATOR_FLAGS = ["-fopenmp-simd", "-fno-trapping-math"]
# Uncontracted: a fused multiply-add would draw other pixels than the numpy fallback does.
HOST_FLAGS = ["-ffp-contract=off"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall", "--threads=1", "-Xptxas=-warn-spills"]


@dataclass(frozen=True)
class Outcome:
    """What became of one native part.

    Attributes:
        name: ``_C`` or ``_host``.
        path: Where it was put, None when it was not built.
        reason: Why it was not built and what to do; empty when it was.
        warning: What was left out of it and why; empty when nothing was.
        info: Compiler, torch, CUDA and architectures it was built with.
    """

    name: str
    path: Path | None
    reason: str = ""
    warning: str = ""
    info: dict[str, object] | None = None


def source_folder() -> Path:
    """``csrc``: beside the package in a checkout, inside it in an installed package."""
    inside = PACKAGE / "csrc"
    return inside if inside.is_dir() else PACKAGE.parent / "csrc"


def operator_digest(source: Path) -> str:
    """Which sources ``_C`` is built from."""
    return source_digest(source, ".", "cpu", "cuda")


def host_digest(source: Path) -> str:
    """Which sources ``_host`` is built from."""
    return source_digest(source, "host")


def cuda_mode(value: str | None = None) -> str:
    """``auto``, ``0`` or ``1`` from the argument or from ``MOTARFUSE_BUILD_CUDA``."""
    mode = (value if value is not None else os.environ.get("MOTARFUSE_BUILD_CUDA", "")).strip() or "auto"
    if mode not in ("auto", "0", "1"):
        raise BuildError(f"MOTARFUSE_BUILD_CUDA (or --cuda) is {mode!r}; it is one of auto, 0, 1")
    return mode


def build(destination: Path, *, cuda: str | None = None, verbose: bool = False) -> list[Outcome]:
    """Compiles ``_host`` and ``_C`` and puts them into ``destination``; only what changed is compiled again.

    Args:
        destination: The package folder that receives both files.
        cuda: ``auto`` compiles the CUDA sources where nvcc is found, ``1`` insists, ``0`` leaves them out;
            None reads ``MOTARFUSE_BUILD_CUDA``.
        verbose: Prints every command and the compilers' whole output.

    Returns:
        One outcome for each part; one that cannot be built says why.

    Raises:
        BuildError: With ``cuda="1"``, when the operators cannot be built with CUDA.
    """
    mode = cuda_mode(cuda)
    if mode == "1":
        find_nvcc()
    source = source_folder()
    if not source.is_dir():
        raise BuildError(f"no sources at {source}; install motarfuse from a source tree or a complete wheel")
    outcomes = []
    with _build_root(source) as root:
        try:
            outcomes.append(_build_host(source, root, destination, verbose))
        except BuildError as error:
            outcomes.append(Outcome("_host", None, reason=str(error)))
        try:
            outcomes.append(_build_operators(source, root, destination, mode, verbose))
        except BuildError as error:
            if mode == "1":
                raise
            outcomes.append(Outcome("_C", None, reason=str(error)))
    return outcomes


@contextlib.contextmanager
def _build_root(source: Path) -> Iterator[Path]:
    """``build/native`` of a checkout, kept between builds; a temporary folder for an installed package."""
    if source.parent == PACKAGE:
        with tempfile.TemporaryDirectory(prefix="motarfuse-build-") as folder:
            yield Path(folder)
        return
    root = source.parent / "build" / "native"
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        with contextlib.suppress(ImportError):  # no fcntl outside Unix
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield root


def _build_host(source: Path, root: Path, destination: Path, verbose: bool) -> Outcome:
    sources = sorted((source / "host").glob("*.cpp"))
    if not sources:
        raise BuildError(f"no sources in {source / 'host'}")
    compiler = find_compiler()
    try:
        torch: Torch | None = find_torch()
    except BuildError:
        torch = None
    headers, pybind11_version = pybind11_include(torch)
    includes = ["-I", str(source / "host"), "-I", str(source)]
    includes += ["-isystem", str(headers), "-isystem", str(python_include())]
    info: dict[str, object] = {
        "compiler": compiler_version(compiler),
        "pybind11": pybind11_version,
        "python": sysconfig.get_python_version(),
        "sources": host_digest(source),
    }
    flags = [*CXX_FLAGS, *HOST_FLAGS, *_stable_paths(source), *includes]
    undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    library = _Library(HOST, compiler, flags, sources, link_flags=undefined, info=info)
    return Outcome(
        "_host", library.make(root / f"host-{sys.implementation.cache_tag}", destination, verbose), info=info
    )


def _build_operators(source: Path, root: Path, destination: Path, mode: str, verbose: bool) -> Outcome:
    if not sys.platform.startswith("linux"):
        raise BuildError(f"the operator library is built on Linux only, this is {sys.platform}")
    torch = find_torch()
    torch.require_stable_abi()
    compiler = find_compiler()
    nvcc, warning = None, ""
    if mode != "0" and any((source / "cuda").glob("*.cu")):
        try:
            nvcc = find_nvcc()
        except BuildError as error:
            if mode == "1":
                raise
            warning = f"without CUDA: {error}"
    if nvcc is not None:
        try:
            return _operators(source, torch, compiler, nvcc).finish(root, destination, verbose)
        except BuildError as error:
            if mode == "1":
                raise
            warning = f"without CUDA, whose sources do not compile here: {error}"
    return _operators(source, torch, compiler, None).finish(root, destination, verbose, warning)


def operator_flags(source: Path, torch: Torch, nvcc: Nvcc | None) -> list[str]:
    """Defines and include folders that every source of ``_C`` gets, C++ and CUDA alike."""
    flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", "-I", str(source), "-isystem", str(torch.include)]
    if nvcc is not None:
        flags += ["-DUSE_CUDA", "-DMOTARFUSE_WITH_CUDA"]
        if nvcc.include != Path("/usr/include"):  # naming the system folder would reorder it
            flags += ["-isystem", str(nvcc.include)]
    return flags


@dataclass(frozen=True)
class _Operators:
    library: _Library
    folder: str

    def finish(self, root: Path, destination: Path, verbose: bool, warning: str = "") -> Outcome:
        path = self.library.make(root / self.folder, destination, verbose)
        return Outcome("_C", path, warning=warning, info=self.library.info)


def _operators(source: Path, torch: Torch, compiler: list[str], nvcc: Nvcc | None) -> _Operators:
    sources = sorted(source.glob("*.cpp")) + sorted((source / "cpu").glob("*.cpp"))
    if not sources:
        raise BuildError(f"no sources in {source} and {source / 'cpu'}")
    flags = operator_flags(source, torch, nvcc)
    # libtorch.so stays needed even where nothing in it is used: through it, in a CUDA build of torch, the weak
    # aoti_torch_get_current_cuda_stream of libtorch_cuda.so is found. `-z defs`: a missing symbol fails here already.
    link_flags = ["-Wl,-z,defs", f"-L{torch.lib}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-Wl,--as-needed"]
    info: dict[str, object] = {
        "compiler": compiler_version(compiler),
        "torch": torch.version,
        "cuda": None,
        "architectures": [],
        "sources": operator_digest(source),
    }
    nvcc_command: list[str] = []
    if nvcc is not None:
        architectures = selected_architectures(nvcc)
        info |= {"cuda": nvcc.version, "architectures": architectures}
        sources += sorted((source / "cuda").glob("*.cu"))
        host = ["-ccbin", compiler[0]] if os.environ.get("CXX") else []
        paths = [f"-Xcompiler={flag}" for flag in _stable_paths(source)]
        nvcc_command = [str(nvcc.path), *host, *NVCC_FLAGS, *paths, *gencode_flags(architectures)]
        # Static and hidden: neither a libcudart is needed at run time nor can torch's own one be shadowed.
        link_flags += ["-Wl,--exclude-libs,libcudart_static.a", f"-L{nvcc.lib}", "-lcudart_static"]
        link_flags += ["-ldl", "-lpthread", "-lrt"]
    cxx_flags = [*CXX_FLAGS, *OPERATOR_FLAGS, *_stable_paths(source)]
    library = _Library(OPERATORS, compiler, cxx_flags, sources, link_flags, info, nvcc_command, flags)
    return _Operators(library, f"operators-torch{torch.version}-" + (f"cuda{nvcc.version}" if nvcc else "cpu"))


def _stable_paths(source: Path) -> list[str]:
    """Keeps this machine's paths out of the binaries, so that two builds are equal."""
    return [f"-ffile-prefix-map={source.parent}=."]


@dataclass(frozen=True)
class _Library:
    """One shared library as a build.ninja; ``common`` goes to both compilers."""

    filename: str
    compiler: list[str]
    cxx_flags: list[str]
    sources: list[Path]
    link_flags: list[str]
    info: dict[str, object]
    nvcc_command: list[str] | None = None
    common: list[str] | None = None

    def make(self, folder: Path, destination: Path, verbose: bool) -> Path:
        """Compiles in ``folder`` and puts the library into ``destination`` in one step."""
        info_source = folder / "generated" / "build_info.cpp"
        info_source.parent.mkdir(parents=True, exist_ok=True)
        _write_if_changed(info_source, _info_source(self.info))
        _write_if_changed(folder / "build.ninja", self.build_file([*self.sources, info_source]))
        run_ninja(folder, verbose)
        target = destination / self.filename
        destination.mkdir(parents=True, exist_ok=True)
        # Replaced, never written over: a running process may have the old one mapped.
        staged = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(folder / self.filename, staged)
        staged.chmod(0o755)
        with staged.open("rb") as file:
            os.fsync(file.fileno())  # a library of the right length without its contents would end the process
        staged.replace(target)
        return target

    def build_file(self, sources: list[Path]) -> str:
        common = self.common or []
        lines = [
            "ninja_required_version = 1.8",
            "rule cxx",
            f"  command = {_shell(self.compiler + self.cxx_flags + common)} -MMD -MF $out.d -c $in -o $out",
            "  description = compile $in",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {_shell(self.compiler)} -shared $in -o $out {_shell(self.link_flags)}",
            "  description = link $out",
        ]
        if self.nvcc_command:
            lines += [
                "rule nvcc",
                f"  command = {_shell(self.nvcc_command + common)} --generate-dependencies-with-compile "
                "--dependency-output $out.d -c $in -o $out",
                "  description = compile $in",
                "  depfile = $out.d",
                "  deps = gcc",
            ]
        objects = []
        for source in sources:
            name = f"{source.parent.name}.{source.name}.o".replace(" ", "_")
            rule = "nvcc" if source.suffix == ".cu" else "cxx"
            lines.append(f"build {name}: {rule} {_ninja_path(source)}")
            objects.append(name)
        lines += [f"build {_ninja_path(Path(self.filename))}: link {' '.join(objects)}", ""]
        return "\n".join(lines)


def run_ninja(folder: Path, verbose: bool) -> None:
    """Runs the build.ninja of ``folder`` with ``MAX_JOBS`` jobs; raises `BuildError` with the first errors."""
    command = [str(find_ninja()), "-C", str(folder), "-j", str(_jobs()), *(["-v"] if verbose else [])]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if verbose:
        print(result.stdout, end="", flush=True)
    if result.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{_first_errors(result.stdout)}")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _jobs() -> int:
    value = os.environ.get("MAX_JOBS", "")
    if value and not (value.isdigit() and int(value) > 0):
        raise BuildError(f"MAX_JOBS is {value!r}; it is a positive number of parallel compilations")
    return int(value) if value else cores()


def _first_errors(output: str, limit: int = 25) -> str:
    """The lines around the first compile errors, which explain more than the last lines do."""
    lines = [line for line in output.splitlines() if not line.startswith(("[", "ninja: Entering"))]
    first = next((i for i, line in enumerate(lines) if "error" in line.lower() and "FAILED" not in line), 0)
    kept = lines[max(0, first - 1) : first - 1 + limit] if first else lines[-limit:]
    return "\n".join(line if len(line) < 400 else f"{line[:400]} ..." for line in kept)


def _info_source(info: dict[str, object]) -> str:
    text = json.dumps(json.dumps(info, sort_keys=True))  # a JSON string is a C string literal for ASCII text
    declaration = 'extern "C" __attribute__((visibility("default"))) const char* motarfuse_build_info()'
    return f"// Written by motarfuse/_build.py.\n{declaration};\n{declaration} {{ return {text}; }}\n"


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def _shell(words: list[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def _ninja_path(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
