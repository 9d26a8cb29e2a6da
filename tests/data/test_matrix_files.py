"""Matrices of integers from MATLAB, NumPy and text files, and what is none."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from motarfuse.data.matrix_files import MissingPackageError, read_integers
from motarfuse.errors import DataError

VALUES = np.array([[1, 2, 3], [4, 5, -6]])


def test_every_form_gives_the_same_matrix(tmp_path: Path) -> None:
    import h5py
    from scipy.io import savemat

    savemat(tmp_path / "five.mat", {"v": VALUES.astype(np.int32)})
    with h5py.File(tmp_path / "seven.mat", "w", userblock_size=512) as file:
        file["v"] = VALUES.T.astype(np.float64)
    with h5py.File(tmp_path / "bare.mat", "w") as file:
        file["v"] = VALUES.T
        file.create_group("#refs#")
    np.save(tmp_path / "n.npy", VALUES.astype(np.uint8 if VALUES.min() >= 0 else np.int16))
    (tmp_path / "t.txt").write_text("1 2 3\n\n4,5, -6\n")
    for name in ("five.mat", "seven.mat", "bare.mat", "n.npy", "t.txt"):
        found = read_integers(tmp_path / name)
        assert found.dtype == np.int64
        assert np.array_equal(found, VALUES), name


def test_one_of_several_variables_is_asked_for_by_name(tmp_path: Path) -> None:
    from scipy.io import savemat

    savemat(tmp_path / "a.mat", {"v": VALUES, "w": VALUES + 1})
    assert np.array_equal(read_integers(tmp_path / "a.mat", "w"), VALUES + 1)
    with pytest.raises(DataError, match="one variable is needed; found v, w"):
        read_integers(tmp_path / "a.mat")
    with pytest.raises(DataError, match="the variable x is needed; found v, w"):
        read_integers(tmp_path / "a.mat", "x")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.mat", b"MATLAB 5.0 MAT-file cut off"),
        ("a.mat", b"\x89HDF\r\n\x1a\n cut off"),
        ("a.npy", b"\x93NUMPY"),
        ("a.mat", b""),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: "):
        read_integers(tmp_path / name)
    with pytest.raises(DataError, match=r"missing\.mat: cannot be read"):
        read_integers(tmp_path / "missing.mat")


def test_what_is_no_matrix_of_integers_is_refused(tmp_path: Path) -> None:
    for values, message in (
        (np.array([0.5]), "no integers"),
        (np.array([np.nan]), "no integers"),
        (np.array(["a"]), "a matrix of integers is needed"),
        (np.zeros((2, 2, 2)), "of 3 dimensions"),
    ):
        np.save(tmp_path / "a.npy", values)
        with pytest.raises(DataError, match=message):
            read_integers(tmp_path / "a.npy")
    (tmp_path / "a.txt").write_text("1 2\n3\n")
    with pytest.raises(DataError, match="line 2: 1 integers, the first line has 2"):
        read_integers(tmp_path / "a.txt")


@pytest.mark.parametrize(("package", "name"), [("scipy", "five.mat"), ("h5py", "seven.mat")])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    (tmp_path / name).write_bytes(b"MATLAB 5.0" if package == "scipy" else b"\x89HDF\r\n\x1a\n")
    real: Callable[..., Any] = builtins.__import__

    def without(asked: str, *rest: Any) -> Any:
        if asked.split(".")[0] == package:
            raise ImportError(asked)
        return real(asked, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=rf"{name}: .*{package}.*pip install motarfuse\[data\]"):
        read_integers(tmp_path / name)
