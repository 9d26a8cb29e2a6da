"""`motarfuse data check`: what is there, what is broken, what is in two splits, and whether it can be used."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from motarfuse.cli.main import main
from motarfuse.data import check_dataset
from motarfuse.errors import DataError

Market = Callable[[Path], Path]


def test_a_good_dataset_is_usable_with_its_counts(tmp_path: Path, market: Market) -> None:
    report = check_dataset(market(tmp_path / "m" / "Market-1501-v15.09.15"))
    assert report.usable
    assert report.decoded
    assert (report.name, report.published and report.published["gallery"]["images"]) == ("Market-1501", 15_913)
    assert {split: counts.images for split, counts in report.splits.items()} == {"train": 12, "query": 2, "gallery": 4}
    assert (report.unreadable, report.duplicates, report.queries_without_match) == ([], [], [])


def test_broken_images_are_named_and_not_counted(tmp_path: Path, market: Market) -> None:
    base = market(tmp_path)
    empty = base / "bounding_box_train" / "0002_c1s1_000009_01.jpg"
    cut = base / "bounding_box_test" / "0003_c1s1_000008_01.jpg"
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:200])
    report = check_dataset(base)
    assert {failure.path for failure in report.unreadable} == {empty, cut}
    assert (report.splits["train"].images, report.splits["gallery"].images) == (11, 3)
    assert report.usable
    quick = check_dataset(base, decode=False)
    assert [failure.path for failure in quick.unreadable] == [empty]


def test_a_broken_image_can_cost_a_query_its_only_match(tmp_path: Path, market: Market) -> None:
    base = market(tmp_path)
    (base / "bounding_box_test" / "0003_c2s1_000007_01.jpg").write_bytes(b"")
    report = check_dataset(base)
    assert [path.name for path in report.queries_without_match] == ["0003_c1s1_000001_00.jpg"]
    assert report.usable
    (base / "bounding_box_test" / "0005_c1s1_000009_01.jpg").write_bytes(b"")
    report = check_dataset(base)
    assert not report.usable
    assert "none of the 2 queries has a gallery image" in report.problems[0]


def test_copies_are_found_by_content_where_they_distort_and_only_there(tmp_path: Path, market: Market) -> None:
    base = market(tmp_path)
    train, query, gallery = (base / name for name in ("bounding_box_train", "query", "bounding_box_test"))
    person = query / "0003_c1s1_000001_00.jpg"
    shutil.copy(person, gallery / "0003_c1s3_000099_00.jpg")  # same camera: left out of the ranking anyway
    shutil.copy(train / "0002_c1s1_000009_01.jpg", train / "0002_c1s1_000099_01.jpg")  # one identity, one split
    assert check_dataset(base).duplicates == []

    shutil.copy(train / "0007_c1s1_000009_01.jpg", gallery / "0007_c1s1_000009_01.jpg")
    shutil.copy(train / "0009_c1s1_000009_01.jpg", train / "0002_c2s1_000098_01.jpg")
    shutil.copy(query / "0005_c2s1_000001_00.jpg", gallery / "0005_c1s1_000097_00.jpg")
    found = {duplicate.unfair: duplicate for duplicate in check_dataset(base).duplicates}
    assert set(found) == {
        "trained on and tested with",
        "one picture under different identities",
        "the query itself is among its right answers",
    }
    assert found["trained on and tested with"].splits == ["train", "gallery"]
    assert found["one picture under different identities"].pids == [2, 9]
    assert [path.name for path in found["the query itself is among its right answers"].paths] == [
        "0005_c2s1_000001_00.jpg",
        "0005_c1s1_000097_00.jpg",
    ]


def test_one_identity_or_a_missing_query_set_are_problems_of_their_split(tmp_path: Path, picture: Callable) -> None:
    picture(tmp_path / "train" / "a" / "1.jpg")
    picture(tmp_path / "gallery" / "b" / "1.jpg")
    report = check_dataset(tmp_path)
    assert len(report.problems) == 2
    assert "one identity only" in report.problems[0]
    assert "no query images" in report.problems[1]


def test_a_training_set_alone_is_usable(tmp_path: Path, picture: Callable) -> None:
    picture(tmp_path / "a" / "1.jpg", 1)
    picture(tmp_path / "b" / "1.jpg", 2)
    assert check_dataset(tmp_path).usable


def test_what_is_no_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder is empty\. Supported: .*market1501: .*Of tracklets: .*mars: "):
        check_dataset(tmp_path)


@pytest.mark.real_data
def test_pku_reid_is_usable(real_data: Path) -> None:
    report = check_dataset(real_data / "pku-reid")
    assert report.usable
    assert report.duplicates == []
    assert {split: counts.images for split, counts in report.splits.items()} == {
        "train": 608,
        "query": 96,
        "gallery": 96,
    }


def test_the_command_prints_the_counts_and_the_names(
    tmp_path: Path, market: Market, capsys: pytest.CaptureFixture[str]
) -> None:
    base = market(tmp_path / "[Market-1501]")
    (base / "query" / "nameless.jpg").write_bytes(b"x")
    (base / "bounding_box_train" / "0002_c1s1_000009_01.jpg").write_bytes(b"")
    assert main(["data", "check", str(base)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"train +11 +3 +2 .*\n +published +12,936 +751", out)
    assert "nameless.jpg" in out
    assert "0002_c1s1_000009_01.jpg: the file is empty (0 bytes)" in out
    assert str(base) in out  # brackets are no markup
    assert "usable; every image was decoded" in out


def test_the_command_returns_1_for_a_dataset_that_cannot_be_used_and_2_for_none(
    tmp_path: Path, picture: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "one" / "a" / "1.jpg")
    assert main(["data", "check", str(tmp_path / "one")]) == 1
    captured = capsys.readouterr()
    assert "not usable" in captured.err
    assert "usable;" not in captured.out
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", str(tmp_path / "empty")]) == 2
    assert "the folder is empty" in capsys.readouterr().err


def test_the_json_report_is_complete(tmp_path: Path, market: Market, capsys: pytest.CaptureFixture[str]) -> None:
    base = market(tmp_path)
    assert main(["data", "check", str(base), "--json", "--no-decode", "--kind", "market1501"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usable"] is True
    assert report["decoded"] is False
    assert report["root"] == str(base)
    assert report["splits"]["gallery"] == {"images": 4, "identities": 2, "cameras": 2, "distractors": 1, "junk": 2}


def test_a_drawn_benchmark_is_usable_by_the_command_that_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "drawn"
    settings = ["train_ids=4", "test_ids=3", "distractors=2", "images_per_camera=1", "cameras=2", "size=[64,32]"]
    assert main(["data", "synth", str(out), *settings, "--protocols", "holistic", "--no-ground-truth"]) == 0
    assert f"motarfuse data check {out / 'holistic'}" in capsys.readouterr().out
    assert main(["data", "check", str(out / "holistic"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["splits"]["train"]["identities"] == 4
    assert report["splits"]["gallery"]["distractors"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sede=3"], "unknown setting sede; did you mean seed?"),
        (["seed"], "'seed' is no setting; write key=value"),
        (["seed=x"], "seed: expected integer, got 'x'"),
        (["seed=1", "seed=2"], "the setting seed is given twice"),
        (["--workers", "0"], "--workers is 0"),
    ],
)
def test_a_mistaken_setting_of_the_drawing_is_named_and_nothing_is_written(
    tmp_path: Path, settings: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "synth", str(tmp_path / "drawn"), *settings]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "drawn").exists()
