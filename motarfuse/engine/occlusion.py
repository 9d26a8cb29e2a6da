"""How much of each query is hidden, where a dataset tells: groups for the breakdown of an evaluation."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from motarfuse.data import ImageRecord, Tracklet
from motarfuse.data.any_dataset import AnyDataset, files_of
from motarfuse.errors import DataError

TRUTH_FOLDER = "ground_truth"


def hidden_shares(dataset: AnyDataset, records: Sequence[ImageRecord | Tracklet]) -> list[float | None]:
    """Share of each person that cannot be seen, of a tracklet the mean over its frames; None where nothing tells.

    From tracklets' own ``visibility`` (1 minus it), or from SynthPed's ground truth: 1 - in_frame (1 - occluded_share),
    the share of the body's box outside the crop and of the body behind an occluder.

    Raises:
        DataError: The dataset tells of none of these records, or its ground truth is damaged.
    """
    shares: list[float | None] = [
        1 - float(np.mean(one.visibility)) if isinstance(one, Tracklet) and one.visibility is not None else None
        for one in records
    ]
    if all(share is None for share in shares) and (truth := _truth_file(dataset)) is not None:
        hidden = _read_truth(truth)
        for place, record in enumerate(records):
            found = [hidden[path.name] for path in files_of(record) if path.name in hidden]
            shares[place] = float(np.mean(found)) if found else None
    if all(share is None for share in shares):
        raise DataError(
            f"{dataset.root}: nothing says how much of its queries is hidden; supported are tracklets with the "
            "visibility of each frame, and protocols of a SynthPed benchmark with its ground_truth folder beside them"
        )
    return shares


def _truth_file(dataset: AnyDataset) -> Path | None:
    """The arrays of a SynthPed benchmark that speak of this protocol's queries."""
    root = dataset.root.absolute()
    for name in (f"query_{root.name}.npz", f"{root.name}_test.npz"):
        file = root.parent / TRUTH_FOLDER / name
        if file.is_file():
            return file
    return None


def _read_truth(file: Path) -> dict[str, float]:
    """Hidden share by the image's file name."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            names = [str(name).rpartition("/")[2] for name in arrays["names"]]
            hidden = 1 - arrays["in_frame"] * (1 - arrays["occluded_share"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{file} is damaged or no ground truth of SynthPed ({error}); draw the benchmark anew"
        ) from error
    return dict(zip(names, np.clip(hidden, 0, 1).tolist(), strict=True))
