"""Pictures of parts and motion: each shows what the network said, where it said it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch import Tensor

from motarfuse.models import MotarFuseOutput
from motarfuse.viz import draw_canonical_posture, draw_part_matches, draw_people
from motarfuse.viz.part_panels import (
    PANEL_HEIGHT_PX,
    PART_COLOURS,
    arrow_scale,
    draw_bars,
    draw_keypoints,
    draw_masks,
    draw_motion,
    fit_height,
    part_view,
    to_picture,
)
from motarfuse.viz.parts import draw_match_pair, match_parts, similarity_colour
from motarfuse.viz.rank_list import GREY_CARD

GREY = Image.new("RGB", (160, 320), "#707070")
H, W, L = 16, 8, 3  # cells of 20 x 20 pixels in GREY


def output(people: int = 1, parts: int = L) -> MotarFuseOutput:
    """Background everywhere, keypoints in the centre, nothing moves, everything visible, part features alike."""
    masks = torch.zeros(people, 1, parts + 1, H, W)
    masks[:, :, 0] = 1
    features = torch.eye(parts, 6).expand(people, -1, -1).clone()
    return MotarFuseOutput(
        feature=torch.zeros(people, 6),
        embedding=torch.zeros(people, 6),
        part_features=features,
        part_embeddings=features,
        part_visibility=torch.ones(people, parts),
        keypoints=torch.zeros(people, 1, parts, 2),
        affines=torch.eye(2).repeat(people, 1, parts, 1, 1),
        part_masks=masks,
        motion=torch.zeros(people, 1, H, W, 2),
        alignment=torch.zeros(people, 1, 3),
        class_feature=torch.zeros(people, 6),
    )


def give(out: MotarFuseOutput, part: int, row: int, column: int, share: float = 1.0) -> None:
    """Lets a part (from 1) own a share of a cell, the background the rest."""
    out.part_masks[0, 0, :, row, column] = 0
    out.part_masks[0, 0, 0, row, column] = 1 - share
    out.part_masks[0, 0, part, row, column] = share


def changed(picture: Image.Image, before: Image.Image) -> np.ndarray:
    return (np.asarray(picture) != np.asarray(before)).any(-1)


def near(picture: Image.Image, colour: str | tuple[int, ...], tolerance: int = 40) -> np.ndarray:
    """Pixels of about this colour."""
    wanted = np.array(ImageColor.getrgb(colour) if isinstance(colour, str) else colour)
    return (np.abs(np.asarray(picture).astype(int) - wanted) <= tolerance).all(-1)


def test_a_mask_colours_exactly_its_cells_and_leaves_the_background_as_it_is() -> None:
    out = output()
    give(out, 2, row=3, column=5)
    give(out, 2, row=4, column=5)
    drawn = draw_masks(GREY, part_view(out))
    expected = np.zeros((320, 160), dtype=bool)
    expected[60:100, 100:120] = True
    assert (changed(drawn, GREY) == expected).all()
    pixels = np.asarray(drawn)
    assert (pixels[60, 100:120] == ImageColor.getrgb(PART_COLOURS[1])).all()  # the edge, in full colour
    inside = pixels[80, 110].astype(int)
    grey, colour = np.full(3, 0x70), np.array(ImageColor.getrgb(PART_COLOURS[1]))
    assert np.allclose(inside, grey + 0.7 * (colour - grey), atol=1)


def test_a_cell_belongs_to_its_strongest_part_and_is_paler_the_smaller_the_share() -> None:
    out = output()
    give(out, 1, row=2, column=2, share=1.0)
    give(out, 1, row=8, column=2, share=0.6)
    give(out, 1, row=12, column=2, share=0.4)  # the background has more
    pixels = np.asarray(draw_masks(GREY, part_view(out))).astype(int)
    full, partly, not_at_all = (np.abs(pixels[20 * row + 10, 50] - 0x70).sum() for row in (2, 8, 12))
    assert full > partly > not_at_all == 0


def test_masks_follow_the_crop_whatever_its_size() -> None:
    out = output()
    give(out, 1, row=15, column=7)
    drawn = changed(draw_masks(odd := Image.new("RGB", (57, 131)), part_view(out)), odd)
    rows, columns = np.nonzero(drawn)
    assert (rows.min(), rows.max()) == (123, 130)  # the last of 16 shares of 131 rows, by pixel centres
    assert (columns.min(), columns.max()) == (50, 56)


def box(where: np.ndarray) -> tuple[float, float, int, int]:
    """Centre x, y and width, height of what is True."""
    rows, columns = np.nonzero(where)
    return (
        (columns.min() + columns.max()) / 2,
        (rows.min() + rows.max()) / 2,
        int(np.ptp(columns)) + 1,
        int(np.ptp(rows)) + 1,
    )


def one_keypoint(affine: Tensor | None = None, visibility: float = 1.0) -> np.ndarray:
    out = output(parts=1)
    out.keypoints[0, 0, 0] = torch.tensor([0.5, -0.25])
    out.part_visibility[0, 0] = visibility
    if affine is not None:
        out.affines[0, 0, 0] = affine
    black = Image.new("RGB", (160, 320))
    view = part_view(out)
    picture = draw_keypoints(black, view)
    return np.asarray(picture).astype(int) - np.asarray(draw_keypoints(black, part_view(output(parts=1)))).min((0, 1))


def test_a_keypoint_lies_where_it_says_x_first_and_an_undeformed_part_is_round() -> None:
    x, y, width, height = box(one_keypoint().sum(-1) > 30)
    assert (x, y) == pytest.approx((120, 120), abs=1.5)  # (0.5 + 1) / 2 * 160, (-0.25 + 1) / 2 * 320
    assert width == pytest.approx(height, abs=2)


def test_an_affine_stretches_and_turns_the_keypoints_ellipse() -> None:
    _, _, width, height = box(one_keypoint(torch.tensor([[2.0, 0.0], [0.0, 0.75]])).sum(-1) > 30)
    assert width / height == pytest.approx(2 / 0.75, rel=0.12)
    # Rows move to the right the further down they are: the ellipse leans.
    sheared = one_keypoint(torch.tensor([[1.0, 1.2], [0.0, 1.0]])).sum(-1) > 30
    rows, columns = np.nonzero(sheared)
    assert np.corrcoef(rows, columns)[0, 1] > 0.4


def test_what_is_hardly_visible_is_faint() -> None:
    rim = [float(one_keypoint(visibility=value)[100:112, 118:123].max()) for value in (1.0, 0.5, 0.0)]
    assert rim[0] > 1.3 * rim[1] > 1.7 * rim[2]


def arrow(displacement: tuple[float, float], *, scale: float = 1.0, log_s: float = 0.0) -> tuple[float, ...]:
    """Left, top, right, bottom of the arrow of the cell in row 8, column 4, whose centre is at pixel (90, 170)."""
    out = output()
    give(out, 1, row=8, column=4)
    out.motion[0, 0] = torch.tensor(displacement)  # everywhere, but the background has no arrow
    out.alignment[0, 0, 2] = log_s
    crop = Image.new("RGB", (160, 320), "white")
    rows, columns = np.nonzero(changed(draw_motion(crop, part_view(out), scale), crop))
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_an_arrow_points_where_the_displacement_says() -> None:
    for displacement, end in {
        (0.5, 0.0): (130, 170),
        (-0.5, 0.0): (50, 170),
        (0.0, 0.25): (90, 210),
        (0.0, -0.25): (90, 130),
        (0.5, 0.25): (130, 210),
    }.items():
        left, top, right, bottom = arrow(displacement)
        assert (left, right) == pytest.approx((min(90, end[0]), max(90, end[0])), abs=6.5), displacement
        assert (top, bottom) == pytest.approx((min(170, end[1]), max(170, end[1])), abs=6.5), displacement


def test_an_arrow_has_its_head_at_the_end() -> None:
    out = output()
    give(out, 1, row=8, column=4)
    out.motion[0, 0] = torch.tensor([0.5, 0.0])
    crop = Image.new("RGB", (160, 320), "white")
    heights = changed(draw_motion(crop, part_view(out)), crop).sum(0)
    assert heights[118:130].max() > 1.8 * heights[90:110].max()


def test_arrows_are_in_the_units_of_the_crop_and_scaled_as_asked() -> None:
    # The network scaled this person by 2 before it took the displacement: in the crop it is half as long.
    assert arrow((0.5, 0.0), log_s=math.log(2)) == arrow((0.25, 0.0))
    assert arrow((0.1, 0.1), scale=3) == arrow((0.3, 0.3))


def test_only_the_foreground_has_arrows_and_what_stands_still_is_a_dot() -> None:
    out = output()
    give(out, 1, row=8, column=4, share=0.4)
    out.motion[0, 0] = 0.3
    crop = Image.new("RGB", (160, 320), "white")
    assert not changed(draw_motion(crop, part_view(out)), crop).any()
    left, top, right, bottom = arrow((0.0, 0.0))
    assert (left + right) / 2 == pytest.approx(90, abs=1)
    assert max(right - left, bottom - top) <= 8


def test_the_chosen_scale_keeps_arrows_within_two_cells() -> None:
    out = output()
    give(out, 1, row=8, column=4)
    for length, expected in ((0.25 * 0.9, 2.0), (0.25 * 1.1, 1.0), (0.01, 50.0), (0.0, 1.0), (5.0, 0.25)):
        out.motion[0, 0, 8, 4] = torch.tensor([length, 0.0])  # a cell is 0.25 wide
        out.motion[0, 0, 0, 0] = 9.0  # background
        assert arrow_scale([part_view(out)] * 30) == expected, length


def test_bars_are_as_long_as_parts_are_visible() -> None:
    out = output()
    out.part_visibility[0] = torch.tensor([1.0, 0.5, 0.0])
    picture = draw_bars(part_view(out), 144)
    full, half, nothing = (int(near(picture, colour, 0).any(0).sum()) for colour in PART_COLOURS[:3])
    track = int(near(picture, GREY_CARD, 0).any(0).sum())
    assert full == track
    assert half == pytest.approx(full / 2, abs=1)
    assert nothing == 0


def colour_blind(colours: np.ndarray, kind: str) -> np.ndarray:
    """Linear RGB as dichromats see it (Machado et al. 2009, severity 1)."""
    matrices = {
        "normal": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }
    return np.clip(colours @ np.asarray(matrices[kind]).T, 0, 1)


def oklab(linear: np.ndarray) -> np.ndarray:
    """OKLab (Ottosson 2020) times 100."""
    to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    to_lms.append([0.0883024619, 0.2817188376, 0.6299787005])
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    to_lab.append([0.0259040371, 0.7827717662, -0.8086757660])
    return np.asarray(100 * np.cbrt(linear @ np.array(to_lms).T) @ np.array(to_lab).T)


@pytest.mark.parametrize("kind", ["normal", "protan", "deutan", "tritan"])
def test_colours_of_parts_differ_for_every_kind_of_colour_vision(kind: str) -> None:
    values = np.array([ImageColor.getrgb(colour) for colour in PART_COLOURS]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = oklab(colour_blind(linear, kind))
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 1e3 * np.eye(len(seen))
    assert distances[:8, :8].min() > 15
    assert distances.min() > 8


def pair(query: MotarFuseOutput, gallery: MotarFuseOutput) -> Image.Image:
    black = Image.new("RGB", (160, 320))
    return draw_match_pair(black, part_view(query), black, part_view(gallery), radius_px=6)


def test_a_line_joins_the_keypoints_of_a_part() -> None:
    query, gallery = output(parts=1), output(parts=1)
    query.keypoints[0, 0, 0] = torch.tensor([0.0, -0.5])  # at (80, 80) of the first crop
    gallery.keypoints[0, 0, 0] = torch.tensor([0.0, 0.5])  # at (80, 240) of the second
    picture = pair(query, gallery)
    gap = picture.width - 320
    line = near(picture, similarity_colour(1.0))
    for share in (0.2, 0.5, 0.8):
        x = round(80 + share * (160 + gap))
        assert np.nonzero(line[:, x])[0].mean() == pytest.approx(80 + share * 160, abs=2)
    assert not line[:, :70].any()
    assert not line[:, 80 + 160 + gap + 10 :].any()


def test_lines_tell_similarity_by_colour_and_visibility_by_width() -> None:
    query, gallery = output(parts=2), output(parts=2)
    for out in (query, gallery):
        out.keypoints[0, 0, :, 1] = torch.tensor([-0.5, 0.5])
    gallery.part_features[0, 1] = torch.eye(6)[4]  # nothing in common
    gallery.part_visibility[0] = torch.tensor([1.0, 0.9])
    picture = pair(query, gallery)
    middle = picture.width // 2
    alike, different = near(picture, similarity_colour(1.0)), near(picture, similarity_colour(0.0))
    assert alike[80, middle]
    assert different[240, middle]
    assert not different[:160].any()

    def width(visibility: float) -> int:
        gallery.part_visibility[0, 1] = visibility
        column = np.asarray(pair(query, gallery))[200:280, middle].astype(int)
        return int((np.abs(column - ImageColor.getrgb(GREY_CARD)).sum(-1) > 30).sum())

    assert width(1.0) > width(0.5) > width(0.05) > 0


def test_a_part_that_one_of_two_hides_does_not_count_in_their_score() -> None:
    query, gallery = output(), output()
    gallery.part_features[0, 1] = -query.part_features[0, 1]
    gallery.part_features[0, 2] = 3 * query.part_features[0, 2]
    query.part_visibility[0] = torch.tensor([1.0, 0.0, 0.5])
    gallery.part_visibility[0] = torch.tensor([0.5, 1.0, 1.0])
    match = match_parts(part_view(query), part_view(gallery))
    assert match.similarity == pytest.approx([1, -1, 1])
    assert match.weight == pytest.approx([0.5, 0, 0.5])
    assert match.score == pytest.approx(1, abs=1e-5)
    query.part_visibility[0] = torch.tensor([0.0, 1.0, 0.5])
    assert match_parts(part_view(query), part_view(gallery)).score == pytest.approx((-1 + 0.5) / 1.5, abs=1e-5)
    query.part_visibility[0] = 0
    assert match_parts(part_view(query), part_view(gallery)).score == 0


def test_matches_take_the_people_that_they_are_told() -> None:
    out = output(people=2)
    out.keypoints[1, 0, :, 1] = 0.8
    crops = [Image.new("RGB", (64, 128)) for _ in range(2)]
    same = draw_part_matches(crops[0], out, crops[1], out)
    other = draw_part_matches(crops[0], out, crops[1], out, gallery_index=1)
    single = output()
    single.keypoints[0, 0, :, 1] = 0.8
    assert changed(same, other).any()
    assert not changed(other, draw_part_matches(crops[0], output(), crops[1], single)).any()
    with pytest.raises(ValueError, match="use one network for both"):
        draw_part_matches(crops[0], out, crops[1], output(parts=2))


def test_the_canonical_posture_is_drawn_on_a_canvas_twice_as_high_as_wide() -> None:
    keypoints = torch.tensor([[0.0, -0.75], [0.5, 0.5]])
    picture = draw_canonical_posture(keypoints, torch.eye(2).repeat(2, 1, 1), height_px=400)
    assert picture.size == (200, 400)
    for (x, y), colour in (((100, 50), PART_COLOURS[0]), ((150, 300), PART_COLOURS[1])):
        assert box(near(picture, colour, 10))[:2] == pytest.approx((x, y), abs=3)
    with pytest.raises(ValueError, match=r"got shapes \(2, 2\) and \(3, 2, 2\)"):
        draw_canonical_posture(keypoints, torch.eye(2).repeat(3, 1, 1))


def test_people_stand_in_columns_with_every_panel_below_their_crop() -> None:
    out = output(people=2)
    give(out, 1, row=8, column=4)  # of the first
    crops = torch.zeros(2, 3, 128, 64, dtype=torch.uint8)
    crops[1, 0] = 255
    picture = draw_people(crops, out, scale=1.0)
    red = near(picture, (255, 0, 0), 2)
    first, second = (fit_height(to_picture(crop)) for crop in crops)
    x, y, width, height = box(red[: 24 + PANEL_HEIGHT_PX + 5])
    assert (width, height) == second.size
    left, top = round(x - width / 2 + 0.5), round(y - height / 2 + 0.5)
    assert red.any(0).argmax() == left  # the other person's column has nothing of it
    views = part_view(out, 0), part_view(out, 1)
    pixels = np.asarray(picture)
    column = left - first.width - 14
    below = top
    for panels in zip(
        *(
            (crop, draw_masks(crop, view), draw_keypoints(crop, view), draw_bars(view, 144), draw_motion(crop, view))
            for crop, view in zip((first, second), views, strict=True)
        ),
        strict=True,
    ):
        for start, panel in zip((column, left), panels, strict=True):
            assert (pixels[below : below + panel.height, start : start + panel.width] == np.asarray(panel)).all()
        below += panels[0].height + 14


def test_crops_may_be_pictures_tensors_or_arrays() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (128, 64, 3), dtype=np.uint8)
    kinds = (Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1), pixels)
    drawn = [draw_people([image], output()).tobytes() for image in kinds]
    assert drawn[0] == drawn[1] == drawn[2]
    with pytest.raises(TypeError, match=r"torch\.float32, supported is torch\.uint8"):
        draw_people(torch.zeros(1, 3, 128, 64), output())
    with pytest.raises(ValueError, match=r"shape \(128, 64, 3\), supported is \(3, H, W\)"):
        to_picture(torch.from_numpy(pixels))
    with pytest.raises(TypeError, match="got str"):
        to_picture("crop.jpg")  # type: ignore[arg-type]


def test_what_cannot_be_drawn_is_said() -> None:
    crop = Image.new("RGB", (64, 128))
    with pytest.raises(ValueError, match="got 2 images, 1 people and 0 labels"):
        draw_people([crop, crop], output())
    with pytest.raises(ValueError, match="1 images, 1 people and 2 labels"):
        draw_people([crop], output(), labels=["a", "b"])
    with pytest.raises(ValueError, match="17 parts, supported are up to 16"):
        draw_people([crop], output(parts=17))
    with pytest.raises(IndexError, match="index 0 and frame 1; the output holds 1 people of 1 frames"):
        draw_people([crop], output(), frame=1)
