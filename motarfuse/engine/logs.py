"""The run's log: JSON lines, TensorBoard where it is installed, and plain lines where there is no progress bar."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from motarfuse import console
from motarfuse.engine.outputs import output_errors, write_bytes
from motarfuse.errors import ConfigError, OutputError

LOG = "log.jsonl"
BOARD = "tensorboard"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log; a last line that a kill cut short is left out.

    Raises:
        ConfigError: A line before the last one is damaged.
    """
    events = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            events.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise ConfigError(f"{path}, line {number} is damaged ({error}); delete the line or the file") from error
    return events


class RunLog:
    """Appends events to ``log.jsonl`` and to TensorBoard.

    Args:
        run_dir: Folder of the run.
        step: Step that the run goes on from: later events, which a killed process had still written, are dropped.
        tensorboard: Whether to write TensorBoard events; said once when it is not installed.

    Raises:
        OutputError: The log cannot be written.
    """

    def __init__(self, run_dir: Path, *, step: int, tensorboard: bool) -> None:
        self._path = run_dir / LOG
        events = [event for event in read_log(self._path) if event["step"] <= step]
        write_bytes(self._path, "".join(map(_line, events)).encode())
        with output_errors(self._path):
            self._file = self._path.open("a", encoding="utf-8")
        self._board = _open_board(run_dir / BOARD, step) if tensorboard else None

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes one event; numbers also go to TensorBoard under ``event/[name/]key``.

        TensorBoard only mirrors the log: if it cannot be written, that is said once and the training goes on.

        Raises:
            OutputError: The log cannot be written: the disk is full or gone.
        """
        with output_errors(self._path):
            self._file.write(_line({"event": event, "step": step, **values}))
            self._file.flush()
        if self._board is not None:
            prefix = f"{event}/{values['name']}" if "name" in values else event
            try:
                with output_errors(self._path.parent / BOARD):
                    for key, value in values.items():
                        if isinstance(value, (int, float)):
                            self._board.add_scalar(f"{prefix}/{key}", value, step)
                    self._board.flush()
            except OutputError as error:
                console.warn(f"{error}; TensorBoard is left out from here on, log.jsonl has the same numbers")
                board, self._board = self._board, None
                with suppress(OSError):
                    board.close()

    def close(self) -> None:
        """Closes both; every event is on the disk by then, so a failure is a warning and hides no other error."""
        for path, target in ((self._path, self._file), (self._path.parent / BOARD, self._board)):
            try:
                with output_errors(path):
                    if target is not None:
                        target.close()
            except OutputError as error:
                console.warn(f"while closing the log: {error}")


def _line(event: Mapping[str, Any]) -> str:
    return json.dumps(event, allow_nan=False, ensure_ascii=False) + "\n"


def _open_board(folder: Path, step: int) -> Any:
    try:
        module = importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        console.info("TensorBoard is not installed, log.jsonl has the same numbers (pip install tensorboard)")
        return None
    with output_errors(folder):
        # purge_step hides what a killed process had written beyond the checkpoint.
        return module.SummaryWriter(str(folder), purge_step=step + 1 if step else None)
