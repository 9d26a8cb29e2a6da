"""The Triton backend of motion_attention, whose backward is a kernel in CUDA C++ where sequences are short.

Keeping the gradients of a whole head on chip takes more registers than Triton's compiler finds, and its pair of kernels
computes scores twice (docs/kernels/motion_attention.md).
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from motarfuse.kernels import motion_attention as kernels
from motarfuse.ops.kernels import no_machine_code
from motarfuse.ops.validation import HALF_DTYPES

not_supported_reasons = kernels.not_supported_reasons
forward = kernels.forward

# Beyond, tiles waste little and a block a head leaves much of a GPU idle: the Triton pair.
_LONGEST = 256
_WIDTHS = (32, 64, 80, 96, 128)


def backward(grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:
    """Gradients by the kernel that fits; both have the schema of ``motarfuse::motion_attention_backward``."""
    extras = [one for one in others[1:5] if one is not None]
    if takes_cuda_backward(query, key) and all(one.dtype in (query.dtype, torch.float32) for one in extras):
        return torch.ops.motarfuse.motion_attention_backward(grad_out, query, key, *others)
    return kernels.backward(grad_out, query, key, *others)


def takes_cuda_backward(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether the CUDA kernel is there and takes a call: half types, up to 256 tokens, a head that fits on chip."""
    if not query.is_cuda or query.dtype not in HALF_DTYPES or max(query.shape[2], key.shape[2]) > _LONGEST:
        return False
    if not _is_built() or no_machine_code(query.device):
        return False
    return shared_bytes(query.shape[2], key.shape[2], query.shape[3]) <= _shared_memory(query.device)


def shared_bytes(queries: int, keys: int, width: int) -> int:
    """The least shared memory of a block of csrc/cuda/motion_attention_backward.cu: 16 keys at once."""
    padded = next(found for found in _WIDTHS if width <= found)
    rows, owners = 16 * -(-queries // 16), -(-queries // 32)
    split = max(1, min(4 // owners, -(-keys // 16))) if owners else 1
    merged = 1024 * owners * (padded // 8 + 2) if split > 1 else 0
    return (rows + 16) * (4 * padded + 80) + max(rows * 80, merged) + 8 * rows + 320


@functools.cache
def _is_built() -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("motarfuse::motion_attention_backward", "CUDA")


@functools.cache
def _shared_memory(device: torch.device) -> int:
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stub lacks the attribute
    return properties.shared_memory_per_block_optin
