"""The picture of a search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from motarfuse.viz import RankEntry, draw_rank_list
from motarfuse.viz.crops import data_uri, load_crop
from motarfuse.viz.rank_list import CARD_HEIGHT_PX, CARD_WIDTH_PX, GREY_CARD, RIGHT, WRONG
from tests.viz.fake_run import draw_person


def count(picture: Image.Image, colour: str) -> int:
    """Pixels of exactly this colour."""
    return int((np.asarray(picture) == ImageColor.getrgb(colour)).all(-1).sum())


def entry(match: bool | None, pid: int = 3) -> RankEntry:
    return RankEntry(draw_person(pid, 0, 0), 0.87, pid, 1, match)


def test_right_and_wrong_results_have_their_colour_and_unknown_ones_neither() -> None:
    query = draw_person(3, 1, 1)
    right, wrong, unknown = (draw_rank_list(query, [entry(match)]) for match in (True, False, None))
    assert count(right, RIGHT) > 1000 > count(right, WRONG)
    assert count(wrong, WRONG) > 1000 > count(wrong, RIGHT)
    assert count(unknown, RIGHT) == count(unknown, WRONG) == 0


def test_right_and_wrong_differ_without_colour() -> None:
    query = draw_person(3, 1, 1)
    right, wrong = (np.asarray(draw_rank_list(query, [entry(match)])) for match in (True, False))
    # The marks' strokes are white in both: where only one picture is white, the shapes differ.
    white = [(picture == 255).all(-1) for picture in (right, wrong)]
    assert (white[0] != white[1]).sum() > 20


def test_the_crop_keeps_its_proportions() -> None:
    wide = Image.new("RGB", (200, 50), "#123456")
    pixels = np.asarray(draw_rank_list(wide, []))
    ys, xs = np.nonzero((pixels == (0x12, 0x34, 0x56)).all(-1))
    assert (np.ptp(xs) + 1) / (np.ptp(ys) + 1) == pytest.approx(4, rel=0.05)


def test_an_unreadable_image_is_a_grey_card() -> None:
    picture = draw_rank_list(None, [RankEntry(None, 0.5)])
    assert count(picture, GREY_CARD) > 1.5 * CARD_WIDTH_PX * CARD_HEIGHT_PX


def test_results_wrap_into_rows() -> None:
    one = draw_rank_list(None, [entry(None)] * 4, columns=4)
    two = draw_rank_list(None, [entry(None)] * 5, columns=4)
    assert two.width == one.width
    assert two.height >= one.height + CARD_HEIGHT_PX
    assert draw_rank_list(None, []).width > CARD_WIDTH_PX
    with pytest.raises(ValueError, match="columns: got 0"):
        draw_rank_list(None, [], columns=0)


def test_a_long_title_stays_within_the_picture() -> None:
    short = draw_rank_list(None, [entry(None)], title="x")
    assert draw_rank_list(None, [entry(None)], title="very long " * 60).size == short.size


def test_a_file_that_is_no_image_gives_a_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert load_crop(tmp_path / "broken.jpg")[0] is None
    assert "no such file" in load_crop(tmp_path / "absent.jpg")[1]


def test_embedded_crops_are_small() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1200, 600, 3), dtype=np.uint8))
    uri = data_uri(noise)
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) < 25_000
