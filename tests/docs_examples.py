"""The examples of the documents: blocks of Python, and `sharedllm` commands parsed by the command line's own parser."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(p for p in ROOT.glob("docs/*.md") if p.name != "LOG.md")]
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, its language ("" for none), its code, the line it starts in."""

    page: str
    language: str
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page.name,
            found[2],
            re.sub(rf"^{found[1]}", "", found[3], flags=re.MULTILINE),
            text[: found.start()].count("\n") + 1,
        )
        for found in FENCE.finditer(text)
    ]


def commands(block: Block) -> list[list[str]]:
    """The arguments of each `sharedllm` command in a block of shell lines (or of a systemd unit)."""
    if block.language in ("python", "yaml", "json", "dockerfile", "text"):
        return []
    lines = block.code.replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|(?!\|)", line)]
    found = [re.match(r"(?:ExecStart=)?(?:\S*/)?sharedllm (.*)", part) for part in parts]
    return [shlex.split(match[1], comments=True) for match in found if match]


def parse(arguments: list[str]) -> None:
    """Parse a command as the command line would, and run nothing; raises what its parser raises."""
    import typer.main

    from sharedllm.cli import app

    command: Any = typer.main.get_command(app)
    context = command.make_context("sharedllm", list(arguments))
    rest = list(arguments)
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, list(rest), parent=context)
    if context.info_name == "train":
        from sharedllm.train.recipe import read_recipe

        read_recipe(context.params["recipe"], context.params["overrides"] or [])
