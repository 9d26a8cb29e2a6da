"""Comparisons: a file of training rows, seeds and studies, and the list of runs that it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from motarfuse.engine.checkpoint import checkpoint_name
from motarfuse.engine.compare_file import CompareFile, read_file, slug_of
from motarfuse.engine.compare_sets import StudySets, plan_sets
from motarfuse.engine.config import Config, config_from_dict
from motarfuse.engine.settings import convert, flatten
from motarfuse.engine.settings import join as dotted
from motarfuse.errors import ConfigError
from motarfuse.retrieval.bootstrap import RESAMPLES

EVALUATE_EVERY = 50
# What a comparison sets itself for every run.
GIVEN = ("data.root", "data.kind", "evaluation.sets", "output.run_dir", "train.seed", "train.initial")


@dataclass(frozen=True)
class Run:
    """One training: a row of a study with a seed.

    Attributes:
        study, row, seed: Which.
        folder: Where, ``OUT/<study>/<row>/<seed>``.
        config: Its whole config.
        source: The run whose final weights it starts from.
    """

    study: str
    row: str
    seed: int
    folder: Path
    config: Config
    source: Run | None = None

    @property
    def name(self) -> str:
        """study/row/seed."""
        return f"{self.study}/{self.row}/{self.seed}"

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.config.train.steps

    @property
    def checkpoint(self) -> Path:
        """The folder of its final weights."""
        return self.folder / "checkpoints" / checkpoint_name(self.steps)

    def matches(self, pattern: str) -> bool:
        """Whether ``study/row/seed`` fits a pattern with * and ?; what is left out at its end fits anything."""
        pattern += "/*" * (2 - pattern.count("/"))
        return fnmatchcase(self.name, pattern) or fnmatchcase(self.folder_name, pattern)

    @property
    def folder_name(self) -> str:
        """The name in the words of the folders."""
        return "/".join(self.folder.parts[-3:])


@dataclass(frozen=True)
class Comparison:
    """A comparison's file, resolved.

    Attributes:
        path: The file.
        out: Folder of everything.
        studies: Data and evaluation sets by study.
        rows: Row names in the file's order.
        pairs: (A, B) whose difference is shown.
        runs: All runs in the order in which they are to be done.
        resamples: Of the bootstrap.
    """

    path: Path
    out: Path
    studies: dict[str, StudySets]
    rows: list[str]
    pairs: list[tuple[str, str]]
    runs: list[Run]
    resamples: int = RESAMPLES

    def of(self, study: str, row: str | None = None) -> list[Run]:
        """The runs of a study, or of one of its rows, by seed."""
        found = [run for run in self.runs if run.study == study and row in (None, run.row)]
        return sorted(found, key=lambda run: (self.rows.index(run.row), run.seed))

    def select(self, patterns: Sequence[str]) -> list[Run]:
        """The runs that fit any of some patterns, in order; all without patterns.

        Raises:
            ConfigError: A pattern fits none.
        """
        for pattern in patterns:
            if not any(run.matches(pattern) for run in self.runs):
                raise ConfigError(
                    f"no run fits {pattern!r}; patterns are study/row/seed with studies {', '.join(self.studies)} "
                    f"and rows {', '.join(self.rows)}"
                )
        return [run for run in self.runs if not patterns or any(run.matches(pattern) for pattern in patterns)]


def load_comparison(
    path: str | Path, out: str | Path, arguments: Sequence[str] = (), order: Sequence[str] = ()
) -> Comparison:
    """Reads a comparison's file.

    A run's config is base, then the study's overrides, then ``arguments``, then the row's: later ones win.

    Args:
        path: YAML with the keys of :class:`CompareFile`.
        out: Folder of the runs and results.
        arguments: ``NAME=VALUE`` for the file's variables, ``section.key=VALUE`` for the config.
        order: Patterns of what runs before everything that the file's own order names.

    Raises:
        ConfigError: The file cannot be read, a key does not exist (names the nearest), or values contradict each other.
    """
    path, out = Path(path), Path(out)
    try:
        file, overrides = read_file(path, arguments)
        return _resolve(path, out, file, overrides, order)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _resolve(
    path: Path, out: Path, file: CompareFile, overrides: Mapping[str, Any], first: Sequence[str]
) -> Comparison:
    studies = {
        name: plan_sets(
            name,
            out / "data" / slug_of(name),
            root=study.data.root,
            kind=study.data.kind,
            sets=study.sets,
            split=study.split,
            covered=study.covered,
            curve=study.covered_curve,
        )
        for name, study in file.studies.items()
    }
    runs: dict[tuple[str, str, int], Run] = {}
    waiting = list(file.studies)
    while waiting:  # sources before those who start from them; _check has excluded circles
        name = waiting.pop(0)
        if file.studies[name].pretrained_from in waiting:
            waiting.append(name)
            continue
        for row, values in file.rows.items():
            for seed, changes in _seeds(row, values, file.seeds):
                source = file.studies[name].pretrained_from
                runs[name, row, seed] = _run(
                    out, file, studies[name], row, seed, changes, overrides, runs[source, row, seed] if source else None
                )
    tiers = [*([list(first)] if first else []), *(_tier(entry) for entry in file.order)]
    places = {name: index for index, name in enumerate(file.studies)}, {row: i for i, row in enumerate(file.rows)}
    ranked = sorted(
        runs.values(),
        key=lambda run: (
            next((index for index, tier in enumerate(tiers) if any(map(run.matches, tier))), len(tiers)),
            places[0][run.study],
            run.seed,
            places[1][run.row],
        ),
    )
    for tier in tiers:
        for pattern in tier:
            if not any(run.matches(pattern) for run in ranked):
                raise ConfigError(f"order: no run fits {pattern!r}; patterns are study/row/seed, e.g. {ranked[0].name}")
    rows = list(file.rows)
    pairs = [(pair[0], pair[1]) for pair in file.compare] or [(rows[0], row) for row in rows[1:]]
    return Comparison(path, out, studies, rows, pairs, _sources_first(ranked), file.resamples)


def _sources_first(runs: Sequence[Run]) -> list[Run]:
    """The same order, but each run's source before it."""
    ordered: dict[str, Run] = {}

    def add(run: Run) -> None:
        if run.source is not None:
            add(run.source)
        ordered.setdefault(run.name, run)

    for run in runs:
        add(run)
    return list(ordered.values())


def _seeds(row: str, values: Any, common: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
    """The row's seeds, each with its changes to the config."""
    changes = _changes(values, f"rows.{row}")
    seeds = changes.pop("seeds", None)
    chosen = convert(seeds, list[int], f"rows.{row}.seeds") if seeds is not None else list(common) or [0]
    if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0:
        raise ConfigError(f"rows.{row}.seeds must be different numbers from 0, got {chosen}")
    return [(seed, changes) for seed in chosen]


def _changes(values: Any, key: str) -> dict[str, Any]:
    """Config changes as dotted keys, from sections, dotted keys or both."""
    if values is None or values == "":
        return {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{key} must be a section of key: value lines, got {values!r}")
    flat = flatten(values)
    for name in flat:
        if name in GIVEN or name.startswith("evaluation.sets."):
            raise ConfigError(f"{key}: {name} is set by the comparison itself (studies and seeds say what)")
    return flat


def _run(
    out: Path,
    file: CompareFile,
    study: StudySets,
    row: str,
    seed: int,
    changes: Mapping[str, Any],
    overrides: Mapping[str, Any],
    source: Run | None,
) -> Run:
    flat = {
        "train.evaluate_every": EVALUATE_EVERY,
        **_changes(file.base, "base"),
        **_changes(file.studies[study.name].overrides, f"studies.{study.name}.overrides"),
        **_changes(dict(overrides), "the command line"),
        **changes,
    }
    folder = out / slug_of(study.name) / slug_of(row) / str(seed)
    flat |= {"train.seed": seed, "data.root": str(study.root), "data.kind": study.kind, "output.run_dir": str(folder)}
    if source is not None:
        flat["train.initial"] = str(source.checkpoint)
    try:
        config = config_from_dict(_nested(flat))
        config.evaluation.sets = {name: str(root) for name, root in study.trained.items()}
        config.validate()
    except ConfigError as error:
        raise ConfigError(f"row {row!r} of study {study.name!r}: {error}") from error
    return Run(study.name, row, seed, folder, config, source)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        target = nested
        for depth, section in enumerate(sections):
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{'.'.join(sections[: depth + 1])} is given as a value and as a section")
        if isinstance(target.get(name), dict):
            raise ConfigError(f"{dotted('.'.join(sections), name)} is given as a value and as a section")
        target[name] = value
    return nested


def _tier(entry: Any) -> list[str]:
    patterns = [entry] if isinstance(entry, str) else entry
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(f"order: an entry is a pattern or a list of patterns, got {entry!r}")
    return patterns
