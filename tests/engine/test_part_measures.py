"""Measures of parts and keypoints, on masks and points whose scores are known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from motarfuse.data.synthped import KEYPOINTS, PARTS, layout
from motarfuse.engine.part_measures import (
    GROUPINGS,
    HIDDEN_BODY,
    NUM_LABELS,
    area_shares,
    areas_of,
    by_image_side,
    fit_keypoints,
    foreground_iou,
    foreground_shares,
    group_ious,
    group_labels,
    hard_labels,
    keypoint_errors,
    match_parts,
)
from motarfuse.errors import DataError

BAG, OCCLUDER = layout.PART["bag"], layout.OCCLUDER


def one_hot(labels: Tensor, count: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, count).movedim(-1, 1).float()


def drawn(seed: int = 0, n: int = 5, size: tuple[int, int] = (16, 8)) -> tuple[np.ndarray, np.ndarray]:
    """(visible, amodal): a column of body labels on background, an occluder over some of both."""
    random = np.random.default_rng(seed)
    height, width = size
    amodal = np.zeros((n, height, width), np.uint8)
    for image in range(n):
        left = int(random.integers(0, width // 2))
        amodal[image, :, left : left + width // 2] = random.integers(1, OCCLUDER, (height, 1))
    visible = amodal.copy()
    visible[1::2, height // 4 : height // 2, width // 3 :] = OCCLUDER
    return visible, amodal


def test_shares_count_the_pixels_of_each_cell() -> None:
    visible, amodal = drawn()
    shares = area_shares(visible, amodal, (4, 2))
    for image, row, column in product(range(5), range(4), range(2)):
        cell = np.s_[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        labels = np.where((visible[cell] == OCCLUDER) & (amodal[cell] > 0), HIDDEN_BODY, visible[cell])
        expected = np.bincount(labels.ravel(), minlength=NUM_LABELS) / 16
        np.testing.assert_allclose(shares[image, :, row, column], expected, atol=1e-6)
    assert shares[:, HIDDEN_BODY].sum() > 0


def test_shares_divide_the_pixels_on_a_border() -> None:
    visible, amodal = drawn(size=(10, 6))
    larger, whole = (array.repeat(2, axis=1).repeat(2, axis=2) for array in (visible, amodal))
    expected = area_shares(larger, whole, (4, 4))  # 20 x 12 pixels: cells of 5 x 3, those of 10 x 6 are 2.5 x 1.5
    torch.testing.assert_close(area_shares(visible, amodal, (4, 4)), expected)


def test_a_permuted_ground_truth_reaches_iou_1_whichever_labels_make_up_a_group() -> None:
    visible, amodal = drawn(n=40)
    shares = area_shares(visible, amodal, visible.shape[1:])
    permutation = np.concatenate([[0], 1 + np.random.default_rng(1).permutation(18), [0]])
    labels = torch.from_numpy(permutation[visible])
    areas = areas_of(one_hot(labels, 19), shares)
    assert foreground_iou(areas) == 1
    for grouping, groups in GROUPINGS.items():
        match = match_parts(areas, grouping)
        assert group_ious(areas, grouping, match) == dict.fromkeys(groups, 1.0)
        for name, members in groups.items():
            expected = sorted(permutation[layout.PART[member]] for member in members)
            assert [k + 1 for k, group in enumerate(match) if group == list(groups).index(name)] == expected
        assert match[permutation[BAG] - 1] == -1


def test_the_matching_is_the_best_of_all() -> None:
    random = np.random.default_rng(0)
    matches = list(product(range(-1, 2), repeat=5))

    def mean(areas: np.ndarray, match: Sequence[int]) -> float:
        return float(np.mean(list(group_ious(areas, "2", match).values())))

    for trial in range(20):
        areas = random.gamma(0.3, size=(6, NUM_LABELS))
        areas[:, 0] += random.uniform(0, 4, 6)
        best = max(mean(areas, match) for match in matches)
        assert mean(areas, match_parts(areas, "2")) == pytest.approx(best), trial


def test_the_iou_of_a_hard_mask_is_that_of_the_enlarged_mask() -> None:
    visible, amodal = drawn(seed=3, n=8)
    coarse = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (8, 4, 2)))
    areas = areas_of(one_hot(coarse, 4), area_shares(visible, amodal, (4, 2)))
    match = [1, 0, 1]
    enlarged = coarse.numpy().repeat(4, axis=1).repeat(4, axis=2)
    for group, (name, members) in enumerate(GROUPINGS["2"].items()):
        truth = np.isin(visible, [layout.PART[member] for member in members])
        claimed = np.isin(enlarged, [k + 1 for k in range(3) if match[k] == group]) & (visible != BAG)
        expected = (truth & claimed).sum() / (truth | claimed).sum()
        assert group_ious(areas, "2", match)[name] == pytest.approx(expected)
    body = (visible > 0) & (visible < OCCLUDER)
    assert foreground_iou(areas) == pytest.approx((body & (enlarged > 0)).sum() / (body | (enlarged > 0)).sum())


def test_a_group_that_is_not_there_has_no_iou_and_one_that_nothing_stands_for_has_0() -> None:
    areas = np.zeros((2, NUM_LABELS))
    areas[1, layout.PART["torso"]] = 5
    areas[0, layout.PART["head"]] = 1
    ious = group_ious(areas, "6", match_parts(areas, "6"))
    assert ious == {"head": 0.0, "torso": 1.0, "arms": None, "thighs": None, "shanks": None, "feet": None}


def test_who_is_blind_to_occluders_is_told_by_the_foreground_on_them() -> None:
    visible, amodal = drawn(n=6)
    shares = area_shares(visible, amodal, visible.shape[1:])
    hidden, body, bare = (visible == OCCLUDER) & (amodal > 0), amodal > 0, (visible == OCCLUDER) & (amodal == 0)
    blind = foreground_shares(areas_of(one_hot(torch.from_numpy(body.astype(int)), 2), shares))
    assert blind["mass"]["occluder"] == pytest.approx(hidden.sum() / body.sum())
    assert blind["mass"]["background"] == 0
    assert blind["claimed"] == pytest.approx(
        {
            "body": 1,
            "hidden body": 1,
            "occluder": hidden.sum() / (hidden.sum() + bare.sum()),
            "background": 0,
        }
    )
    seeing = foreground_shares(areas_of(one_hot(torch.from_numpy((body & ~hidden).astype(int)), 2), shares))
    assert seeing["mass"] == {"body": 1, "occluder": 0, "background": 0}
    assert seeing["claimed"] == {"body": 1, "hidden body": 0, "occluder": 0, "background": 0}


def test_where_nothing_is_foreground_or_occluder_there_are_no_shares() -> None:
    areas = np.zeros((3, NUM_LABELS))
    areas[0, 0] = 4
    shares = foreground_shares(areas)
    assert shares["mass"] == {"body": None, "occluder": None, "background": None}
    assert shares["claimed"] == {"body": None, "occluder": None, "background": 0, "hidden body": None}


@pytest.mark.parametrize("parts", [2, 4, 16])
def test_the_foreground_of_hard_masks_does_not_depend_on_how_many_parts_share_it(parts: int) -> None:
    background = torch.tensor([0.49, 0.51])
    masks = torch.cat(
        [background[None, None, :, None], ((1 - background) / parts).expand(parts, 2)[None, ..., None]], 1
    )
    masks[0, 2, 0] += 1e-3
    assert hard_labels(masks).flatten().tolist() == [2, 0]


def test_drawn_groups_are_rounded_to_the_largest_where_the_body_has_most_of_the_cell() -> None:
    shares = torch.zeros(1, NUM_LABELS, 1, 3)
    shares[0, [0, layout.PART["torso"], layout.PART["left_hand"], layout.PART["right_hand"]], 0, 0] = torch.tensor(
        [0.4, 0.25, 0.2, 0.15]
    )
    shares[0, [OCCLUDER, layout.PART["hat"]], 0, 1] = torch.tensor([0.6, 0.4])
    shares[0, [0, BAG], 0, 2] = torch.tensor([0.1, 0.9])
    assert group_labels(shares).flatten().tolist() == [3, 0, 7]


def people(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints in pixels, all visible, and identities."""
    random = np.random.default_rng(seed)
    posture = random.uniform((16, 8), (48, 120), (17, 2))
    points = posture + random.normal(0, 6, (n, 17, 2)) + random.normal(0, 8, (n, 1, 2))
    return points, np.full((n, 17), layout.VISIBLE, np.uint8), np.repeat(np.arange(n // 4), 4)


def test_shifted_and_scaled_keypoints_are_recovered() -> None:
    points, visibility, pids = people()
    learned = (points / (32, 64) - 1 + (0.1, -0.2))[:, ::-1].reshape(len(points), -1)  # in another order, too
    fit = fit_keypoints(learned[:40], points[:40], visibility[:40], pids[:40])
    errors = keypoint_errors(fit(learned[40:]), points[40:], visibility[40:])
    assert errors["visible"]["error_px"] < 1e-2
    assert errors["visible"]["pck"] == 1


def test_a_constant_prediction_is_the_mean_posture() -> None:
    points, visibility, pids = people()
    visibility[::3, 4] = layout.OUT_OF_FRAME
    mean = np.stack([points[visibility[:, j] > 0, j].mean(0) for j in range(17)])
    for features in (np.empty((60, 0)), np.full((60, 6), 0.3)):
        predicted = fit_keypoints(features, points, visibility, pids)(features)
        np.testing.assert_allclose(predicted, np.broadcast_to(mean, points.shape), rtol=1e-9)


def test_keypoints_outside_the_frame_do_not_enter_the_fit() -> None:
    points, visibility, pids = people()
    learned = points.reshape(60, -1) / 64 - 1
    visibility[5:20, 7] = layout.OUT_OF_FRAME
    moved = points.copy()
    moved[5:20, 7] += 1000
    first, second = (fit_keypoints(learned, target, visibility, pids).weight for target in (points, moved))
    np.testing.assert_array_equal(first, second)


def test_noise_is_no_better_and_hardly_worse_than_the_mean_posture() -> None:
    points, visibility, pids = people(120)
    noise = np.random.default_rng(1).normal(size=(120, 50))
    errors = []
    for features in (np.empty((120, 0)), noise):
        fit = fit_keypoints(features[:60], points[:60], visibility[:60], pids[:60])
        errors.append(keypoint_errors(fit(features[60:]), points[60:], visibility[60:])["visible"]["error_px"])
    assert 0.99 * errors[0] < errors[1] < 1.05 * errors[0]


def test_the_fit_needs_two_people_and_every_keypoint() -> None:
    points, visibility, pids = people()
    with pytest.raises(DataError, match="at least 2 training identities, got 1"):
        fit_keypoints(np.empty((60, 0)), points, visibility, np.zeros(60, np.int64))
    visibility[:, KEYPOINTS.index("left_ankle")] = layout.OUT_OF_FRAME
    with pytest.raises(DataError, match="left_ankle is in the frame of none of 60"):
        fit_keypoints(np.empty((60, 0)), points, visibility, pids)


def test_errors_are_shares_of_the_body_height_and_told_apart_by_visibility() -> None:
    points, visibility, _ = people(2)
    points[0, 0, 1], points[0, 1, 1] = 10.0, 110.0
    points[0, :, 1] = points[0, :, 1].clip(10, 110)  # 100 pixels high
    points[1] = points[0] * 2
    visibility[0, :4] = [layout.OUT_OF_FRAME, layout.BEHIND_OCCLUDER, layout.BEHIND_SELF, layout.VISIBLE]
    visibility[1] = layout.OUT_OF_FRAME
    visibility[1, :2] = layout.BEHIND_OCCLUDER
    predicted = points.copy()
    predicted[0, :4] += [[500, 0], [3, 4], [0, 9], [0, 20]]  # 5, 9 and 20 pixels away
    predicted[1, :2] += [[0, 30], [0, 0]]  # 30 of 200 pixels
    errors = keypoint_errors(predicted, points, visibility)
    hidden = errors["behind occluder"]
    assert (hidden["count"], hidden["error_px"]) == (3, pytest.approx(35 / 3))
    assert (hidden["error"], hidden["pck"]) == (pytest.approx((0.05 + 0.15 + 0) / 3), pytest.approx(2 / 3))
    assert errors["behind self"] == {"count": 1, "error_px": 9, "error": pytest.approx(0.09), "pck": 1}
    assert errors["visible"]["count"] == 14
    assert errors["visible"]["error"] == pytest.approx(0.2 / 14)
    assert errors["in frame"]["count"] == 18
    nothing = keypoint_errors(predicted[:0], points[:0], visibility[:0])
    assert nothing["visible"] == {"count": 0, "error_px": None, "error": None, "pck": None}


def test_image_sides_order_each_pair_and_carry_visibility_along() -> None:
    points, visibility, _ = people(8)
    visibility[:] = np.random.default_rng(2).integers(0, 4, visibility.shape)
    ordered, seen = by_image_side(points.astype(np.float32), visibility)
    np.testing.assert_array_equal(ordered[:, 0], points[:, 0].astype(np.float32))
    swaps = 0
    for left in range(1, 17, 2):
        assert (ordered[:, left, 0] <= ordered[:, left + 1, 0]).all()
        for image in range(8):
            pair = [(*points[image, j].astype(np.float32), visibility[image, j]) for j in (left, left + 1)]
            found = [(*ordered[image, j], seen[image, j]) for j in (left, left + 1)]
            assert found == sorted(pair)
            swaps += found != pair
    assert 0 < swaps < 64
    assert len(PARTS) == OCCLUDER + 1  # HIDDEN_BODY follows the last label
