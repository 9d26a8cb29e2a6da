"""The build: what is compiled when a tool or torch is missing, what fails loudly, what is compiled again.

The sources here are a few lines long and need no torch header, so that each build takes about a second.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest

from motarfuse import _build, _toolchain
from motarfuse._toolchain import BuildError, Nvcc, Torch
from motarfuse.cli.main import main

HOST_MODULE = """
#include <Python.h>
#include "number.h"
extern "C" const char* motarfuse_build_info();
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_host", motarfuse_build_info(), NUMBER, nullptr, nullptr,
                                 nullptr, nullptr, nullptr};
extern "C" PyObject* PyInit__host() { return PyModule_Create(&definition); }
"""
LIBRARY = """
#ifdef MOTARFUSE_WITH_CUDA
extern "C" int with_cuda() { return 1; }
#endif
extern "C" int probe() { return 1; }
"""
FAKE_NVCC = """#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
  *--dryrun*) echo "#$ TOP=$(dirname "$0")/.." ;;
  --list-gpu-code) echo "sm_75 sm_80 sm_90 sm_100" ;;
  *) echo "part.cu(3): error: this nvcc compiles nothing" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with tiny sources; `_build` takes it for its own, without a CUDA toolkit in reach."""
    for name, text in {
        "csrc/library.cpp": LIBRARY,
        "csrc/cpu/part.cpp": "int part() { return 2; }\n",
        "csrc/cuda/part.cu": "this is no CUDA\n",
        "csrc/host/module.cpp": HOST_MODULE,
        "csrc/host/number.h": "#define NUMBER -1\n",
    }.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    package = tmp_path / "tree" / "motarfuse"
    package.mkdir()
    monkeypatch.setattr(_build, "PACKAGE", package)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "no-toolkit"))
    for name in ("MOTARFUSE_BUILD_CUDA", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "tree"


@pytest.fixture
def fake_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toolkit whose nvcc answers questions and compiles nothing."""
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(FAKE_NVCC)
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    return nvcc


def outcomes(**arguments: object) -> dict[str, _build.Outcome]:
    return {one.name: one for one in _build.build(_build.PACKAGE, **arguments)}  # type: ignore[arg-type]


def test_both_parts_are_built_and_say_what_with(tree: Path) -> None:
    built = outcomes(cuda="0")
    library, host = built["_C"], built["_host"]
    assert library.path == tree / "motarfuse" / "_C.so"
    assert library.path.is_file()
    assert host.path == tree / "motarfuse" / _build.HOST
    assert host.path.is_file()
    assert (library.reason, library.warning, host.reason) == ("", "", "")
    assert library.info is not None
    assert library.info["torch"] == _toolchain.find_torch().version
    assert library.info["cuda"] is None


def test_cuda_0_leaves_the_cuda_sources_alone_even_with_a_toolkit(tree: Path, fake_nvcc: Path) -> None:
    assert outcomes(cuda="0")["_C"].path is not None


def test_auto_without_nvcc_builds_the_operators_for_the_cpu_and_says_so(tree: Path) -> None:
    operators = outcomes()["_C"]
    assert operators.path is not None
    assert operators.warning.startswith("without CUDA: CUDA_HOME is")


def test_auto_with_cuda_sources_that_do_not_compile_falls_back_and_shows_the_error(tree: Path, fake_nvcc: Path) -> None:
    operators = outcomes()["_C"]
    assert operators.path is not None
    assert "part.cu(3): error: this nvcc compiles nothing" in operators.warning
    assert b"with_cuda" not in operators.path.read_bytes(), "half of the CUDA library was put in place"


def test_cuda_1_with_sources_that_do_not_compile_raises(tree: Path, fake_nvcc: Path) -> None:
    with pytest.raises(BuildError, match="this nvcc compiles nothing"):
        outcomes(cuda="1")
    assert not (tree / "motarfuse" / "_C.so").exists()


def test_cuda_1_without_nvcc_raises_before_anything_is_compiled(tree: Path) -> None:
    with pytest.raises(BuildError, match=r"CUDA_HOME is .* has no bin/nvcc"):
        outcomes(cuda="1")
    assert not (tree / "build").exists()


def test_the_variable_asks_as_the_argument_does(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTARFUSE_BUILD_CUDA", "1")
    with pytest.raises(BuildError, match="nvcc"):
        outcomes()
    monkeypatch.setenv("MOTARFUSE_BUILD_CUDA", "yes")
    with pytest.raises(BuildError, match="'yes'; it is one of auto, 0, 1"):
        outcomes()


def test_no_nvcc_on_path_nor_in_the_usual_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(_toolchain, "DEFAULT_NVCC", tmp_path / "nvcc")
    with pytest.raises(BuildError, match="no nvcc on PATH; install a CUDA toolkit"):
        _toolchain.find_nvcc()


def test_a_pip_build_with_cuda_1_and_no_nvcc_fails_with_the_reason(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    environment = os.environ | {"MOTARFUSE_BUILD_CUDA": "1", "CUDA_HOME": str(tmp_path)}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    result = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert "MOTARFUSE_BUILD_CUDA is '1': CUDA_HOME is" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_a_c_plus_plus_error_leaves_the_operators_out_and_shows_it(tree: Path) -> None:
    (tree / "csrc" / "cpu" / "part.cpp").write_text("int part() { return undeclared_name; }\n")
    built = outcomes(cuda="0")
    assert built["_C"].path is None
    assert "part.cpp:1" in built["_C"].reason
    assert "undeclared_name" in built["_C"].reason
    assert built["_host"].path is not None


def test_an_undefined_symbol_fails_the_link_and_not_a_user(tree: Path) -> None:
    (tree / "csrc" / "cpu" / "part.cpp").write_text("int nowhere(); int part() { return nowhere(); }\n")
    assert "nowhere" in outcomes(cuda="0")["_C"].reason


def test_only_what_changed_is_compiled_again(tree: Path) -> None:
    outcomes(cuda="0")
    objects = sorted((tree / "build" / "native").rglob("*.o"))
    assert len(objects) == 2 + 1 + 2  # library and part; module; a build_info each
    before = {path: path.stat().st_mtime_ns for path in objects}
    outcomes(cuda="0")
    assert {path: path.stat().st_mtime_ns for path in objects} == before
    (tree / "csrc" / "host" / "number.h").write_text("#define NUMBER (-1)\n")
    outcomes(cuda="0")
    again = {path.name for path in objects if path.stat().st_mtime_ns != before[path]}
    assert again == {"host.module.cpp.o", "generated.build_info.cpp.o"}  # the header's digest is part of the info


def test_two_builds_in_different_folders_are_equal(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = outcomes(cuda="0")
    shutil.copytree(tree / "csrc", tmp_path / "elsewhere" / "csrc")
    (tmp_path / "elsewhere" / "motarfuse").mkdir()
    monkeypatch.setattr(_build, "PACKAGE", tmp_path / "elsewhere" / "motarfuse")
    second = outcomes(cuda="0")
    for name in ("_C", "_host"):
        one, other = first[name].path, second[name].path
        assert one is not None
        assert other is not None
        assert one != other
        assert one.read_bytes() == other.read_bytes()


def test_a_running_process_keeps_the_library_it_has_mapped(tree: Path) -> None:
    old = outcomes(cuda="0")["_C"].path
    assert old is not None
    with old.open("rb") as mapped:
        before = old.read_bytes()
        (tree / "csrc" / "cpu" / "part.cpp").write_text("int part() { return 3; }\n")
        outcomes(cuda="0")
        assert mapped.read() == before
        assert old.read_bytes() != before
    assert [path.name for path in old.parent.iterdir() if path.name.startswith(".")] == []


def test_no_ninja_and_no_compiler_are_said(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert outcomes(cuda="0")["_C"].reason.startswith("no C++ compiler")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "CXX is 'no-such-compiler'" in outcomes(cuda="0")["_C"].reason
    monkeypatch.delenv("CXX")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BuildError, match="ninja is missing; `pip install ninja`"):
        _toolchain.find_ninja()


def test_max_jobs_is_checked(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", "many")
    assert "MAX_JOBS is 'many'" in outcomes(cuda="0")["_C"].reason


def test_the_command_prints_what_it_built_and_where(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--cuda", "auto"]) == 0
    said = capsys.readouterr()
    assert f"motarfuse._C: {tree / 'motarfuse' / '_C.so'}" in said.out
    assert "motarfuse._C is built without CUDA: CUDA_HOME is" in said.err


def test_the_command_says_what_is_missing_and_builds_the_rest(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "csrc" / "cpu" / "part.cpp").write_text("#error not today\n")
    assert main(["build", "--cuda", "0"]) == 2
    said = capsys.readouterr()
    assert "motarfuse build: motarfuse._C is not built" in said.err
    assert "not today" in said.err
    assert f"motarfuse._host: {tree / 'motarfuse' / _build.HOST}" in said.out


def toolkit(*supported: int) -> Nvcc:
    return Nvcc(Path("nvcc"), Path("/toolkit"), "12.4", frozenset(supported))


def test_the_default_architectures_are_those_that_nvcc_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert _toolchain.selected_architectures(toolkit(80, 90, 100)) == ["8.0", "9.0a", "10.0+PTX"]
    assert _toolchain.selected_architectures(toolkit(80, 90)) == ["8.0", "9.0a"]
    with pytest.raises(BuildError, match="knows none of"):
        _toolchain.selected_architectures(toolkit(75))


def test_architectures_that_were_asked_for_are_never_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0a;10.0+PTX")
    assert _toolchain.selected_architectures(toolkit(80, 90, 100)) == ["8.0", "9.0a", "10.0+PTX"]
    with pytest.raises(BuildError, match=r"'10.0\+PTX'; nvcc 12.4 knows 8.0, 9.0"):
        _toolchain.selected_architectures(toolkit(80, 90))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(BuildError, match=r"'Hopper'; entries are like 8\.0"):
        _toolchain.selected_architectures(toolkit(80, 90))


def test_architectures_become_machine_code_and_ptx_where_asked() -> None:
    assert _toolchain.gencode_flags(["8.0", "9.0a", "10.0+PTX"]) == [
        "-gencode=arch=compute_80,code=[sm_80]",
        "-gencode=arch=compute_90a,code=[sm_90a]",
        "-gencode=arch=compute_100,code=[sm_100,compute_100]",
    ]


def test_versions_compare_as_numbers(tmp_path: Path) -> None:
    assert _toolchain.release("2.10.0+cu130") == (2, 10) > _toolchain.release("2.9.1")
    with pytest.raises(BuildError, match=r"torch 2\.9\.1 .* is older than 2\.10"):
        Torch(tmp_path, "2.9.1", None).require_stable_abi()


class TestEnvironments:
    """Which torch is found from inside a virtual environment, without importing it."""

    CODE = textwrap.dedent(
        """
        import pathlib, sys
        sys.path.insert(0, {repository!r})
        from motarfuse import _build
        _build.PACKAGE = pathlib.Path({package!r})
        for outcome in _build.build(_build.PACKAGE, cuda="0"):
            print(outcome.name, "built" if outcome.path else outcome.reason)
        """
    )

    @pytest.fixture
    def python(self, tmp_path: Path) -> Path:
        venv.create(tmp_path / "venv", with_pip=False)
        return tmp_path / "venv" / "bin" / "python"

    def answers(self, python: Path, tree: Path, repository: Path, **environment: str) -> str:
        code = self.CODE.format(repository=str(repository), package=str(tree / "motarfuse"))
        folders = os.pathsep.join([str(_toolchain.find_ninja().parent), os.environ["PATH"]])
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        result = subprocess.run(
            [str(python), "-c", code], env=clean | {"PATH": folders} | environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def put_torch(self, folder: Path, version: str) -> None:
        (folder / "torch" / "include").mkdir(parents=True)
        (folder / "torch" / "__init__.py").write_text("raise RuntimeError('torch must not be imported')\n")
        (folder / "torch" / "version.py").write_text(f"__version__ = '{version}'\ncuda: Optional[str] = '13.0'\n")

    def test_without_torch_the_operators_are_left_out_and_it_says_so(
        self, python: Path, tree: Path, repository: Path
    ) -> None:
        said = self.answers(python, tree, repository)
        assert "_C no torch in the environment of" in said
        assert "install torch>=2.10, then run `motarfuse build`" in said

    def test_a_torch_before_2_10_is_refused_with_its_version(
        self, python: Path, tree: Path, tmp_path: Path, repository: Path
    ) -> None:
        self.put_torch(tmp_path / "old", "2.9.1+cu126")
        said = self.answers(python, tree, repository, PYTHONPATH=str(tmp_path / "old"))
        assert "_C torch 2.9.1+cu126 at" in said
        assert "is older than 2.10" in said

    def test_a_torch_behind_a_pth_file_is_found_from_an_isolated_build_too(
        self, python: Path, tree: Path, tmp_path: Path, repository: Path
    ) -> None:
        self.put_torch(tmp_path / "base", "2.9.0")
        query = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site = Path(subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip())
        (site / "base.pth").write_text(f"{tmp_path / 'base'}\n")
        overlay = tmp_path / "overlay"  # what pip's isolation does: site-packages are gone from the path
        overlay.mkdir()
        (overlay / "sitecustomize.py").write_text(
            f"import sys\nsys.path[:] = [p for p in sys.path if p not in ({str(site)!r}, {str(tmp_path / 'base')!r})]\n"
        )
        assert "_C torch 2.9.0 at" in self.answers(python, tree, repository, PYTHONPATH=str(overlay))
