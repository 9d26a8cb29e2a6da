"""CUHK03 from its extracted images, under the new or the classic protocol. Sources: Li et al. 2014, Zhong et al. 2017.

The images come out of the authors' cuhk-03.mat once, by `extract_cuhk03` (``motarfuse data convert``), not at loading.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np

from motarfuse.data.cuhk03_mat import MAT_NAME, TESTSETS_NAME, read_testsets
from motarfuse.data.files import existing_folder, list_folder, name_some
from motarfuse.data.layout import choose_one, find_below, folders_by_name, place_of, skipped_note
from motarfuse.data.market1501 import load_market1501
from motarfuse.data.published import CUHK03_DETECTED, CUHK03_LABELED, compare_with_published
from motarfuse.data.records import ImageRecord, ReIDDataset, Skipped
from motarfuse.errors import DataError

BOXES = ("detected", "labeled")
PROTOCOLS = ("new", "classic")
SPLITS = 20
CONFIGS = {boxes: f"cuhk03_new_protocol_config_{boxes}.mat" for boxes in BOXES}
IMAGE_FOLDERS = {boxes: f"images_{boxes}" for boxes in BOXES}
PUBLISHED = {"detected": CUHK03_DETECTED, "labeled": CUHK03_LABELED}

# People seen by each of the five pairs of cameras; identities are numbered 1..1467 through all of them, as the new
# protocol's files do.
PEOPLE = (843, 440, 77, 58, 49)
_BEFORE = (0, *accumulate(PEOPLE))
# <pair of cameras>_<person>_<view>_<image>.png
_NAME = re.compile(r"([1-5])_(\d+)_([12])_(\d+)\.", re.ASCII)


def _has_images(folder: Path) -> bool:
    return any(name in folders_by_name(folder) for name in IMAGE_FOLDERS.values())


def _is_ready_made(folder: Path, boxes: tuple[str, ...] = BOXES) -> bool:
    """Whether the boxes are here, each in the layout of Market-1501."""
    folders = folders_by_name(folder)
    return all(name in folders and "bounding_box_train" in folders_by_name(folders[name]) for name in boxes)


def _find_file(root: Path, name: str) -> Path | None:
    """A file in the root, up to two folders below it, or in the folder above it."""
    found = find_below(root, lambda folder: (folder / name).is_file())
    if found:
        return found[0] / name
    above = root.resolve().parent / name
    return above if above.is_file() else None


def is_cuhk03(root: Path) -> bool:
    """Whether CUHK03 is here: its .mat file, extracted images, or both boxes in the layout of Market-1501."""
    if root.is_file():
        return root.name.lower() == MAT_NAME
    return root.is_dir() and bool(
        find_below(root, lambda folder: _has_images(folder) or _is_ready_made(folder) or (folder / MAT_NAME).is_file())
    )


def load_cuhk03(
    root: str | Path,
    *,
    boxes: Literal["detected", "labeled"] | None = None,
    protocol: Literal["new", "classic"] = "new",
    split: int = 0,
) -> ReIDDataset[ImageRecord]:
    """Loads CUHK03: 1,467 people under 5 pairs of cameras, cut out by a detector ("detected") or by hand ("labeled").

    Either ``{detected,labeled}/bounding_box_train`` and so on (new protocol only), or
    ``images_{detected,labeled}/<pair>_<person>_<view>_<image>.png`` with the protocol's files beside them:
    cuhk03_new_protocol_config_{detected,labeled}.mat, or cuhk03_testsets.json (written by the extraction) or
    cuhk-03.mat for the classic one. The camera is the view, 0 or 1; identities are numbered 1..1467 over the pairs.

    Args:
        root: The folder of the images' folders, or one up to two folders above it.
        boxes: Which boxes; None takes those that are there, and is an error where both are.
        protocol: "new": 767 training and 700 test people. "classic": 1,367 and 100 test people, whose images are query
            and gallery at once; score it as ``cuhk03_classic`` over all 20 splits.
        split: Of the classic protocol, 0..19.

    Raises:
        DataError: if images or protocol files are missing, both boxes are there and none was named, or the images are
            still inside the .mat file.
    """
    root = Path(root).expanduser()
    if root.is_file():
        raise DataError(f"{root}: {_extract_first(root)}")
    root = existing_folder(root)
    for name, value, known in (("boxes", boxes, (None, *BOXES)), ("protocol", protocol, PROTOCOLS)):
        if value not in known:
            raise DataError(f"{root}: {name} is {value!r}; supported are {', '.join(filter(None, known))}")
    if not 0 <= split < SPLITS:
        raise DataError(f"{root}: split is {split}; the classic protocol has the splits 0 to {SPLITS - 1}")
    if find_below(root, _has_images):
        return _load_extracted(root, boxes, protocol, split)
    wanted = BOXES if boxes is None else (boxes,)
    ready = find_below(root, lambda folder: any(_is_ready_made(folder, (name,)) for name in wanted))
    if ready:
        return _load_ready_made(root, choose_one(root, ready, "CUHK03-NP", "folder"), boxes, protocol)
    mat = _find_file(root, MAT_NAME)
    if mat is not None:
        raise DataError(f"{root}: {_extract_first(mat)}")
    inside = name_some(path.name for path in list_folder(root)[1]) or "no folder"
    raise DataError(f"{root}: no images_detected, images_labeled or ready-made CUHK03-NP here (found {inside})")


def _extract_first(mat: Path) -> str:
    return (
        f"the images of CUHK03 are still inside {mat.name}; extract them once with "
        f"`motarfuse data convert {mat} OUT --to cuhk03` and load OUT"
    )


def _one_of(root: Path, boxes: str | None, there: list[str]) -> str:
    if boxes is None and len(there) > 1:
        raise DataError(
            f"{root}: detected and labeled boxes are here, say which (boxes='detected' or boxes='labeled'; on the "
            "command line --kind cuhk03:boxes=detected); results on one cannot be compared with those on the other"
        )
    if boxes is not None and boxes not in there:
        raise DataError(f"{root}: no {boxes} boxes here, only {', '.join(there)}")
    return there[0] if boxes is None else boxes


def _load_ready_made(root: Path, base: Path, boxes: str | None, protocol: str) -> ReIDDataset[ImageRecord]:
    if protocol != "new":
        raise DataError(
            f"{root}: is split by the new protocol; the classic one needs the images of {MAT_NAME} (images_detected)"
        )
    chosen = _one_of(base, boxes, [name for name in BOXES if _is_ready_made(base, (name,))])
    dataset = load_market1501(folders_by_name(base)[chosen])
    dataset.kind, dataset.root = "cuhk03", root
    dataset.variant = f"CUHK03 {chosen}, new protocol, ready-made in {place_of(base, root)}"
    return dataset


def _load_extracted(root: Path, boxes: str | None, protocol: str, split: int) -> ReIDDataset[ImageRecord]:
    base = choose_one(root, find_below(root, _has_images), "CUHK03", "folder images_detected or images_labeled")
    folders = folders_by_name(base)
    chosen = _one_of(base, boxes, [name for name in BOXES if IMAGE_FOLDERS[name] in folders])
    which = "new protocol" if protocol == "new" else f"classic protocol, split {split}"
    variant = f"CUHK03 {chosen}, {which}, extracted images in {place_of(base, root)}"
    dataset: ReIDDataset[ImageRecord] = ReIDDataset(f"CUHK03 {chosen}", "cuhk03", root, variant, [], [], [])
    records: dict[str, ImageRecord] = {}
    for path in list_folder(folders[IMAGE_FOLDERS[chosen]])[0]:
        match = _NAME.match(path.name)
        pair, person = (0, 0) if match is None else (int(match.group(1)), int(match.group(2)))
        if match is None or not 1 <= person <= PEOPLE[pair - 1]:
            dataset.skipped.append(Skipped(path, "the name is not <pair 1-5>_<person>_<view 1-2>_<image>"))
            continue
        records[path.name] = ImageRecord(path, _BEFORE[pair - 1] + person, int(match.group(3)) - 1)
    if not records:
        raise DataError(f"{folders[IMAGE_FOLDERS[chosen]]}: no image with a name like 1_001_1_01.png")
    if protocol == "new":
        _split_new(dataset, root, base, chosen, records)
    else:
        _split_classic(dataset, root, base, split, records)
    dataset.notes.extend(
        skipped_note((one.path.name for one in dataset.skipped), "no such name in CUHK03, or no such file")
    )
    return dataset


def _protocol_file(root: Path, base: Path, name: str) -> Path | None:
    return _find_file(base, name) or _find_file(root, name)


def _split_new(
    dataset: ReIDDataset[ImageRecord], root: Path, base: Path, boxes: str, records: dict[str, ImageRecord]
) -> None:
    config = _protocol_file(root, base, CONFIGS[boxes])
    if config is None:
        raise DataError(
            f"{base}: the new protocol needs {CONFIGS[boxes]}, which is neither here nor in {root}; put it beside the "
            "images, or ask for protocol='classic'"
        )
    values = _read_config(config)
    names = [str(np.ravel(value)[0]) for value in np.ravel(values["filelist"])]
    labels, cameras = (np.ravel(values[key]).astype(int).tolist() for key in ("labels", "camId"))
    if not len(names) == len(labels) == len(cameras):
        raise DataError(f"{config}: {len(names)} files, {len(labels)} labels and {len(cameras)} cameras; not the same")
    used: set[str] = set()
    for part, key in (("train", "train_idx"), ("query", "query_idx"), ("gallery", "gallery_idx")):
        for index in np.ravel(values[key]).astype(int).tolist():
            if not 1 <= index <= len(names):
                raise DataError(f"{config}: {key} has {index}; its list names files 1 to {len(names)}")
            name = names[index - 1]
            used.add(name)
            record = records.get(name)
            if record is None:
                path = base / IMAGE_FOLDERS[boxes] / name
                dataset.skipped.append(Skipped(path, f"{config.name} names it, but it does not exist"))
            elif (record.pid, record.camid) != (labels[index - 1], cameras[index - 1] - 1):
                raise DataError(
                    f"{config}: {name} is identity {labels[index - 1]}, camera {cameras[index - 1]} there, but "
                    f"{record.pid} and {record.camid + 1} by its name"
                )
            else:
                dataset.subset(part).append(record)
    unused = sorted(set(records) - set(used))
    if unused:
        dataset.notes.append(f"{len(unused):,} images are in no split of {config.name}: {name_some(unused)}")
    dataset.published = PUBLISHED[boxes]
    dataset.name = dataset.published.name
    dataset.notes.extend(compare_with_published(dataset))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"{path}: reading it needs SciPy; pip install motarfuse[data]") from error
    try:
        values: dict[str, Any] = loadmat(path)
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: is no MATLAB file that can be read: {error}") from error
    missing = [
        key for key in ("filelist", "labels", "camId", "train_idx", "query_idx", "gallery_idx") if key not in values
    ]
    if missing:
        raise DataError(f"{path}: holds no {', '.join(missing)}; it is no file of the new protocol")
    return values


def _split_classic(
    dataset: ReIDDataset[ImageRecord], root: Path, base: Path, split: int, records: dict[str, ImageRecord]
) -> None:
    testsets = _testsets(root, base)
    if len(testsets) != SPLITS:
        raise DataError(f"{base}: the classic protocol has {SPLITS} test sets, {len(testsets)} were found")
    strange = [pair for pair, _ in testsets[split] if not 1 <= pair <= len(PEOPLE)]
    if strange:
        raise DataError(f"{base}: split {split} names the camera pair {strange[0]}; there are {len(PEOPLE)}")
    test = {_BEFORE[pair - 1] + person for pair, person in testsets[split]}
    for record in records.values():
        if record.pid in test:
            # Every image is a query and a gallery image: evaluation draws one of the other camera for each person.
            dataset.query.append(record)
            dataset.gallery.append(record)
        else:
            dataset.train.append(record)
    missing = sorted(test - {record.pid for record in dataset.query})
    if missing:
        dataset.notes.append(
            f"{len(missing)} of the {len(test)} test people have no image: {name_some(map(str, missing))}"
        )
    people = (dataset.num_train_ids, len(test) - len(missing))
    dataset.notes.append(
        f"{people[0]:,} training and {people[1]:,} test people, the classic protocol was published with 1,367 and 100"
        + ("" if people == (1_367, 100) else ": they differ")
    )
    dataset.notes.append(
        "single gallery shot: one random gallery image for each person, 10 draws, mean over the 20 splits; evaluate "
        "with the protocol cuhk03_classic"
    )


def _testsets(root: Path, base: Path) -> list[list[tuple[int, int]]]:
    """(pair, person) from 1 of the test people of each split."""
    listed = _protocol_file(root, base, TESTSETS_NAME)
    if listed is not None:
        try:
            found = json.loads(listed.read_text(encoding="utf-8"))["testsets"]
            return [[(int(pair), int(person)) for pair, person in one] for one in found]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{listed}: is no list of test sets as the extraction writes it: {error}") from error
    mat = _protocol_file(root, base, MAT_NAME)
    if mat is None:
        raise DataError(
            f"{base}: the classic protocol needs {TESTSETS_NAME} or {MAT_NAME}, which are neither here nor in {root}"
        )
    return read_testsets(mat)
