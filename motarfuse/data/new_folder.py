"""A folder that appears under its name only when it is complete, and never takes the place of another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from motarfuse.errors import OutputError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A new folder to write into; it is renamed to ``out`` at the end, and deleted on an error.

    Args:
        out: The folder; an empty one of that name may be there.

    Raises:
        OutputError: if something is there already, or the folder cannot be written.
    """
    out = Path(os.path.abspath(out.expanduser()))  # noqa: PTH100 - a link must stay what it is
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out} is a file or a link; nothing is ever overwritten, choose another name")
    try:
        if out.is_dir() and any(out.iterdir()):
            raise OutputError(f"{out} is not empty; nothing is ever overwritten, choose another folder or delete it")
        partial = out.with_name(f".partial-{out.name}-{os.getpid()}")
        partial.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    try:
        yield partial
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
