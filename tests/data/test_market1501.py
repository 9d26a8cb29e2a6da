"""The Market-1501 layout: every folder variant, labels from base names only, junk, distractors and published counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motarfuse.data import load_dataset
from motarfuse.data.files import natural_key, parse_market_name
from motarfuse.data.market1501 import load_market1501
from motarfuse.errors import DataError

Market = Callable[[Path], Path]

# Where torchreid, fast-reid, TransReID, CLIP-ReID and KPR expect the datasets below their common root.
VARIANTS = [
    ".",
    "market1501",
    "Market-1501-v15.09.15",
    "market1501/Market-1501-v15.09.15",
    "dukemtmc-reid/DukeMTMC-reID",
    "DukeMTMC-reID",
    "dukemtmcreid",
    "Occluded_Duke",
    "dukemtmcreid/Occluded_Duke",
    "cuhk03-np/detected",
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_folder_variant_is_found_from_the_root_and_named(tmp_path: Path, market: Market, variant: str) -> None:
    market(tmp_path / variant)
    dataset = load_dataset(tmp_path)
    assert (dataset.kind, len(dataset.train), len(dataset.query), len(dataset.gallery)) == ("market1501", 12, 2, 4)
    assert ("the folder itself" if variant == "." else variant) in dataset.variant


def test_labels_come_from_base_names_even_below_folders_that_look_like_labels(tmp_path: Path, market: Market) -> None:
    dataset = load_market1501(market(tmp_path / "run_2024_c3" / "1234_c9"))
    assert {record.pid for record in dataset.train} == {2, 7, 9}
    assert {record.camid for record in dataset.train} == {0, 1}


def test_cameras_count_from_zero_and_may_have_two_digits(tmp_path: Path, market: Market, picture: Callable) -> None:
    market(tmp_path)
    path = picture(tmp_path / "bounding_box_train" / "0011_c12_f0046182.jpg")
    record = next(record for record in load_market1501(tmp_path).train if record.path == path)
    assert (record.pid, record.camid) == (11, 11)


def test_junk_is_dropped_and_counted_and_distractors_stay_in_the_gallery(tmp_path: Path, market: Market) -> None:
    dataset = load_market1501(market(tmp_path))
    counts = dataset.counts("gallery")
    assert dataset.junk == {"gallery": 2}
    assert (counts.images, counts.identities, counts.distractors, counts.junk) == (4, 2, 1, 2)
    assert [record.pid for record in dataset.gallery] == [0, 3, 3, 5]


def test_identity_zero_is_a_person_where_the_queries_count_from_zero(
    tmp_path: Path, market: Market, picture: Callable
) -> None:
    market(tmp_path)
    picture(tmp_path / "query" / "0000_c1s1_000001_00.jpg")
    dataset = load_market1501(tmp_path)
    assert dataset.distractor_pid is None
    assert dataset.counts("gallery").distractors == 0
    assert any("count from 0" in note for note in dataset.notes)


def test_names_that_do_not_match_are_skipped_counted_and_named(
    tmp_path: Path, market: Market, picture: Callable
) -> None:
    market(tmp_path)
    for name in ("img_0002_c1s1.jpg", "0002_c0s1_000001_00.jpg", "0002.jpg"):
        picture(tmp_path / "bounding_box_train" / name)
    dataset = load_market1501(tmp_path)
    assert sorted(skipped.path.name for skipped in dataset.skipped) == [
        "0002.jpg",
        "0002_c0s1_000001_00.jpg",
        "img_0002_c1s1.jpg",
    ]
    assert len(dataset.train) == 12
    assert any("3 images skipped" in note and "0002.jpg" in note for note in dataset.notes)


def test_suffixes_are_taken_in_any_case_and_other_files_are_noted(
    tmp_path: Path, market: Market, picture: Callable
) -> None:
    market(tmp_path)
    folder = tmp_path / "bounding_box_test"
    for suffix in ("JPG", "jpeg", "PNG", "bmp", "TIF", "tiff"):
        picture(folder / f"0008_c1s1_000001_00.{suffix}")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "._0003_c2s1_000007_01.jpg").write_bytes(b"x")  # macOS leaves these beside copied files
    dataset = load_market1501(tmp_path)
    assert sum(record.pid == 8 for record in dataset.gallery) == 6
    assert not dataset.skipped
    assert any("Thumbs.db" in note for note in dataset.notes)


def test_images_are_in_natural_order(tmp_path: Path, market: Market, picture: Callable) -> None:
    folder = market(tmp_path) / "bounding_box_train"
    for name in ("12_c1_f10.jpg", "12_c1_f9.jpg", "2_c1_f1.jpg"):
        picture(folder / name)
    names = [record.path.name for record in load_market1501(tmp_path).train]
    assert names.index("2_c1_f1.jpg") < names.index("12_c1_f9.jpg") < names.index("12_c1_f10.jpg")


def test_a_missing_folder_is_noted_and_refused_only_when_it_is_needed(tmp_path: Path, market: Market) -> None:
    base = market(tmp_path)
    for path in (base / "bounding_box_train").iterdir():
        path.unlink()
    (base / "bounding_box_train").rmdir()
    dataset = load_market1501(base)
    assert any("no folder bounding_box_train" in note for note in dataset.notes)
    dataset.require_evaluation()
    with pytest.raises(DataError, match=r"no training images.*query 2, gallery 4"):
        dataset.require_training()


def test_several_datasets_below_the_root_are_listed_instead_of_one_being_picked(tmp_path: Path, market: Market) -> None:
    market(tmp_path / "holistic")
    market(tmp_path / "occluded")
    with pytest.raises(DataError, match="holistic, occluded"):
        load_dataset(tmp_path)


def test_pointing_into_a_split_suggests_its_parent(tmp_path: Path, market: Market) -> None:
    market(tmp_path)
    with pytest.raises(DataError, match=r"did you mean its parent"):
        load_market1501(tmp_path / "query")


def test_folders_without_a_single_matching_name_are_refused_with_an_example(tmp_path: Path, picture: Callable) -> None:
    picture(tmp_path / "bounding_box_train" / "alice.jpg")
    with pytest.raises(DataError, match=r"0002_c1s1_000451_03\.jpg.*alice\.jpg"):
        load_dataset(tmp_path)


def test_extra_distractors_join_the_gallery_on_request_only(tmp_path: Path, market: Market, picture: Callable) -> None:
    base = market(tmp_path)
    picture(base / "images" / "0000_c4s1_000001_00.jpg")
    picture(base / "images" / "12345.jpg")
    assert len(load_dataset(base).gallery) == 4
    dataset = load_dataset(base, extra_distractors=True)
    assert [(record.pid, record.camid) for record in dataset.gallery[4:]] == [(0, 3), (0, -1)]
    assert dataset.counts("gallery").distractors == 3


def test_extra_distractors_that_are_not_there_are_an_error(tmp_path: Path, market: Market) -> None:
    with pytest.raises(DataError, match="there are no images in"):
        load_dataset(market(tmp_path), extra_distractors=True)


def test_a_query_set_without_a_cross_camera_match_cannot_be_scored(tmp_path: Path, picture: Callable) -> None:
    picture(tmp_path / "query" / "0003_c1s1_000001_00.jpg")
    picture(tmp_path / "bounding_box_test" / "0003_c1s1_000002_00.jpg")
    picture(tmp_path / "bounding_box_test" / "0004_c2s1_000002_00.jpg")
    dataset = load_market1501(tmp_path)
    with pytest.raises(DataError, match="none of the 1 queries has a gallery image of the same identity from another"):
        dataset.require_evaluation()


def test_one_training_identity_cannot_be_trained_on(tmp_path: Path, picture: Callable) -> None:
    for number in range(3):
        picture(tmp_path / "bounding_box_train" / f"0003_c{number + 1}s1_000001_00.jpg")
    with pytest.raises(DataError, match=r"one identity only \(pid 3, 3 images\)"):
        load_market1501(tmp_path).require_training()


def _touch(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def _market_names(pids: np.ndarray, cameras: np.ndarray) -> list[str]:
    return [
        f"{pid:04d}_c{cam}s1_{number:06d}_00.jpg" if pid >= 0 else f"-1_c{cam}s1_{number:06d}_00.jpg"
        for number, (pid, cam) in enumerate(zip(pids.ravel(), cameras.ravel(), strict=True))
    ]


@pytest.mark.real_data
def test_the_true_labels_of_market1501_load_with_the_published_counts(tmp_path: Path, real_data: Path) -> None:
    from scipy.io import loadmat

    def labels(name: str) -> np.ndarray:
        values = loadmat(real_data / "protocols" / "market1501" / f"{name}.mat")
        return next(value for key, value in values.items() if not key.startswith("__")).astype(int)

    base = tmp_path / "market1501"
    _touch(base / "bounding_box_train", _market_names(labels("train_label"), labels("train_cam")))
    _touch(base / "query", _market_names(labels("queryID"), labels("queryCam")))
    test_names = _market_names(labels("testID"), labels("testCam"))
    _touch(base / "bounding_box_test", test_names)
    dataset = load_dataset(tmp_path)
    gallery = dataset.counts("gallery")
    assert dataset.name == "Market-1501"
    assert dataset.junk == {"gallery": 3_819}
    assert (gallery.images, gallery.identities, gallery.distractors, gallery.cameras) == (15_913, 750, 2_798, 6)
    assert (len(dataset.train), dataset.num_train_ids, len(dataset.query)) == (12_936, 751, 3_368)
    assert dataset.queries_without_match() == []
    assert any("equal those published for Market-1501" in note for note in dataset.notes)

    kept = next(name for name in test_names if not name.startswith("-1"))
    (base / "bounding_box_test" / kept).unlink()
    notes = load_dataset(tmp_path).notes
    assert any("15,912 images, Market-1501 was published with 15,913" in note for note in notes)


@pytest.mark.real_data
def test_the_true_lists_of_occluded_duke_load_with_the_published_counts(tmp_path: Path, real_data: Path) -> None:
    lists = real_data / "protocols" / "occluded-duke"
    base = tmp_path / "some_folder"
    for split, folder in (("train", "bounding_box_train"), ("query", "query"), ("gallery", "bounding_box_test")):
        _touch(base / folder, (lists / f"{split}.list").read_text().split())
    dataset = load_dataset(base)
    assert dataset.name == "Occluded-Duke"  # by its counts: the folder's name says nothing
    assert [dataset.counts(split).images for split in ("train", "query", "gallery")] == [15_618, 2_210, 17_661]
    assert [dataset.counts(split).identities for split in ("train", "query", "gallery")] == [702, 519, 1_110]
    assert dataset.queries_without_match() == []


@settings(deadline=None)
@given(
    pid=st.integers(-1, 99_999), camera=st.integers(1, 99), rest=st.from_regex(r"(s\d|_f\d+)?(_\w*)?", fullmatch=True)
)
def test_a_name_gives_back_the_labels_it_was_made_of(pid: int, camera: int, rest: str) -> None:
    assert parse_market_name(f"{pid:04d}_c{camera}{rest}.jpg") == (pid, camera - 1)


@settings(deadline=None)
@given(st.lists(st.text(alphabet="aB01².-_", max_size=8), max_size=8, unique=True), st.randoms())
def test_natural_order_does_not_depend_on_the_order_of_the_folder(names: list[str], random: Random) -> None:
    listed = random.sample(names, len(names))
    assert sorted(listed, key=natural_key) == sorted(names, key=natural_key)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_natural_order_compares_numbers_by_value(a: int, b: int) -> None:
    assert (natural_key(f"frame{a}.jpg") < natural_key(f"frame{b}.jpg")) == (a < b)
