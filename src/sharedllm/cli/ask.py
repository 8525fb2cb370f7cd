"""`sharedllm ask`: answer a question over files."""

from __future__ import annotations

from typing import Annotated

import typer

from sharedllm.cli import common


def ask(
    sources: common.SourcesArgument,
    question: Annotated[str, typer.Option("-q", "--question", help="What you want to know.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")] = 128,
    model: common.ModelOption = None,
    adapter: common.AdapterOption = "default",
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    seed: common.SeedOption = 0,
    as_json: common.JsonOption = False,
) -> None:
    """Answer a question over files: text, Markdown, HTML, PDF, standard input, saved contexts."""
    from sharedllm.errors import UsageError

    if not question.strip():
        raise UsageError("the question is empty; say what you want to know.")
    common.positive("--max-new-tokens", max_new_tokens)
    llm = common.load(model, adapter, device, dtype, seed)
    from sharedllm.evaluate.row import machine

    context, encode_seconds = common.read(llm, sources)
    with common.status("answering"):
        answer = llm.answer(context, question, max_new_tokens)
    figures = {
        "answer": answer.text,
        "context_tokens": context.tokens,
        "slots": answer.slots,
        "compressed": answer.compressed,
        "encode_seconds": round(encode_seconds, 3),
        "search_seconds": round(answer.search_seconds, 3),
        "generate_seconds": round(answer.generate_seconds, 3),
        "generated_tokens": answer.generated_tokens,
        **machine(llm),
    }
    if as_json:
        common.print_json(figures)
        return
    print(answer.text)
    how = f"{answer.slots:,} slots" if answer.compressed else "all in the window, nothing compressed"
    typer.echo(
        f"\n{context.tokens:,} tokens read in {encode_seconds:.1f} s ({how}); "
        f"searched in {answer.search_seconds:.2f} s, answered in {answer.generate_seconds:.1f} s",
        err=True,
    )
    if answer.compressed and llm.adapter == "none":
        typer.echo("no trained adapter is in use: the text that was read cannot influence the answer.", err=True)
