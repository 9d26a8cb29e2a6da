"""The file of a comparison: its keys, its variables, and what must fit together in it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from motarfuse.engine.compare_sets import CoveredRange, parse_split
from motarfuse.engine.settings import convert, from_mapping, parse_yaml
from motarfuse.errors import ConfigError
from motarfuse.retrieval.bootstrap import RESAMPLES

_VARIABLE = re.compile(r"\$\{(\w+)\}")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class StudyData:
    """What a study trains on."""

    root: str = _option("", "folder or table of the training data")
    kind: str = _option("auto", "its layout: market1501, folder, csv or auto")


@dataclass
class StudyFile:
    """One data set to train on, and what is evaluated."""

    data: StudyData = field(default_factory=StudyData, metadata={"help": "what is trained on"})
    sets: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "evaluation sets by name; none: the query and gallery of data.root, under the name plain"},
    )
    split: str = _option("given", "given, or random:SEED: training and test identities drawn anew from all identities")
    pretrained_from: str | None = _option(None, "study whose run of the same row and seed gives the first weights")
    overrides: dict[str, Any] = field(default_factory=dict, metadata={"help": "changes to base, for every row"})
    covered: CoveredRange | None = field(
        default=None, metadata={"help": "evaluate with covered queries as well, e.g. {min: 0.3, max: 0.5}; none: not"}
    )
    covered_curve: list[float] = field(
        default_factory=list,
        metadata={"help": "shares of the queries to cover, at which the final weights are evaluated"},
    )


@dataclass
class CompareFile:
    """Keys of a comparison's file."""

    variables: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "values of ${name} elsewhere in the file; NAME=VALUE on the command line replaces them"},
    )
    base: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "changes to the default config that all runs share"}
    )
    rows: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "what is compared: changes to the config by name, and seeds where a row has its own"},
    )
    seeds: list[int] = field(default_factory=list, metadata={"help": "seeds of every row without its own; none: 0"})
    studies: dict[str, StudyFile] = field(
        default_factory=dict, metadata={"help": "data sets on which the rows are repeated"}
    )
    compare: list[list[str]] = field(
        default_factory=list,
        metadata={"help": "pairs [A, B] whose difference A - B is shown; none: the first row with each other"},
    )
    order: list[Any] = field(
        default_factory=list,
        metadata={"help": "what is done first: patterns of study/row/seed, or lists of patterns that rank equally"},
    )
    resamples: int = _option(RESAMPLES, "bootstrap resamples of an interval")


def read_file(path: Path, arguments: Sequence[str]) -> tuple[CompareFile, dict[str, str]]:
    """Reads a comparison's file.

    Args:
        path: YAML.
        arguments: ``NAME=VALUE`` for the file's variables, ``section.key=VALUE`` for the config.

    Returns:
        The file with its variables put in, and the changes to the config.

    Raises:
        ConfigError: The file cannot be read, a key does not exist (names the nearest), or names do not fit together.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    file, overrides = _parse(parse_yaml(text, "the file"), arguments)
    _check(file)
    return file, overrides


def _parse(tree: Any, arguments: Sequence[str]) -> tuple[CompareFile, dict[str, str]]:
    """The file with its variables put in, and the config changes of the command line."""
    overrides: dict[str, str] = {}
    given: dict[str, str] = {}
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if not separator or not name.strip():
            raise ConfigError(f"an argument looks like pku=PATH or train.steps=100, got {argument!r}")
        (overrides if "." in name else given)[name.strip()] = value
    if not isinstance(tree, Mapping):
        raise ConfigError(f"a comparison has the keys rows and studies, got {tree!r}")
    declared = convert(tree.get("variables") or {}, dict[str, str], "variables")
    used = set(_VARIABLE.findall(str({key: value for key, value in tree.items() if key != "variables"})))
    for name in given:
        if name not in used | set(declared):
            raise ConfigError(
                f"{name}=... sets no variable of this file{_nearest(name, used | set(declared))}; its variables are "
                f"{', '.join(sorted(used | set(declared))) or 'none'}; a key of the config has a section, e.g. "
                "train.steps=100"
            )
    values = declared | given
    for name in sorted(used):
        if name not in values:
            raise ConfigError(f"${{{name}}} has no value; give {name}=VALUE, or list it under variables")
    return from_mapping(CompareFile, _substitute(tree, values)), overrides


def _substitute(tree: Any, values: Mapping[str, str]) -> Any:
    if isinstance(tree, str):
        return _VARIABLE.sub(lambda match: values[match[1]], tree)
    if isinstance(tree, Mapping):
        return {name: item if name == "variables" else _substitute(item, values) for name, item in tree.items()}
    if isinstance(tree, list):
        return [_substitute(item, values) for item in tree]
    return tree


def _check(file: CompareFile) -> None:
    """Names that must exist, be different or be folders."""
    for key, names in (("rows", list(file.rows)), ("studies", list(file.studies))):
        if not names:
            raise ConfigError(f"{key} is empty: there is nothing to compare")
        slugs: dict[str, str] = {}
        for name in names:
            slug = slug_of(name)
            if "/" in name or not slug or (key == "studies" and slug == "data"):
                raise ConfigError(f"{key}: {name!r} is no name for a folder; use letters, digits, spaces and '-'")
            if slug in slugs:
                raise ConfigError(f"{key}: {name!r} and {slugs[slug]!r} would share the folder {slug}")
            slugs[slug] = name
    for pair in file.compare:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ConfigError(f"compare: a pair is [A, B] of two rows, got {pair}")
        for row in pair:
            _known("compare", row, file.rows)
    if file.resamples < 100:
        raise ConfigError(f"resamples must be at least 100, got {file.resamples}")
    for name, study in file.studies.items():
        if not study.data.root:
            raise ConfigError(f"studies.{name}.data.root is not set: give the folder or table to train on")
        parse_split(study.split, f"studies.{name}.split")
        seen = [name]
        source = study.pretrained_from
        while source is not None:
            _known(f"studies.{seen[-1]}.pretrained_from", source, file.studies)
            if source in seen:
                raise ConfigError(f"pretrained_from goes in a circle: {' from '.join([*seen, source])}")
            seen.append(source)
            source = file.studies[source].pretrained_from


def _known(key: str, name: str, names: Mapping[str, Any]) -> None:
    if name not in names:
        raise ConfigError(f"{key}: there is no {name!r}{_nearest(name, names)} (there are {', '.join(names)})")


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def slug_of(name: str) -> str:
    """A name as a folder's."""
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-.")
