"""SynthPed's video protocol on disk: the layout of MARS, its tables, and the ground truth beside it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from motarfuse.cli.main import main
from motarfuse.data.synthped import SynthPedConfig, SynthPedFrames, SynthPedVideo, video_write, write_synthped
from motarfuse.data.synthped.video_reading import read_written_frames
from motarfuse.data.video_registry import load_video_dataset
from motarfuse.errors import DataError, OutputError

SMALL = SynthPedConfig(
    train_ids=2,
    test_ids=2,
    distractors=0,
    size=(64, 32),
    video_train_ids=6,
    video_test_ids=5,
    video_distractors=3,
    video_frames=(3, 9),
    video_missing=0.2,
    same_clothes_share=0.6,
)
NAME = re.compile(r"^(\d{4})C(\d)T(\d{4})F(\d{3})\.png$")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthped(
        tmp_path_factory.mktemp("synthped") / "set", SMALL, protocols=["video"], image_format="png", workers=1
    )


def rows_of(root: Path, name: str) -> list[list[int]]:
    lines = (root / "video" / "info" / name).read_text(encoding="utf-8").splitlines()
    return [[int(word) for word in line.split()] for line in lines]


def tracklet_files(root: Path, split: str) -> Iterator[tuple[list[int], list[str]]]:
    """Each tracklet's row of the table and the names that it speaks of."""
    names = (root / "video" / "info" / f"{split}_name.txt").read_text(encoding="utf-8").split()
    for row in rows_of(root, f"tracks_{split}_info.txt"):
        yield row, names[row[0] - 1 : row[1]]


def test_tables_and_names_say_the_same(root: Path) -> None:
    assert sorted(path.name for path in (root / "video").iterdir()) == ["bbox_test", "bbox_train", "info"]
    gaps, lengths = 0, set()
    for split in ("train", "test"):
        files = {path.name: path.parent.name for path in (root / "video" / f"bbox_{split}").rglob("*.png")}
        seen: list[str] = []
        for (first, last, pid, camera), names in tracklet_files(root, split):
            assert first == len(seen) + 1
            assert len(names) == last - first + 1
            seen += names
            matches = [NAME.match(name) for name in names]
            fields = {(int(m[1]), int(m[2]), int(m[3])) for m in matches if m}
            assert {(p, c) for p, c, _ in fields} == {(pid, camera)}
            assert len(fields) == 1
            frames = [int(m[4]) for m in matches if m]
            assert frames[0] == 1
            assert all(later > earlier for earlier, later in pairwise(frames))
            gaps += sum(later - earlier > 1 for earlier, later in pairwise(frames))
            lengths.add(len(names))
            assert all(files[name] == f"{pid:04d}" for name in names)
        assert sorted(seen) == sorted(files)
    assert gaps > 5
    assert len(lengths) > 3


def test_queries_are_gallery_tracklets_with_a_match_of_another_camera(root: Path) -> None:
    test = rows_of(root, "tracks_test_info.txt")
    queries = [row[0] for row in rows_of(root, "query_idx.txt")]
    assert len(set(queries)) == len(queries) > 5
    assert {test[query - 1][2] for query in queries} == set(range(7, 12))
    for query in queries:
        _, _, pid, camera = test[query - 1]
        assert any(p == pid and c != camera for _, _, p, c in test)
    assert {row[2] for row in rows_of(root, "tracks_train_info.txt")} == set(range(1, 7))
    assert sum(row[2] == 0 for row in test) == 3


def test_the_loader_of_mars_reads_it(root: Path) -> None:
    dataset = load_video_dataset(root / "video", "mars")
    train, test = rows_of(root, "tracks_train_info.txt"), rows_of(root, "tracks_test_info.txt")
    assert len(dataset.train) == len(train)
    assert len(dataset.query) == len(rows_of(root, "query_idx.txt"))
    assert len(dataset.gallery) == len(test)
    for tracklet, (first, last, pid, camera) in zip(dataset.train, train, strict=True):
        assert (tracklet.pid, tracklet.camid, len(tracklet)) == (pid, camera - 1, last - first + 1)
    assert sum(tracklet.num_missing for tracklet in dataset.train) > 5


def test_files_hold_what_was_drawn_and_the_truth_names_them(root: Path) -> None:
    for name in ("video_train", "video_test"):
        written, drawn = read_written_frames(root, name), SynthPedVideo(SMALL).frames(name)
        assert len(written) == len(drawn)
        for field in ("pids", "camids", "parts", "amodal", "keypoints", "visibility", "in_frame", "occluder"):
            np.testing.assert_array_equal(getattr(written.frames.truth, field), getattr(drawn.truth, field), field)
        for field in ("tracklet", "frame", "phase"):
            np.testing.assert_array_equal(getattr(written.frames, field), getattr(drawn, field), field)
        for i, path in enumerate(written.paths):
            with Image.open(path) as image:
                assert np.array_equal(np.asarray(image), drawn.truth.images[i])
        light = read_written_frames(root, name, masks=False)
        assert len(light.frames.truth.parts) == len(light.frames.truth.amodal) == 0
        assert np.array_equal(light.frames.truth.keypoints, drawn.truth.keypoints)
    assert sorted(path.name for path in (root / "ground_truth").iterdir()) == ["video_test.npz", "video_train.npz"]


def test_the_manifest_names_the_groups_and_how_to_draw_it_again(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    assert SynthPedConfig(**manifest["config"]) == SMALL
    assert manifest["images"] == {}
    video = manifest["video"]
    assert video["images"]["video_train"] == len(list((root / "video" / "bbox_train").rglob("*.png")))
    assert video["tracklets"]["video_test"] == len(rows_of(root, "tracks_test_info.txt"))
    assert video["same_clothes"] == {"video_train": [[4, 5, 6]], "video_test": [[7, 8, 9, 10, 11]]}


def test_number_of_workers_changes_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_write, "BLOCK", 13)
    other = write_synthped(tmp_path / "set", SMALL, protocols=["video"], image_format="png", workers=3)
    files = sorted(path.relative_to(root) for path in root.rglob("*.*") if path.suffix != ".npz")
    assert files == sorted(path.relative_to(other) for path in other.rglob("*.*") if path.suffix != ".npz")
    assert all((root / file).read_bytes() == (other / file).read_bytes() for file in files)
    for name in ("video_train", "video_test"):
        with np.load(root / "ground_truth" / f"{name}.npz") as a, np.load(other / "ground_truth" / f"{name}.npz") as b:
            assert sorted(a.files) == sorted(b.files)
            assert all(np.array_equal(a[key], b[key]) for key in a.files)


def test_masks_wait_on_disk_and_not_in_memory(tmp_path: Path) -> None:
    frames = SynthPedVideo(SMALL).frames("video_train", limit=4)
    names = [f"{i}.png" for i in range(2 * len(frames))]
    with video_write._TruthFile(tmp_path / "truth" / "video_train.npz", names) as truth:
        for _ in range(2):
            truth.append(frames.without_pixels())
        assert all(len(block.truth.parts) == len(block.truth.amodal) == 0 for block in truth.blocks)
        assert (tmp_path / "truth" / ".video_train.parts").is_file()
    with np.load(tmp_path / "truth" / "video_train.npz") as stored:
        assert np.array_equal(stored["parts"], np.concatenate([frames.truth.parts] * 2))
        assert np.array_equal(stored["phase"], np.concatenate([frames.phase] * 2))
    assert [path.name for path in (tmp_path / "truth").iterdir()] == ["video_train.npz"]


def test_video_is_written_beside_images_and_only_when_asked(tmp_path: Path) -> None:
    command = ["data", "synth", str(tmp_path / "both"), "train_ids=2", "test_ids=2", "distractors=0", "size=[64,32]"]
    video = ["video_train_ids=2", "video_test_ids=2", "video_frames=[2,3]", "video_distractors=0"]
    assert main([*command, *video, "--protocols", "holistic", "video", "--no-ground-truth"]) == 0
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["holistic", "manifest.json", "video"]
    command[2] = str(tmp_path / "images")
    assert main(command) == 0
    manifest = json.loads((tmp_path / "images" / "manifest.json").read_text())
    assert not (tmp_path / "images" / "video").exists()
    assert "video" not in manifest
    # A benchmark of images is known to be the same as one drawn before there were videos.
    assert not [key for key in manifest["config"] if key.startswith("video") or key == "same_clothes_share"]
    with Image.open(next((tmp_path / "both" / "holistic" / "query").iterdir())) as image:
        name = Path(str(image.filename)).name
    assert (tmp_path / "images" / "holistic" / "query" / name).read_bytes() == (
        tmp_path / "both" / "holistic" / "query" / name
    ).read_bytes()


def test_an_error_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def save(pixels: np.ndarray, path: Path) -> None:
        calls.append(path)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"image")

    monkeypatch.setattr(video_write, "save_image", save)
    for workers in (1, 2):
        calls.clear()
        with pytest.raises(OutputError, match="free some space"):
            write_synthped(tmp_path / "set", SMALL, protocols=["video"], workers=workers)
        assert list(tmp_path.iterdir()) == []


def test_absent_and_damaged_truth_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"video_train\.npz is not there; draw it with .* --protocols video"):
        read_written_frames(tmp_path, "video_train")
    with pytest.raises(ValueError, match="there is no set 'train'"):
        read_written_frames(root, "train")
    copy = shutil.copytree(root / "ground_truth", tmp_path / "ground_truth")
    path = copy / "video_test.npz"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\0" * 1000):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"video_test\.npz is damaged"):
            read_written_frames(tmp_path, "video_test")
    with np.load(root / "ground_truth" / "video_test.npz") as stored:
        arrays = dict(stored)
    np.savez(path, **{**arrays, "phase": arrays["phase"][1:]})
    with pytest.raises(DataError, match="phase has other rows than names"):
        read_written_frames(tmp_path, "video_test")


def test_without_training_people_the_folder_is_empty(tmp_path: Path) -> None:
    config = SMALL.with_options(video_train_ids=0, video_test_ids=1, video_distractors=0)
    root = write_synthped(tmp_path / "set", config, protocols=["video"], workers=2)
    assert list((root / "video" / "bbox_train").iterdir()) == []
    assert rows_of(root, "tracks_train_info.txt") == []
    assert isinstance(SynthPedVideo(config).frames("video_train"), SynthPedFrames)
