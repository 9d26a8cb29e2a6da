"""Draws how the short forward of motion attention cuts a head's scores, beside square tiles, as one SVG for the docs.

python tools/draw_motion_attention_tiles.py --out docs/images/motion_attention_tiles.svg
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from motarfuse.kernels import motion_attention_table as table

from motarfuse.engine.outputs import write_bytes
from motarfuse.errors import MotarfuseError

LENGTHS = (129, 138, 211, 243)
# Batch times heads of an ordinary call, for which one program takes a head.
HEADS, WIDTH = 64 * 12, 64
SQUARE = 64
# Of a token, in pixels.
TOKEN_PX = 0.85
PANEL_PX, GAP_PX, LEFT_PX, TOP_PX, ROW_PX = 224, 26, 26, 52, 306
STYLE = (
    "text { font: 13px sans-serif; fill: #4c535c; } .title { font-size: 15px; fill: #1c1f24; }"
    " .padding { fill: #e3d3cf; } .exact { fill: #8fb8dc; } .narrow { fill: #eaa75b; }"
    " .tile { fill: none; stroke: #ffffff; stroke-width: 1.5; } .head { fill: none; stroke: #1c1f24; }"
)
KINDS = (
    ("exact", "scores in tiles of queries x keys"),
    ("narrow", "scores of the queries left over: transposed products, narrow tile"),
    ("padding", "computed and not used"),
)


class Cut(NamedTuple):
    """Tiles of one head: heights of the tiles of queries, widths of those of keys, height of the narrow tile or 0."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    narrow: int = 0

    def work(self, length: int) -> float:
        """Scores computed over scores used."""
        return (sum(self.queries) + self.narrow) * sum(self.keys) / length**2


def square_cut(length: int) -> Cut:
    """Square tiles, as kernels for any length take them."""
    tiles = (SQUARE,) * -(-length // SQUARE)
    return Cut(tiles, tiles)


def short_cut(plan: table.ShortPlan, length: int) -> Cut:
    """What `motion_attention_short_fwd_kernel` makes of a plan."""
    whole = length // plan.block_m if plan.rest else -(-length // plan.block_m)
    return Cut((plan.block_m,) * whole, tuple(keys for keys in plan.keys if keys), plan.rest)


def panel(cut: Cut, length: int, x: float, y: float) -> list[str]:
    """A head's scores, queries from top to bottom and keys from left to right."""

    def rectangle(kind: str, left: int, top: int, width: int, height: int) -> str:
        scaled = (x + left * TOKEN_PX, y + top * TOKEN_PX, width * TOKEN_PX, height * TOKEN_PX)
        left_px, top_px, width_px, height_px = (f"{number:g}" for number in (round(one, 2) for one in scaled))
        return f'<rect class="{kind}" x="{left_px}" y="{top_px}" width="{width_px}" height="{height_px}"/>'

    heights = [*cut.queries, *([cut.narrow] if cut.narrow else [])]
    used, borders = [], []
    for row, (top, height) in enumerate(zip(starts(heights), heights, strict=True)):
        kind = "narrow" if row == len(cut.queries) else "exact"
        for left, width in zip(starts(cut.keys), cut.keys, strict=True):
            used.append(rectangle(kind, left, top, min(width, length - left), min(height, length - top)))
            borders.append(rectangle("tile", left, top, width, height))
    padding = rectangle("padding", 0, 0, sum(cut.keys), sum(heights))
    return [padding, *used, *borders, rectangle("head", 0, 0, length, length)]


def starts(sizes: Sequence[int]) -> list[int]:
    """Where each of adjacent tiles begins."""
    return list(accumulate(sizes, initial=0))[:-1]


def sizes_text(cut: Cut) -> str:
    """The tiles in words: ``128 + 16 keys, 2 x 64 + 16 queries``."""
    narrow = f" + {cut.narrow}" if cut.narrow else ""
    keys = f"{len(cut.keys)} x {cut.keys[0]}" if len({*cut.keys}) == 1 else " + ".join(map(str, cut.keys))
    return f"{keys} keys, {len(cut.queries)} x {cut.queries[0]}{narrow} queries"


def draw() -> str:
    """The SVG."""
    width = LEFT_PX + len(LENGTHS) * (PANEL_PX + GAP_PX)
    height = TOP_PX + 2 * ROW_PX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    x = LEFT_PX
    for kind, text in KINDS:
        parts.append(f'<rect class="{kind}" x="{x}" y="14" width="16" height="16"/>')
        parts.append(f'<text x="{x + 23}" y="27">{text}</text>')
        x += 50 + 7 * len(text)
    for column, length in enumerate(LENGTHS):
        plans = {one: table.short_plan(one, True, WIDTH, HEADS, length, length) for one in table.ARCHITECTURES}
        found = [(one, plan) for one, plan in plans.items() if plan is not None]
        cuts = {short_cut(plan, length) for _, plan in found}
        assert len(cuts) == 1, f"{length} tokens are cut in {len(cuts)} ways; draw one row for each"
        names = "short on " + ("all" if len(found) == len(plans) else ", ".join(f"sm_{one}" for one, _ in found))
        rows = ((square_cut(length), f"{length} tokens, square tiles"), (cuts.pop(), f"{length} tokens, {names}"))
        for row, (cut, title) in enumerate(rows):
            x, y = LEFT_PX + column * (PANEL_PX + GAP_PX), TOP_PX + row * ROW_PX
            parts.append(f'<text class="title" x="{x}" y="{y + 16}">{title}</text>')
            parts.append(f'<text x="{x}" y="{y + 36}">padded / useful {cut.work(length):.2f}</text>')
            parts.append(f'<text x="{x}" y="{y + 54}">{sizes_text(cut)}</text>')
            parts += panel(cut, length, x, y + 64)
    return "\n".join([*parts, "</svg>\n"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.svg")
    args = parser.parse_args(arguments)
    try:
        write_bytes(args.out, draw().encode())
    except MotarfuseError as error:
        print(f"draw_motion_attention_tiles: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
