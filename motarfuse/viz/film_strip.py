"""A tracklet as a film strip: its frames, their parts, and the motion from each frame to the next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from PIL import Image
from torch import Tensor

from motarfuse.models.output import MotarFuseOutput
from motarfuse.viz.motion_field import motion_between
from motarfuse.viz.panel_table import panel_table
from motarfuse.viz.part_panels import (
    Picture,
    arrow_scale,
    draw_keypoints,
    draw_masks,
    draw_motion,
    fit_height,
    part_view,
)


def draw_film_strip(
    images: Sequence[Picture] | Tensor,
    output: MotarFuseOutput,
    *,
    index: int = 0,
    frame_index: Sequence[int] | None = None,
    title: str = "",
    scale: float | None = None,
) -> Image.Image:
    """Draws a column a frame of one clip: the crop, keypoints, parts, and two motions, one below the other.

    - keypoints: a numbered ellipse a part, a circle under the part's affine; faint where the part is hardly visible.
    - parts: each cell in the colour of its strongest part.
    - motion to the next frame: an arrow a foreground cell, from u to u + scale * (T(u) - u), where T is
      ``motarfuse.ops.motion_warp``'s flow with the next frame as the source: where in it the content of u is. The last
      frame has none.
    - canonical motion: likewise, to the posture that the network holds for canonical.

    Args:
        images: T crops: PIL images, uint8 arrays (H, W, 3), or uint8 tensors (3, H, W); also one tensor (T, 3, H, W).
        output: What the network said about a batch of clips of T frames.
        index: Which clip of the batch.
        frame_index: When each frame was taken, written above it; None: 0..T-1.
        title: A line above the picture.
        scale: How much longer than the displacement arrows are; None chooses one for each of the two motions.

    Returns:
        RGB image.

    Raises:
        ValueError: Numbers of images, frames and frame indices differ, or there are none.
    """
    frames = output.keypoints.shape[1]
    times = list(range(len(images))) if frame_index is None else list(frame_index)
    if not len(images) or len(images) != frames or len(times) != frames:
        raise ValueError(
            f"images, output and frame_index must tell of the same frames, at least one; got {len(images)} images, "
            f"{frames} frames and {len(times)} indices"
        )
    views = [part_view(output, index, frame) for frame in range(frames)]
    moves = [motion_between(after, before).view for before, after in pairwise(views)]
    between = (arrow_scale(moves) if moves else 1.0) if scale is None else scale
    canonical = arrow_scale(views) if scale is None else scale
    crops = [fit_height(image) for image in images]
    rows = [
        crops,
        [draw_keypoints(crop, view) for crop, view in zip(crops, views, strict=True)],
        [draw_masks(crop, view) for crop, view in zip(crops, views, strict=True)],
        [*(draw_motion(crop, view, between) for crop, view in zip(crops[:-1], moves, strict=True)), crops[-1]],
        [draw_motion(crop, view, canonical) for crop, view in zip(crops, views, strict=True)],
    ]
    headings = [
        "",
        "keypoints",
        "parts",
        f"motion to the\nnext frame x{between:g}",
        f"canonical\nmotion x{canonical:g}",
    ]
    return panel_table(rows, row_headings=headings, column_headings=[f"frame {time}" for time in times], title=title)
