"""Options of dataset loaders that come as text or from a caller: checked by the types that the loader states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from motarfuse.errors import DataError

_NAMES = {bool: "true or false", int: "a whole number", str: "text", Path: "a path"}


def check_option_types(kind: str, load: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Checks values against a loader's annotations.

    Args:
        kind: Its name, for the error.
        load: The loader, whose keyword arguments are annotated with bool, int, str, Path or unions of these and None.
        options: Values by name; names that the loader does not have are left to the caller.

    Raises:
        DataError: A value of another type; a truth value is no number.
    """
    hints = get_type_hints(load)
    for name, value in options.items():
        if name not in hints:
            continue
        supported = [one for one in get_args(hints[name]) or (hints[name],) if one is not NoneType]
        if not all(one in _NAMES for one in supported):  # choices, which the loader itself names
            continue
        if not any(type(value) is one or (one is not int and isinstance(value, one)) for one in supported):
            wanted = " or ".join(_NAMES[one] for one in supported)
            raise DataError(f"{kind}:{name}={value!r} is no value of this option; give {wanted}")
