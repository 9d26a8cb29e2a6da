"""Sets of tracklets by name and by looking, and what no kind takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from motarfuse.data.any_dataset import load_any_dataset
from motarfuse.data.tracklet_files import MOST_ENTRIES, Collector, last_number, list_names
from motarfuse.data.tracklets import TrackletDataset
from motarfuse.data.video_published import CCVID, LS_VID, MARS, VideoCounts, compare_with_published, looks_like
from motarfuse.data.video_registry import VIDEO_KINDS, is_video_dataset, load_video_dataset
from motarfuse.errors import DataError
from tests.data.video_trees import say, touch


def _dataset(root: Path) -> TrackletDataset:
    return TrackletDataset("a", "b", root, "c", [], [], [])


def test_each_kind_is_known_by_its_name_and_described() -> None:
    for name, kind in VIDEO_KINDS.items():
        assert kind.name == name
        assert kind.summary
        assert set(kind.options) <= set(kind.load.__kwdefaults__ or {})
    assert list(VIDEO_KINDS)[-1] == "tracklet-folder"


def test_sets_of_images_are_not_taken_for_tracklets(tmp_path: Path, market: Callable, picture: Callable) -> None:
    market(tmp_path / "market" / "Market-1501-v15.09.15")
    picture(tmp_path / "folder" / "train" / "a" / "1.jpg")
    (tmp_path / "empty").mkdir()
    for name in ("market", "folder", "empty"):
        assert not is_video_dataset(tmp_path / name)
        with pytest.raises(DataError, match=r"no set of tracklets recognised\. Supported: mars: .*tracklet-folder: "):
            load_video_dataset(tmp_path / name)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        load_video_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="unknown kind of tracklets 'market1501'; supported are auto, mars"):
        load_video_dataset(tmp_path, "market1501")
    touch(tmp_path / "bbox_train" / "0001", ["0001C1T0001F001.jpg"])
    with pytest.raises(DataError, match="split is no option of the kind 'mars'"):
        load_video_dataset(tmp_path, split=1)
    for name, kind in VIDEO_KINDS.items():
        if name not in ("mars", "tracklet-folder"):  # any folders of folders will do for the latter
            with pytest.raises(DataError):
                kind.load(tmp_path)


def test_a_folder_of_a_million_names_is_not_searched_for_a_layout(tmp_path: Path) -> None:
    touch(tmp_path, [f"{number}.txt" for number in range(MOST_ENTRIES)])
    (tmp_path / "bbox_train").mkdir()
    assert not is_video_dataset(tmp_path)
    (tmp_path / "0.txt").unlink()
    assert is_video_dataset(tmp_path)


def test_names_are_listed_in_an_order_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.data.video_trees import backwards

    touch(tmp_path, ["10.jpg", "9.JPG", ".hidden.jpg", "notes.txt"])
    for name in ("10", "9", ".git"):
        (tmp_path / name).mkdir()
    expected = list_names(tmp_path)
    assert (expected.images, expected.folders, expected.others) == (["10.jpg", "9.JPG"], ["9", "10"], ["notes.txt"])
    backwards(monkeypatch)
    assert list_names(tmp_path) == expected


def test_tracklets_of_one_name_are_told_apart(tmp_path: Path) -> None:
    collector = Collector(_dataset(tmp_path))
    built = [collector.build("train", "a", 1, 0, tmp_path, ["1.jpg"], last_number) for _ in range(3)]
    assert [one.name for one in built if one is not None] == ["a", "a#2", "a#3"]
    other = collector.build("query", "a", 1, 0, tmp_path, ["1.jpg"], last_number)
    assert other is not None
    assert other.name == "a"


def test_counts_that_were_published_only_in_part_are_compared_as_far_as_they_go(tmp_path: Path) -> None:
    assert MARS.complete() is not None
    assert LS_VID.complete() is None
    assert CCVID.complete() is None
    collector = Collector(_dataset(tmp_path))
    for camera in range(2):
        collector.add("train", collector.build("train", "a", 1, camera, tmp_path, ["1.jpg"], last_number))
    dataset = collector.dataset
    compare_with_published(dataset, VideoCounts("X", {"train": 3}, {"train": 1}, 2))
    assert dataset.notes == ["train: 2 tracklets, X was published with 3"]
    dataset.notes.clear()
    compare_with_published(dataset, VideoCounts("X", {"train": 2}, {}, 1))
    assert dataset.notes == ["2 cameras, X was published with 1"]
    compare_with_published(dataset, VideoCounts("X", {"train": 2}, {"train": 1}))
    assert "every published count of X is met" in say(dataset)


def test_a_set_is_known_by_its_counts_or_its_folders_name(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    assert looks_like(dataset, MARS, ["data", "MARS-v1"], "mars")
    assert not looks_like(dataset, MARS, ["data"], "mars")
    assert looks_like(dataset, VideoCounts("none", {"train": 0, "query": 0}, {}), [], "mars")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mars:queries_in_gallery=maybe", "mars:queries_in_gallery='maybe' is no value of this option; give true or"),
        ("mars:queries_in_gallery=1", "give true or false"),
        ("ilids-vid:split=x", "give a whole number"),
        ("prid2011:split_seed=x", "give a whole number"),
        ("tracker-crops:length=true", "give a whole number"),
    ],
)
def test_an_option_of_another_type_is_refused_by_name(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_any_dataset(tmp_path, kind)
