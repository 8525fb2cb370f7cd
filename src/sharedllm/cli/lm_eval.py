"""`sharedllm lm-eval`: lm-evaluation-harness, with `sharedllm` among its models."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import typer

CONTEXT = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness with --model sharedllm available; all arguments are those of lm_eval."""
    if find_spec("lm_eval") is None:
        from sharedllm.errors import UsageError, to_install

        raise UsageError(f"lm-evaluation-harness is not installed; {to_install('lm-eval')}.")
    from lm_eval.__main__ import cli_evaluate

    import sharedllm.evaluate.lm_eval  # noqa: F401  the harness knows only models whose module was imported

    sys.argv = ["lm_eval", *context.args]  # the harness reads its arguments from here
    cli_evaluate()
