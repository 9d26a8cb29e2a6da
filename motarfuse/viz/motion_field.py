"""The motion field between two people, from what ``motarfuse.ops`` computes: moments, masks, flow and visibility."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from motarfuse.ops import MotionWarp, PartMoments, cell_centers, motion_warp
from motarfuse.ops.validation import check_grid, check_positive, check_rank, check_shape, check_tensor
from motarfuse.viz.panel_table import panel_table
from motarfuse.viz.part_panels import (
    PART_COLOURS,
    Floats,
    PartView,
    Picture,
    arrow_scale,
    draw_hidden,
    draw_keypoints,
    draw_masks,
    draw_motion,
    draw_warped,
    fit_height,
    to_floats,
)

# Twice the colours: plain, and striped in the masks.
MOST_PARTS = 2 * len(PART_COLOURS)


class Motion(NamedTuple):
    """How a target comes from a source.

    Attributes:
        view: The target's parts; its displacement is flow(u) - u.
        visibility: (h, w).
    """

    view: PartView
    visibility: Floats


def motion_between(source: PartView, target: PartView) -> Motion:
    """``motarfuse.ops.motion_warp`` of what a network said about two people, on the target's grid.

    A view has masks M instead of logits; log M, -inf for a mask that is 0, are logits with these masks.

    Raises:
        ValueError: Their numbers of parts or grids differ.
    """
    height, width = target.foreground.shape

    def batch(values: Floats) -> Tensor:
        return torch.from_numpy(values)[None]

    def logits(view: PartView) -> Tensor:
        return batch(view.masks).flatten(2).log()

    warp = motion_warp(
        torch.empty((1, height * width, 0), dtype=torch.float64),
        batch(source.keypoints),
        batch(source.affines),
        batch(target.keypoints),
        batch(target.affines),
        logits(target),
        logits(source),
        grid=(height, width),
    )
    return _motion(target, warp.flow[0], warp.visibility[0])


def draw_motion_field(
    sources: Sequence[Picture] | Tensor,
    targets: Sequence[Picture] | Tensor,
    source_moments: PartMoments,
    target_moments: PartMoments,
    part_logits: Tensor,
    warp: MotionWarp,
    source_part_logits: Tensor | None = None,
    *,
    grid: tuple[int, int],
    labels: Sequence[str] = (),
    title: str = "",
    scale: float | None = None,
) -> Image.Image:
    """Draws a row a pair: two postures, the motion field between them, and the source warped along it.

    The tensors are those that ``motarfuse.ops.part_moments`` and ``motarfuse.ops.motion_warp`` took and gave. From left
    to right:

    - source, source keypoints: the crop, and over it a numbered ellipse a part: a circle under the part's affine, with
      a line upwards; the flatter the part's heat map, the fainter, 1 - log(1 / confidence) / log N.
    - source parts: only where source part logits are given. Each cell in the colour of its strongest part, more opaque
      the larger its share of the softmax; cells of the background are left as they are.
    - target keypoints, target parts: likewise.
    - motion: an arrow a foreground cell of the target, from u to u + scale * (flow(u) - u), in the colour of its
      strongest part: it points to where the source has what belongs here, against the way that the part moved.
    - source warped: the source read at the flow of each pixel, bilinearly, clamped to the border; flow(u) - u is
      interpolated bilinearly between cells. Where keypoints, affines and masks are right it looks like the target,
      which stands beside it.
    - visibility: only where source part logits are given, without which it is 1. Over a pale target, grey where it is
      1, the more orange the smaller it is: the person is in this cell of the source and not of the target, covered or
      merely elsewhere.

    Args:
        sources: B crops: PIL images, uint8 arrays (H, W, 3), or uint8 tensors (3, H, W); also one tensor (B, 3, H, W).
            Any size: coordinates from -1 to 1 span the whole crop.
        targets: B crops.
        source_moments: keypoints (B, K, 2), affines (B, K, 2, 2), confidence (B, K) of the sources; K from 1 to 32.
            Colours are 16: those of the 17th to the 32nd part come again, striped in the masks.
        target_moments: Of the targets.
        part_logits: (B, K + 1, N) of the targets, channel 0 the background.
        warp: flow (B, N, 2) and visibility (B, N); warped tokens are not drawn, C = 0 will do.
        source_part_logits: (B, K + 1, N), or None.
        grid: (h, w) in cells, N = h*w, row-major.
        labels: A line left of each pair; what follows a line break is faint. Empty for none.
        title: A line above the picture.
        scale: How much longer than the displacement arrows are, above 0; None chooses one for all of the picture.

    Part logits of -inf hide a channel. Tensors may lie on any device, each on its own, in float16, bfloat16, float32 or
    float64.

    Returns:
        RGB image.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, moments, warp, grid, scale, labels or crops of another
            type.
        ValueError: Numbers of sources, targets, labels and people differ, or there are none; a wrong rank or shape, a
            grid that does not fit N, K = 0 or above 32, values that are not finite.
    """
    for name, value, kind in (
        ("source_moments", source_moments, PartMoments),
        ("target_moments", target_moments, PartMoments),
        ("warp", warp, MotionWarp),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a motarfuse.ops.{kind.__name__}, got {type(value).__name__}")
    for name, crops in (("sources", sources), ("targets", targets), ("labels", labels)):
        if isinstance(crops, (str, Image.Image)) or not isinstance(crops, (Sequence, Tensor, np.ndarray)):
            raise TypeError(f"{name} must be a sequence, one for each pair, got {type(crops).__name__}")
        if isinstance(crops, Tensor) and crops.dim() != 4:
            raise ValueError(f"{name} must be (B, 3, H, W) as one tensor, got shape {tuple(crops.shape)}")
    if scale is not None:
        scale = check_positive("scale", scale)
    check_tensor("source_moments.keypoints", source_moments.keypoints)
    check_rank("source_moments.keypoints", source_moments.keypoints, "(B, K, 2)")
    people, parts = source_moments.keypoints.shape[:2]
    counts = len(sources), len(targets), people
    if people < 1 or len(set(counts)) > 1 or len(labels) not in (0, people):
        raise ValueError(
            f"sources, targets, moments and labels must tell of the same pairs, at least one; got {counts[0]} sources, "
            f"{counts[1]} targets, {people} source keypoints and {len(labels)} labels"
        )
    if not 1 <= parts <= MOST_PARTS:
        raise ValueError(f"source_moments: got {parts} parts, supported are 1 to {MOST_PARTS}")
    check_tensor("part_logits", part_logits)
    check_rank("part_logits", part_logits, "(B, K + 1, N)")
    cells = part_logits.shape[2]
    grid = check_grid(grid, cells, "part_logits")
    for name, tensor, layout, shape in (
        ("source_moments.keypoints", source_moments.keypoints, "(B, K, 2)", (parts, 2)),
        ("source_moments.affines", source_moments.affines, "(B, K, 2, 2)", (parts, 2, 2)),
        ("source_moments.confidence", source_moments.confidence, "(B, K)", (parts,)),
        ("target_moments.keypoints", target_moments.keypoints, "(B, K, 2)", (parts, 2)),
        ("target_moments.affines", target_moments.affines, "(B, K, 2, 2)", (parts, 2, 2)),
        ("target_moments.confidence", target_moments.confidence, "(B, K)", (parts,)),
        ("part_logits", part_logits, "(B, K + 1, N)", (parts + 1, cells)),
        ("source_part_logits", source_part_logits, "(B, K + 1, N)", (parts + 1, cells)),
        ("warp.flow", warp.flow, "(B, N, 2)", (cells, 2)),
        ("warp.visibility", warp.visibility, "(B, N)", (cells,)),
    ):
        if tensor is None:
            continue
        check_tensor(name, tensor)
        check_shape(name, tensor, layout, (people, *shape), "source_moments.keypoints and part_logits")
        # A hidden channel's logit is -inf; whether a softmax is left is asked of the masks.
        of_masks = tensor.detach().double().softmax(1) if name.endswith("logits") else tensor
        if not bool(of_masks.isfinite().all()):
            raise ValueError(f"{name}: got values that are not finite, supported are finite ones")
    source_views = [_view(source_moments, source_part_logits, grid, index) for index in range(people)]
    motions = [
        _motion(_view(target_moments, part_logits, grid, index), warp.flow[index], warp.visibility[index])
        for index in range(people)
    ]
    scale = arrow_scale([motion.view for motion in motions]) if scale is None else scale
    headings = [
        "source",
        "source\nkeypoints",
        *(["source\nparts"] if source_part_logits is not None else []),
        "target\nkeypoints",
        "target\nparts",
        f"motion\narrows x{scale:g}",
        "source warped\nalong the motion",
        "target",
        *(["visibility\norange: not seen"] if source_part_logits is not None else []),
    ]
    rows = []
    for source_image, target_image, source, motion in zip(sources, targets, source_views, motions, strict=True):
        crops = fit_height(source_image), fit_height(target_image)
        rows.append(
            [
                crops[0],
                draw_keypoints(crops[0], source),
                *([draw_masks(crops[0], source)] if source_part_logits is not None else []),
                draw_keypoints(crops[1], motion.view),
                draw_masks(crops[1], motion.view),
                draw_motion(crops[1], motion.view, scale),
                draw_warped(crops[0], motion.view.displacement, crops[1].size),
                crops[1],
                *([draw_hidden(crops[1], motion.visibility)] if source_part_logits is not None else []),
            ]
        )
    return panel_table(rows, row_headings=labels, column_headings=headings, title=title)


def _view(moments: PartMoments, part_logits: Tensor | None, grid: tuple[int, int], index: int) -> PartView:
    """One person; without logits all cells are background."""
    confidence = to_floats(moments.confidence[index])
    cells, parts = grid[0] * grid[1], len(confidence)
    masks = np.zeros((parts + 1, *grid))
    masks[0] = 1
    if part_logits is not None:
        masks = to_floats(part_logits[index].detach().double().softmax(0)).reshape(parts + 1, *grid)
    sharpness = 1 + np.log(confidence.clip(1 / cells, 1)) / np.log(max(cells, 2))
    return PartView(
        features=np.zeros((parts, 0)),
        visibility=sharpness,
        keypoints=to_floats(moments.keypoints[index]),
        affines=to_floats(moments.affines[index]),
        masks=masks,
        displacement=np.zeros((*grid, 2)),
    )


def _motion(target: PartView, flow: Tensor, visibility: Tensor) -> Motion:
    grid = target.foreground.shape
    displacement = to_floats(flow) - to_floats(cell_centers((grid[0], grid[1]), dtype=torch.float64))
    return Motion(replace(target, displacement=displacement.reshape(*grid, 2)), to_floats(visibility).reshape(grid))
