"""Finding image files: listing, natural order, and what a file's own name says about identity and camera."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from motarfuse.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

# Anchored at the start of the base name. Searched in the whole path, as is common, the same expression takes the
# identity of /data/run_2024_c3/bounding_box_test/0002_c1s1_000451_03.jpg to be 2024.
MARKET_NAME = re.compile(r"(-?\d+)_c(\d+)", re.ASCII)
CAMERA_IN_NAME = re.compile(r"(?:^|_)c(\d+)", re.ASCII | re.IGNORECASE)
_DIGITS = re.compile(r"(\d+)", re.ASCII)


def natural_key(text: str) -> tuple[tuple[int | str, ...], str]:
    """Sort key under which frame 9 comes before frame 10.

    Numbers compare by value and text without case; equal keys ("1.jpg", "01.jpg") fall back to the text itself, so that
    the order never depends on the file system.
    """
    pieces = _DIGITS.split(text)
    # split() alternates text and digits, so that position by position the types always agree.
    return tuple(int(piece) if index % 2 else piece.lower() for index, piece in enumerate(pieces)), text


def is_image_name(name: str) -> bool:
    """Whether a file of that name is taken to be an image; hidden files ("._0001.jpg" of macOS) are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def list_folder(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Images, subfolders and other files directly inside a folder, each in natural order; hidden entries left out.

    Raises:
        DataError: if the folder cannot be read.
    """
    images: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif is_image_name(entry.name):
                    images.append(entry.name)
                else:
                    others.append(entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror or error}") from error
    return _paths(folder, images), _paths(folder, folders), _paths(folder, others)


def _paths(folder: Path, names: Iterable[str]) -> list[Path]:
    return [folder / name for name in sorted(names, key=natural_key)]


def scan_images(root: str | Path) -> list[Path]:
    """Every image below a folder, in natural order of the relative path.

    Raises:
        DataError: if ``root`` is no folder, or holds no image.
    """
    root = existing_folder(root)
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found.extend(Path(folder, name) for name in names if is_image_name(name))
    if not found:
        raise DataError(f"{root}: no images found (looked for {', '.join(sorted(IMAGE_SUFFIXES))} in it and below)")
    return sorted(found, key=lambda path: natural_key(path.relative_to(root).as_posix()))


def parse_market_name(name: str) -> tuple[int, int] | None:
    """Identity and camera (from 0) of a Market-1501 style base name, None when it is not one.

    ``0002_c1s1_000451_03.jpg`` is identity 2, camera 0; ``-1_c3...`` is junk under camera 2. Cameras count from 1 in
    the names, so that one with camera 0 is not such a name.
    """
    match = MARKET_NAME.match(name)
    if match is None or int(match.group(2)) == 0:
        return None
    return int(match.group(1)), int(match.group(2)) - 1


def existing_folder(root: str | Path) -> Path:
    """The path, if it is a folder.

    Raises:
        DataError: if there is nothing at that path, or a file.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    if not root.is_dir():
        raise DataError(f"{root}: is a file, a folder of images is needed")
    return root


def name_some(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
