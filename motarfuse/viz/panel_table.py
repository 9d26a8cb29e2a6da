"""Panels in rows and columns on white, with headings."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from motarfuse.viz.rank_list import (
    FAINT,
    GAP_PX,
    INK,
    LABEL_SIZE_PX,
    LINE_PX,
    MARGIN_PX,
    PAPER,
    TITLE_SIZE_PX,
    _fit,
    _font,
)

LEFT_PX = 104


def empty_paper(size: tuple[int, int], title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture with its title."""
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    if title:
        font = _font(TITLE_SIZE_PX)
        draw.text((MARGIN_PX, MARGIN_PX), _fit(draw, title, font, size[0] - 2 * MARGIN_PX), INK, font)
    return picture, draw


def panel_table(
    rows: Sequence[Sequence[Image.Image]],
    *,
    row_headings: Sequence[str] = (),
    column_headings: Sequence[str] = (),
    title: str = "",
) -> Image.Image:
    """Panels on white, each row as high as its highest panel and each column as wide as its widest.

    Args:
        rows: Panels, equally many a row.
        row_headings: Left of the rows, which move to the right for long ones; empty for none. What follows a line
            break is faint.
        column_headings: Above the columns, shortened to their width; likewise.
        title: A line above everything.
    """
    heights = [max(panel.height for panel in row) for row in rows]
    widths = [max(panel.width for panel in column) for column in zip(*rows, strict=True)]
    font = _font(LABEL_SIZE_PX)
    lines_left = [line for heading in row_headings for line in heading.split("\n")]
    longest = max((round(font.getlength(line)) for line in lines_left), default=0)
    left = MARGIN_PX + (max(LEFT_PX, longest + GAP_PX) if row_headings else 0)
    top = MARGIN_PX + (TITLE_SIZE_PX + GAP_PX if title else 0)
    first = top + LINE_PX * max((1 + heading.count("\n") for heading in column_headings), default=0)
    size = (
        left + sum(widths) + GAP_PX * (len(widths) - 1) + MARGIN_PX,
        first + sum(heights) + GAP_PX * (len(heights) - 1) + MARGIN_PX,
    )
    picture, draw = empty_paper(size, title)
    x = left
    for heading, width in zip(column_headings, widths, strict=False):
        for line, text in enumerate(heading.split("\n")):
            draw.text((x, top + line * LINE_PX), _fit(draw, text, font, width), FAINT if line else INK, font)
        x += width + GAP_PX
    y = first
    for index, (row, height) in enumerate(zip(rows, heights, strict=True)):
        if row_headings:
            for line, text in enumerate(row_headings[index].split("\n")):
                draw.text((MARGIN_PX, y + line * LINE_PX), text, FAINT if line else INK, font)
        x = left
        for panel, width in zip(row, widths, strict=True):
            picture.paste(panel, (x, y))
            x += width + GAP_PX
        y += height + GAP_PX
    return picture
