"""The peak of memory since a given moment, so that what was measured before it does not count."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import torch

from sharedllm.hardware import peak_memory_bytes, trim


def reset_peak(device: torch.device) -> int:
    """Forget the peak of memory so far; returns the bytes held now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    trim()  # freed memory that is still held is nobody's
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return peak_memory_bytes(device)  # the peak stays: what is below it is not seen


def peak(device: torch.device) -> int:
    """The most bytes that were held since `reset_peak`."""
    try:
        return peak_memory_bytes(device) if device.type == "cuda" else _status("VmHWM")
    except OSError:
        return peak_memory_bytes(device)


def _status(name: str) -> int:
    """A size from Linux's account of this process, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {name}")
    return 1024 * int(found[1])
