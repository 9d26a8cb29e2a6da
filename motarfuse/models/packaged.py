"""Trained networks that come with the package: half-precision weights and a card that says what they have seen.

``weights/<name>.safetensors`` holds the parameters as fp16 and the buffers (running statistics, counters) as they are;
``weights/<name>.json`` is its card with the file's size and SHA-256. The card without these two is in the file as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from motarfuse import __version__, console
from motarfuse.errors import CheckpointError
from motarfuse.models.registry import build_model, config_class

WEIGHTS = Path(__file__).parent / "weights"
FORMAT = 1
# Of the two files together: what a package of Python code may weigh more for a network.
MAX_BYTES = 5_000_000

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_ENTRIES = {"format", "name", "model", "step", "training_data", "advice", "licence", "metrics", "file"}
_announced: set[str] = set()


def packaged_names() -> list[str]:
    """Names of the networks that come with the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def packaged_path(name: str) -> Path:
    """The weight file of a packaged network.

    Raises:
        CheckpointError: No network of this name is packaged; names those that are.
    """
    if name not in packaged_names():
        raise CheckpointError(f"no packaged network is named {name!r}; {known_packaged()}")
    return WEIGHTS / f"{name}.safetensors"


def known_packaged() -> str:
    """The packaged networks as the end of an error message."""
    return f"packaged are: {', '.join(packaged_names()) or 'none in this installation'}"


def packaged_name(path: str | Path) -> str | None:
    """The packaged network that a path means: its name where no such file or folder exists, or its weight file."""
    path = Path(path)
    if path.suffix == ".safetensors" and path.stem in packaged_names() and path.resolve().parent == WEIGHTS.resolve():
        return path.stem
    return path.name if path == Path(path.name) and not path.exists() and path.name in packaged_names() else None


def packaged_card(name: str) -> dict[str, Any]:
    """The card of a packaged network.

    Returns:
        ``name``, ``model`` (name and config), ``step``, ``training_data``, ``advice``, ``licence``, ``metrics`` by
        evaluation set, ``file`` (bytes and sha256), ``format`` and ``motarfuse`` (the version that wrote it).

    Raises:
        CheckpointError: No network of this name is packaged, or its card is absent or damaged.
    """
    path = packaged_path(name).with_suffix(".json")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        version, entries = card["format"], card.keys()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; install motarfuse again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); install motarfuse again") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}, this version reads format {FORMAT}; update motarfuse")
    if not entries >= _ENTRIES:
        raise CheckpointError(f"{path} lacks {', '.join(sorted(_ENTRIES - entries))}; install motarfuse again")
    result: dict[str, Any] = card
    return result


def packaged_tensors(name: str) -> dict[str, Tensor]:
    """The state of a packaged network by name, parameters in fp32, once the file's hash is found right.

    Raises:
        CheckpointError: No network of this name is packaged, or its files are damaged.
    """
    path, card = packaged_path(name), packaged_card(name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != card["file"].get("sha256"):
        raise CheckpointError(
            f"{path} is damaged: its {len(content)} bytes do not have the SHA-256 of its card, which was written for "
            f"{card['file'].get('bytes')} bytes; install motarfuse again"
        )
    if _header(content) != {key: value for key, value in card.items() if key != "file"}:
        raise CheckpointError(
            f"{path.with_suffix('.json')} differs from the card within {path.name}; install motarfuse again"
        )
    tensors = safetensors.torch.load(content)
    return {key: value.float() if value.dtype == torch.float16 else value for key, value in tensors.items()}


def load_packaged(name: str, *, device: str | torch.device = "cpu", announce: bool = True) -> nn.Module:
    """A packaged network in evaluation mode, its weights in fp32.

    Args:
        name: One of :func:`packaged_names`.
        device: Where to put the network.
        announce: Whether to say, once a process, what the network was trained on.

    Raises:
        CheckpointError: No network of this name is packaged, or its files are damaged or of another version.
    """
    tensors, card = packaged_tensors(name), packaged_card(name)
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in card["model"]["config"].items()}
    try:
        model = build_model(card["model"]["name"], config_class(card["model"]["name"])(**values))
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{packaged_path(name)} was written by motarfuse {card.get('motarfuse')} and does not fit this version, "
            f"{__version__} ({reason}); install one that it fits"
        ) from error
    if announce:
        announce_packaged(name)
    return model.to(device).eval()


def announce_packaged(name: str) -> None:
    """Says what a packaged network was trained on, once a process."""
    if name in _announced:
        return
    card = packaged_card(name)
    console.info(f"{name} was trained on {'; '.join(filter(None, (card['training_data'], card['advice'])))}")
    _announced.add(name)


def pack(
    model: nn.Module,
    name: str,
    *,
    model_name: str,
    model_config: Mapping[str, Any],
    step: int,
    training_data: str,
    advice: str = "",
    licence: str = "Apache-2.0",
    metrics: Mapping[str, Any] | None = None,
) -> tuple[bytes, bytes]:
    """The two files of a packaged network; equal arguments give equal bytes.

    Args:
        model: The network; its parameters are rounded to fp16, its buffers stay as they are.
        name: Lower-case letters, digits, ``-`` and ``_``.
        model_name, model_config: What :func:`motarfuse.models.build_model` needs, in plain values.
        step: Optimizer steps that it was trained for.
        training_data: What it has seen, as it follows "was trained on".
        advice: What that means for its user.
        licence: SPDX name.
        metrics: Measured values by evaluation set.

    Returns:
        The bytes of ``<name>.safetensors`` and of ``<name>.json``.

    Raises:
        CheckpointError: A bad name, parameters that fp16 cannot hold, or more than 5 MB.
    """
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"{name!r} is no name for a packaged network; use lower-case letters, digits, - and _")
    parameters = {key for key, _ in model.named_parameters(remove_duplicate=False)}
    tensors = {}
    for key, tensor in model.state_dict().items():
        half = key in parameters and tensor.is_floating_point()
        tensors[key] = tensor.detach().cpu().to(torch.float16 if half else tensor.dtype, copy=True).contiguous()
        if half and not tensors[key].isfinite().all():
            raise CheckpointError(f"{key} reaches {tensor.abs().max().item():g}; fp16 holds finite values up to 65504")
    card = {
        "format": FORMAT,
        "name": name,
        "motarfuse": __version__,
        "model": {"name": model_name, "config": dict(model_config)},
        "step": step,
        "training_data": training_data,
        "advice": advice,
        "licence": licence,
        "metrics": dict(metrics or {}),
    }
    content = safetensors.torch.save(tensors, {"motarfuse": json.dumps(card, allow_nan=False)})
    whole = {**card, "file": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    text = (json.dumps(whole, indent=2, allow_nan=False) + "\n").encode()
    size = len(content) + len(text)
    if size > MAX_BYTES:
        raise CheckpointError(
            f"{name} takes {size / 1e6:.1f} MB, at most {MAX_BYTES / 1e6:g} are supported; package a smaller network"
        )
    return content, text


def _header(content: bytes) -> Any:
    """The card within a weight file whose hash is known to be right."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["motarfuse"])
