"""The one list of networks: a name, its config class and its module class."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=type[nn.Module])

_MODELS: dict[str, tuple[type, type[nn.Module]]] = {}


def register_model(name: str, config: type) -> Callable[[M], M]:
    """Class decorator that makes a network known as ``name``.

    The class is built as ``cls(config)``. Called as ``model(images, camids=None, frame_mask=None, frame_index=None)``
    it returns an object with ``feature`` and ``embedding``; it has ``image_size``, ``feature_dim``, ``num_layers`` and
    ``layer_of(parameter_name)``.

    Args:
        name: As ``model.name`` of a config spells it.
        config: A dataclass of simple fields, each with ``metadata={"help": ...}``.

    Raises:
        ValueError: The name is taken.
    """

    def register(cls: M) -> M:
        if name in _MODELS:
            raise ValueError(f"a model named {name!r} is registered already")
        _MODELS[name] = (config, cls)
        return cls

    return register


def model_names() -> list[str]:
    """Names of all networks."""
    return sorted(_MODELS)


def config_class(name: str) -> type:
    """The config dataclass of a network.

    Raises:
        ValueError: No network has this name.
    """
    return _entry(name)[0]


def model_name_of(config: object) -> str:
    """The name of the network that a config object belongs to.

    Raises:
        TypeError: The object is no network's config.
    """
    for name, (config_type, _) in _MODELS.items():
        if type(config) is config_type:
            return name
    raise TypeError(f"{type(config).__name__} is not the config of a registered model ({', '.join(model_names())})")


def build_model(name: str, config: Any = None, **fields: Any) -> nn.Module:
    """Builds a network by name with freshly initialised weights.

    Args:
        name: One of :func:`model_names`.
        config: Its config object; None builds one from ``fields``.
        **fields: Fields of the config, when ``config`` is None.

    Raises:
        ValueError: No network has this name, or the config's values contradict each other.
        TypeError: A field that the config does not have, or both config and fields.
    """
    config_type, cls = _entry(name)
    if config is None:
        config = config_type(**fields)
    elif fields:
        raise TypeError(f"give either config or fields, got both (fields: {', '.join(sorted(fields))})")
    return cls(config)


def _entry(name: str) -> tuple[type, type[nn.Module]]:
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown model {name!r}, known are {', '.join(model_names())}{hint}")
    return _MODELS[name]
