"""What a run computes in."""

from __future__ import annotations

import logging

from sharedllm.hardware import choose_dtype

logger = logging.getLogger(__name__)


def training_dtype(device: str, wanted: str | None) -> str:
    """The dtype `wanted`; where none is, the one that is fast on this device, but never float16 of its own accord.

    Losses are not scaled here, so that small gradients would be zero in float16 and large ones infinite.

    Raises:
        UsageError: an unknown dtype is asked for.
    """
    chosen = choose_dtype(device, wanted).value
    return "float32" if chosen == "float16" and wanted != "float16" else chosen


def launched_dtype(launcher: str | None, main: bool) -> str | None:
    """The dtype that a launcher's mixed precision names; None where that is float16, as above.

    Args:
        main: whether to say so.
    """
    if launcher != "float16":
        return launcher
    if main:
        logger.warning(
            "the launcher's mixed precision fp16 is not used, since losses are not scaled; bf16 is, and so is the recipe's dtype."
        )
    return None


def other_dtype(before: str, now: str) -> str | None:
    """The sentence for a run that was computed in another dtype `before`; None where it is the same."""
    if before == now:
        return None
    return (
        f"the steps so far were computed in {before}, those to come are in {now}, which this machine chose; a recipe that names "
        "its dtype keeps it."
    )
