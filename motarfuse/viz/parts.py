"""Pictures of what the network sees in people: parts, keypoints, visibility, motion, and what matches between two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from motarfuse.models.output import MotarFuseOutput
from motarfuse.viz.panel_table import empty_paper, panel_table
from motarfuse.viz.part_panels import (
    PANEL_HEIGHT_PX,
    PART_COLOURS,
    Floats,
    Overlay,
    PartView,
    Picture,
    arrow_scale,
    draw_bars,
    draw_keypoints,
    draw_masks,
    draw_motion,
    fit_height,
    part_view,
    posture_on,
)
from motarfuse.viz.rank_list import (
    FAINT,
    GAP_PX,
    GREY_CARD,
    INK,
    LABEL_SIZE_PX,
    LINE_PX,
    MARGIN_PX,
    NEUTRAL,
    PAPER,
    TITLE_SIZE_PX,
    _fit,
    _font,
)

# Similarity 0 and below, 0.5, and 1: orange to blue differ for every kind of colour vision.
_DIFFERENT, _HALF, _ALIKE = "#c2571a", "#b9bec5", "#1f6fb2"
_EPSILON = 1e-6


class PartMatch(NamedTuple):
    """How alike two people are part by part.

    Attributes:
        similarity: (L,) cosine of the part features.
        weight: (L,) product of the two visibilities.
        score: sum(weight * similarity) / sum(weight), 0 where no part is visible in both.
    """

    similarity: Floats
    weight: Floats
    score: float


def match_parts(query: PartView, gallery: PartView) -> PartMatch:
    """Compares two people part by part.

    Raises:
        ValueError: Their numbers of parts or widths differ.
    """
    if query.features.shape != gallery.features.shape:
        raise ValueError(
            f"query and gallery must have the same parts, got features of shape {query.features.shape} "
            f"and {gallery.features.shape}; use one network for both"
        )
    norms = np.linalg.norm(query.features, axis=1) * np.linalg.norm(gallery.features, axis=1)
    similarity = (query.features * gallery.features).sum(1) / np.maximum(norms, _EPSILON)
    weight = query.visibility * gallery.visibility
    return PartMatch(similarity, weight, float((weight * similarity).sum() / (weight.sum() + _EPSILON)))


def draw_people(
    images: Sequence[Picture] | Tensor,
    output: MotarFuseOutput,
    *,
    labels: Sequence[str] = (),
    title: str = "",
    frame: int = 0,
    scale: float | None = None,
) -> Image.Image:
    """Draws a column a person: the crop, its parts, keypoints, visibility and motion, one below the other.

    - parts: each cell in the colour of its strongest part, more opaque the larger its share of the softmax; cells of
      the background are left as they are.
    - keypoints: a numbered ellipse a part, a circle under the part's affine with a line upwards; faint where the part
      is hardly visible.
    - visibility: a bar a part, from 0 to 1.
    - motion: an arrow a foreground cell, from u to u + scale * displacement(u) / s. The network takes the canonical
      displacement in aligned coordinates, q- + s (u - p-); divided by s it has the crop's units and its direction is
      the one seen in the crop. The common shift q- - p- is not part of it.

    Args:
        images: B crops: PIL images, uint8 arrays (H, W, 3), or uint8 tensors (3, H, W); also one tensor (B, 3, H, W).
            Any size: the network's coordinates span the whole crop.
        output: What the network said about these B people.
        labels: A line above each person; empty for none.
        title: A line above the picture.
        frame: Which frame of a clip the crops are.
        scale: How much longer than the displacement arrows are; None chooses one for all of the picture.

    Returns:
        RGB image.

    Raises:
        ValueError: Numbers of images, people and labels differ, or there are none.
    """
    if len(images) != len(output.keypoints) or not len(images) or len(labels) not in (0, len(images)):
        raise ValueError(
            f"images, output and labels must tell of the same people, at least one; got {len(images)} images, "
            f"{len(output.keypoints)} people and {len(labels)} labels"
        )
    views = [part_view(output, index, frame) for index in range(len(images))]
    scale = arrow_scale(views) if scale is None else scale
    crops = [fit_height(image) for image in images]
    columns = [
        (
            crop,
            draw_masks(crop, view),
            draw_keypoints(crop, view),
            draw_bars(view, width),
            draw_motion(crop, view, scale),
        )
        for crop, view, width in ((crop, view, max(120, crop.width)) for crop, view in zip(crops, views, strict=True))
    ]
    headings = ("crop", "parts", "keypoints", "visibility", f"motion\narrows x{scale:g}")
    return panel_table(list(zip(*columns, strict=True)), row_headings=headings, column_headings=labels, title=title)


def draw_canonical_posture(
    keypoints: Tensor, affines: Tensor, *, height_px: int = 2 * PANEL_HEIGHT_PX, title: str = ""
) -> Image.Image:
    """Draws the canonical posture: numbered ellipses, as in `draw_people`, on an empty canvas twice as high as wide.

    Args:
        keypoints: (L, 2) in [-1, 1]^2, x first, as `motarfuse.nn.CanonicalPosture.keypoints`.
        affines: (L, 2, 2).
        height_px: Of the canvas.
        title: A line above the canvas.

    Returns:
        RGB image.

    Raises:
        ValueError: Other shapes, or more than 16 parts.
    """
    parts = len(keypoints)
    if keypoints.shape != (parts, 2) or affines.shape != (parts, 2, 2) or not 1 <= parts <= len(PART_COLOURS):
        raise ValueError(
            f"keypoints and affines: got shapes {tuple(keypoints.shape)} and {tuple(affines.shape)}, "
            f"supported are (L, 2) and (L, 2, 2) with L from 1 to {len(PART_COLOURS)}"
        )
    canvas = Image.new("RGB", (height_px // 2, height_px), GREY_CARD)
    draw = ImageDraw.Draw(canvas)
    middle = (canvas.width // 2, canvas.height // 2)
    draw.line([(middle[0], 0), (middle[0], canvas.height)], PAPER, 1)
    draw.line([(0, middle[1]), (canvas.width, middle[1])], PAPER, 1)
    draw.rectangle((0, 0, canvas.width - 1, canvas.height - 1), outline=NEUTRAL)
    places = keypoints.detach().double().cpu().numpy()
    shapes = affines.detach().double().cpu().numpy()
    drawn = posture_on(canvas, places, shapes, np.ones(parts))
    if not title:
        return drawn
    top = MARGIN_PX + TITLE_SIZE_PX + GAP_PX
    picture, _ = empty_paper((drawn.width + 2 * MARGIN_PX, top + drawn.height + MARGIN_PX), title)
    picture.paste(drawn, (MARGIN_PX, top))
    return picture


def draw_match_pair(
    query_crop: Image.Image, query: PartView, gallery_crop: Image.Image, gallery: PartView, *, radius_px: float = 16
) -> Image.Image:
    """Two crops side by side; a line joins the keypoints of each part, as in `draw_part_matches`.

    Args:
        query_crop, gallery_crop: RGB pictures.
        query, gallery: Parts of the two.
        radius_px: Of the numbered discs at the keypoints; lines are up to half as wide.
    """
    match = match_parts(query, gallery)
    gap = round(0.3 * max(query_crop.height, gallery_crop.height))
    size = (query_crop.width + gap + gallery_crop.width, max(query_crop.height, gallery_crop.height))
    picture = Image.new("RGB", size, GREY_CARD)
    picture.paste(query_crop, (0, 0))
    picture.paste(gallery_crop, (query_crop.width + gap, 0))
    overlay = Overlay(size)
    starts = (query.keypoints + 1) / 2 * query_crop.size
    ends = (gallery.keypoints + 1) / 2 * gallery_crop.size + (query_crop.width + gap, 0)
    # Weak matches first: what counts most lies on top.
    largest = max(float(match.weight.max()), 0.05)
    for part in np.argsort(match.weight, kind="stable"):
        share = float(match.weight[part]) / largest
        opacity, width = round(255 * (0.3 + 0.7 * share)), (0.1 + 0.4 * share) * radius_px
        colour = (*similarity_colour(match.similarity[part]), opacity)
        overlay.line([starts[part], ends[part]], (*ImageColor.getrgb(INK)[:3], opacity), width + 0.15 * radius_px)
        overlay.line([starts[part], ends[part]], colour, width)
    for part in np.argsort(match.weight, kind="stable"):
        for place in (starts[part], ends[part]):
            overlay.disc(place, radius_px, ImageColor.getrgb(PAPER))
            overlay.disc(place, 0.88 * radius_px, ImageColor.getrgb(PART_COLOURS[part]))
            overlay.number(place, int(part) + 1, 1.2 * radius_px)
    return overlay.over(picture)


def draw_part_matches(
    query_image: Picture,
    query_output: MotarFuseOutput,
    gallery_image: Picture,
    gallery_output: MotarFuseOutput,
    *,
    query_index: int = 0,
    gallery_index: int = 0,
    title: str = "",
    query_label: str = "query",
    gallery_label: str = "gallery",
) -> Image.Image:
    """Draws which parts of two people are alike: lines between the keypoints of each part, and a table.

    A line is the wider and the more opaque the larger the product of the two visibilities, v_q v_g, is beside that of
    the other parts: it weighs the part in the score. Its colour is the cosine of the part features, from orange (0 and
    below) over grey (0.5) to blue (1).
    The table gives both a part, and their weighted mean, sum v_q v_g cos / sum v_q v_g.

    Args:
        query_image, gallery_image: Crops, as in `draw_people`.
        query_output, gallery_output: What one network said about them.
        query_index, gallery_index: Which person of each output.
        title: A line above the picture.
        query_label, gallery_label: A line below each crop.

    Returns:
        RGB image.

    Raises:
        ValueError: The outputs have different parts.
    """
    query, gallery = part_view(query_output, query_index), part_view(gallery_output, gallery_index)
    match = match_parts(query, gallery)
    crops = [fit_height(image, 2 * PANEL_HEIGHT_PX) for image in (query_image, gallery_image)]
    pair = draw_match_pair(crops[0], query, crops[1], gallery)
    top = MARGIN_PX + (TITLE_SIZE_PX + GAP_PX if title else 0)
    left = MARGIN_PX + pair.width + 3 * GAP_PX
    rows = (len(match.weight) + 3) * LINE_PX
    size = (left + 250 + MARGIN_PX, top + max(pair.height + LINE_PX + 5, rows) + MARGIN_PX)
    picture, draw = empty_paper(size, title)
    picture.paste(pair, (MARGIN_PX, top))
    font = _font(LABEL_SIZE_PX)
    for x, crop, label in zip(
        (MARGIN_PX, MARGIN_PX + pair.width - crops[1].width), crops, (query_label, gallery_label), strict=True
    ):
        draw.text((x, top + pair.height + 5), _fit(draw, label, font, crop.width), INK, font)
    _table(picture, match, (left, top))
    return picture


def similarity_colour(similarity: float) -> tuple[int, int, int]:
    """Orange at 0 and below, grey at 0.5, blue at 1."""
    stops = [np.array(ImageColor.getrgb(colour)) for colour in (_DIFFERENT, _HALF, _ALIKE)]
    place = 2 * float(np.clip(similarity, 0, 1))
    low = min(int(place), 1)
    red, green, blue = (stops[low] + (place - low) * (stops[low + 1] - stops[low])).round().astype(int).tolist()
    return red, green, blue


def _table(picture: Image.Image, match: PartMatch, place: tuple[int, int]) -> None:
    draw, font = ImageDraw.Draw(picture), _font(LABEL_SIZE_PX)
    columns = (place[0], place[0] + 130, place[0] + 250)
    y = place[1]
    for x, text, anchor in zip(columns, ("part", "similarity", "weight"), ("la", "ra", "ra"), strict=True):
        draw.text((x, y), text, FAINT, font, anchor=anchor)
    overlay = Overlay(picture.size)
    for part, (similarity, weight) in enumerate(zip(match.similarity, match.weight, strict=True)):
        y += LINE_PX
        middle = y + LABEL_SIZE_PX / 2 + 2
        overlay.disc((columns[0] + 10, middle), 9, ImageColor.getrgb(PART_COLOURS[part]))
        overlay.number((columns[0] + 10, middle), part + 1, 12)
        draw.text((columns[1], y), f"{similarity:.2f}", INK, font, anchor="ra")
        draw.rectangle((columns[1] - 76, y + 4, columns[1] - 58, y + 15), similarity_colour(similarity))
        track = (columns[2] - 90, y + 6, columns[2] - 44, y + 14)
        draw.rectangle(track, GREY_CARD)
        draw.rectangle((*track[:2], track[0] + round(46 * float(weight)), track[3]), NEUTRAL)
        draw.text((columns[2], y), f"{weight:.2f}", INK, font, anchor="ra")
    y += LINE_PX + 6
    draw.line([(columns[0], y), (columns[2], y)], NEUTRAL, 1)
    draw.text((columns[0], y + 6), "weighted", INK, font)
    draw.text((columns[1], y + 6), f"{match.score:.2f}", INK, font, anchor="ra")
    picture.paste(overlay.over(picture))
