"""Taking the images of CUHK03 out of the authors' cuhk-03.mat, a MATLAB 7.3 (HDF5) file of 1.5 GB."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from motarfuse import console
from motarfuse.data.new_folder import new_folder
from motarfuse.errors import DataError

MAT_NAME = "cuhk-03.mat"
TESTSETS_NAME = "cuhk03_testsets.json"
IMAGES_PER_VIEW = 5


@contextmanager
def _opened(mat: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{mat}: reading it needs h5py; pip install motarfuse[data]") from error
    try:
        file = h5py.File(mat, "r")
    except OSError as error:
        raise DataError(f"{mat}: is no MATLAB 7.3 (HDF5) file that can be read: {error}") from error
    with file:
        missing = [name for name in ("detected", "labeled", "testsets") if name not in file]
        if missing:
            raise DataError(f"{mat}: holds no {', '.join(missing)}; it is not CUHK03's {MAT_NAME}")
        yield file


def read_testsets(mat: Path) -> list[list[tuple[int, int]]]:
    """The test people of the classic protocol's 20 splits: (pair of cameras, person), both from 1.

    Raises:
        DataError: if the file is not CUHK03's, or h5py is not installed.
    """
    with _opened(mat) as file:
        # MATLAB stores columns first: what it shows as (100, 2) is (2, 100) here.
        return [
            [(int(pair), int(person)) for pair, person in np.asarray(file[reference]).T]
            for reference in np.asarray(file["testsets"]).ravel()
        ]


def extract_cuhk03(mat: Path, out: Path) -> dict[str, int]:
    """Writes ``images_detected``, ``images_labeled`` (PNG, the pixels unchanged) and the classic test sets.

    Args:
        mat: cuhk-03.mat.
        out: The folder to create.

    Returns:
        Number of images in each folder.

    Raises:
        DataError: if the file is not CUHK03's, or h5py is not installed.
        OutputError: if ``out`` is there already or cannot be written.
    """
    counts: dict[str, int] = {}
    with _opened(mat) as file, new_folder(out) as folder:
        for boxes in ("detected", "labeled"):
            target = folder / f"images_{boxes}"
            target.mkdir()
            counts[target.name] = 0
            pairs = np.asarray(file[boxes]).ravel()
            for pair, reference in enumerate(console.track(pairs, target.name, len(pairs)), start=1):
                people = np.asarray(file[reference]).T  # (people, 10): five images of each view
                for person, images in enumerate(people, start=1):
                    for number, image in enumerate(images, start=1):
                        pixels = np.asarray(file[image])
                        if pixels.ndim != 3:  # an empty cell: this person has fewer images
                            continue
                        view = 1 if number <= IMAGES_PER_VIEW else 2
                        name = f"{pair}_{person:03d}_{view}_{number:02d}.png"
                        Image.fromarray(np.ascontiguousarray(pixels.T.astype(np.uint8))).save(target / name)
                        counts[target.name] += 1
        testsets = {"testsets": read_testsets(mat)}
        (folder / TESTSETS_NAME).write_text(json.dumps(testsets) + "\n", encoding="utf-8")
    return counts
