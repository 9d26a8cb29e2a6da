"""Loads the native parts on first use: the operator library ``_C.so`` and the host module ``_host``.

Both are optional. Importing this module loads nothing and never raises; a part that is missing or broken is reported
by `status` as a sentence with what to do, and the pure Python paths are taken. ``MOTARFUSE_DISABLE_NATIVE=1`` behaves
as if neither were built.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import json
import os
import platform
import re
import struct
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).resolve().parent
REBUILD = "run `motarfuse build`"
DISABLED = "the native parts are switched off by MOTARFUSE_DISABLE_NATIVE; unset it"

_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}


@dataclass(frozen=True)
class NativeStatus:
    """What is loaded, from where, and why the rest is not.

    Attributes:
        operators_loaded: Whether ``_C.so`` is loaded.
        operators_path: Its path; None when there is no file.
        operators_error: Why it is not loaded and what to do; empty when it is.
        operators_info: Compiler, torch, CUDA and architectures it was built with.
        host_loaded, host_path, host_error, host_info: The same of ``_host``.
    """

    operators_loaded: bool
    operators_path: Path | None
    operators_error: str
    host_loaded: bool
    host_path: Path | None
    host_error: str
    operators_info: dict[str, Any] = field(default_factory=dict)
    host_info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """One native part after the attempt to load it; ``module`` is only ever set for ``_host``."""

    loaded: bool
    path: Path | None
    error: str = ""
    module: ModuleType | None = None
    info: dict[str, Any] = field(default_factory=dict)


_lock = threading.RLock()
_host: _Part | None = None
_operators: _Part | None = None


def host() -> ModuleType | None:
    """The module ``motarfuse._host``, or None where it is not built or does not load."""
    return _host_part().module


def load_operators() -> bool:
    """Loads ``_C.so`` into torch once.

    Returns:
        Whether its operators are registered.
    """
    return _operators_part().loaded


def status() -> NativeStatus:
    """Tries to load both parts and says how that went."""
    operators, module = _operators_part(), _host_part()
    return NativeStatus(
        operators_loaded=operators.loaded,
        operators_path=operators.path,
        operators_error=operators.error,
        host_loaded=module.loaded,
        host_path=module.path,
        host_error=module.error,
        operators_info=operators.info,
        host_info=module.info,
    )


def runs_on(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code for ``architectures``, as in ``TORCH_CUDA_ARCH_LIST``, runs on a GPU of a compute capability.

    Machine code runs on its own major capability from its own minor one on, that of ``a`` on its own only, that of
    ``f`` as machine code does; PTX is compiled for its own and every newer one, unless it is that of ``a``.
    """
    for entry in architectures:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        assert match is not None, entry
        own = (int(match[1]), int(match[2]))
        newer_minor = match[3] != "a" and capability[0] == own[0] and capability >= own
        newer = match[3] == "" and bool(match[4]) and capability >= own
        if capability == own or newer_minor or newer:
            return True
    return False


def _disabled() -> bool:
    return os.environ.get("MOTARFUSE_DISABLE_NATIVE", "") not in ("", "0")


def _host_part() -> _Part:
    global _host
    if _disabled():
        return _Part(False, None, DISABLED)
    with _lock:
        if _host is None:
            _host = _load_host()
        return _host


def _operators_part() -> _Part:
    global _operators
    if _disabled():
        return _Part(False, None, DISABLED)
    with _lock:
        if _operators is None:
            _operators = _load_operators()
        return _operators


def _load_host() -> _Part:
    files = [PACKAGE / f"_host{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        others = sorted(file.name for file in PACKAGE.glob("_host.*.so"))
        if others:
            mine = sys.implementation.cache_tag
            error = f"motarfuse._host is built for another Python ({', '.join(others)}), this is {mine}; {REBUILD}"
            return _Part(False, PACKAGE / others[0], error)
        return _Part(False, None, f"motarfuse._host is not built; {REBUILD}")
    problem = _file_problem(path)
    if problem:
        return _Part(False, path, f"motarfuse._host is broken: {problem}; {REBUILD}")
    spec = importlib.util.spec_from_file_location("motarfuse._host", path)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return _Part(False, path, f"motarfuse._host does not load: {error}; {REBUILD}")
    if not hasattr(module, "build_info"):
        return _Part(False, path, f"motarfuse._host is broken: it is another module; {REBUILD}")
    sys.modules["motarfuse._host"] = module
    return _Part(True, path, module=module, info=dict(module.build_info()))


def _load_operators() -> _Part:
    path = PACKAGE / "_C.so"
    if not path.is_file():
        return _Part(False, None, f"motarfuse._C is not built; {REBUILD}")
    problem = _file_problem(path)
    if problem:
        return _Part(False, path, f"motarfuse._C is broken: {problem}; {REBUILD}")
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: torch's own libraries do not load
        return _Part(False, path, f"motarfuse._C needs torch, which cannot be imported: {error}; install torch>=2.10")
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 10):
        return _Part(False, path, f"motarfuse._C needs torch 2.10, this is {torch.__version__}; install torch>=2.10")
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:  # the dynamic linker's and the dispatcher's refusals
        return _Part(False, path, f"motarfuse._C does not load: {error.__cause__ or error}; {REBUILD}")
    return _Part(True, path, info=_build_info(path))


def _build_info(path: Path) -> dict[str, Any]:
    """The library's own record of its build; empty for one that was not built by `motarfuse._build`."""
    try:
        function = ctypes.CDLL(str(path)).motarfuse_build_info
    except AttributeError:
        return {}
    function.restype = ctypes.c_char_p
    return dict(json.loads(function().decode()))


def _file_problem(path: Path) -> str:
    """Why a file cannot be a shared library of this machine, empty when nothing speaks against it.

    The dynamic linker maps a truncated library and dies by a signal where its end is missing; no `except` catches that.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(64)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if not sys.platform.startswith("linux"):
        return "" if size else "the file is empty"
    if size == 0:
        return "the file is empty"
    if header[:4] != b"\x7fELF" or len(header) < 64:
        return f"not a shared library (it begins with {header[:8]!r})"
    machine = platform.machine()
    if machine in _ELF_MACHINES and struct.unpack_from("<H", header, 18)[0] != _ELF_MACHINES[machine]:
        return f"built for another processor, this is {machine}"
    # The section headers of an ELF64 file are its last bytes.
    (section_offset,) = struct.unpack_from("<Q", header, 40)
    entry_size, entries = struct.unpack_from("<HH", header, 58)
    if size < section_offset + entry_size * entries:
        return f"truncated ({size} of {section_offset + entry_size * entries} bytes)"
    return ""
