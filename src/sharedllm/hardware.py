"""What this machine has, and what follows: device, dtype, threads, batch of chunks.

Decided at run time from the processor's own flags, never at import; every choice carries its reason
for `sharedllm doctor`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from sharedllm.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Choice:
    """A value and the reason for it in a few words."""

    value: str
    reason: str


def choose_device(wanted: str | None = None) -> Choice:
    """`wanted` when this machine has it, else the GPU if there is one, else the CPU.

    Raises:
        UsageError: the device named is not here.
    """
    if wanted is None or wanted == "auto":
        if torch.cuda.is_available():
            return Choice("cuda", f"GPU found: {torch.cuda.get_device_name()}")
        if torch.backends.mps.is_available():
            return Choice("mps", "Apple GPU found")
        return Choice("cpu", "no GPU found")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device).item()  # the meta device fails here: it holds no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"device {wanted!r} is not available here; use cpu, or cuda on a machine with a GPU."
        ) from error
    return Choice(str(device), "asked for")


def choose_dtype(device: str, wanted: str | None = None) -> Choice:
    """The dtype that is fast on this device without loss of range.

    bfloat16 on a CPU only where it has instructions for it (AMX or AVX512-BF16, ARM bf16): elsewhere
    it is emulated and many times slower than float32.

    Raises:
        UsageError: an unknown dtype is asked for.
    """
    if wanted is not None and wanted != "auto":
        if wanted not in DTYPES:
            raise UsageError(f"dtype {wanted!r} is not known; use one of auto, {', '.join(DTYPES)}.")
        return Choice(wanted, "asked for")
    if device.startswith("cuda"):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bfloat16", "the GPU computes bfloat16")
        return Choice("float16", "the GPU has no bfloat16")
    if device.startswith("cpu"):
        flags = cpu_flags()
        for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16"), ("bf16", "ARM bf16")):
            if flag in flags:
                return Choice("bfloat16", f"the CPU has {name} instructions")
        return Choice("float32", "the CPU has no bfloat16 instructions, so it would be emulated")
    return Choice("float32", f"safe on {device}")


def cpu_flags() -> set[str]:
    """Instruction-set flags of the first processor; empty where the system does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.split(":")[0].strip() in ("flags", "Features"):
                return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def choose_threads() -> Choice:
    """Threads for computing: what `OMP_NUM_THREADS` says, as launchers and clusters set it; else the processors this process
    may use."""
    named = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # a list has one a nesting level
    if named.isdigit() and int(named):
        return Choice(named, "OMP_NUM_THREADS says so")
    where = "this process may use" if hasattr(os, "sched_getaffinity") else "of this machine"
    return Choice(str(processors()), f"processors {where}")


def processors() -> int:
    """Processors that this process may use; those of the machine, on systems that do not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunk_batch(device: torch.device, bytes_a_chunk: int) -> int:
    """How many chunks to read side by side.

    On a CPU one chunk fills the cores already, and more only spill the caches. On a GPU as many as a
    quarter of the free memory holds, at most 64.
    """
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(64, free // 4 // max(1, bytes_a_chunk)))


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory use so far: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def memory_bytes() -> int:
    """Memory of this machine, or what its control group allows, in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def free_memory_bytes(device: torch.device) -> int:
    """Memory that can still be taken: of the GPU, or of this machine inside its control group, in bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    total = memory_bytes()
    available = _numbers_in("/proc/meminfo").get("MemAvailable:", total // 1024) * 1024
    return min(available, total - _numbers_in("/sys/fs/cgroup/memory.stat").get("anon", 0))


def _numbers_in(file: str) -> dict[str, int]:
    """The first number of every line by the line's first word; nothing where there is no such file."""
    try:
        lines = Path(file).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines)
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}


def processor_name(device: torch.device) -> str:
    """The name of what computes on a device: times are compared on the same one only."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next tensor instead of returning it to the system.

    Where the system hands pages out slowly (virtual machines), this makes a forward pass 15 to 25 %
    faster. For a program that owns its process (the command line); nothing happens without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # from malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 * 2**20)


def share_memory_between_threads() -> None:
    """Have glibc serve all threads from one arena, so that `trim` can return what any of them had.

    Else it makes one for each of many threads, and of all but the main one it never returns what is free at the end. For a
    program of many threads that owns its process, before they start; nothing happens without glibc.
    """
    arena_max = -8  # from malloc.h
    try:
        ctypes.CDLL(None).mallopt(arena_max, 1)
    except (OSError, AttributeError, TypeError):
        return


def return_freed_memory() -> None:
    """Have glibc return freed memory to the system after all, where less than a third of the machine's is left.

    What is kept lies in pieces that not every tensor fits, so that it grows with each new mix of sizes.
    """
    if free_memory_bytes(torch.device("cpu")) <= memory_bytes() / 3:
        trim()


def room_bytes(device: torch.device, wanted: int) -> int:
    """Free memory as `free_memory_bytes` says; where that is less than `wanted`, what this process had freed and kept is
    returned to the system first."""
    free = free_memory_bytes(device)
    if free >= wanted or device.type == "cuda":
        return free
    trim()
    return free_memory_bytes(device)


def finished(device: torch.device) -> None:
    """Wait for what a device was given to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def trim() -> None:
    """Return freed memory that the C library kept to the system, where it can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return
