"""The GPU run where there is no GPU: its plan, its stages with commands of a second, its exit status, its table."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.gpu_run import __main__ as gpu_run
from tools.gpu_run import environment
from tools.gpu_run.environment import Gpu
from tools.gpu_run.operators import OPERATORS
from tools.gpu_run.stages import SANITIZER_ERROR, Stage, judged, run_stage, run_stages, shares
from tools.gpu_run.table import measurements

HOPPER = Gpu("a GPU", "9.0", "1.2.3")
COLUMNS = (
    "operator,implementation,mode,shape,dtype,median,p20,p80,unit,fraction_of_ceiling,ratio_to_best_peer,device,"
    "driver,torch,triton,nvcc,commit,date\n"
)


def python(name: str, code: str, **options: object) -> Stage:
    return Stage(name, (sys.executable, "-c", code), **{"weight": 1.0, **options})  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_without_a_gpu_it_says_so_with_a_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_run.main(["--out", str(tmp_path / "out")]) == 3
    assert "there is no NVIDIA GPU here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_no_torch_sees_is_no_gpu_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\necho "NVIDIA Fancy 9000, 9.0, 580.1"\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert environment.find_gpu() == Gpu("NVIDIA Fancy 9000", "9.0", "580.1")
    monkeypatch.setattr(environment, "_probe", lambda _: {"cuda": False, "kernels": ""})
    assert gpu_run.main([]) == 3
    assert "NVIDIA Fancy 9000, but the torch of" in capsys.readouterr().err
    monkeypatch.setattr(environment, "_probe", lambda _: {})
    assert gpu_run.main([]) == 3
    assert "cannot import torch" in capsys.readouterr().err


def test_an_environment_without_pip_finds_this_checkout_whole(tmp_path: Path, repository: Path) -> None:
    found, problem = environment.linked_python(tmp_path / "venv")
    assert problem == ""
    code = "import torch, motarfuse.kernels as k, motarfuse.ops, motarfuse._native as n; print(k.__file__, n.PACKAGE)"
    for folder in (tmp_path, repository):  # outside of the checkout, and where the checkout itself is on the path
        result = subprocess.run([found, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        assert result.stdout.split() == [str(repository / "kernels" / "__init__.py"), str(repository / "motarfuse")]


def test_the_plan_names_every_stage_of_every_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    stages = gpu_run.plan(OPERATORS, list(gpu_run.WEIGHTS), tmp_path, "python", HOPPER)
    names = [stage.name for stage in stages]
    wanted = ["build", "tests", *(f"tune {name}" for name in OPERATORS), "ceilings"]
    wanted += [f"bench {name}" for name in OPERATORS]
    checked = [name for name, operator in OPERATORS.items() if operator.sanitize is not None]
    wanted += [f"{tool} {name}" for tool in ("memcheck", "racecheck", "initcheck") for name in checked]
    assert names == wanted
    by_name = {stage.name: stage for stage in stages}
    assert by_name["build"].environment == {"TORCH_CUDA_ARCH_LIST": "9.0a"}
    assert by_name["bench part_moments"].command[-2:] == ("--csv", str(tmp_path / "part_moments.csv"))
    assert not by_name["bench part_moments"].must_end
    assert by_name["memcheck part_moments"].must_end
    tune = by_name["tune motion_attention"]
    assert tune.command[:3] == ("python", "-m", "benchmarks.tune_motion_attention")
    assert tune.command[-2:] == ("--csv", str(tmp_path / "motion_attention_tuning.csv"))
    assert (tune.skip, tune.must_end) == ("", False)
    assert by_name["tune part_moments"].skip == "nothing is to be tuned"
    assert "kns=part_moments" in by_name["racecheck part_moments"].command
    seconds = dict(zip(names, shares(stages, 540), strict=True))
    assert sum(seconds.values()) == pytest.approx(540)
    assert all(seconds[stage.name] == 0 for stage in stages if stage.skip)


def test_one_operator_alone_brings_its_tests_alone(tmp_path: Path) -> None:
    chosen = {"part_moments": OPERATORS["part_moments"]}
    (tests,) = gpu_run.plan(chosen, ["tests"], tmp_path, "python", HOPPER)
    assert "tests/ops/test_part_moments.py" in tests.command
    assert not any("motion_attention" in word for word in tests.command)
    (everything,) = gpu_run.plan(OPERATORS, ["tests"], tmp_path, "python", HOPPER)
    assert not any(word.endswith(".py") for word in everything.command)


def test_a_dry_run_shows_the_plan_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_run.main(["--dry-run", "--only", "part_moments", "--stages", "bench", "ceilings", "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert "bench part_moments" in out
    assert "56 s" in out  # 60 of 4.0 : 0.3
    assert "motion_attention" not in out


def test_tuning_is_off_unless_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dry-run", "--only", "motion_attention"]
    for tune in (False, True):
        assert gpu_run.main([*arguments, *(["--tune"] if tune else [])]) == 0
        assert ("tune_motion_attention" in capsys.readouterr().out) == tune


@pytest.mark.parametrize("arguments", [["--only", "nonsense"], ["--limit", "0"], ["--stages", "cooking"]])
def test_a_wrong_call_ends_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        gpu_run.main(arguments)
    assert error.value.code == 2


@pytest.mark.parametrize("name", OPERATORS)
def test_what_an_entry_names_exists(name: str, repository: Path) -> None:
    operator = OPERATORS[name]
    for pattern in operator.tests:
        assert list(repository.glob(pattern)), pattern
    for measuring in (operator.bench, operator.tune or operator.bench):
        module = measuring[measuring.index("-m") + 1]
        assert (repository / f"{module.replace('.', '/')}.py").is_file()
    sources = [*repository.glob(f"kernels/{name}*.py"), *repository.glob(f"csrc/cuda/{name}*.cu*")]
    text = "\n".join(source.read_text() for source in sources)
    assert (operator.sanitize is None) == (operator.kernels == ()) == (not sources)
    if operator.sanitize is None:
        return
    # Kernels that several operators launch are in a module of their own.
    for shared in sorted(set(re.findall(r"^from motarfuse\.kernels\.(row_norm\w*) import", text, re.MULTILINE))):
        text += (repository / "kernels" / f"{shared}.py").read_text()
    # Of Triton: `def x_kernel(`; of CUDA C++, where launch bounds and template lines come between: `x_kernel(`.
    kernels = set(re.findall(r"\b(\w+_kernel)\(", text))
    assert kernels
    assert [kernel for kernel in kernels if not any(part in kernel for part in operator.kernels)] == []
    assert [part for part in operator.kernels if not any(part in kernel for kernel in kernels)] == []
    if "pytest" in operator.sanitize:
        command = [sys.executable, *operator.sanitize, "--collect-only"]
        result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout


def test_a_stage_that_outruns_its_time_is_ended_with_what_it_started_and_keeps_its_output(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    code = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print('child', child.pid, flush=True); time.sleep(60)"
    )
    start = time.monotonic()
    outcome, tail = run_stage(python("tests", code), 2.0, log)
    assert time.monotonic() - start < 10
    assert outcome.status == "timed out"
    assert outcome.failed
    assert tail[0].startswith("child ")
    assert not alive(int(tail[0].split()[1]))
    assert log.read_text().startswith("before\n\n== tests: ")


def test_a_stage_that_ignores_the_signal_is_ended_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.gpu_run.stages.GRACE_SECONDS", 0.5)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    start = time.monotonic()
    outcome, tail = run_stage(python("bench x", code, must_end=False), 1.5, tmp_path / "log")
    assert time.monotonic() - start < 10
    assert (outcome.status, outcome.failed) == ("cut short", False)
    assert tail == ["on"]


def test_the_time_that_a_stage_leaves_goes_to_those_that_follow(tmp_path: Path) -> None:
    stages = [python("build", "", weight=9.0), python("bench x", "import time; time.sleep(1.5)", weight=1.0)]
    assert shares(stages, 10.0)[1] == 1.0
    assert [outcome.status for outcome in run_stages(stages, 10.0, tmp_path / "log")] == ["ok", "ok"]


def test_a_program_that_is_not_there_fails_its_stage(tmp_path: Path) -> None:
    outcome, _ = run_stage(Stage("bench x", (str(tmp_path / "nothing"),), 1.0), 5.0, tmp_path / "log")
    assert outcome.status == "failed"
    assert "No such file" in outcome.note


@pytest.mark.parametrize(
    ("name", "status", "output", "expected", "note"),
    [
        ("tests", 0, "== 12 passed, 3 skipped in 1.0s ==", "ok", "12 passed, 3 skipped in 1.0s"),
        ("tests", 0, "== 15 skipped in 1.0s ==", "failed", "no test ran"),
        ("tests", 1, "== 1 failed, 3 passed in 1.0s ==", "failed", "exit status 1; 1 failed, 3 passed in 1.0s"),
        ("tests", None, "== gpu ==", "timed out", ""),
        ("build", 1, "nvcc: error", "failed", "exit status 1"),
        ("bench x", -11, "", "failed", "exit status -11"),
        ("bench x", None, "", "cut short", ""),
        ("memcheck x", 0, "========= ERROR SUMMARY: 0 errors", "ok", "ERROR SUMMARY: 0 errors"),
        ("memcheck x", 0, "fine", "failed", "compute-sanitizer wrote no summary"),
        (
            "racecheck x",
            SANITIZER_ERROR,
            "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)",
            "failed",
            "errors found; RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)",
        ),
        (
            "initcheck x",
            1,
            "========= Error: Device not supported",
            "skipped",
            "compute-sanitizer does not support this device or its driver",
        ),
    ],
)
def test_what_became_of_a_stage(name: str, status: int | None, output: str, expected: str, note: str) -> None:
    stage = Stage(name, ("x",), 1.0, must_end=not name.startswith("bench"))
    outcome = judged(stage, status, 1.0, output.splitlines())
    assert (outcome.status, outcome.note) == (expected, note)


def test_the_status_tells_of_failures_and_the_table_of_partial_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows" / "op.csv"
    row = "op,{},fwd,2x3,bfloat16,{},1,2,us,0.500,{},gpu,,,,,,\n"
    file.parent.mkdir()
    file.write_text(COLUMNS + row.format("old", "99.0", "9.00"))
    added = row.format("mine", "12.5", "1.62") + row.format("peer", "20.2", "1.00") + "op,mine,bw"
    bench = python("bench op", f"open({str(file)!r}, 'a').write({added!r}); import time; time.sleep(60)")
    bench = Stage(bench.name, bench.command, 1.0, must_end=False)
    tests = python("tests", "print('== 3 passed in 0.1s =='); import sys; sys.exit(1)")
    skipped = python("memcheck op", "", skip="compute-sanitizer is not installed")
    assert gpu_run.execute([tests, skipped, bench], 4.0, tmp_path / "out", file.parent) == 1
    table = (tmp_path / "out" / "summary.txt").read_text()
    assert "tests                      failed" in table
    assert "memcheck op                skipped         0 s  compute-sanitizer is not installed" in table
    assert "bench op                   cut short" in table
    assert "op                 2x3                        bfloat16  fwd 12.5 us 1.62x (0.500)" in table
    assert "99.0" not in table
    assert "20.2" not in table
    assert table.strip() in capsys.readouterr().out
    assert gpu_run.execute([skipped], 4.0, tmp_path / "out", file.parent) == 0


def test_one_that_is_ended_early_ends_its_stage_and_still_writes_its_table(tmp_path: Path, repository: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tools.gpu_run import __main__ as m, stages as s;"
        "command = (sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)');"
        f"out = Path({str(tmp_path)!r});"
        "sys.exit(m.execute([s.Stage('build', command, 1.0), s.Stage('tests', command, 1.0)], 100.0, out, out))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=repository, stdout=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "gpu-run.log", time.monotonic() + 30
    while not (log.exists() and log.read_text().endswith("\n") and log.read_text().split()[-1].isdigit()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stage = int(log.read_text().split()[-1])
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 1
    assert not alive(stage)
    assert "tests                      not reached" in (tmp_path / "summary.txt").read_text()


def test_the_ceilings_of_a_run_have_a_line(tmp_path: Path) -> None:
    row = "ceiling,{},fwd,n,bfloat16,{},1,2,{},,,gpu,,,,,,\n"
    text = COLUMNS + row.format("copy", "3000.1", "GB/s") + row.format("matrix product", "750000.0", "GFLOP/s")
    (tmp_path / "ceilings.csv").write_text(text)
    lines = list(measurements(tmp_path, {}))
    assert lines[1].split("bfloat16  ")[1] == "copy 3000.1 GB/s  matrix product 750000.0 GFLOP/s"
