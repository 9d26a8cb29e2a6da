"""Matrices in files: MATLAB (v5 with scipy, v7.3 with h5py), NumPy, and text."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from motarfuse.data.files import name_some
from motarfuse.data.layout import read_lines
from motarfuse.errors import DataError

Integers = npt.NDArray[np.int64]
_HDF5 = b"\x89HDF\r\n\x1a\n"


class MissingPackageError(DataError):
    """A file can only be read with a package that is not installed."""


def read_integers(path: Path, variable: str | None = None) -> Integers:
    """A matrix of integers.

    Args:
        path: ``.mat``, ``.npy``, or text with one row of integers a line, separated by spaces, tabs or commas; an empty
            file has no rows.
        variable: Name in a MATLAB file; None takes the only one there is.

    Returns:
        int64, two-dimensional as MATLAB would show it: text and vectors of NumPy become rows, HDF5 (which stores
        MATLAB's columns as rows) is transposed.

    Raises:
        MissingPackageError: scipy or h5py is needed and not installed.
        DataError: The file is not of that form, or holds something else than integers.
    """
    suffix = path.suffix.lower()
    if suffix == ".mat":
        values = _read_matlab(path, variable)
    elif suffix == ".npy":
        values = _read_numpy(path)
    else:
        return _read_text(path)
    array = np.atleast_2d(np.asarray(values))
    if array.dtype.kind not in "iufb" or array.ndim != 2:
        raise DataError(f"{path}: holds {array.dtype} of {array.ndim} dimensions, a matrix of integers is needed")
    if not (np.isfinite(array).all() and np.array_equal(np.rint(array), array)):
        raise DataError(f"{path}: holds numbers that are no integers")
    return array.astype(np.int64)


def _read_matlab(path: Path, variable: str | None) -> Any:
    try:
        with path.open("rb") as file:
            head = file.read(520)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if head.startswith(_HDF5) or head[512:].startswith(_HDF5):
        return _read_hdf5(path, variable)
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise MissingPackageError(
            f"{path}: MATLAB files are read with scipy, which is not installed: pip install motarfuse[data]"
        ) from error
    try:
        found = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    except (MatReadError, ValueError, TypeError, LookupError, NotImplementedError, OSError, zlib.error) as error:
        raise DataError(f"{path}: is no MATLAB file, or a broken one: {error}") from error
    return found[_choose(path, list(found), variable)]


def _read_hdf5(path: Path, variable: str | None) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingPackageError(
            f"{path}: MATLAB files of version 7.3 are read with h5py, which is not installed: "
            "pip install motarfuse[data]"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            names = [name for name in file if not name.startswith("#") and isinstance(file[name], h5py.Dataset)]
            return np.asarray(file[_choose(path, names, variable)]).T
    except OSError as error:
        raise DataError(f"{path}: is no HDF5 file, or a broken one: {error}") from error


def _choose(path: Path, found: list[str], variable: str | None) -> str:
    if variable is None and len(found) == 1:
        return found[0]
    if variable in found:
        return variable
    wanted = "one variable" if variable is None else f"the variable {variable}"
    raise DataError(f"{path}: {wanted} is needed; found {name_some(sorted(found), 10) or 'none'}")


def _read_numpy(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except ValueError as error:
        raise DataError(
            f"{path}: is no plain NumPy array ({error}); pickled objects can run code and are not read, save it again "
            "with numpy.save(path, array.astype(int))"
        ) from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _read_text(path: Path) -> Integers:
    rows: list[list[int]] = []
    if path.stat().st_size == 0:
        return np.empty((0, 0), dtype=np.int64)
    for number, line in read_lines(path):
        try:
            rows.append([int(value) for value in line.replace(",", " ").split()])
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {line!r} is not a row of integers") from error
        if len(rows[-1]) != len(rows[0]):
            raise DataError(f"{path}, line {number}: {len(rows[-1])} integers, the first line has {len(rows[0])}")
    return np.array(rows, dtype=np.int64)
