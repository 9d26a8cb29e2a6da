"""A run's folder: a new one, or one to go on with, and whether the config still fits it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from motarfuse import console
from motarfuse.data import Tracklet
from motarfuse.engine.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from motarfuse.engine.config import Config, config_differences, dump_config
from motarfuse.engine.logs import BOARD, LOG
from motarfuse.engine.outputs import make_folder, output_errors, remove_partial, write_bytes
from motarfuse.engine.settings import show
from motarfuse.engine.sources import Records
from motarfuse.errors import ConfigError, OutputError

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None  # type: ignore[assignment]

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"

# What may differ when a run goes on: none of it changes the weights that come out. Moved data is recognised by its
# content; a device rounds differently, which the user has asked for.
RESUMABLE = (
    "data.root",
    "data.kind",
    "data.cache",
    "data.memory_limit_mb",
    "data.workers",
    "train.device",
    "train.initial",
    "train.pretrained",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.keep",
    "train.log_every",
    "evaluation.*",
    "output.*",
)


@dataclass
class Run:
    """A run whose folder is locked.

    Attributes:
        config: The run's config.
        checkpoint: What to go on from, None for a new run.
        started: Whether the folder stays if the training fails.
    """

    config: Config
    checkpoint: Checkpoint | None = None
    started: bool = False

    def start(self) -> None:
        """Writes ``config.yaml``, once everything was checked: a refused run leaves no trace."""
        write_bytes(Path(self.config.output.run_dir) / CONFIG, dump_config(self.config).encode())
        self.started = True


@contextmanager
def open_run(config: Config, *, resume: bool) -> Iterator[Run]:
    """Makes the run's folder ready and holds its lock; what it created goes if the run fails before its start.

    Args:
        config: The run's config.
        resume: Whether a run that is there may be continued.

    Raises:
        OutputError: The folder cannot be written, another training writes to it, or it holds a run and ``resume`` is
            False.
        CheckpointError: The latest checkpoint is damaged.
        ConfigError: The config differs from the run's in keys that change the result.
    """
    run_dir = Path(config.output.run_dir)
    with output_errors(run_dir):
        missing = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    make_folder(run_dir)
    with _locked(run_dir):
        new = [name for name in (CONFIG, LOG, BOARD, CHECKPOINTS) if not (run_dir / name).exists()]
        run = Run(config)
        try:
            checkpoints = make_folder(run_dir / CHECKPOINTS)
            for folder in (run_dir, checkpoints):
                remove_partial(folder)
            if list_checkpoints(checkpoints):
                if not resume:
                    raise OutputError(
                        f"{run_dir} holds a run already; delete it, choose another output.run_dir, or resume it"
                    )
                run.checkpoint = load_checkpoint(run_dir)
                check_same_run(run.checkpoint, config)
                console.info(f"resuming {run_dir} at step {run.checkpoint.metadata['step']}")
            yield run
        except BaseException:
            if not run.started:
                _remove(run_dir, [*new, LOCK], missing)
            raise


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Holds ``run_dir/.lock``; the system releases it with the process, however that ends."""
    path = run_dir / LOCK
    with output_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A run that failed before its start deletes the file: a lock on what is no longer there locks nothing.
                if not path.exists() or not os.path.samestat(path.stat(), os.fstat(descriptor)):
                    raise BlockingIOError
        except BlockingIOError as error:
            raise OutputError(
                f"another training is writing to {run_dir}; wait for it to end, or choose another output.run_dir"
            ) from error
        except OSError as error:
            console.warn(f"{run_dir} cannot be locked ({error.strerror}); start no second training there")
        yield
    finally:
        os.close(descriptor)


def _remove(run_dir: Path, names: Sequence[str], folders: Sequence[Path]) -> None:
    """Deletes files and folders of a run by name, then folders that are empty."""
    for path in (run_dir / name for name in names):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
    with suppress(OSError):  # not empty: not only ours
        for folder in folders:
            folder.rmdir()


def data_fingerprint(records: Records) -> str:
    """What the training data is, wherever it lies: base names, identities and cameras in order."""
    digest = hashlib.sha256()
    for record in records:
        names = "\t".join(record.files) if isinstance(record, Tracklet) else record.path.name
        digest.update(f"{names}\t{record.pid}\t{record.camid}\n".encode())
    return digest.hexdigest()


def check_same_run(checkpoint: Checkpoint, config: Config) -> None:
    """Checks that a config would lead to the weights that the checkpoint was on its way to.

    Raises:
        ConfigError: Names the keys that differ, with both values.
    """
    old: Mapping[str, Any] = checkpoint.metadata["config"] or {}
    changed = {
        key: values
        for key, values in config_differences(old, config.to_dict()).items()
        if not any(fnmatch(key, pattern) for pattern in RESUMABLE)
    }
    if changed:
        listed = "; ".join(f"{key} was {show(before)}, now {show(after)}" for key, (before, after) in changed.items())
        raise ConfigError(
            f"{config.output.run_dir} holds a run with another config: {listed}. "
            "Set these back to resume it, or choose another output.run_dir"
        )
