"""The command line: one file a command; `main` turns errors into one sentence and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from sharedllm.cli import ask, bench, chat, common, data, demo, doctor, encode, evaluate, lm_eval, plot, serve, train
from sharedllm.cli.ending import Group
from sharedllm.errors import SharedLLMError, out_of_memory

app = typer.Typer(
    name="sharedllm",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("ask")(ask.ask)
app.command("encode")(encode.encode)
app.command("chat")(chat.chat)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("bench")(bench.bench)
app.command("lm-eval", context_settings=lm_eval.CONTEXT)(lm_eval.lm_eval)
app.command("plot")(plot.plot)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")


def show_version(wanted: bool) -> None:
    """Print the version and leave, when asked to."""
    if wanted:
        from sharedllm import __version__

        print(f"sharedllm {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Read texts far longer than an LLM's window with the LLM you already have."""


def main(arguments: list[str] | None = None, commands: typer.Typer = app) -> Any:
    """Run the command line and exit: 0 well, 1 the work failed, 2 used wrongly, 3 stopped before its end as told, 130 interrupted,
    141 its output closed before its work was done."""
    try:
        commands(arguments, standalone_mode=True)
    except SharedLLMError as error:
        fail(str(error), error.exit_code)
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}.", 1)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        fail("there is not enough memory for this; close other programs or take a shorter text.", 1)


def fail(sentence: str, code: int) -> None:
    """Print one sentence on stderr and exit with `code`."""
    common.say(f"sharedllm: {sentence}")
    sys.exit(code)
