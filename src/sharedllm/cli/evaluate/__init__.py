"""`sharedllm eval`: `command` has the options, `tasks` what each benchmark makes of them, `show` what is printed."""

from sharedllm.cli.evaluate.command import evaluate

__all__ = ["evaluate"]
