"""Differences with their intervals as inline SVG, beside a line at zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from motarfuse.viz.charts import nice_ticks

WIDTH, LEFT, RIGHT = 480, 12, 12
_ROW, _AXIS = 52, 46
_COLOURS = {"better": "var(--right)", "worse": "var(--wrong)"}


@dataclass(frozen=True)
class Interval:
    """One line of the chart.

    Attributes:
        name: What is compared.
        value: The difference; None where there is none.
        low, high: Its interval; None where there is none.
        verdict: better, worse, or anything else.
        note: What is written where there is no interval.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    verdict: str = ""
    note: str = ""


def interval_chart(intervals: Sequence[Interval], *, label: str, unit: float = 100.0, x_label: str = "points") -> str:
    """An ``<svg>`` with a mark and a whisker a line; whiskers that miss zero are filled and coloured.

    Args:
        intervals: From top to bottom.
        label: What the chart shows, for people who cannot see it; the numbers are added.
        unit: Factor from a value to what is shown.
        x_label: Text below the axis.
    """
    ends = [unit * end for one in intervals for end in (one.value, one.low, one.high) if end is not None]
    if not ends:
        return f'<p class="empty">{escape(_only_notes(intervals))}</p>'
    ticks = nice_ticks(min(0.0, *ends), max(0.0, *ends), 4)
    height = _ROW * len(intervals) + _AXIS

    def px(value: float) -> float:
        return LEFT + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - LEFT - RIGHT)

    base = height - _AXIS
    described = escape(f"{label}: " + "; ".join(f"{one.name} {_numbers(one, unit)}" for one in intervals))
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{described}">']
    for tick in ticks:
        style = ' style="stroke:var(--soft)"' if tick == 0 else ""
        x = f"{px(tick):.1f}"
        anchor = "start" if tick == ticks[0] else "end" if tick == ticks[-1] else "middle"
        parts.append(f'<line class="grid" x1="{x}" y1="0" x2="{x}" y2="{base}"{style}/>')
        shown = f"{tick:+g}" if tick else "0"
        parts.append(f'<text x="{x}" y="{base + 19}" text-anchor="{anchor}">{shown}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{height - 5}" text-anchor="middle">{escape(x_label)}</text>')
    for index, one in enumerate(intervals):
        parts.append(_line(one, _ROW * index, px, unit))
    parts.append("</svg>")
    return "".join(parts)


def _line(one: Interval, top: int, px: Callable[[float], float], unit: float) -> str:
    y = top + 35
    colour = _COLOURS.get(one.verdict, "var(--soft)")
    # Text on the page's own colour, so that grid lines do not cross it.
    halo = "paint-order:stroke;stroke:var(--card);stroke-width:5px"
    name, numbers, right = escape(one.name), escape(_numbers(one, unit)), WIDTH - RIGHT
    parts = [
        f'<text x="{LEFT}" y="{top + 19}" style="fill:var(--ink);{halo}">{name}</text>',
        f'<text x="{right}" y="{top + 19}" text-anchor="end" style="{halo}">{numbers}</text>',
    ]
    if one.low is not None and one.high is not None:
        low, high = px(unit * one.low), px(unit * one.high)
        parts += [
            f'<line x1="{x1:.1f}" y1="{y1}" x2="{x2:.1f}" y2="{y2}" style="stroke:{colour};stroke-width:2"/>'
            for x1, y1, x2, y2 in ((low, y, high, y), (low, y - 5, low, y + 5), (high, y - 5, high, y + 5))
        ]
    if one.value is not None:
        fill = colour if one.verdict in _COLOURS else "var(--card)"
        style = f"fill:{fill};stroke:{colour};stroke-width:2"
        parts.append(f'<circle cx="{px(unit * one.value):.1f}" cy="{y}" r="5" style="{style}"/>')
    return "".join(parts)


def _numbers(one: Interval, unit: float) -> str:
    if one.value is None:
        return one.note
    if one.low is None or one.high is None:
        return f"{unit * one.value:+.1f}, {one.note or 'no interval'}"
    return f"{unit * one.value:+.1f} [{unit * one.low:+.1f}, {unit * one.high:+.1f}]"


def _only_notes(intervals: Sequence[Interval]) -> str:
    return "; ".join(f"{one.name}: {one.note}" for one in intervals) or "Nothing to compare."
