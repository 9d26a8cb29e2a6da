"""Draws the pictures of docs/layers: what layers give for small inputs with fixed seeds, one SVG a family.

python tools/draw_layer_pictures.py docs/images
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from motarfuse import nn, ops
from motarfuse.data.synthped import PARTS, SynthPed, SynthPedConfig
from motarfuse.engine.outputs import write_bytes
from motarfuse.errors import MotarfuseError
from motarfuse.nn.motion_attention import inverse_softplus
from motarfuse.reference.batch_hard_triplet import hardest
from motarfuse.reference.motion_attention import motion_attention
from motarfuse.viz.part_panels import PART_COLOURS

WIDTH = 800
GRID = (16, 8)
BLUE, ORANGE, GREEN, VIOLET, GREY, INK = "#1f6fb2", "#c2571a", "#2d8659", "#7b52a6", "#b9bec5", "#1c1f24"
STYLE = (
    f"text {{ font: 13px sans-serif; fill: {INK}; }} .title {{ font-size: 14px; font-weight: bold; }}"
    " .small { font-size: 12px; } .over { stroke: #ffffff; stroke-width: 4; paint-order: stroke; }"
    " .middle { text-anchor: middle; } .end { text-anchor: end; }"
)


class Points(NamedTuple):
    """A batch of people in the plane, and whom two of them look for."""

    features: Tensor
    labels: Tensor
    positive: Tensor
    negative: Tensor
    anchors: tuple[int, ...]


def number(value: float) -> str:
    """A coordinate."""
    return f"{round(float(value), 2) + 0.0:g}"


def text(x: float, y: float, words: str, kind: str = "", colour: str = "") -> str:
    style = f' style="fill: {colour}"' if colour else ""
    return f'<text class="{kind}" x="{number(x)}" y="{number(y)}"{style}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", extra: str = "") -> str:
    place = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
    return f'<rect {place} fill="{fill}" stroke="{stroke}"{extra}/>'


def line(x: float, y: float, to_x: float, to_y: float, colour: str, width: float = 1.5, dashed: bool = False) -> str:
    ends = f'x1="{number(x)}" y1="{number(y)}" x2="{number(to_x)}" y2="{number(to_y)}"'
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    return f'<line {ends} stroke="{colour}" stroke-width="{number(width)}"{dashes}/>'


def arrow(x: float, y: float, to_x: float, to_y: float, colour: str, width: float = 1.5, dashed: bool = False) -> str:
    """A line with a head at its end."""
    angle = math.atan2(to_y - y, to_x - x)
    reach = 4 + 2 * width
    corners = [(to_x, to_y)]
    corners += [
        (to_x - reach * math.cos(angle + side), to_y - reach * math.sin(angle + side)) for side in (0.45, -0.45)
    ]
    stop_x, stop_y = to_x - 0.8 * reach * math.cos(angle), to_y - 0.8 * reach * math.sin(angle)
    return line(x, y, stop_x, stop_y, colour, width, dashed) + polygon(corners, colour)


def polygon(corners: Sequence[tuple[float, float]], fill: str, stroke: str = "none") -> str:
    places = " ".join(f"{number(x)},{number(y)}" for x, y in corners)
    return f'<polygon points="{places}" fill="{fill}" stroke="{stroke}"/>'


def blend(colours: Sequence[str], share: float) -> str:
    """The colour at a share in [0, 1] of the way through equally spaced ones."""
    place = min(max(share, 0.0), 1.0) * (len(colours) - 1)
    first = min(int(place), len(colours) - 2)
    ends = [[int(colours[first + k][i : i + 2], 16) for i in (1, 3, 5)] for k in (0, 1)]
    mixed = [round(low + (place - first) * (high - low)) for low, high in zip(*ends, strict=True)]
    return "#" + "".join(f"{one:02x}" for one in mixed)


def cells(values: Sequence[Sequence[str]], x: float, y: float, width: float, height: float) -> list[str]:
    """Rows of coloured cells in a frame."""
    drawn = [
        box(x + column * width, y + row * height, width, height, fill)
        for row, fills in enumerate(values)
        for column, fill in enumerate(fills)
    ]
    return [*drawn, box(x, y, len(values[0]) * width, len(values) * height, "none", "#6b7280")]


def scale(x: float, y: float, colours: Sequence[str], low: str, high: str) -> list[str]:
    """A colour bar with its ends."""
    steps = [box(x + 4 * k, y, 4.2, 12, blend(colours, k / 24)) for k in range(25)]
    return [text(x - 6, y + 11, low, "small end"), *steps, text(x + 106, y + 11, high, "small")]


def page(height: float, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {number(height)}" width="{WIDTH}" height="{number(height)}"'
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{STYLE}</style>"]
    return "\n".join([*head, box(0, 0, WIDTH, height, "#ffffff"), *parts, "</svg>\n"])


def matrix(
    values: Tensor, x: float, y: float, labels: Sequence[str], width: float = 48, height: float = 26
) -> list[str]:
    """A square table of numbers, the darker the larger; rows and columns have one list of labels."""
    largest = values.abs().max().item()
    drawn = [text(x + (k + 0.5) * width, y - 6, label, "small middle") for k, label in enumerate(labels)]
    for row, label in enumerate(labels):
        drawn.append(text(x - 8, y + (row + 0.5) * height + 4, label, "small end"))
        for column, value in enumerate(values[row].tolist()):
            fill = blend(("#ffffff", "#9cc3e6" if value > 0 else "#f0b48f"), abs(value) / largest)
            drawn.append(box(x + column * width, y + row * height, width, height, fill, "#b9bec5"))
            words = f"{value:.2f}" if value else "0"
            drawn.append(text(x + (column + 0.5) * width, y + (row + 0.5) * height + 4, words, "small middle"))
    return drawn


def frames_read(taps: Tensor, frame_mask: Tensor) -> Tensor:
    """(T, T) by how much what stands before the GELU of a frame changes with each frame; taps (C, k), channel 0."""
    frames = len(frame_mask)
    clip = torch.zeros(1, frames, 1, len(taps), dtype=torch.float64, requires_grad=True)
    bias = torch.full((len(taps),), 40.0, dtype=torch.float64)  # GELU is the identity there
    out = ops.temporal_conv(clip, taps, bias, frame_mask[None])
    rows = [torch.autograd.grad(out[0, t, 0, 0], clip, retain_graph=True)[0][0, :, 0, 0] for t in range(frames)]
    return torch.stack(rows)


def draw_visual_adapter() -> str:
    """Which frames each frame reads, one of five being masked."""
    adapter = nn.VisualAdapter(96).double()
    start = adapter.conv_weight.detach().clone()
    frame_mask = torch.tensor([True, True, True, False, True])
    # As training may leave them: outer taps at the start are 0.
    drawn_taps = start + 0.3 * torch.randn(start.shape, generator=torch.Generator().manual_seed(1)).double()
    taps = drawn_taps[0].tolist()
    parts, top, bottom = [], 92, 262
    centres = [112 + 144 * k for k in range(5)]
    parts.append(text(20, 24, "normed and projected tokens of one place, W_down LN(X)", "title"))
    for frame, x in enumerate(centres):
        there = bool(frame_mask[frame])
        parts.append(box(x - 56, 48, 112, 44, "#e4eef8" if there else "#eeeeec", BLUE if there else GREY))
        parts.append(text(x, 75, f"frame {frame + 1}" if there else f"{frame + 1}: masked", "middle"))
        parts.append(box(x - 56, bottom, 112, 44, "#ffffff", INK if there else GREY))
        words = f"U of frame {frame + 1}" if there else "U = X"
        parts.append(text(x, bottom + 27, words, "middle"))
    labels = []
    for frame, x in enumerate(centres):
        for offset, tap in zip((-1, 0, 1), taps, strict=True):
            if not frame_mask[frame]:
                continue
            other = frame + offset
            held = not (0 <= other < 5 and frame_mask[other])
            lands = x + 36 * offset
            begins = lands if held else centres[other]
            colour = ORANGE if held else BLUE
            parts.append(arrow(begins, top, lands, bottom, colour, 1.5, held))
            share = 0.6 if offset == 0 else 0.9
            place = begins + share * (lands - begins), top + share * (bottom - top)
            labels.append(text(place[0], place[1], f"{tap:.2f}", "small middle over", colour))
    parts += labels
    parts += [line(20, 334, 60, 334, BLUE, 1.5), text(68, 338, "tap that reads its frame")]
    parts += [line(260, 334, 300, 334, ORANGE, 1.5, True)]
    parts.append(text(308, 338, "tap whose frame is not there: it reads the frame itself (hold)"))
    names = [str(k + 1) for k in range(5)]
    given = ", ".join(f"{tap:.2f}" for tap in taps)
    for x, title, taps_here in ((96, "at the start: taps 0, 1, 0", start), (496, f"taps {given}", drawn_taps)):
        parts.append(text(x - 40, 376, title, "title"))
        parts.append(text(x - 40, 396, "row: frame of U; column: frame read", "small"))
        parts += matrix(frames_read(taps_here, frame_mask), x, 424, names)
    return page(570, parts)


def head_weights(attention: nn.MotionAttention, tokens: Tensor, motion: nn.TokenMotion | None, query: int) -> Tensor:
    """(N,) attention of one token, of the first head: the operator's definition over values that tell keys apart."""
    heads = attention.heads
    q, k, _ = attention.qkv(tokens).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    identity = torch.eye(tokens.shape[1], dtype=tokens.dtype).expand(1, heads, -1, -1)
    assert attention.motion_bias is not None
    bias = {} if motion is None else attention.motion_bias(motion, motion)
    return motion_attention(q, k, identity, **bias)[0, 0, query]


def draw_motion_attention() -> str:
    """What one token attends to: without motion, with it, and with a damped background."""
    strength, damping = 4.0, 1.0
    torch.manual_seed(0)
    attention = nn.MotionAttention(96, 3).double().requires_grad_(False)
    assert attention.motion_bias is not None
    assert attention.motion_bias.raw_affinity is not None
    attention.motion_bias.raw_affinity.fill_(inverse_softplus(strength) / 20)
    attention.motion_bias.raw_damping.fill_(inverse_softplus(damping) / 20)
    rows, columns = GRID
    group = torch.zeros(GRID, dtype=torch.long)
    group[3:14, 1:4], group[1:3, 2] = 1, 1
    group[4:15, 5:7], group[2:4, 5] = 2, 2
    displacement = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)[group]
    descriptor = torch.zeros(1, rows * columns, 8, dtype=torch.float64)
    descriptor[0, :, :2] = displacement.flatten(0, 1)
    foreground = torch.where(group > 0, 1.0, 0.05).double().flatten()[None]
    tokens = torch.randn(1, rows * columns, 96, dtype=torch.float64)
    query = 7 * columns + 2
    panels = [
        ("plain attention", "no motion given", head_weights(attention, tokens, None, query)),
        ("with motion", f"lambda = {strength:g}", head_weights(attention, tokens, nn.TokenMotion(descriptor), query)),
        (
            "and with damping",
            f"lambda = {strength:g}, gamma = {damping:g}",
            head_weights(attention, tokens, nn.TokenMotion(descriptor, foreground=foreground), query),
        ),
    ]
    colours = ("#ffffff", "#8fc0ea", "#1f6fb2", "#0c2f52")
    largest = max(weights.max().item() for *_, weights in panels)
    size, top, lefts = 19, 56, [20 + 200 * k for k in range(4)]
    fills = [["#f1f1ef", "#cfe3f6", "#f6d5c0"][one] for one in group.flatten().tolist()]
    parts = [text(lefts[0], 24, "what moves", "title"), text(lefts[0], 44, "two groups and what is still", "small")]
    parts += cells([fills[row * columns : (row + 1) * columns] for row in range(rows)], lefts[0], top, size, size)
    for row in range(rows):
        for column in range(columns):
            step = displacement[row, column, 0].item()
            if step:
                x, y = lefts[0] + (column + 0.5) * size, top + (row + 0.5) * size
                parts.append(arrow(x - 7 * step, y, x + 7 * step, y, BLUE if step > 0 else ORANGE, 1))
    for left, (title, given, weights) in zip(lefts[1:], panels, strict=True):
        parts += [text(left, 24, title, "title"), text(left, 44, given, "small")]
        shades = [blend(colours, one / largest) for one in weights.tolist()]
        parts += cells([shades[row * columns : (row + 1) * columns] for row in range(rows)], left, top, size, size)
        for k, (name, place) in enumerate((("moves right", 1), ("moves left", 2), ("background", 0))):
            share = 100 * weights[group.flatten() == place].sum().item()
            y = top + rows * size + 24 + 20 * k
            parts.append(text(left, y, name, "small"))
            parts.append(text(left + 8 * size, y, f"{share:.1f} %" if share < 10 else f"{share:.0f} %", "small end"))
    for left in lefts:
        x, y = left + query % columns * size, top + query // columns * size
        parts.append(box(x, y, size, size, "none", "#e5007d", ' stroke-width="2.5"'))
    y = top + rows * size + 14
    parts += [
        box(lefts[0], y, 12, 12, "none", "#e5007d", ' stroke-width="2.5"'),
        text(lefts[0] + 20, y + 11, "the query"),
    ]
    parts.append(text(lefts[0], y + 36, "attention:", "small"))
    parts += scale(lefts[0] + 14, y + 44, colours, "0", f"{100 * largest:.1f} %")
    return page(top + rows * size + 82, parts)


def frames_fused(scope: str, frame_mask: Tensor) -> Tensor:
    """(T, T) by how much each frame's hybrid token changes with each frame's tokens, as shares of a row."""
    torch.manual_seed(0)
    frames = len(frame_mask)
    decoder = nn.PartDecoder(96, heads=3, grid=GRID).eval().double()
    encoder = nn.FusionEncoder(96, heads=3, scope=scope).eval().double()
    tokens = torch.randn(1, frames, GRID[0] * GRID[1], 96, dtype=torch.float64)
    direction = torch.randn(96, dtype=torch.float64)
    parts, states = decoder(tokens, frame_mask[None])
    read = tokens.clone().requires_grad_()
    hybrid, _ = encoder(read, tokens.mean(2), parts, states[-1], frame_mask[None])
    rows = []
    for frame in range(frames):
        (gradient,) = torch.autograd.grad(hybrid[0, frame] @ direction, read, retain_graph=True)
        rows.append(gradient[0].flatten(1).norm(dim=1))
    sizes = torch.stack(rows)
    return (sizes / sizes.sum(1, keepdim=True)).detach()


def gate_values(channels: int, steps: int, largest: float) -> Tensor:
    """(channels, steps) the gate sigmoid(W_g [V; E m]) of one token under a growing descriptor, sorted by its end."""
    torch.manual_seed(0)
    fusion = nn.GatedFusion(channels, 8).double().requires_grad_(False)
    token, direction = torch.randn(channels, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    length = torch.linspace(0, largest, steps, dtype=torch.float64)
    embedded = fusion.embed(length[:, None] * direction / direction.norm())
    gate = fusion.gate(torch.cat((token.expand(steps, -1), embedded), dim=-1)).sigmoid().T
    return gate[gate[:, -1].argsort(descending=True)]


def draw_fusion() -> str:
    """The encoder's sequence in both scopes, which frames meet in a hybrid token, and the gate under growing motion."""
    frame_mask = torch.tensor([True, True, True, False])
    frames, num_parts, count = 4, 8, GRID[0] * GRID[1]
    length = 2 + num_parts + count
    parts, left, px = [], 84, 1.9
    kinds = (("hybrid", left), ("class", left + 50), (f"{num_parts} parts", left + 100), (f"{count} cells", left + 222))
    for top, scope in ((30, "frame"), (240, "clip")):
        told = {
            "frame": f'scope="frame": {frames} sequences of {length} tokens',
            "clip": f'scope="clip": one sequence of {frames * length} tokens, of which {length} are hidden',
        }[scope]
        parts.append(text(20, top - 6, told, "title"))
        parts += [text(x, top + 20, name, "small") for name, x in kinds]
        for frame in range(frames):
            y = top + 36 + 32 * frame
            hidden = scope == "clip" and not frame_mask[frame]
            faded = ' opacity="0.25"' if hidden else ""
            parts.append(text(20, y + 14, f"frame {frame + 1}", "small"))
            tokens = [box(left, y + 2, 16, 16, "#c0392b"), box(left + 50, y + 2, 16, 16, BLUE)]
            tokens += [box(left + 100 + 13 * k, y + 4, 11, 12, PART_COLOURS[k]) for k in range(num_parts)]
            tokens += [box(left + 222 + px * k, y + 4, px - 0.5, 12, "#6b88a8") for k in range(count)]
            parts.append(f"<g{faded}>" + "".join(tokens) + "</g>")
            if scope == "frame":
                parts.append(box(left - 8, y - 4, 482, 28, "none", "#6b7280", ' rx="4"'))
        if scope == "clip":
            parts.append(box(left - 8, top + 32, 482, 32 * frames - 2, "none", "#6b7280", ' rx="4"'))
        names = [str(k + 1) for k in range(frames)]
        parts.append(text(604, top - 6, "hybrid token (row)", "small"))
        parts.append(text(604, top + 10, "depends on frame (column)", "small"))
        parts += matrix(frames_fused(scope, frame_mask), 620, top + 40, names, 42, 27)
    channels, steps, largest, top = 24, 25, 6.0, 468
    gate = gate_values(channels, steps, largest)
    colours = ("#c2571a", "#ffffff", "#1f6fb2")
    parts.append(text(20, top - 18, "GatedFusion: the gate of one token while its motion grows", "title"))
    shades = [[blend(colours, (value - 0.1) / 0.8) for value in row] for row in gate.tolist()]
    parts += cells(shades, left, top, 16, 8)
    parts.append(text(left - 8, top + 60, f"{channels}", "small end"))
    parts.append(text(left - 8, top + 78, "channels", "small end"))
    for k in range(5):
        x = left + (k * (steps - 1) / 4 + 0.5) * 16
        parts.append(text(x, top + channels * 8 + 18, f"{largest * k / 4:g}", "small middle"))
    parts.append(text(left + 200, top + channels * 8 + 38, "|m|, length of the descriptor", "small middle"))
    parts.append(text(524, top + 20, "sigmoid(W_g [V; E m])"))
    parts += scale(556, top + 34, colours, "0.1", "0.9")
    spread = [(gate[:, k].min().item(), gate[:, k].max().item()) for k in (0, -1)]
    parts.append(text(524, top + 76, f"|m| = 0: {spread[0][0]:.2f} to {spread[0][1]:.2f}", "small"))
    parts.append(text(524, top + 96, f"|m| = {largest:g}: {spread[1][0]:.2f} to {spread[1][1]:.2f}", "small"))
    return page(top + channels * 8 + 54, parts)


def draw_part_pool() -> str:
    """Mean colours of three parts of a drawn person."""
    config = SynthPedConfig(seed=0)
    chosen = 6 * config.images_per_camera * config.cameras
    drawn = SynthPed(config).images("train", limit=chosen + 1)
    rows, columns = GRID
    image = torch.from_numpy(drawn.images[chosen]).double()
    labels = torch.from_numpy(drawn.parts[chosen]).long()
    step = image.shape[0] // rows, image.shape[1] // columns
    # (N, ...) means over the pixels of each cell
    of_cells = image.unflatten(0, (rows, step[0])).unflatten(2, (columns, step[1])).mean((1, 3)).flatten(0, 1)
    upper = (
        "torso",
        "left_upper_arm",
        "right_upper_arm",
        "left_lower_arm",
        "right_lower_arm",
        "left_hand",
        "right_hand",
    )
    lower = [name for name in PARTS if "leg" in name or "foot" in name or name == "lower_garment"]
    groups = (("head", ("head", "hair", "hat")), ("torso and arms", upper), ("legs and feet", lower))
    shares = []
    for _, names in groups:
        inside = torch.isin(labels, torch.tensor([PARTS.index(name) for name in names])).double()
        shares.append(inside.unflatten(0, (rows, step[0])).unflatten(2, (columns, step[1])).mean((1, 3)).flatten())
    masks = torch.stack(shares)
    # Their softmax is the masks.
    logits = torch.cat((1 - masks.sum(0, keepdim=True), masks)).clamp(min=1e-9).log()
    pooled, mass = nn.PartPool()(of_cells[None], logits[None])
    size, top, lefts = 18, 56, [20 + 204 * k for k in range(4)]

    def hexadecimal(colour: Tensor) -> str:
        return "#" + "".join(f"{round(one):02x}" for one in colour.tolist())

    parts = [text(lefts[0], 24, "tokens x_u", "title"), text(lefts[0], 44, "mean colours of the cells", "small")]
    fills = [hexadecimal(colour) for colour in of_cells]
    parts += cells([fills[row * columns : (row + 1) * columns] for row in range(rows)], lefts[0], top, size, size)
    y = top + rows * size
    parts += [text(lefts[0], y + 24, "pooled:", "title"), text(lefts[0], y + 46, "red, green, blue", "small")]
    parts.append(text(lefts[0], y + 68, "mass, mean of the mask", "small"))
    for k, (name, _) in enumerate(groups):
        left = lefts[k + 1]
        parts += [text(left, 24, f"mask M_{k + 1}", "title"), text(left, 44, name, "small")]
        shades = [blend(("#ffffff", INK), one) for one in masks[k].tolist()]
        parts += cells([shades[row * columns : (row + 1) * columns] for row in range(rows)], left, top, size, size)
        colour = pooled[0, k]
        parts.append(box(left, y + 10, columns * size, 20, hexadecimal(colour), "#6b7280"))
        parts.append(text(left, y + 46, ", ".join(f"{one:.0f}" for one in colour.tolist()), "small"))
        parts.append(text(left, y + 68, f"{mass[0, k].item():.3f}", "small"))
    return page(y + 82, parts)


def triplet_points() -> Points:
    """Four samples of each of four people in the plane."""
    random = torch.Generator().manual_seed(4)
    labels = torch.arange(4).repeat_interleave(4)
    centres = torch.tensor([[-1.5, 1.0], [1.4, 1.1], [-1.2, -1.1], [1.5, -0.9]], dtype=torch.float64)
    features = centres[labels] + 0.65 * torch.randn(16, 2, generator=random, dtype=torch.float64)
    positive, negative, valid = hardest(features, labels, "euclidean")
    assert valid.all()
    return Points(features, labels, positive, negative, anchors=(1, 9))


def beside(
    places: Sequence[tuple[float, float]], start: tuple[float, float], end: tuple[float, float]
) -> tuple[float, float]:
    """A place next to the middle of a line, on the side where the nearest sample is farther."""
    length = math.dist(start, end)
    across = 20 * (end[1] - start[1]) / length, -20 * (end[0] - start[0]) / length
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    sides = [(middle[0] + sign * across[0], middle[1] + sign * across[1]) for sign in (1, -1)]
    return max(sides, key=lambda side: min(math.dist(side, place) for place in places))


def marker(person: int, x: float, y: float, colour: str) -> str:
    """A sample: each person has a shape and a colour."""
    if person == 0:
        return f'<circle cx="{number(x)}" cy="{number(y)}" r="7" fill="{colour}"/>'
    if person == 1:
        return box(x - 6.5, y - 6.5, 13, 13, colour)
    if person == 2:
        return polygon([(x, y - 8), (x + 8, y + 7), (x - 8, y + 7)], colour)
    return polygon([(x, y - 9), (x + 9, y), (x, y + 9), (x - 9, y)], colour)


def draw_identity_losses() -> str:
    """Whom two anchors of a batch are compared with."""
    points = triplet_points()
    loss = nn.TripletLoss()(points.features, points.labels).item()
    colours = (BLUE, ORANGE, GREEN, VIOLET)
    low, high = points.features.min(0).values, points.features.max(0).values
    edge = 48
    zoom = min(430 / (high - low)[0].item(), 340 / (high - low)[1].item())
    places = [
        (edge + (x - low[0].item()) * zoom, edge + (high[1].item() - y) * zoom) for x, y in points.features.tolist()
    ]
    width, height = (2 * edge + (high - low)[k].item() * zoom for k in (0, 1))
    parts = [box(10, 10, width - 20, height - 20, "#ffffff", "#b9bec5")]
    right = width + 14
    labels, table = [], []
    for k, anchor in enumerate(points.anchors):
        distances = []
        for other, dashed in ((points.positive[anchor].item(), False), (points.negative[anchor].item(), True)):
            (x, y), (to_x, to_y) = places[anchor], places[int(other)]
            distances.append((points.features[anchor] - points.features[int(other)]).norm().item())
            parts.append(line(x, y, to_x, to_y, INK, 2, dashed))
            label_x, label_y = beside(places, (x, y), (to_x, to_y))
            labels.append(text(label_x, label_y + 4, f"{distances[-1]:.2f}", "middle over"))
        term = math.log1p(math.exp(distances[0] - distances[1]))
        y = 190 + 96 * k
        table.append(text(right, y, f"anchor {'AB'[k]}", "title"))
        table.append(text(right, y + 22, f"d_ap = {distances[0]:.2f}, d_an = {distances[1]:.2f}"))
        table.append(text(right, y + 44, f"log(1 + exp(d_ap - d_an)) = {term:.2f}"))
    for (x, y), person in zip(places, points.labels.tolist(), strict=True):
        parts.append(marker(person, x, y, colours[person]))
    for k, anchor in enumerate(points.anchors):
        x, y = places[anchor]
        parts.append(
            f'<circle cx="{number(x)}" cy="{number(y)}" r="13" fill="none" stroke="#e5007d" stroke-width="2.5"/>'
        )
        labels.append(text(x - 24, y + 5, "AB"[k], "middle over title"))
    legend = []
    for person, colour in enumerate(colours):
        x, y = right + 8 + person % 2 * 110, 28 + 26 * (person // 2)
        legend += [marker(person, x, y, colour), text(x + 18, y + 5, f"person {person + 1}")]
    legend += [line(right, 92, right + 40, 92, INK, 2), text(right + 50, 97, "farthest of its own")]
    legend += [line(right, 118, right + 40, 118, INK, 2, True), text(right + 50, 123, "nearest of another")]
    end = text(right, 382, f"mean over all 16 anchors: {loss:.2f}", "title")
    return page(max(height, 400), [*parts, *labels, *legend, *table, end])


PICTURES: dict[str, Callable[[], str]] = {
    "visual_adapter": draw_visual_adapter,
    "motion_attention": draw_motion_attention,
    "fusion": draw_fusion,
    "part_pool": draw_part_pool,
    "identity_losses": draw_identity_losses,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=PICTURES, help="one family")
    args = parser.parse_args(arguments)
    try:
        for family, draw in PICTURES.items():
            if args.only in (None, family):
                path = args.folder / f"layer_{family}.svg"
                write_bytes(path, draw().encode())
                print(path)
    except MotarfuseError as error:
        print(f"draw_layer_pictures: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
