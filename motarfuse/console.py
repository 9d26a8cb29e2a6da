"""The one place where the command line writes: messages, tables and progress bars.

Progress bars draw only on a terminal; a log file or a pipe gets plain lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

console = Console(highlight=False, soft_wrap=True)
error_console = Console(stderr=True, highlight=False, soft_wrap=True)


def info(message: str) -> None:
    """Prints one line of information; square brackets in it are text, not markup."""
    console.print(message, markup=False)


def warn(message: str) -> None:
    """Prints one line of warning on standard error."""
    error_console.print(f"warning: {message}", style="yellow", markup=False)


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Progress]:
    """A progress bar with one task (its id is 0), drawn on a terminal only.

    Args:
        description: What is being done; the task's field ``note`` is shown behind the bar.
        total: Number of steps, None when it is not known.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with bar:
        bar.add_task(description, total=total, note="")
        yield bar


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields the items while a progress bar counts them."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(description, total) as bar:
        for item in items:
            yield item
            bar.advance(TaskID(0))
