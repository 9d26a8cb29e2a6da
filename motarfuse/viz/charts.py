"""Line charts as inline SVG: no script, no font, no request; colours come from the page's style sheet.

A chart is drawn on a canvas of 480 x 270 units and scales with its column; the style sheet sets larger text on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 12, 46
MAX_POINTS = 120
# Distinct line styles as well as colours: a chart must survive a grey printer. The style sheet has as many colours.
DASHES = ("", "7 3", "2 3", "10 3 2 3", "4 2 1 2 1 2", "14 4", "5 2 5 2 1 2", "1 2")


@dataclass(frozen=True)
class Series:
    """One line: points in increasing x; NaN or infinite y break it. ``low`` and ``high`` bound a band behind it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = field(default=())
    high: Sequence[float] = field(default=())

    def reduced(self) -> Series:
        """At most ``MAX_POINTS`` points: means of equal shares of the points, with their range as the band."""
        if len(self.x) <= MAX_POINTS:
            return self
        edges = [round(i * len(self.x) / MAX_POINTS) for i in range(MAX_POINTS + 1)]
        x, y, low, high = [], [], [], []
        for start, stop in pairwise(edges):
            values = [value for value in self.y[start:stop] if math.isfinite(value)]
            x.append(sum(self.x[start:stop]) / (stop - start))
            y.append(sum(values) / len(values) if values else math.nan)
            low.append(min(values, default=math.nan))
            high.append(max(values, default=math.nan))
        return Series(self.name, x, y, low, high)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from at or below ``low`` to at or above ``high``."""
    if not high > low:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread, high + spread
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis for 0 < low <= high: powers of ten; within one decade also 2 and 5 times them."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    if last - first > 1:
        step = -(-(last - first) // 6)
        last = first + -(-(last - first) // step) * step
        return [10.0**power for power in range(first, last + 1, step)]
    return [factor * 10.0**first for factor in (1, 2, 5, 10)]


def format_number(value: float) -> str:
    """A tick's text: 1200 is 1.2k, 0.00035 is 3.5e-4."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e3:
        return f"{value / 1e3:.4g}k"
    if size >= 1e-2:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def format_percent(value: float) -> str:
    """A fraction's tick in per cent."""
    return f"{100 * value:.4g} %"


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_format: Callable[[float], str] = format_number,
    x_ticks: Sequence[float] = (),
    y_floor: float | None = None,
    y_ceiling: float | None = None,
    y_log: bool = False,
) -> str:
    """An ``<svg>`` with one line a series and, for more than one, a legend below it.

    Args:
        series: Lines; those without a finite point are left out. Eight have their own colour and dashes, the next ones
            share colours with them and have other dashes.
        label: What the chart shows, for people who cannot see it; the last values are added.
        x_label: Text below the horizontal axis.
        y_format: Text of a vertical tick.
        x_ticks: Ticks of the horizontal axis, its ends the first and last; empty takes whole numbers within the data.
        y_floor, y_ceiling: Values that the vertical axis must reach, and not pass where the data do not.
        y_log: Whether the vertical axis is logarithmic, for lines of different sizes; what is not positive breaks a
            line there, and ``y_floor`` must be positive.
    """
    if y_log:
        series = [Series(line.name, line.x, [y if y > 0 else math.nan for y in line.y]) for line in series]
    drawn = [line for line in series if any(math.isfinite(y) for y in line.y)]
    if not drawn:
        return '<p class="empty">No values yet.</p>'
    shown = [line.reduced() for line in drawn]
    values = [y for line in shown for y in (*line.y, *line.low, *line.high) if math.isfinite(y)]
    low = min(values) if y_floor is None else min(y_floor, *values)
    high = max(values) if y_ceiling is None else max(y_ceiling, *values)
    y_ticks = log_ticks(low, high) if y_log else nice_ticks(low, high, 4)
    x_low, x_high = min(line.x[0] for line in drawn), max(line.x[-1] for line in drawn)
    if x_ticks:
        x_low, x_high = x_ticks[0], x_ticks[-1]
    if x_high <= x_low:
        x_low, x_high = x_low - 1, x_high + 1
    # Steps and ranks are whole numbers.
    ticks = x_ticks or [tick for tick in nice_ticks(x_low, x_high) if x_low <= tick <= x_high and tick == round(tick)]

    def px(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    scaled: Callable[[float], float] = math.log10 if y_log else float
    y_low, y_high = scaled(y_ticks[0]), scaled(y_ticks[-1])

    def py(y: float) -> float:
        return TOP + (y_high - scaled(y)) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    described = escape(_describe(label, drawn, y_format))
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{described}">']
    for tick in y_ticks:
        y = py(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 9}" y="{y + 4.5:.1f}" text-anchor="end">{escape(y_format(tick))}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}"/>')
    for tick in ticks:
        x = px(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="{base}" x2="{x:.1f}" y2="{base + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 20}" text-anchor="middle">{escape(format_number(tick))}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
    for index, line in enumerate(shown):
        parts.append(_draw(line, index, px, py))
    parts.append("</svg>")
    if len(shown) > 1:
        parts.append(_legend(shown))
    return "".join(parts)


def _draw(line: Series, index: int, px: Callable[[float], float], py: Callable[[float], float]) -> str:
    style, dash = _style(index)
    parts = []
    if line.low:
        band = [i for i in range(len(line.x)) if math.isfinite(line.low[i])]
        upper = [f"{px(line.x[i]):.1f},{py(line.high[i]):.1f}" for i in band]
        lower = [f"{px(line.x[i]):.1f},{py(line.low[i]):.1f}" for i in reversed(band)]
        parts.append(f'<polygon class="band {style}" points="{" ".join(upper + lower)}"/>')
    path, pen_down = [], False
    last: tuple[float, float] | None = None
    for x, y in zip(line.x, line.y, strict=True):
        if not math.isfinite(y):
            pen_down = False
            continue
        last = (px(x), py(y))
        path.append(f"{'L' if pen_down else 'M'}{last[0]:.1f} {last[1]:.1f}")
        pen_down = True
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    parts.append(f'<path class="line {style}" d="{"".join(path)}"{dashes}/>')
    if last is not None:
        parts.append(f'<circle class="dot {style}" cx="{last[0]:.1f}" cy="{last[1]:.1f}" r="3"/>')
    return "".join(parts)


def _style(index: int) -> tuple[str, str]:
    """Class and dashes of a line; a further round of the colours has its dashes moved on, so that no two are alike."""
    turn, place = divmod(index, len(DASHES))
    return f"s{place}", DASHES[(place + turn) % len(DASHES)]


def _legend(shown: Sequence[Series]) -> str:
    items = []
    for index, line in enumerate(shown):
        style, dash = _style(index)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        items.append(
            f'<li><svg viewBox="0 0 28 8" width="28" height="8" aria-hidden="true">'
            f'<path class="line {style}" d="M1 4H27"{dashes}/></svg>{escape(line.name)}</li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _describe(label: str, shown: Sequence[Series], y_format: Callable[[float], str]) -> str:
    ends = []
    for line in shown:
        finite = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        (first_x, first_y), (last_x, last_y) = finite[0], finite[-1]
        start, end = format_number(first_x), format_number(last_x)
        ends.append(f"{line.name} from {y_format(first_y)} at {start} to {y_format(last_y)} at {end}")
    return f"{label}: {'; '.join(ends)}"
