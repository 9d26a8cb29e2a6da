"""Identity names to numbers, and camera numbers to indices, for datasets that users make themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable

from motarfuse.data.files import CAMERA_IN_NAME, natural_key
from motarfuse.data.records import UNKNOWN_CAMERA

_INTEGER = re.compile(r"-?\d+", re.ASCII)


def number_identities(names: Iterable[str]) -> tuple[dict[str, int], bool]:
    """A number for each identity name.

    Names that are all integers with different values keep their values, so that -1 stays junk. Any others are numbered
    from 1 in natural order, which does not depend on the order of the files.

    Returns:
        The numbers, and whether the names were numbers already.
    """
    distinct = sorted(set(names), key=natural_key)
    if all(_INTEGER.fullmatch(name) for name in distinct) and len({int(name) for name in distinct}) == len(distinct):
        return {name: int(name) for name in distinct}, True
    return {name: number for number, name in enumerate(distinct, start=1)}, False


def cameras_from_names(names: Iterable[str]) -> tuple[list[int], list[str]]:
    """Camera of each base name from its ``_c<number>``, -1 where it has none.

    Cameras count from 1 in such names and from 0 in the result; where a name says camera 0, the numbers are taken as
    counting from 0 already.

    Returns:
        The cameras, and notes on what was decided.
    """
    matches = [CAMERA_IN_NAME.search(name) for name in names]
    numbers = [None if match is None else int(match.group(1)) for match in matches]
    first = 0 if 0 in numbers else 1
    cameras = [UNKNOWN_CAMERA if number is None else number - first for number in numbers]
    notes = []
    if first == 0:
        notes.append("a name says camera 0: cameras are taken as counting from 0")
    unknown = cameras.count(UNKNOWN_CAMERA)
    if unknown == len(cameras):
        notes.append("no name says its camera (_c1, _c2, ...): every camera is unknown, nothing counts as same-camera")
    elif unknown:
        notes.append(f"{unknown} of {len(cameras)} images have no camera in their name: unknown")
    return cameras, notes
