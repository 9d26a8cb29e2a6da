"""The pictures of docs/layers are what the layers give now."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from motarfuse import nn
from tools import draw_layer_pictures as tool


@pytest.mark.parametrize("family", tool.PICTURES)
def test_a_picture_is_drawn_as_it_is_committed(repository: Path, family: str) -> None:
    committed = (repository / "docs" / "images" / f"layer_{family}.svg").read_text(encoding="utf-8")
    assert tool.PICTURES[family]() == committed


def test_the_tool_writes_the_picture_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([str(tmp_path), "--only", "visual_adapter"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["layer_visual_adapter.svg"]
    assert "layer_visual_adapter.svg" in capsys.readouterr().out


def test_frames_read_adds_held_taps_to_the_frame_itself() -> None:
    taps = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    read = tool.frames_read(taps, torch.tensor([True, True, False]))
    assert torch.allclose(read, torch.tensor([[3.0, 4.0, 0.0], [1.0, 6.0, 0.0], [0.0, 0.0, 0.0]]).double())


def test_weights_shown_are_those_that_the_layer_applies() -> None:
    torch.manual_seed(0)
    layer = nn.MotionAttention(12, 1).double().requires_grad_(False)
    tokens = torch.randn(1, 10, 12, dtype=torch.float64)
    motion = nn.TokenMotion(torch.randn(1, 10, 8).double(), foreground=torch.rand(1, 10).double())
    weights = tool.head_weights(layer, tokens, motion, 3)
    value = layer.qkv(tokens)[0, :, 24:]
    assert math.isclose(weights.sum().item(), 1)
    assert torch.allclose(layer.proj(weights @ value), layer(tokens, motion)[0, 3])


def test_anchors_shown_have_the_farthest_positive_and_the_nearest_negative() -> None:
    points = tool.triplet_points()
    distances = (points.features[:, None] - points.features).norm(dim=-1)
    for anchor in points.anchors:
        same = points.labels == points.labels[anchor]
        assert distances[anchor, points.positive[anchor]] == distances[anchor][same].max()
        assert distances[anchor, points.negative[anchor]] == distances[anchor][~same].min()


def test_a_clip_hides_its_padding_and_a_frame_sees_itself_alone() -> None:
    mask = torch.tensor([True, True, False])
    assert torch.equal(tool.frames_fused("frame", mask) > 0, torch.eye(3, dtype=torch.bool))
    assert torch.equal(tool.frames_fused("clip", mask) > 0, mask.expand(3, 3))


def test_words_stay_on_the_paper() -> None:
    """By a width of 0.55 of the size a letter, 0.65 where bold, which few fonts exceed."""
    for draw in tool.PICTURES.values():
        for kind, x, words in re.findall(r'<text class="([^"]*)" x="([^"]+)"[^>]*>([^<]*)<', draw()):
            size = 12 if "small" in kind else 14 if "title" in kind else 13
            width = (0.65 if "title" in kind else 0.55) * size * len(words)
            left = float(x) - (width if "end" in kind else width / 2 if "middle" in kind else 0)
            assert left >= -4, words
            assert left + width <= tool.WIDTH + 4, words
