"""Film strips: a column a frame, motion that points to where the next frame has what belongs here."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from motarfuse.models import MotarFuseOutput
from motarfuse.viz import draw_film_strip
from motarfuse.viz.motion_field import motion_between
from motarfuse.viz.part_panels import draw_masks, draw_motion, fit_height, part_view
from motarfuse.viz.rank_list import GAP_PX

H, W = 16, 8
FRAMES, STEP = 3, 0.25


def walking() -> MotarFuseOutput:
    """One part that owns every cell and moves by STEP to the right and STEP / 2 down in each frame."""
    keypoints = torch.tensor([[[[STEP * frame, STEP / 2 * frame]] for frame in range(FRAMES)]])
    masks = torch.zeros(1, FRAMES, 2, H, W)
    masks[:, :, 1] = 1
    return MotarFuseOutput(
        feature=torch.zeros(1, 4),
        embedding=torch.zeros(1, 4),
        part_features=torch.zeros(1, 1, 4),
        part_embeddings=torch.zeros(1, 1, 4),
        part_visibility=torch.ones(1, 1),
        keypoints=keypoints,
        affines=torch.eye(2).expand(1, FRAMES, 1, 2, 2),
        part_masks=masks,
        motion=torch.full((1, FRAMES, H, W, 2), 0.1),
        alignment=torch.zeros(1, FRAMES, 3),
        class_feature=torch.zeros(1, 4),
    )


def crops() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (128, 64, 3), dtype=np.uint8)) for _ in range(FRAMES)]


def places_of(panel: Image.Image, picture: Image.Image) -> list[tuple[int, int]]:
    """Where a picture shows a panel, (left, top)."""
    wide, small = np.asarray(picture), np.asarray(panel)
    height, width = small.shape[:2]
    first = (wide[: wide.shape[0] - height + 1, : wide.shape[1] - width + 1] == small[0, 0]).all(-1)
    rows, columns = first.nonzero()
    return [
        (int(column), int(row))
        for row, column in zip(rows, columns, strict=True)
        if np.array_equal(wide[row : row + height, column : column + width], small)
    ]


def test_the_motion_of_a_frame_leads_to_the_next_one() -> None:
    output = walking()
    view = motion_between(part_view(output, 0, 1), part_view(output, 0, 0)).view
    assert np.allclose(view.displacement, [STEP, STEP / 2], atol=1e-6)
    assert view.displacement.shape == (H, W, 2)


def test_each_frame_has_a_column_and_the_rows_are_in_order() -> None:
    output, images = walking(), crops()
    strip = draw_film_strip(images, output, scale=1.0, title="a tracklet", frame_index=[4, 5, 9])
    shown = [fit_height(image) for image in images]
    views = [part_view(output, 0, frame) for frame in range(FRAMES)]
    columns = [places_of(panel, strip)[0] for panel in shown]
    assert [left - columns[0][0] for left, _ in columns] == [
        number * (shown[0].width + GAP_PX) for number in range(FRAMES)
    ]
    moves = [motion_between(after, before).view for before, after in pairwise(views)]
    for frame in range(FRAMES):
        masks = places_of(draw_masks(shown[frame], views[frame]), strip)
        canonical = places_of(draw_motion(shown[frame], views[frame], 1.0), strip)
        left, top = columns[frame]
        assert [place[0] for place in (*masks, *canonical)] == [left, left]
        assert top < masks[0][1] < canonical[0][1]
        if frame < 2:
            ((column, row),) = places_of(draw_motion(shown[frame], moves[frame], 1.0), strip)
            assert column == left
            assert masks[0][1] < row < canonical[0][1]
    # The last frame has no next one: its plain crop stands there again.
    assert len(places_of(shown[2], strip)) == 2


def test_what_does_not_tell_of_the_same_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="got 2 images, 3 frames and 2 indices"):
        draw_film_strip(crops()[:2], walking())
    with pytest.raises(ValueError, match="3 images, 3 frames and 1 indices"):
        draw_film_strip(crops(), walking(), frame_index=[1])


def test_a_single_frame_is_a_strip_too() -> None:
    output = walking()
    for name in ("keypoints", "affines", "part_masks", "motion", "alignment"):
        setattr(output, name, getattr(output, name)[:, :1])
    assert draw_film_strip(crops()[:1], output).width < draw_film_strip(crops(), walking()).width
