"""SynthPed: the same seed gives the same pixels, and the ground truth says what the pixels show."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from motarfuse import _native
from motarfuse.data.synthped import (
    KEYPOINTS,
    OCCLUDERS,
    PARTS,
    SETS,
    SynthPed,
    SynthPedConfig,
    SynthPedImages,
    layout,
    occluders,
    raster,
    raster_numpy,
    scene,
    truth,
)
from motarfuse.data.synthped import identity as who
from motarfuse.data.synthped.draws import Draws, keys
from motarfuse.data.synthped.layout import FIELD, PART, SHAPE_NONE, TEXTURES

SMALL = SynthPedConfig(train_ids=8, test_ids=8, cameras=2, images_per_camera=2, gallery_per_camera=1, distractors=6)

# SHA-256 of the first images of the default benchmark, version 1. They change only together with
# motarfuse.data.synthped.VERSION: whoever compares numbers needs the same pixels.
GOLDEN = "860df504e5e436e4a6aa1e0ed71a2e4bc6a56ee0dc5ad3948e3add078519161f"

needs_host = pytest.mark.skipif(raster.backend() != "host", reason="motarfuse._host is not built (motarfuse build)")


def digest(*arrays: np.ndarray) -> str:
    result = hashlib.sha256()
    for array in arrays:
        result.update(np.ascontiguousarray(array).tobytes())
    return result.hexdigest()


@pytest.fixture(scope="module")
def occluded() -> SynthPedImages:
    """200 occluded queries of many people, drawn once."""
    return SynthPed(SynthPedConfig(test_ids=100, cameras=2)).images("query_occluded")


@pytest.fixture(scope="module")
def holistic() -> SynthPedImages:
    return SynthPed(SynthPedConfig(test_ids=100, cameras=2)).images("query_holistic")


# Randomness


def test_a_draw_depends_on_its_key_and_name_alone() -> None:
    rows = np.arange(10)
    draws = Draws(keys(3, "image", rows))
    assert np.array_equal(draws.uniform("a"), Draws(keys(3, "image", rows)).uniform("a"))
    assert np.array_equal(draws.uniform("a")[4:6], draws.at(np.asarray([4, 5])).uniform("a"))
    for other in (draws.uniform("b"), draws.fork("x").uniform("a"), Draws(keys(4, "image", rows)).uniform("a")):
        assert not np.any(draws.uniform("a") == other)


def test_draws_have_the_distribution_they_claim() -> None:
    draws = Draws(keys(0, "image", np.arange(200_000)))
    counts = np.histogram(draws.uniform("u"), 20, (0.0, 1.0))[0]
    # chi-square with 19 degrees of freedom: 43.8 is exceeded once in a thousand
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 43.8
    normal = draws.normal("n", 2.0, 3.0)
    assert abs(normal.mean() - 2.0) < 0.03
    assert abs(normal.std() - 3.0) < 0.03
    assert abs(np.corrcoef(draws.uniform("u")[1:], draws.uniform("u")[:-1])[0, 1]) < 0.01
    assert np.bincount(draws.choice("c", (1.0, 0.0, 3.0)), minlength=3) / 200_000 == pytest.approx(
        [0.25, 0.0, 0.75], abs=0.01
    )


# Pixels


def test_the_same_seed_gives_the_same_pixels_whoever_draws_them() -> None:
    synthped = SynthPed(SMALL)
    whole = synthped.images("train")
    again = SynthPed(SMALL).images("train", threads=3)
    assert digest(whole.images, whole.parts, whole.amodal) == digest(again.images, again.parts, again.amodal)
    # an image does not depend on its neighbours in the block
    shots = synthped.shots("train")
    backwards = synthped.draw(shots.take(np.arange(len(shots))[::-1]))
    assert np.array_equal(backwards.images[::-1], whole.images)
    assert np.array_equal(backwards.keypoints[::-1], whole.keypoints)


def test_another_seed_gives_other_people() -> None:
    other = SynthPed(SMALL.with_options(seed=1)).images("train")
    assert not np.any((SynthPed(SMALL).images("train").images == other.images).all(axis=(1, 2, 3)))


def test_the_pixels_of_the_default_benchmark_are_those_of_its_version() -> None:
    synthped = SynthPed()
    images = [synthped.images(name, limit=8) for name in SETS]
    assert digest(*(i.images for i in images), *(i.parts for i in images)) == GOLDEN


@needs_host
@pytest.mark.parametrize("size", [(128, 64), (67, 41)])
def test_host_and_numpy_draw_the_same_bits(size: tuple[int, int]) -> None:
    synthped = SynthPed(SMALL.with_options(size=size))
    for name in ("train", "query_occluded", "query_partial"):
        host, numpy = (synthped.images(name, impl=impl, limit=16) for impl in ("host", "numpy"))
        for field in ("images", "parts", "amodal"):
            assert np.array_equal(getattr(host, field), getattr(numpy, field)), (name, field)


@needs_host
def test_host_and_numpy_agree_on_every_texture_shape_and_occluder() -> None:
    """Scenes in which each primitive wears each texture in turn, so that none is left to chance."""
    config = SMALL.with_options(size=(64, 32))
    shots = SynthPed(config).shots("query_occluded").take(np.arange(8))
    scenes = scene.prepare(config, shots).scenes(np.arange(8), np.ones(8))
    for texture in range(len(TEXTURES)):
        primitives = scenes.primitives.copy()
        primitives[..., FIELD["texture"]] = texture
        values = replace(scenes, primitives=primitives)
        host, numpy = (raster.render(values, config.size, impl=impl) for impl in ("host", "numpy"))
        for a, b in zip(host, numpy, strict=True):
            assert np.array_equal(a, b), TEXTURES[texture]


def test_every_kind_of_occluder_and_texture_appears() -> None:
    synthped = SynthPed(SynthPedConfig(test_ids=60, cameras=2))
    shots = synthped.shots("query_occluded")
    prepared = scene.prepare(synthped.config, shots)
    scenes = prepared.scenes(np.arange(len(shots)), np.ones(len(shots)))
    assert set(prepared.occluder) == set(range(len(OCCLUDERS)))
    drawn = scenes.primitives[..., FIELD["shape"]] != SHAPE_NONE
    assert set(scenes.primitives[..., FIELD["texture"]][drawn].astype(int)) == set(range(len(TEXTURES)))


def test_boxes_of_primitives_leave_nothing_out() -> None:
    """Drawing over the whole canvas instead of the box changes no pixel."""
    synthped = SynthPed(SMALL)
    shots = synthped.shots("query_occluded").take(np.arange(6))
    scenes = scene.prepare(SMALL, shots).scenes(np.arange(6), np.ones(6))
    everywhere = np.empty_like(scenes.boxes)
    everywhere[...] = (0, 0, SMALL.size[1], SMALL.size[0])
    a = raster.render(scenes, SMALL.size)
    b = raster.render(replace(scenes, boxes=everywhere), SMALL.size, impl="numpy")
    for x, y in zip(a, b, strict=True):
        assert np.array_equal(x, y)


def test_pictures_are_neither_flat_nor_saturated(holistic: SynthPedImages) -> None:
    images = holistic.images.astype(np.float64)
    assert (images.std(axis=(1, 2, 3)) > 12).all()
    assert ((images == 255).mean(axis=(1, 2, 3)) < 0.6).all()
    assert 70 < images.mean() < 170


def test_the_rasteriser_refuses_arrays_of_another_shape() -> None:
    if raster.backend() != "host":
        pytest.skip("motarfuse._host is not built (motarfuse build)")
    scenes = scene.prepare(SMALL, SynthPed(SMALL).shots("train").take(np.arange(2))).scenes(np.arange(2), np.ones(2))
    wrong = [
        replace(scenes, primitives=np.ascontiguousarray(scenes.primitives[..., :-1])),
        replace(scenes, boxes=scenes.boxes[:1]),
    ]
    for field in ("responses", "curves", "lattice_x", "weight_y"):
        optics = replace(scenes.optics, **{field: getattr(scenes.optics, field)[:1]})
        wrong.append(replace(scenes, optics=optics))
    for values in wrong:
        with pytest.raises(ValueError, match=r"synthped\.render"):
            raster.render(values, SMALL.size, impl="host")
    with pytest.raises(ValueError, match="impl"):
        raster.render(scenes, SMALL.size, impl="cuda")


def test_without_the_extension_numpy_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    before = SynthPed(SMALL).images("gallery", limit=4)
    monkeypatch.setattr(_native, "host", lambda: None)
    assert raster.backend() == "numpy"
    assert np.array_equal(SynthPed(SMALL).images("gallery", limit=4).images, before.images)
    with pytest.raises(RuntimeError, match="motarfuse build"):
        SynthPed(SMALL).images("gallery", limit=4, impl="host")


def test_an_extension_of_other_sources_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    class Old:
        synthped_revision = raster.REVISION - 1

    monkeypatch.setattr(_native, "host", lambda: Old)
    assert raster.backend() == "numpy"
    assert "motarfuse build" in capsys.readouterr().err


# Identities


def test_confusers_share_the_colours_of_their_clothes_and_little_else() -> None:
    people = who.identities(0, np.arange(400), 4)
    for colours in (people.top_colour, people.bottom_colour):
        groups = colours.reshape(100, 4, 3)
        within = np.abs(groups - groups[:, :1]).max(axis=(1, 2))
        assert within.max() <= 12.0
        assert np.abs(groups[1:, 0] - groups[:-1, 0]).max(axis=1).mean() > 40
    for field in ("top", "top_texture", "bottom", "hair", "bag"):
        groups = getattr(people, field).reshape(100, 4)
        assert (groups == groups[:, :1]).all(axis=1).mean() < 0.3, field


def test_without_confusers_nobody_shares_a_wardrobe() -> None:
    people = who.identities(0, np.arange(100), 1)
    assert len(np.unique(people.top_colour.round(), axis=0)) == 100


def test_a_person_looks_the_same_in_every_set_of_images() -> None:
    a, b = who.identities(5, np.arange(10), 4), who.identities(5, np.asarray([7, 3]), 4)
    assert np.array_equal(a.top_colour[[7, 3]], b.top_colour)
    assert np.array_equal(a.stride[[7, 3]], b.stride)


# Ground truth


def test_the_occluded_share_stays_in_the_configured_range(occluded: SynthPedImages) -> None:
    low, high = SynthPedConfig().occlusion
    inside = (occluded.occluded_share >= low) & (occluded.occluded_share <= high)
    # Some bodies cannot be hidden to the asked share by the drawn occluder; they stay few and near.
    assert inside.mean() >= 0.98
    assert occluded.occluded_share.max() < high + 0.1
    assert occluded.occluded_share.min() > 0.05
    share = ((occluded.parts == PART["occluder"]) & (occluded.amodal > 0)).sum(axis=(1, 2)) / (occluded.amodal > 0).sum(
        axis=(1, 2)
    )
    assert occluded.occluded_share == pytest.approx(share, abs=1e-6)


def test_labels_differ_from_the_amodal_ones_only_where_an_occluder_is(
    occluded: SynthPedImages, holistic: SynthPedImages
) -> None:
    different = occluded.parts != occluded.amodal
    assert (occluded.parts[different] == PART["occluder"]).all()
    assert not (occluded.amodal == PART["occluder"]).any()
    assert np.array_equal(holistic.parts, holistic.amodal)
    assert (holistic.occluder == -1).all()
    assert set(np.unique(occluded.parts)) == set(range(len(PARTS)))


@pytest.mark.parametrize(
    ("keypoint", "parts"),
    [
        ("left_elbow", ("left_upper_arm", "left_lower_arm")),
        ("right_wrist", ("right_lower_arm", "right_hand")),
        ("left_knee", ("left_upper_leg", "left_lower_leg", "lower_garment")),
        ("right_ankle", ("right_lower_leg", "right_foot")),
        ("nose", ("head", "hair")),
    ],
)
def test_a_visible_keypoint_lies_on_its_part(holistic: SynthPedImages, keypoint: str, parts: tuple[str, ...]) -> None:
    k = KEYPOINTS.index(keypoint)
    seen = np.flatnonzero(holistic.visibility[:, k] == layout.VISIBLE)
    assert len(seen) > 40
    column, row = np.floor(holistic.keypoints[seen, k]).astype(int).T
    labels = [
        holistic.amodal[i, max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2]
        for i, r, c in zip(seen, row, column, strict=True)
    ]
    wanted = [PART[name] for name in parts]
    assert all(np.isin(patch, wanted).any() for patch in labels)


def test_a_keypoint_under_an_occluder_is_not_visible(occluded: SynthPedImages) -> None:
    n, height, width = occluded.parts.shape
    column, row = np.floor(occluded.keypoints[..., 0]).astype(int), np.floor(occluded.keypoints[..., 1]).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    label = occluded.parts[np.arange(n)[:, None], row.clip(0, height - 1), column.clip(0, width - 1)]
    hidden = inside & (label == PART["occluder"])
    assert hidden.sum() > 200
    assert (occluded.visibility[hidden] == layout.BEHIND_OCCLUDER).all()
    assert (occluded.visibility[~inside] == layout.OUT_OF_FRAME).all()
    assert (occluded.visibility[inside & ~hidden] >= layout.BEHIND_SELF).all()


def test_a_face_is_seen_from_the_front_and_not_from_behind() -> None:
    facing = np.ones((1, 17), bool)
    nose = KEYPOINTS.index("nose")
    points = np.full((1, 17, 2), 4.0, np.float32)
    head = np.full((1, 8, 8), PART["head"], np.uint8)
    assert truth.visibility(points, facing, head, head)[0, nose] == layout.VISIBLE
    facing[:, nose] = False
    assert truth.visibility(points, facing, head, head)[0, nose] == layout.BEHIND_SELF


def test_left_is_the_persons_left(holistic: SynthPedImages) -> None:
    """Whoever shows the nose has the left shoulder on the right of the picture, and the other way round from behind."""
    nose, left, right = (KEYPOINTS.index(name) for name in ("nose", "left_shoulder", "right_shoulder"))
    front = holistic.visibility[:, nose] == layout.VISIBLE
    both = (holistic.visibility[:, [left, right]] == layout.VISIBLE).all(axis=1)
    difference = holistic.keypoints[:, left, 0] - holistic.keypoints[:, right, 0]
    wide = np.abs(difference) > 6
    assert (difference[front & both & wide] > 0).mean() > 0.95
    assert (difference[~front & both & wide] < 0).mean() > 0.8


def test_partial_crops_show_a_part_of_the_body() -> None:
    config = SynthPedConfig(test_ids=50, cameras=2)
    partial = SynthPed(config).images("query_partial")
    assert (partial.in_frame <= config.partial[1] + 0.02).all()
    assert (partial.in_frame >= 0.75 * config.partial[0]).all()
    out = (partial.visibility == layout.OUT_OF_FRAME).mean(axis=1)
    assert out.mean() > 0.2
    assert (SynthPed(config).images("query_holistic").in_frame > 0.7).all()


def test_people_fill_the_crop(holistic: SynthPedImages) -> None:
    body = holistic.amodal > 0
    rows = body.any(axis=2)
    assert (rows.mean(axis=1) > 0.75).all()
    assert 0.15 < body.mean() < 0.5


def test_unknown_sets_and_protocols_are_named() -> None:
    with pytest.raises(ValueError, match="query_occluded"):
        SynthPed(SMALL).shots("queries")
    with pytest.raises(ValueError, match="holistic"):
        SynthPed.protocol("video")


def test_rows_of_the_primitive_table_are_those_of_the_header() -> None:
    header = (Path(__file__).resolve().parents[2] / "csrc" / "host" / "synthped.h").read_text()
    body = re.search(r"struct Primitive \{(.*?)\};", header, re.S)
    assert body is not None
    names: list[str] = []
    for declaration in re.findall(r"float ([^;]+);", body[1]):
        for item in (part.strip() for part in declaration.split(",")):
            base, *sizes = re.findall(r"\w+", item)
            count = (
                int(np.prod([layout.STATIONS if size == "kStations" else int(size) for size in sizes])) if sizes else 1
            )
            names += [base] if count == 1 else [f"{base}{k}" for k in range(count)]
    expected = [
        re.sub(r"^colour(\d)_([rgb])$", lambda m: f"colour{3 * int(m[1]) + 'rgb'.index(m[2])}", name)
        for name in layout.FIELDS
    ]
    assert names == expected
    assert OCCLUDERS.index("pedestrian") == occluders.PEDESTRIAN
    assert len(names) == raster_numpy.layout.NUM_FIELDS
