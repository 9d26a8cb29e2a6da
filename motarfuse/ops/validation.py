"""Checks of an operator's arguments: each error names the argument, what was got and what is supported.

Plain Python on shapes and dtypes, so that ``torch.compile`` and ``torch.export`` turn it into guards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

HALF_DTYPES = (torch.float16, torch.bfloat16)
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_tensor(name: str, value: Any, dtypes: Sequence[torch.dtype] = FLOAT_DTYPES) -> None:
    """Raises TypeError unless ``value`` is a dense tensor of one of ``dtypes``."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}; call {name}.to_dense() first")
    if value.dtype not in dtypes:
        supported = ", ".join(dtype_name(dtype) for dtype in dtypes)
        raise TypeError(f"{name} has dtype {dtype_name(value.dtype)}; supported: {supported}")


def check_rank(name: str, tensor: torch.Tensor, layout: str) -> None:
    """Raises ValueError unless ``tensor`` has as many dimensions as ``layout`` names, e.g. ``"(B, K, N)"``."""
    rank = layout.count(",") + (not layout.endswith(",)"))
    if tensor.dim() != rank:
        raise ValueError(f"{name} must be {layout}, {rank} dimensions; got {tensor.dim()}, shape {tuple(tensor.shape)}")


def check_shape(name: str, tensor: torch.Tensor, layout: str, shape: Sequence[int], given_by: str) -> None:
    """Raises ValueError unless ``tensor`` has exactly ``shape``, which the argument ``given_by`` implies."""
    if tensor.shape == shape:  # all that most calls need
        return
    check_rank(name, tensor, layout)
    for got, wanted in zip(tensor.shape, shape, strict=True):
        if got != wanted:
            raise ValueError(
                f"{name} must be {layout} = {tuple(shape)} to fit {given_by}; got shape {tuple(tensor.shape)}"
            )


def check_precisions(tensors: Mapping[str, torch.Tensor | None]) -> None:
    """Raises TypeError where float64 stands beside another dtype; half types and float32 may be mixed."""
    given, doubles = {}, 0
    for name, tensor in tensors.items():
        if tensor is not None:
            given[name] = tensor
            doubles += tensor.dtype == torch.float64
    if 0 < doubles < len(given):
        listed = ", ".join(f"{name} {dtype_name(tensor.dtype)}" for name, tensor in given.items())
        raise TypeError(f"float64 cannot be mixed with other dtypes; got {listed}")


def check_same_dtype(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises TypeError unless all tensors have the first one's dtype."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.dtype != first.dtype:
            raise TypeError(
                f"{name} has dtype {dtype_name(tensor.dtype)} beside {first_name} of {dtype_name(first.dtype)}; "
                "supported: the same dtype"
            )


def check_labels(name: str, labels: Any, batch: int, given_by: str) -> None:
    """Raises unless ``labels`` is a (B,) tensor of integers; their values are not looked at, which would wait."""
    check_tensor(name, labels, INTEGER_DTYPES)
    check_shape(name, labels, "(B,)", (batch,), given_by)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_same_device(tensors: Mapping[str, torch.Tensor | None]) -> None:
    """Raises ValueError unless all given tensors lie on the first one's device."""
    first_name, first = "", None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first_name, first = name, tensor
        elif tensor.device != first.device:
            raise ValueError(
                f"{name} is on {tensor.device} but {first_name} is on {first.device}; move them to one device"
            )


def check_grid(grid: Any, cells: int, given_by: str) -> tuple[int, int]:
    """The grid as (h, w); raises unless it is two positive integers whose product is ``cells``.

    Raises:
        TypeError: Not a pair of integers.
        ValueError: Not positive, or h*w is not the number of cells that ``given_by`` has.
    """
    pair = tuple(grid) if isinstance(grid, (tuple, list)) else ()
    if len(pair) != 2 or not all(_is_integer(size) for size in pair):
        raise TypeError(f"grid must be a pair of integers (h, w), got {grid!r}")
    height, width = pair
    if height < 1 or width < 1:
        raise ValueError(f"grid must be positive, got ({height}, {width})")
    if height * width != cells:
        raise ValueError(
            f"grid ({height}, {width}) has {height * width} cells, but {given_by} has {cells}; N must be h*w"
        )
    return height, width


def check_positive(name: str, value: Any) -> Any:
    """The number as given (a symbolic one stays symbolic); raises unless it is a finite number above zero.

    Raises:
        TypeError: Not a Python number (a tensor would have to be read back from its device).
        ValueError: Zero, negative, infinite or NaN.
    """
    _check_is_number(name, value)
    # A comparison with NaN is false, and so it is refused here too.
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be finite and greater than 0, got {value}")
    return value


def check_number(name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` is a Python number, ValueError unless it is finite."""
    _check_is_number(name, value)
    if not float("-inf") < value < float("inf"):
        raise ValueError(f"{name} must be finite, got {value}")


def check_tokens(name: str, tensor: Any) -> None:
    """Raises unless ``tensor`` is a floating tensor of at least two dimensions, the last of them channels."""
    check_tensor(name, tensor)
    if tensor.dim() < 2 or tensor.shape[-1] < 1:
        raise ValueError(f"{name} must be (B, ..., C) with at least one channel, got shape {tuple(tensor.shape)}")


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def _check_is_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name} must be a Python number, got {type(value).__name__}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
