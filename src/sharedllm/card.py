"""The model card of an adapter: what it is for, what it was trained on, its settings, and what was measured, drawn from results rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sharedllm.architectures import Parts
from sharedllm.config import SharedConfig
from sharedllm.hub import is_repository, named_for_others
from sharedllm.loading import DEFAULT_NAME

COLUMNS = ("task", "method", "length", "window", "metric", "value", "samples", "dtype", "device")


def model_card(
    name: str,
    parts: Parts,
    config: SharedConfig,
    injection: nn.Module,
    results: Sequence[Mapping[str, Any]] = (),
    license: str | None = None,
    about: Mapping[str, Any] | None = None,
    repository: str | None = None,
) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads.

    Args:
        name: of the model that the adapter was trained for.
        results: rows as `sharedllm eval` writes them, all of them of this adapter.
        license: an identifier such as `apache-2.0`; None leaves it unsaid.
        about: what training wrote into the adapter; of it the sources it was trained on.
        repository: `user/name`, where others find it; None: it is not known yet.
    """
    shown, place = Path(name).name or parts.model_type, repository or "user/name"
    model = "" if name == DEFAULT_NAME else f"{named_for_others(name) or shown!r}, "
    weights = sum(parameter.numel() for parameter in injection.parameters())
    first, last = config.skipped_layers, config.injected_layers - 1
    layers = f"layers {first} to {last}" if first else f"the {config.injected_layers} lowest"
    settings = "\n".join(f"| `{setting}` | {value} |" for setting, value in config.to_dict().items())
    return f"""---
{_front_matter(name, license)}---

# A SharedLLM adapter for {shown}

Trained cross-attention branches in {layers} of the model's {len(parts.layers)} layers
({weights:,} weights): the model reads texts longer than its {parts.window:,} positions through them. The model itself is
not changed and not part of these files.

```python
from sharedllm import SharedLLM

llm = SharedLLM.from_pretrained({model}adapter="{place}")  # this repository, or its folder
print(llm.ask(llm.read(text), "Who ...?"))
```

**For** texts longer than those positions, of the kinds it was trained on: going on with them, and answering questions about them.

**Not for** other models, whose weights are others, and not for being trusted without a look at the text: most of that is kept
compressed, so that wording, figures and counts may come out wrong, the more so in kinds of text and languages it was not trained on.
{_sources(about or {})}
## Measured

{_table(results)}

## Settings

| setting | value |
| --- | --- |
{settings}

Method: "Stacked from One: Multi-Scale Self-Injection for Context Window Extension", arXiv 2603.04759.
"""


def _front_matter(name: str, license: str | None) -> str:
    import yaml

    about: dict[str, Any] = {"library_name": "sharedllm", "tags": ["sharedllm", "adapter", "long-context"]}
    if is_repository(name):
        about["base_model"] = name
    if license is not None:
        about["license"] = license
    return yaml.safe_dump(about, sort_keys=False)


def _sources(about: Mapping[str, Any]) -> str:
    """What the adapter was trained on, with licences; nothing where training did not note it, as of earlier releases."""
    sources = about.get("sources")
    if not sources:
        return ""
    lines = [f"| {name} | {s['version']} | {s['licence']} | {s['tokens']:,} |" for name, s in sources.items()]
    head = ["## Trained on", "", "| source | version | licence | tokens |", "| --- | --- | --- | --- |"]
    return "\n".join(["", *head, *lines, ""])


def _table(results: Sequence[Mapping[str, Any]]) -> str:
    """One line a row that was measured, with the interval where the row has one."""
    rows = [row for row in results if row.get("value") is not None]
    if not rows:
        return "Nothing was measured yet."
    lines = [" | ".join(_cell(row, column) for column in COLUMNS) for row in rows]
    return "\n".join(f"| {line} |" for line in (" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS), *lines))


def _cell(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column, "")
    if column != "value":
        return f"{value:,}" if isinstance(value, int) else str(value)
    interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if "low" in row and "high" in row else ""
    return f"{value:.3f}{interval}" if isinstance(value, int | float) else str(value)
