"""What ``motarfuse.retrieval.rerank`` computes with: k-reciprocal sets, averages of sparse rows, and their overlaps.

The definitions are in ``motarfuse.reference.k_reciprocal``; ``_C`` has all of them for the CPU and for CUDA, and every
implementation gives the same bits. None has gradients. Arguments are taken as they are: ``motarfuse.retrieval``
validates. Where the size of a result is not known before, the operator is called twice: for the sizes, then to fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from motarfuse.ops.backends import Backend, Operator, Request, supports_everything
from motarfuse.ops.kernels import NAMESPACE, native_unavailable, no_machine_code
from motarfuse.reference import k_reciprocal as reference

_ROWS = "Tensor starts, Tensor columns, Tensor values"
_SHARED = "Tensor room, Tensor counts, Tensor columns, Tensor sums"
SCHEMAS = {
    "k_reciprocal_neighbors": "(Tensor neighbors, int k) -> Tensor",
    "k_reciprocal_expand": "(Tensor wide, Tensor narrow, Tensor? starts, Tensor(a!) out) -> ()",
    "k_reciprocal_normalize": "(Tensor starts, Tensor(a!) values) -> ()",
    "k_reciprocal_average": (
        f"({_ROWS}, Tensor neighbors, int k, Tensor? out_starts, Tensor(a!) out, Tensor(b!)? out_values) -> ()"
    ),
    "k_reciprocal_overlap": (
        f"({_ROWS}, Tensor queries, Tensor inverse_starts, Tensor inverse_rows, Tensor inverse_values, int gallery, "
        "Tensor room, Tensor(a!) counts, Tensor(b!) out, Tensor(c!) out_sums) -> ()"
    ),
    "k_reciprocal_kth": "(Tensor room, Tensor counts, Tensor sums, int k, Tensor(a!) out) -> ()",
    "k_reciprocal_select": (f"({_SHARED}, Tensor least, Tensor? starts, Tensor(a!) out, Tensor(b!)? out_sums) -> ()"),
    "k_reciprocal_count_earlier": (
        f"(Tensor scores, Tensor slack, int first, {_SHARED}, Tensor largest, float gain, int power, bool clamped, "
        "Tensor starts, Tensor thresholds, Tensor left_out_starts, Tensor left_out, Tensor(a!) steps, "
        "Tensor(b!) unsure) -> ()"
    ),
}


def _fake_neighbors(neighbors: Tensor, k: int) -> Tensor:
    return neighbors.new_empty((neighbors.shape[0], k))


def _fake_nothing(*_: Any) -> None:
    return None


_FAKES = {"k_reciprocal_neighbors": _fake_neighbors}
for _name, _schema in SCHEMAS.items():
    torch.library.define(f"{NAMESPACE}::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _FAKES.get(_name, _fake_nothing))


class Functions:
    """The functions of one backend: those of ``_C`` that are named, the definitions otherwise."""

    def __init__(self, native: Sequence[str]) -> None:
        namespace = getattr(torch.ops, NAMESPACE)
        of = {
            name: getattr(namespace, name).default if name in native else getattr(reference, name) for name in SCHEMAS
        }
        self.neighbors = of["k_reciprocal_neighbors"]
        self.expand = of["k_reciprocal_expand"]
        self.normalize = of["k_reciprocal_normalize"]
        self.average = of["k_reciprocal_average"]
        self.overlap = of["k_reciprocal_overlap"]
        self.kth = of["k_reciprocal_kth"]
        self.select = of["k_reciprocal_select"]
        self.count_earlier = of["k_reciprocal_count_earlier"]


def _example(device: torch.device) -> Request:
    return Request(device, {"neighbors": torch.empty(512, 21, device="meta", dtype=torch.int32)}, {})


def _native(device_type: str) -> Backend:
    unavailable = native_unavailable(list(SCHEMAS), device_type)

    def not_supported_reasons(request: Request) -> list[str]:
        reasons = list(unavailable)
        if request.device.type != device_type:
            reasons.append(f"it takes {device_type} tensors, got {request.device.type}")
        if device_type == "cuda" and (reason := no_machine_code(request.device)):
            reasons.append(reason)
        return reasons

    functions = Functions(list(SCHEMAS))
    return Backend(device_type, lambda: functions, not_supported_reasons, auto_devices=(device_type,))


_REFERENCE = Functions(())
OPERATOR = Operator(
    "k_reciprocal",
    _example,
    backends=(_native("cuda"), _native("cpu"), Backend("reference", lambda: _REFERENCE, supports_everything)),
)


def k_reciprocal_functions(device: torch.device) -> Functions:
    """The functions that serve tensors on a device: ``use_backend`` and ``MOTARFUSE_BACKEND`` hold here too."""
    functions: Functions = OPERATOR.select(_example(device)).run()
    return functions
