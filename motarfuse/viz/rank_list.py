"""A picture of a search: the query left, the best entries in order, right and wrong marked by shape and colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

GAP_PX, MARGIN_PX, BORDER_PX = 14, 24, 5
# Inside its border a card is 120 x 240: most person crops fill it.
CARD_WIDTH_PX, CARD_HEIGHT_PX = 120 + 2 * BORDER_PX, 240 + 2 * BORDER_PX
LABEL_SIZE_PX, TITLE_SIZE_PX = 17, 20
LINE_PX = LABEL_SIZE_PX + 6
PAPER, INK, FAINT = "#ffffff", "#1c1f24", "#667080"
RIGHT, WRONG, NEUTRAL = "#1a7f4e", "#c0392b", "#9aa3ae"
GREY_CARD = "#d9dde2"


@dataclass(frozen=True)
class RankEntry:
    """One result.

    Attributes:
        image: The crop; None draws a grey card.
        score: Similarity or distance.
        pid: Identity, -1 when unknown.
        camid: Camera, -1 when unknown.
        match: Whether the identity is the query's; None when that is not known.
        note: What to write on a grey card.
    """

    image: Image.Image | None
    score: float
    pid: int = -1
    camid: int = -1
    match: bool | None = None
    note: str = "not readable"


def draw_rank_list(
    query_image: Image.Image | None,
    entries: Sequence[RankEntry],
    *,
    title: str = "",
    query_label: str = "query",
    columns: int = 10,
) -> Image.Image:
    """Draws a query and its results, best first, from left to right and top to bottom.

    Args:
        query_image: The query's crop; None draws a grey card.
        entries: The results in order.
        title: A line above the picture.
        query_label: A line below the query.
        columns: Results a row.

    Returns:
        RGB image; each crop fits in 120 x 240 pixels, its proportions kept.

    Raises:
        ValueError: ``columns`` below 1.
    """
    if columns < 1:
        raise ValueError(f"columns: got {columns}, supported is at least 1")
    shown = max(1, min(columns, len(entries)))
    rows = max(1, -(-len(entries) // columns))
    cell_width, cell_height = CARD_WIDTH_PX + GAP_PX, CARD_HEIGHT_PX + 2 * LINE_PX + GAP_PX
    top = MARGIN_PX + (TITLE_SIZE_PX + GAP_PX if title else 0)
    left = MARGIN_PX + CARD_WIDTH_PX + 3 * GAP_PX
    size = (left + shown * cell_width - GAP_PX + MARGIN_PX, top + rows * cell_height - GAP_PX + MARGIN_PX)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    if title:
        draw.text(
            (MARGIN_PX, MARGIN_PX),
            _fit(draw, title, _font(TITLE_SIZE_PX), size[0] - 2 * MARGIN_PX),
            INK,
            _font(TITLE_SIZE_PX),
        )
    _card(picture, query_image, (MARGIN_PX, top), INK, "not readable")
    _label(draw, (MARGIN_PX, top + CARD_HEIGHT_PX + 5), query_label, INK)
    line = left - GAP_PX - GAP_PX // 2
    draw.line([(line, top), (line, size[1] - MARGIN_PX)], fill=NEUTRAL, width=1)
    for index, entry in enumerate(entries):
        place = (left + index % columns * cell_width, top + index // columns * cell_height)
        colour = NEUTRAL if entry.match is None else RIGHT if entry.match else WRONG
        _card(picture, entry.image, place, colour, entry.note)
        if entry.match is not None:
            _mark(draw, (place[0] + CARD_WIDTH_PX - 26, place[1] + CARD_HEIGHT_PX - 26), entry.match, colour)
        below = place[1] + CARD_HEIGHT_PX + 5
        _label(draw, (place[0], below), f"#{index + 1}: {entry.score:.3f}", INK)
        known = [f"id {entry.pid}"] * (entry.pid != -1) + [f"cam {entry.camid}"] * (entry.camid != -1)
        _label(draw, (place[0], below + LINE_PX), ", ".join(known), FAINT)
    return picture


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The text, shortened in the middle where it is too wide."""
    text = " ".join(text.split())
    keep = len(text)
    fitted = text
    while keep > 4 and draw.textlength(fitted, font) > width:
        keep -= 1
        fitted = text[: keep - keep // 2] + "..." + text[len(text) - keep // 2 :]
    return fitted


def _label(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: str) -> None:
    font = _font(LABEL_SIZE_PX)
    draw.text(place, _fit(draw, text, font, CARD_WIDTH_PX), colour, font)


def _card(picture: Image.Image, image: Image.Image | None, place: tuple[int, int], border: str, note: str) -> None:
    draw = ImageDraw.Draw(picture)
    box = (*place, place[0] + CARD_WIDTH_PX - 1, place[1] + CARD_HEIGHT_PX - 1)
    draw.rectangle(box, fill=GREY_CARD, outline=border, width=BORDER_PX)
    inner = (CARD_WIDTH_PX - 2 * BORDER_PX, CARD_HEIGHT_PX - 2 * BORDER_PX)
    if image is None:
        font = _font(LABEL_SIZE_PX)
        text = _fit(draw, note, font, inner[0] - 8)
        x = place[0] + (CARD_WIDTH_PX - draw.textlength(text, font)) / 2
        draw.text((x, place[1] + CARD_HEIGHT_PX / 2 - LABEL_SIZE_PX / 2), text, FAINT, font)
        return
    scale = min(inner[0] / image.width, inner[1] / image.height)
    fitted = image.convert("RGB").resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )
    picture.paste(
        fitted, (place[0] + (CARD_WIDTH_PX - fitted.width) // 2, place[1] + (CARD_HEIGHT_PX - fitted.height) // 2)
    )


def _mark(draw: ImageDraw.ImageDraw, place: tuple[int, int], match: bool, colour: str) -> None:
    """A tick or a cross on a disc, drawn by hand: few fonts have these signs."""
    x, y = place
    draw.ellipse((x, y, x + 20, y + 20), fill=colour, outline=PAPER, width=2)
    if match:
        draw.line([(x + 5, y + 10), (x + 9, y + 14), (x + 15, y + 6)], fill=PAPER, width=2)
    else:
        draw.line([(x + 6, y + 6), (x + 14, y + 14)], fill=PAPER, width=2)
        draw.line([(x + 14, y + 6), (x + 6, y + 14)], fill=PAPER, width=2)
