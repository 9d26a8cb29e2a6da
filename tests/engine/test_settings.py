"""Typed parsing: what text becomes, and what is refused instead of being guessed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from motarfuse.engine.settings import convert, describe, from_mapping, parse_yaml, to_mapping
from motarfuse.errors import ConfigError


@pytest.mark.parametrize("text", ["no", "No", "false", "off", "0"])
def test_words_for_no_are_false(text: str) -> None:
    assert convert(text, bool, "key") is False


@pytest.mark.parametrize("text", ["yes", "TRUE", "on", "1"])
def test_words_for_yes_are_true(text: str) -> None:
    assert convert(text, bool, "key") is True


@pytest.mark.parametrize("value", ["maybe", "2", 1, 0.0, None])
def test_anything_else_is_no_truth_value(value: Any) -> None:
    with pytest.raises(ConfigError, match="key: expected yes or no"):
        convert(value, bool, "key")


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("1e-3", float, 1e-3),
        ("3", float, 3.0),
        ("300", int, 300),
        ("-1", int, -1),
        ("no", str, "no"),
        ("none", float | None, None),
        ("null", int | None, None),
        ("0.3", float | None, 0.3),
        ("[256, 128]", tuple[int, int], (256, 128)),
        ("256,128", tuple[int, int], (256, 128)),
        ("[]", list[int], []),
        ("[10, 20]", list[int], [10, 20]),
        ("{a: x/y, b: z}", dict[str, str], {"a": "x/y", "b": "z"}),
        ("sgd", Literal["adam", "sgd"], "sgd"),
        ([1, 2], tuple[int, int], (1, 2)),
        (5, float, 5.0),
    ],
)
def test_text_takes_the_declared_type(text: Any, kind: Any, expected: Any) -> None:
    value = convert(text, kind, "key")
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("ten", int, "key: expected integer, got 'ten'"),
        ("1.5", int, "key: expected integer"),
        (1.5, int, "key: expected integer"),
        (True, int, "key: expected integer"),
        ("nan", float, "key: expected number"),
        ("inf", float, "key: expected number"),
        ("none", int, "key: expected integer, got 'none'"),
        ("[1]", tuple[int, int], r"key: expected \[integer, integer\]"),
        ("[1, x]", list[int], "key: expected list of integer"),
        ("sdg", Literal["adam", "sgd"], "one of adam, sgd, got 'sdg'; did you mean 'sgd'"),
        ("soft", float | None, "key: expected number or none, got 'soft'"),
        (3, str, "key: expected text"),
    ],
)
def test_wrong_values_name_key_value_and_type(text: Any, kind: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(text, kind, "key")


@pytest.mark.parametrize("text", ["a: 1\na: 2", "{a: 1, a: 2}"])
def test_a_key_given_twice_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="'a' is given twice"):
        parse_yaml(text, "file.yaml")


def test_broken_yaml_names_its_origin() -> None:
    with pytest.raises(ConfigError, match=r"file\.yaml is not valid YAML"):
        parse_yaml("a: [1", "file.yaml")


@dataclass
class Inner:
    """The inner section."""

    rate: float = field(default=0.5, metadata={"help": "how fast"})


@dataclass
class Outer:
    """The outer section."""

    name: str = field(default="x", metadata={"help": "what it is called"})
    inner: Inner = field(default_factory=Inner)


def test_unknown_keys_name_the_nearest_and_all_that_exist() -> None:
    message = r"unknown key inner\.rat; did you mean inner\.rate\? \(keys of inner: rate\)"
    with pytest.raises(ConfigError, match=message):
        from_mapping(Outer, {"inner": {"rat": "1"}})


def test_mappings_make_a_round_trip() -> None:
    value = from_mapping(Outer, {"name": "no", "inner": {"rate": "2"}})
    assert value == Outer("no", Inner(2.0))
    assert from_mapping(Outer, to_mapping(value)) == value


def test_description_has_key_default_type_and_help() -> None:
    assert describe(Inner, "inner") == "  inner.rate = 0.5    (number)\n      how fast"
