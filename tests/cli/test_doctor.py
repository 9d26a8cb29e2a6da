"""``motarfuse doctor`` answers on a healthy machine and on a broken one, and always exits with 0."""

from __future__ import annotations

import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from motarfuse import _native, doctor
from motarfuse.cli.main import main

# Stands in for a package that is not installed, in a fresh process.
BLOCK = "import sys\nfor name in {names!r}: sys.modules[name] = None\n"
RUN = "from motarfuse.cli.main import main\nraise SystemExit(main({arguments!r}))\n"


@pytest.fixture
def package(repository: Path, tmp_path: Path) -> Path:
    """A copy of the package with two native parts that are garbage."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(repository / "motarfuse", tmp_path / "motarfuse", ignore=ignored)
    shutil.copytree(repository / "csrc", tmp_path / "csrc", ignore=ignored)
    for name in ("_C.so", f"_host{importlib.machinery.EXTENSION_SUFFIXES[0]}"):
        (tmp_path / "motarfuse" / name).write_bytes(b"garbage" * 1000)
    return tmp_path / "motarfuse"


def broken(package: Path, *arguments: str, missing: tuple[str, ...] = (), path: Path | None = None) -> str:
    """What the doctor prints in a process where packages are missing; checks that it exits with 0."""
    code = BLOCK.format(names=missing) + RUN.format(arguments=["doctor", *arguments])
    folders = [*([str(path)] if path else []), str(package.parent)]
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=package.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders), "COLUMNS": "80"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


def broken_report(package: Path, missing: tuple[str, ...] = (), path: Path | None = None) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(broken(package, "--json", missing=missing, path=path))
    return report


def finding(report: dict[str, Any], section: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in report[section] if one["name"] == name]
    return dict(found)


def test_it_answers_here_with_a_line_for_every_subject(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in (
        "python",
        "torch",
        "numpy",
        "cpu",
        "_C",
        "_host",
        "compiler",
        "ninja",
        "nvcc",
        "triton",
        "part_moments",
    ):
        assert word in said, word


def test_its_tables_fit_80_columns(package: Path) -> None:
    lines = broken(package).splitlines()
    assert len(lines) > 30
    tables = lines[: lines.index("what to do")]
    assert max(len(line.rstrip()) for line in tables) <= 80


def test_json_holds_the_whole_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == doctor.examine().to_dict()
    assert finding(report, "packages", "torch")["ok"] is True
    (row,) = [one for one in report["operators"] if (one["operator"], one["device"]) == ("part_moments", "cpu")]
    assert row["backend"] not in row["why_not"]
    assert all(reasons and all(reasons) for reasons in row["why_not"].values()), "a backend is refused without a reason"


def test_every_fault_says_what_to_do(package: Path) -> None:
    report = broken_report(package, missing=("torch",))
    sections = ("system", "packages", "extras", "devices", "native", "tools")
    faults = [one for name in sections for one in report[name] if one["ok"] is False]
    assert {"_C", "_host", "torch"} <= {one["name"] for one in faults}
    assert all(one["remedy"] for one in faults)
    assert len(report["remedies"]) == len(faults)


def test_garbage_for_native_parts_is_named_and_operators_still_have_a_backend(package: Path) -> None:
    report = broken_report(package)
    for name in ("_C", "_host"):
        found = finding(report, "native", name)
        assert found["ok"] is False
        assert "not a shared library" in found["detail"]
        assert "motarfuse build" in found["remedy"]
    (row,) = [one for one in report["operators"] if (one["operator"], one["device"]) == ("part_moments", "cpu")]
    assert row["backend"] == "reference"
    assert "motarfuse._C is broken" in " ".join(row["why_not"]["cpu"])


def test_without_torch_it_answers_all_the_rest(package: Path) -> None:
    report = broken_report(package, missing=("torch",))
    torch = finding(report, "packages", "torch")
    assert torch["ok"] is False
    assert "cannot be imported: ModuleNotFoundError" in torch["detail"]
    assert report["operators"] == []
    assert "torch cannot be imported" in report["operators_error"]
    assert finding(report, "packages", "numpy")["ok"] is True


def test_a_torch_that_raises_something_odd_is_reported_as_it_is(package: Path, tmp_path: Path) -> None:
    fake = tmp_path / "fake"
    (fake / "torch").mkdir(parents=True)
    (fake / "torch" / "__init__.py").write_text("raise AttributeError('module numpy has no attribute bool')\n")
    report = broken_report(package, path=fake)
    assert "AttributeError: module numpy has no attribute bool" in finding(report, "packages", "torch")["detail"]


def test_without_rich_it_prints_plain_lines(package: Path) -> None:
    said = broken(package, missing=("rich", "rich.table", "rich.console"))
    assert "native parts\n  _C           FAULT" in said
    assert "part_moments on cpu: reference" in said


def test_brief_is_a_line_each(package: Path) -> None:
    lines = broken(package, "--brief").splitlines()
    assert [line.split(":")[0] for line in lines] == ["torch", "motarfuse._C is broken", "motarfuse._host is broken"]


def test_brief_names_a_part_that_was_built_from_other_sources(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = doctor.Finding("_C", False, "loaded, but built from other sources than those in csrc", "run it")
    monkeypatch.setattr(doctor, "native_findings", lambda: [stale])
    assert main(["doctor", "--brief"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"motarfuse._C: {stale.detail}; run it"


def test_an_unusable_preference_is_noted_and_not_fatal(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTARFUSE_BACKEND", "no-such-backend")
    report = broken_report(package)
    assert any("no-such-backend" in row["note"] for row in report["operators"])


def test_a_library_of_other_sources_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    if not _native.status().operators_loaded:
        pytest.skip(_native.status().operators_error)
    monkeypatch.setattr("motarfuse._build.operator_digest", lambda source: "0123456789abcdef")
    found = doctor.native_findings()[0]
    assert (found.name, found.ok, found.remedy) == ("_C", False, "run `motarfuse build`")
    assert "built from other sources" in found.detail


def test_a_gpu_without_a_cuda_build_of_torch_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(doctor, "_driver", lambda: "NVIDIA H200, 580.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    (found,) = [one for one in doctor._devices(torch) if one.name == "cuda"]
    assert found.ok is False
    assert "is a CPU build" in found.detail
    assert "CUDA build of torch" in found.remedy


def test_operators_without_cuda_beside_a_gpu_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    status = _native.status()
    if not status.operators_loaded:
        pytest.skip(status.operators_error)
    without = replace(status, operators_info={**status.operators_info, "cuda": None})
    monkeypatch.setattr(_native, "status", lambda: without)
    monkeypatch.setattr("motarfuse._build.operator_digest", lambda source: status.operators_info["sources"])
    assert doctor.native_findings()[0].ok is True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = doctor.native_findings()[0]
    assert (found.ok, found.detail) == (False, "loaded, but built without CUDA, and a GPU is here")
    assert "motarfuse build --cuda 1" in found.remedy
