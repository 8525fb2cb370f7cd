"""`sharedllm ask`: answer a question over files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sharedllm.cli import common, given

if TYPE_CHECKING:
    from sharedllm.context import Context
    from sharedllm.explain import Passage
    from sharedllm.model import SharedLLM
    from sharedllm.prompts import Answer

THE_ADAPTERS = "(default: the adapter's setting)"
SlotsOption = Annotated[
    int | None, typer.Option("--slots-per-leaf", help=f"Tokens kept of each part of a chunk {THE_ADAPTERS}.")
]
FineOption = Annotated[
    int | None, typer.Option("--fine-chunks", help=f"Chunks of which every token is kept {THE_ADAPTERS}.")
]
ReadOption = Annotated[
    int | None, typer.Option("--read-chunks", help=f"Chunks the question attends to; 0: all {THE_ADAPTERS}.")
]
QuotedOption = Annotated[
    int | None,
    typer.Option(
        "--quoted-tokens", help=f"Tokens of the nearest passages shown as text before the question {THE_ADAPTERS}."
    ),
]
DocumentsOption = Annotated[
    int | None,
    typer.Option(
        "--documents",
        help="Of a collection: how many, those nearest to the question, to answer from.",
        show_default="4",
    ),
]

DOCUMENTS = 4
EXCERPT = 160  # characters of a passage that are shown


def ask(
    sources: common.SourcesArgument,
    question: Annotated[str, typer.Option("-q", "--question", help="What you want to know.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")] = 128,
    explain: Annotated[bool, typer.Option("--explain", help="Also print the passages read most finely.")] = False,
    keep_tags: common.KeepTagsOption = False,
    slots_per_leaf: SlotsOption = None,
    fine_chunks: FineOption = None,
    read_chunks: ReadOption = None,
    quoted_tokens: QuotedOption = None,
    documents: DocumentsOption = None,
    model: common.ModelOption = None,
    adapter: common.AdapterOption = "default",
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    seed: common.SeedOption = 0,
    as_json: common.JsonOption = False,
) -> None:
    """Answer a question over files: text, Markdown, HTML, PDF, standard input, saved contexts, collections."""
    from sharedllm.prompts import check_question

    check_question(question)
    common.positive("--max-new-tokens", max_new_tokens)
    _check_sources(sources, keep_tags, documents)
    llm = common.load(model, adapter, device, dtype, seed)
    from dataclasses import asdict

    from sharedllm.answering import check, fits
    from sharedllm.evaluate.row import machine
    from sharedllm.prompts import Prompt
    from sharedllm.resolution import Resolution

    resolution: dict[str, Any] = {
        "slots_per_leaf": slots_per_leaf,
        "fine_chunks": fine_chunks,
        "read_chunks": read_chunks,
        "quoted_tokens": quoted_tokens,
    }
    prompt = Prompt(llm.tokenizer, question)
    check(llm, prompt, max_new_tokens, Resolution(**resolution))
    sources, hits, find_seconds = given.found(llm, sources, question, documents or DOCUMENTS)
    context, encode_seconds = given.read(llm, sources, keep_tags)
    if not fits(llm, context, prompt, max_new_tokens):
        encode_seconds += given.encode(llm, context)
    with common.status("answering"):
        answer = llm.answer(context, question, max_new_tokens, **resolution)
        read = llm.explain(context, question, max_new_tokens=max_new_tokens, **resolution) if explain else []
    common.finished()
    if as_json:
        figures = _figures(context, answer, encode_seconds)
        passages = {"passages": [asdict(passage) for passage in read]} if explain else {}
        found = {"documents": hits, "find_seconds": round(find_seconds, 3)} if hits else {}
        common.print_json({**figures, **passages, **found, **machine(llm)})
    else:
        _show(llm, context, answer, read, encode_seconds)
        if hits:
            common.say(f"found in {find_seconds:.2f} s: " + ", ".join(hit["source"] for hit in hits))


def _figures(context: Context, answer: Answer, encode_seconds: float) -> dict[str, Any]:
    """An answer and what it took, for programs."""
    return {
        "answer": answer.text,
        "context_tokens": context.tokens,
        "slots": answer.slots,
        "compressed": answer.compressed,
        "encode_seconds": round(encode_seconds, 3),
        "search_seconds": round(answer.search_seconds, 3),
        "generate_seconds": round(answer.generate_seconds, 3),
        "generated_tokens": answer.generated_tokens,
    }


def _check_sources(sources: Sequence[str], keep_tags: bool, documents: int | None) -> None:
    """Raise `UsageError` for a source that is not there, or an option that has nothing to act on among them."""
    from sharedllm.collection.search import is_collection
    from sharedllm.errors import UsageError
    from sharedllm.sources import check_stdin

    check_stdin(sources)  # also where a saved context stands between, so that they are read one by one
    given.check_there(sources)
    if documents is not None:
        common.positive("--documents", documents)
        if not any(map(is_collection, sources)):
            raise UsageError("--documents is for collections, and none is named; leave it out.")
    if keep_tags and all(given.is_saved(source) or is_collection(source) for source in sources):
        raise UsageError(
            "--keep-tags is for texts that are read now, and all that is named was read before; leave it out."
        )


def _show(llm: SharedLLM, context: Context, answer: Answer, read: list[Passage], encode_seconds: float) -> None:
    common.tell(answer.text)
    for passage in read:
        common.tell(f"\n{_line(passage)}")
    how = f"{answer.slots:,} slots" if answer.compressed else "all in the window, nothing compressed"
    common.say(
        f"\n{context.tokens:,} tokens read in {encode_seconds:.1f} s ({how}); "
        f"searched in {answer.search_seconds:.2f} s, answered in {answer.generate_seconds:.1f} s"
    )
    if answer.compressed and llm.adapter == "none":
        common.say(common.NO_ADAPTER)


def _line(passage: Passage) -> str:
    """Where a passage is, how finely it was read and why, and how it begins."""
    score = "" if passage.score is None else f", score {passage.score:.2f}"
    where = f"chunk {passage.chunk}, tokens {passage.start:,} to {passage.end:,}"
    text = " ".join(passage.text.split())
    excerpt = text if len(text) <= EXCERPT else f"{text[:EXCERPT]} ..."
    return f"{where} ({passage.slots:,} of {passage.end - passage.start:,} read{score}): {excerpt}"
