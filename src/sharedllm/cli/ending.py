"""How a command ends whose user has had enough: typer would say nothing of an interrupt, and call a closed pipe a failure."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

from typer.core import TyperCommand, TyperGroup


class _Ending:
    """Ends by 130 and a word where it is interrupted; by 0 where whoever read its output has closed that, as `head` does."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)  # type: ignore[misc]
        except KeyboardInterrupt:
            print("sharedllm: interrupted.", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)  # else Python fails once more as it flushes at its end
            with suppress(OSError, ValueError):
                os.dup2(nowhere, sys.stdout.fileno())
            sys.exit(0)


class Group(_Ending, TyperGroup):
    """The command line with all its commands."""


class Command(_Ending, TyperCommand):
    """A command of a program of its own."""
