"""Things pasted over queries: how much they cover, and that nothing but seed and name decides about them."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from motarfuse.data.covered import MAX_SHARE, THINGS, cover, draw_share

SIZES = ((128, 48), (128, 64), (37, 19), (1, 1))


def crop(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_exactly_the_asked_share_is_covered_and_the_rest_stays(size: tuple[int, int]) -> None:
    image = crop(size)
    before = image.copy()
    for share in (0.0, 0.1, 0.3, 0.5, 0.6, MAX_SHARE):
        for index in range(12):
            covered, mask = cover(image, share, seed=0, name=f"{index}.png")
            assert mask.sum() == round(share * image.shape[0] * image.shape[1])
            assert np.array_equal(covered[~mask], image[~mask])
    assert np.array_equal(image, before)


def test_seed_and_name_decide_and_the_picture_does_not() -> None:
    first, second = crop((128, 48), 1), crop((128, 48), 2)
    covered, mask = cover(first, 0.4, seed=0, name="a.png")
    other, other_mask = cover(second, 0.4, seed=0, name="a.png")
    assert np.array_equal(mask, other_mask)
    assert np.array_equal(covered[mask], other[mask])
    for seed, name in ((1, "a.png"), (0, "b.png")):
        _, changed = cover(first, 0.4, seed=seed, name=name)
        assert not np.array_equal(mask, changed)


def test_the_pixels_are_those_of_every_other_machine() -> None:
    # Written down once: a change of the pastes changes every published number and needs a new version.
    digest = hashlib.sha256()
    for index in range(30):
        covered, mask = cover(np.full((128, 48, 3), 200, np.uint8), 0.45, seed=3, name=f"{index:04d}_c2.png")
        digest.update(covered.tobytes() + mask.tobytes())
    assert digest.hexdigest() == "07274afdbb1fdae6aa9d139df4a8b0b5a6c17e3f8038c5f0ca35e44e6af36652"


def test_a_larger_share_covers_all_that_a_smaller_one_did() -> None:
    image = crop((128, 48))
    for index in range(40):
        name = f"{index}.png"
        masks = [cover(image, share, seed=0, name=name)[1] for share in (0.1, 0.2, 0.4, 0.6)]
        for less, more in pairwise(masks):
            assert (less <= more).all()


def test_things_differ_in_kind_and_hide_what_is_in_the_middle() -> None:
    masks = np.stack([cover(crop((128, 48)), 0.4, seed=0, name=f"{index}.png")[1] for index in range(200)])
    touched = {
        "below": masks[:, -1].all(1).mean(),
        "beside": (masks[:, :, 0].all(1) | masks[:, :, -1].all(1)).mean(),
        "inside": (~masks[:, 0].any(1) & ~masks[:, -1].any(1)).mean(),
    }
    assert all(share > 0.5 / len(THINGS) for share in touched.values()), touched
    # People stand in the middle: a cover that kept to the borders would hide nothing of them.
    assert masks[:, 32:96, 12:36].mean() > 0.3


def test_what_is_pasted_is_visible_on_any_ground() -> None:
    for ground in (0, 128, 255):
        image = np.full((128, 48, 3), ground, np.uint8)
        for index in range(40):
            covered, mask = cover(image, 0.4, seed=0, name=f"{index}.png")
            assert np.abs(covered[mask].astype(int) - ground).mean() > 4


def test_shares_are_uniform_in_their_range_and_apart_from_the_thing() -> None:
    shares = np.array([draw_share(0.3, 0.5, seed=0, name=f"{index}.png") for index in range(400)])
    assert shares.min() >= 0.3
    assert shares.max() <= 0.5
    assert np.histogram(shares, 4, (0.3, 0.5))[0].min() > 60
    assert draw_share(0.3, 0.5, seed=0, name="a.png") == draw_share(0.3, 0.5, seed=0, name="a.png")
    assert draw_share(0.2, 0.2, seed=0, name="a.png") == 0.2


def test_what_is_no_image_or_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        cover(np.zeros((4, 4, 3)), 0.3, seed=0, name="a")
    with pytest.raises(ValueError, match="share"):
        cover(crop((8, 8)), 0.95, seed=0, name="a")
    with pytest.raises(ValueError, match="low and high"):
        draw_share(0.5, 0.3, seed=0, name="a")
