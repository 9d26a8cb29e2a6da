"""CUHK03: extraction from its .mat file, both protocols, both kinds of boxes, and the ready-made folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from motarfuse.cli.main import main
from motarfuse.data import load_dataset
from motarfuse.data.cuhk03 import load_cuhk03
from motarfuse.data.cuhk03_mat import TESTSETS_NAME, extract_cuhk03, read_testsets
from motarfuse.errors import DataError, OutputError

h5py = pytest.importorskip("h5py")
savemat = pytest.importorskip("scipy.io").savemat

# Images of each person and view: (pair, person, view): count. The second person of the first pair has no second view.
DETECTED = {(1, 1, 1): 5, (1, 1, 2): 2, (1, 2, 1): 1, (2, 1, 1): 1, (2, 1, 2): 3}
LABELED = {**DETECTED, (1, 2, 2): 1}
TEST_PEOPLE = [[(1, 1)] for _ in range(19)] + [[(2, 1)]]


def pixels_of(pair: int, person: int, number: int) -> np.ndarray:
    return np.random.default_rng([pair, person, number]).integers(0, 256, (6, 3, 3), dtype=np.uint8)


def write_mat(path: Path) -> Path:
    """A file as MATLAB 7.3 writes it: columns first, cells as references, empty cells as two zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        stored = 0

        def store(values: Any) -> Any:
            nonlocal stored
            stored += 1
            return file.create_dataset(f"#refs#/{stored}", data=values).ref

        reference = h5py.ref_dtype
        for boxes, counts in (("detected", DETECTED), ("labeled", LABELED)):
            pairs = []
            for pair in range(1, 6):
                people = max((person for p, person, _ in counts if p == pair), default=1)
                cells = np.empty((10, people), dtype=reference)  # MATLAB shows (people, 10)
                for person in range(1, people + 1):
                    for number in range(1, 11):
                        view, place = (1, number) if number <= 5 else (2, number - 5)
                        there = place <= counts.get((pair, person, view), 0)
                        image = pixels_of(pair, person, number).T if there else np.zeros(2, dtype=np.uint64)
                        cells[number - 1, person - 1] = store(image)
                pairs.append(store(cells))
            file[boxes] = np.array([pairs], dtype=reference)
        sets = [store(np.array(people, dtype=float).T) for people in TEST_PEOPLE]
        file["testsets"] = np.array([sets], dtype=reference)
    return path


def write_config(path: Path, counts: dict[tuple[int, int, int], int]) -> Path:
    """The file of the new protocol: (1, 1) is trained on, (2, 1) is query and gallery."""
    names, labels, cameras = [], [], []
    for (pair, person, view), count in counts.items():
        for place in range(1, count + 1):
            names.append(f"{pair}_{person:03d}_{view}_{place + 5 * (view - 1):02d}.png")
            labels.append(person + (0, 843)[pair - 1])
            cameras.append(view)
    index = {name: place for place, name in enumerate(names, start=1)}
    column = {
        "train_idx": [index[name] for name in names if name.startswith("1_001")],
        "query_idx": [index["2_001_1_01.png"]],
        "gallery_idx": [index[name] for name in names if name.startswith("2_001_2")],
        "labels": labels,
        "camId": cameras,
    }
    values: dict[str, Any] = {key: np.array(value, dtype=np.uint16)[:, None] for key, value in column.items()}
    values["filelist"] = np.array(names, dtype=object)[:, None]
    savemat(path, values)
    return path


@pytest.fixture
def extracted(tmp_path: Path) -> Path:
    out = tmp_path / "cuhk03"
    extract_cuhk03(write_mat(tmp_path / "release" / "cuhk-03.mat"), out)
    write_config(out / "cuhk03_new_protocol_config_detected.mat", DETECTED)
    write_config(out / "cuhk03_new_protocol_config_labeled.mat", LABELED)
    return out


def test_extraction_writes_every_image_unchanged_under_its_own_name(extracted: Path) -> None:
    for boxes, counts in (("detected", DETECTED), ("labeled", LABELED)):
        folder = extracted / f"images_{boxes}"
        expected = {
            f"{pair}_{person:03d}_{view}_{place + 5 * (view - 1):02d}.png": (pair, person, place + 5 * (view - 1))
            for (pair, person, view), count in counts.items()
            for place in range(1, count + 1)
        }
        assert {path.name for path in folder.iterdir()} == set(expected)
        for name, which in expected.items():
            with Image.open(folder / name) as image:
                np.testing.assert_array_equal(np.asarray(image), pixels_of(*which))
    assert json.loads((extracted / TESTSETS_NAME).read_text())["testsets"][19] == [[2, 1]]


def test_the_command_extracts_and_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mat = write_mat(tmp_path / "cuhk-03.mat")
    assert main(["data", "convert", str(mat), str(tmp_path / "out"), "--to", "cuhk03"]) == 0
    assert "images_detected 12, images_labeled 13" in capsys.readouterr().out
    assert main(["data", "convert", str(mat), str(tmp_path / "out"), "--to", "cuhk03"]) == 2
    assert "nothing is ever overwritten" in capsys.readouterr().err
    with pytest.raises(OutputError):
        extract_cuhk03(mat, tmp_path / "out")


@pytest.mark.parametrize("place", [".", "cuhk03", "cuhk03/cuhk03_release"])
def test_images_inside_the_mat_file_are_never_extracted_silently(tmp_path: Path, place: str) -> None:
    mat = write_mat(tmp_path / place / "cuhk-03.mat")
    before = sorted(tmp_path.rglob("*"))
    for root in (tmp_path, mat):
        with pytest.raises(DataError, match=r"motarfuse data convert .*cuhk-03\.mat OUT --to cuhk03"):
            load_dataset(root)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("boxes", "images"), [("detected", [7, 1, 3]), ("labeled", [7, 1, 3])])
def test_the_new_protocol_is_the_files(extracted: Path, boxes: str, images: list[int]) -> None:
    dataset = load_dataset(extracted, boxes=boxes)
    assert (dataset.kind, dataset.name) == ("cuhk03", f"CUHK03-NP {boxes}")
    assert [len(dataset.subset(split)) for split in ("train", "query", "gallery")] == images
    assert {(record.pid, record.camid) for record in dataset.train} == {(1, 0), (1, 1)}
    assert [(record.pid, record.camid) for record in dataset.query] == [(844, 0)]
    assert {(record.pid, record.camid) for record in dataset.gallery} == {(844, 1)}
    assert all(record.path.parent.name == f"images_{boxes}" for record in dataset.train)
    left = 1 if boxes == "detected" else 2
    assert any(f"{left} images are in no split" in note for note in dataset.notes)


def test_boxes_are_never_chosen_silently(extracted: Path) -> None:
    with pytest.raises(DataError, match="detected and labeled boxes are here, say which"):
        load_dataset(extracted)
    assert "CUHK03 labeled, new protocol" in load_dataset(extracted, "cuhk03:boxes=labeled").variant
    for path in (extracted / "images_labeled").iterdir():
        path.unlink()
    (extracted / "images_labeled").rmdir()
    assert "CUHK03 detected" in load_dataset(extracted).variant
    with pytest.raises(DataError, match="no labeled boxes here, only detected"):
        load_dataset(extracted, boxes="labeled")


@pytest.mark.parametrize("source", ["json", "mat"])
def test_the_classic_protocol_has_twenty_splits(extracted: Path, source: str) -> None:
    if source == "mat":
        (extracted / TESTSETS_NAME).unlink()
        write_mat(extracted / "cuhk03_release" / "cuhk-03.mat")
    first = load_dataset(extracted, boxes="labeled", protocol="classic")
    last = load_dataset(extracted, "cuhk03:boxes=labeled,protocol=classic,split=19")
    assert {record.pid for record in first.query} == {1}
    assert {record.pid for record in last.query} == {844}
    for dataset in (first, last):
        assert dataset.query == dataset.gallery  # evaluation draws one image of the other camera
        assert len(dataset.train) + len(dataset.query) == 13
        assert {record.pid for record in dataset.train}.isdisjoint({record.pid for record in dataset.query})
        assert dataset.queries_without_match() == []
        assert any("published with 1,367 and 100: they differ" in note for note in dataset.notes)
    assert "classic protocol, split 19" in last.variant
    with pytest.raises(DataError, match="split is 20; the classic protocol has the splits 0 to 19"):
        load_dataset(extracted, boxes="labeled", protocol="classic", split=20)


def test_what_a_protocol_needs_is_named(extracted: Path) -> None:
    (extracted / "cuhk03_new_protocol_config_detected.mat").unlink()
    with pytest.raises(
        DataError, match=r"needs cuhk03_new_protocol_config_detected\.mat.*or ask for protocol='classic'"
    ):
        load_dataset(extracted, boxes="detected")
    (extracted / TESTSETS_NAME).unlink()
    with pytest.raises(DataError, match=rf"the classic protocol needs {TESTSETS_NAME} or cuhk-03\.mat"):
        load_dataset(extracted, boxes="detected", protocol="classic")


def test_files_beside_or_above_the_images_are_found(extracted: Path) -> None:
    for name in (TESTSETS_NAME, "cuhk03_new_protocol_config_labeled.mat"):
        (extracted / name).rename(extracted.parent / name)
    for protocol in ("new", "classic"):
        assert load_dataset(extracted, boxes="labeled", protocol=protocol).query
        assert load_dataset(extracted.parent, "cuhk03", boxes="labeled", protocol=protocol).query


def test_labels_that_contradict_the_names_are_refused(extracted: Path) -> None:
    wrong = {(2, 1, 1): 1, (2, 1, 2): 3, (1, 1, 1): 2}
    config = write_config(extracted / "cuhk03_new_protocol_config_detected.mat", wrong)
    from scipy.io import loadmat

    values = {key: value for key, value in loadmat(config).items() if not key.startswith("__")}
    values["labels"] = values["labels"] + 1
    savemat(config, values)
    with pytest.raises(DataError, match=r"1_001_1_01\.png is identity 2, camera 1 there, but 1 and 1 by its name"):
        load_dataset(extracted, boxes="detected")


@pytest.mark.parametrize("index", [0, 999])
def test_an_index_beyond_the_list_is_refused(extracted: Path, index: int) -> None:
    from scipy.io import loadmat

    config = extracted / "cuhk03_new_protocol_config_detected.mat"
    values = {key: value for key, value in loadmat(config).items() if not key.startswith("__")}
    values["query_idx"].flat[0] = index
    savemat(config, values)
    with pytest.raises(DataError, match=rf"query_idx has {index}; its list names files 1 to"):
        load_dataset(extracted, boxes="detected")


def test_a_camera_pair_that_does_not_exist_is_refused(extracted: Path) -> None:
    listed = extracted / TESTSETS_NAME
    values = json.loads(listed.read_text())
    values["testsets"][3] = [[9, 1]]
    listed.write_text(json.dumps(values))
    with pytest.raises(DataError, match="split 3 names the camera pair 9; there are 5"):
        load_dataset(extracted, boxes="detected", protocol="classic", split=3)


def test_missing_and_nameless_images_are_skipped(extracted: Path) -> None:
    (extracted / "images_detected" / "2_001_2_06.png").unlink()
    (extracted / "images_detected" / "6_001_2_06.png").touch()
    (extracted / "images_detected" / "5_050_2_06.png").touch()  # the fifth pair saw 49 people
    dataset = load_dataset(extracted, boxes="detected")
    assert {skipped.path.name for skipped in dataset.skipped} == {
        "2_001_2_06.png",
        "6_001_2_06.png",
        "5_050_2_06.png",
    }
    assert len(dataset.gallery) == 2


def write_ready_made(base: Path) -> Path:
    for folder, names in {
        "bounding_box_train": ["0001_c1_1.png", "0002_c1_1.png"],
        "query": ["0003_c1_1.png"],
        "bounding_box_test": ["0003_c2_1.png"],
    }.items():
        (base / folder).mkdir(parents=True)
        for name in names:
            (base / folder / name).touch()
    return base


@pytest.mark.parametrize("place", [".", "cuhk03-np", "data/cuhk03-np"])
def test_ready_made_folders_are_chosen_by_name(tmp_path: Path, place: str) -> None:
    for boxes in ("detected", "labeled"):
        write_ready_made(tmp_path / place / boxes)
    with pytest.raises(DataError, match="detected and labeled boxes are here, say which"):
        load_dataset(tmp_path)
    dataset = load_dataset(tmp_path, boxes="labeled")
    assert (dataset.kind, len(dataset.train)) == ("cuhk03", 2)
    assert dataset.train[0].path.parent.parent.name == "labeled"
    assert load_dataset(tmp_path / place / "detected").kind == "market1501"
    with pytest.raises(DataError, match="is split by the new protocol"):
        load_dataset(tmp_path, boxes="labeled", protocol="classic")


def test_no_cuhk03_is_an_error_that_says_what_it_looks_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images_detected, images_labeled or ready-made CUHK03-NP here"):
        load_cuhk03(tmp_path)
    with pytest.raises(DataError, match="boxes is 'drawn'; supported are detected, labeled"):
        load_cuhk03(tmp_path, boxes="drawn")  # type: ignore[arg-type]


def test_another_hdf5_file_and_no_hdf5_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cuhk-03.mat"
    path.write_bytes(b"MATLAB 5.0")
    with pytest.raises(DataError, match=r"is no MATLAB 7\.3"):
        extract_cuhk03(path, tmp_path / "out")
    with h5py.File(path, "w") as file:
        file["detected"] = 1
    with pytest.raises(DataError, match="holds no labeled, testsets"):
        read_testsets(path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("package", "protocol"), [("scipy.io", "new"), ("h5py", "classic")])
def test_a_missing_package_is_named(
    extracted: Path, package: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (extracted / TESTSETS_NAME).unlink()
    write_mat(extracted / "cuhk-03.mat")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r"pip install motarfuse\[data\]"):
        load_dataset(extracted, boxes="labeled", protocol=protocol)


@pytest.mark.real_data
@pytest.mark.parametrize(("boxes", "images"), [("detected", [7_365, 1_400, 5_332]), ("labeled", [7_368, 1_400, 5_328])])
def test_the_true_files_of_the_new_protocol_give_the_published_counts(
    tmp_path: Path, real_data: Path, boxes: str, images: list[int]
) -> None:
    from scipy.io import loadmat

    config = real_data / "protocols" / "cuhk03-np" / f"cuhk03_new_protocol_config_{boxes}.mat"
    folder = tmp_path / f"images_{boxes}"
    folder.mkdir()
    for name in loadmat(config)["filelist"].ravel():
        (folder / str(name[0])).touch()
    (tmp_path / config.name).symlink_to(config)
    dataset = load_dataset(tmp_path)
    assert [len(dataset.subset(split)) for split in ("train", "query", "gallery")] == images
    assert [dataset.counts(split).identities for split in ("train", "query", "gallery")] == [767, 700, 700]
    assert dataset.queries_without_match() == []
    assert not dataset.skipped
    assert any(f"equal those published for CUHK03-NP {boxes}" in note for note in dataset.notes)
