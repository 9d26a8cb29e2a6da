"""The occluded copy: its cover is exactly the one it reports, and its patches are other people."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from motarfuse.data import CopiedBatch, OccludedCopy, OccludedCopyConfig
from motarfuse.data.warp import control_points
from tests.data.test_warp import SIZE, _bent, _pixel_centers, _points, _seeded

ALWAYS = OccludedCopy(OccludedCopyConfig(occluder_probability=1.0))
STILL: dict[str, Any] = {"rotation_degrees": 0.0, "scale": 1.0, "shift": 0.0, "bend": 0.0}


def _images(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, *size, generator=_seeded(seed)) * 2 - 1


def _copy(images: Tensor, seed: int = 0, **settings: Any) -> CopiedBatch:
    return OccludedCopy(OccludedCopyConfig(**{"occluder_probability": 1.0, **settings}))(images, _seeded(seed))


def test_a_copy_of_no_strength_is_the_image_and_its_warp_the_identity() -> None:
    images = _images(5)
    copy = _copy(images, occluder_probability=0.0, **STILL)
    assert (copy.images - images).abs().max() < 1e-6
    assert not copy.covered.any()
    points = _points(5, dtype=torch.float32)
    assert torch.equal(copy.warp(points), points)
    assert torch.equal(copy.warp.jacobian(points), torch.eye(2).expand(5, 40, 2, 2))


def test_a_copy_shows_the_image_at_the_warped_place() -> None:
    images = _images(3, (40, 20))
    copy = _copy(images, occluder_probability=0.0, shift=0.4)
    points = copy.warp(_pixel_centers((40, 20)).expand(3, -1, -1)).view(3, 40, 20, 2)
    outside = 0
    for index, row, column in itertools.product(range(3), range(0, 40, 3), range(0, 20, 3)):
        x, y = points[index, row, column].tolist()
        outside += abs(x) > 1 or abs(y) > 1
        x, y = min(max((x + 1) * 10 - 0.5, 0), 19), min(max((y + 1) * 20 - 0.5, 0), 39)
        left, top = int(x), int(y)
        right, below = min(left + 1, 19), min(top + 1, 39)
        one = images[index].double()
        upper = one[:, top, left] * (1 - (x - left)) + one[:, top, right] * (x - left)
        lower = one[:, below, left] * (1 - (x - left)) + one[:, below, right] * (x - left)
        expected = upper * (1 - (y - top)) + lower * (y - top)
        assert (copy.images[index, :, row, column] - expected).abs().max() < 2e-5
    assert outside > 20


def test_a_dot_moves_to_where_the_inverse_of_the_warp_sends_it() -> None:
    y, x = torch.meshgrid(torch.arange(128) - 63.5, torch.arange(64) - 31.5, indexing="ij")
    dot = torch.exp(-((x - 8) ** 2 + (y + 20) ** 2) / 8)  # 8 pixels right of the middle, 20 above it
    images = dot.expand(16, 3, -1, -1).contiguous()

    def found(**settings: Any) -> tuple[Tensor, Tensor, Tensor]:
        copy = _copy(images, occluder_probability=0.0, **{**STILL, **settings})
        mass = copy.images[:, 0] / copy.images[:, 0].sum((1, 2), keepdim=True)
        place = torch.stack([(mass * x).sum((1, 2)), (mass * y).sum((1, 2))], 1).double()
        return place, copy.warp(torch.zeros(16, 1, 2))[:, 0], copy.warp.jacobian(torch.zeros(16, 1, 2))[:, 0]

    place, shift, _ = found(shift=0.15)
    assert (place - (torch.tensor([8, -20]) - shift * torch.tensor([32, 64]))).abs().max() < 0.02
    assert shift.abs().max() <= 0.15
    assert shift.amax() > 0.1
    assert shift.amin() < -0.1

    place, _, slope = found(rotation_degrees=15.0)
    angle = torch.atan2(slope[:, 1, 0] * 2, slope[:, 0, 0])
    cos, sin = angle.cos(), angle.sin()
    expected = torch.stack([cos * 8 + sin * -20, -sin * 8 + cos * -20], 1)
    assert (place - expected).abs().max() < 0.05
    assert angle.abs().max() <= math.radians(15)
    assert angle.amax() > math.radians(8)
    assert angle.amin() < math.radians(-8)

    place, _, slope = found(scale=1.25)
    scale = slope[:, 0, 0]
    assert (place - torch.tensor([8, -20]) / scale[:, None]).abs().max() < 0.05
    assert scale.min() >= 0.8 - 1e-6
    assert scale.max() <= 1.25 + 1e-6
    assert scale.max() / scale.min() > 1.3


def test_the_bend_has_the_asked_strength() -> None:
    warp = _copy(torch.zeros(400, 3, 16, 8), occluder_probability=0.0, **{**STILL, "bend": 0.03}).warp
    moved = warp(control_points().expand(400, -1, -1)) - control_points()
    assert float(moved.std()) == pytest.approx(0.03, rel=0.03)
    assert moved.mean().abs() < 0.001


def test_covered_pixels_are_the_occluder_and_the_others_exactly_the_warped_image() -> None:
    images = _images(48)
    covered, plain = _copy(images), _copy(images, occluder_probability=0.0)
    assert torch.equal(covered.warp.coefficients, plain.warp.coefficients)
    same = (covered.images == plain.images).all(1)
    assert bool((same | covered.covered).all())
    # A painted value equals an image's one by chance only.
    assert (same & covered.covered).sum() < 1e-3 * covered.covered.sum()
    assert covered.images.isfinite().all()
    assert covered.images.abs().max() <= 1


def test_covered_shares_fill_the_asked_range_and_do_not_leave_it() -> None:
    for size in (SIZE, (64, 64), (48, 17)):
        shares = torch.cat([_copy(_images(60, size), seed=s).covered.float().mean((1, 2)) for s in range(4)])
        pixel = 1.5 / (size[0] * size[1])
        assert shares.min() >= 0.15 - pixel
        assert shares.max() <= 0.5 + pixel
        assert shares.min() < 0.18
        assert shares.max() > 0.47
    exact = _copy(_images(30), area_min=0.3, area_max=0.3).covered.sum((1, 2))
    assert (exact - round(0.3 * 8192)).abs().max() <= 1
    assert _copy(_images(4), area_min=1.0, area_max=1.0).covered.all()
    assert not _copy(_images(4), area_min=0.0, area_max=0.0).covered.any()


def test_occluders_reach_over_every_border_and_cover_every_place() -> None:
    covered = torch.cat([_copy(_images(60), seed=seed).covered for seed in range(4)])
    assert covered.float().mean(0).min() > 0.1
    for border in (covered[:, 0], covered[:, -1], covered[:, :, 0], covered[:, :, -1]):
        assert 0.1 < border.any(1).float().mean() < 0.9
    inside = ~(covered[:, 0].any(1) | covered[:, -1].any(1) | covered[:, :, 0].any(1) | covered[:, :, -1].any(1))
    assert inside.float().mean() > 0.05


def test_occluders_are_pasted_with_the_asked_probability() -> None:
    hidden = _copy(_images(400, (32, 16)), occluder_probability=0.4).covered.any(2).any(1)
    assert 0.32 < hidden.float().mean() < 0.48


def test_patches_come_from_other_identities_of_the_batch() -> None:
    labels = torch.arange(1000) % 5
    colors = torch.tensor([-0.77, -0.33, 0.11, 0.55, 0.99])
    images = colors[labels][:, None, None, None].expand(-1, 3, 16, 8).contiguous()
    copy = ALWAYS(images, _seeded(0), labels=labels)
    donors = _donor_of(copy, colors)
    pasted = donors >= 0
    assert 0.25 < pasted.float().mean() < 0.42  # a third of the occluders
    assert bool((donors != labels)[pasted].all())
    for label in range(5):
        assert len(donors[pasted & (labels == label)].unique()) == 4


def _donor_of(copy: CopiedBatch, colors: Tensor) -> Tensor:
    """(B,) which of the colours fills the whole covered part, -1: none."""
    found = torch.full((len(copy.images),), -1)
    for index, color in enumerate(colors):
        fills = ((copy.images - color).abs() < 1e-5).all(1) | ~copy.covered
        found[fills.all(2).all(1)] = index
    return found


def test_patches_come_from_the_given_donors_of_other_identities() -> None:
    labels, donor_labels = torch.tensor([0, 1, 2]).repeat(60), torch.tensor([0, 1, 1])
    colors = torch.tensor([-0.77, 0.11, 0.55])
    donors = colors[:, None, None, None].expand(-1, 3, 16, 8).contiguous()
    images = torch.full((180, 3, 16, 8), 0.9)
    copy = ALWAYS(images, _seeded(0), donors=donors, labels=labels, donor_labels=donor_labels.tolist())
    found = _donor_of(copy, colors)
    assert set(found[labels == 0].tolist()) == {-1, 1, 2}
    assert set(found[labels == 1].tolist()) == {-1, 0}
    assert set(found[labels == 2].tolist()) == {-1, 0, 1, 2}
    free = _donor_of(ALWAYS(images, _seeded(0), donors=donors), colors)
    assert set(free.tolist()) == {-1, 0, 1, 2}


def test_without_another_identity_a_texture_is_pasted() -> None:
    images = torch.full((120, 3, 16, 8), 0.123)
    with_others = ALWAYS(images, _seeded(0))
    alone = ALWAYS(images, _seeded(0), labels=[7] * 120)
    patch = _donor_of(with_others, torch.tensor([0.123])) == 0
    assert patch.sum() > 20
    assert (_donor_of(alone, torch.tensor([0.123])) == -1).all()
    assert alone.covered.any(2).any(1).all()
    assert _donor_of(ALWAYS(images[:1], _seeded(2)), torch.tensor([0.123])) == -1


def test_patches_show_people_undistorted_and_from_inside_their_crop() -> None:
    # A donor whose colours are its own coordinates tells where each pixel of a patch comes from.
    x, y = _pixel_centers(SIZE).float().T.reshape(2, *SIZE)
    donor = torch.stack([x, y, torch.full_like(x, 0.777)])[None]
    copy = ALWAYS(_images(120), _seeded(0), donors=donor)
    flat = (copy.images[:, 2] - 0.777).abs() < 1e-5
    patches = ((flat | ~copy.covered).all(2).all(1)).nonzero().squeeze(1)
    assert len(patches) > 25
    sizes = []
    for index in patches.tolist():
        place = copy.images[index, :2] * torch.tensor([32.0, 64.0])[:, None, None]
        down, right = place[:, 1:, :-1] - place[:, :-1, :-1], place[:, :-1, 1:] - place[:, :-1, :-1]
        hidden = copy.covered[index]
        inner = hidden[:-1, :-1] & hidden[1:, :-1] & hidden[:-1, 1:]
        # Within a pixel of the donor's border the border is repeated.
        inner &= (place[0, :-1, :-1].abs() < 30) & (place[1, :-1, :-1].abs() < 62)
        down, right = down[:, inner].median(1).values, right[:, inner].median(1).values
        assert float(down.norm()) == pytest.approx(float(right.norm()), rel=0.01)
        assert abs(float(down @ right)) < 0.01 * float(down.norm()) ** 2
        assert right[0] > 0.9 * right.norm()  # upright
        repeated = (place[:, hidden].abs() >= torch.tensor([[31.5], [63.5]]) - 1e-4).any(0)
        assert repeated.float().mean() < 0.1
        sizes.append(1 / float(right.norm()))
    assert max(sizes) > 1.2
    assert min(sizes) < 0.7


def test_cells_know_their_covered_share() -> None:
    covered = _copy(_images(3)).covered
    batch = CopiedBatch(_images(3), _bent(3), covered)
    blocks = covered.view(3, 16, 8, 8, 8).float().mean((2, 4)).flatten(1)
    assert torch.equal(batch.covered_share_of_cells((16, 8)), blocks)
    assert torch.equal(batch.covered_share_of_cells(SIZE), covered.flatten(1).float())
    # 128 x 64 pixels in 22 x 11 cells: each pixel cut into 11 x 11 pieces, each cell made of 64 x 64 of them.
    pieces = covered.repeat_interleave(11, 1).repeat_interleave(11, 2).view(3, 22, 64, 11, 64)
    assert (batch.covered_share_of_cells((22, 11)) - pieces.float().mean((2, 4)).flatten(1)).abs().max() < 1e-6
    with pytest.raises(ValueError, match="grid must have from 1 x 1 to 128 x 64 cells"):
        batch.covered_share_of_cells((0, 8))


def test_equal_generator_states_give_equal_copies_on_any_number_of_threads() -> None:
    images, before = _images(16), torch.get_num_threads()
    kept = images.clone()
    first = _copy(images)
    try:
        torch.set_num_threads(2 if before == 1 else 1)
        second = _copy(images)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.covered, second.covered)
    assert torch.equal(first.warp.coefficients, second.warp.coefficients)
    assert torch.equal(images, kept)
    assert not torch.equal(first.images, _copy(images, seed=1).images)


@pytest.mark.gpu
def test_a_gpu_makes_the_same_copies() -> None:
    images = _images(64)
    labels = torch.arange(64) // 4
    here = ALWAYS(images, _seeded(0), labels=labels)
    there = ALWAYS(images.cuda(), _seeded(0), labels=labels)
    assert there.images.is_cuda
    assert there.covered.is_cuda
    points = _points(64, dtype=torch.float32)
    assert (there.warp(points.cuda()).cpu() - here.warp(points)).abs().max() < 1e-5
    assert (there.warp.jacobian(points.cuda()).cpu() - here.warp.jacobian(points)).abs().max() < 1e-4
    # Rounding may move a pixel on an outline or on the edge of a stripe.
    assert (there.covered.cpu() != here.covered).float().mean() < 1e-3
    differ = (there.images.cpu() - here.images).abs().amax(1) > 1e-3
    assert differ.float().mean() < 2e-3
    assert (there.covered_share_of_cells((16, 8)).cpu() - here.covered_share_of_cells((16, 8))).abs().max() < 0.1


def test_settings_do_not_change_how_many_random_numbers_are_taken() -> None:
    images, states = _images(4), []
    for settings in ({}, {"occluder_probability": 0.0, **STILL}, {"area_min": 0.5, "bend": 0.2}):
        generator = _seeded(0)
        OccludedCopy(OccludedCopyConfig(**settings))(images, generator)
        states.append(generator.get_state())
    assert all(torch.equal(state, states[0]) for state in states)
    # So the other draws stay what they were.
    few, many = _copy(images, shift=0.01), _copy(images)
    assert torch.equal(few.covered, many.covered)
    assert torch.equal(few.warp.jacobian(_points(4)), many.warp.jacobian(_points(4)))


def test_an_empty_batch_gives_an_empty_copy() -> None:
    copy = ALWAYS(torch.zeros(0, 3, *SIZE), _seeded(0), labels=[])
    assert copy.images.shape == (0, 3, *SIZE)
    assert copy.covered.shape == (0, *SIZE)
    assert copy.warp(torch.zeros(0, 7, 2)).shape == (0, 7, 2)
    assert copy.covered_share_of_cells((16, 8)).shape == (0, 128)


@pytest.mark.parametrize(
    ("name", "value", "supported"),
    [
        ("share", 1.5, "from 0 to 1"),
        ("occluder_probability", -0.1, "from 0 to 1"),
        ("area_max", 2.0, "from 0 to 1"),
        ("area_min", math.nan, "from 0 to 1"),
        ("rotation_degrees", -1.0, "from 0 to 180"),
        ("scale", 0.8, "1 or more"),
        ("shift", -0.1, "0 or more"),
        ("bend", math.inf, "0 or more"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: float, supported: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*{supported}"):
        OccludedCopyConfig(**{name: value})


def test_a_smallest_area_above_the_largest_is_refused() -> None:
    with pytest.raises(ValueError, match=r"area_min is 0.6, more than area_max = 0.5"):
        OccludedCopyConfig(area_min=0.6)


def test_wrong_images_donors_and_labels_are_refused() -> None:
    copy, images, g = OccludedCopy(), _images(2), _seeded(0)
    with pytest.raises(TypeError, match=r"images must be float32.* got torch\.uint8"):
        copy(images.byte(), g)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(3, 128, 64\)"):
        copy(images[0], g)
    with pytest.raises(ValueError, match=r"donors must be \(M, 3, 128, 64\), got \(2, 3, 64, 64\)"):
        copy(images, g, donors=images[:, :, :64])
    with pytest.raises(ValueError, match=r"labels must be \(2,\), one for each image, got \(3,\)"):
        copy(images, g, labels=[1, 2, 3])
    with pytest.raises(ValueError, match="give labels and donor_labels, or neither"):
        copy(images, g, donors=images, labels=[1, 2])
    with pytest.raises(ValueError, match="donor_labels are given without donors"):
        copy(images, g, labels=[1, 2], donor_labels=[1, 2])
