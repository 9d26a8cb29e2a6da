"""Draws scenes: with ``motarfuse._host`` where it is built, otherwise in numpy; the pixels are the same."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from motarfuse import _native, console
from motarfuse.data.synthped import layout, raster_numpy
from motarfuse.data.synthped.scene import Scenes
from motarfuse.data.synthped.tiles import tiles

# The revision of csrc/host/synthped.h that this file was written for.
REVISION = 1


@lru_cache(maxsize=4)
def _check(module: ModuleType) -> bool:
    fits = (
        getattr(module, "synthped_revision", None) == REVISION
        and module.synthped_fields == layout.NUM_FIELDS
        and module.synthped_response_fields == layout.NUM_RESPONSE
    )
    if not fits:
        console.warn(
            "motarfuse._host was built from other sources; SynthPed is drawn in numpy, slowly (run `motarfuse build`)"
        )
    return fits


def backend() -> str:
    """``host`` or ``numpy``: what `render` uses here."""
    module = _native.host()
    return "host" if module is not None and _check(module) else "numpy"


def render(
    scenes: Scenes, size: tuple[int, int], *, threads: int = 1, impl: str = "auto"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws n scenes; deterministic, the same bits from every implementation and any number of threads.

    Args:
        scenes: What to draw.
        size: Height and width in pixels.
        threads: Threads of the ``host`` implementation; the interpreter's lock is released.
        impl: ``auto``, ``host`` or ``numpy``.

    Returns:
        Images (n, height, width, 3), visible part labels and amodal part labels (n, height, width), all uint8.

    Raises:
        ValueError: For an unknown ``impl``.
        RuntimeError: When ``host`` is asked for and is not there.
    """
    if impl not in ("auto", "host", "numpy"):
        raise ValueError(f"render: impl must be auto, host or numpy, got {impl!r}")
    height, width = size
    optics = scenes.optics
    arrays = (
        scenes.primitives,
        scenes.boxes,
        optics.responses,
        optics.curves,
        optics.lattice_x,
        optics.weight_x,
        optics.lattice_y,
        optics.weight_y,
        tiles(),
    )
    if impl == "numpy" or (impl == "auto" and backend() == "numpy"):
        return raster_numpy.render(*arrays, height, width)
    module = _native.host()
    if module is None or not _check(module):
        raise RuntimeError("render: impl='host' needs motarfuse._host of this version; run `motarfuse build`")
    images, visible, amodal = module.synthped_render(*arrays, height, width, threads)
    return images, visible, amodal
