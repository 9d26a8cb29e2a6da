"""Reads a SynthPed benchmark back from disk: which image is which, and what is true of it."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped.config import PROTOCOLS
from motarfuse.data.synthped.dataset import SETS, SynthPed, SynthPedImages
from motarfuse.errors import DataError

# Bytes of an array that are unpacked at once: masks of large benchmarks do not fit into memory as a whole.
_CHUNK = 1 << 24
_FOLDER = "ground_truth"


@dataclass(frozen=True)
class WrittenSet:
    """Some images of a set that `write_synthped` wrote; n rows.

    Attributes:
        name: One of `SETS`.
        paths: The n image files.
        truth: Their ground truth, with an empty ``images``.
    """

    name: str
    paths: tuple[Path, ...]
    truth: SynthPedImages

    def __len__(self) -> int:
        return len(self.paths)


def written_sets(root: str | Path) -> list[str]:
    """The sets whose ground truth lies in a benchmark, in the order of `SETS`.

    Raises:
        DataError: The folder is no SynthPed benchmark with ground truth.
    """
    root = Path(root).expanduser()
    found = [name for name in SETS if _truth_path(root, name).is_file()]
    if not found:
        above = root.absolute().parent
        if (above / _FOLDER).is_dir():
            raise DataError(f"{root} is one protocol of a SynthPed benchmark; give the folder above it, {above}")
        raise DataError(
            f"{root} holds no SynthPed benchmark with ground truth ({_FOLDER}/train.npz, ...); draw one with "
            "motarfuse data synth OUT"
        )
    return found


def read_written_set(root: str | Path, name: str, *, most: int | None = None) -> WrittenSet:
    """Ground truth of a set and where its images lie.

    Args:
        root: The benchmark's folder, as given to `write_synthped`.
        name: One of `SETS`.
        most: At most so many rows, spread evenly over the set: row ``i n // most`` for i < most. Training rows are
            sorted by identity, so that every identity keeps its share. Memory is that of the chosen rows.

    Raises:
        ValueError: For a name that is not in `SETS`.
        DataError: The ground truth is absent, damaged or of images that are not there.
    """
    if name not in SETS:
        raise ValueError(f"there is no set {name!r}; there are {', '.join(SETS)}")
    root = Path(root).expanduser()
    if name not in written_sets(root):
        raise DataError(
            f"{root} has no ground truth of the set {name}; there is that of {', '.join(written_sets(root))}"
        )
    path = _truth_path(root, name)
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = _read_rows(archive, "names", None)
            rows = np.arange(len(names))
            if most is not None and most < len(rows):
                rows = np.arange(most) * len(rows) // most
            arrays = {f.name: _read_rows(archive, f.name, rows) for f in fields(SynthPedImages) if f.name != "images"}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} is damaged or no ground truth of SynthPed ({error}); draw the benchmark anew"
        ) from error
    short = [key for key, array in arrays.items() if len(array) != len(rows)]
    if short:
        raise DataError(f"{path} is damaged: {short[0]} has other rows than names; draw the benchmark anew")
    for key in ("pids", "camids", "occluder"):
        arrays[key] = arrays[key].astype(np.int64)
    height, width = arrays["parts"].shape[1:]
    truth = SynthPedImages(images=np.empty((0, height, width, 3), np.uint8), **arrays)
    folder = _image_folder(root, name)
    paths = tuple(folder / str(file_name) for file_name in names[rows])
    missing = [one for one in paths if not one.is_file()]
    if missing:
        raise DataError(f"{missing[0]} is not there, but {path} speaks of it; draw the benchmark anew")
    return WrittenSet(name, paths, truth)


def _truth_path(root: Path, name: str) -> Path:
    return root / _FOLDER / f"{name}.npz"


def _image_folder(root: Path, name: str) -> Path:
    """The first protocol's folder that holds a set."""
    for protocol in PROTOCOLS:
        for folder, held in SynthPed.protocol(protocol).items():
            if held == name and (root / protocol / folder).is_dir():
                return root / protocol / folder
    raise DataError(f"{root} has ground truth of the set {name} but not its images; draw the benchmark anew")


def _read_rows(archive: zipfile.ZipFile, name: str, rows: NDArray[np.intp] | None) -> NDArray[Any]:
    """Rows of a member ``<name>.npy`` in rising order (None: all), without unpacking the whole of it at once."""
    with archive.open(f"{name}.npy") as file:
        if rows is None:
            return np.lib.format.read_array(file, allow_pickle=False)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if fortran or dtype.hasobject:
            raise ValueError(f"{name} is not stored row by row")
        row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        step = max(1, _CHUNK // max(row_bytes, 1))
        kept = []
        for start in range(0, shape[0], step):
            count = min(step, shape[0] - start)
            content = file.read(count * row_bytes)
            if len(content) != count * row_bytes:
                raise EOFError(f"{name} is cut off")
            block = np.frombuffer(content, dtype).reshape(count, *shape[1:])
            kept.append(block[rows[(rows >= start) & (rows < start + count)] - start])
        return np.concatenate(kept) if kept else np.empty(shape, dtype)
