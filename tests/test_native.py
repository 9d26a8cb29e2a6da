"""A missing or broken native part never breaks an import; it is named, with the reason and what to do."""

from __future__ import annotations

import importlib.machinery
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from motarfuse import _native

LIBRARIES = ("_C.so", "_host" + importlib.machinery.EXTENSION_SUFFIXES[0])
STATUS = """
import dataclasses, json, sys
import motarfuse
assert "torch" not in sys.modules, "import motarfuse imports torch"
from motarfuse import _native
assert "torch" not in sys.modules, "import motarfuse._native imports torch"
status = dataclasses.asdict(_native.status())
print(json.dumps({"file": motarfuse.__file__, **status}, default=str))
"""
linux_only = pytest.mark.skipif(platform.system() != "Linux", reason="looks into ELF files")


@pytest.fixture
def package(repository: Path, tmp_path: Path) -> Path:
    """A copy of the package without its native parts."""
    shutil.copytree(
        repository / "motarfuse", tmp_path / "motarfuse", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    return tmp_path / "motarfuse"


def run(package: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MOTARFUSE_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=package.parent,
        env=clean | {"PYTHONPATH": str(package.parent)} | environment,
        capture_output=True,
        text=True,
    )


def status(package: Path, code: str = STATUS, **environment: str) -> dict[str, object]:
    result = run(package, code, **environment)
    assert result.returncode == 0, result.stderr
    answer: dict[str, object] = json.loads(result.stdout)
    assert answer["file"] == str(package / "__init__.py"), "another copy was imported"
    return answer


def compile_library(source: str, out: Path, *flags: str) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(out), *flags]
    subprocess.run(command, input=source, text=True, check=True)


def test_missing_parts(package: Path) -> None:
    answer = status(package)
    assert answer["operators_error"] == "motarfuse._C is not built; run `motarfuse build`"
    assert answer["host_error"] == "motarfuse._host is not built; run `motarfuse build`"
    assert (answer["operators_loaded"], answer["host_loaded"]) == (False, False)
    assert (answer["operators_path"], answer["host_path"]) == (None, None)


@linux_only
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"garbage" * 100, "not a shared library (it begins with b'garbageg')")],
    ids=["empty", "garbage"],
)
def test_a_file_that_is_no_library(package: Path, content: bytes, reason: str) -> None:
    for name in LIBRARIES:
        (package / name).write_bytes(content)
    answer = status(package)
    assert answer["operators_error"] == f"motarfuse._C is broken: {reason}; run `motarfuse build`"
    assert answer["host_error"] == f"motarfuse._host is broken: {reason}; run `motarfuse build`"
    assert answer["operators_path"] == str(package / "_C.so")


@linux_only
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.999])
def test_a_truncated_library_does_not_kill_the_process(package: Path, kept: float) -> None:
    compile_library("static int big[40000] = {1}; int first() { return big[3]; }", package / "_C.so")
    whole = (package / "_C.so").read_bytes()
    (package / "_C.so").write_bytes(whole[: int(len(whole) * kept)])
    error = str(status(package)["operators_error"])
    assert error.startswith("motarfuse._C is broken: truncated (")
    assert f"of {len(whole)} bytes" in error


@linux_only
def test_a_missing_symbol(package: Path) -> None:
    source = "extern void no_such_symbol(void); void* place(void) { return (void*)no_such_symbol; }"
    for name in LIBRARIES:
        compile_library(source, package / name)
    answer = status(package)
    for error in (str(answer["operators_error"]), str(answer["host_error"])):
        assert "does not load: " in error
        assert "undefined symbol: no_such_symbol" in error
        assert error.endswith("; run `motarfuse build`")


@linux_only
def test_a_host_module_that_is_no_python_module(package: Path) -> None:
    compile_library("int nothing(void) { return 0; }", package / LIBRARIES[1])
    assert "motarfuse._host does not load: " in str(status(package)["host_error"])


@linux_only
def test_a_host_module_that_is_another_one(package: Path) -> None:
    source = """
        #include <Python.h>
        static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_host", 0, -1, 0, 0, 0, 0, 0};
        PyMODINIT_FUNC PyInit__host(void) { return PyModule_Create(&definition); }
    """
    compile_library(source, package / LIBRARIES[1], "-I", sysconfig.get_path("include"))
    assert status(package)["host_error"] == "motarfuse._host is broken: it is another module; run `motarfuse build`"


def test_a_library_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "it cannot be read (" in _native._file_problem(tmp_path / "gone.so")


@linux_only
def test_a_library_of_another_processor(package: Path) -> None:
    compile_library("int nothing(void) { return 0; }", package / "_C.so")
    data = bytearray((package / "_C.so").read_bytes())
    data[18:20] = (8).to_bytes(2, "little")  # e_machine: MIPS
    (package / "_C.so").write_bytes(data)
    assert "built for another processor" in str(status(package)["operators_error"])


def test_a_host_module_of_another_python(package: Path) -> None:
    (package / "_host.cpython-39-x86_64-linux-gnu.so").write_bytes(b"whatever")
    error = str(status(package)["host_error"])
    assert error.startswith("motarfuse._host is built for another Python (_host.cpython-39-x86_64-linux-gnu.so)")
    assert sys.implementation.cache_tag is not None
    assert f"this is {sys.implementation.cache_tag}; run `motarfuse build`" in error


@linux_only
def test_without_torch_the_operators_are_not_loaded_and_the_rest_answers(package: Path) -> None:
    compile_library("int nothing(void) { return 0; }", package / "_C.so")
    code = "import sys\nsys.modules['torch'] = None\n" + STATUS.replace('"torch" not in sys.modules', "True")
    answer = status(package, code)
    assert str(answer["operators_error"]).startswith("motarfuse._C needs torch, which cannot be imported: ")
    assert answer["host_error"] == "motarfuse._host is not built; run `motarfuse build`"


def test_operators_fall_back_to_the_reference_beside_a_broken_library(package: Path) -> None:
    for name in LIBRARIES:
        (package / name).write_bytes(b"\x7fELF but nothing else")
    code = """
import torch
from motarfuse import ops
logits = torch.randn(1, 2, 6, requires_grad=True)
keypoints, _, _ = ops.part_moments(logits, grid=(2, 3))
keypoints.sum().backward()
assert logits.grad.isfinite().all()
try:
    ops.part_moments(logits, grid=(2, 3), impl="cpu")
except RuntimeError as error:
    print(error)
"""
    result = run(package, code)
    assert result.returncode == 0, result.stderr
    assert "motarfuse._C is broken" in result.stdout


def test_the_switch_behaves_as_if_neither_were_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTARFUSE_DISABLE_NATIVE", "1")
    assert _native.host() is None
    assert _native.load_operators() is False
    assert "MOTARFUSE_DISABLE_NATIVE; unset it" in _native.status().operators_error


def test_threads_load_once_and_get_the_same_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_host", None)
    monkeypatch.setattr(_native, "_operators", None)
    with ThreadPoolExecutor(8) as pool:
        modules = list(pool.map(lambda _: _native.host(), range(32)))
        loaded = list(pool.map(lambda _: _native.load_operators(), range(32)))
    assert len({id(module) for module in modules}) == 1
    assert len(set(loaded)) == 1


def test_a_built_part_says_what_it_was_built_with() -> None:
    found = _native.status()
    if not (found.operators_loaded and found.host_loaded):
        pytest.skip(f"{found.operators_error} {found.host_error}")
    assert set(found.operators_info) == {"compiler", "torch", "cuda", "architectures", "sources"}
    assert set(found.host_info) == {"compiler", "pybind11", "python", "sources"}
    module = _native.host()
    assert module is not None
    assert module.build_info() == found.host_info
    assert found.host_info["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (["8.0", "9.0a", "10.0+PTX"], (8, 0), True),
        (["8.0", "9.0a", "10.0+PTX"], (8, 9), True),
        (["8.0", "9.0a", "10.0+PTX"], (9, 0), True),
        (["8.0", "9.0a", "10.0+PTX"], (12, 0), True),
        (["8.0", "9.0a", "10.0+PTX"], (7, 5), False),
        (["9.0a"], (8, 6), False),
        (["9.0a+PTX"], (10, 0), False),
        (["8.6"], (8, 0), False),
        (["8.6+PTX"], (9, 0), True),
        (["10.0"], (12, 0), False),
        (["10.0f"], (10, 3), True),
        (["10.0a"], (10, 3), False),
        ([], (9, 0), False),
    ],
)
def test_code_runs_on_the_gpus_that_it_was_built_for(
    architectures: list[str], capability: tuple[int, int], runs: bool
) -> None:
    assert _native.runs_on(architectures, capability) == runs
