"""`motarfuse data stats`: what a dataset is made of, as a table and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motarfuse.cli.main import main
from motarfuse.data.distribution import Distribution
from motarfuse.data.stats import dataset_stats


@pytest.fixture
def people(tmp_path: Path, picture: Callable) -> Path:
    """A training set with 3 + 1 images, a query, a gallery with a distractor; sizes differ."""
    for value, (name, size) in enumerate(
        {
            "bounding_box_train/0002_c1s1_000001_00.jpg": (20, 10),
            "bounding_box_train/0002_c1s1_000002_00.jpg": (30, 10),
            "bounding_box_train/0002_c3s1_000001_00.jpg": (40, 16),
            "bounding_box_train/0005_c3s1_000001_00.jpg": (40, 16),
            "query/0005_c1s1_000001_00.jpg": (24, 12),
            "bounding_box_test/0005_c2s1_000001_00.jpg": (24, 12),
            "bounding_box_test/0000_c2s1_000001_00.jpg": (24, 12),
        }.items()
    ):
        picture(tmp_path / "set" / name, value, size=size)
    return tmp_path / "set"


def test_images_of_each_identity_and_camera_are_counted(people: Path) -> None:
    stats = dataset_stats(people)
    train, gallery = stats.splits["train"], stats.splits["gallery"]
    assert (stats.unit, stats.kind) == ("images", "market1501")
    assert train.per_identity == Distribution(2, 1, 1, 1, 1, 3, 3, 3, 2.0)
    assert train.cameras_per_identity == Distribution(2, 1, 1, 1, 1, 2, 2, 2, 1.5)
    assert (train.per_camera, train.identities_per_camera) == ({0: 2, 2: 2}, {0: 1, 2: 2})
    assert (gallery.per_camera, gallery.identities_per_camera) == ({1: 2}, {1: 1})  # the distractor is no person
    assert gallery.counts.distractors == 1
    assert stats.identities_in_train_and_test == 1


def test_sizes_are_read_of_as_many_images_as_asked_for(people: Path) -> None:
    train = dataset_stats(people).splits["train"]
    assert train.height is not None
    assert train.width is not None
    assert (train.height.least, train.height.most, train.width.least, train.width.most) == (20, 40, 10, 16)
    assert dataset_stats(people, sizes=2).splits["train"].sizes_read == 2
    assert dataset_stats(people, sizes=None).splits["train"].sizes_read == 4
    (people / "query" / "0005_c1s1_000001_00.jpg").write_bytes(b"no image")
    query = dataset_stats(people).splits["query"]
    assert (query.sizes_read, query.unreadable, query.width) == (0, 1, None)


def test_the_command_prints_a_table_and_json(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(people)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r" *camid 2 +2 of 2 people +- +- *", line) for line in lines)
    assert any(re.fullmatch(r" *images / identity +train +1 +1 +1 +1 +3 +3 +3 +2\.0 *", line) for line in lines)
    assert any("1 identities are in train and in query or gallery" in line for line in lines)
    assert not any("frames" in line for line in lines)
    assert main(["data", "stats", str(people), "--json", "--all-sizes"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["splits"]["train"]["per_camera"] == {"0": 2, "2": 2}
    assert stats["root"] == str(people)


def test_tracklets_are_counted_with_their_frames(
    tmp_path: Path, picture: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["path,pid,track,frame"]
    for track, frames in (("a", (1, 2, 5)), ("b", (1,))):
        for frame in frames:
            picture(tmp_path / track / f"{frame}.jpg")
            lines.append(f"{track}/{frame}.jpg,{track},{track},{frame}")
    (tmp_path / "walks.csv").write_text("\n".join(lines) + "\n")
    train = dataset_stats(tmp_path).splits["train"]
    assert train.frames is not None
    assert (train.frames.frames, train.frames.missing) == (4, 2)
    assert train.per_identity == Distribution.of([1, 1])
    assert (train.per_camera, train.cameras_per_identity) == ({-1: 2}, None)
    assert main(["data", "stats", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "frames / tracklet" in out
    assert "no camera" in out


@given(st.lists(st.integers(-50, 50), min_size=1))
def test_quantiles_are_values_that_occur_and_cut_off_their_share(values: list[int]) -> None:
    found = Distribution.of(values)
    assert found is not None
    for share, value in ((0.1, found.tenth), (0.5, found.median), (0.9, found.nine_tenths)):
        assert value in values
        assert sum(one <= value for one in values) >= share * len(values) - 1e-9
        assert sum(one < value for one in values) <= share * len(values) + 1e-9
    assert (found.least, found.most, found.count) == (min(values), max(values), len(values))


def test_nothing_has_no_distribution() -> None:
    assert Distribution.of([]) is None
