"""The examples of the documents: blocks of Python, and commands parsed by the command line's own parser and the launcher's."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS = [
    page for page in (ROOT / "docs").rglob("*.md") if page.name != "LOG.md" and page.parent != ROOT / "docs" / "results"
]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS])
LAUNCHER = r"(?:accelerate launch|python -m accelerate\.commands\.launch) (.*)"
SLURM = r"sbatch examples/train\.slurm (.*)"
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
    return _arguments(block, r"(?:ExecStart=)?(?:\S*/)?sharedllm (.*)")


def launches(block: Block) -> list[list[str]]:
    """The arguments of each `accelerate launch` in a block of shell lines, and what they would be for each job of SLURM."""
    jobs = [["-m", "sharedllm.train", *arguments] for arguments in _arguments(block, SLURM)]
    return _arguments(block, LAUNCHER) + jobs


def _arguments(block: Block, command: str) -> list[list[str]]:
    if block.language in ("python", "yaml", "json", "dockerfile", "text"):
        return []
    lines = block.code.replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|(?!\|)", line)]
    found = [re.match(command, part) for part in parts]
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
    if context.info_name == "train" and not context.params["recipe"].endswith(".yaml"):  # else the reader's own file
        from sharedllm.train.recipe import read_recipe

        read_recipe(context.params["recipe"], context.params["overrides"] or [])


def parse_launch(arguments: list[str]) -> None:
    """Parse a launch as accelerate would, and what it starts as that module would; raises what their parsers raise."""
    from accelerate.commands.config import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    launcher = launch_command_parser()
    launcher.exit_on_error = False
    try:
        launch = launcher.parse_args(arguments)
    except SystemExit as error:
        raise ValueError(f"accelerate launch does not take {arguments}") from error
    if launch.config_file is not None:
        load_config_from_file(str(ROOT / launch.config_file))
    if not launch.module:
        raise ValueError("what is launched is no module; put -m before it")
    name, rest = launch.training_script, launch.training_script_args
    if name == "sharedllm.train":
        parse(["train", *rest])
    elif name == "sharedllm.reading":
        parse_reading(rest)
    elif not (ROOT / f"{name.replace('.', '/')}.py").is_file():
        raise ValueError(f"there is no module {name}")


def parse_reading(arguments: list[str]) -> None:
    """Parse the arguments of `sharedllm.reading`."""
    import typer
    import typer.main

    from sharedllm.reading import read

    app = typer.Typer()
    app.command()(read)
    command: Any = typer.main.get_command(app)
    command.make_context("reading", list(arguments))
