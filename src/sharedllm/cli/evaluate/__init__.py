"""`sharedllm eval`: `command` runs it, `options` has its options, `request` what was asked for, `tasks` an entry a
benchmark, `jobs` what each has to do, `show` what is printed."""

from sharedllm.cli.evaluate.command import evaluate

__all__ = ["evaluate"]
