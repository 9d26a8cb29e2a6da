"""A run's folder: a new one, or one to go on with, and whether the config still fits it."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from motarfuse import console
from motarfuse.engine.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from motarfuse.engine.config import Config, config_differences, dump_config
from motarfuse.engine.outputs import make_folder, remove_partial, write_bytes
from motarfuse.engine.settings import show
from motarfuse.errors import ConfigError, OutputError

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"

# What may differ when a run goes on: none of it changes the weights that come out. Moved data is recognised by its
# content; a device rounds differently, which the user has asked for.
RESUMABLE = (
    "data.root",
    "data.kind",
    "data.cache",
    "data.memory_limit_mb",
    "data.workers",
    "train.device",
    "train.pretrained",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.keep",
    "train.log_every",
    "evaluation.*",
    "output.*",
)


def open_run(config: Config, *, resume: bool) -> Checkpoint | None:
    """Makes the run's folder ready and writes ``config.yaml``.

    Args:
        config: The run's config.
        resume: Whether a run that is there may be continued.

    Returns:
        The checkpoint to go on from, None for a new run.

    Raises:
        OutputError: The folder cannot be written, or holds a run and ``resume`` is False.
        CheckpointError: The latest checkpoint is damaged.
        ConfigError: The config differs from the run's in keys that change the result.
    """
    run_dir = make_folder(Path(config.output.run_dir))
    checkpoints = make_folder(run_dir / CHECKPOINTS)
    for folder in (run_dir, checkpoints):
        remove_partial(folder)
    checkpoint = None
    if list_checkpoints(checkpoints):
        if not resume:
            raise OutputError(f"{run_dir} holds a run already; delete it, choose another output.run_dir, or resume it")
        checkpoint = load_checkpoint(run_dir)
        check_same_run(checkpoint, config)
        console.info(f"resuming {run_dir} at step {checkpoint.metadata['step']}")
    write_bytes(run_dir / CONFIG, dump_config(config).encode())
    return checkpoint


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
