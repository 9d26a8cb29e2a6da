"""The PK sampler: every identity in turn, other cameras first, and a pure function of seed and step."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motarfuse.data import PKSampler
from motarfuse.errors import DataError


def _sampler(labels: list[int], camids: list[int] | None = None, **options: int | bool) -> PKSampler:
    arguments: dict = {"identities": 4, "instances": 4, "seed": 0, **options}
    return PKSampler(labels, [0] * len(labels) if camids is None else camids, **arguments)


# Ten identities with 8 images, two cameras each.
LABELS = [identity for identity in range(10) for _ in range(8)]
CAMERAS = [image % 2 for image in range(80)]


def test_a_batch_is_p_identities_with_k_different_images_each() -> None:
    sampler = _sampler(LABELS, CAMERAS)
    for step in range(20):
        batch = sampler.batch(step)
        assert len(batch) == len(set(batch)) == sampler.batch_size == 16
        groups = [{LABELS[index] for index in batch[start : start + 4]} for start in range(0, 16, 4)]
        assert all(len(group) == 1 for group in groups)
        assert len(set.union(*groups)) == 4


@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=12),
    instances=st.integers(1, 6),
    world_size=st.integers(1, 3),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_every_identity_is_seen_once_before_any_is_repeated_over_all_processes(
    counts: list[int], instances: int, world_size: int, seed: int, data: st.DataObject
) -> None:
    world_size = min(world_size, len(counts))
    identities = data.draw(st.integers(1, len(counts) // world_size))
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    samplers = [
        _sampler(labels, identities=identities, instances=instances, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    seen: list[int] = []
    for step in range(samplers[0].steps_per_pass):
        together: list[int] = []
        for sampler in samplers:
            batch = sampler.batch(step)
            together.extend(labels[index] for index in batch[::instances])
            for start in range(0, len(batch), instances):
                group = Counter(batch[start : start + instances])
                size = counts[labels[batch[start]]]
                assert {labels[index] for index in group} == {labels[batch[start]]}
                # Repeats are spread evenly: none with enough images, each image once before any twice.
                assert len(group) == min(size, instances)
                assert max(group.values()) - min(group.values()) <= 1
        assert len(set(together)) == len(together) == identities * world_size
        seen.extend(together)
    assert sorted(seen[: len(counts)]) == list(range(len(counts)))


def test_steps_can_be_drawn_in_any_order_by_another_sampler() -> None:
    first, second = _sampler(LABELS, CAMERAS, seed=5), _sampler(LABELS, CAMERAS, seed=5)
    forwards = [first.batch(step) for step in range(12)]
    assert [second.batch(step) for step in reversed(range(12))] == forwards[::-1]
    assert list(islice(second.batches(start=7), 5)) == forwards[7:]
    assert list(islice(iter(second), 3)) == forwards[:3]


def test_seeds_and_passes_differ() -> None:
    sampler = _sampler(LABELS, CAMERAS)
    assert sampler.batch(0) != _sampler(LABELS, CAMERAS, seed=1).batch(0)
    assert sampler.batch(0) != sampler.batch(sampler.steps_per_pass)


def test_positives_come_from_other_cameras_first_one_camera_after_the_other() -> None:
    labels = [0] * 8 + [1] * 8
    camids = [0, 0, 0, 0, 0, 1, 2, 3] * 2
    sampler = _sampler(labels, camids, identities=2)
    for step in range(30):
        batch = sampler.batch(step)
        for start in (0, 4):
            cameras = [camids[index] for index in batch[start : start + 4]]
            if cameras[0] == 0:
                assert sorted(cameras[1:]) == [1, 2, 3]
            else:
                others = {0, 1, 2, 3} - {cameras[0]}
                assert set(cameras[1:]) == others


def test_the_same_camera_serves_when_the_others_are_used_up() -> None:
    labels, camids = [0] * 5 + [1] * 5, [0, 0, 0, 0, 1] * 2
    sampler = _sampler(labels, camids, identities=2)
    for step in range(20):
        batch = sampler.batch(step)
        for start in (0, 4):
            group = batch[start : start + 4]
            assert len(set(group)) == 4
            assert {camids[index] for index in group[:2]} == {0, 1}


def test_without_camera_awareness_positives_follow_the_images() -> None:
    labels, camids = [0] * 20 + [1] * 20, [0] * 19 + [1] + [0] * 19 + [1]
    aware = _sampler(labels, camids, identities=2)
    blind = _sampler(labels, camids, identities=2, cross_camera=False)

    def share(sampler: PKSampler) -> float:
        groups = [sampler.batch(step)[start : start + 4] for step in range(200) for start in (0, 4)]
        return float(np.mean([any(camids[index] for index in group) for group in groups]))

    assert share(aware) == 1.0
    assert 0.1 < share(blind) < 0.35  # 4 of 20 images: 1 in 5


def test_unknown_cameras_are_other_cameras_and_are_drawn_evenly() -> None:
    sampler = _sampler([0] * 8 + [1] * 8, [-1] * 16, identities=2)
    drawn = Counter(index for step in range(400) for index in sampler.batch(step))
    assert set(drawn) == set(range(16))
    assert max(drawn.values()) < 1.3 * min(drawn.values())


def test_every_image_of_an_identity_is_an_anchor_in_turn() -> None:
    sampler = _sampler(LABELS, CAMERAS, identities=5)
    anchors: dict[int, list[int]] = {identity: [] for identity in range(10)}
    for step in range(8 * sampler.steps_per_pass):
        for index in sampler.batch(step)[::4]:
            anchors[LABELS[index]].append(index)
    for identity, images in anchors.items():
        assert sorted(images) == [index for index, label in enumerate(LABELS) if label == identity]


def test_an_identity_with_one_image_is_repeated_and_warned_about_once(capsys: pytest.CaptureFixture[str]) -> None:
    sampler = _sampler([0, 1, 1, 2, 2, 2, 2, 2], identities=3)
    assert sampler.num_short_identities == 2
    warning = capsys.readouterr().err
    assert "2 of 3 identities have fewer than 4 images" in " ".join(warning.split())
    batch = sampler.batch(0)
    start = [[0, 1, 1, 2, 2, 2, 2, 2][index] for index in batch[::4]].index(0) * 4
    assert batch[start : start + 4] == [0, 0, 0, 0]
    assert capsys.readouterr().err == ""


def test_labels_may_be_any_integers() -> None:
    assert _sampler([1501] * 4 + [-7] * 4 + [0] * 4, identities=3).num_identities == 3


def test_one_identity_cannot_be_trained_on() -> None:
    with pytest.raises(DataError, match=r"at least two identities, got 1 \(5 images\)"):
        _sampler([3] * 5)
    with pytest.raises(DataError, match=r"at least two identities, got 0 \(0 images\)"):
        _sampler([])


def test_too_few_identities_say_what_would_fit() -> None:
    with pytest.raises(DataError, match=r"16 different identities.*show 10; set the number .* to at most 10"):
        _sampler(LABELS, identities=16)
    with pytest.raises(DataError, match=r"in 3 processes.*to at most 3"):
        _sampler(LABELS, identities=4, world_size=3)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"identities": 0}, "identities must be at least 1, got 0"),
        ({"instances": 0}, "instances must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"world_size": 0}, "world_size must be at least 1"),
        ({"rank": 2, "world_size": 2}, r"rank must be in 0\.\.1, got 2"),
    ],
)
def test_arguments_out_of_range_are_named(options: dict, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        _sampler(LABELS, **options)


def test_a_negative_step_and_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="step must not be negative"):
        _sampler(LABELS).batch(-1)
    with pytest.raises(ValueError, match="differ in length: 2 and 1"):
        PKSampler([0, 1], [0], identities=1, instances=1, seed=0)
