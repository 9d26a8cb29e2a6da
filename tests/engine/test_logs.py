"""The run's log on a disk that fills up: one error, and never another one in its place."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from motarfuse.engine.logs import RunLog, read_log
from motarfuse.errors import OutputError


class Full:
    """A file or TensorBoard writer on a full disk."""

    def __getattr__(self, name: str) -> Any:
        def fail(*values: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        return fail


def test_a_failure_to_close_never_hides_the_error_before_it(tmp_path: Path) -> None:
    log: Any = RunLog(tmp_path, step=0, tensorboard=False)
    log._file.close()
    log._file, log._board = Full(), Full()

    def train() -> None:
        try:
            log.write("train", 1, {"loss": 1.0})
        finally:
            log.close()

    with pytest.raises(OutputError, match=r"log\.jsonl: the disk is full"):
        train()


def test_both_are_closed_and_a_failure_alone_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log: Any = RunLog(tmp_path, step=0, tensorboard=False)
    file, log._board = log._file, Full()
    log.close()
    assert file.closed
    assert "the disk is full" in " ".join(capsys.readouterr().err.split())


def test_tensorboard_that_fails_is_dropped_with_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log: Any = RunLog(tmp_path, step=0, tensorboard=False)
    log._board = Full()
    for step in (1, 2):
        log.write("train", step, {"loss": 1.0})
    log.close()
    assert [event["step"] for event in read_log(tmp_path / "log.jsonl")] == [1, 2]
    assert " ".join(capsys.readouterr().err.split()).count("TensorBoard is left out") == 1
