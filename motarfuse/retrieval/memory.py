"""How much memory there is, for blocks that are as large as helps and no larger than fits."""

from __future__ import annotations

import os

import torch

_UNKNOWN = 2 << 30


def available_bytes(device: torch.device) -> int:
    """Bytes that are free on a device now; 2 GiB where nobody knows."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        # What PyTorch's allocator holds and nobody uses is free to us as well.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - not a file on a disk
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return min(int(line.split()[1]) << 10, _allowed_bytes())
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN


def _allowed_bytes() -> int:
    """What a control group still lets this process have (a container's limit); huge without one."""
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit:  # noqa: PTH123
            most = int(limit.read())
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as used:  # noqa: PTH123
            return max(0, most - int(used.read()))
    except (OSError, ValueError):  # no control group, or "max"
        return 1 << 62
