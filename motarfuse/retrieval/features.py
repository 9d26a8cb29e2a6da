"""Features of people as retrieval takes them: one vector a person and, where the network has them, one a body part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# A visibility is a share; half types round it, and a mean of ones may exceed 1 in the last bits.
_VISIBILITY_SLACK = 1e-3


@dataclass(frozen=True)
class PersonFeatures:
    """Features of n images of people.

    Attributes:
        feature: (n, D).
        part_features: (n, L, D') a feature of each body part, need not be normalised; None: the network has no parts.
        part_visibility: (n, L) in [0, 1], how clearly each part is seen; given exactly where ``part_features`` is.
    """

    feature: Tensor
    part_features: Tensor | None = None
    part_visibility: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.part_features is None) != (self.part_visibility is None):
            given = "part_features" if self.part_visibility is None else "part_visibility"
            raise ValueError(f"part_features and part_visibility: got {given} alone; give both or neither")

    def __len__(self) -> int:
        return len(self.feature)

    @property
    def has_parts(self) -> bool:
        """Whether body parts can be compared."""
        return self.part_features is not None

    def require_parts(self) -> tuple[Tensor, Tensor]:
        """Part features and visibilities.

        Raises:
            ValueError: There are none.
        """
        if self.part_features is None or self.part_visibility is None:
            raise ValueError("these features came without parts")
        return self.part_features, self.part_visibility

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is there, by attribute name: how features are kept in a file."""
        named = {name: getattr(self, name) for name in ("feature", "part_features", "part_visibility")}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PersonFeatures:
        """The inverse of :attr:`tensors`; other names are left alone."""
        return cls(tensors["feature"], tensors.get("part_features"), tensors.get("part_visibility"))

    @classmethod
    def of(cls, output: Any) -> PersonFeatures:
        """What retrieval needs of a network's output; one without ``part_features``, or with L = 0, has no parts."""
        parts, visibility = (getattr(output, name, None) for name in ("part_features", "part_visibility"))
        if parts is not None and 0 in parts.shape[1:]:
            parts = visibility = None
        return cls(output.feature, parts, visibility)

    def select(self, rows: Tensor | slice) -> PersonFeatures:
        """Features of some of the images."""
        return PersonFeatures.from_tensors({name: tensor[rows] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str) -> PersonFeatures:
        """The same on a device."""
        return PersonFeatures.from_tensors({name: tensor.to(device) for name, tensor in self.tensors.items()})

    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.tensors.values())


def as_people(features: Any, name: str) -> PersonFeatures:
    """Validates types and shapes of features; values are not looked at.

    Args:
        features: ``PersonFeatures``, or a tensor or array of shape (n, d), n and d at least 1; fp16, bf16, fp32 or
            fp64.
        name: What to call them in an error.

    Raises:
        TypeError: Neither of these, another dtype, or parts of another dtype than the feature.
        ValueError: Another rank, empty, parts of other people or on another device.
    """
    if not isinstance(features, PersonFeatures):
        return PersonFeatures(as_floats(features, name, 2))
    if features.part_features is None:
        return PersonFeatures(as_floats(features.feature, f"{name}.feature", 2))
    feature = as_floats(features.feature, f"{name}.feature", 2)
    parts = as_floats(features.part_features, f"{name}.part_features", 3)
    visibility = as_floats(features.part_visibility, f"{name}.part_visibility", 2)
    if parts.shape[0] != feature.shape[0]:
        raise ValueError(
            f"{name}.part_features: got shape {tuple(parts.shape)} for {feature.shape[0]} rows of features"
        )
    if visibility.shape != parts.shape[:2]:
        raise ValueError(
            f"{name}.part_visibility: got shape {tuple(visibility.shape)}, {tuple(parts.shape[:2])} is needed: "
            "one value a part"
        )
    for title, tensor in (("part_features", parts), ("part_visibility", visibility)):
        if tensor.dtype != feature.dtype:
            raise TypeError(f"{name}.{title}: got {tensor.dtype}, the feature is {feature.dtype}; convert one of them")
        if tensor.device != feature.device:
            raise ValueError(f"{name}.{title}: got device {tensor.device}, the feature is on {feature.device}")
    return PersonFeatures(feature, parts, visibility)


def as_floats(features: Any, name: str, rank: int) -> Tensor:
    """Validates: a tensor of floating-point values of this rank, none of its sides 0."""
    if isinstance(features, np.ndarray):
        if features.dtype.kind != "f" or features.dtype.itemsize > 8:
            raise TypeError(f"{name}: got an array of {features.dtype}, supported are float16, float32 and float64")
        if not features.dtype.isnative:
            raise TypeError(f"{name}: got an array of {features.dtype} in foreign byte order; convert it")
        # A read-only or negatively strided array cannot be shared with a tensor.
        shareable = features.flags.writeable and all(stride >= 0 for stride in features.strides)
        features = torch.from_numpy(features if shareable else features.copy())
    if not isinstance(features, Tensor):
        raise TypeError(f"{name}: got {type(features).__name__}, supported are torch tensors and numpy arrays")
    if features.layout != torch.strided:
        raise TypeError(f"{name}: got a tensor of layout {features.layout}, supported are dense tensors")
    if features.dtype not in FLOAT_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
        raise TypeError(f"{name}: got {str(features.dtype).removeprefix('torch.')}, supported are {names}")
    if features.dim() != rank:
        wanted = {2: "(n, d), one row an image", 3: "(n, parts, d), one row a part of each image"}[rank]
        raise ValueError(f"{name}: got shape {tuple(features.shape)}, supported is {wanted}")
    if 0 in features.shape:
        raise ValueError(
            f"{name}: got shape {tuple(features.shape)}, which is empty; at least one row and column is needed"
        )
    return features.detach()


def check_finite(features: Tensor, name: str) -> None:
    """Raises ``ValueError`` with the rows that hold NaN or infinite values."""
    if all(bool(torch.isfinite(end)) for end in torch.aminmax(features)):  # one pass; NaN goes through it
        return
    bad = (~torch.isfinite(features)).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{name}: {len(bad)} of {features.shape[0]} rows hold NaN or infinite values ({_rows(bad)}); "
            "such features cannot be ranked: leave these rows out, or find out why the model produced them"
        )


def check_visibility(
    visibility: Tensor, name: str, meaning: str = "a visibility is the share to which a part is seen"
) -> None:
    """Raises ``ValueError`` with the rows whose visibilities are not in [0, 1]; NaN is not."""
    inside = (visibility >= 0) & (visibility <= 1 + _VISIBILITY_SLACK)
    bad = (~inside).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{name}: {len(bad)} of {len(visibility)} rows hold values outside [0, 1] ({_rows(bad)}); {meaning}"
        )


def _rows(rows: list[int]) -> str:
    """The first of these rows, for an error."""
    return "row " + ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
