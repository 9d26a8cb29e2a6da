"""One crop with one thing drawn over it (part masks, keypoints, the motion field, what is hidden), or warped by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from motarfuse.models.output import MotarFuseOutput
from motarfuse.ops import cell_centers
from motarfuse.viz.rank_list import FAINT, GREY_CARD, INK, PAPER

# Each colour is far from all before it in OKLab (lightness 0 to 100), also as protanopes, deuteranopes and tritanopes
# see it: the first 8 keep a distance of 15, all 16 one of 8. Parts carry numbers as well.
PART_COLOURS = (
    "#692d96",
    "#87ffd2",
    "#e15a0f",
    "#9687ff",
    "#ffb400",
    "#960000",
    "#002dff",
    "#a56996",
    "#5ad2b4",
    "#b4b4ff",
    "#e1f078",
    "#b44b4b",
    "#1eb478",
    "#c387c3",
    "#8769d2",
    "#873c69",
)
PANEL_HEIGHT_PX = 288
# A cell belongs to the foreground, and has an arrow, above this M_fg.
FOREGROUND = 0.5
ARROW_SCALES = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)

HIDDEN_COLOUR = "#e15a0f"

_SUPERSAMPLING = 3  # Pillow draws without antialiasing
_RADIUS = 1 / 22  # of a keypoint whose affine is the identity, over the panel's height

Floats = NDArray[np.float64]
Picture = Image.Image | Tensor | NDArray[Any]


@dataclass(frozen=True)
class PartView:
    """Parts of one person in one frame; L parts on a grid h x w, coordinates in [-1, 1]^2, x first.

    Attributes:
        features: (L, D).
        visibility: (L,) in [0, 1].
        keypoints: (L, 2).
        affines: (L, 2, 2).
        masks: (L + 1, h, w), channel 0 the background.
        displacement: (h, w, 2) canonical displacement in the crop's own scale: the network takes it after the crop was
            scaled by s and shifted onto the canonical posture; divided by s it keeps its direction and has the crop's
            units. The common shift of all parts is no motion and stays out.
    """

    features: Floats
    visibility: Floats
    keypoints: Floats
    affines: Floats
    masks: Floats
    displacement: Floats

    @property
    def owner(self) -> NDArray[np.int64]:
        """(h, w) the strongest channel of each cell, 0 the background."""
        return self.masks.argmax(0)

    @property
    def foreground(self) -> Floats:
        """(h, w) M_fg."""
        foreground: Floats = 1 - self.masks[0]
        return foreground


def part_colour(part: int) -> tuple[int, int, int]:
    """RGB of a part, counted from 0; from the 17th on colours come again."""
    red, green, blue = ImageColor.getrgb(PART_COLOURS[part % len(PART_COLOURS)])[:3]
    return red, green, blue


def part_view(output: MotarFuseOutput, index: int = 0, frame: int = 0) -> PartView:
    """One person of a batch.

    Args:
        output: Of a network with at most 16 parts.
        index: Which of the B people.
        frame: Which of the T frames; visibility is the clip's in each.

    Raises:
        IndexError: There is no such person or frame.
        ValueError: More parts than there are colours.
    """
    batch, frames, parts = output.keypoints.shape[:3]
    if not (0 <= index < batch and 0 <= frame < frames):
        raise IndexError(f"got index {index} and frame {frame}; the output holds {batch} people of {frames} frames")
    if parts > len(PART_COLOURS):
        raise ValueError(f"output: got {parts} parts, supported are up to {len(PART_COLOURS)}")
    scale = to_floats(output.alignment[index, frame, 2].exp())
    return PartView(
        features=to_floats(output.part_features[index]),
        visibility=to_floats(output.part_visibility[index]).clip(0, 1),
        keypoints=to_floats(output.keypoints[index, frame]),
        affines=to_floats(output.affines[index, frame]),
        masks=to_floats(output.part_masks[index, frame]),
        displacement=to_floats(output.motion[index, frame]) / scale,
    )


def to_picture(image: Picture) -> Image.Image:
    """RGB picture of a PIL image, a uint8 tensor (3, H, W) or a uint8 array (H, W, 3).

    Raises:
        TypeError: Another type or dtype.
        ValueError: Another shape.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8:
            raise TypeError(f"image: got a tensor of {image.dtype}, supported is torch.uint8 (0..255)")
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"image: got a tensor of shape {tuple(image.shape)}, supported is (3, H, W)")
        return Image.fromarray(np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy()))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"image: got {got}, supported are PIL images, uint8 tensors and uint8 arrays")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: got an array of shape {image.shape}, supported is (H, W, 3)")
    return Image.fromarray(image)


def fit_height(image: Picture, height_px: int = PANEL_HEIGHT_PX) -> Image.Image:
    """The picture at this height, its proportions kept; very wide ones at this width instead."""
    picture = to_picture(image)
    scale = min(height_px / picture.height, height_px / picture.width)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def draw_masks(crop: Image.Image, view: PartView) -> Image.Image:
    """Each cell in the colour of its strongest channel, more opaque the larger its share; background is left as it is.

    A line in full colour runs along the edge of each region. Parts that share a colour differ by their texture: the
    17th to the 32nd are striped.
    """
    owner = _per_pixel(view.owner, crop.size)
    share = _per_pixel(view.masks.max(0), crop.size)
    colours = np.array([(0, 0, 0), *map(part_colour, range(len(view.masks) - 1))], dtype=np.float64)
    opacity = np.where(owner > 0, 0.3 + 0.4 * share, 0.0)
    rows, columns = np.indices(owner.shape)
    stripe = max(2, crop.height // 96)
    opacity[((owner - 1) // len(PART_COLOURS) % 2 == 1) & ((rows + columns) // stripe % 2 == 1)] *= 0.25
    opacity[_edges(owner, max(1, crop.height // 180)) & (owner > 0)] = 1.0
    pixels = np.asarray(crop, dtype=np.float64)
    blended = pixels + opacity[..., None] * (colours[owner] - pixels)
    return Image.fromarray(blended.round().astype(np.uint8))


def draw_keypoints(crop: Image.Image, view: PartView) -> Image.Image:
    """A numbered ellipse a part at its keypoint: a circle under the part's affine, with a line from the centre upwards.

    The circle is one of pixels, so that a part without deformation is round; the less visible, the more transparent.
    """
    ghost = Image.blend(crop, Image.new("RGB", crop.size, "#808080"), 0.25)
    return posture_on(ghost, view.keypoints, view.affines, view.visibility)


def posture_on(canvas: Image.Image, keypoints: Floats, affines: Floats, visibility: Floats) -> Image.Image:
    """Numbered ellipses, as `draw_keypoints`, over a picture that covers [-1, 1]^2."""
    overlay = Overlay(canvas.size)
    half = np.array(canvas.size) / 2
    radius = _RADIUS * canvas.height
    around = np.linspace(0, 2 * np.pi, 49)[:-1]
    circle = radius * np.stack((np.cos(around), np.sin(around)), 1)
    places = (keypoints + 1) * half
    # Faint ones first: what is seen clearly lies on top.
    for part in np.argsort(visibility, kind="stable"):
        in_pixels = half[:, None] * affines[part] / half
        strength = round(255 * (0.2 + 0.8 * float(visibility[part])))
        colour = (*part_colour(int(part)), strength)
        outline = places[part] + circle @ in_pixels.T
        up = places[part] + in_pixels @ (0.0, -radius)
        overlay.polygon(outline, colour, (255, 255, 255, strength), 0.12 * radius)
        overlay.line([places[part], up], (255, 255, 255, strength), 0.12 * radius)
    for part in np.argsort(visibility, kind="stable"):
        overlay.number(places[part], int(part) + 1, 1.2 * radius)
    return overlay.over(canvas)


def draw_motion(crop: Image.Image, view: PartView, scale: float = 1.0) -> Image.Image:
    """An arrow a foreground cell (M_fg above 0.5), ``scale`` times its displacement long, over a pale crop.

    It starts at the cell's centre, in the colour of the cell's strongest part. With a network's view it shows where the
    cell would go for the part to reach the canonical posture. What moves by less than a pixel and a half is a dot.
    """
    pale = _pale(crop)
    overlay = Overlay(crop.size)
    half = np.array(crop.size) / 2
    height, width = view.foreground.shape
    strongest = view.masks[1:].argmax(0)
    thickness = crop.height / 160
    for row, column in np.argwhere(view.foreground > FOREGROUND):
        start = np.array([(column + 0.5) / width, (row + 0.5) / height]) * 2 * half
        move = scale * view.displacement[row, column] * half
        colour = part_colour(int(strongest[row, column]))
        overlay.arrow(start, start + move, colour, thickness)
    return overlay.over(pale)


def arrow_scale(views: Sequence[PartView]) -> float:
    """The largest of `ARROW_SCALES` at which 95 % of all arrows stay within two cells; 1 where nothing moves."""
    lengths = [np.zeros(1)]
    for view in views:
        cells = np.array(view.foreground.shape[::-1]) / 2  # a coordinate unit in cells
        lengths.append(np.linalg.norm(view.displacement * cells, axis=-1)[view.foreground > FOREGROUND])
    longest = float(np.percentile(np.concatenate(lengths), 95))
    if longest < 1e-4:
        return 1.0
    return max((scale for scale in ARROW_SCALES if scale * longest <= 2), default=ARROW_SCALES[0])


def draw_warped(source: Image.Image, displacement: Floats, size: tuple[int, int]) -> Image.Image:
    """The source as it looks once it is pulled along a motion field, of this size.

    Each pixel u reads the source at u + displacement(u), bilinearly and clamped to the border, as
    ``motarfuse.ops.motion_warp`` reads tokens. The displacement is interpolated bilinearly between the cells' centres,
    not the flow: beyond the outermost centres it is constant, so that a field that is zero changes nothing.

    Args:
        source: RGB picture.
        displacement: (h, w, 2) in [-1, 1]^2, x first.
        size: Width and height in pixels.
    """
    wide, high = size
    field = torch.from_numpy(displacement).permute(2, 0, 1)[None]
    fine = F.interpolate(field, (high, wide), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    pixels = torch.from_numpy(np.asarray(source, dtype=np.float64)).permute(2, 0, 1)[None]
    places = cell_centers((high, wide), dtype=torch.float64).view(high, wide, 2) + fine
    read = F.grid_sample(pixels, places[None], padding_mode="border", align_corners=False)[0]
    return Image.fromarray(read.permute(1, 2, 0).round().to(torch.uint8).numpy())


def draw_hidden(crop: Image.Image, visibility: Floats) -> Image.Image:
    """A pale crop, each cell (h, w) the more orange the less visible it is; what is visible stays grey."""
    pixels = np.asarray(_pale(crop), dtype=np.float64)
    opacity = 0.85 * _per_pixel(1 - visibility.clip(0, 1), crop.size)
    blended = pixels + opacity[..., None] * (np.array(ImageColor.getrgb(HIDDEN_COLOUR)) - pixels)
    return Image.fromarray(blended.round().astype(np.uint8))


def draw_bars(view: PartView, width_px: int) -> Image.Image:
    """Visibility: a numbered bar a part in its colour, from 0 to 1 over the grey track, with the value beside it."""
    row, size = 17, 13
    picture = Image.new("RGB", (width_px, row * len(view.visibility)), PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size)
    left, right = 22, width_px - 36
    for part, value in enumerate(view.visibility):
        middle = row * part + row // 2
        draw.text((left - 6, middle), str(part + 1), INK, font, anchor="rm")
        draw.rectangle((left, middle - 5, right, middle + 5), GREY_CARD)
        filled = round(float(value) * (right - left))
        if filled:
            draw.rectangle((left, middle - 5, left + filled, middle + 5), PART_COLOURS[part])
        draw.text((width_px, middle), f"{value:.2f}", FAINT, font, anchor="rm")
    return picture


class Overlay:
    """A transparent layer that is drawn larger and reduced, so that its edges are smooth; places are in pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.layer = Image.new("RGBA", (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING))
        self.draw = ImageDraw.Draw(self.layer)

    def over(self, picture: Image.Image) -> Image.Image:
        """The picture with the layer over it."""
        return Image.alpha_composite(picture.convert("RGBA"), self.layer.reduce(_SUPERSAMPLING)).convert("RGB")

    def line(self, points: Sequence[Any], colour: tuple[int, ...], width: float) -> None:
        """An open line with round ends."""
        places = self._places(points)
        self.draw.line(places, colour, max(1, round(width * _SUPERSAMPLING)), joint="curve")
        for place in (places[0], places[-1]):
            self.draw.circle(place, width * _SUPERSAMPLING / 2, colour)

    def polygon(self, points: Any, colour: tuple[int, ...], outline: tuple[int, ...], width: float) -> None:
        """A closed shape."""
        self.draw.polygon(self._places(points), colour, outline, max(1, round(width * _SUPERSAMPLING)))

    def disc(self, place: Any, radius: float, colour: tuple[int, ...]) -> None:
        """A full circle."""
        self.draw.circle(self._places([place])[0], radius * _SUPERSAMPLING, colour)

    def number(self, place: Any, number: int, size: float) -> None:
        """A white number with a dark rim."""
        font = ImageFont.load_default(size * _SUPERSAMPLING)
        rim = round(0.14 * size * _SUPERSAMPLING)
        place = self._places([place])[0]
        self.draw.text(place, str(number), PAPER, font, anchor="mm", stroke_width=rim, stroke_fill=INK)

    def arrow(self, start: Floats, end: Floats, colour: tuple[int, ...], width: float) -> None:
        """A line with a triangle at its end, both with a dark rim; a dot where it is too short to point."""
        move = end - start
        length = float(np.linalg.norm(move))
        rim = ImageColor.getrgb(INK)
        if length < 1.5:
            self.disc(start, 0.9 * width + 0.5, rim)
            self.disc(start, 0.9 * width, colour)
            return
        along = move / length
        across = np.array([-along[1], along[0]])
        head = min(0.6 * length, 4.5 * width)
        neck = end - head * along
        for grow, paint in ((0.7, rim), (0.0, colour)):
            self.line([start, neck], paint, width + 2 * grow)
            side = (0.55 * head + 1.4 * grow) * across
            tip = end + 1.4 * grow * along
            back = neck - grow * along
            self.draw.polygon(self._places([tip, back + side, back - side]), paint)

    def _places(self, points: Any) -> list[tuple[float, float]]:
        return [(float(x) * _SUPERSAMPLING, float(y) * _SUPERSAMPLING) for x, y in points]


def _pale(crop: Image.Image) -> Image.Image:
    return Image.blend(ImageOps.grayscale(crop).convert("RGB"), Image.new("RGB", crop.size, PAPER), 0.45)


def _per_pixel(cells: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """(H, W) the value of the cell that each pixel's centre lies in."""
    rows, columns = (
        ((np.arange(pixels) + 0.5) * count / pixels).astype(int)
        for pixels, count in zip(size[::-1], cells.shape, strict=True)
    )
    return cells[rows[:, None], columns]


def _edges(owner: NDArray[Any], width_px: int) -> NDArray[np.bool_]:
    """Pixels within ``width_px`` of another region; the picture's border is none."""
    padded = np.pad(owner, width_px, mode="edge")
    near = np.zeros(owner.shape, dtype=bool)
    height, width = owner.shape
    for step in range(2 * width_px + 1):
        near |= padded[step : step + height, width_px : width_px + width] != owner
        near |= padded[width_px : width_px + height, step : step + width] != owner
    return near


def to_floats(values: Tensor) -> Floats:
    """float64 on the CPU."""
    floats: Floats = values.detach().double().cpu().numpy()
    return floats
