"""Pictures of motion fields: a source warped along a known motion is the target, arrows point to its origin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch import Tensor

from motarfuse.ops import MotionWarp, PartMoments, cell_centers, motion_warp, part_moments
from motarfuse.viz import draw_motion_field
from motarfuse.viz.motion_field import motion_between
from motarfuse.viz.part_panels import HIDDEN_COLOUR, PART_COLOURS, PartView, draw_warped, part_colour
from motarfuse.viz.rank_list import GAP_PX, LINE_PX, MARGIN_PX

GRID = H, W = 16, 8
N = H * W
WIDTH, HEIGHT = 144, 288  # the panels' own size: crops are drawn as they are, a cell has 18 x 18 pixels
CELL = 18
PANELS = ("source", "source keypoints", "target keypoints", "target parts", "motion", "warped", "target")
WITH_SOURCE_PARTS = (*PANELS[:2], "source parts", *PANELS[2:], "visibility")
GREY = Image.new("RGB", (WIDTH, HEIGHT), "#707070")


def texture(seed: int = 0) -> Image.Image:
    """Colours that change slowly, so that a place tells itself from others and interpolation errs little."""
    noise = np.random.default_rng(seed).integers(0, 255, (16, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def peak(row: int, column: int) -> Tensor:
    """(1, 1, N) a heat map of one cell."""
    logits = torch.full((1, 1, H, W), -10.0)
    logits[..., row, column] = 10
    return logits.flatten(2)


def everywhere(parts: int = 1) -> Tensor:
    """(1, K + 1, N) logits: the first part owns each cell."""
    logits = torch.zeros(1, parts + 1, N)
    logits[:, 1] = 60
    return logits


def owned(cells: dict[tuple[int, int], int], parts: int) -> Tensor:
    """(1, K + 1, N) logits: these cells (row, column) are of these parts (from 1), the others background."""
    logits = torch.zeros(1, parts + 1, H, W)
    logits[:, 0] = 60
    for (row, column), part in cells.items():
        logits[:, 0, row, column] = 0
        logits[:, part, row, column] = 60
    return logits.flatten(2)


def moments(parts: int = 1, people: int = 1) -> PartMoments:
    """Everything in the middle, undeformed, each heat map a single peak."""
    return PartMoments(
        torch.zeros(people, parts, 2), torch.eye(2).repeat(people, parts, 1, 1), torch.ones(people, parts)
    )


def warp_of(source: PartMoments, target: PartMoments, logits: Tensor, other: Tensor | None = None) -> MotionWarp:
    """The operator's; ``other`` is the source's logits."""
    postures = (source.keypoints, source.affines, target.keypoints, target.affines)
    return motion_warp(torch.empty(len(logits), N, 0), *postures, logits, other, grid=GRID)


def standing() -> MotionWarp:
    """Nothing moves, everything is visible."""
    return MotionWarp(torch.empty(1, N, 0), cell_centers(GRID, dtype=torch.float32)[None], torch.ones(1, N))


def panels(picture: Image.Image, names: tuple[str, ...] = PANELS) -> dict[str, np.ndarray]:
    """The panels of a picture of one pair without labels and title."""
    top = MARGIN_PX + 2 * LINE_PX
    assert picture.width == 2 * MARGIN_PX + len(names) * WIDTH + (len(names) - 1) * GAP_PX
    lefts = [MARGIN_PX + place * (WIDTH + GAP_PX) for place in range(len(names))]
    pixels = np.asarray(picture).astype(int)
    return {name: pixels[top : top + HEIGHT, left : left + WIDTH] for name, left in zip(names, lefts, strict=True)}


def near(pixels: np.ndarray, colour: str, tolerance: int = 12) -> np.ndarray:
    return (np.abs(pixels - ImageColor.getrgb(colour)[:3]) <= tolerance).all(-1)


def centre(where: np.ndarray) -> tuple[float, float]:
    """x, y of the box around what is True."""
    rows, columns = np.nonzero(where)
    return (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2


def moved(image: Image.Image, right: int, down: int) -> np.ndarray:
    """What each pixel finds so many pixels to its right and below, the border's beyond it."""
    pixels = np.asarray(image).astype(int)
    rows = np.clip(np.arange(HEIGHT) + down, 0, HEIGHT - 1)
    columns = np.clip(np.arange(WIDTH) + right, 0, WIDTH - 1)
    return pixels[rows[:, None], columns]


@pytest.mark.parametrize(("rows", "columns"), [(2, 1), (-1, 2), (0, -3)])
def test_a_source_warped_along_a_known_shift_is_the_shifted_source(rows: int, columns: int) -> None:
    target, source = part_moments(peak(8, 4), grid=GRID), part_moments(peak(8 + rows, 4 + columns), grid=GRID)
    logits = everywhere()
    crop = texture()
    expected = moved(crop, CELL * columns, CELL * rows)
    shifted = Image.fromarray(expected.astype(np.uint8))
    drawn = panels(
        draw_motion_field([crop], [shifted], source, target, logits, warp_of(source, target, logits), grid=GRID)
    )
    assert np.abs(drawn["warped"] - expected).max() <= 1
    assert (drawn["target"] == expected).all()
    assert (drawn["source"] == np.asarray(crop)).all()


def test_a_source_warped_along_a_known_rotation_is_the_rotated_source() -> None:
    cosine, sine = math.cos(math.radians(20)), math.sin(math.radians(20))
    x, y = WIDTH / 2, HEIGHT / 2
    crop = texture()
    # Pixel (X, Y) of the target reads the source at R ((X, Y) - middle) + middle.
    coefficients = (cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y)
    turned = crop.transform(crop.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    # In coordinates from -1 to 1 a unit is twice as long downwards: the same rotation is no orthogonal matrix there.
    source = moments()
    source.affines[0, 0] = torch.tensor([[cosine, -sine * y / x], [sine * x / y, cosine]])
    logits = everywhere()
    field = warp_of(source, moments(), logits)
    drawn = panels(draw_motion_field([crop], [turned], source, moments(), logits, field, grid=GRID))
    # Pixels whose place lies in the source, and between centres of cells.
    inside = np.asarray(Image.new("L", crop.size, 255).transform(crop.size, Image.Transform.AFFINE, coefficients)) > 0
    inside[:CELL], inside[-CELL:], inside[:, :CELL], inside[:, -CELL:] = False, False, False, False
    assert inside.sum() > 0.6 * inside.size
    assert np.abs(drawn["warped"] - np.asarray(turned))[inside].max() <= 3
    assert np.abs(np.asarray(crop).astype(int) - np.asarray(turned))[inside].mean() > 20  # it is not the source itself


def test_only_the_parts_cells_move_and_the_background_stays() -> None:
    """Two parts move apart, the cells between them are background."""
    logits = owned({(row, column): 1 + row // 8 for row in (2, 3, 4, 11, 12, 13) for column in range(W)}, parts=2)
    source = moments(2)
    source.keypoints[0] = torch.tensor([[0.25, 0.0], [-0.25, 0.0]])
    crop = texture()
    field = warp_of(source, moments(2), logits)
    warped = panels(draw_motion_field([crop], [crop], source, moments(2), logits, field, grid=GRID))["warped"]
    for rows, right in ((3, CELL), (12, -CELL), (7, 0), (15, 0)):  # the middle one of each three
        middle = slice(CELL * rows + CELL // 2 - 3, CELL * rows + CELL // 2 + 3)
        assert np.abs(warped[middle] - moved(crop, right, 0)[middle]).max() <= 1, rows


def test_nothing_moves_where_the_postures_are_the_same() -> None:
    crop = texture()
    drawn = panels(draw_motion_field([crop], [crop], moments(), moments(), everywhere(), standing(), grid=GRID))
    assert (drawn["warped"] == np.asarray(crop)).all()


def test_a_source_of_another_size_is_warped_onto_the_target() -> None:
    source, target = Image.new("RGB", (288, 288), "black"), GREY
    source.paste("red", (216, 0, 288, 288))  # the right quarter
    field = standing()
    field.flow[..., 0] += 0.5
    picture = draw_motion_field([source], [target], moments(), moments(), everywhere(), field, grid=GRID)
    left = MARGIN_PX + 2 * (288 + GAP_PX) + 3 * (WIDTH + GAP_PX)
    pixels = np.asarray(picture)[MARGIN_PX + 2 * LINE_PX :, left : left + WIDTH][:HEIGHT]
    red = near(pixels, "red", 60)
    assert red[:, 75:].all()  # the right half now
    assert not red[:, :69].any()


def arrow(displacement: tuple[float, float], scale: float | None = 1.0) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the arrow of the cell in row 8, column 4, whose centre is at pixel (81, 153)."""
    logits = owned({(8, 4): 1}, parts=1)
    source = moments()
    source.keypoints[0, 0] = torch.tensor(displacement)
    field = warp_of(source, moments(), logits)
    drawn = panels(draw_motion_field([GREY], [GREY], source, moments(), logits, field, grid=GRID, scale=scale))
    rows, columns = np.nonzero((drawn["motion"] != drawn["motion"][0, 0]).any(-1))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


@pytest.mark.parametrize("displacement", [(0.5, 0.0), (-0.5, 0.0), (0.0, 0.25), (0.0, -0.25), (0.5, 0.25)])
def test_an_arrow_points_from_the_target_to_where_the_source_has_it(displacement: tuple[float, float]) -> None:
    end = 81 + displacement[0] * WIDTH / 2, 153 + displacement[1] * HEIGHT / 2
    left, top, right, bottom = arrow(displacement)
    assert (left, right) == pytest.approx((min(81, end[0]), max(81, end[0])), abs=6)
    assert (top, bottom) == pytest.approx((min(153, end[1]), max(153, end[1])), abs=6)


def test_arrows_are_as_long_as_asked_and_else_within_two_cells() -> None:
    assert arrow((0.1, 0.1), scale=3.0) == arrow((0.3, 0.3))
    assert arrow((0.1, 0.0), scale=None) == arrow((0.5, 0.0))  # five times 0.4 cells


def test_masks_are_the_softmax_of_the_logits_each_persons_own() -> None:
    logits, source_logits = owned({(3, 5): 2, (4, 5): 2}, parts=3), owned({(9, 1): 3}, parts=3)
    drawn = panels(
        draw_motion_field([GREY], [GREY], moments(3), moments(3), logits, standing(), source_logits, grid=GRID),
        WITH_SOURCE_PARTS,
    )
    for name, rows, columns, part in (("target parts", (3, 5), (5, 6), 2), ("source parts", (9, 10), (1, 2), 3)):
        expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
        expected[CELL * rows[0] : CELL * rows[1], CELL * columns[0] : CELL * columns[1]] = True
        assert ((drawn[name] != 0x70).any(-1) == expected).all(), name
        inside = drawn[name][CELL * rows[0] + 9, CELL * columns[0] + 9]
        colour = np.array(ImageColor.getrgb(PART_COLOURS[part - 1]))
        assert np.allclose(inside, 0x70 + 0.7 * (colour - 0x70), atol=1), name


def test_a_part_that_has_less_of_a_cell_than_the_background_is_not_drawn() -> None:
    logits = torch.zeros(1, 2, N)
    logits[:, 1] = math.log(0.9)
    drawn = panels(draw_motion_field([GREY], [GREY], moments(), moments(), logits, standing(), grid=GRID))
    assert (drawn["target parts"] == 0x70).all()
    logits[:, 1] = math.log(1.1)
    drawn = panels(draw_motion_field([GREY], [GREY], moments(), moments(), logits, standing(), grid=GRID))
    assert (drawn["target parts"] != 0x70).any(-1).all()


def test_keypoints_lie_where_each_person_has_them_and_affines_stretch_their_ellipses() -> None:
    source, target = moments(), moments()
    source.keypoints[0, 0] = torch.tensor([0.5, -0.25])
    target.keypoints[0, 0] = torch.tensor([-0.5, 0.5])
    target.affines[0, 0] = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    logits = owned({}, parts=1)
    drawn = panels(draw_motion_field([GREY], [GREY], source, target, logits, standing(), grid=GRID))
    shapes = []
    for name, place in (("source keypoints", (108, 108)), ("target keypoints", (36, 216))):
        where = (np.abs(drawn[name] - drawn[name][0, 0]) > 20).any(-1)
        assert centre(where) == pytest.approx(place, abs=1.5), name
        shapes.append((np.ptp(np.nonzero(where)[1]) + 1) / (np.ptp(np.nonzero(where)[0]) + 1))
    assert shapes == pytest.approx([1, 2], rel=0.12)


def test_the_flatter_a_heat_map_the_fainter_its_keypoint() -> None:
    strength = []
    for confidence in (1.0, N**-0.5, 1 / N):
        source = moments()._replace(confidence=torch.full((1, 1), confidence))
        crop = Image.new("RGB", (WIDTH, HEIGHT))
        drawn = panels(draw_motion_field([crop], [crop], source, moments(), everywhere(), standing(), grid=GRID))
        # The rim's right end, beside the number.
        strength.append(int((drawn["source keypoints"] - drawn["source keypoints"][0, 0])[140:148, 78:90].max()))
    assert strength[1] == pytest.approx((strength[0] + strength[2]) / 2, abs=12)
    assert strength[0] > 4 * strength[2] > 0


def test_hidden_cells_are_orange_and_visible_ones_grey() -> None:
    field = standing()
    field.visibility[0, 5 * W + 2] = 0
    field.visibility[0, 9 * W + 6] = 0.5
    both = everywhere(), field, everywhere()
    picture = draw_motion_field([GREY], [GREY], moments(), moments(), *both, grid=GRID)
    seen = panels(picture, WITH_SOURCE_PARTS)["visibility"]
    grey = seen[0, 0]
    assert len(set(grey.tolist())) == 1
    coloured = (seen != grey).any(-1)
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[5 * CELL : 6 * CELL, 2 * CELL : 3 * CELL] = True
    expected[9 * CELL : 10 * CELL, 6 * CELL : 7 * CELL] = True
    assert (coloured == expected).all()
    orange = np.array(ImageColor.getrgb(HIDDEN_COLOUR))
    assert np.allclose(seen[5 * CELL + 5, 2 * CELL + 5], grey + 0.85 * (orange - grey), atol=1)
    assert np.allclose(seen[9 * CELL + 5, 6 * CELL + 5], grey + 0.425 * (orange - grey), atol=1)


def test_what_the_target_lost_is_hidden() -> None:
    """The operator's own visibility: the source has a person in a cell, the target has none there."""
    logits, source_logits = owned({(3, 3): 1}, parts=1), owned({(3, 3): 1, (10, 3): 1}, parts=1)
    field = warp_of(moments(), moments(), logits, source_logits)
    drawn = draw_motion_field([GREY], [GREY], moments(), moments(), logits, field, source_logits, grid=GRID)
    seen = panels(drawn, WITH_SOURCE_PARTS)["visibility"]
    assert centre((seen != seen[0, 0]).any(-1)) == (3 * CELL + 8.5, 10 * CELL + 8.5)


def test_colours_come_again_from_the_17th_part_on_and_are_striped_then() -> None:
    logits = owned({(3, 3): 1, (10, 3): 17}, parts=20)
    drawn = panels(draw_motion_field([GREY], [GREY], moments(20), moments(20), logits, standing(), grid=GRID))[
        "target parts"
    ]
    assert part_colour(0) == part_colour(16) != part_colour(17)
    plain, striped = (drawn[CELL * row + 1 : CELL * row + 17, 3 * CELL + 1 : 3 * CELL + 17] for row in (3, 10))
    plain, striped = (cell[2:-2, 2:-2].reshape(-1, 3) for cell in (plain, striped))  # without the edge
    assert len(np.unique(plain, axis=0)) == 1
    shades = np.unique(striped, axis=0)
    assert len(shades) == 2
    assert plain[0].tolist() in shades.tolist()
    share = (striped == plain[0]).all(-1).mean()
    assert 0.3 < share < 0.7


def test_pairs_stand_in_rows_each_with_its_own_field() -> None:
    crops = [texture(0), texture(1)]
    field = MotionWarp(*(tensor.repeat(2, *[1] * (tensor.ndim - 1)) for tensor in standing()))
    field.flow[1] += torch.tensor([0.25, 0.0])
    both = moments(people=2)
    logits = everywhere().repeat(2, 1, 1)
    picture = draw_motion_field(crops, crops, both, both, logits, field, grid=GRID)
    pixels = np.asarray(picture).astype(int)
    left, top = MARGIN_PX + 5 * (WIDTH + GAP_PX), MARGIN_PX + 2 * LINE_PX
    rows = [pixels[y : y + HEIGHT, left : left + WIDTH] for y in (top, top + HEIGHT + GAP_PX)]
    assert (rows[0] == np.asarray(crops[0])).all()
    assert np.abs(rows[1] - moved(crops[1], CELL, 0)).max() <= 1


def test_labels_stand_left_and_move_the_panels_only() -> None:
    args = ([GREY], [GREY], moments(), moments(), everywhere(), standing())
    plain = draw_motion_field(*args, grid=GRID)
    long = "a name that is far longer than the panels' margin"
    labelled = draw_motion_field(*args, grid=GRID, labels=[long])
    extra = labelled.width - plain.width
    assert (np.asarray(labelled)[:, MARGIN_PX + extra :] == np.asarray(plain)[:, MARGIN_PX:]).all()
    ink = (np.asarray(labelled)[MARGIN_PX + 2 * LINE_PX :, : MARGIN_PX + extra] != 255).any((0, 2))
    assert ink.any()
    assert not ink[-GAP_PX // 2 :].any()  # not cut off
    titled = draw_motion_field(*args, grid=GRID, title="A title")
    assert titled.height > plain.height


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type_strides_and_gradients_give_the_same_picture(dtype: torch.dtype) -> None:
    source = moments(2)
    source.keypoints[0] = torch.tensor([[0.25, 0.5], [-0.25, 0.125]])  # exact in half types
    logits = owned({(3, 3): 1, (10, 3): 2}, parts=2)
    field = standing()
    field.flow[:] = (field.flow * 16).round() / 16
    expected = draw_motion_field([GREY], [GREY], source, moments(2), logits, field, logits, grid=GRID)

    def other(tensor: Tensor) -> Tensor:
        strided = torch.stack((tensor, torch.full_like(tensor, 7)), -1)[..., 0]
        return strided.to(dtype).requires_grad_()

    changed = draw_motion_field(
        [GREY],
        [GREY],
        PartMoments(*map(other, source)),
        PartMoments(*map(other, moments(2))),
        other(logits),
        MotionWarp(*map(other, field)),
        other(logits),
        grid=GRID,
    )
    assert changed.tobytes() == expected.tobytes()


def test_a_hidden_channel_is_no_part_of_the_masks() -> None:
    logits = owned({(3, 3): 1}, parts=2)
    hidden = logits.clone()
    hidden[:, 2] = -math.inf
    logits[:, 2] = -100
    draw = [
        draw_motion_field([GREY], [GREY], moments(2), moments(2), each, standing(), grid=GRID)
        for each in (logits, hidden)
    ]
    assert draw[0].tobytes() == draw[1].tobytes()


def test_what_cannot_be_drawn_is_said() -> None:
    def draw(
        source: PartMoments | None = None,
        target: PartMoments | None = None,
        logits: Tensor | None = None,
        field: MotionWarp | None = None,
        source_logits: Tensor | None = None,
        *,
        grid: tuple[int, int] = GRID,
        images: tuple[Any, Any] = ([GREY], [GREY]),
        labels: Any = (),
        scale: Any = None,
    ) -> None:
        draw_motion_field(
            *images,
            moments() if source is None else source,
            moments() if target is None else target,
            everywhere() if logits is None else logits,
            standing() if field is None else field,
            source_logits,
            grid=grid,
            labels=labels,
            scale=scale,
        )

    draw()
    field = standing()
    with pytest.raises(ValueError, match="got 2 sources, 1 targets, 1 source keypoints and 0 labels"):
        draw(images=([GREY, GREY], [GREY]))
    with pytest.raises(ValueError, match="1 source keypoints and 2 labels"):
        draw(labels=("a", "b"))
    with pytest.raises(ValueError, match="got 0 sources, 0 targets, 0 source keypoints"):
        draw(moments(people=0), images=([], []))
    for parts in (0, 33):
        with pytest.raises(ValueError, match=f"source_moments: got {parts} parts, supported are 1 to 32"):
            draw(moments(parts), moments(parts), torch.zeros(1, parts + 1, N))
    with pytest.raises(ValueError, match=r"target_moments\.keypoints must be \(B, K, 2\).*got shape \(1, 2, 2\)"):
        draw(target=moments(2))
    with pytest.raises(ValueError, match=r"part_logits must be \(B, K \+ 1, N\) = \(1, 2, 128\)"):
        draw(logits=everywhere()[:, 1:])
    with pytest.raises(ValueError, match=r"source_part_logits must be .*got shape \(1, 2, 64\)"):
        draw(source_logits=everywhere()[..., :64])
    with pytest.raises(ValueError, match=r"warp\.flow must be \(B, N, 2\)"):
        draw(field=field._replace(flow=field.flow[..., 0]))
    with pytest.raises(ValueError, match=r"grid \(8, 8\) has 64 cells, but part_logits has 128"):
        draw(grid=(8, 8))
    with pytest.raises(ValueError, match=r"warp\.flow: got values that are not finite"):
        draw(field=field._replace(flow=field.flow / 0))
    with pytest.raises(ValueError, match="part_logits: got values that are not finite"):
        draw(logits=everywhere() - math.inf)
    with pytest.raises(TypeError, match=r"warp\.visibility has dtype int64"):
        draw(field=field._replace(visibility=field.visibility.long()))
    with pytest.raises(TypeError, match=r"torch\.float32, supported is torch\.uint8"):
        draw(images=(torch.zeros(1, 3, 8, 4), [GREY]))
    with pytest.raises(TypeError, match="sources must be a sequence, one for each pair, got Image"):
        draw(images=(GREY, [GREY]))
    with pytest.raises(ValueError, match=r"targets must be \(B, 3, H, W\) as one tensor, got shape \(3, 8, 4\)"):
        draw(images=([GREY], torch.zeros(3, 8, 4, dtype=torch.uint8)))
    with pytest.raises(TypeError, match="labels must be a sequence, one for each pair, got str"):
        draw(labels="a")
    with pytest.raises(TypeError, match=r"warp must be a motarfuse\.ops\.MotionWarp, got Tensor"):
        draw(field=field.flow)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"target_moments must be a motarfuse\.ops\.PartMoments, got Tensor"):
        draw(target=moments().keypoints)  # type: ignore[arg-type]
    for scale in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="scale"):
            draw(scale=scale)
    with pytest.raises(TypeError, match="scale"):
        draw(scale="2")


def test_a_displacement_is_interpolated_between_centres_of_cells() -> None:
    ramp = Image.fromarray(np.broadcast_to(np.arange(WIDTH, dtype=np.uint8)[None, :, None], (HEIGHT, WIDTH, 3)).copy())
    displacement = np.zeros((H, W, 2))
    displacement[:, 4, 0] = 2 * CELL / WIDTH  # a cell to the right, in column 4 only
    drawn = np.asarray(draw_warped(ramp, displacement, (WIDTH, HEIGHT))).astype(int)[100, :, 0]
    middle = np.arange(WIDTH) - (4.5 * CELL - 0.5)  # pixels from the centre of column 4
    expected = np.arange(WIDTH) + CELL * (1 - np.abs(middle) / CELL).clip(0)
    assert np.abs(drawn - expected).max() <= 1


def view_of(source: PartMoments, logits: Tensor) -> PartView:
    parts = source.keypoints.shape[1]
    return PartView(
        np.zeros((parts, 0)),
        np.ones(parts),
        source.keypoints[0].double().numpy(),
        source.affines[0].double().numpy(),
        logits[0].double().softmax(0).reshape(-1, H, W).numpy(),
        np.zeros((H, W, 2)),
    )


def test_the_motion_between_two_views_is_the_operators() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, source_logits = (3 * torch.randn(1, 4, N, generator=generator).double() for _ in range(2))
    logits[:, 2, :7] = logits[:, 0, 20:30] = -2000  # masks that are 0
    people = []
    for _ in range(2):
        keypoints = torch.rand(1, 3, 2, generator=generator).double() - 0.5
        affines = torch.eye(2) + 0.2 * torch.randn(1, 3, 2, 2, generator=generator).double()
        people.append(PartMoments(keypoints, affines, torch.ones(1, 3)))
    source, target = people
    expected = motion_warp(
        torch.empty(1, N, 0).double(), source.keypoints, source.affines, target.keypoints, target.affines, logits,
        source_logits, grid=GRID,
    )  # fmt: skip
    motion = motion_between(view_of(source, source_logits), view_of(target, logits))
    cells = cell_centers(GRID, dtype=torch.float64)
    assert np.allclose(motion.view.displacement.reshape(N, 2), expected.flow[0] - cells, atol=1e-9)
    assert np.allclose(motion.visibility.reshape(N), expected.visibility[0], atol=1e-9)
    assert np.allclose(motion.view.keypoints, target.keypoints[0])
