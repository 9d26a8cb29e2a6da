"""SynthPed on disk: the layout, what is shared, what happens when it cannot be written."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from motarfuse.data.synthped import PARTS, SynthPed, SynthPedConfig, write_synthped
from motarfuse.data.synthped import write as writer
from motarfuse.errors import ConfigError, OutputError

SMALL = SynthPedConfig(train_ids=8, test_ids=8, cameras=2, images_per_camera=2, gallery_per_camera=1, distractors=6)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthped(tmp_path_factory.mktemp("synthped") / "set", SMALL, image_format="png")


def test_names_follow_market1501(written: Path) -> None:
    pattern = re.compile(r"^(\d{4})_c([1-9])s1_(\d{6})_00\.png$")
    found: dict[str, list[tuple[int, int]]] = {}
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        names = sorted(path.name for path in (written / "occluded" / folder).iterdir())
        matches = [pattern.match(name) for name in names]
        assert all(matches)
        found[folder] = [(int(m[1]), int(m[2])) for m in matches if m]
    train, query, gallery = (
        {pid for pid, _ in found[folder]} for folder in ("bounding_box_train", "query", "bounding_box_test")
    )
    assert train == set(range(1, 9))
    assert query == set(range(9, 17))
    assert gallery == query | {0}
    assert {camera for _, camera in found["query"]} == {1, 2}
    # every query has a match in another camera
    for pid, camera in found["query"]:
        assert any(p == pid and c != camera for p, c in found["bounding_box_test"])


def test_protocols_share_training_set_and_gallery_but_not_queries(written: Path) -> None:
    for folder in ("bounding_box_train", "bounding_box_test"):
        names = {
            protocol: sorted(p.name for p in (written / protocol / folder).iterdir())
            for protocol in ("holistic", "occluded", "partial")
        }
        assert names["holistic"] == names["occluded"] == names["partial"]
        name = names["holistic"][0]
        assert (written / "holistic" / folder / name).read_bytes() == (written / "partial" / folder / name).read_bytes()
    queries = [
        {p.name for p in (written / protocol / "query").iterdir()} for protocol in ("holistic", "occluded", "partial")
    ]
    assert all(len(names) == 16 for names in queries)
    assert len(set.union(*queries)) == 48


def test_files_hold_what_was_drawn_and_the_truth_names_them(written: Path) -> None:
    drawn = SynthPed(SMALL).images("query_occluded")
    with np.load(written / "ground_truth" / "query_occluded.npz") as stored:
        for field in (
            "parts",
            "amodal",
            "keypoints",
            "visibility",
            "occluded_share",
            "in_frame",
            "pids",
            "camids",
            "occluder",
        ):
            assert np.array_equal(stored[field], getattr(drawn, field)), field
        names = stored["names"].tolist()
    assert sorted(names) == sorted(p.name for p in (written / "occluded" / "query").iterdir())
    for i in (0, 7, 15):
        with Image.open(written / "occluded" / "query" / names[i]) as image:
            assert np.array_equal(np.asarray(image), drawn.images[i])


def test_the_manifest_says_how_to_draw_it_again(written: Path) -> None:
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["dataset"] == "SynthPed"
    assert SynthPedConfig(**manifest["config"]) == SMALL
    assert manifest["images"] == {
        "train": 32,
        "query_holistic": 16,
        "gallery": 22,
        "query_occluded": 16,
        "query_partial": 16,
    }
    assert tuple(manifest["parts"]) == PARTS


def test_number_of_workers_changes_nothing(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BLOCK", 5)
    other = write_synthped(tmp_path / "set", SMALL, image_format="png", workers=5)
    files = sorted(p.relative_to(written) for p in written.rglob("*.png"))
    assert files == sorted(p.relative_to(other) for p in other.rglob("*.png"))
    assert all((written / f).read_bytes() == (other / f).read_bytes() for f in files)


def test_the_loader_reads_what_was_written(written: Path) -> None:
    from motarfuse.data import load_dataset

    dataset = load_dataset(written / "occluded", "market1501")
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (32, 16, 22)
    assert {record.camid for record in dataset.query} == {0, 1}


def test_a_folder_is_not_overwritten_unasked(tmp_path: Path) -> None:
    tiny = SMALL.with_options(train_ids=1, test_ids=1, distractors=0)
    root = write_synthped(tmp_path / "set", tiny)
    with pytest.raises(OutputError, match="not empty"):
        write_synthped(root, tiny)
    write_synthped(root, tiny, seed=5, overwrite=True)
    assert json.loads((root / "manifest.json").read_text())["config"]["seed"] == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_what_is_no_benchmark_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(OutputError, match="not a SynthPed benchmark"):
        write_synthped(tmp_path / "photos", SMALL, overwrite=True)
    assert (tmp_path / "photos" / "holiday.jpg").read_bytes() == b"mine"
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        write_synthped(tmp_path / "file", SMALL)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def save(pixels: np.ndarray, path: Path) -> None:
        calls.append(path)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_bytes(b"image")

    monkeypatch.setattr(writer, "save_image", save)
    monkeypatch.setattr(writer, "BLOCK", 24)  # the disk is full in each worker's first block
    for workers in (1, 2):
        calls.clear()
        with pytest.raises(OutputError, match="free some space"):
            write_synthped(tmp_path / "set", SMALL, workers=workers)
        assert list(tmp_path.iterdir()) == []


class _UnpicklableError(Exception):
    def __init__(self) -> None:
        super().__init__("of this kind")
        self.function = lambda: None


def test_an_error_of_a_worker_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: Exception) -> Callable[..., None]:
        def save(*_: object) -> None:
            raise error

        return save

    monkeypatch.setattr(writer, "BLOCK", 5)
    for error, kind in ((ValueError("of this kind"), ValueError), (_UnpicklableError(), RuntimeError)):
        monkeypatch.setattr(writer, "save_image", failing(error))
        with pytest.raises(kind, match="of this kind"):
            write_synthped(tmp_path / "set", SMALL, workers=2)
        assert list(tmp_path.iterdir()) == []


@contextmanager
def drawing(root: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """``motarfuse data synth`` at work in a session of its own, and its two workers."""
    command = [sys.executable, "-m", "motarfuse", "data", "synth", str(root), "train_ids=2000"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(workers := [int(word) for word in children.read_text().split()]) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        yield process, workers
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def assert_gone(workers: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, f"{workers} are still there"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc that lists processes")


@needs_proc
@pytest.mark.parametrize("times", [1, 3])
def test_interrupts_end_it_and_its_workers_and_leave_nothing(tmp_path: Path, times: int) -> None:
    with drawing(tmp_path / "set") as (process, workers):
        for _ in range(times):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.05)
        assert process.wait(20) in (130, -signal.SIGINT)
        assert_gone(workers)
        if times == 1:
            assert process.returncode == 130
            assert list(tmp_path.iterdir()) == []


@needs_proc
def test_a_killed_worker_is_an_error_and_ends_the_other(tmp_path: Path) -> None:
    with drawing(tmp_path / "set") as (process, workers):
        os.kill(workers[0], signal.SIGKILL)
        _, message = process.communicate(timeout=20)
        assert process.returncode == 2
        assert "was killed; is there enough memory?" in message
        assert_gone(workers)
    assert list(tmp_path.iterdir()) == []


@needs_proc
def test_workers_go_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with drawing(tmp_path / "set") as (process, workers):
        process.kill()
        assert_gone(workers)
    assert not (tmp_path / "set").exists()


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        blocked = Path("/proc/synthped")  # the administrator may write anywhere else
    else:
        tmp_path.chmod(0o500)
        blocked = tmp_path / "set"
    with pytest.raises(OutputError, match="cannot write SynthPed"):
        write_synthped(blocked, SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_id": 3}, "there is no setting 'train_id'.*train_ids"),
        ({"cameras": 1}, r"cameras must be a whole number in 2\.\.9"),
        ({"cameras": 10}, "cameras"),
        ({"test_ids": 0}, "test_ids"),
        ({"train_ids": 9999}, "four digits"),
        ({"size": (16, 64)}, "size"),
        ({"size": (128,)}, "size"),
        ({"occlusion": (0.5, 0.3)}, "occlusion"),
        ({"partial": (0.9, 0.3)}, "partial"),
        ({"seed": -1}, "seed"),
        ({"camera_variety": 1.5}, "camera_variety"),
        ({"train_occluded": 0.7, "train_partial": 0.7}, "must not exceed 1"),
    ],
)
def test_a_wrong_setting_is_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SynthPedConfig().with_options(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocols": ["film"]}, "protocols"),
        ({"protocols": []}, "protocols"),
        ({"image_format": "gif"}, "image_format"),
        ({"workers": 0}, "workers"),
    ],
)
def test_a_wrong_option_of_the_writer_is_named(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_synthped(tmp_path / "set", SMALL, **options)
