"""Stages: a command each, run one after another, each within its share of the time that is left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.gpu_run.environment import REPOSITORY

SANITIZERS = ("memcheck", "racecheck", "initcheck")
SANITIZER_ERROR = 99  # the exit status that compute-sanitizer is told to have
TAIL_LINES = 30
GRACE_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Stage:
    """One command of the run.

    Attributes:
        name: Unique; its first word is the kind.
        command: With its program.
        weight: Share of the time, relative to the stages that follow.
        must_end: Whether running out of time is a failure.
        environment: Added to the process's own.
        skip: Why it is not run; empty if it is.
    """

    name: str
    command: tuple[str, ...]
    weight: float
    must_end: bool = True
    environment: dict[str, str] = field(default_factory=dict)
    skip: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a stage; status is ok, failed, timed out, cut short, skipped or not reached."""

    stage: str
    status: str
    seconds: float = 0.0
    note: str = ""

    @property
    def failed(self) -> bool:
        return self.status in ("failed", "timed out", "not reached")


def shares(stages: Sequence[Stage], seconds: float) -> list[float]:
    """Seconds of each stage, if all those before it use theirs up; 0 for one that is skipped."""
    total = sum(stage.weight for stage in stages if not stage.skip)
    return [0.0 if stage.skip else seconds * stage.weight / total for stage in stages]


def run_stages(stages: Sequence[Stage], seconds: float, log: Path) -> Iterator[Outcome]:
    """Runs the stages; the time that one leaves goes to all that follow."""
    end = time.monotonic() + seconds
    for index, stage in enumerate(stages):
        if stage.skip:
            yield Outcome(stage.name, "skipped", note=stage.skip)
            continue
        allowed = shares(stages[index:], end - time.monotonic())[0]
        print(f"== {stage.name} (at most {allowed:.0f} s)", flush=True)
        outcome, tail = run_stage(stage, allowed, log)
        if outcome.failed:
            print("\n".join(tail), flush=True)
        print(f"   {outcome.status} after {outcome.seconds:.0f} s  {outcome.note}".rstrip(), flush=True)
        yield outcome


def run_stage(stage: Stage, seconds: float, log: Path) -> tuple[Outcome, list[str]]:
    """Runs one command; its output is added to the log, and its last lines are returned.

    After ``seconds`` the command and every process that it started are ended.
    """
    if seconds <= 0:
        return judged(stage, None, 0.0, []), []
    start = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        print(f"\n== {stage.name}: {shlex.join(stage.command)}", file=file, flush=True)
        offset = log.stat().st_size
        try:
            process = subprocess.Popen(
                stage.command,
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=_own_group,
            )
        except OSError as error:
            return Outcome(stage.name, "failed", note=str(error)), []
        status: int | None = None
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(offset)
        lines = file.read().splitlines()
    return judged(stage, status, time.monotonic() - start, lines), lines[-TAIL_LINES:]


def _own_group() -> None:
    """A group to end as a whole, and an end with this process, should that be killed itself."""
    os.setpgid(0, 0)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def judged(stage: Stage, status: int | None, seconds: float, lines: Sequence[str]) -> Outcome:
    """What an exit status (None: out of time) and an output mean."""
    kind = stage.name.split()[0]
    pattern = re.compile(r"SUMMARY: " if kind in SANITIZERS else r"\d+ (passed|failed|error)")
    summary = next((line.strip("= ") for line in reversed(lines) if pattern.search(line)), "")
    if status is None:
        return Outcome(stage.name, "timed out" if stage.must_end else "cut short", seconds, summary)
    if kind in SANITIZERS and any("Device not supported" in line for line in lines):
        return Outcome(stage.name, "skipped", seconds, "compute-sanitizer does not support this device or its driver")
    if status:
        what = "errors found" if kind in SANITIZERS and status == SANITIZER_ERROR else f"exit status {status}"
        return Outcome(stage.name, "failed", seconds, f"{what}; {summary}".rstrip("; "))
    if kind in SANITIZERS and not summary:
        return Outcome(stage.name, "failed", seconds, "compute-sanitizer wrote no summary")
    if kind == "tests" and " passed" not in summary:
        return Outcome(stage.name, "failed", seconds, "no test ran")
    return Outcome(stage.name, "ok", seconds, summary)
