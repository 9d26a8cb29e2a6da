"""Dataclasses as configuration: typed parsing of YAML and ``key=value`` text, help, and back to plain values.

YAML scalars are read as text and converted by the declared type of the field they go to. So ``no`` is False for a
switch and the text "no" for a name, ``1e-3`` is a number, and nothing is silently truthy.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import textwrap
import types
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from motarfuse.errors import ConfigError

D = TypeVar("D")

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_NONE = ("none", "null", "~", "")


class _TextLoader(yaml.BaseLoader):
    """YAML with every scalar as text; a key given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def require_positive(**values: int) -> None:
    """Checks arguments that count something.

    Raises:
        ConfigError: Names the first one below 1.
    """
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")


def parse_yaml(text: str, origin: str) -> Any:
    """YAML text as nested dicts and lists of text.

    Args:
        text: The document.
        origin: Where it comes from, for the error.

    Raises:
        ConfigError: The text is no YAML, or a key is given twice.
    """
    try:
        return yaml.load(text, Loader=_TextLoader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{origin} is not valid YAML: {reason}") from error


def from_mapping(cls: type[D], values: Any, path: str = "") -> D:
    """Builds a dataclass from nested mappings of text or of plain values.

    Args:
        cls: The dataclass; fields that are dataclasses are sections.
        values: A mapping; None is an empty one.
        path: Dotted name of this section, for errors.

    Raises:
        ConfigError: An unknown key (names the nearest and all that exist), or a value of the wrong type.
    """
    values = {} if values is None or values == "" else values
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'the config'} must be a section of key: value lines, got {values!r}")
    hints = get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise unknown_key(str(key), fields, path)
    arguments = {key: convert(value, hints[key], join(path, key)) for key, value in values.items()}
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def unknown_key(key: str, known: set[str], path: str) -> ConfigError:
    """The error for a key that a section does not have."""
    near = difflib.get_close_matches(key, known, 1)
    hint = f"; did you mean {join(path, near[0])}?" if near else ""
    where = f"keys of {path}" if path else "sections"
    return ConfigError(f"unknown key {join(path, key)}{hint} ({where}: {', '.join(sorted(known))})")


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def convert(value: Any, kind: Any, key: str) -> Any:
    """A value of the declared type, from text or from a plain value.

    Raises:
        ConfigError: Names the key, what was got and what is expected.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and (value is None or (isinstance(value, str) and value.strip().lower() in _NONE)):
            return None
        kinds = [option for option in arguments if option is not type(None)]
        for option in kinds[:-1]:
            try:
                return convert(value, option, key)
            except ConfigError:
                continue
        return _converted(value, kinds[-1], key, kind)
    return _converted(value, kind, key, kind)


def _converted(value: Any, kind: Any, key: str, declared: Any) -> Any:
    """``value`` as ``kind``; errors speak of ``declared``, which may be optional."""
    wrong = ConfigError(f"{key}: expected {type_name(declared)}, got {value!r}")
    origin, arguments = get_origin(kind), get_args(kind)
    text = value.strip() if isinstance(value, str) else None
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else from_mapping(kind, value, key)  # type: ignore[arg-type]
    if origin is Literal:
        if (text if text is not None else value) not in arguments:
            near = difflib.get_close_matches(str(value), [str(option) for option in arguments], 1)
            raise ConfigError(f"{wrong}{f'; did you mean {near[0]!r}?' if near else ''}")
        return text if text is not None else value
    if kind is bool:
        return _as_bool(value, text, wrong)
    if kind in (int, float):
        return _as_number(value, text, kind, wrong)
    if kind is str:
        if not isinstance(value, str):
            raise wrong
        return value
    if origin in (list, tuple):
        return _as_sequence(value, origin, arguments, key, wrong)
    if origin is dict:
        if text is not None:
            value = parse_yaml(text, key) or {}
        if not isinstance(value, Mapping):
            raise wrong
        return {str(name): convert(item, arguments[1], join(key, str(name))) for name, item in value.items()}
    raise TypeError(f"{key}: configuration fields of type {kind} are not supported")


def _as_bool(value: Any, text: str | None, wrong: ConfigError) -> bool:
    if isinstance(value, bool):
        return value
    if text is not None and text.lower() in _TRUE:
        return True
    if text is not None and text.lower() in _FALSE:
        return False
    raise wrong


def _as_number(value: Any, text: str | None, kind: type, wrong: ConfigError) -> Any:
    if isinstance(value, bool) or not (text is not None or isinstance(value, (int, float))):
        raise wrong
    if kind is int and isinstance(value, float):
        raise wrong
    try:
        number = kind(value if text is None else text)
    except ValueError:
        raise wrong from None
    if not math.isfinite(number):
        raise wrong
    return number


def _as_sequence(value: Any, origin: Any, arguments: Sequence[Any], key: str, wrong: ConfigError) -> Any:
    if isinstance(value, str):
        text = value.strip()
        value = parse_yaml(text if text.startswith("[") else f"[{text}]", key)
    if not isinstance(value, (list, tuple)):
        raise wrong
    fixed = origin is tuple and Ellipsis not in arguments
    if fixed and len(value) != len(arguments):
        raise wrong
    kinds = arguments if fixed else [arguments[0]] * len(value)
    try:
        return origin(convert(item, kind, key) for item, kind in zip(value, kinds, strict=True))
    except ConfigError:
        raise wrong from None


def to_mapping(settings: Any) -> dict[str, Any]:
    """Plain dicts, lists and scalars, which :func:`from_mapping` turns back into an equal object."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return value

    result: dict[str, Any] = plain(settings)
    return result


def flatten(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, join(path, name)))
        else:
            flat[join(path, name)] = value
    return flat


def type_name(kind: Any) -> str:
    """A type as a user would write it: "number or none", "[number, number]", "one of adam, sgd"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        named = [type_name(option) for option in arguments if option is not type(None)]
        return " or ".join([*named, "none"] if type(None) in arguments else named)
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in arguments)
    if origin is tuple and Ellipsis not in arguments:
        return "[" + ", ".join(type_name(option) for option in arguments) + "]"
    if origin in (list, tuple):
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"{{name: {type_name(arguments[1])}}}"
    return {int: "integer", float: "number", str: "text", bool: "yes or no"}.get(kind, str(kind))


def show(value: Any) -> str:
    """A value as it would be written in a config."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(show(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {show(item)}" for name, item in value.items()) + "}"
    return str(value)


def describe(cls: type, title: str, *, indent: str = "  ", width: int = 110) -> str:
    """Every field of a section: key, type, default and help.

    Args:
        cls: A dataclass whose fields have ``metadata["help"]``.
        title: The section's key, "" for none.
    """
    defaults = cls()
    hints = get_type_hints(cls)
    lines = []
    for field in dataclasses.fields(cls):
        default, kind = show(getattr(defaults, field.name)), type_name(hints[field.name])
        lines.append(f"{indent}{join(title, field.name)} = {default}    ({kind})")
        text = field.metadata.get("help", "")
        lines.extend(textwrap.wrap(text, width, initial_indent=indent * 3, subsequent_indent=indent * 3))
    return "\n".join(lines)
