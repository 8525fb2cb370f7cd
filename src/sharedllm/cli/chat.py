"""`sharedllm chat`: questions and answers that follow each other, over files or none."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from sharedllm.cli import common, given


def chat(
    sources: common.TalkSourcesArgument = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")] = 256,
    window: Annotated[
        int | None, typer.Option("--window", help="Tokens the model sees itself; else all it can.")
    ] = None,
    model: common.ModelOption = None,
    adapter: common.AdapterOption = "default",
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    seed: common.SeedOption = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a turn.")] = False,
) -> None:
    """Talk about files, turn by turn; what no longer fits the window is folded into the context.

    One line of standard input is one turn.
    """
    from sharedllm.errors import UsageError, WorkError

    common.positive("--max-new-tokens", max_new_tokens)
    if "-" in (sources or []):
        raise UsageError("'-' cannot be a source here: standard input holds the questions.")
    if sys.stdin is None or sys.stdin.closed:
        raise UsageError(
            "standard input is closed, and the questions come from there; open it, or use `sharedllm ask`."
        )
    given.check_there(sources or [])
    given.refuse_collections(sources or [])
    _replace_undecodable()
    llm = common.load(model, adapter, device, dtype, seed)
    from sharedllm.session import Session

    session = Session(llm, window=window)  # a window that cannot be is refused before anything is read
    if sources:
        session.context = given.read(llm, sources)[0]
    warned = llm.adapter != "none"
    while question := _next_question():
        try:
            with common.status("answering"):
                answer = session.ask(question, max_new_tokens)
        except (UsageError, WorkError) as error:  # such as a question that is too long, or no memory to fold in
            if not sys.stdin.isatty():
                raise
            common.say(f"sharedllm: {error}")
            continue
        if answer.slots and not warned:
            warned = True
            common.say(common.NO_ADAPTER)
        if as_json:
            folded = {"slots": answer.slots, "folded_tokens": session.said.tokens}
            told = {"answer": answer.text, "generated_tokens": answer.generated_tokens, **folded}
            common.print_json(told, more=True)
        else:
            common.tell(answer.text)


def _replace_undecodable() -> None:
    """Bytes of standard input that are no text in its encoding must not end the conversation."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")


def _next_question() -> str:
    """The next line that is not blank; empty at the end of the input."""
    while True:
        if sys.stdin.isatty():
            common.say("> ", end="")
        line = sys.stdin.readline()
        if line.strip() or not line:
            return line.strip()
