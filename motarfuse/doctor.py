"""Examines the installation: versions, devices, native parts, tools, operators; for each fault, why and what to do.

Nothing here may fail because a part of the installation does: each examination answers on its own.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import motarfuse
from motarfuse import _build, _native, _toolchain


@dataclass(frozen=True)
class Finding:
    """One examined thing.

    Attributes:
        name: What was examined.
        ok: True when it is as it should be, False for a fault, None when its absence is no fault.
        detail: Version, place or reason.
        remedy: What to do; empty when there is nothing to do.
    """

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class OperatorFinding:
    """What an operator takes on one device, and why not each other backend."""

    device: str
    operator: str
    backend: str
    why_not: dict[str, list[str]]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that `examine` found."""

    system: list[Finding]
    packages: list[Finding]
    extras: list[Finding]
    devices: list[Finding]
    native: list[Finding]
    tools: list[Finding]
    operators: list[OperatorFinding] = field(default_factory=list)
    operators_error: str = ""

    def findings(self) -> list[Finding]:
        return [*self.system, *self.packages, *self.extras, *self.devices, *self.native, *self.tools]

    def remedies(self) -> list[str]:
        """What to do about each fault, once each."""
        faults = [f"{one.name}: {one.remedy}" for one in self.findings() if one.ok is False and one.remedy]
        return list(dict.fromkeys(faults))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data, with ``remedies`` beside the findings."""
        return {"version": motarfuse.__version__, **asdict(self), "remedies": self.remedies()}


def examine() -> Report:
    """Looks at everything once."""
    torch, problem = import_torch()
    operators, operators_error = _operators(torch, problem)
    return Report(
        system=_system(),
        packages=_packages(problem),
        extras=_extras(),
        devices=_devices(torch),
        native=native_findings(),
        tools=_tools(torch),
        operators=operators,
        operators_error=operators_error,
    )


@functools.lru_cache(maxsize=1)
def import_torch() -> tuple[Any, str]:
    """torch, or None and what its import says."""
    try:
        return importlib.import_module("torch"), ""
    except Exception as error:  # noqa: BLE001 (a broken torch raises anything: OSError, AttributeError, SyntaxError, ...)
        return None, f"{type(error).__name__}: {error}"


def _system() -> list[Finding]:
    supported = sys.version_info >= (3, 10)
    data = Path(os.environ.get("MOTARFUSE_TEST_DATA", _build.PACKAGE.parent.parent / "shared" / "data"))
    return [
        Finding("motarfuse", True, f"{motarfuse.__version__} at {_build.PACKAGE}"),
        Finding(
            "python", supported, f"{platform.python_version()} at {sys.executable}", "install Python 3.10 or later"
        ),
        Finding("machine", True, f"{platform.system()} {platform.machine()}, {_cores()}, {_memory()}"),
        Finding(
            "test data",
            True if data.is_dir() else None,
            str(data) if data.is_dir() else "none; tests of real pictures are skipped (set MOTARFUSE_TEST_DATA)",
        ),
    ]


def _cores() -> str:
    number = _build.cores()
    return f"{number} core" if number == 1 else f"{number} cores"


def _memory() -> str:
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not a system that tells
        return "memory unknown"
    return f"{pages / 2**30:.0f} GiB"


def _requirements() -> list[tuple[str, str, str]]:
    """(package, lowest version, extra) of the installed motarfuse; the extra is empty for core dependencies."""
    try:
        lines = importlib.metadata.requires("motarfuse") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    parsed = []
    for line in lines:
        match = re.match(r"([\w.-]+)\s*(?:>=\s*([\w.]+))?", line)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", line)
        if match and match[1] != "motarfuse":
            parsed.append((match[1], match[2] or "0", extra[1] if extra else ""))
    return parsed


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3]]


def _packages(torch_problem: str) -> list[Finding]:
    findings = []
    requirements = [(name, lowest) for name, lowest, extra in _requirements() if not extra]
    if not requirements:
        remedy = "pip install -e . in its source tree"
        return [Finding("motarfuse", False, "runs from a source tree, it is not installed", remedy)]
    for name, lowest in requirements:
        version = _installed(name)
        if version is None:
            findings.append(Finding(name, False, "missing", f"pip install '{name}>={lowest}'"))
        elif _numbers(version) < _numbers(lowest):
            findings.append(Finding(name, False, f"{version}, older than {lowest}", f"pip install '{name}>={lowest}'"))
        elif name == "torch" and torch_problem:
            remedy = "install torch again, for this Python and this system"
            findings.append(Finding(name, False, f"{version}, but it cannot be imported: {torch_problem}", remedy))
        else:
            findings.append(Finding(name, True, version))
    return findings


def _extras() -> list[Finding]:
    groups: dict[str, list[str]] = {}
    for name, _, extra in _requirements():
        if extra:
            groups.setdefault(extra, []).append(name)
    findings = []
    for extra, names in groups.items():
        missing = [name for name in names if _installed(name) is None]
        detail = f"missing {', '.join(missing)}" if missing else ", ".join(names)
        findings.append(Finding(extra, None if missing else True, detail))
    return findings


def _devices(torch: Any) -> list[Finding]:
    if torch is None:
        return [Finding("cpu", None, "torch cannot be imported, so no device can be asked")]
    findings = [Finding("cpu", True, f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")]
    driver = _driver()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            detail = f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
            detail += f"{properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
            findings.append(Finding(f"cuda:{index}", True, detail))
    elif driver:
        reason = f"torch {torch.__version__} is a CPU build" if torch.version.cuda is None else "torch cannot use it"
        remedy = "install a CUDA build of torch that this driver supports"
        findings.append(Finding("cuda", False, f"{driver} is there, but {reason}", remedy))
    else:
        findings.append(Finding("cuda", None, "no NVIDIA driver (nvidia-smi) on this machine"))
    if torch.backends.mps.is_available():
        findings.append(Finding("mps", True, "operators run on their reference there"))
    return findings


def _driver() -> str:
    """Name and driver of the first NVIDIA GPU, empty without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.splitlines()[0] if result.returncode == 0 and result.stdout.strip() else ""


def native_findings() -> list[Finding]:
    """Whether ``_C`` and ``_host`` are loaded, and what they were built with."""
    status = _native.status()
    source = _build.source_folder()
    digests = {"_C": _build.operator_digest(source), "_host": _build.host_digest(source)}
    torch, _ = import_torch()
    gpu = torch is not None and torch.cuda.is_available()
    findings = []
    for name, loaded, error, info in (
        ("_C", status.operators_loaded, status.operators_error, status.operators_info),
        ("_host", status.host_loaded, status.host_error, status.host_info),
    ):
        if not loaded:
            reason, _, remedy = error.rpartition("; ")
            findings.append(Finding(name, False, reason, _prerequisite(name) or remedy))
        elif info.get("sources") != digests[name]:
            detail = "loaded, but built from other sources than those in csrc"
            findings.append(Finding(name, False, detail, _native.REBUILD))
        elif gpu and "cuda" in info and info["cuda"] is None:
            detail = "loaded, but built without CUDA, and a GPU is here"
            findings.append(Finding(name, False, detail, "install a CUDA toolkit, then run `motarfuse build --cuda 1`"))
        else:
            findings.append(Finding(name, True, "loaded; " + _built_with(info)))
    return findings


def _prerequisite(name: str) -> str:
    """What has to be installed before a part can be compiled here; empty when nothing is missing."""
    finders: list[Callable[[], object]] = [_toolchain.find_compiler, _toolchain.find_ninja]
    if name == "_C":
        finders.append(lambda: _toolchain.find_torch().require_stable_abi())
    else:
        finders += [_toolchain.python_include, lambda: _toolchain.pybind11_include(None)]
    for finder in finders:
        try:
            finder()
        except _toolchain.BuildError as error:
            return str(error).partition("; ")[2]
    return ""


def _built_with(info: dict[str, Any]) -> str:
    words = [f"{key} {info[key]}" for key in ("torch", "pybind11", "python") if info.get(key)]
    if info.get("cuda"):
        words.append(f"CUDA {info['cuda']} for {', '.join(info['architectures'])}")
    elif "cuda" in info:
        words.append("without CUDA")
    return ", ".join([*words, str(info.get("compiler", ""))])


def _tools(torch: Any) -> list[Finding]:
    """What compiles and runs kernels; a missing tool is a fault only where a native part is missing as well."""
    examinations: list[tuple[str, Callable[[], str]]] = [
        ("compiler", lambda: _toolchain.compiler_version(_toolchain.find_compiler())),
        ("ninja", lambda: str(_toolchain.find_ninja())),
        ("Python.h", lambda: str(_toolchain.python_include())),
        ("nvcc", lambda: "{0.version} at {0.path}".format(_toolchain.find_nvcc())),
    ]
    findings = []
    for name, examination in examinations:
        try:
            findings.append(Finding(name, True, examination()))
        except _toolchain.BuildError as error:
            reason, _, remedy = str(error).partition("; ")
            findings.append(Finding(name, None, reason, remedy))
    reasons = ["torch cannot be imported"] if torch is None else _triton_reasons(torch)
    version = _installed("triton")
    detail = "; ".join(reasons) if reasons else "usable"
    findings.append(Finding("triton", None if reasons else True, f"{version}: {detail}" if version else detail))
    return findings


def _triton_reasons(torch: Any) -> list[str]:
    try:
        runtime = importlib.import_module("motarfuse.kernels._runtime")
    except ImportError as error:
        return [f"motarfuse.kernels cannot be imported ({error}): pip install -e . in its source tree"]
    return list(runtime.reasons_against_triton("cuda" if torch.cuda.is_available() else "cpu"))


def _operators(torch: Any, problem: str) -> tuple[list[OperatorFinding], str]:
    if torch is None:
        return [], f"torch cannot be imported: {problem}"
    try:
        ops = importlib.import_module("motarfuse.ops")
    except ImportError as error:
        return [], f"motarfuse.ops cannot be imported: {error}"
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return [
        OperatorFinding(device, row.operator, row.backend, row.why_not, row.note)
        for device in devices
        for row in ops.explain(torch.device(device))
    ], ""
