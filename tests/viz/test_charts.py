"""Inline SVG charts."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from motarfuse.viz.charts import MAX_POINTS, Series, format_number, format_percent, line_chart, log_ticks, nice_ticks
from motarfuse.viz.page import STYLE


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 0.00031, [0, 0.0001, 0.0002, 0.0003, 0.0004]),
        (-3, 12, [-5, 0, 5, 10, 15]),
        (7, 7, [6.2, 6.4, 6.6, 6.8, 7.0, 7.2, 7.4, 7.6, 7.8]),
    ],
)
def test_ticks_are_round_and_enclose_the_data(low: float, high: float, expected: list[float]) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    steps = {round(b - a, 12) for a, b in pairwise(ticks)}
    assert len(steps) == 1
    if low != high:
        assert ticks == pytest.approx(expected)


def test_tick_texts_are_short() -> None:
    values = [0, 300, 1200, 2_500_000, 0.05, 0.00035, 1e-3]
    assert [format_number(value) for value in values] == ["0", "300", "1.2k", "2.5M", "0.05", "3.5e-4", "1e-3"]
    assert format_percent(0.625) == "62.5 %"


def points(svg: str) -> list[list[tuple[float, float]]]:
    """The drawn line's pieces."""
    path = re.search(r'class="line s0" d="([^"]*)"', svg)
    assert path is not None
    pieces = path[1].split("M")[1:]
    return [[(float(x), float(y)) for x, y in (pair.split() for pair in piece.split("L"))] for piece in pieces]


def test_a_larger_value_is_drawn_higher_and_a_later_one_further_right() -> None:
    (line,) = points(line_chart([Series("a", [0, 1, 2], [1.0, 3.0, 2.0])], label="a", x_label="step"))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x0 < x1 < x2
    assert y1 < y2 < y0
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.11)


def test_steps_are_marked_at_whole_numbers() -> None:
    svg = line_chart([Series("a", [1, 2, 3], [5.0, 5.0, 5.0])], label="a", x_label="step")
    assert re.findall(r'text-anchor="middle">(\d[^<]*)<', svg) == ["1", "2", "3"]


def test_values_that_are_not_finite_break_the_line() -> None:
    svg = line_chart([Series("a", range(5), [1, 2, math.nan, math.inf, 3])], label="a", x_label="step")
    assert [len(piece) for piece in points(svg)] == [2, 1]
    assert "nan" not in svg
    assert "inf" not in svg


def test_many_points_are_merged_and_their_range_is_kept() -> None:
    values = [float(i % 10) for i in range(10_000)]
    reduced = Series("a", range(10_000), values).reduced()
    assert len(reduced.x) == MAX_POINTS
    assert sum(reduced.y) / MAX_POINTS == pytest.approx(4.5, abs=0.01)
    assert (min(reduced.low), max(reduced.high)) == (0.0, 9.0)
    assert '<polygon class="band s0"' in line_chart([Series("a", range(10_000), values)], label="a", x_label="step")


def test_lines_differ_in_dashes_and_are_named_below() -> None:
    series = [Series(name, [0, 1], [0, 1]) for name in ("first", "second", "<third>")]
    svg = line_chart(series, label="Three & more", x_label="step")
    dashes = re.findall(r'class="line s\d" d="[^"]*"(?: stroke-dasharray="([^"]*)")?', svg)
    assert len(set(dashes[:3])) == 3
    root = ElementTree.fromstring(f"<div>{svg}</div>")
    assert [item.text or "".join(item.itertext()) for item in root.iter("li")] == ["first", "second", "<third>"]
    assert root.find("svg").attrib["aria-label"].startswith("Three & more: first from 0 at 0 to 1 at 1")  # type: ignore[union-attr]


def test_no_two_of_sixteen_lines_look_alike() -> None:
    svg = line_chart([Series(str(k), [0, 1], [0, k]) for k in range(16)], label="a", x_label="step")
    looks = re.findall(r'class="line (s\d)" d="[^"]*"(?: stroke-dasharray="([^"]*)")?/></svg>', svg)
    assert len(looks) == len(set(looks)) == 16
    assert len({colour for colour, _ in looks[:8]}) == len({dashes for _, dashes in looks[:8]}) == 8
    for colour, _ in looks:
        assert f"path.{colour} {{ stroke" in STYLE
        assert STYLE.count(f"--{colour}: #") == 3  # light, dark, print


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.008, 6, [0.001, 0.01, 0.1, 1, 10]),
        (2, 7, [1, 2, 5, 10]),
        (1, 1, [1, 2, 5, 10]),
        (1e-12, 1, [1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1]),
    ],
)
def test_logarithmic_ticks_are_powers_of_ten_that_enclose_the_data(
    low: float, high: float, expected: list[float]
) -> None:
    assert log_ticks(low, high) == pytest.approx(expected)


def test_on_a_logarithmic_axis_equal_ratios_are_equal_heights() -> None:
    (line,) = points(line_chart([Series("a", [0, 1, 2], [0.1, 1, 10])], label="a", x_label="step", y_log=True))
    (_, y0), (_, y1), (_, y2) = line
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert y0 > y2
    pieces = points(line_chart([Series("a", range(4), [1, 0, -1, 2])], label="a", x_label="step", y_log=True))
    assert [len(piece) for piece in pieces] == [1, 1]
    assert "No values yet" in line_chart([Series("a", [1, 2], [0, 0])], label="a", x_label="step", y_log=True)


def test_a_single_point_and_no_point_are_charts_too() -> None:
    assert "<circle" in line_chart([Series("a", [10], [0.5])], label="a", x_label="step")
    assert "No values yet" in line_chart([Series("a", [1], [math.nan])], label="a", x_label="step")
    assert "No values yet" in line_chart([], label="a", x_label="step")
