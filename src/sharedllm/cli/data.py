"""`sharedllm data`: fetch and tokenise training text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharedllm.cli import common

TEXT = Path("data/text")  # where recipes of training look for tokens

app = typer.Typer(help="Fetch and tokenise training text.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Fetch and tokenise training text."""


@app.command("build")
def build(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped data recipe.")] = "data-text",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the tokens.", show_default=str(TEXT))
    ] = None,
    model: common.ModelOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Fetch the recipe's sources, clean, deduplicate and tokenise them into a folder."""
    from sharedllm.data import build as build_data
    from sharedllm.data import read_recipe
    from sharedllm.data.builder import check_unnamed
    from sharedllm.loading import load_tokenizer

    settings = read_recipe(_recipe_file(recipe))
    if output is None:
        output = TEXT
        check_unnamed(settings, output)
    manifest = build_data(settings, output, load_tokenizer(model), progress=common.say)
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

    for file in write_texts(read_recipe(_recipe_file(recipe)), output, common.say):
        print(file)


@app.command("study")
def study(
    data: Annotated[Path, typer.Argument(metavar="DATA_FOLDER", help="A folder written by `sharedllm data build`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the study.")] = Path("data/study"),
    passages: Annotated[int, typer.Option(help="Passages of 1,024 tokens to ask about.")] = 400,
    per_passage: Annotated[int, typer.Option(help="Questions asked about each.")] = 2,
    model: common.ModelOption = None,
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    seed: common.SeedOption = 0,
    as_json: common.JsonOption = False,
) -> None:
    """Let the model write questions and answers about passages of the training text; started again, it goes on."""
    from sharedllm.data.folder import TokenFolder
    from sharedllm.data.study_author import Author
    from sharedllm.data.study_build import Plan, write_study

    plan = Plan(passages, per_passage, seed)
    llm = common.load(model, "none", device, dtype, seed)
    author = Author(llm.detach(), llm.tokenizer)
    folder = TokenFolder.open(data, llm.tokenizer)
    about = write_study(output, folder, author, llm.reader.identity, plan, common.say)
    counts = about["counts"]
    if as_json:
        common.print_json({"study": str(output), "passages": counts["passages"], "pairs": counts["pairs"]})
    else:
        print(f"{counts['pairs']:,} questions with answers about {counts['passages']:,} passages, in {output}")


def _recipe_file(recipe: str) -> Path:
    """A recipe file by its path, or a shipped one by its name."""
    from sharedllm.errors import UsageError

    for path in (Path(recipe), Path(__file__).parent.parent / "recipes" / f"{recipe}.yaml"):
        if path.is_file():
            return path
    raise UsageError(f"there is no data recipe {recipe}; give a YAML file or the name of a shipped recipe.")
