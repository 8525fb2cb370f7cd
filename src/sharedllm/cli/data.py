"""`sharedllm data`: fetch and tokenise training text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharedllm.cli import common

app = typer.Typer(help="Fetch and tokenise training text.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Fetch and tokenise training text."""


@app.command("build")
def build(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped data recipe.")] = "data-text",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the tokens.")] = Path("data/text"),
    model: common.ModelOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Fetch the recipe's sources, clean, deduplicate and tokenise them into a folder."""
    from sharedllm.data import build as build_data
    from sharedllm.data import read_recipe
    from sharedllm.loading import load_tokenizer

    path = _recipe_file(recipe)
    manifest = build_data(
        read_recipe(path), output, load_tokenizer(model), progress=lambda line: typer.echo(line, err=True)
    )
    sources = manifest["sources"]
    totals = {
        split: sum(s["tokens"] for s in sources.values() if s["split"] == split) for split in ("train", "heldout")
    }
    if as_json:
        common.print_json(
            {"data": str(output), "sources": len(sources), **{f"{k}_tokens": v for k, v in totals.items()}}
        )
    else:
        print(
            f"{totals['train']:,} tokens to train on and {totals['heldout']:,} held out, of {len(sources)} sources, in {output}"
        )


@app.command("texts")
def texts(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped data recipe.")] = "data-heldout",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the text files.")] = Path("data/heldout"),
) -> None:
    """Write texts to measure on as plain files, one a source; nothing is trained on them."""
    from sharedllm.data import read_recipe
    from sharedllm.data.texts import write_texts

    for file in write_texts(read_recipe(_recipe_file(recipe)), output, lambda line: typer.echo(line, err=True)):
        print(file)


def _recipe_file(recipe: str) -> Path:
    """A recipe file by its path, or a shipped one by its name."""
    from sharedllm.errors import UsageError

    for path in (Path(recipe), Path(__file__).parent.parent / "recipes" / f"{recipe}.yaml"):
        if path.is_file():
            return path
    raise UsageError(f"there is no data recipe {recipe}; give a YAML file or the name of a shipped recipe.")
