"""`sharedllm eval`: `command` runs it, `options` has its options, `tasks` an entry a benchmark, `show` what is printed."""

from sharedllm.cli.evaluate.command import evaluate

__all__ = ["evaluate"]
