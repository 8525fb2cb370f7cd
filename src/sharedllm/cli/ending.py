"""How a command ends whose user has had enough: typer would say nothing of an interrupt, and call a closed pipe a failure."""

from __future__ import annotations

import sys
from typing import Any

from typer.core import TyperCommand, TyperGroup

from sharedllm.cli import common

CLOSED = 141
"""Exit code where what a command tells was closed before its work was done: a shell's for whom SIGPIPE ended."""


class _Ending:
    """Ends by 130 and a word where it is interrupted; where whoever read its output has closed that, as `head` does, by 0 if
    the work was done, else by `CLOSED`."""

    def invoke(self, ctx: Any) -> Any:
        common.finished(False)
        try:
            outcome = super().invoke(ctx)  # type: ignore[misc]
            common.finished()
            print(end="", flush=True)  # not `sys.stdout.flush`: there may be no stdout at all
        except KeyboardInterrupt:
            common.say("sharedllm: interrupted.")
            sys.exit(130)
        except BrokenPipeError:
            common.let_go(sys.stdout, sys.stderr)
            sys.exit(0 if common.is_finished() else CLOSED)
        return outcome


class Group(_Ending, TyperGroup):
    """The command line with all its commands."""


class Command(_Ending, TyperCommand):
    """A command of a program of its own."""
