"""Writing results so that a kill, a full disk or a wrong path leaves either the whole of a file or nothing of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from motarfuse.errors import OutputError

# Marks what is being written; whatever has it in its name after a kill is incomplete and may be deleted.
PARTIAL = ".partial-"

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "the file would exceed the size allowed here; raise the limit or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.EPERM: "no permission to write there; choose another folder",
    errno.ENOENT: "a folder of this path does not exist and cannot be created there; choose another folder",
    errno.ENOTDIR: "part of the path is a file, not a folder; choose another folder",
    errno.EEXIST: "a file of that name is in the way; delete it or choose another name",
    errno.EISDIR: "a folder of that name is in the way; delete it or choose another name",
}


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns an ``OSError`` of writing ``path`` into an :class:`OutputError` that says what to do."""
    try:
        yield
    except OSError as error:
        reason = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise OutputError(f"cannot write {path}: {reason}") from error


def make_folder(path: Path) -> Path:
    """Creates a folder and its parents where they are missing, and checks that it can be written to.

    Raises:
        OutputError: It cannot be created or written to.
    """
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f"{PARTIAL}probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    return path


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically: readers see the old content or all of the new one, also after a power cut.

    A link stays a link: the file that it points to is written.

    Raises:
        OutputError: It cannot be written, and the old content is still there; or it is a folder, device or pipe.
    """
    with output_errors(path):
        target = _regular_target(path)
        partial = target.with_name(f"{PARTIAL}{target.name}-{os.getpid()}")
        try:
            write_synced(partial, content)
            partial.replace(target)
            _sync_folder(target.parent)
        finally:
            partial.unlink(missing_ok=True)


def _regular_target(path: Path) -> Path:
    """The file that a path leads to, which need not exist; anything but a file would be destroyed by a rename."""
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise OutputError(f"{path} is a {kind}, not a file; choose the name of a file")
    return target


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON atomically, with a final newline.

    Raises:
        OutputError: It cannot be written.
        ValueError: A value is NaN or infinite, which JSON has no word for.
    """
    write_bytes(path, (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder that appears under its name only when it is complete.

    Write the files into the folder that is yielded with :func:`write_synced`. On an error it is deleted.

    Args:
        path: The folder; an existing one of that name is replaced in the end. A link stays one: its target is replaced.

    Raises:
        OutputError: It cannot be written.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(f"{PARTIAL}{path.name}-{os.getpid()}")
    with output_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_dir():
                raise FileExistsError(errno.EEXIST, "a file is in the way", str(path))
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            _sync_folder(partial)
            if path.exists():
                # A folder cannot replace one that is not empty: the old one steps aside under a name that marks it
                # incomplete, so that a kill between the two renames leaves nothing that looks valid and is not.
                aside = path.with_name(f"{PARTIAL}{path.name}-{os.getpid()}-old")
                path.rename(aside)
                partial.rename(path)
                shutil.rmtree(aside)
            else:
                partial.rename(path)
            _sync_folder(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file and waits until it is on the disk; the caller owns atomicity and errors."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Tensors as the bytes of a safetensors file.

    Built in memory, so that a full disk is met by Python's own write and reported as what it is.
    """
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    # Two names for one storage (tied weights) are stored twice: the format has no aliases.
    seen: set[int] = set()
    for name, tensor in ready.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            ready[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return safetensors.torch.save(ready, dict(metadata) if metadata else None)


def remove_partial(folder: Path) -> list[str]:
    """Deletes what a killed process left incomplete directly inside a folder; returns the names."""
    names = []
    for path in sorted(folder.glob(f"{PARTIAL}*")):
        names.append(path.name)
        with output_errors(path):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    return names


def _sync_folder(folder: Path) -> None:
    """Makes a rename within a folder survive a power cut; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
