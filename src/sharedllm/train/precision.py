"""What a run computes in."""

from __future__ import annotations

from sharedllm.hardware import choose_dtype


def training_dtype(device: str, wanted: str | None) -> str:
    """The dtype `wanted`; where none is, the one that is fast on this device, but never float16 of its own accord.

    Losses are not scaled here, so that small gradients would be zero in float16 and large ones infinite.

    Raises:
        UsageError: an unknown dtype is asked for.
    """
    chosen = choose_dtype(device, wanted).value
    return "float32" if chosen == "float16" and wanted != "float16" else chosen
