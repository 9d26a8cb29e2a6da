"""What ``motarfuse.retrieval`` ranks with: exact scores, entries before a threshold, and the best k.

The definitions are in ``motarfuse.reference.ranking``. ``_C`` has all four for the CPU, and for CUDA those that plain
PyTorch is slow at; every implementation gives the same bits. None has gradients. Arguments are taken as they are:
``motarfuse.retrieval`` validates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from motarfuse.ops.backends import Backend, Operator, Request, supports_everything
from motarfuse.ops.kernels import NAMESPACE, native_unavailable, no_machine_code
from motarfuse.reference import ranking as reference
from motarfuse.reference.ranking import rounded_sqrt as rounded_sqrt  # by its own name, for the rooms above

_FORM = "str form, int[] widths, float weight, float epsilon"
_TILE = "Tensor(a!) scores, Tensor slack, Tensor query, Tensor gallery, int first"
_LEFT_OUT = "Tensor left_out_starts, Tensor left_out"
SCHEMAS = {
    "unit_rows": "(Tensor features) -> (Tensor, Tensor)",
    "pair_scores": f"(Tensor query, Tensor gallery, Tensor rows, Tensor columns, {_FORM}) -> Tensor",
    "count_before": (
        f"({_TILE}, Tensor starts, Tensor thresholds, Tensor entries, {_LEFT_OUT}, {_FORM}, Tensor(b!) counts) -> ()"
    ),
    "collect_top": (
        f"({_TILE}, {_LEFT_OUT}, {_FORM}, bool largest, Tensor? query_camids, Tensor? gallery_camids, int camera_rule, "
        "Tensor? query_pids, Tensor? gallery_pids, int pid_rule, Tensor? query_times, Tensor? gallery_times, "
        "float earliest, float latest, Tensor(b!) values, Tensor(c!) indices, Tensor(d!) filled) -> ()"
    ),
}
NATIVE = {"cpu": tuple(SCHEMAS), "cuda": ("unit_rows", "pair_scores", "count_before")}


def _fake_unit_rows(features: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    return features.new_empty(features.shape, dtype=dtype), features.new_empty(len(features), dtype=torch.float64)


def _fake_pair_scores(query: Tensor, gallery: Tensor, rows: Tensor, *_: Any) -> Tensor:
    return query.new_empty(len(rows), dtype=torch.float64)


def _fake_nothing(*_: Any) -> None:
    return None


_FAKES = {"unit_rows": _fake_unit_rows, "pair_scores": _fake_pair_scores}
for _name, _schema in SCHEMAS.items():
    torch.library.define(f"{NAMESPACE}::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _FAKES.get(_name, _fake_nothing))


class Functions:
    """The four functions of one backend: those of ``_C`` that are named, the definitions otherwise."""

    def __init__(self, native: Sequence[str]) -> None:
        namespace = getattr(torch.ops, NAMESPACE)
        of = {
            name: getattr(namespace, name).default if name in native else getattr(reference, name) for name in SCHEMAS
        }
        self.unit_rows = of["unit_rows"]
        self.pair_scores = of["pair_scores"]
        self.count_before = of["count_before"]
        self.collect_top = of["collect_top"]


def _example(device: torch.device) -> Request:
    return Request(device, {"scores": torch.empty(1, 1, device="meta")}, {})


def _native(device_type: str) -> Backend:
    unavailable = native_unavailable(NATIVE[device_type], device_type)

    def not_supported_reasons(request: Request) -> list[str]:
        reasons = list(unavailable)
        if request.device.type != device_type:
            reasons.append(f"it takes {device_type} tensors, got {request.device.type}")
        if device_type == "cuda" and (reason := no_machine_code(request.device)):
            reasons.append(reason)
        return reasons

    functions = Functions(NATIVE[device_type])
    return Backend(device_type, lambda: functions, not_supported_reasons, auto_devices=(device_type,))


_REFERENCE = Functions(())
OPERATOR = Operator(
    "ranking",
    _example,
    backends=(_native("cuda"), _native("cpu"), Backend("reference", lambda: _REFERENCE, supports_everything)),
)


def ranking_functions(device: torch.device) -> Functions:
    """The functions that serve tensors on a device: ``use_backend`` and ``MOTARFUSE_BACKEND`` hold here too."""
    functions: Functions = OPERATOR.select(_example(device)).run()
    return functions
