"""The loops of `motarfuse.data.transforms` and `motarfuse.data.images` in ``motarfuse._host``, where it is built.

Everything here gives the same bits as the torch and Pillow code that it stands in for, which stays the definition: one
pass over memory an image, outside the interpreter's lock, on as many threads as torch has, which end with the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from motarfuse import _native, console
from motarfuse.data.augment import Augmentation, Rectangles

# The revisions of csrc/host/augment.h and resize.h that this file was written for, and the numbers in a row of
# parameters.
REVISION = 1
RESIZE_REVISION = 1
FIELDS = 38

# The torch code adds a row of bytes in float32, which is exact below 2^24.
_WIDEST = (1 << 24) // 255


@lru_cache(maxsize=4)
def _check(module: ModuleType) -> bool:
    fits = (
        getattr(module, "augment_revision", None) == REVISION
        and module.augment_fields == FIELDS
        and getattr(module, "resize_revision", None) == RESIZE_REVISION
    )
    if not fits:
        console.warn(
            "motarfuse._host was built from other sources; images are resized and varied slowly (run `motarfuse build`)"
        )
    return fits


def module() -> ModuleType | None:
    """``motarfuse._host``, or None where it is not built or was built from other sources."""
    found = _native.host()
    return found if found is not None and _check(found) else None


def takes(images: Tensor) -> bool:
    """Whether uint8 images (n, 3, height, width) are varied and normalised here."""
    return images.device.type == "cpu" and images.numel() > 0 and images.shape[-1] <= _WIDEST and module() is not None


def normalize(images: Tensor, scale: Sequence[float], shift: Sequence[float]) -> Tensor:
    """``images scale + shift``, each product and sum rounded to float32.

    Args:
        images: uint8 (n, 3, H, W) for which `takes` is true.
        scale: Of each channel.
        shift: Of each channel.

    Returns:
        float32 of the same shape.
    """
    host = _required()
    out = torch.empty(images.shape, dtype=torch.float32)
    host.augment_normalize(
        images.contiguous().numpy(), _floats(scale), _floats(shift), out.numpy(), torch.get_num_threads()
    )
    return out


def vary(
    images: Tensor,
    chosen: Augmentation,
    turned: Tensor,
    noise: Tensor | None,
    scale: Sequence[float],
    shift: Sequence[float],
) -> Tensor:
    """All random changes, and normalisation as `normalize`.

    Args:
        images: uint8 (n, 3, H, W) for which `takes` is true; consecutive frames share parameters.
        chosen: The parameters of each clip.
        turned: uint8 (m, 3, H, W), what flip, shift and rotation make of the frames with ``chosen.affine``, in order.
        noise: float32 (3, H, W) that fills erased pixels; None: 0.
        scale: Of each channel.
        shift: Of each channel.

    Returns:
        float32 (n, 3, H, W).
    """
    host = _required()
    out = torch.empty(images.shape, dtype=torch.float32)
    host.augment_vary(
        images.contiguous().numpy(),
        _parameters(chosen),
        turned.contiguous().numpy(),
        None if noise is None else noise.numpy(),
        _floats(scale),
        _floats(shift),
        out.numpy(),
        torch.get_num_threads(),
    )
    return out


def _parameters(chosen: Augmentation) -> np.ndarray:
    """float64 (clips, fields): the rows of csrc/host/augment.h."""
    turned = torch.where(chosen.affine, chosen.affine.cumsum(0) - 1, -1)
    scalars = (chosen.flip, chosen.shift_y, chosen.shift_x, turned, *_sides(chosen.occluder))
    columns: list[Tensor] = [
        *(one.double()[:, None] for one in (*scalars, chosen.occluder_from_batch, chosen.donor)),
        chosen.donor_place,
        chosen.texture,
        chosen.color.double()[:, None],
        chosen.color_matrix.flatten(1),
        *(one.double()[:, None] for one in (chosen.color_offset, *_sides(chosen.erasing))),
        chosen.noise_place,
    ]
    return torch.cat(columns, 1).numpy()


def _sides(box: Rectangles) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return box.top, box.left, box.height, box.width


def _floats(values: Sequence[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def _required() -> ModuleType:
    host = module()
    assert host is not None, "takes() is to be asked first"
    return host
