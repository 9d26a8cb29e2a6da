"""LS-VID: three layouts, starts of names that are starts of longer numbers, cameras, queries in the gallery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from motarfuse.data.ls_vid import load_ls_vid
from motarfuse.data.video_registry import load_video_dataset
from motarfuse.errors import DataError
from tests.data.video_trees import backwards, say, sizes, touch, write

# start of the names, identity, camera, frames. Tracklet 1 is the start of tracklet 10's number.
TRAIN = [("tracklet_train/0001/1", 1, 3, 4), ("tracklet_train/0001/10", 1, 12, 2), ("tracklet_train/0002/11", 2, 3, 2)]
TEST = [
    ("tracklet_test/0005/20", 5, 1, 2),
    ("tracklet_test/0005/21", 5, 2, 2),
    ("tracklet_test/0006/22", 6, 4, 2),
    ("tracklet_test/0006/23", 6, 5, 2),
    ("tracklet_test/0007/24", 7, 15, 2),
]
QUERIES = [1, 2, 3]


def _write(base: Path, layout: int = 1) -> Path:
    lists = base / "info" / "list_sequence" if layout == 2 else base / "list_sequence"
    for split, tracks in (("train", TRAIN), ("test", TEST)):
        write(lists / f"list_seq_{split}.txt", (f"{start} {pid}" for start, pid, _, _ in tracks))
        for start, _, camera, length in tracks:
            folder, _, track = start.rpartition("/")
            touch(base / folder, [f"{track}_{frame}_{camera:02d}_0.jpg" for frame in range(8, 8 + length)])
    if layout == 3:
        (base / "test").mkdir()
        np.save(base / "test" / "query.npy", np.array(QUERIES, np.float64))
        rows = [(1, 2, pid, camera) for _, pid, camera, _ in TEST]
        np.save(base / "test" / "info_test.npy", np.array(rows, np.int32))
    else:
        import h5py

        path = base / ("test" if layout == 1 else "info") / "data" / "info_test.mat"
        path.parent.mkdir(parents=True)
        with h5py.File(path, "w") as file:
            file["query"] = np.array([QUERIES], np.float64).T
            file["gallery"] = np.zeros((3, 1))
    return base


@pytest.mark.parametrize("layout", [1, 2, 3])
@pytest.mark.parametrize("place", [".", "LS-VID", "data/LSVID"])
def test_the_three_layouts_say_the_same(tmp_path: Path, layout: int, place: str) -> None:
    _write(tmp_path / place, layout)
    dataset = load_video_dataset(tmp_path)
    assert (dataset.kind, sizes(dataset)) == ("ls-vid", (3, 3, 5))
    assert [(one.pid, one.camid, len(one)) for one in dataset.train] == [(1, 2, 4), (1, 11, 2), (2, 2, 2)]
    assert [(one.pid, one.camid) for one in dataset.query] == [(5, 0), (5, 1), (6, 3)]
    assert dataset.queries_without_match() == []
    assert ("info/list_sequence" if layout == 2 else "list_sequence") in dataset.variant
    assert {1: "test/data/info_test.mat", 2: "info/data/info_test.mat", 3: "test/query.npy"}[layout] in dataset.variant


def test_a_start_does_not_take_the_files_of_a_longer_number(tmp_path: Path) -> None:
    dataset = load_ls_vid(_write(tmp_path))
    assert dataset.train[0].files == tuple(f"1_{frame}_03_0.jpg" for frame in (8, 9, 10, 11))
    assert dataset.train[0].frame_index == (8, 9, 10, 11)


def test_frames_are_in_the_order_of_time_however_folders_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path)
    backwards(monkeypatch)
    assert load_ls_vid(tmp_path).train[0].frame_index == (8, 9, 10, 11)


def test_frames_that_only_the_last_field_tells_apart_follow_it(tmp_path: Path) -> None:
    _write(tmp_path)
    touch(tmp_path / "tracklet_train" / "0003", ["30_0001_02_10.jpg", "30_0001_02_9.jpg"])
    touch(tmp_path / "tracklet_train" / "0004", ["40-b.png", "40-a.png"])
    lists = tmp_path / "list_sequence" / "list_seq_train.txt"
    write(lists, [lists.read_text().strip(), "./tracklet_train/0003/30 3", "tracklet_train/0004/40 4"])
    dataset = load_ls_vid(tmp_path)
    assert (dataset.train[3].frame_index, dataset.train[3].camid) == ((9, 10), 1)
    assert dataset.train[3].name == "tracklet_train/0003/30"
    assert (dataset.train[4].files, dataset.train[4].frame_index) == (("40-a.png", "40-b.png"), (0, 1))
    assert dataset.train[4].camid == -1
    assert "1 tracklets have no frame numbers" in say(dataset)
    assert "do not name one camera, unknown" in say(dataset)


def test_labels_come_from_the_lists_and_base_names(tmp_path: Path) -> None:
    dataset = load_ls_vid(_write(tmp_path / "run_2024_c3_0" / "9_9_09_9"))
    assert [(one.pid, one.camid) for one in dataset.train] == [(1, 2), (1, 11), (2, 2)]


def test_both_gallery_protocols_are_told(tmp_path: Path) -> None:
    _write(tmp_path)
    dataset = load_ls_vid(tmp_path, queries_in_gallery=False)
    assert sizes(dataset) == (3, 3, 2)
    assert len(dataset.queries_without_match()) == 2
    for one in (dataset, load_ls_vid(tmp_path)):
        assert "5 tracklets, 3 of 3 queries can be answered; without them: 2 tracklets, 1 of 3" in say(one)


def test_tracklets_without_files_are_named_and_do_not_move_the_queries(tmp_path: Path) -> None:
    _write(tmp_path)
    for path in sorted((tmp_path / "tracklet_test" / "0005").glob("20_*")):
        path.unlink()
    dataset = load_ls_vid(tmp_path)
    assert [one.name for one in dataset.query] == ["tracklet_test/0005/21", "tracklet_test/0006/22"]
    assert "1 tracklets left out (a tracklet without any frame): 20" in say(dataset)
    assert "1 of 3 queries have no file at all" in say(dataset)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, 3)
    np.save(tmp_path / "test" / "query.npy", np.array([6]))
    with pytest.raises(DataError, match=r"tracklet 6, but list_seq_test\.txt has 5 lines"):
        load_ls_vid(tmp_path)
    np.save(tmp_path / "test" / "query.npy", np.array([1.5]))
    with pytest.raises(DataError, match="no integers"):
        load_ls_vid(tmp_path)
    np.save(tmp_path / "test" / "query.npy", np.array([{}], dtype=object))
    with pytest.raises(DataError, match="pickled objects can run code"):
        load_ls_vid(tmp_path)
    np.save(tmp_path / "test" / "info_test.npy", np.ones((4, 4), int))
    with pytest.raises(DataError, match=r"4 rows of 4 columns; needed are 5"):
        load_ls_vid(tmp_path)
    write(tmp_path / "list_sequence" / "list_seq_train.txt", ["tracklet_train/0001/1"])
    with pytest.raises(
        DataError, match=r"list_seq_train\.txt, line 1: .* is not <start of the files' names> <identity>"
    ):
        load_ls_vid(tmp_path)


def test_a_test_set_without_queries_is_noted(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "test" / "data" / "info_test.mat").unlink()
    (tmp_path / "list_sequence" / "list_seq_train.txt").unlink()
    dataset = load_ls_vid(tmp_path)
    assert sizes(dataset) == (0, 0, 5)
    assert "no list_seq_train.txt: that split is empty" in say(dataset)
    assert "no info_test.mat or query.npy says which test tracklets are queries" in say(dataset)


def test_lists_without_any_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "list_sequence" / "list_seq_train.txt", ["tracklet_train/0001/1 1"])
    with pytest.raises(DataError, match="no file of any tracklet in the lists is there"):
        load_ls_vid(tmp_path)
