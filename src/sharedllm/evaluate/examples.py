"""What a benchmark of given files consists of: tasks with a prompt and limits, examples with a text and right answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, TypeVar

import yaml

from sharedllm.config import check_keys

CONTEXT = "{context}"
Item = TypeVar("Item")


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """So many of some items, or all where they are fewer, from the whole of their order."""
    count = min(most, len(items))
    return [items[len(items) * (2 * k + 1) // (2 * count)] for k in range(count)]


@dataclass(frozen=True)
class Task:
    """How a benchmark puts one of its data sets to a model; read from its `prompts.yaml`."""

    name: str
    prompt: str
    """The wording, with `{context}` for the long text and other names in braces for what else varies."""
    max_new_tokens: int
    metric: str
    chat: bool
    """Whether the model's chat template goes around the prompt."""
    first_line: bool = False
    """Whether only the answer's first line is scored."""
    stop: str = ""
    """What ends an answer besides the model's own end."""
    category: str = ""
    """The kind of tasks in whose mean it counts."""
    languages: tuple[str, ...] = ()
    e: bool = False
    """Whether it is in LongBench-E too."""
    needs: tuple[str, ...] = ()
    """Packages that its score alone needs."""

    def frame(self, values: Mapping[str, str]) -> tuple[str, str]:
        """What stands before and after the text, with `values` put in; a value's own braces stay as they are."""
        before, after = self.prompt.split(CONTEXT)
        return fill(before, values), fill(after, values)


@dataclass(frozen=True)
class Example:
    """A text, what is asked of it, and what an answer is worth."""

    id: str
    before: str
    context: str
    after: str
    asks: str
    """The part of `before` or `after` to search the text with."""
    score: Callable[[str], float]
    """Of an answer as generated: 0 to 1."""
    expected: tuple[str, ...]
    """The right answers, for the results row."""
    traces: tuple[str, ...]
    """Texts of which one, if it stands in the context, tells that the answer can be found there."""
    groups: tuple[str, ...] = ()
    """Parts of the data set that are also scored on their own, such as a range of lengths."""


@dataclass(frozen=True)
class Dataset:
    """A data set: its task, its examples or some of them, and of how many."""

    task: Task
    examples: list[Example]
    of: int = 0
    """How many there are where these are some; 0: these."""

    def spread(self, samples: int) -> Dataset:
        """At most `samples` of the examples, evenly spread over all of them, in their order."""
        return replace(self, examples=evenly(self.examples, samples), of=self.of or len(self.examples))


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put `values` in place of their names in braces, all at once."""
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)


def read_tasks(package: str) -> dict[str, Task]:
    """The tasks in a package's `prompts.yaml`, by name."""
    loaded: dict[str, dict[str, Any]] = yaml.safe_load((files(package) / "prompts.yaml").read_text(encoding="utf-8"))
    tasks = {}
    for name, settings in loaded.items():
        check_keys(settings, Task.__dataclass_fields__, f"prompts.yaml of {package}, task {name}")
        tuples = {field: tuple(settings.get(field, ())) for field in ("languages", "needs")}
        tasks[name] = Task(name, **{**settings, **tuples})
    return tasks
