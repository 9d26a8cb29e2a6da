"""SynthPed's ground truth read back from disk."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from motarfuse.data.synthped import SETS, SynthPed, SynthPedConfig, SynthPedImages, reading, write_synthped
from motarfuse.data.synthped.reading import read_written_set, written_sets
from motarfuse.errors import DataError

SMALL = SynthPedConfig(train_ids=6, test_ids=4, cameras=2, images_per_camera=2, gallery_per_camera=1, distractors=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthped(tmp_path_factory.mktemp("synthped") / "set", SMALL, image_format="png", workers=1)


@pytest.mark.parametrize("name", SETS)
def test_what_is_read_is_what_was_drawn(root: Path, name: str) -> None:
    written, drawn = read_written_set(root, name), SynthPed(SMALL).images(name)
    for item in fields(SynthPedImages):
        if item.name != "images":
            np.testing.assert_array_equal(getattr(written.truth, item.name), getattr(drawn, item.name), item.name)
    for path, pixels in zip(written.paths, drawn.images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)


def test_some_rows_are_spread_over_all_people_and_unpacked_in_pieces(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_written_set(root, "train")
    monkeypatch.setattr(reading, "_CHUNK", 3 * 128 * 64)
    some = read_written_set(root, "train", most=7)
    rows = [0, 3, 6, 10, 13, 17, 20]
    assert some.paths == tuple(whole.paths[row] for row in rows)
    np.testing.assert_array_equal(some.truth.parts, whole.truth.parts[rows])
    np.testing.assert_array_equal(some.truth.keypoints, whole.truth.keypoints[rows])
    assert set(some.truth.pids.tolist()) == set(range(1, 7))
    assert len(read_written_set(root, "train", most=1000)) == len(whole) == 24


def test_every_set_is_named(root: Path) -> None:
    assert written_sets(root) == list(SETS)
    with pytest.raises(ValueError, match="there is no set 'query'"):
        read_written_set(root, "query")


def test_a_folder_without_ground_truth_is_refused_with_advice(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one protocol of a SynthPed benchmark; give the folder above it, .*set$"):
        written_sets(root / "occluded")
    with pytest.raises(DataError, match="motarfuse data synth"):
        written_sets(tmp_path)


def test_damage_is_named(root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(root, tmp_path / "copy")
    truth = copy / "ground_truth" / "query_partial.npz"
    content = truth.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\0" * 1000):
        truth.write_bytes(damaged)
        with pytest.raises(DataError, match=r"query_partial\.npz is damaged"):
            read_written_set(copy, "query_partial")
    arrays = dict(np.load(copy / "ground_truth" / "gallery.npz"))
    np.savez(copy / "ground_truth" / "gallery.npz", **{**arrays, "keypoints": arrays["keypoints"][1:]})
    with pytest.raises(DataError, match="keypoints has other rows than names"):
        read_written_set(copy, "gallery")
    np.savez(copy / "ground_truth" / "gallery.npz", names=arrays["names"])
    with pytest.raises(DataError, match="damaged or no ground truth of SynthPed"):
        read_written_set(copy, "gallery")
    truth.unlink()
    with pytest.raises(DataError, match="no ground truth of the set query_partial; there is that of train, gallery"):
        read_written_set(copy, "query_partial")
    written = read_written_set(copy, "query_occluded")
    written.paths[1].unlink()
    with pytest.raises(DataError, match=written.paths[1].name):
        read_written_set(copy, "query_occluded")
